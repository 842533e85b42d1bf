import { upsertSearchAttributes } from '@temporalio/workflow';
import type { Leftover } from './activities.js';
import { searchAttributes } from './contract.js';
import { failureOf, runFailure } from './failure.js';
import { cell, RunReport } from './run-report.js';
import { steps } from './steps.js';

/** One of `reconcile`'s repairs, under the workflow id of the VM: while it runs no snapshot of that VM is taken or deleted. */
export async function removeLeftover(leftover: Leftover): Promise<{ removed: boolean }> {
  const report = new RunReport();
  const { what, about, snapshotId } = wordsFor(leftover);
  if (snapshotId !== undefined) upsertSearchAttributes([{ key: searchAttributes.snapshot, value: snapshotId }]);
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

/**
 * The input in words. Whoever can start a run may give it any input, and the activity is what checks it: here nothing may be thrown, because Temporal would
 * repeat the task for ever, and hold the VM's workflow id meanwhile.
 */
function wordsFor(given: unknown): { what: string; about: string; snapshotId: string | undefined } {
  const input = (typeof given === 'object' && given !== null ? given : {}) as Record<string, unknown>;
  const word = (key: string) => (typeof input[key] === 'string' ? input[key].slice(0, 64) : 'nothing that it names');
  const isReservation = input.kind === 'reservation';
  const snapshotId = input[isReservation ? 'operation' : 'snapshotId'];
  return {
    what: isReservation ? `the reservation by ${word('operation')}` : `Cinder's snapshot ${word('volumeSnapshot')}`,
    about: isReservation ? `on **${cell(word('host'))}**` : 'in Cinder',
    // A longer one Temporal would refuse.
    snapshotId: typeof snapshotId === 'string' && snapshotId.length <= 64 ? snapshotId : undefined,
  };
}
