import { isHostError } from '../hosts/errors.js';
import type { Hosts, HostVm } from '../hosts/hosts.js';
import { ActivityError } from './failure.js';

/** How long a host may take to say whether it has a VM, ms. */
const askMs = 5_000;

/**
 * The one host on which the VM runs (or is paused).
 *
 * @throws ActivityError VM_NOT_FOUND, VM_NOT_RUNNING, VM_AMBIGUOUS; HOST_UNREACHABLE naming the hosts that did not answer, where the VM may be on one of them
 */
export async function findRunningVm(
  hosts: Hosts,
  uuid: string,
  signal: AbortSignal,
): Promise<{ host: string; vm: HostVm }> {
  const names = await hosts.names();
  const answers = await Promise.all(
    names.map(async (host) => {
      try {
        return { host, vm: await hosts.host(host).getVm(uuid, { deadlineMs: askMs, signal }) };
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        return { host, error };
      }
    }),
  );
  const found = answers.flatMap((answer) => (answer.vm === undefined ? [] : [{ host: answer.host, vm: answer.vm }]));
  const silent = answers.filter((answer) => answer.error !== undefined && !isHostError(answer.error, 'VM_NOT_FOUND'));
  const alive = found.filter(({ vm }) => vm.state === 'running' || vm.state === 'paused');
  const [only, another] = alive;
  if (only !== undefined && another === undefined) return only;
  if (another !== undefined) {
    const where = alive.map(({ host }) => host).join(' and ');
    throw new ActivityError('VM_AMBIGUOUS', `VM ${uuid} runs on ${where} at once.`, {
      advice: 'Wait until its migration has ended, or end one of the two.',
      metadata: { hosts: alive.map(({ host }) => host).join(',') },
    });
  }
  if (silent.length > 0) {
    const where = silent.map(({ host }) => host).join(', ');
    throw new ActivityError('HOST_UNREACHABLE', `No host that answers runs VM ${uuid}, and ${where} did not answer.`, {
      advice: 'See that these hosts are up and that stillpoint-host-agent runs there.',
      metadata: { hosts: silent.map(({ host }) => host).join(',') },
      cause: silent[0]?.error,
    });
  }
  const [off] = found;
  if (off !== undefined) {
    throw new ActivityError('VM_NOT_RUNNING', `${off.vm.name} does not run on ${off.host} (${off.vm.state}).`, {
      advice: 'Start the VM, or copy its disks while it is off.',
      metadata: { host: off.host },
    });
  }
  throw new ActivityError('VM_NOT_FOUND', `None of the ${names.length} registered hosts knows VM ${uuid}.`, {
    advice:
      names.length === 0
        ? 'Register its host: stillpoint host add.'
        : 'Check the UUID, and whether its host is registered.',
  });
}
