import { HostAgentError, isHostAgentError } from '../errors.js';
import type { HypervisorEvent } from '../hypervisor.js';
import type { CoverageGap, CutRecord, FreezeState, Hold, Verdict } from '../window.js';
import { countGap, fileSystemsText, judgeCoverage } from './coverage.js';
import { type AgentTimeout, type DebtDependencies, goneAs, type Owed, type Settlement, type ThawDebt } from './debt.js';
import type { JournalEntry, Prepared, WindowTerms } from './history.js';
import type { Journal } from './journal.js';
import { type Reading, readGuest } from './preflight.js';
import { checkFreezeTimeout, checkId } from './settings.js';
import { type Evidence, judge, type Loss } from './verdict.js';
import { within } from './within.js';

/** What a window needs of its surroundings. */
export interface WindowDependencies extends DebtDependencies, AgentTimeout {
  journal: Journal;
  /** Takes a debt for the guest: from now on a thaw is owed, whatever becomes of the window. */
  owe(lease: Owed): ThawDebt;
  /** Notes the lease in the domain, where it goes with the VM. Errors: VM_NOT_FOUND, VM_NOT_RUNNING, HYPERVISOR_BUSY and the connection's. */
  noteLease(window: string, domainId: number | undefined): Promise<void>;
  /** Removes that note, without waiting. */
  removeNote(window: string): void;
  /** Errors: MAYBE_FROZEN. */
  refuseWhileOwed(): void;
  /** Sets it to the configured value, without waiting. */
  restoreAgentTimeout(): void;
  /** Whether the host agent is stopping. */
  stopping(): boolean;
}

export interface FreezeRequest {
  cuts: string[];
  freezeTimeoutMs: number;
  caller: AbortSignal;
}

interface Frozen {
  fileSystems: number;
  unixMs: number;
  callMs: number;
  gaps: CoverageGap[];
}

interface Cut {
  /** Somebody stands ready to make it, since before the freeze. */
  isReady: boolean;
  /** Its holder has said how it ended, or was lost. */
  isOver: boolean;
  heldMs: number | undefined;
  endedMs: number | undefined;
  outcome: CutRecord['outcome'];
  reason: string;
  /** Resolved by `go`, rejected when the window is lost. */
  held: Promise<void>;
  go: () => void;
  /** Tells the holder that the window is lost. */
  lost: AbortController;
}

/**
 * One window: prepared, freezing, frozen, thawing, closed; with `quiesce: skip` prepared and closed only. It never goes back: what comes after its time
 * is refused.
 */
export class Window {
  readonly vm: string;
  readonly id: string;
  readonly operation: string;
  readonly terms: WindowTerms;
  /** What Prepare pinned and made. */
  prepared: Prepared | undefined;
  /** Set once it is durable. */
  verdict: Verdict | undefined;

  readonly #deps: WindowDependencies;
  #phase: 'prepared' | 'freezing' | 'frozen' | 'thawing' | 'closed' = 'prepared';
  readonly #cuts = new Map<string, Cut>();
  #gaps: CoverageGap[];
  #debt: ThawDebt | undefined;
  #asked = false;
  #frozen: Evidence['frozen'];
  #statusBefore: Evidence['statusBefore'];
  #thawedBy = '';
  #lost: Loss | undefined;
  #doubt: Loss | undefined;
  #limit: NodeJS.Timeout | undefined;
  /** Called when a cut becomes ready, or the window is given up, before the freeze. */
  #onReadiness: () => void = () => undefined;
  #draft: Verdict | undefined;
  #keeping: Promise<Verdict> | undefined;
  #freezeEnded: Promise<void> | undefined;
  readonly #whenClosed: Promise<void>;
  #closed: () => void = () => undefined;

