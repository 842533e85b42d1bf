import {
  type DeletePlan,
  type DeleteSnapshotInput,
  type Plan,
  type SnapshotVmInput,
  workflowIdOf,
} from '@stillpoint/workflows';
import type { z } from 'zod';
import type { SnapshotRow } from '../catalogue/catalogue.js';
import { isCinderError } from '../cinder/errors.js';
import { deleteSnapshotInput, inputFaults, snapshotVmInput } from '../contract/snapshot-input.js';
import { doubtAbout, inARun, ownRunOf, waysOut } from '../doctor/dead-run.js';
import type { ActivityDeps } from './deps.js';
import { candidates, chooseDisks } from './disks.js';
import { ActivityError, cloudOf } from './failure.js';
import { findRunningVm } from './find-vm.js';
import { currentRun, idOfRun, isOnlyForVolumes } from './run.js';
import { whoseDisks } from './volume-disks.js';
import { isGraded, ownMetadata } from './volume-names.js';

/** How long the guest agent may take to freeze where the request does not say, ms. */
const defaultFreezeTimeoutMs = 30_000;

/** The first activity of `snapshotVm`: whoever started the run, the same checks, and the same row. */
export async function acceptSnapshot(deps: ActivityDeps, given: SnapshotVmInput, signal: AbortSignal): Promise<Plan> {
  const input = checked(snapshotVmInput, given);
  const run = currentRun();
  requireWorkflowId(run.workflowId, input.vm);
  const snapshotId = input.snapshotId ?? idOfRun(run.runId, 'snapshot');

  // Repeated after its answer was lost: what was decided stays decided.
  const known = await deps.catalogue.getSnapshot(snapshotId);
  if (known?.runId === run.runId && known.state === 'running') return known.plan as Plan;

  const { host, vm } = await findRunningVm(deps.hosts, input.vm, signal);
  const quiesce = input.quiesce ?? 'required';
  if (vm.state === 'paused' && quiesce !== 'skip') {
    throw new ActivityError('VM_PAUSED', `${vm.name} is paused on ${host}: its file systems cannot be frozen.`, {
      advice: 'Resume the VM, or ask for quiesce=skip.',
    });
  }
  const disks = chooseDisks(vm, input, await whoseDisks(deps.cloud, vm, candidates(vm, input), signal));
  const [local] = disks.localDisks;
  if (isOnlyForVolumes() && local !== undefined) {
    throw new ActivityError(
      'LOCAL_DISK_IN_SET',
      `${local} of ${vm.name} is a disk of the host, and snapshotDisks takes Ceph volumes only.`,
      {
        advice: 'Name the Ceph disks (disks), or start snapshotVm, which takes any set.',
        metadata: { disk: local },
      },
    );
  }
  const { hypervisor } = await deps.hosts.host(host).facts({ signal });
  const startedAt = new Date().toISOString();
  const plan: Plan = {
    snapshotId,
    name: input.name ?? known?.name ?? `snapshot ${startedAt.slice(0, 19).replace('T', ' ')} UTC`,
    vm: { uuid: input.vm, name: vm.name },
    host,
    quiesce,
    ...disks,
    freezeTimeoutMs: input.freezeTimeoutMs ?? defaultFreezeTimeoutMs,
    windowLimitMs: input.windowLimitMs ?? 0,
    hypervisor,
  };
  const row = await deps.catalogue.takeOver({
    snapshotId,
    vm: input.vm,
    vmName: vm.name,
    host,
    name: plan.name,
    description: input.description,
    quiesce,
    ...run,
    startedAt,
    plan,
  });
  return row.plan as Plan;
}

