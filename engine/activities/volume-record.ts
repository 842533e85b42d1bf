import type { Plan, SnapshotVmResult, VolumePart } from '@stillpoint/workflows';
import type { ActivityDeps } from './deps.js';
import { cloudOf } from './failure.js';
import { descriptionOf, gradeMetadata, ownMetadata } from './volume-names.js';

/** So long may telling the grade take, ms: it is for people who look into Cinder, and not worth holding up the run. */
const tellMs = 10_000;

const GiB = 1024 ** 3;

/** The volumes' parts, found by the window's id, whatever the cuts' answers said: exactly one for each, and available. */
export async function findVolumeParts(
  deps: ActivityDeps,
  plan: Plan,
  window: string,
  signal: AbortSignal,
): Promise<VolumePart[] | { missing: string }> {
  if (plan.volumes.length === 0) return [];
  const metadata = ownMetadata({ installation: deps.installationId, snapshot: plan.snapshotId, window });
  const snapshots = await cloudOf(deps).cinder.findSnapshots({ metadata }, { signal });
  const parts: VolumePart[] = [];
  for (const disk of plan.volumes) {
    const [made, another] = snapshots.filter((snapshot) => snapshot.volumeId === disk.volume);
    if (made === undefined)
      return { missing: `${disk.target} of ${plan.vm.name}: Cinder has no snapshot of its volume` };
    if (another !== undefined) {
      return {
        missing: `${disk.target} of ${plan.vm.name}: Cinder has several snapshots of this window, and one of them came late`,
      };
    }
    if (made.status !== 'available') {
      return { missing: `${disk.target} of ${plan.vm.name}: its snapshot ${made.id} is ${made.status} in Cinder` };
    }
    const { target, volume } = disk;
    parts.push({ target, kind: 'volume', volume, snapshot: made.id, sizeBytes: made.sizeGiB * GiB });
  }
  return parts;
}

/** Writes on each of the volumes' snapshots what it is, now that the grade is recorded. A Cinder that does not take it changes nothing about the snapshot. */
export async function tellGrade(
  deps: ActivityDeps,
  result: SnapshotVmResult,
  parts: readonly VolumePart[],
  signal: AbortSignal,
): Promise<void> {
  const limited = AbortSignal.any([signal, AbortSignal.timeout(tellMs)]);
  await Promise.all(
    parts.map(async ({ target, snapshot }) => {
      const set = result.disks.map((disk) => disk.target);
      const description = descriptionOf(result, { target, set }, `Grade ${result.grade}.`);
      try {
        const change = { description, metadata: gradeMetadata(result.grade) };
        await deps.cloud?.cinder.describeSnapshot(snapshot, change, { signal: limited });
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        deps.log.warn({ err: error, snapshot }, 'the grade could not be written on the snapshot in Cinder');
      }
    }),
  );
}
