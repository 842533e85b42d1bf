import type { Activities, DeleteSnapshotResult } from '@stillpoint/workflows';
import { Context } from '@temporalio/activity';
import { isCatalogueError } from '../catalogue/errors.js';
import { isHostError } from '../hosts/errors.js';
import { acceptDelete, acceptSnapshot } from './accept.js';
import type { ActivityDeps } from './deps.js';
import { examine } from './examine.js';
import { codeOf, isPassing, toFailure } from './failure.js';
import { whileBeating } from './heartbeat.js';
import { deleteParts, undoWindow } from './merge.js';
import { partsOf } from './parts.js';
import { prepare } from './prepare.js';
import { recordSnapshot, refused } from './record.js';
import { removeLeftover } from './remove-leftover.js';
import { currentRun } from './run.js';
import { thawFileSystems } from './thaw.js';
import { isoTime } from './verdict.js';
import { snapshotVolume } from './volume-cut.js';
import { takeWindowSlot } from './window-slot.js';
import { WindowSteps } from './window-steps.js';

/** The activities that the workflows need (workflows/activities.ts), over the catalogue and the hosts. */
export function createActivities(deps: ActivityDeps): Activities {
  const steps = new WindowSteps();
  /** A step between freeze and thaw. Its first heartbeat would meet a frozen guest; the thaw waits for no step that is cancelled. */
  const inWindow = <T>(window: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> =>
    asFailure(() => whileBeating((signal) => steps.run(window, signal, () => work(signal)), { atOnce: false }));

  return {
    acceptSnapshot: (input) =>
      asFailure(() => acceptSnapshot(deps, input, Context.current().cancellationSignal), isWorthCheckingAgain),

    takeWindowSlot: ({ snapshotId }) =>
      asFailure(() => whileBeating((signal, tell) => takeWindowSlot(deps, snapshotId, signal, tell))),

    giveBackWindowSlot: () => asFailure(() => deps.catalogue.giveBackSlot(currentRun().runId)),

    prepare: (request) => asFailure(() => whileBeating((signal, tell) => prepare(deps, request, signal, tell))),

    freezeFileSystems: ({ host, vm, window, cuts, freezeTimeoutMs }) =>
      inWindow(window, async (signal) => {
        const frozen = await deps.hosts.host(host).freezeFileSystems({ vm, window, cuts, freezeTimeoutMs }, { signal });
        const { frozenFileSystems, frozenUnixMs, freezeCallMs, gaps } = frozen;
        return { frozenFileSystems, frozenAt: isoTime(frozenUnixMs), freezeCallMs, gaps };
      }),

    snapshotLocalDisks: ({ host, vm, window, disks, frozen, quiesce, cut, freezeTimeoutMs }) =>
      inWindow(window, async (signal) => {
        const answer = await deps.hosts
          .host(host)
          .snapshotVm(
            { vm, window, disks, frozen, quiesce: frozen ? 'required' : quiesce, cut, freezeTimeoutMs },
            { signal },
          );
        return { parts: partsOf(answer.overlays), transactionMs: answer.transactionMs };
      }),

    snapshotVolume: (request) => inWindow(request.window, (signal) => snapshotVolume(deps, request, signal)),

    thawFileSystems: (request) =>
      // A guest may be frozen: whatever goes wrong, it is asked again.
      asFailure(
        () => whileBeating((signal) => thawFileSystems(deps, request, signal)),
        () => true,
      ),

    recordSnapshot: (request) => asFailure(() => whileBeating((signal) => recordSnapshot(deps, request, signal))),

    undoWindow: (request) => asFailure(() => whileBeating((signal, tell) => undoWindow(deps, request, signal, tell))),

    release: ({ host, vm, operation }) =>
      asFailure(async () => {
        try {
          await deps.hosts.host(host).release({ vm, operation }, { signal: Context.current().cancellationSignal });
        } catch (error) {
          // Who gave the host up has given up its VMs.
          if (!isHostError(error, 'HOST_LOST', 'HOST_NOT_FOUND')) throw error;
        }
      }),

    closeSnapshot: ({ snapshotId, left, ...end }) =>
      asFailure(() =>
        whileBeating(async () => {
          if (!(await deps.catalogue.close(snapshotId, currentRun().runId, { ...end, ...(left && { left }) }))) {
            throw refused({ snapshotId });
          }
        }),
      ),

    acceptDelete: (input) => asFailure(() => acceptDelete(deps, input)),

    deleteParts: (request) =>
      asFailure(() =>
        whileBeating((signal, tell) => deleteParts(deps, request, signal, tell, Context.current().info.attempt === 1)),
      ),

    closeDelete: ({ plan, outcome }) =>
      asFailure(() =>
        whileBeating(async (): Promise<DeleteSnapshotResult> => {
          const { runId } = currentRun();
          const written = outcome.deleted
            ? await deps.catalogue.finishDeleting(plan.snapshotId, runId, outcome.disks)
            : await deps.catalogue.abandonDeleting(plan.snapshotId, runId, {
                error: outcome.error,
                merged: outcome.disks,
              });
          if (!written) throw refused(plan);
          return { snapshotId: plan.snapshotId, vm: plan.vm, host: plan.host, disks: outcome.disks };
        }),
      ),

    examine: (input) =>
      asFailure(
        () => whileBeating((signal, tell) => examine(deps, input, signal, tell)),
        // Whatever it is that does not answer: it changes nothing, and may be asked again.
        (error) => codeOf(error) !== 'INPUT_INVALID',
      ),

    removeLeftover: (leftover) =>
      asFailure(() => whileBeating((signal, tell) => removeLeftover(deps, leftover, signal, tell))),
  };
}

/** So often are hosts asked for a VM before the request is refused: the run holds the VM's workflow id, and nobody would see why. */
const mostChecks = 4;

/** A catalogue that is down is waited for; a host that stays away is a reason to fail, as in `prepare`. */
function isWorthCheckingAgain(error: unknown): boolean {
  return isPassing(error) && (isCatalogueError(error) || Context.current().info.attempt < mostChecks);
}

async function asFailure<T>(work: () => Promise<T>, isRetryable: (error: unknown) => boolean = isPassing): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw toFailure(error, isRetryable);
  }
}
