import { HostAgentError } from '../errors.js';
import type { HypervisorEvent } from '../hypervisor.js';
import type { FreezeState, HoldState, Reservation } from '../window.js';
import { type DebtDependencies, type Owed, ThawDebt } from './debt.js';
import type { Journal } from './journal.js';
import type { Window, WindowDependencies } from './window.js';
import { within } from './within.js';

/** What the room keeps of one VM: its reservation, the windows of the operation that holds it, and the thaws that are owed to it. */
export class Guest {
  readonly vm: string;
  reservation: Reservation | undefined;
  /** Windows of the operation that holds the VM, until it is released. */
  readonly windows = new Map<string, Window>();
  readonly #debts = new Set<ThawDebt>();
  readonly #deps: GuestDependencies;
  #agentTimeout: Promise<void> | undefined;

  constructor(deps: GuestDependencies, vm: string) {
    this.#deps = deps;
    this.vm = vm;
  }

  /** What a window of this VM needs. */
  get windowDependencies(): WindowDependencies {
    return {
      ...this.#deps,
      owe: (lease) => this.owe(lease),
      setAgentTimeout: (seconds) => this.setAgentTimeout(seconds),
      restoreAgentTimeout: () => this.restoreAgentTimeout(),
    };
  }

  /** The window that is not closed; at most one is. */
  get openWindow(): Window | undefined {
    for (const window of this.windows.values()) if (!window.closed) return window;
    return undefined;
  }

  get debts(): ReadonlySet<ThawDebt> {
    return this.#debts;
  }

  /** Takes a debt; it is dropped, also from the journal, when it is settled. */
  owe(lease: Owed): ThawDebt {
    const debt = new ThawDebt(this.windowDependencies, { vm: this.vm, ...lease });
    this.#debts.add(debt);
    void debt.settled.then((settlement) => {
      this.#debts.delete(debt);
      this.#deps.log.info({ vm: this.vm, window: lease.window, settlement }, 'No thaw is owed any more.');
      // Not durable is not dangerous: the next life would ask once more, and find the guest thawed.
      this.#deps.journal.commit({ type: 'settled', vm: this.vm, window: lease.window }).catch(() => undefined);
      this.restoreAgentTimeout();
    });
    return debt;
  }

  /** Sets the domain's guest agent timeout to the configured value, without waiting: libvirt cannot say what it was before us. */
  restoreAgentTimeout(): void {
    this.setAgentTimeout(this.#deps.settings.agentTimeoutAfter).catch((error) => {
      this.#deps.log.warn({ vm: this.vm, err: error }, 'The guest agent timeout was not set back.');
    });
  }

  /** Sets the domain's guest agent timeout: at once, or after the one that is under way, so that they cannot overtake one another. */
  setAgentTimeout(seconds: number | 'default'): Promise<void> {
    const { hypervisor, settings } = this.#deps;
    const set = () => within(hypervisor.setAgentTimeout(this.vm, seconds), settings.callGuardMs);
    const done = this.#agentTimeout === undefined ? set() : this.#agentTimeout.then(set);
    const settled: Promise<void> = done.then(
      () => this.#agentTimeoutSet(settled),
      () => this.#agentTimeoutSet(settled),
    );
    this.#agentTimeout = settled;
    return done;
  }

  #agentTimeoutSet(settled: Promise<void>): void {
    if (this.#agentTimeout === settled) this.#agentTimeout = undefined;
  }

  /** Resolves when no guest agent timeout is being set any more. */
  async settleAgentTimeout(): Promise<void> {
    await this.#agentTimeout;
  }

  /** Refuses while an earlier freeze is not proven undone. Errors: MAYBE_FROZEN. */
  refuseWhileOwed(): void {
    for (const debt of this.#debts) {
      if (debt.window === this.openWindow?.id) continue;
      throw new HostAgentError(
        'MAYBE_FROZEN',
        `An earlier freeze of this VM (${debt.window}) is not settled: ${debt.detail}`,
        {
          metadata: { window: debt.window },
        },
      );
    }
  }

  onEvent(event: HypervisorEvent): void {
    for (const window of this.windows.values()) window.onEvent(event);
    for (const debt of this.#debts) debt.hurry();
  }

  /** Freeze state and holder, for people. */
  state(): HoldState {
    const open = this.openWindow;
    const debts = [...this.#debts];
    const states = [...debts.map((debt) => debt.state), open?.freezeState ?? 'thawed'];
    const freezeState = mostUrgent.find((state) => states.includes(state)) ?? 'thawed';
    return {
      reservation: this.reservation,
      freezeState,
      frozenUnixMs: open?.frozenUnixMs ?? 0,
      detail: debts.map((debt) => debt.detail).find((detail) => detail !== '') ?? '',
      windowLimitMs: open?.terms.windowLimitMs ?? 0,
    };
  }

  /** Ends timers and repetitions; what is owed stays in the journal. */
  stop(): void {
    for (const window of this.windows.values()) window.stop();
    for (const debt of this.#debts) debt.stop();
  }
}

export interface GuestDependencies extends DebtDependencies {
  journal: Journal;
  stopping(): boolean;
}

const mostUrgent: FreezeState[] = ['still-frozen', 'maybe-frozen', 'thawing', 'frozen', 'freezing'];
