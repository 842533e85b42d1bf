import { setTimeout as delay } from 'node:timers/promises';
import type { Activities, RemovedPart, Undone } from '@stillpoint/workflows';
import { isHostError } from '../hosts/errors.js';
import type { HostMergeProgress, HostMergeResult } from '../hosts/hosts.js';
import type { ActivityDeps } from './deps.js';
import { codeOf, isPassing } from './failure.js';
import { mergedParts } from './parts.js';
import { removeVolumeSnapshots, volumesLeft } from './volume-removal.js';

type Tell = (details: unknown) => void;

/** Takes back what a window made, on its host and in Cinder, whoever opened it. */
export async function takeBackWindow(
  deps: ActivityDeps,
  { host, vm, window, plan, parts, mayBeThere, mayAppear }: Omit<Parameters<Activities['undoWindow']>[0], 'isLast'>,
  signal: AbortSignal,
  tell: Tell,
): Promise<Undone> {
  // Beside one another: a host that is away must not keep what Cinder has, nor the other way round.
  const [merged, removed] = await Promise.all([
    patiently(deps, signal, tell, (onProgress) => deps.hosts.host(host).undo({ vm, window }, { signal, onProgress })),
    removeVolumeSnapshots(
      deps,
      {
        snapshotId: plan.snapshotId,
        window,
        volumes: plan.volumes,
        recorded: [],
        mayBeThere,
        mayAppear,
        mayGiveUp: false,
      },
      signal,
      tell,
    ),
  ]);
  const inCinder = { left: volumesLeft(removed, plan.volumes), pending: pendingOf(removed) };
  if ('gaveUp' in merged) {
    const pending = plan.localDisks.map((disk) => `${disk}: ${merged.gaveUp}`);
    // Without local disks the host only closes the window, which its thaw has done.
    const complete = pending.length === 0 && inCinder.pending.length === 0;
    return { complete, left: [...parts, ...inCinder.left], pending: [...pending, ...inCinder.pending] };
  }
  const onHost = mergedParts(merged);
  const stillThere = new Set(onHost.filter((part) => part.outcome === 'pending').map((part) => part.overlay));
  return {
    complete: merged.complete && inCinder.pending.length === 0,
    left: [...parts.filter((part) => stillThere.has(part.overlay)), ...inCinder.left],
    pending: [...pendingOf(onHost), ...inCinder.pending],
  };
}

/**
 * Repeats a merge while its host is away, for a bounded time; then it is pending, with the reason. The host agent joins a merge that already runs, and a
 * host that is gone for good needs no patience.
 */
export async function patiently(
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

function pendingOf(disks: readonly RemovedPart[]): string[] {
  return disks.filter((disk) => disk.outcome === 'pending').map((disk) => `${disk.target}: ${disk.detail}`);
}
