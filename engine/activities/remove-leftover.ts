import type { Leftover } from '@stillpoint/workflows';
import { z } from 'zod';
import { isCinderError } from '../cinder/errors.js';
import { vmUuid } from '../contract/snapshot-input.js';
import { inARun } from '../doctor/dead-run.js';
import { isLeftInCinder } from '../doctor/judge.js';
import { checked, requireWorkflowId } from './accept.js';
import type { ActivityDeps } from './deps.js';
import { ActivityError, cloudOf } from './failure.js';
import { cleanUpAfterDeadRun } from './prepare.js';
import { currentRun } from './run.js';
import { ownMetadata } from './volume-names.js';
import { deletedSnapshot } from './volume-removal.js';

const id = z.string().min(1).max(255);

const leftoverInput = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('reservation'), vm: vmUuid, host: id, operation: id, window: z.string().max(255) }),
  z.strictObject({ kind: z.literal('volume-snapshot'), vm: vmUuid, snapshotId: id, volumeSnapshot: id }),
]) satisfies z.ZodType<Leftover, Leftover>;

/** Under the VM's workflow id no other run of it is open; what was found is proven again, for it may be long since it was. */
export async function removeLeftover(
  deps: ActivityDeps,
  given: Leftover,
  signal: AbortSignal,
  tell: (details: unknown) => void,
): Promise<{ removed: boolean }> {
  const leftover = checked(leftoverInput, given);
  requireWorkflowId(currentRun().workflowId, leftover.vm);
  if (leftover.kind === 'volume-snapshot') return { removed: await deletedInCinder(deps, leftover, signal) };
  const { vm, host: name, operation } = leftover;
  const host = deps.hosts.host(name);
  const { hold } = await host.getVm(vm, { signal });
  if (hold.operation !== operation || hold.installation !== deps.installationId) return { removed: false };
  // Its clean-up gives the VM back, where the death of its run is proven.
  const row = await deps.catalogue.getSnapshot(operation);
  if (row !== undefined && inARun.includes(row.state)) return { removed: false };
  await cleanUpAfterDeadRun(deps, host, { vm, operation, window: hold.window }, signal, tell);
  return { removed: true };
}

async function deletedInCinder(
  deps: ActivityDeps,
  { vm, snapshotId, volumeSnapshot }: Extract<Leftover, { kind: 'volume-snapshot' }>,
  signal: AbortSignal,
): Promise<boolean> {
  const { cinder, undoWaitMs, giveUpCreatingMs } = cloudOf(deps);
  const row = await deps.catalogue.getSnapshot(snapshotId);
  const snapshot = await cinder.snapshot(volumeSnapshot, { signal }).catch((error: unknown) => {
    if (isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND')) return undefined;
    throw error;
  });
  if (snapshot === undefined) return false;
  const ours = Object.entries(ownMetadata({ installation: deps.installationId, snapshot: snapshotId }));
  const isOurs = ours.every(([key, value]) => snapshot.metadata[key] === value);
  if (row?.vm !== vm || !isOurs || !isLeftInCinder(row, snapshot)) return false;
  const end = await deletedSnapshot(cinder, volumeSnapshot, { waitMs: undoWaitMs, signal, giveUpCreatingMs });
  if (end.outcome !== 'pending') return true;
  throw new ActivityError('CLEANUP_PENDING', end.detail);
}
