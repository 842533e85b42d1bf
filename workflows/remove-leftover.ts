import { upsertSearchAttributes } from '@temporalio/workflow';
import type { Leftover } from './activities.js';
import { searchAttributes } from './contract.js';
import { failureOf, runFailure } from './failure.js';
import { cell, RunReport } from './run-report.js';
import { steps } from './steps.js';

/** One of `reconcile`'s repairs, under the workflow id of the VM: while it runs no snapshot of that VM is taken or deleted. */
export async function removeLeftover(leftover: Leftover): Promise<{ removed: boolean }> {
  const report = new RunReport();
  const [what, about, snapshotId] =
    leftover.kind === 'reservation'
      ? ([`the reservation by ${leftover.operation}`, `on **${cell(leftover.host)}**`, leftover.operation] as const)
      : ([`Cinder's snapshot ${leftover.volumeSnapshot}`, 'in Cinder', leftover.snapshotId] as const);
  upsertSearchAttributes([{ key: searchAttributes.snapshot, value: snapshotId }]);
  report.isAbout(snapshotId, `Removes ${cell(what)} ${about}, which is left of a run that is dead.`, []);
  try {
    const result = await report.step('deleting', 'remove what is left', () =>
      steps.removeLeftover.executeWithOptions({ summary: `Proves again that it is left over, and removes ${what}` }, [
        leftover,
      ]),
    );
    report.ends(result.removed ? '**Removed**' : '**It was gone already**');
    return result;
  } catch (error) {
    const failure = failureOf(error);
    report.failed(failure);
    throw runFailure(failure, [`Not removed: ${failure.text}.`, failure.advice]);
  }
}
