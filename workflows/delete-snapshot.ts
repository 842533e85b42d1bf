import { CancellationScope, upsertSearchAttributes } from '@temporalio/workflow';
import type { DeletePlan } from './activities.js';
import {
  type DeleteSnapshotInput,
  type DeleteSnapshotResult,
  type RemovedPart,
  searchAttributes,
  untouchedParts,
} from './contract.js';
import { type Failure, failureOf, runFailure } from './failure.js';
import { cell, RunReport } from './run-report.js';
import { steps } from './steps.js';

/** Deletes a snapshot: its volumes' snapshots in Cinder, and its overlays by merging them into their bases. What is gone stays gone when it fails or is cancelled. */
export async function deleteSnapshot(input: DeleteSnapshotInput): Promise<DeleteSnapshotResult> {
  const report = new RunReport();
  const plan = await accept(input, report);
  try {
    return await mergeParts(plan, report);
  } finally {
    await release(plan, report);
  }
}

async function accept(input: DeleteSnapshotInput, report: RunReport): Promise<DeletePlan> {
  try {
    const plan = await report.step('checking', 'check the request', () =>
      steps.acceptDelete.executeWithOptions({ summary: 'Checks the request and the snapshot' }, [input]),
    );
    upsertSearchAttributes([
      { key: searchAttributes.vm, value: plan.vm.name },
      { key: searchAttributes.host, value: plan.host },
      { key: searchAttributes.snapshot, value: plan.snapshotId },
    ]);
    report.isAbout(
      plan.snapshotId,
      `Deletion of snapshot **${cell(plan.name)}** of **${cell(plan.vm.name)}** on ${cell(plan.host)}.`,
      [],
    );
    return plan;
  } catch (error) {
    const failure = failureOf(error);
    report.failed(failure);
    throw runFailure(failure, [`Nothing was deleted: ${failure.text}.`, failure.advice]);
  }
}

async function mergeParts(plan: DeletePlan, report: RunReport): Promise<DeleteSnapshotResult> {
  const known = plan.parts.map((part) => part.target).join(', ');
  const targets = plan.leftOpen || known === '' ? 'whatever its run left' : known;
  const isCancelled = () => CancellationScope.current().consideredCancelled;
  // A step of a run that is cancelled already is not even begun.
  let disks: RemovedPart[] = isCancelled() && plan.isWhole === true ? untouchedParts(plan.parts) : [];
  let failure: Failure;
  try {
    const merged = await report.step('deleting', `delete ${targets}`, () =>
      steps.deleteParts.executeWithOptions(
        { summary: `Merges the overlays and deletes the volumes' snapshots of ${targets}` },
        [plan],
      ),
    );
    disks = merged.disks;
    if (merged.complete) {
      const result = await afterwards(report, 'write the outcome', () =>
        steps.closeDelete.executeWithOptions({ summary: 'Records that the snapshot is deleted' }, [
          { plan, outcome: { deleted: true, disks } },
        ]),
      );
      report.ends('**Deleted**');
      return result;
    }
    failure = isCancelled() ? cancelled : stillPending(disks);
  } catch (error) {
    failure = failureOf(error);
  }
  const sentences = [
    failure.code === 'CANCELLED'
      ? `The deletion of ${plan.name} of ${plan.vm.name} was cancelled.`
      : `Snapshot ${plan.name} of ${plan.vm.name} is not deleted: ${failure.text}.`,
    'No data is lost and the guest goes on; what is deleted already stays deleted.',
    failure.advice,
  ];
  const error = { code: failure.code, text: sentences.filter((sentence) => sentence !== '').join(' ') };
  await afterwards(report, 'write the outcome', () =>
    steps.closeDelete.executeWithOptions({ summary: 'Records that the snapshot is not deleted' }, [
      { plan, outcome: { deleted: false, error, disks } },
    ]),
  );
  report.failed(failure);
  throw runFailure(failure, sentences);
}

async function release(plan: DeletePlan, report: RunReport): Promise<void> {
  const request = { host: plan.host, vm: plan.vm.uuid, operation: plan.operation };
  await afterwards(report, 'release', () =>
    steps.release.executeWithOptions({ summary: `Gives ${plan.vm.name} back` }, [request]),
  ).catch((error: unknown) => {
    // The deletion's fate is decided; the next run of this VM gives it back in our stead.
    report.adds(
      `${plan.host} did not take the VM back (${cell(failureOf(error).text)}); the next run of this VM will.`,
    );
  });
}

function afterwards<T>(report: RunReport, name: string, run: () => Promise<T>): Promise<T> {
  return CancellationScope.nonCancellable(() => report.step(undefined, name, run));
}

const cancelled: Failure = { code: 'CANCELLED', text: 'the run was cancelled', advice: '' };

function stillPending(disks: readonly RemovedPart[]): Failure {
  const pending = disks.filter((disk) => disk.outcome === 'pending');
  return {
    code: 'CLEANUP_PENDING',
    text: pending.map((disk) => `${disk.target}: ${disk.detail}`).join('; ') || 'not every part could be deleted',
    advice: 'Delete it again when that has changed.',
  };
}
