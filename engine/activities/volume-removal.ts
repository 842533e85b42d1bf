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
/** `begun`: Cinder has begun to delete it, and did not put it back: its data is not to be relied on. */
type End = { outcome: 'deleted' | 'not-found' } | { outcome: 'pending'; detail: string; begun?: true };

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
      if (asked === mostDeletes) return notDeleted(now);
      asked += await deletionAsked(cinder, id, options);
      until = performance.now() + waitMs;
    } else if (performance.now() > until) {
      return {
        outcome: 'pending',
        detail: `Cinder is still deleting snapshot ${id}. See cinder-volume and the Ceph cluster.`,
        begun: true,
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

/** Asked for often enough: it came back to where it was, or Cinder failed at it. */
function notDeleted({ id, status }: VolumeSnapshot): End {
  const what = `Cinder does not delete snapshot ${id}, and leaves it ${status}`;
  return status === 'error_deleting'
    ? { outcome: 'pending', detail: `${what}: see the log of cinder-volume and the Ceph cluster.`, begun: true }
    : { outcome: 'pending', detail: `${what}: most likely a volume was made from it. Delete that first.` };
}

/** Undefined: it is called `error` now, or has left `creating` by itself. Else why not, and who can. */
async function givenUp(cinder: Cinder, id: string, options: { signal?: AbortSignal }): Promise<string | undefined> {
  try {
    await cinder.giveUpCreating(id, options);
    return undefined;
  } catch (error) {
    if (isCinderError(error, 'CINDER_FORBIDDEN')) return stuck(id);
    if (isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND', 'VOLUME_SNAPSHOT_BUSY')) return undefined;
    throw error;
  }
}

function stuck(id: string): string {
  return `Cinder's snapshot ${id} is still creating, and cannot be deleted so. \`stillpoint snapshot cleanup\` tries again; if Cinder has given it up, an OpenStack administrator ends it: openstack volume snapshot set --state error ${id}, then openstack volume snapshot delete ${id}.`;
}

function ageMs({ createdAt }: VolumeSnapshot): number {
  return Date.now() - Date.parse(createdAt);
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
  /** Called before Cinder is asked to delete one. */
  begins?: () => void;
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
  /** Those whose deletion may have been asked for, and has no end that is known. */
  const begun = new Map<string, VolumeSnapshot>();
  const started = performance.now();
  /** Since when Cinder answers. While it did not, it may have held up what is looked for; it carries that out when it goes on. */
  let answersSince = started;
  let triedUntil = started + hostPatienceMs;
  for (;;) {
    try {
      const elsewhere = await ofAnotherProject(cloud, wanted, signal);
      if (elsewhere !== undefined) return wanted.map((disk) => pendingPart(disk, undefined, elsewhere));
      // Before the look: the last one must have begun when nothing can appear any more.
      // A Cinder that answers now and then would be awaited for ever: `hostPatienceMs` bounds that, too.
      const lookUntil = Math.min(answersSince, started + hostPatienceMs) + cloud.rpcTimeoutMs;
      const isAwaited = removal.mayAppear.length > 0 && performance.now() < lookUntil;
      // What Cinder knows no more does not come back, whatever its list says.
      const open = (await leftInCinder(deps, cloud, removal, signal)).filter(({ id }) => !ended.has(id));
      begun.clear();
      for (const snapshot of open) {
        tell({ deleting: snapshot.id, volume: snapshot.volumeId });
        begun.set(snapshot.id, snapshot);
        removal.begins?.();
        const end = await deletedSnapshot(cloud.cinder, snapshot.id, {
          waitMs: cloud.undoWaitMs,
          signal,
          ...(removal.mayGiveUp ? { giveUpCreatingMs: cloud.giveUpCreatingMs } : {}),
        });
        begun.delete(snapshot.id);
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
        const detail = `${error.message} ${error.advice}`.trim();
        const broken = [...begun.values()].map((snapshot) =>
          partOf(removal, snapshot, { outcome: 'pending', detail, begun: true }),
        );
        const known = [...ended.values(), ...broken];
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

/** Where this engine cannot see the volumes' snapshots, 'not found' would be no proof that they are gone: why, and what to do. */
async function ofAnotherProject(
  { cinder }: Cloud,
  wanted: readonly PlannedVolume[],
  signal: AbortSignal,
): Promise<string | undefined> {
  const ours = await cinder.project({ signal });
  const other = wanted.find(({ project }) => project !== undefined && project !== ours);
  return (
    other &&
    `Volume ${other.volume} was of the project ${other.project} when the snapshot was taken, and this engine is configured for the project ${ours}: configure it for that one (docs/openstack.md), then delete the snapshot again.`
  );
}

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
  const part = { target, kind: 'volume', volume: volumeId, snapshot: id } as const;
  if (end.outcome !== 'pending') return { ...part, outcome: end.outcome, detail: '' };
  return { ...part, ...end };
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
