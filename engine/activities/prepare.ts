import type { Activities, Plan, Prepared } from '@stillpoint/workflows';
import type { HostClient, HostVm } from '../hosts/hosts.js';
import type { ActivityDeps } from './deps.js';
import { ActivityError } from './failure.js';
import { partsOf } from './parts.js';
import { takeBackWindow } from './take-back.js';
import { checkVolumes, makeCinderReady } from './volume-checks.js';
import { tellGrade } from './volume-record.js';

/** More dead runs than this on one VM are no leftovers but a fault. */
const mostDeadRuns = 3;

/** Takes the VM on its host; a dead run that still holds it is cleaned up first. */
export async function prepare(
  deps: ActivityDeps,
  { host: name, vm, operation, window, plan, quiesce }: Parameters<Activities['prepare']>[0],
  signal: AbortSignal,
  tell: (details: unknown) => void,
): Promise<Prepared> {
  const host = deps.hosts.host(name);
  const cleaned: string[] = [];
  for (;;) {
    const answer = await host.prepare(
      {
        vm,
        operation,
        window,
        installation: deps.installationId,
        localDisks: plan.localDisks,
        setDisks: plan.setDisks,
        unquiescedDisks: plan.unquiesced,
        quiesce,
        windowLimitMs: plan.windowLimitMs,
      },
      { signal },
    );
    if (!('stale' in answer)) {
      const { gaps, guestOs, windowLimitMs, overlays } = answer;
      // Behind a dead run's cleaning up: what that had left counts against the quota.
      requirePlannedDisks(plan, answer.vm);
      await checkVolumes(deps, plan, signal);
      await makeCinderReady(deps, plan, windowLimitMs, signal);
      return { gaps, guestOs, windowLimitMs, parts: partsOf(overlays), cleaned: cleaned.join(' ') };
    }
    if (cleaned.length === mostDeadRuns) {
      throw new ActivityError('BUSY', `${plan.vm.name} is still held on ${name} by ${answer.stale.operation}.`, {
        advice: 'Release it on the host: stillpoint-host-agent release VM.',
        metadata: { holder: answer.stale.operation },
      });
    }
    tell({ cleaningUpAfter: answer.stale.operation });
    cleaned.push(await cleanUpAfterDeadRun(deps, host, { vm, ...answer.stale }, signal, tell));
  }
}

/**
 * The run may have waited for its turn for long: the VM must still have the disks that were planned, and each of them the volume that it had.
 *
 * @throws ActivityError VM_CHANGED, VOLUME_MISMATCH
 */
function requirePlannedDisks(plan: Plan, vm: HostVm): void {
  const planned = new Set([...plan.setDisks, ...plan.leftOut.map((disk) => disk.target)]);
  const added = vm.disks.find((disk) => !planned.has(disk.target));
  if (added !== undefined) {
    throw new ActivityError(
      'VM_CHANGED',
      `${vm.name} has got a disk ${added.target} since the snapshot was asked for.`,
      {
        advice: 'Ask for the snapshot again.',
        metadata: { disk: added.target },
      },
    );
  }
  for (const { target, volume } of plan.volumes) {
    if (vm.disks.find((disk) => disk.target === target)?.serial.toLowerCase() === volume.toLowerCase()) continue;
    throw new ActivityError('VOLUME_MISMATCH', `Disk ${target} of ${vm.name} is not volume ${volume} any more.`, {
      advice: 'Ask for the snapshot again.',
      metadata: { disk: target },
    });
  }
}

/**
 * Ends what a dead run left: only one run can be open under a VM's workflow id, and that is the one that asks. What it recorded stays; what it did not is
 * undone. The row decides, by the same conditional update as everywhere.
 */
export async function cleanUpAfterDeadRun(
  deps: ActivityDeps,
  host: HostClient,
  dead: { vm: string; operation: string; window: string },
  signal: AbortSignal,
  tell: (details: unknown) => void,
): Promise<string> {
  const row = await deps.catalogue.getSnapshot(dead.operation);
  if (row === undefined && dead.window !== '') {
    // Its record may exist elsewhere (a catalogue restored from a backup): undoing could take back a snapshot that somebody relies on.
    throw new ActivityError(
      'BUSY',
      `${dead.operation} holds the VM on ${host.name}, and the catalogue does not know it.`,
      {
        advice: 'Look at what it left, then release it on the host: stillpoint-host-agent release VM.',
        metadata: { holder: dead.operation },
      },
    );
  }
  const wasLeftOpen = row?.runId !== undefined && ['running', 'recording', 'undoing'].includes(row.state);
  if (wasLeftOpen && (await deps.catalogue.beginUndoing(row.snapshotId, row.runId ?? ''))) {
    const plan: Plan = { ...(row.plan as Plan), volumes: (row.plan as Partial<Plan>).volumes ?? [] };
    const everyVolume = plan.volumes.map((disk) => disk.target);
    const { pending, left } = await takeBackWindow(
      deps,
      { ...dead, host: host.name, plan, parts: [], mayBeThere: everyVolume, mayAppear: everyVolume },
      signal,
      tell,
    );
    await deps.catalogue.close(row.snapshotId, row.runId ?? '', {
      state: pending.length === 0 ? 'failed' : 'cleanup-pending',
      error: {
        code: 'WORKER_LOST',
        text: 'Its run ended without a word; the next run of this VM undid what it had made.',
      },
      pending,
      ...(left.length === 0 ? {} : { left: { window: dead.window, parts: left } }),
    });
  }
  await host.release({ vm: dead.vm, operation: dead.operation }, { signal });
  // It may have died just after its record, and Cinder's side still says that there is none.
  if (row?.state === 'complete' && row.result !== undefined) {
    await tellGrade(
      deps,
      row.result,
      row.parts.filter((part) => part.kind === 'volume'),
      signal,
    );
  }
  deps.log.info({ operation: dead.operation, window: dead.window, state: row?.state }, 'cleaned up after a dead run');
  return wasLeftOpen ? `Undid ${dead.operation}, whose run is dead.` : `Released ${dead.operation}, whose run is dead.`;
}
