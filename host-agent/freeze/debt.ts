import type { Logger } from 'pino';
import { type HostAgentErrorCode, isHostAgentError } from '../errors.js';
import type { Hypervisor, Vm } from '../hypervisor.js';
import type { FreezeState, WhereGone } from '../window.js';
import type { Clock } from './clock.js';
import type { FreezeSettings } from './settings.js';
import { within } from './within.js';

/** How a debt ended. */
export type Settlement =
  /** `fileSystems` undefined: the count is unknown, because a thaw was never answered and the guest's status told. */
  | { how: 'thawed'; fileSystems: number | undefined; requestedAt: number; thawedUnixMs: number }
  /** A watched freeze never happened. */
  | { how: 'not-frozen' }
  /** That life of the guest is over, or goes on elsewhere: nothing is left here that could be thawed. */
  | { how: 'gone'; reason: WhereGone; detail: string };

/**
 * A thaw that is owed to one guest: taken with the lease, before libvirt is asked to freeze, and ended only by proof that the guest is
 * thawed or gone. There is no time limit and no giving up: whatever fails is repeated, soon when an event says that it may work now.
 *
 * Two ways to pay: `thaw` (the guest is frozen, or may be and nobody minds a thaw too many) and `watch` (a freeze failed or timed out and may still
 * happen: ask, and thaw only if it did).
 */
export class ThawDebt {
  readonly vm: string;
  readonly window: string;
  /** libvirt's id of the domain that the freeze was for; undefined: unknown. */
  readonly domainId: number | undefined;
  /** Resolves when the debt is settled. */
  readonly settled: Promise<Settlement>;

  readonly #deps: DebtDependencies & AgentTimeout;
  #settle: (settlement: Settlement) => void = () => undefined;
  #state: FreezeState = 'freezing';
  #detail = '';
  #running = false;
  /** Set once the freeze was answered in this life; without it a thaw's count proves nothing and the status decides. */
  #frozenFileSystems: number | undefined;
  #seenFrozen: boolean;
  #mustThaw = false;
  #slowThawAllowed = false;
  #tell: NodeJS.Timeout | undefined;
  #freezeUnanswered = false;
  #wasSaved = false;
  #stopped = false;
  #wake: (() => void) | undefined;
  #woken = false;

  constructor(deps: DebtDependencies & AgentTimeout, lease: Owed & { vm: string }) {
    this.#deps = deps;
    this.vm = lease.vm;
    this.window = lease.window;
    this.domainId = lease.domainId;
    this.#seenFrozen = lease.seenFrozen;
    this.settled = new Promise((resolve) => {
      this.#settle = resolve;
    });
  }

  /** What GetVm says of it. */
  get state(): FreezeState {
    return this.#state;
  }

  /** Why it is not settled yet, and what to do; empty: it is about to be. */
  get detail(): string {
    return this.#detail;
  }

  /** Thaws, until it is proven. Again: hurries. */
  thaw(): void {
    this.#thawIsDue();
    this.hurry();
    this.#start();
  }

  /** Watches a freeze that failed or timed out. `freezeCall` settles if it is ever answered; while it has not, no status answer ends the watch. */
  watch(freezeCall: Promise<unknown>): void {
    this.#state = 'maybe-frozen';
    this.#detail =
      'A freeze was not answered and may still happen. Wait until the guest agent answers; the guest is thawed then.';
    this.#freezeUnanswered = true;
    const answered = (frozen: boolean) => {
      this.#freezeUnanswered = false;
      if (frozen) this.thaw();
      else this.hurry();
    };
    freezeCall.then(
      () => answered(true),
      () => answered(false),
    );
    this.#start();
  }

  /** The freeze was answered: the guest is frozen in an open window, and nothing is due yet. */
  frozen(fileSystems: number): void {
    this.#frozenFileSystems = fileSystems;
    this.#seenFrozen = true;
    this.#state = 'frozen';
    // While the cuts run, so that it is out of the thaw's way.
    this.#allowSlowThaw();
  }

  /** Ends a debt that was never one: the freeze surely did not happen. */
  cancel(): void {
    this.#finish({ how: 'not-frozen' });
  }

  /** An event says that what failed may work now. */
  hurry(): void {
    this.#woken = true;
    this.#wake?.();
  }

