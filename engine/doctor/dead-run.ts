import type { SnapshotRow, SnapshotState } from '../catalogue/catalogue.js';

/** Some run has taken the row over and has not written its end. */
export const inARun: readonly SnapshotState[] = ['running', 'recording', 'undoing', 'deleting'];

/** A snapshot's run that ends so is not recorded: whoever waited for it was told so. */
const unrecorded: readonly string[] = ['TERMINATED', 'FAILED', 'TIMED_OUT', 'CANCELLED'];
/** A deletion that fails or is cancelled may have left the snapshot whole, and have said so. */
const neverAbandoned: readonly string[] = ['TERMINATED', 'TIMED_OUT'];

/** The run that has taken the row over; `undefined`: the row does not say. */
export function ownRunOf({
  state,
  workflowId,
  runId,
  deletingRunId,
}: SnapshotRow): { workflowId: string; runId: string } | undefined {
  const own = state === 'deleting' ? deletingRunId : runId;
  return workflowId === undefined || own === undefined ? undefined : { workflowId, runId: own };
}

/**
 * Why the row of an unended run may be older than that run's end; `undefined`: the run died at its work, and what it left is nobody's. A catalogue that was
 * restored from a backup, or a standby that lacked the last transactions, has rows of runs that went on to their end.
 *
 * @param status Temporal's, of the row's own run; `undefined`: it has none
 * @param graded Cinder's snapshot, of this snapshot's parts, that carries a grade, which is written when it is recorded
 */
export function doubtAbout({ state }: SnapshotRow, status: string | undefined, graded: string | undefined) {
  const older = 'The catalogue may be older than that (restored from a backup, or a standby took over)';
  const isDeleted = state === 'deleting';
  if (status === undefined) {
    const what = isDeleted ? 'deleted, or left whole' : 'recorded';
    return `Temporal does not have its run any more, so nobody can say whether it was ${what}.`;
  }
  if (!(isDeleted ? neverAbandoned : unrecorded).includes(status)) {
    if (!isDeleted) return `Its run ended as ${status}. ${older}: somebody may have been told that it is recorded.`;
    return status === 'COMPLETED'
      ? `Its deletion ended as COMPLETED. ${older}: it is deleted.`
      : `Its deletion ended as ${status}. ${older}: it may have been left whole.`;
  }
  if (graded === undefined) return undefined;
  return `Its run ended as ${status}, but Cinder's snapshot ${graded} carries its grade. ${older}: it was recorded.`;
}

/** Both ways that a person has. */
export function waysOut(snapshotId: string): string {
  return `Nothing of it is touched. To keep it, nothing is to be done. To give it up: stillpoint snapshot cleanup ${snapshotId}, or stillpoint snapshot delete ${snapshotId}.`;
}