  constructor(deps: WindowDependencies, identity: { vm: string; id: string; operation: string; terms: WindowTerms }) {
    this.#deps = deps;
    this.vm = identity.vm;
    this.id = identity.id;
    this.operation = identity.operation;
    this.terms = identity.terms;
    this.#gaps = identity.terms.gaps;
    this.#whenClosed = new Promise((resolve) => {
      this.#closed = resolve;
    });
  }

  /** A window as an earlier life of the host agent left it in the journal; `debt` is the thaw that it still owes. */
  static reopen(
    deps: WindowDependencies,
    identity: { vm: string; id: string; operation: string; terms: WindowTerms },
    entries: readonly JournalEntry[],
    debt: ThawDebt | undefined,
  ): Window {
    const window = new Window(deps, identity);
    for (const entry of entries) window.#replay(entry);
    if (window.#phase === 'thawing') window.#oweToEarlierLife(debt);
    return window;
  }

  /** Whether it is closed for good. */
  get closed(): boolean {
    return this.#phase === 'closed';
  }

  get freezeState(): FreezeState {
    if (this.#phase === 'freezing') return 'freezing';
    if (this.#phase === 'frozen') return 'frozen';
    if (this.#phase === 'thawing') return this.#debt?.state === 'frozen' ? 'thawing' : (this.#debt?.state ?? 'thawing');
    return 'thawed';
  }

  get frozenUnixMs(): number {
    return this.#phase === 'frozen' || this.#phase === 'thawing' ? (this.#frozen?.unixMs ?? 0) : 0;
  }

  /**
   * Freezes the guest under a lease, once somebody stands ready to make each of the cuts: a guest never waits frozen for a cut to begin. Whatever goes wrong
   * closes the window: a freeze is tried once.
   * Errors: WINDOW_CLOSED, NOT_PREPARED, VM_CHANGED, ALREADY_FROZEN, JOURNAL_UNWRITABLE, FREEZE_TIMEOUT, FREEZE_FAILED, FREEZE_HOOK_FAILED and the guest agent's.
   */
  freeze(request: FreezeRequest): Promise<Frozen> {
    const freezing = this.#freeze(request);
    const ended = freezing.then(
      () => undefined,
      () => undefined,
    );
    // Refused, it is no freeze: one that was under way still is.
    if (this.#phase === 'freezing') this.#freezeEnded ??= ended;
    return freezing;
  }

  /** Resolves when no freeze is under way: one cannot be called back, and who leaves before its answer leaves a frozen guest. Its own timeout bounds it. */
  async freezeEnded(): Promise<void> {
    await this.#freezeEnded;
  }

  async #freeze(request: FreezeRequest): Promise<Frozen> {
    this.#refuseFreeze(request);
    this.#phase = 'freezing';
    this.#name(request.cuts);
    const debt = await this.#takeLease(request);

    const { clock, hypervisor, settings } = this.#deps;
    const askedAt = clock.now();
    this.#asked = true;
    const call = hypervisor.freeze(this.vm);
    const answer = await within(call, request.freezeTimeoutMs + settings.callGuardMs).catch((error) => {
      throw this.#freezeFailed(debt, call, error);
    });

    const frozen = this.#begin(answer, debt);
    const unwanted = this.#unwanted(request.caller);
    if (unwanted !== undefined) {
      this.#thaw(this.#thawedBy, this.#lost);
      throw unwanted;
    }
    for (const [name, cut] of this.#cuts) this.#grant(name, cut);
    return { ...frozen, callMs: answer.repliedAt - askedAt, gaps: this.#gaps };
  }

  /**
   * Stands ready for one cut, and holds the window for it from the freeze on; an unfrozen window is held at once.
   * Errors: WINDOW_CLOSED, NOT_PREPARED, CUT_UNKNOWN, CUT_ALREADY_HELD.
   */
  hold(name: string): Hold {
    checkId('cut', name);
    if (this.#phase === 'thawing' || this.#phase === 'closed') throw this.#closedError();
    if (this.#lost !== undefined) throw this.#abandonedError(this.#lost);
    const isUnfrozen = this.terms.quiesce === 'skip';
    if (!isUnfrozen && this.prepared === undefined) {
      throw new HostAgentError('NOT_PREPARED', `Prepare of window ${this.id} has not ended`);
    }
    const named = this.#cuts.get(name);
    if (named?.isReady) {
      throw new HostAgentError('CUT_ALREADY_HELD', `The cut ${name} was held already in window ${this.id}`);
    }
    if (named === undefined && (this.#phase !== 'prepared' || this.#cuts.size >= mostCuts)) throw this.#unnamed(name);
    const cut = named ?? this.#addCut(name);
    cut.isReady = true;
    if (isUnfrozen) this.#grant(name, cut);
    else this.#onReadiness();
    return { held: cut.held, lost: cut.lost.signal, end: (outcome) => this.#endHold(name, cut, outcome) };
  }

  /** Thaws if need be and closes. Resolves with the verdict when that is durable. Errors: JOURNAL_UNWRITABLE (only of a window that never had a lease). */
  async close(by: string, loss: Loss | undefined): Promise<Verdict> {
    if (this.#phase === 'prepared') this.#closeUnfrozen(by, loss);
    else if (this.#phase === 'freezing') this.#abandon(by, loss);
    else if (this.#phase === 'frozen') this.#thaw(by, loss);
    else this.#debt?.hurry();
    await this.#whenClosed;
    return this.verdict ?? this.#keep();
  }

  /** What happens to the VM or to libvirt while the window is open. */
  onEvent(event: HypervisorEvent): void {
    const open = this.#phase === 'frozen' || this.#phase === 'thawing';
    // A connection lost while the freeze was under way may still be down when it is answered.
    const lostConnection = event.type === 'connection' && !event.up && this.#phase === 'freezing';
    if (!open && !lostConnection) return;
    if (event.type === 'agent') {
      const detail = `The guest agent ${event.connected ? 'connected' : 'disconnected'} inside the window.`;
      this.#doubt ??= { reason: 'AGENT_RESTARTED', detail };
    } else if (event.type === 'connection' && !event.up) {
      // Events are lost with the connection: a restart of the guest agent would not have been seen.
      const detail =
        'The connection to libvirt was lost inside the window: whether the guest agent restarted is unknown.';
      this.#doubt ??= { reason: 'AGENT_RESTARTED', detail };
    } else if (event.type === 'lifecycle' && event.what === 'stopped') {
      this.#thaw('the VM stopped', goneAs(event.why ?? 'ended'));
    }
  }

  /** Ends the timers of a host agent that stops. */
  stop(): void {
    clearTimeout(this.#limit);
  }

  #refuseFreeze({ cuts, freezeTimeoutMs }: FreezeRequest): void {
    checkFreezeTimeout(freezeTimeoutMs);
    for (const cut of cuts) checkId('cut', cut);
    if (cuts.length === 0 || new Set(cuts).size !== cuts.length) {
      throw new HostAgentError('INVALID_ARGUMENT', 'A freeze names at least one cut, and each once', {
        metadata: { field: 'cuts' },
      });
    }
    if (this.#phase === 'thawing' || this.#phase === 'closed') throw this.#closedError();
    if (this.#phase !== 'prepared') {
      throw new HostAgentError('ALREADY_FROZEN', `Window ${this.id} was frozen already, by an earlier call for it`);
    }
    if (this.terms.quiesce === 'skip') {
      throw new HostAgentError(
        'INVALID_ARGUMENT',
        `Window ${this.id} was prepared with quiesce=skip: it never freezes`,
      );
    }
    if (this.prepared === undefined) {
      throw new HostAgentError('NOT_PREPARED', `Prepare of window ${this.id} has not ended`);
    }
  }

  /** Nothing freezes, and nothing stays frozen, for a caller who has gone or a window that was closed meanwhile: the error that says so. */
  #unwanted(caller: AbortSignal): HostAgentError | undefined {
    if (caller.aborted) {
      const detail = 'The caller of the freeze was gone before it was answered.';
      this.#abandon('the caller of the freeze is gone', { reason: 'CALLER_GONE', detail });
    }
    if (this.#deps.stopping()) {
      this.#abandon('the host agent stops', { reason: 'SHUTDOWN', detail: 'The host agent was stopped.' });
    }
    return this.#lost === undefined ? undefined : this.#abandonedError(this.#lost);
  }

  #abandonedError({ reason, detail }: Loss, cause?: unknown): HostAgentError {
    const code = reason === 'SHUTDOWN' ? 'SHUTTING_DOWN' : 'WINDOW_CLOSED';
    return new HostAgentError(code, `Window ${this.id} is closed: ${detail}`, { cause });
  }

  #abandon(by: string, loss: Loss | undefined): void {
    if (this.#lost !== undefined) return;
    this.#thawedBy = by;
    this.#lost = loss ?? { reason: 'THAWED_EARLY', detail: 'The thaw was asked for before the freeze was answered.' };
    this.#breakHolds();
    this.#onReadiness();
  }

  /** The cuts of this window are these: whoever stands ready for another never gets to make it. */
  #name(cuts: readonly string[]): void {
    for (const [name, cut] of this.#cuts) {
      if (cuts.includes(name)) continue;
      this.#cuts.delete(name);
      cut.isOver = true;
      cut.lost.abort(this.#unnamed(name));
    }
    for (const name of cuts) if (!this.#cuts.has(name)) this.#addCut(name);
  }

  #unnamed(name: string): HostAgentError {
    return new HostAgentError('CUT_UNKNOWN', `The freeze of window ${this.id} did not name the cut ${name}`);
  }

  /** Waits until somebody stands ready for every cut; nothing is frozen yet. Whoever does not come in time has died, or is kept by a busy machine. */
  async #everyCutToBeReady(caller: AbortSignal): Promise<void> {
    const { readyMs } = this.#deps.settings;
    const missing = () => [...this.#cuts].filter(([, { isReady }]) => !isReady).map(([name]) => name);
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#onReadiness = () => {
        if (this.#lost !== undefined || caller.aborted || missing().length === 0) resolve();
      };
      timer = setTimeout(resolve, readyMs);
      caller.addEventListener('abort', this.#onReadiness, { once: true });
      this.#onReadiness();
    });
    clearTimeout(timer);
    caller.removeEventListener('abort', this.#onReadiness);
    this.#onReadiness = () => undefined;
    if (missing().length > 0 && !caller.aborted) {
      const detail = `Nobody stood ready within ${readyMs} ms for: ${missing().join(', ')}.`;
      this.#abandon('a cut was not held in time', { reason: 'NOT_HELD_IN_TIME', detail });
    }
  }

  /** The cut may be made: the window is held for it. */
  #grant(name: string, cut: Cut): void {
    cut.heldMs = this.#afterMs();
    cut.outcome = 'broken';
    cut.reason = 'The hold has not ended.';
    this.#note({ type: 'held', vm: this.vm, window: this.id, cut: name, afterMs: cut.heldMs });
    cut.go();
  }

  #refuseChanged(reading: Reading): void {
    const was = this.prepared?.pinned;
    const differs =
      was?.domainId !== reading.vm.domainId
        ? 'it was started anew'
        : this.terms.fileSystems !== fileSystemsText(reading.fileSystems)
          ? 'its file systems are others than at the checks'
          : this.terms.guestOs !== (reading.os?.id ?? '')
            ? 'its operating system is another than at the checks'
            : undefined;
    if (differs === undefined) return;
    throw new HostAgentError('VM_CHANGED', `${reading.vm.name} changed since it was prepared: ${differs}`);
  }

  /**
   * Reads the guest once more and takes the lease: on disk before libvirt is asked, so that a host agent that dies now thaws in its next life.
   * Any error closes the window.
   */
  async #takeLease({ cuts, freezeTimeoutMs, caller }: FreezeRequest): Promise<ThawDebt> {
    const { hypervisor, settings, journal, setAgentTimeout, owe, noteLease, removeNote, restoreAgentTimeout } =
      this.#deps;
    try {
      this.#throwUnwanted(caller);
      await this.#everyCutToBeReady(caller);
      this.#throwUnwanted(caller);
      // Beside the questions to the guest, and done before the freeze: it must cost the window nothing.
      const noting = noteLease(this.id, this.prepared?.pinned.domainId);
      noting.catch(() => undefined);
      const boundAgent = () => setAgentTimeout(Math.ceil(freezeTimeoutMs / 1_000));
      const reading = await readGuest(hypervisor, this.vm, settings, boundAgent);
      this.#refuseChanged(reading);
      const { setDisks, unquiescedDisks } = this.terms;
      this.#gaps = judgeCoverage({ fileSystems: reading.fileSystems, setDisks, unquiescedDisks }).gaps;
      await noting;
      this.#deps.refuseWhileOwed();
      this.#throwUnwanted(caller);
      const { domainId } = reading.vm;
      await journal.commit({ type: 'lease', vm: this.vm, window: this.id, cuts, domainId });
      this.#debt = owe({ window: this.id, domainId, seenFrozen: false });
      this.#throwUnwanted(caller);
      return this.#debt;
    } catch (error) {
      this.#debt?.cancel();
      removeNote(this.id);
      restoreAgentTimeout();
      const text = error instanceof Error ? error.message : String(error);
      this.#finish(this.#lost ?? { reason: 'NEVER_FROZEN', detail: `The guest was not frozen: ${text}` }, undefined);
      throw error;
    }
  }

  #throwUnwanted(caller: AbortSignal): void {
    const unwanted = this.#unwanted(caller);
    if (unwanted !== undefined) throw unwanted;
  }

  #begin(answer: { fileSystems: number; repliedAt: number }, debt: ThawDebt): { fileSystems: number; unixMs: number } {
    const { clock } = this.#deps;
    const sinceMs = clock.now() - answer.repliedAt;
    this.#frozen = {
      fileSystems: answer.fileSystems,
      at: answer.repliedAt,
      unixMs: Math.round(clock.unixMs() - sinceMs),
    };
    this.#phase = 'frozen';
    void debt.settled.then((settlement) => this.#finish(this.#lost, settlement));
    this.#limit = setTimeout(() => this.#overrun(), this.terms.windowLimitMs - sinceMs);
    debt.frozen(answer.fileSystems);
    this.#gaps = [...this.#gaps, ...countGap(answer.fileSystems, this.terms.expectedFileSystems)];
    const { fileSystems, unixMs } = this.#frozen;
    this.#note({ type: 'frozen', vm: this.vm, window: this.id, fileSystems, frozenUnixMs: unixMs, gaps: this.#gaps });
    return { fileSystems, unixMs };
  }

  /** Closes the window of a freeze that failed; where the guest may be frozen all the same, the debt stays and watches. */
  #freezeFailed(debt: ThawDebt, call: Promise<unknown>, error: unknown): unknown {
    const text = error instanceof Error ? error.message : String(error);
    if (isHostAgentError(error) && surelyNotFrozen.has(error.code)) debt.cancel();
    else debt.watch(call);
    const closed = this.#lost;
    this.#finish(closed ?? { reason: 'FREEZE_FAILED', detail: `The freeze failed: ${text}` }, undefined);
    // Closed by somebody while the freeze was under way: told as that, because after a failed freeze best-effort goes on to cut.
    if (closed !== undefined) return this.#abandonedError(closed, error);
    if (isHostAgentError(error, 'AGENT_NOT_RESPONDING') || isHostAgentError(error, 'LIBVIRT_CALL_TIMEOUT')) {
      return new HostAgentError('FREEZE_TIMEOUT', `The freeze was not answered: ${text}`, { cause: error });
    }
    return error;
  }

  #endHold(name: string, cut: Cut, outcome: Parameters<Hold['end']>[0]): { inTime: boolean; reason: string } {
    if (cut.isOver) return { inTime: cut.outcome === 'done', reason: cut.reason };
    const unfrozen = this.terms.quiesce === 'skip';
    if (!unfrozen && (this.#phase === 'prepared' || this.#phase === 'freezing'))
      return this.#endReady(name, cut, outcome);
    // A late timer must not make a late cut one in time.
    if (this.#phase === 'frozen' && this.#afterMs() > this.terms.windowLimitMs) this.#overrun();
    const open = unfrozen ? this.#phase === 'prepared' : this.#phase === 'frozen';
    if (!open) return { inTime: false, reason: cut.reason };

    cut.isOver = true;
    cut.endedMs = this.#afterMs();
    if ('done' in outcome) {
      cut.outcome = 'done';
      cut.reason = '';
    } else if ('failed' in outcome) {
      cut.outcome = 'failed';
      cut.reason = outcome.failed;
    } else {
      cut.outcome = 'broken';
      cut.reason = outcome.broken;
    }
    const { endedMs: afterMs, reason } = cut;
    this.#note({ type: 'ended', vm: this.vm, window: this.id, cut: name, afterMs, outcome: cut.outcome, reason });
    if (!unfrozen) this.#afterHold(name, cut);
    return { inTime: cut.outcome === 'done', reason: cut.reason };
  }

  /** Nobody stands ready any more, and a cut is held once: nothing is frozen for the others, or thawed as soon as the freeze is answered. */
  #endReady(name: string, cut: Cut, outcome: Parameters<Hold['end']>[0]): { inTime: boolean; reason: string } {
    cut.isOver = true;
    cut.reason = 'failed' in outcome ? outcome.failed : 'broken' in outcome ? outcome.broken : 'It was not held yet.';
    const reason = 'failed' in outcome ? 'CUT_FAILED' : 'HOLD_BROKEN';
    this.#abandon(`${name} is not ready any more`, {
      reason,
      detail: `Who was to make the cut ${name} gave up before the freeze was answered: ${cut.reason}`,
    });
    cut.lost.abort(this.#closedError());
    return { inTime: false, reason: cut.reason };
  }

  #afterHold(name: string, cut: Cut): void {
    if (cut.outcome === 'failed') {
      this.#thaw(`cut ${name} failed`, { reason: 'CUT_FAILED', detail: `The cut ${name} failed: ${cut.reason}` });
    } else if (cut.outcome === 'broken') {
      this.#thaw(`hold of ${name} broke`, {
        reason: 'HOLD_BROKEN',
        detail: `The hold of ${name} broke: ${cut.reason}`,
      });
    } else if ([...this.#cuts.values()].every(({ outcome }) => outcome === 'done')) {
      this.#thaw('all cuts done', undefined);
    }
  }

  #overrun(): void {
    const detail = `The window reached its limit of ${this.terms.windowLimitMs} ms before its last cut was done.`;
    this.#thaw('window limit', { reason: 'LIMIT', detail });
  }

  /** The one place where a window's thaw begins. Only when all cuts are done is the guest asked first whether it is still frozen. */
  #thaw(by: string, lost: Loss | undefined): void {
    const debt = this.#debt;
    if (this.#phase !== 'frozen' || debt === undefined) return;
    this.#phase = 'thawing';
    this.#thawedBy = by;
    this.#lost = lost;
    this.stop();
    const complete = [...this.#cuts.values()].every(({ outcome }) => outcome === 'done');
    if (complete && lost === undefined) void this.#askStatus().then(() => debt.thaw());
    else debt.thaw();
    this.#note({ type: 'thaw-due', vm: this.vm, window: this.id, by, lost: lost?.reason });
    this.#breakHolds();
  }

  async #askStatus(): Promise<void> {
    const { hypervisor, settings } = this.#deps;
    // Inside the window: no longer than its limit allows.
    const patienceMs = Math.min(settings.statusTimeoutS * 1_000, this.terms.windowLimitMs - this.#afterMs());
    try {
      this.#statusBefore = await within(hypervisor.freezeStatus(this.vm, settings.statusTimeoutS), patienceMs);
    } catch (error) {
      this.#statusBefore = { unanswered: error instanceof Error ? error.message : String(error) };
    }
  }

  #breakHolds(): void {
    for (const cut of this.#cuts.values()) {
      if (cut.isOver) continue;
      cut.reason =
        cut.heldMs === undefined ? 'It was never held.' : `The window was thawed under the hold (${this.#thawedBy}).`;
      cut.lost.abort(this.#closedError());
    }
  }

  #closeUnfrozen(by: string, loss: Loss | undefined): void {
    this.#thawedBy = by;
    this.#finish(
      this.#lost ?? { reason: 'NEVER_FROZEN', detail: loss?.detail ?? 'The guest was not frozen in this window.' },
      undefined,
    );
  }

  /** Closes in memory, at once; the verdict follows when it is on disk. */
  #finish(lost: Loss | undefined, settlement: Settlement | undefined): void {
    this.#phase = 'closed';
    this.#breakHolds();
    this.#draft = judge({
      window: this.id,
      cuts: [...this.#cuts].map(([cut, { heldMs, endedMs, outcome, reason }]) => ({
        cut,
        heldMs,
        endedMs,
        outcome,
        reason,
      })),
      gaps: this.#gaps,
      limitMs: this.terms.windowLimitMs,
      asked: this.#asked,
      frozen: this.#frozen,
      statusBefore: this.#statusBefore,
      settlement,
      thawedBy: this.#thawedBy,
      lost,
      doubt: this.#doubt,
    });
    this.#keep().catch(() => undefined);
    this.#closed();
  }

  /** Makes the verdict durable. Of a window with a lease it never fails: what the disk refuses is evidence lost, and the next life would find the lease. */
  #keep(): Promise<Verdict> {
    this.#keeping ??= this.#commitVerdict().finally(() => {
      this.#keeping = undefined;
    });
    return this.#keeping;
  }

  async #commitVerdict(): Promise<Verdict> {
    let verdict = this.#draft;
    if (verdict === undefined) throw new HostAgentError('INTERNAL', `Window ${this.id} is closed without a verdict`);
    try {
      await this.#deps.journal.commit({ type: 'verdict', vm: this.vm, window: this.id, verdict });
    } catch (error) {
      if (this.#debt === undefined) throw error;
      if (verdict.held) {
        const detail = 'The verdict could not be written to the journal.';
        verdict = { ...verdict, held: false, lostReason: 'JOURNAL_UNWRITABLE', detail };
      }
    }
    this.verdict ??= verdict;
    this.#deps.log.info({ vm: this.vm, window: this.id, verdict: this.verdict }, 'The window is closed.');
    return this.verdict;
  }

  #replay(entry: JournalEntry): void {
    if (entry.type === 'prepared') this.prepared = entry.prepared;
    if (entry.type === 'lease') {
      this.#phase = 'thawing';
      // It may have been, right after this was written.
      this.#asked = true;
      for (const cut of entry.cuts) this.#addCut(cut);
    }
    if (entry.type === 'frozen') {
      const { clock } = this.#deps;
      const at = clock.now() - (clock.unixMs() - entry.frozenUnixMs);
      this.#frozen = { fileSystems: entry.fileSystems, at, unixMs: entry.frozenUnixMs };
      this.#gaps = entry.gaps;
    }
    if (entry.type === 'held') {
      if (!this.#cuts.has(entry.cut)) this.#addCut(entry.cut);
      const cut = this.#cuts.get(entry.cut);
      if (cut !== undefined) {
        Object.assign(cut, {
          isReady: true,
          heldMs: entry.afterMs,
          outcome: 'broken',
          reason: 'The host agent restarted under the hold.',
        });
      }
    }
    if (entry.type === 'ended') {
      const { afterMs: endedMs, outcome, reason } = entry;
      const cut = this.#cuts.get(entry.cut);
      if (cut !== undefined) Object.assign(cut, { isOver: true, endedMs, outcome, reason });
    }
    if (entry.type === 'verdict') {
      this.verdict = entry.verdict;
      this.#draft = entry.verdict;
      this.#phase = 'closed';
      this.#closed();
    }
  }

  /** A window found open at start: its guest is thawed first of all, and no freeze that a dead process watched is proven. */
  #oweToEarlierLife(debt: ThawDebt | undefined): void {
    this.#debt = debt;
    this.#thawedBy = 'the host agent restarted';
    this.#lost = { reason: 'HOST_AGENT_RESTARTED', detail: 'The host agent restarted while the window was open.' };
    // Without a debt the thaw was proven before the restart, and only the verdict did not reach the disk.
    if (debt === undefined) this.#finish(this.#lost, undefined);
    else void debt.settled.then((settlement) => this.#finish(this.#lost, settlement));
  }

  #addCut(name: string): Cut {
    const lost = new AbortController();
    let go = (): void => undefined;
    const held = new Promise<void>((resolve, reject) => {
      go = resolve;
      lost.signal.addEventListener('abort', () => reject(lost.signal.reason), { once: true });
    });
    // Nobody need be waiting for it.
    held.catch(() => undefined);
    const state = { isReady: false, isOver: false, heldMs: undefined, endedMs: undefined } as const;
    const cut: Cut = { ...state, outcome: 'not held', reason: '', held, go, lost };
    this.#cuts.set(name, cut);
    return cut;
  }

  /** ms after the freeze's answer; of an unfrozen window: 0. */
  #afterMs(): number {
    return this.#frozen === undefined ? 0 : this.#deps.clock.now() - this.#frozen.at;
  }

  #note(entry: JournalEntry): void {
    this.#deps.journal.note(entry);
  }

  #closedError(): HostAgentError {
    const why = this.#thawedBy === '' ? '' : ` (${this.#thawedBy})`;
    return new HostAgentError('WINDOW_CLOSED', `Window ${this.id} was thawed or undone${why} and stays closed`);
  }
}

/** Of an unfrozen window nobody has named the cuts: more than any VM has disks are refused. */
const mostCuts = 256;

/** After these the guest is not frozen and will not be (the port's promise); after any other error of a freeze it may. */
const surelyNotFrozen: ReadonlySet<string> = new Set([
  'AGENT_NOT_CONFIGURED',
  'AGENT_NOT_CONNECTED',
  'VM_NOT_RUNNING',
  'VM_PAUSED',
  'VM_NOT_FOUND',
  'ALREADY_FROZEN',
  'FREEZE_HOOK_FAILED',
]);