  /** Ends the repetitions, at shutdown: the lease stays in the journal, and the next life pays. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#tell);
    this.hurry();
  }

  #start(): void {
    if (this.#running || this.#stopped || this.#state === 'thawed') return;
    this.#running = true;
    void this.#pay().then((settlement) => {
      if (settlement !== undefined) this.#finish(settlement);
    });
  }

  #thawIsDue(): void {
    if (this.#mustThaw || this.#stopped) return;
    this.#mustThaw = true;
    this.#state = 'thawing';
    // A thaw that hangs is told as well as one that fails: no answer is all that people see of a stopped guest agent.
    this.#tell = setTimeout(() => this.#tellUnanswered(), this.#deps.settings.stillFrozenAfterMs);
  }

  #finish(settlement: Settlement): void {
    this.stop();
    this.#state = 'thawed';
    this.#detail = '';
    this.#settle(settlement);
  }

  async #pay(): Promise<Settlement | undefined> {
    const { settings } = this.#deps;
    for (let pauseMs = settings.retryFirstMs; !this.#stopped; pauseMs = Math.min(2 * pauseMs, settings.retryMaxMs)) {
      this.#woken = false;
      const settlement = await this.#tryOnce();
      if (settlement !== undefined) return settlement;
      if (await this.#pause(pauseMs)) pauseMs = settings.retryFirstMs;
    }
    return undefined;
  }

  async #tryOnce(): Promise<Settlement | undefined> {
    const thaw = this.#mustThaw ? await this.#sendThaw() : undefined;
    const proven = thaw?.fileSystems !== undefined && thaw.fileSystems === this.#frozenFileSystems;
    if (thaw !== undefined && proven) return { how: 'thawed', ...thaw };

    // Only what is asked after the freeze was answered says how it ended: both answers may come in one turn.
    const freezeHadEnded = !this.#freezeUnanswered;
    // Replies lie in both directions: a thaw that failed may have thawed, one that succeeded may not have. The status decides.
    const status = await this.#askStatus();
    if (status === 'thawed' && freezeHadEnded) {
      return thaw === undefined ? { how: 'not-frozen' } : { how: 'thawed', ...thaw };
    }
    if (status === 'frozen') {
      this.#seenFrozen = true;
      if (thaw === undefined) {
        this.#thawIsDue();
        this.hurry();
      } else {
        this.#explain(
          'The guest says that it is still frozen after a thaw. Look at qemu-guest-agent and its thaw hook in the guest.',
        );
      }
      return undefined;
    }
    if (status === undefined) return this.#whetherGone();
    return undefined;
  }

  async #sendThaw(): Promise<{ fileSystems: number | undefined; requestedAt: number; thawedUnixMs: number }> {
    const { hypervisor, settings, clock } = this.#deps;
    const askedAt = clock.now();
    this.#allowSlowThaw();
    try {
      const { fileSystems, requestedAt } = await within(
        hypervisor.thaw(this.vm),
        settings.thawTimeoutS * 1_000 + settings.callGuardMs,
      );
      return { fileSystems, requestedAt, thawedUnixMs: clock.unixMs() };
    } catch (error) {
      this.#failed('thaw', error);
      return { fileSystems: undefined, requestedAt: askedAt, thawedUnixMs: clock.unixMs() };
    }
  }

  /** Never waited for: a libvirt that hangs in this call must not keep the thaw back. */
  #allowSlowThaw(): void {
    if (this.#slowThawAllowed) return;
    this.#slowThawAllowed = true;
    const { setAgentTimeout, settings, log } = this.#deps;
    setAgentTimeout(settings.thawTimeoutS).catch((error) => {
      this.#slowThawAllowed = false;
      log.warn({ vm: this.vm, window: this.window, err: error }, "The guest agent timeout was not set to the thaw's.");
    });
  }