/** The first activity of `deleteSnapshot`. */
export async function acceptDelete(deps: ActivityDeps, given: DeleteSnapshotInput): Promise<DeletePlan> {
  const input = checked(deleteSnapshotInput, given);
  const run = currentRun();
  requireWorkflowId(run.workflowId, input.vm);
  const row = await deps.catalogue.getSnapshot(input.snapshotId);
  if (row === undefined || row.vm !== input.vm || row.state === 'deleted') {
    throw new ActivityError('SNAPSHOT_NOT_FOUND', `VM ${input.vm} has no snapshot ${input.snapshotId}.`, {
      advice: 'See its snapshots: stillpoint snapshot list.',
    });
  }
  if (input.provenDead === true) await requireDeadRun(deps, row, run.runId);
  if (input.leftoversOnly === true && !(await isLeftover(deps, row))) {
    throw new ActivityError('SNAPSHOT_STATE', `Nothing of snapshot ${input.snapshotId} is left over.`, {
      advice: 'See its state: stillpoint snapshot show. To delete it as it is: stillpoint snapshot delete.',
      metadata: { state: row.state },
    });
  }
  // Before the row is taken: as `deleting` it would stay so for ever.
  if (row.host === undefined) {
    throw new ActivityError('SNAPSHOT_STATE', `Snapshot ${input.snapshotId} was never begun on a host.`);
  }
  if (!(await deps.catalogue.beginDeleting(input.snapshotId, run))) {
    throw new ActivityError(
      'SNAPSHOT_STATE',
      `Snapshot ${input.snapshotId} is ${row.state}: it cannot be deleted now.`,
      {
        advice: 'Wait until its run has ended, or cancel that.',
        metadata: { state: row.state },
      },
    );
  }
  const planned = row.plan as Plan | undefined;
  // Who undid it may have been able to say what is left in Cinder, and not what is left on the host: that looks for it by the windows' ids.
  const knowsParts =
    (planned?.localDisks ?? []).length > 0 ? row.parts.some(({ kind }) => kind === 'local') : row.parts.length > 0;
  return {
    operation: idOfRun(run.runId, 'delete'),
    snapshotId: row.snapshotId,
    name: row.name ?? row.snapshotId,
    vm: { uuid: row.vm, name: row.vmName },
    host: row.host,
    window: row.windowId ?? '',
    parts: row.parts,
    volumes: planned?.volumes ?? [],
    isWhole: row.state === 'complete',
    leftOpen: row.result === undefined && !knowsParts && (row.endedAt === undefined || row.pending.length > 0),
  };
}

/** What was found is proven again before anything is changed: the catalogue may have been restored since. */
async function requireDeadRun(deps: ActivityDeps, row: SnapshotRow, ownRunId: string): Promise<void> {
  const isTaken = row.state === 'deleting' && row.deletingRunId === ownRunId;
  if (!inARun.includes(row.state) || isTaken) return;
  const run = ownRunOf(row);
  const status = run && (await deps.runs.statusOf(run.workflowId, run.runId));
  const doubt = doubtAbout(row, status, await gradedPart(deps, row));
  if (doubt === undefined) return;
  throw new ActivityError('SNAPSHOT_STATE', `Snapshot ${row.snapshotId} is ${row.state}. ${doubt}`, {
    advice: waysOut(row.snapshotId),
    metadata: { state: row.state },
  });
}

/** @throws ActivityError SNAPSHOT_STATE where Cinder does not answer: a repair that waited for it would hold up the VM's next snapshot */
async function gradedPart(deps: ActivityDeps, row: SnapshotRow): Promise<string | undefined> {
  if (((row.plan as Partial<Plan> | undefined)?.volumes ?? []).length === 0) return undefined;
  const metadata = ownMetadata({ installation: deps.installationId, snapshot: row.snapshotId });
  try {
    const inCinder = await cloudOf(deps).cinder.findSnapshots({ metadata });
    return inCinder.find((each) => isGraded(each.metadata))?.id;
  } catch (error) {
    if (!isCinderError(error)) throw error;
    const text = `Whether snapshot ${row.snapshotId} was recorded is not known: Cinder did not answer. ${error.message}`;
    throw new ActivityError('SNAPSHOT_STATE', text, { metadata: { state: row.state }, cause: error });
  }
}

/**
 * Whether a run has left the row as it is. Only one run is open under a VM's workflow id, and that is the one that asks; but a worker of the dead one may
 * still be about to record: whoever comes second is refused.
 */
async function isLeftover({ catalogue }: ActivityDeps, row: SnapshotRow): Promise<boolean> {
  if (row.state === 'running' || row.state === 'recording') {
    return await catalogue.beginUndoing(row.snapshotId, row.runId ?? '');
  }
  return row.state === 'undoing' || row.state === 'deleting' || row.state === 'cleanup-pending';
}

export function checked<T>(schema: z.ZodType<T>, given: unknown): T {
  const parsed = schema.safeParse(given);
  if (parsed.success) return parsed.data;
  const faults = inputFaults(parsed.error);
  const text = faults.map(({ field, message }) => (field === '' ? message : `${field} ${message}`)).join('; ');
  throw new ActivityError('INPUT_INVALID', `The input is not valid: ${text}.`, {
    advice: 'Correct the input; docs/workflows.md has its schema.',
    metadata: Object.fromEntries(faults.map(({ field, message }) => [field === '' ? 'input' : field, message])),
  });
}

export function requireWorkflowId(workflowId: string, vm: string): void {
  const right = workflowIdOf(vm);
  if (workflowId === right) return;
  throw new ActivityError(
    'WORKFLOW_ID_WRONG',
    `This run's workflow id is ${workflowId}; of VM ${vm} it must be ${right}.`,
    {
      advice: `Start it again with the workflow id ${right}: one operation at a time per VM.`,
      metadata: { workflowId: right },
    },
  );
}
