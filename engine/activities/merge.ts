import { setTimeout as delay } from 'node:timers/promises';
import { type Activities, type MergedPart, type Undone, windowIdOf } from '@stillpoint/workflows';
import { isHostError } from '../hosts/errors.js';
import type { HostMergeProgress, HostMergeResult } from '../hosts/hosts.js';
import type { ActivityDeps } from './deps.js';
import { codeOf, isPassing } from './failure.js';
import { mergedParts, overlaysOf } from './parts.js';
import { cleanUpAfterDeadRun } from './prepare.js';
import { refused } from './record.js';
import { currentRun } from './run.js';

type Tell = (details: unknown) => void;

/**
 * Takes back all that a window made. The row first: from then on nothing of this run is recorded any more. Where another window follows it stays
 * `running`, but must be so: a run that was reset must not undo what its former self has recorded.
 */
export async function undoWindow(
  deps: ActivityDeps,
  { host, vm, window, plan, isLast }: Parameters<Activities['undoWindow']>[0],
  signal: AbortSignal,
  tell: Tell,
): Promise<Undone> {
  const { runId } = currentRun();
  const mayUndo = isLast
    ? await deps.catalogue.beginUndoing(plan.snapshotId, runId)
    : await isRunning(deps, plan.snapshotId, runId);
  if (!mayUndo) throw refused(plan);
  const merged = await patiently(deps, signal, tell, (onProgress) =>
    deps.hosts.host(host).undo({ vm, window }, { signal, onProgress }),
  );
  if ('gaveUp' in merged) {
    return { complete: false, disks: [], pending: plan.localDisks.map((disk) => `${disk}: ${merged.gaveUp}`) };
  }
  const disks = mergedParts(merged);
  return { complete: merged.complete, disks, pending: pendingOf(disks) };
}

async function isRunning(deps: ActivityDeps, snapshotId: string, runId: string): Promise<boolean> {
  const row = await deps.catalogue.getSnapshot(snapshotId);
  return row?.state === 'running' && row.runId === runId;
}

/** A frozen window, a second one after a lost connection, and an unfrozen one: no run opens more. */
const mostWindows = 3;

/** Merges a recorded snapshot's overlays into their bases; of a snapshot whose run died with it open: takes back what its windows made. */
export async function deleteParts(
  deps: ActivityDeps,
  plan: Parameters<Activities['deleteParts']>[0],
  signal: AbortSignal,
  tell: Tell,
): Promise<{ complete: boolean; disks: MergedPart[] }> {
  if (plan.leftOpen) return takeBackLeftOpen(deps, plan, signal, tell);
  const { host: name, vm, operation, window, parts } = plan;
  if (parts.length === 0) return { complete: true, disks: [] };
  const host = deps.hosts.host(name);
  const request = { vm: vm.uuid, operation, installation: deps.installationId, window, overlays: overlaysOf(parts) };
  const merged = await patiently(deps, signal, tell, async (onProgress) => {
    try {
      return await host.deleteSnapshot(request, { signal, onProgress });
    } catch (error) {
      const dead = isHostError(error, 'BUSY') ? error.metadata.staleOperation : undefined;
      if (!isHostError(error) || dead === undefined) throw error;
      // Only this run is open under the VM's workflow id: who else of this installation holds the VM is dead.
      const stale = { vm: vm.uuid, operation: dead, window: error.metadata.staleWindow ?? '' };
      await cleanUpAfterDeadRun(deps, host, stale, signal);
      return await host.deleteSnapshot(request, { signal, onProgress });
    }
  });
  if ('gaveUp' in merged) {
    const disks = parts.map(({ target, overlay, path }): MergedPart => {
      return { target, overlay, path, outcome: 'pending', detail: merged.gaveUp };
    });
    return { complete: false, disks };
  }
  return { complete: merged.complete, disks: mergedParts(merged) };
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
      disks.push({ target: vm.name, overlay: '', path: '', outcome: 'pending', detail: undone.gaveUp });
      return { complete: false, disks };
    }
    disks.push(...mergedParts(undone));
  }
  await host.release({ vm: vm.uuid, operation: snapshotId }, { signal });
  return { complete: disks.every((disk) => disk.outcome !== 'pending'), disks };
}

/**
 * Repeats a merge while its host is away, for a bounded time; then it is pending, with the reason. The host agent joins a merge that already runs, and a
 * host that is gone for good needs no patience.
 */
async function patiently(
  deps: ActivityDeps,
  signal: AbortSignal,
  tell: Tell,
  merge: (onProgress: (progress: HostMergeProgress) => void) => Promise<HostMergeResult>,
): Promise<HostMergeResult | { gaveUp: string }> {
  const { hostPatienceMs = 120_000, hostPollMs = 1_000 } = deps.settings ?? {};
  const started = performance.now();
  for (;;) {
    try {
      return await merge(tell);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      // Without a code it is a fault of ours, and no word about the host.
      if (codeOf(error) === undefined) throw error;
      const text = error instanceof Error ? error.message : String(error);
      if (!isPassing(error) || performance.now() - started > hostPatienceMs) {
        const advice = isHostError(error) ? ` ${error.advice}` : '';
        return { gaveUp: `${text}${advice}` };
      }
      tell({ waitingFor: text });
      await delay(hostPollMs, undefined, { signal }).catch(() => {
        throw signal.reason;
      });
    }
  }
}

function pendingOf(disks: MergedPart[]): string[] {
  return disks.filter((disk) => disk.outcome === 'pending').map((disk) => `${disk.target}: ${disk.detail}`);
}