  async #askStatus(): Promise<'frozen' | 'thawed' | undefined> {
    const { hypervisor, settings } = this.#deps;
    const guardMs = settings.statusTimeoutS * 1_000 + settings.callGuardMs;
    // Asked while a freeze is unanswered, this waits behind it in libvirt; only the guard ends that.
    return within(hypervisor.freezeStatus(this.vm, settings.statusTimeoutS), guardMs).catch((error) => {
      this.#failed('status', error);
      return undefined;
    });
  }

  /** Whether the life of the guest that was frozen is over. A guest that was saved while frozen is frozen when it is restored. */
  async #whetherGone(): Promise<Settlement | undefined> {
    const { hypervisor, settings } = this.#deps;
    try {
      const vm = await within(hypervisor.getVm(this.vm), settings.callGuardMs);
      if (vm.hasManagedSave) {
        this.#wasSaved = true;
        this.#explain('The VM was saved to disk while frozen. Start it; it is thawed then.');
        return undefined;
      }
      if (vm.state === 'shut-off') return { how: 'gone', ...goneAs(vm.offBecause) };
      const otherLife = this.domainId !== undefined && vm.domainId !== undefined && vm.domainId !== this.domainId;
      if (otherLife && !this.#wasSaved) {
        return { how: 'gone', reason: 'VM_GONE', detail: 'The VM was stopped while frozen, and started again.' };
      }
    } catch (error) {
      if (isHostAgentError(error, 'VM_NOT_FOUND')) {
        const detail =
          'libvirt does not know the VM any more: it moved to another host while frozen, or was undefined.';
        return { how: 'gone', reason: 'VM_MOVED', detail };
      }
    }
    return undefined;
  }

  #failed(what: 'thaw' | 'status', error: unknown): void {
    const { log } = this.#deps;
    const code = isHostAgentError(error) ? error.code : 'INTERNAL';
    log.warn(
      { vm: this.vm, window: this.window, err: error, what },
      'The guest could not be thawed or asked; trying again.',
    );
    const text = error instanceof Error ? error.message : String(error);
    this.#explain(`${text}. ${remedies[code] ?? ''}`.trim());
  }

  #explain(why: string): void {
    if (this.#state === 'thawed') return;
    this.#detail = why;
    if (this.#mustThaw) this.#state = this.#seenFrozen ? 'still-frozen' : 'maybe-frozen';
  }

  #tellUnanswered(): void {
    if (!this.#mustThaw || this.#state !== 'thawing') return;
    this.#explain(
      'The guest agent does not answer the thaw. Look at qemu-guest-agent in the guest, and at its thaw hook.',
    );
  }

  /** True: an event cut the pause short. */
  #pause(ms: number): Promise<boolean> {
    if (this.#woken) return Promise.resolve(true);
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#wake = undefined;
        resolve(false);
      }, ms);
      this.#wake = () => {
        this.#wake = undefined;
        clearTimeout(timer);
        resolve(true);
      };
    });
  }
}

/** What a debt is for. */
export interface Owed {
  window: string;
  /** libvirt's id of the domain that the freeze is for; undefined: unknown. */
  domainId: number | undefined;
  /** Whether the guest is known to have been frozen, by the journal or by its own word. */
  seenFrozen: boolean;
}

/** The domain's guest agent timeout, whose settings must not overtake one another. */
export interface AgentTimeout {
  /** Sets it, after what is still under way of that kind. */
  setAgentTimeout(seconds: number | 'default'): Promise<void>;
}

export interface DebtDependencies {
  hypervisor: Hypervisor;
  settings: FreezeSettings;
  clock: Clock;
  log: Logger;
}

/** Where a VM is that was frozen and does not run here any more. Its note goes with it, and whoever meets that thaws it. */
export function goneAs(because: Vm['offBecause']): { reason: WhereGone; detail: string } {
  switch (because) {
    case 'moved':
      return {
        reason: 'VM_MOVED',
        detail: 'The VM moved to another host while frozen; the host agent there thaws it.',
      };
    case 'saved':
      return {
        reason: 'VM_SAVED',
        detail: 'The VM was saved to a file while frozen; it is thawed when it is restored.',
      };
    case 'ended':
      return { reason: 'VM_GONE', detail: 'The VM was shut off while frozen.' };
    default:
      return {
        reason: 'VM_MOVED',
        detail: 'The VM does not run here any more: it was shut off, saved or moved to another host while frozen.',
      };
  }
}

/** What a person can do so that the thaw works. */
const remedies: Partial<Record<HostAgentErrorCode, string>> = {
  VM_PAUSED: 'Resume the VM: a paused guest cannot thaw.',
  AGENT_NOT_CONNECTED: 'Start qemu-guest-agent in the guest, or reset the VM.',
  AGENT_NOT_RESPONDING: 'Look at qemu-guest-agent in the guest: it runs but does not answer.',
  LIBVIRT_UNREACHABLE: 'Start libvirtd (or virtqemud) on the host.',
  LIBVIRT_CALL_TIMEOUT: 'libvirt does not answer: look at libvirtd (or virtqemud) on the host.',
  HYPERVISOR_BUSY: 'Another job of libvirt holds the VM; the thaw follows when it ends.',
};
