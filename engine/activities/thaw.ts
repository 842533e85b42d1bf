import type { WindowVerdict } from '@stillpoint/workflows';
import { isHostError } from '../hosts/errors.js';
import type { Hosts } from '../hosts/hosts.js';
import { lostVerdict, verdictOf } from './verdict.js';

/** How long a host may take to say whether it has a VM, ms. */
const askMs = 5_000;

/** With these the host that froze the guest cannot thaw it: the VM is, or may be, on another one by now. */
const notHere: ReadonlySet<string> = new Set(['VM_MOVED', 'WINDOW_UNKNOWN', 'HOST_LOST']);

/**
 * The host's verdict on a window; the guest is thawed then. Where the host says that the VM is not there, the others are asked for it, and the thaw is repeated
 * where it runs: each host agent does so by itself when it meets the VM, but only here is it known that somebody has to.
 *
 * @throws HostError as long as a host that has the VM has not thawed it
 */
export async function thawFileSystems(
  deps: { hosts: Hosts },
  request: { host: string; vm: string; window: string; frozen: boolean; reason: string },
  signal: AbortSignal,
): Promise<WindowVerdict> {
  const verdict = await verdictOfItsHost(deps.hosts, request, signal);
  // An unfrozen window is only closed: whoever else may have frozen the guest is not thawed for it.
  if (!request.frozen || !notHere.has(verdict.lostReason ?? '')) return verdict;
  const { thawedOn, silent } = await thawElsewhere(deps.hosts, request, signal);
  if (thawedOn !== undefined) {
    return { ...verdict, thawedOn, detail: `${verdict.detail} It runs on ${thawedOn} now, and is thawed there.` };
  }
  const unasked = silent.length === 0 ? '' : ` ${silent.join(', ')} did not answer.`;
  return { ...verdict, detail: `${verdict.detail} No host says that the VM runs there.${unasked}` };
}

async function verdictOfItsHost(
  hosts: Hosts,
  { host, vm, window, reason }: { host: string; vm: string; window: string; reason: string },
  signal: AbortSignal,
): Promise<WindowVerdict> {
  try {
    return verdictOf(await hosts.host(host).thawFileSystems({ vm, window, reason }, { signal }));
  } catch (error) {
    if (isHostError(error, 'HOST_LOST')) return lostVerdict(window, 'HOST_LOST', error.message);
    if (isHostError(error, 'WINDOW_UNKNOWN')) {
      return lostVerdict(window, 'WINDOW_UNKNOWN', `${host} knows nothing of this window: ${error.message}.`);
    }
    throw error;
  }
}

/** Also the window's own host is asked: one that lost its journal may have the VM. */
async function thawElsewhere(
  hosts: Hosts,
  { vm, window }: { vm: string; window: string },
  signal: AbortSignal,
): Promise<{ thawedOn: string | undefined; silent: string[] }> {
  const names = await hosts.names();
  const answers = await Promise.all(
    names.map(async (name) => {
      try {
        const { state } = await hosts.host(name).getVm(vm, { deadlineMs: askMs, signal });
        return { name, has: state === 'running' || state === 'paused' };
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        return isHostError(error, 'VM_NOT_FOUND') ? { name, has: false } : { name, has: undefined };
      }
    }),
  );
  let thawedOn: string | undefined;
  for (const { name, has } of answers) {
    if (has !== true) continue;
    try {
      await hosts.host(name).thawVm({ vm, askedBy: 'the engine', window }, { signal });
      thawedOn = name;
    } catch (error) {
      // Gone on meanwhile, or stopped: whoever has it now, or starts it, thaws it by its note.
      if (!isHostError(error, 'VM_NOT_FOUND', 'VM_NOT_RUNNING')) throw error;
    }
  }
  return { thawedOn, silent: answers.flatMap(({ name, has }) => (has === undefined ? [name] : [])) };
}
