import { HostAgentError } from '../errors.js';
import type { HypervisorEvent, Vm } from '../hypervisor.js';
import type { FreezeState, HoldState, Reservation } from '../window.js';
import { type DebtDependencies, type Owed, ThawDebt } from './debt.js';
import type { Journal } from './journal.js';
import { DomainNote } from './lease-note.js';
import type { Window, WindowDependencies } from './window.js';
import { within } from './within.js';

/** What the room keeps of one VM: its reservation, the windows of the operation that holds it, and the thaws that are owed to it. */
export class Guest {
  readonly vm: string;
  reservation: Reservation | undefined;
  /** Windows of the operation that holds the VM, until it is released. */
  readonly windows = new Map<string, Window>();
  readonly #debts = new Set<ThawDebt>();
  readonly #note: DomainNote;
  readonly #deps: GuestDependencies;
  #agentTimeout: Promise<void> | undefined;

  constructor(deps: GuestDependencies, vm: string) {
    this.#deps = deps;
    this.vm = vm;
    this.#note = new DomainNote(deps, vm);
  }

  /** What a window of this VM needs. */
  get windowDependencies(): WindowDependencies {
    return {
      ...this.#deps,
      owe: (lease) => this.owe(lease),
      noteLease: (window, domainId) => this.#noteLease(window, domainId),
      removeNote: (window) => this.#note.remove(window),
      refuseWhileOwed: () => this.refuseWhileOwed(),
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
    this.#note.answerFor(lease.window, lease.domainId);
    void debt.settled.then((settlement) => {
      this.#debts.delete(debt);
      this.#deps.log.info({ vm: this.vm, window: lease.window, settlement }, 'No thaw is owed any more.');
      const end = settlement.how === 'gone' ? settlement.reason : settlement.how;
      // Not durable is not dangerous: the next life would ask once more, and find the guest thawed.
      this.#deps.journal.commit({ type: 'settled', vm: this.vm, window: lease.window, end }).catch(() => undefined);
      if (settlement.how === 'gone') {
        // It may be here again by now, or later, restored or moved back, and as frozen as it was; libvirt may even give it the same id again.
        this.#note.left(lease.window);
        this.#deps.lookAgain(this.vm);
      } else {
        this.#note.paid(lease.window, lease.domainId);
      }
      this.restoreAgentTimeout();
    });
    return debt;
  }

  /** Thaws what a lease of elsewhere may have left frozen; joins the debt that is open for it. */
  thawArrived(window: string, domainId: number | undefined): ThawDebt {
    const name = `arrived.${window}`;
    const known = [...this.#debts].find((debt) => debt.window === name);
    const debt = known ?? this.owe({ window: name, domainId, seenFrozen: false });
    debt.thaw();
    return debt;
  }

  /** Removes a note that can have no freeze behind it. */
  dropNote(window: string, domainId: number | undefined): void {
    this.#note.paid(`arrived.${window}`, domainId);
  }

  /**
   * Whether a debt or a freeze of this life is behind the note of that window in the domain. Of a guest that is frozen in a window of ours it is, whatever the note
   * says: no window opens on a guest that is frozen already.
   */
  answersFor(window: string, vm: Vm): boolean {
    const open = this.openWindow?.id;
    if ([...this.#debts].some((debt) => debt.window === open && debt.domainId === vm.domainId)) return true;
    const names = [window, `arrived.${window}`];
    return (
      [...this.#debts].some((debt) => names.includes(debt.window)) || names.some((name) => this.#note.isMine(name, vm))
    );
  }

  async #noteLease(window: string, domainId: number | undefined): Promise<void> {
    const installation = this.reservation?.installation ?? '';
    await this.#note.write({ window, host: this.#deps.hostName, installation }, domainId);
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

  /** Resolves when nothing of the domain is being set back any more. */
  async settleDomain(): Promise<void> {
    await Promise.all([this.#agentTimeout, this.#note.settled()]);
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
    this.#note.stop();
  }
}

export interface GuestDependencies extends DebtDependencies {
  journal: Journal;
  /** Of this host, as its certificate has it. */
  hostName: string;
  stopping(): boolean;
  /** Looks whether the VM is here with a lease's note. */
  lookAgain(vm: string): void;
}

const mostUrgent: FreezeState[] = ['still-frozen', 'maybe-frozen', 'thawing', 'frozen', 'freezing'];
