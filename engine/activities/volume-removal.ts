import { setTimeout as delay } from 'node:timers/promises';
import type { DeletedVolumePart, PlannedVolume, VolumePart } from '@stillpoint/workflows';
import type { Cinder, VolumeSnapshot } from '../cinder/cinder.js';
import { isCinderError } from '../cinder/errors.js';
import type { ActivityDeps, Cloud } from './deps.js';
import { cloudOf, isPassing } from './failure.js';
import { ownMetadata } from './volume-names.js';

/** So often is Cinder asked whether a snapshot is gone or has left `creating`, ms. */
const pollMs = 200;
/** A deletion that Cinder took and gave up this often, silently, will not be done. */
const mostDeletes = 3;
/** So often is it looked again for what may still appear, ms. */
const lookAgainMs = 1_000;

type Tell = (details: unknown) => void;
type End = { outcome: 'deleted' | 'not-found' } | { outcome: 'pending'; detail: string };

/**
 * Deletes one snapshot and waits until Cinder knows it no more. One in `creating` is waited for, because Cinder refuses to delete it; one that something
 * depends on goes back to `available` without a word.
 */
export async function deletedSnapshot(
  cinder: Cinder,
  id: string,
  { waitMs, signal, giveUpCreatingMs }: { waitMs: number; signal?: AbortSignal; giveUpCreatingMs?: number },
): Promise<End> {
  let until = performance.now() + waitMs;
  const options = signal === undefined ? {} : { signal };
  let asked = 0;
  let isGivenUp = false;
  for (;;) {
    const now = await found(cinder, id, options);
    if (now === undefined) return { outcome: asked === 0 ? 'not-found' : 'deleted' };
    if (now.status === 'creating') {
      if (giveUpCreatingMs !== undefined && !isGivenUp && ageMs(now) > giveUpCreatingMs) {
        const refused = await givenUp(cinder, id, options);
        if (refused !== undefined) return { outcome: 'pending', detail: refused };
        isGivenUp = true;
      } else if (performance.now() > until) return { outcome: 'pending', detail: stuck(id) };
    } else if (now.status !== 'deleting') {
      if (asked === mostDeletes) {
        return {
          outcome: 'pending',
          detail: `Cinder takes the deletion of snapshot ${id} and leaves it ${now.status}: most likely a volume was made from it. Delete that first.`,
        };
      }
      asked += await deletionAsked(cinder, id, options);
      until = performance.now() + waitMs;
    } else if (performance.now() > until) {
      return {
        outcome: 'pending',
        detail: `Cinder is still deleting snapshot ${id}. See cinder-volume and the Ceph cluster.`,
      };
    }
    await delay(pollMs, undefined, options);
  }
}

