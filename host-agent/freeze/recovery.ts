import { isHostAgentError } from '../errors.js';
import type { HypervisorEvent } from '../hypervisor.js';
import type { DebtDependencies } from './debt.js';
import type { Guest } from './guest.js';
import type { History } from './history.js';
import { Window } from './window.js';
import { within } from './within.js';

/**
 * Rebuilds guests from the journal and starts every thaw that is owed, all VMs side by side. Nothing is waited for: a guest must be thawed
 * within 5 s of the death of the host agent, its restart included.
 */
export function recover(history: History, guest: (vm: string) => Guest): void {
  for (const lease of history.owed.values()) {
    const { vm, window, domainId } = lease;
    // Thawed before it is asked: a thaw too many does no harm, and asking costs a round trip of a frozen guest's time.
    guest(vm)
      .owe({ window, domainId, seenFrozen: history.frozen.has(window) })
      .thaw();
  }
  for (const [vm, reservation] of history.reservations) guest(vm).reservation = reservation;
  for (const [id, { vm, operation, entries }] of history.windows) {
    const owner = guest(vm);
    const reserved = entries[0];
    if (reserved?.type !== 'reserved') continue;
    const debt = [...owner.debts].find((owed) => owed.window === id);
    const identity = { vm, id, operation, terms: reserved.terms };
    owner.windows.set(id, Window.reopen(owner.windowDependencies, identity, entries, debt));
  }
}

/**
 * Asks guests whether they are frozen when no journal can tell: the one that could was unreadable. A guest found frozen is thawed, although
 * a stranger may have frozen it: a stranger's backup that fails is worth less than a guest that nobody would ever thaw.
 */
export class Inquiry {
  readonly #deps: DebtDependencies;
  readonly #guest: (vm: string) => Guest;
  /** What was found, by VM. */
  readonly #findings = new Map<string, string>();
  readonly #unanswered = new Map<string, () => void>();
  #stopped = false;
  #wake: (() => void) | undefined;

  constructor(deps: DebtDependencies, guest: (vm: string) => Guest) {
    this.#deps = deps;
    this.#guest = guest;
  }

  get findings(): string[] {
    return [...this.#findings.values()];
  }

  /** Resolves when every VM that runs now has answered or cannot be frozen. */
  async run(): Promise<void> {
    const vms = await this.#listVms();
    await Promise.all(
      vms
        .filter(({ state }) => state !== 'shut-off')
        .map(({ uuid, name, domainId }) => this.#ask(uuid, name, domainId)),
    );
  }

  onEvent(event: HypervisorEvent): void {
    if (event.type === 'connection') {
      this.#wake?.();
      for (const wake of this.#unanswered.values()) wake();
    } else {
      this.#unanswered.get(event.uuid)?.();
    }
  }

  stop(): void {
    this.#stopped = true;
    this.#wake?.();
    for (const wake of this.#unanswered.values()) wake();
  }

  async #listVms() {
    const { hypervisor, settings, log } = this.#deps;
    while (!this.#stopped) {
      try {
        return await within(hypervisor.listVms(), settings.callGuardMs);
      } catch (error) {
        log.warn(
          { err: error },
          'The VMs cannot be listed, so they cannot be asked whether they are frozen; trying again.',
        );
      }
      await this.#pause(settings.retryMaxMs, (wake) => {
        this.#wake = wake;
      });
    }
    return [];
  }

  async #ask(vm: string, name: string, domainId: number | undefined): Promise<void> {
    const { hypervisor, settings } = this.#deps;
    const guardMs = settings.statusTimeoutS * 1_000 + settings.callGuardMs;
    while (!this.#stopped) {
      try {
        const status = await within(hypervisor.freezeStatus(vm, settings.statusTimeoutS), guardMs);
        this.#findings.delete(vm);
        if (status === 'frozen') await this.#thawFound(vm, name, domainId);
        return;
      } catch (error) {
        if (cannotBeFrozen.some((code) => isHostAgentError(error, code))) {
          this.#findings.delete(vm);
          return;
        }
        const text = error instanceof Error ? error.message : String(error);
        this.#findings.set(vm, `Whether ${name} (${vm}) is frozen is unknown: ${text}. It is asked again.`);
      }
      await this.#pause(settings.retryMaxMs, (wake) => {
        this.#unanswered.set(vm, wake);
      });
      this.#unanswered.delete(vm);
    }
  }

  async #thawFound(vm: string, name: string, domainId: number | undefined): Promise<void> {
    this.#deps.log.error({ vm, name }, 'A guest was found frozen and no readable journal tells by whom: it is thawed.');
    this.#findings.set(vm, `${name} (${vm}) was found frozen when the journal could not be read, and is being thawed.`);
    const debt = this.#guest(vm).owe({ window: `unreadable-journal.${vm}`, domainId, seenFrozen: true });
    debt.thaw();
    // The journal keeps that guests must be asked until this is settled: the debt has no lease there.
    await debt.settled;
    this.#findings.set(vm, `${name} (${vm}) was found frozen when the journal could not be read, and was thawed.`);
  }

  #pause(ms: number, keep: (wake: () => void) => void): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      keep(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

/** A guest without an agent was never frozen through one, and one that does not run is not frozen. */
const cannotBeFrozen = ['AGENT_NOT_CONFIGURED', 'VM_NOT_RUNNING', 'VM_NOT_FOUND'] as const;
