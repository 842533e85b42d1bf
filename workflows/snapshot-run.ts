import { CancellationScope, upsertSearchAttributes } from '@temporalio/workflow';
import type { PartsLeft, Plan, Undone } from './activities.js';
import { type Quiesce, type SnapshotVmInput, type SnapshotVmResult, searchAttributes, windowIdOf } from './contract.js';
import type { Circumstances, Decision, WindowEnd } from './decision.js';
import { type Failure, failureOf, runFailure } from './failure.js';
import { type Graded, ms } from './grade.js';
import { cell, type RunReport } from './run-report.js';
import { steps } from './steps.js';
import { Window } from './window.js';

/** The run has failed, and all that could be undone is undone. */
class SnapshotFailed extends Error {
  readonly failure: Failure;
  readonly end: WindowEnd | undefined;
  readonly undone: Undone | undefined;

  constructor(failure: Failure, end: WindowEnd | undefined, undone: Undone | undefined) {
    super(failure.text);
    this.failure = failure;
    this.end = end;
    this.undone = undone;
  }
}

/** One run of `snapshotVm` around its windows: what it owes (noted before the step that makes it due), what it tells, and how it ends. */
export class SnapshotRun {
  readonly #plan: Plan;
  readonly #report: RunReport;
  #attempt = 0;
  #isSecondTry = false;
  #unfrozenBecause: string | undefined;
  /** The last window's end: what is known of the guest, whatever ends the run. */
  #lastEnd: WindowEnd | undefined;
  /** A freeze of this run was never answered for sure, and its host agent watches. */
  #mayStillFreeze = false;
  #owesSlot = false;
  #owesUndo: Window | undefined;
  #owesRelease = false;

  private constructor(plan: Plan, report: RunReport) {
    this.#plan = plan;
    this.#report = report;
    if (plan.quiesce === 'skip') this.#unfrozenBecause = 'the request says quiesce=skip';
  }

  /** The checks. Nothing is owed yet, so their failure needs no cleaning up. */
  static async accept(input: SnapshotVmInput, report: RunReport): Promise<SnapshotRun> {
    const plan = await report
      .step('checking', 'check the request', () =>
        steps.acceptSnapshot.executeWithOptions({ summary: 'Checks the request and finds the VM' }, [input]),
      )
      .catch((error: unknown) => {
        const failure = failureOf(error);
        report.failed(failure);
        throw runFailure(failure, [
          `No snapshot was begun: ${failure.text}.`,
          'The guest was not touched.',
          failure.advice,
        ]);
      });
    upsertSearchAttributes([
      { key: searchAttributes.vm, value: plan.vm.name },
      { key: searchAttributes.host, value: plan.host },
      { key: searchAttributes.snapshot, value: plan.snapshotId },
      { key: searchAttributes.quiesce, value: plan.quiesce },
    ]);
    report.isAbout(plan.snapshotId, headline(plan), [planTable(plan)]);
    return new SnapshotRun(plan, report);
  }

  /** Waits for its turn before anything is taken on the host. */
  async takeWindowSlot(): Promise<void> {
    this.#owesSlot = true;
    await this.#report.step(
      'queued',
      'wait for a window',
      () =>
        steps.takeWindowSlot.executeWithOptions({ summary: 'Waits until few enough windows are open' }, [
          { snapshotId: this.#plan.snapshotId },
        ]),
      { waiting: 'other snapshots of this installation have their windows open; this run takes its turn' },
    );
  }