async function found(
  cinder: Cinder,
  id: string,
  options: { signal?: AbortSignal },
): Promise<VolumeSnapshot | undefined> {
  try {
    return await cinder.snapshot(id, options);
  } catch (error) {
    if (isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND')) return undefined;
    throw error;
  }
}

async function deletionAsked(cinder: Cinder, id: string, options: { signal?: AbortSignal }): Promise<number> {
  try {
    await cinder.deleteSnapshot(id, options);
  } catch (error) {
    if (!isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND', 'VOLUME_SNAPSHOT_BUSY')) throw error;
  }
  return 1;
}

/** Undefined: it is called `error` now. Else why not, and who can. */
async function givenUp(cinder: Cinder, id: string, options: { signal?: AbortSignal }): Promise<string | undefined> {
  try {
    await cinder.giveUpCreating(id, options);
    return undefined;
  } catch (error) {
    if (isCinderError(error, 'CINDER_FORBIDDEN')) return stuck(id);
    throw error;
  }
}

function stuck(id: string): string {
  return `Cinder's snapshot ${id} is still creating, and cannot be deleted so. \`stillpoint snapshot cleanup\` tries again; if Cinder has given it up, an OpenStack administrator ends it: openstack volume snapshot set --state error ${id}, then openstack volume snapshot delete ${id}.`;
}

function ageMs({ createdAt }: VolumeSnapshot): number {
  // Cinder's times are UTC and mostly do not say so.
  const isZoned = /(?:Z|[+-]\d{2}:?\d{2})$/.test(createdAt);
  return Date.now() - Date.parse(isZoned ? createdAt : `${createdAt}Z`);
}

/** What is to be taken back in Cinder: everything of our installation that carries the snapshot's id, and the window's where one is named. */
export interface VolumeRemoval {
  snapshotId: string;
  window?: string;
  /** The set's volumes. */
  volumes: readonly PlannedVolume[];
  /** Parts that are on record: they go, whatever their metadata says by now. */
  recorded: readonly VolumePart[];
  /** Targets of which Cinder may have something. None: nothing was ever asked of it that is not verified gone, and it is not asked again. */
  mayBeThere: readonly string[];
  /** Those whose create has an unknown outcome: looked for until Cinder's own request timeout has passed. */
  mayAppear: readonly string[];
  /** Whether one that has been `creating` for long may be given up. */
  mayGiveUp: boolean;
}

/**
 * Takes back what Cinder has, one snapshot after another (librbd crashed under twenty deletions at once), and verifies that nothing of it is left. A Cinder
 * that does not answer is waited for, for a bounded time.
 */
export async function removeVolumeSnapshots(
  deps: ActivityDeps,
  removal: VolumeRemoval,
  signal: AbortSignal,
  tell: Tell,
): Promise<DeletedVolumePart[]> {
  const wanted = removal.volumes.filter((disk) => removal.mayBeThere.includes(disk.target));
  if (wanted.length === 0) return [];
  if (deps.cloud === undefined) return wanted.map((disk) => pendingPart(disk, undefined, noCloud));
  const cloud = cloudOf(deps);
  const { hostPatienceMs = 120_000, hostPollMs = 1_000 } = deps.settings ?? {};
  const ended = new Map<string, DeletedVolumePart>();
  /** Since when Cinder answers. While it did not, it may have held up what is looked for; it carries that out when it goes on. */
  let answersSince = performance.now();
  let triedUntil = answersSince + hostPatienceMs;
  for (;;) {
    try {
      // Before the look: the last one must have begun when nothing can appear any more.
      const isAwaited = removal.mayAppear.length > 0 && performance.now() - answersSince < cloud.rpcTimeoutMs;
      const open = (await leftInCinder(deps, cloud, removal, signal)).filter(
        ({ id }) => ended.get(id)?.outcome !== 'pending',
      );
      for (const snapshot of open) {
        tell({ deleting: snapshot.id, volume: snapshot.volumeId });
        const end = await deletedSnapshot(cloud.cinder, snapshot.id, {
          waitMs: cloud.undoWaitMs,
          signal,
          ...(removal.mayGiveUp ? { giveUpCreatingMs: cloud.giveUpCreatingMs } : {}),
        });
        ended.set(snapshot.id, partOf(removal, snapshot, end));
      }
      if (open.length === 0 && !isAwaited) return [...ended.values()];
      if (isAwaited) {
        tell({ lookingFor: removal.mayAppear, because: 'Cinder may still carry out a request whose answer was lost' });
        await delay(lookAgainMs, undefined, { signal });
      }
      triedUntil = performance.now() + hostPatienceMs;
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (!isCinderError(error)) throw error;
      if (!isPassing(error) || performance.now() > triedUntil) {
        const known = [...ended.values()];
        const detail = `${error.message} ${error.advice}`.trim();
        const unknown = wanted.filter((disk) => !known.some((part) => part.target === disk.target));
        return [...known, ...unknown.map((disk) => pendingPart(disk, undefined, detail))];
      }
      tell({ waitingFor: error.message });
      await delay(hostPollMs, undefined, { signal }).catch(() => {
        throw signal.reason;
      });
      answersSince = performance.now();
    }
  }
}

const noCloud = 'This engine knows no cloud any more (docs/openstack.md): configure the one that has the volume.';

async function leftInCinder(
  deps: ActivityDeps,
  { cinder }: Cloud,
  { snapshotId, window, recorded }: VolumeRemoval,
  signal: AbortSignal,
): Promise<VolumeSnapshot[]> {
  const of = { installation: deps.installationId, snapshot: snapshotId, ...(window === undefined ? {} : { window }) };
  const marked = await cinder.findSnapshots({ metadata: ownMetadata(of) }, { signal });
  const unmarked = recorded.filter((part) => !marked.some((snapshot) => snapshot.id === part.snapshot));
  const known = await Promise.all(unmarked.map((part) => found(cinder, part.snapshot, { signal })));
  return [...marked, ...known.filter((snapshot) => snapshot !== undefined)];
}

function partOf(removal: VolumeRemoval, { id, volumeId }: VolumeSnapshot, end: End): DeletedVolumePart {
  const target = removal.volumes.find((disk) => disk.volume === volumeId)?.target ?? volumeId;
  const detail = end.outcome === 'pending' ? end.detail : '';
  return { target, kind: 'volume', volume: volumeId, snapshot: id, outcome: end.outcome, detail };
}

function pendingPart(disk: PlannedVolume, snapshot: string | undefined, detail: string): DeletedVolumePart {
  return {
    target: disk.target,
    kind: 'volume',
    volume: disk.volume,
    snapshot: snapshot ?? '',
    outcome: 'pending',
    detail,
  };
}

/** What is still there of what a removal met, as parts of the snapshot. */
export function volumesLeft(removed: readonly DeletedVolumePart[], volumes: readonly PlannedVolume[]): VolumePart[] {
  return removed
    .filter((part) => part.outcome === 'pending' && part.snapshot !== '')
    .map(({ target, volume, snapshot }) => ({
      target,
      kind: 'volume',
      volume,
      snapshot,
      sizeBytes: volumes.find((disk) => disk.volume === volume)?.sizeBytes ?? 0,
    }));
}
