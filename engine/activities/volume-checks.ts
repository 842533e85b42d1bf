import type { Plan } from '@stillpoint/workflows';
import type { CinderVolume } from '../cinder/cinder.js';
import { CinderError, isCinderError } from '../cinder/errors.js';
import type { ActivityDeps, Cloud } from './deps.js';
import { cloudOf } from './failure.js';
import { requireAttached } from './volume-disks.js';

/** A token is good for the freeze, the window and the thaw, and as long again. */
const tokenMarginMs = 60_000;

/** Of these states Cinder makes a snapshot. */
const snapshottable: ReadonlySet<string> = new Set(['in-use', 'available']);

/**
 * Everything that Cinder would refuse inside the window: volumes that are gone, busy or somebody else's by now, and quota, for all of them together.
 *
 * @throws CinderError VOLUME_NOT_FOUND, VOLUME_BUSY, CINDER_QUOTA and those of every call; ActivityError VOLUME_MISMATCH
 */
export async function checkVolumes(deps: ActivityDeps, plan: Plan, signal: AbortSignal): Promise<void> {
  if (plan.volumes.length === 0) return;
  const cloud = cloudOf(deps);
  const volumes = await Promise.all(
    plan.volumes.map(async ({ target, volume: id }) => {
      const volume = await cloud.cinder.volume(id, { signal });
      requireAttached(cloud, plan.vm, target, volume);
      if (!snapshottable.has(volume.status)) {
        throw new CinderError(
          'VOLUME_BUSY',
          `Volume ${id} (${target} of ${plan.vm.name}) is ${volume.status} in Cinder.`,
          {
            advice: 'Wait until that has ended (or have its state put right), then ask for the snapshot again.',
          },
        );
      }
      return volume;
    }),
  );
  await checkQuota(deps, cloud, volumes, signal);
}

async function checkQuota(
  deps: ActivityDeps,
  cloud: Cloud,
  volumes: CinderVolume[],
  signal: AbortSignal,
): Promise<void> {
  const quota = await cloud.cinder.snapshotQuota({ signal }).catch((error: unknown) => {
    if (!isCinderError(error, 'CINDER_FORBIDDEN')) throw error;
    deps.log.warn(
      { err: error },
      'the quota may not be read with this role: Cinder says in the window whether it suffices',
    );
    return undefined;
  });
  if (quota === undefined) return;
  const gigabytes = volumes.reduce((sum, volume) => sum + volume.sizeGiB, 0);
  requireRoom('snapshots', quota.snapshots, volumes.length);
  if (cloud.snapshotsCountGigabytes) requireRoom('gigabytes', quota.gigabytes, gigabytes);
}

function requireRoom(what: string, { limit, used }: { limit: number; used: number }, needed: number): void {
  if (limit < 0 || used + needed <= limit) return;
  throw new CinderError(
    'CINDER_QUOTA',
    `The project's quota for ${what} leaves ${Math.max(0, limit - used)} of ${limit}, and this snapshot needs ${needed}.`,
    { advice: "Delete snapshots that are not needed any more, or have the project's quota raised." },
  );
}

/** The last step before the freeze: token, endpoint and connections are there when the window opens. */
export async function makeCinderReady(
  deps: ActivityDeps,
  plan: Plan,
  windowLimitMs: number,
  signal: AbortSignal,
): Promise<void> {
  if (plan.volumes.length === 0) return;
  const validForMs = 2 * (plan.freezeTimeoutMs + windowLimitMs) + tokenMarginMs;
  await cloudOf(deps).cinder.makeReady({ validForMs, connections: plan.volumes.length }, { signal });
}