  nextWindow(): Window {
    this.#attempt += 1;
    const quiesce: Quiesce = this.#unfrozenBecause === undefined ? this.#plan.quiesce : 'skip';
    const window = new Window(this.#plan, windowIdOf(this.#plan.snapshotId, this.#attempt), quiesce, this.#report);
    this.#owesRelease = true;
    this.#owesUndo = window;
    return window;
  }

  /** Keeps what a window's end says of the guest, and tells what its prepare had to clean up. */
  sees(end: WindowEnd): void {
    if (end.verdict !== undefined) {
      this.#lastEnd = end;
      this.#mayStillFreeze = end.verdict.window.frozenAt === undefined && (this.#mayStillFreeze || mayStillFreeze(end));
    }
    if (end.prepared !== undefined && end.prepared.cleaned !== '') this.#report.adds(cell(end.prepared.cleaned));
  }

  circumstances(window: Window): Circumstances {
    return {
      policy: this.#plan.quiesce,
      quiesce: window.quiesce,
      cancelled: CancellationScope.current().consideredCancelled,
      isSecondTry: this.#isSecondTry,
      setDisks: this.#plan.setDisks,
      localDisks: this.#plan.localDisks,
      hypervisor: this.#plan.hypervisor,
      unfrozenBecause: this.#unfrozenBecause,
    };
  }

  /** Verifies and records. From here on a cancel comes too late. A part that is not there: everything is undone, and the run fails. */
  async record(window: Window, end: WindowEnd, graded: Graded): Promise<SnapshotVmResult> {
    await this.#giveBackSlot();
    const outcome = await window.record({
      ...graded,
      partial: this.#plan.leftOut.some((disk) => disk.writable),
      parts: end.prepared?.parts ?? [],
      window: end.verdict?.window ?? { id: window.id, ms: 0, frozenFileSystems: 0 },
      quiesce: this.#plan.quiesce,
    });
    if (!outcome.recorded) {
      const failure = { code: 'CUT_MISSING', text: outcome.missing, advice: 'Ask for the snapshot again.' };
      throw new SnapshotFailed(failure, end, await this.#undone(window, true));
    }
    this.#owesUndo = undefined;
    this.#tellRecorded(outcome.result);
    return outcome.result;
  }

  /** Takes the window back; resolves when another one may follow. The slot is kept for it. */
  async undo(window: Window, end: WindowEnd, decision: Extract<Decision, { undo: Failure }>): Promise<void> {
    if (decision.next === 'end') await this.#giveBackSlot();
    const undone = await this.#undone(window, decision.next === 'end');
    // Only on clean ground: what is left of this window would be in the way of the next.
    if (!undone.complete || decision.next === 'end') throw new SnapshotFailed(decision.undo, end, undone);
    if (decision.next === 'second window') {
      this.#isSecondTry = true;
      this.#report.adds(
        `Window ${window.id} was lost (${cell(decision.undo.text)}) and taken back; a second one follows.`,
      );
    } else {
      this.#unfrozenBecause = decision.undo.text;
      this.#report.adds(
        `No freeze to be had (${cell(decision.undo.text)}): going on without one, as best-effort says.`,
      );
    }
  }

  /** Pays what is owed, writes the final word and makes the error that ends the run. */
  async closedAs(error: unknown): Promise<Error> {
    const failed = error instanceof SnapshotFailed ? error : new SnapshotFailed(failureOf(error), undefined, undefined);
    const undone = this.#owesUndo === undefined ? failed.undone : await this.#undone(this.#owesUndo, true);
    await this.#giveBackSlot();
    const isClean = undone?.complete ?? true;
    const failure = isClean ? failed.failure : pendingFailure(failed.failure);
    const what = failed.failure.code === 'CANCELLED' ? 'was cancelled' : `failed: ${failed.failure.text}`;
    const sentences = [
      `Snapshot ${this.#plan.name} of ${this.#plan.vm.name} ${what}.`,
      guestNow(failed.end ?? this.#lastEnd, this.#mayStillFreeze),
      undone === undefined
        ? ''
        : isClean
          ? 'Nothing is left of the snapshot.'
          : `Not taken back yet: ${undone.pending.join(' ')}`,
      failed.failure.advice,
    ];
    const state = isClean ? (failure.code === 'CANCELLED' ? 'cancelled' : 'failed') : 'cleanup-pending';
    await this.#afterwards('write the outcome', () =>
      steps.closeSnapshot.executeWithOptions({ summary: `Records that the snapshot is ${state}` }, [
        {
          snapshotId: this.#plan.snapshotId,
          state,
          error: { code: failed.failure.code, text: sentences.filter((sentence) => sentence !== '').join(' ') },
          pending: undone?.pending ?? [],
          left: isClean ? undefined : leftOf(failed, undone),
        },
      ]),
    ).catch((error: unknown) => {
      // Somebody else's word is in the catalogue. What happened here, and to the guest, is said all the same.
      sentences.push(`The catalogue did not take this: ${failureOf(error).text}.`);
    });
    this.#report.failed(failure);
    return runFailure(failure, sentences);
  }

  /** Gives the VM back: the last call of every run that may have taken it, also with cleanup pending. */
  async release(): Promise<void> {
    if (!this.#owesRelease) return;
    const { host, vm, snapshotId } = this.#plan;
    await this.#afterwards('release', () =>
      steps.release.executeWithOptions({ summary: `Gives ${vm.name} back` }, [
        { host, vm: vm.uuid, operation: snapshotId },
      ]),
    ).catch((error: unknown) => {
      // The snapshot's fate is decided; the next run of this VM gives it back in our stead.
      this.#report.adds(
        `${host} did not take the VM back (${cell(failureOf(error).text)}); the next run of this VM will.`,
      );
    });
  }

  async #undone(window: Window, isLast: boolean): Promise<Undone> {
    const undone = await window.undo(isLast).catch((error: unknown): Undone => {
      return { complete: false, left: this.#lastEnd?.prepared?.parts ?? [], pending: [`${failureOf(error).text}.`] };
    });
    this.#owesUndo = undefined;
    return undone;
  }

  async #giveBackSlot(): Promise<void> {
    if (!this.#owesSlot) return;
    this.#owesSlot = false;
    await this.#afterwards('give the window slot back', () =>
      steps.giveBackWindowSlot.executeWithOptions({ summary: 'Lets the next snapshot open its window' }, [
        { snapshotId: this.#plan.snapshotId },
      ]),
    ).catch(() => {
      // The slot is void once this run is closed; nothing here is worth failing for.
    });
  }

  #tellRecorded(result: SnapshotVmResult): void {
    upsertSearchAttributes([
      { key: searchAttributes.grade, value: result.grade },
      { key: searchAttributes.windowMs, value: result.window.ms },
    ]);
    this.#report.ends(
      `**Grade: ${result.grade}**${result.partial ? ' (partial)' : ''}. ${cell(result.why)} Window: ${ms(result.window.ms)}.`,
    );
  }

  #afterwards<T>(name: string, run: () => Promise<T>): Promise<T> {
    return CancellationScope.nonCancellable(() => this.#report.step(undefined, name, run));
  }
}

