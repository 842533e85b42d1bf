import type { SnapshotVmInput, SnapshotVmResult } from './contract.js';
import { decide, type WindowEnd } from './decision.js';
import { failureOf } from './failure.js';
import { RunReport } from './run-report.js';
import { SnapshotRun } from './snapshot-run.js';
import type { Window } from './window.js';

/** Takes a consistent snapshot of a running VM. However it ends: recorded and graded, or thawed and clean. */
export async function snapshotVm(input: SnapshotVmInput): Promise<SnapshotVmResult> {
  const run = await SnapshotRun.accept(input, new RunReport());
  try {
    await run.takeWindowSlot();
    return await takeSnapshot(run);
  } catch (error) {
    throw await run.closedAs(error);
  } finally {
    await run.release();
  }
}

/** One window, rarely a second one, and an unfrozen one where `best-effort` finds no freeze to be had. */
async function takeSnapshot(run: SnapshotRun): Promise<SnapshotVmResult> {
  for (;;) {
    const window = run.nextWindow();
    const end = await throughOneWindow(window);
    run.sees(end);
    const decision = decide(end, run.circumstances(window));

    if ('record' in decision) return await run.record(window, end, decision.record);
    await run.undo(window, end, decision);
  }
}

/**
 * The critical section. Where all disks are the host's, freeze, cut and thaw are the host agent's, in one call. Else freeze and thaw are one construct here.
 * The cuts begin beside the freeze, and each waits on the host for it: the host freezes only when somebody stands ready for every cut, so that no guest waits
 * frozen for a step of ours. Once `freezeFileSystems` may have been asked for, nothing (no failure, no cancel) leaves this function without `thawFileSystems`, which no cancel stops
 * and which waits for no cut. Where this workflow is not there to ask, the host agent thaws by itself. Inside it nothing slow: no catalogue, no search
 * attributes, no timers.
 */
async function throughOneWindow(window: Window): Promise<WindowEnd> {
  const end: WindowEnd = {};
  try {
    end.prepared = await window.prepare();
    try {
      const freeze = window.isOursToFreeze ? window.freezeFileSystems() : undefined;
      await Promise.all([freeze, window.makeEveryCut()]);
    } finally {
      end.verdict = await window.thawFileSystems();
    }
  } catch (firstFailureOrCancel) {
    end.trouble = failureOf(firstFailureOrCancel);
  }
  const failures = await window.everyStepToSettle();
  // The host thaws at once when a cut fails, so another cut may be the first to say that its window was closed: that is no cause of anything.
  if (end.trouble?.code === 'WINDOW_CLOSED') {
    end.trouble = failures.find(({ code }) => code !== 'WINDOW_CLOSED') ?? end.trouble;
  }
  return end;
}
