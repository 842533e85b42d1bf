import {
  type Activities,
  type MergedPart,
  type RemovedPart,
  type Undone,
  untouchedParts,
  windowIdOf,
} from '@stillpoint/workflows';
import { isHostError } from '../hosts/errors.js';
import type { HostMergeProgress, HostMergeResult } from '../hosts/hosts.js';
import type { ActivityDeps } from './deps.js';
import { isRunCancelled } from './failure.js';
import { mergedParts, overlaysOf } from './parts.js';
import { cleanUpAfterDeadRun } from './prepare.js';
import { refused } from './record.js';
import { currentRun } from './run.js';
import { patiently, takeBackWindow } from './take-back.js';
import { removeVolumeSnapshots } from './volume-removal.js';

type Tell = (details: unknown) => void;

/**
 * Takes back all that a window made. The row first: from then on nothing of this run is recorded any more. Where another window follows it stays
 * `running`, but must be so: a run that was reset must not undo what its former self has recorded.
 */
export async function undoWindow(
  deps: ActivityDeps,
  request: Parameters<Activities['undoWindow']>[0],
  signal: AbortSignal,
  tell: Tell,
): Promise<Undone> {
  const { plan, isLast } = request;
  const { runId } = currentRun();
  const mayUndo = isLast
    ? await deps.catalogue.beginUndoing(plan.snapshotId, runId)
    : await isRunning(deps, plan.snapshotId, runId);
  if (!mayUndo) throw refused(plan);
  return takeBackWindow(deps, request, signal, tell);
}

async function isRunning(deps: ActivityDeps, snapshotId: string, runId: string): Promise<boolean> {
  const row = await deps.catalogue.getSnapshot(snapshotId);
  return row?.state === 'running' && row.runId === runId;
}

/** A frozen window, a second one after a lost connection, and an unfrozen one: no run opens more. */
const mostWindows = 3;

/**
 * Deletes a snapshot's parts: its volumes' snapshots in Cinder, whatever of this snapshot is there, and its overlays by merging them into their bases. Of a
 * snapshot whose run died with it open: takes back what its windows made. Cancelled before anything was touched it says so, and does not reject.
 *
 * @param isFirstAttempt no other one of this run may have touched anything
 */
export async function deleteParts(
  deps: ActivityDeps,
  plan: Parameters<Activities['deleteParts']>[0],
  signal: AbortSignal,
  tell: Tell,
  isFirstAttempt: boolean,
): Promise<{ complete: boolean; disks: RemovedPart[] }> {
  const touch = { mayHaveBegun: !(isFirstAttempt && plan.isWhole === true) };
  const both = [
    plan.leftOpen ? takeBackLeftOpen(deps, plan, signal, tell) : mergeParts(deps, plan, signal, tell, touch),
    removeVolumeSnapshots(
      deps,
      {
        snapshotId: plan.snapshotId,
        volumes: plan.volumes,
        recorded: plan.parts.filter((part) => part.kind === 'volume'),
        mayBeThere: plan.volumes.map((disk) => disk.target),
        mayAppear: plan.leftOpen ? plan.volumes.map((disk) => disk.target) : [],
        mayGiveUp: true,
        begins: () => {
          touch.mayHaveBegun = true;
        },
      },
      signal,
      tell,
    ),
  ] as const;
  try {
    const [onHost, inCinder] = await Promise.all(both);
    return {
      complete: onHost.complete && inCinder.every((part) => part.outcome !== 'pending'),
      disks: [...onHost.disks, ...inCinder],
    };
  } catch (error) {
    await Promise.allSettled(both);
    if (touch.mayHaveBegun || !isRunCancelled(signal)) throw error;
    return { complete: false, disks: untouchedParts(plan.parts) };
  }
}

async function mergeParts(
  deps: ActivityDeps,
  plan: Parameters<Activities['deleteParts']>[0],
  signal: AbortSignal,
  tell: Tell,
  touch: { mayHaveBegun: boolean },
): Promise<{ complete: boolean; disks: MergedPart[] }> {
  const { host: name, vm, operation, window } = plan;
  const parts = plan.parts.filter((part) => part.kind === 'local');
  if (parts.length === 0) return { complete: true, disks: [] };
  const host = deps.hosts.host(name);
  const request = { vm: vm.uuid, operation, installation: deps.installationId, window, overlays: overlaysOf(parts) };
  const deleteOnHost = async (onProgress: (progress: HostMergeProgress) => void): Promise<HostMergeResult> => {
    let isSent = false;
    const beforeSending = () => {
      isSent = true;
    };
    try {
      return await host.deleteSnapshot(request, { signal, onProgress, beforeSending });
    } catch (error) {
      if (isSent && !isRefusal(error)) touch.mayHaveBegun = true;
      throw error;
    }
  };
  const merged = await patiently(deps, signal, tell, async (onProgress) => {
    try {
      return await deleteOnHost(onProgress);
    } catch (error) {
      const dead = isHostError(error, 'BUSY') ? error.metadata.staleOperation : undefined;
      if (!isHostError(error) || dead === undefined) throw error;
      // Only this run is open under the VM's workflow id: who else of this installation holds the VM is dead.
      const stale = { vm: vm.uuid, operation: dead, window: error.metadata.staleWindow ?? '' };
      await cleanUpAfterDeadRun(deps, host, stale, signal, tell);
      return await deleteOnHost(onProgress);
    }
  });
  if ('gaveUp' in merged) {
    const begun = touch.mayHaveBegun ? { begun: true as const } : {};
    const disks = parts.map(({ target, overlay, path }): MergedPart => {
      return { target, kind: 'local', overlay, path, outcome: 'pending', detail: merged.gaveUp, ...begun };
    });
    return { complete: false, disks };
  }
  const disks = mergedParts(merged);
  if (disks.some((disk) => disk.outcome !== 'pending' || disk.begun)) touch.mayHaveBegun = true;
  return { complete: merged.complete, disks };
}

/** With any other answer of the host agent's than these it has begun nothing. */
function isRefusal(error: unknown): boolean {
  return (
    isHostError(error) &&
    !error.mayHaveHappened &&
    !isHostError(error, 'SHUTTING_DOWN', 'JOURNAL_UNWRITABLE', 'INTERNAL')
  );
}

async function takeBackLeftOpen(
  deps: ActivityDeps,
  { host: name, vm, snapshotId }: Parameters<Activities['deleteParts']>[0],
  signal: AbortSignal,
  tell: Tell,
): Promise<{ complete: boolean; disks: MergedPart[] }> {
  const host = deps.hosts.host(name);
  const disks: MergedPart[] = [];
  for (let attempt = 1; attempt <= mostWindows; attempt += 1) {
    const undone = await patiently(deps, signal, tell, (onProgress) =>
      host.undo({ vm: vm.uuid, window: windowIdOf(snapshotId, attempt) }, { signal, onProgress }),
    );
    if ('gaveUp' in undone) {
      disks.push({ target: vm.name, kind: 'local', overlay: '', path: '', outcome: 'pending', detail: undone.gaveUp });
      return { complete: false, disks };
    }
    disks.push(...mergedParts(undone));
  }
  await host.release({ vm: vm.uuid, operation: snapshotId }, { signal });
  return { complete: disks.every((disk) => disk.outcome !== 'pending'), disks };
}
