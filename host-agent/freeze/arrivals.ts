import { isHostAgentError } from '../errors.js';
import type { HypervisorEvent, Vm } from '../hypervisor.js';
import type { DebtDependencies } from './debt.js';
import type { Guest } from './guest.js';
import { readNote } from './lease-note.js';
import { within } from './within.js';

/**
 * Guests that came here frozen: moved from another host, or restored from a file, with the note of a lease for which nobody here answers. Every VM is looked at when
 * it is started or resumed, and all of them at the start and at each new connection, for events are lost between two. What is found is thawed, whoever froze it
 * and whatever the note says: a thaw too many does no harm.
 */
export class Arrivals {
  readonly #deps: DebtDependencies;
  readonly #guest: (vm: string) => Guest;
  /** VMs that are being looked at, and whether they have to be again. */
  readonly #looking = new Map<string, { again: boolean }>();
  #round: Promise<void> | undefined;
  #anotherRound = false;
  #wakes = new Set<() => void>();
  #stopped = false;

  constructor(deps: DebtDependencies, guest: (vm: string) => Guest) {
    this.#deps = deps;
    this.#guest = guest;
  }

  onEvent(event: HypervisorEvent): void {
    if (event.type === 'connection' && event.up) this.lookAtAll();
    if (event.type === 'lifecycle' && (event.what === 'started' || event.what === 'resumed')) this.look(event.uuid);
  }

  /** Looks at every VM, however long libvirt is away. */
  lookAtAll(): void {
    this.#anotherRound = true;
    for (const wake of this.#wakes) wake();
    this.#round ??= this.#rounds().finally(() => {
      this.#round = undefined;
    });
  }

  /** Looks at one VM. */
  look(vm: string): void {
    if (this.#stopped) return;
    const known = this.#looking.get(vm);
    if (known !== undefined) {
      known.again = true;
      return;
    }
    const looking = { again: false };
    this.#looking.set(vm, looking);
    void this.#lookUntilSeen(vm, looking).finally(() => this.#looking.delete(vm));
  }

  stop(): void {
    this.#stopped = true;
    for (const wake of this.#wakes) wake();
  }

  async #rounds(): Promise<void> {
    const { hypervisor, settings } = this.#deps;
    while (this.#anotherRound && !this.#stopped) {
      this.#anotherRound = false;
      const vms = await this.#untilAnswered(() => within(hypervisor.listVms(), settings.callGuardMs));
      for (const vm of vms ?? []) this.#meet(vm);
    }
  }

  async #lookUntilSeen(vm: string, looking: { again: boolean }): Promise<void> {
    const { hypervisor, settings } = this.#deps;
    do {
      looking.again = false;
      const seen = await this.#untilAnswered(() => within(hypervisor.getVm(vm), settings.callGuardMs));
      if (seen !== undefined) this.#meet(seen);
    } while (looking.again && !this.#stopped);
  }

  /** Undefined: there is no such VM (any more), or the host agent stops. */
  async #untilAnswered<T>(ask: () => Promise<T>): Promise<T | undefined> {
    const { settings, log } = this.#deps;
    while (!this.#stopped) {
      try {
        return await ask();
      } catch (error) {
        if (isHostAgentError(error, 'VM_NOT_FOUND')) return undefined;
        // Its definition makes no sense, and will make none in a second.
        if (isHostAgentError(error, 'LIBVIRT_PROTOCOL')) {
          log.error({ err: error }, 'Whether a VM came here frozen cannot be known.');
          return undefined;
        }
        log.info({ err: error }, 'Whether a VM came here frozen is not known yet; asking again.');
      }
      await this.#pause(settings.retryMaxMs);
    }
    return undefined;
  }

  #meet(vm: Vm): void {
    if (this.#stopped || vm.note === undefined || vm.state === 'shut-off') return;
    // On its way here it still runs, and may be frozen, where it comes from. It need not be resumed when it has come, so it is looked at until then.
    if (vm.migrating && vm.state !== 'running') {
      void this.#pause(this.#deps.settings.retryMaxMs).then(() => this.look(vm.uuid));
      return;
    }
    const lease = readNote(vm.note);
    const guest = this.#guest(vm.uuid);
    const window = lease?.window ?? 'unreadable-note';
    if (guest.answersFor(window, vm)) return;
    // Nobody can have frozen it, and a thaw would be owed to it for ever.
    if (vm.guestAgent === 'not-configured') {
      guest.dropNote(window, vm.domainId);
      return;
    }
    this.#deps.log.warn(
      { vm: vm.uuid, name: vm.name, lease: lease ?? vm.note.slice(0, 200) },
      'This VM has the note of a lease for which nobody here answers: it is thawed.',
    );
    guest.thawArrived(window, vm.domainId);
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.#wakes.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      this.#wakes.add(wake);
    });
  }
}
