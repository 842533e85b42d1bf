import type { Activities, DiskPart, Plan, SnapshotRecord, SnapshotVmResult } from '@stillpoint/workflows';
import { isHostError } from '../hosts/errors.js';
import type { HostVm } from '../hosts/hosts.js';
import type { ActivityDeps } from './deps.js';
import { ActivityError } from './failure.js';
import { currentRun } from './run.js';
import { findVolumeParts, tellGrade } from './volume-record.js';

type Recorded = Awaited<ReturnType<Activities['recordSnapshot']>>;

/** Verifies on the host that every part is there, whatever the cuts' answers said, and writes the record. */
export async function recordSnapshot(
  deps: ActivityDeps,
  { host, vm: uuid, window, plan, record }: Parameters<Activities['recordSnapshot']>[0],
  signal: AbortSignal,
): Promise<Recorded> {
  const { runId } = currentRun();
  if (!(await deps.catalogue.beginRecording(plan.snapshotId, runId))) throw refused(plan);
  let vm: HostVm;
  try {
    vm = await deps.hosts.host(host).getVm(uuid, { signal });
  } catch (error) {
    if (isHostError(error, 'VM_NOT_FOUND', 'HOST_LOST')) return { recorded: false, missing: error.message };
    throw error;
  }
  const missing = missingPart(vm, plan, record);
  if (missing !== undefined) return { recorded: false, missing };
  const volumes = await findVolumeParts(deps, plan, window, signal);
  if (!Array.isArray(volumes)) return { recorded: false, missing: volumes.missing };
  const result: SnapshotVmResult = {
    snapshotId: plan.snapshotId,
    name: plan.name,
    vm: plan.vm,
    host,
    grade: record.grade,
    why: record.why,
    quiesce: record.quiesce,
    partial: record.partial,
    leftOut: plan.leftOut,
    unfrozen: record.unfrozen,
    disks: inOrder(plan, [...record.parts, ...volumes]),
    window: record.window,
    hypervisor: plan.hypervisor,
  };
  if (!(await deps.catalogue.record(plan.snapshotId, runId, result))) throw refused(plan);
  await tellGrade(deps, result, volumes, signal);
  return { recorded: true, result };
}

/** A part is there when the guest writes to the window's overlay: then the image below it holds the disk as it was at the cut. */
function missingPart(vm: HostVm, plan: Plan, { parts }: SnapshotRecord): string | undefined {
  for (const target of plan.localDisks) {
    const part = parts.find((candidate) => candidate.target === target);
    const active = vm.disks.find((disk) => disk.target === target)?.path;
    if (part === undefined) return `no part was made for ${target} of ${plan.vm.name}`;
    if (active !== part.overlay) {
      return `${target} of ${plan.vm.name} was not cut: it writes to ${active ?? 'nothing'}, not to ${part.overlay}`;
    }
  }
  return undefined;
}

function inOrder(plan: Plan, parts: DiskPart[]): DiskPart[] {
  return plan.setDisks.flatMap((target) => parts.filter((part) => part.target === target));
}

export function refused(plan: { snapshotId: string }): ActivityError {
  return new ActivityError('CATALOGUE_REFUSED', `Somebody else has decided over snapshot ${plan.snapshotId} first.`, {
    advice: 'See what became of it: stillpoint snapshot show.',
  });
}