function headline(plan: Plan): string {
  return `Snapshot **${cell(plan.name)}** of **${cell(plan.vm.name)}** on ${cell(plan.host)} (${plan.hypervisor}), quiesce=${plan.quiesce}.`;
}

function planTable(plan: Plan): string {
  const rows = [
    ...plan.localDisks.map((disk) => `| ${disk} | on the host |`),
    ...plan.volumes.map((disk) => `| ${disk.target} | Cinder volume ${cell(disk.volume)} |`),
    ...plan.leftOut.map((disk) => `| ${disk.target} | left out: ${cell(disk.reason)} |`),
  ];
  return ['| disk | |', '|---|---|', ...rows].join('\n');
}

/** The parts of the window that could not be taken back, as far as its undo could tell. */
function leftOf({ end }: SnapshotFailed, undone: Undone | undefined): PartsLeft | undefined {
  if (end?.prepared === undefined || end.verdict === undefined) return undefined;
  return { window: end.verdict.window.id, parts: undone?.left ?? end.prepared.parts };
}

/** In what state the guest is now: what a person must know first, and no more than is proven. */
function guestNow(end: WindowEnd | undefined, mayStillFreeze: boolean): string {
  const verdict = end?.verdict;
  if (verdict?.thawedOn !== undefined) return `The VM runs on ${verdict.thawedOn} now, and its guest is thawed there.`;
  if (verdict?.window.thawedAt !== undefined) return `The guest is thawed; it was frozen for ${ms(verdict.window.ms)}.`;
  if (verdict?.lostReason === 'HOST_LOST') return 'Its host was removed as lost.';
  if (verdict?.lostReason === 'VM_GONE') return 'The VM stopped while its guest was frozen.';
  if (verdict?.lostReason === 'VM_MOVED') {
    return 'The VM left its host while its guest was frozen: the host agent that meets it, or starts it, thaws it.';
  }
  if (verdict?.lostReason === 'VM_SAVED') {
    return 'The VM was saved to a file while its guest was frozen: it is thawed when it is restored.';
  }
  if (mayStillFreeze) {
    return 'Whether the guest is frozen is not proven: its host agent asks it, thaws it, and says so (stillpoint vms).';
  }
  if (verdict?.window.frozenAt !== undefined) return 'The guest is thawed; it was frozen for a time not known.';
  if (verdict?.neverAsked) return 'Nothing was frozen: the window was given up before its freeze was asked for.';
  return verdict === undefined ? 'This run froze nothing.' : 'The guest is not frozen.';
}

/** With these the host agent knows that no freeze has happened or will happen. */
const surelyNotFrozen: ReadonlySet<string> = new Set([
  'AGENT_NOT_CONFIGURED',
  'AGENT_NOT_CONNECTED',
  'ALREADY_FROZEN',
  'FREEZE_HOOK_FAILED',
  'LIBVIRT_TOO_OLD',
  'VM_NOT_FOUND',
  'VM_NOT_RUNNING',
  'VM_PAUSED',
]);

/** Verdicts of a guest that is not frozen and will not be: libvirt was never asked, or the guest was thawed before there was a verdict. */
const settled: ReadonlySet<string> = new Set(['NEVER_FROZEN', 'NOT_HELD_IN_TIME', 'HOST_LOST', 'HOST_AGENT_RESTARTED']);

/** A freeze that was asked for, and of which the verdict proves neither that it happened and was thawed nor that it never will. */
function mayStillFreeze({ verdict, trouble }: WindowEnd): boolean {
  if (verdict === undefined || verdict.held || verdict.window.frozenAt !== undefined) return false;
  if (verdict.neverAsked || verdict.thawedOn !== undefined) return false;
  const { lostReason } = verdict;
  return !settled.has(lostReason ?? '') && !surelyNotFrozen.has(trouble?.code ?? '');
}

function pendingFailure(failure: Failure): Failure {
  return { ...failure, code: 'CLEANUP_PENDING' };
}
