import { isHostError } from '../hosts/errors.js';
import type { HostFacts, Hosts, HostVm } from '../hosts/hosts.js';
import { Problem } from './problems.js';

export interface KnownVm extends HostVm {
  host: string;
  /** Its host did not answer: this is what it said last. */
  stale: boolean;
  /** ISO 8601. */
  seenAt: string;
}

export interface HostReach {
  name: string;
  reachable: boolean;
  error: { code: string; text: string } | null;
}

/** A host agent answers at once with what it knows without libvirt, or it is not there. ms. */
const FACTS_MS = 1_000;

interface HostMemory {
  vms: HostVm[];
  /** By Date.now(). */
  seenAtMs: number;
  askedAtMs: number;
  error: HostReach['error'];
  asking: Promise<void> | undefined;
}

/** Which VM is where: asked of the hosts, kept for seconds; of a host that does not answer, what it said last. */
export class VmDirectory {
  readonly #hosts: Hosts;
  readonly #keepMs: number;
  readonly #timeoutMs: number;
  readonly #memory = new Map<string, HostMemory>();

  constructor(hosts: Hosts, times: { keepMs: number; timeoutMs: number }) {
    this.#hosts = hosts;
    this.#keepMs = times.keepMs;
    this.#timeoutMs = times.timeoutMs;
  }

  async list(): Promise<{ vms: KnownVm[]; hosts: HostReach[] }> {
    const names = await this.#hosts.names();
    for (const name of this.#memory.keys()) if (!names.includes(name)) this.#memory.delete(name);
    await Promise.all(names.map((name) => this.#refresh(name)));
    const known = names.flatMap((name) => {
      const memory = this.#memory.get(name);
      return memory === undefined ? [] : [{ name, memory }];
    });
    return {
      vms: known.flatMap(({ name, memory }) =>
        memory.vms.map((vm) => ({
          ...vm,
          host: name,
          stale: memory.error !== null,
          seenAt: new Date(memory.seenAtMs).toISOString(),
        })),
      ),
      hosts: known.map(({ name, memory }) => ({ name, reachable: memory.error === null, error: memory.error })),
    };
  }

  /**
   * The VM of a UUID or a name. One that is not in memory is asked for once more: it may be seconds old.
   *
   * @throws Problem VM_NOT_FOUND (naming the hosts that did not answer), VM_NAME_AMBIGUOUS with the UUIDs, VM_AMBIGUOUS with the hosts
   */
  async find(uuidOrName: string): Promise<KnownVm> {
    const first = await this.list();
    const found = one(uuidOrName, first.vms);
    if (found !== undefined) return found;
    this.forget();
    const second = await this.list();
    const later = one(uuidOrName, second.vms);
    if (later !== undefined) return later;
    const silent = second.hosts.filter((host) => !host.reachable).map((host) => host.name);
    throw new Problem(
      'VM_NOT_FOUND',
      `No host knows a VM '${uuidOrName}'.${silent.length === 0 ? '' : ` These did not answer: ${silent.join(', ')}.`} See: stillpoint vms.`,
      silent.length === 0 ? {} : { unreachableHosts: silent },
    );
  }

  /** What was kept is asked anew next time. */
  forget(): void {
    for (const memory of this.#memory.values()) memory.askedAtMs = Number.NEGATIVE_INFINITY;
  }

  /** Facts of one host, asked now; the error where it does not answer. */
  async reach(name: string): Promise<HostReach & { facts: HostFacts | null }> {
    try {
      const facts = await this.#hosts.host(name).facts({ deadlineMs: this.#timeoutMs });
      return { name, reachable: true, error: null, facts };
    } catch (error) {
      return { name, reachable: false, error: errorOf(error), facts: null };
    }
  }

  async #refresh(name: string): Promise<void> {
    let memory = this.#memory.get(name);
    if (memory === undefined) {
      memory = { vms: [], seenAtMs: 0, askedAtMs: Number.NEGATIVE_INFINITY, error: null, asking: undefined };
      this.#memory.set(name, memory);
    }
    if (performance.now() - memory.askedAtMs < this.#keepMs) return;
    memory.asking ??= this.#ask(name, memory);
    await memory.asking;
  }

  async #ask(name: string, memory: HostMemory): Promise<void> {
    const askedAtMs = performance.now();
    const host = this.#hosts.host(name);
    try {
      memory.vms = await host.listVms({ deadlineMs: this.#timeoutMs });
      memory.seenAtMs = Date.now();
      memory.error = null;
    } catch (error) {
      memory.error = errorOf(error);
      // It may be libvirt alone that does not answer.
      const facts = await host.facts({ deadlineMs: Math.min(this.#timeoutMs, FACTS_MS) }).catch(() => undefined);
      if (facts !== undefined) memory.vms = withHolds(memory.vms, facts);
    } finally {
      memory.askedAtMs = askedAtMs;
      memory.asking = undefined;
    }
  }
}

/** What a host agent itself knows, it says also while its libvirt is away: a guest that is frozen then must not look as it did before. */
function withHolds(vms: HostVm[], { holds }: HostFacts): HostVm[] {
  const byVm = new Map(holds.map(({ vm, hold }) => [vm, hold]));
  return vms.map((vm) => ({ ...vm, hold: byVm.get(vm.uuid) ?? vm.hold }));
}

function one(uuidOrName: string, vms: KnownVm[]): KnownVm | undefined {
  const ofUuid = vms.filter((vm) => vm.uuid === uuidOrName.toLowerCase());
  if (ofUuid.length > 0) return whereItRuns(ofUuid);
  const ofName = vms.filter((vm) => vm.name === uuidOrName);
  if (new Set(ofName.map((vm) => vm.uuid)).size > 1) {
    const which = ofName.map(({ uuid, host, state }) => ({ uuid, host, state }));
    throw new Problem(
      'VM_NAME_AMBIGUOUS',
      `Several VMs are called '${uuidOrName}'. Name one by its UUID: ${[...new Set(which.map((vm) => vm.uuid))].join(', ')}.`,
      { vms: which },
    );
  }
  return ofName.length === 0 ? undefined : whereItRuns(ofName);
}

/** A migrated VM may be defined on its old host still; it is where it runs. */
function whereItRuns(same: KnownVm[]): KnownVm | undefined {
  if (same.length === 1) return same[0];
  const alive = same.filter((vm) => !vm.stale && vm.state !== 'shut-off');
  if (alive.length === 1) return alive[0];
  const hosts = same.map((vm) => vm.host);
  throw new Problem(
    'VM_AMBIGUOUS',
    `The hosts ${hosts.join(', ')} report the VM ${same[0]?.uuid}, and it is not clear which one runs it. See: stillpoint vms.`,
    { hosts },
  );
}

function errorOf(error: unknown): { code: string; text: string } {
  if (isHostError(error)) return { code: error.code, text: [error.message, error.advice].filter(Boolean).join(' ') };
  return { code: 'INTERNAL', text: error instanceof Error ? error.message : String(error) };
}
