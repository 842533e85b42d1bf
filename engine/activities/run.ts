import { createHash } from 'node:crypto';
import { Context } from '@temporalio/activity';

/** The run that the current activity belongs to. */
export function currentRun(): { workflowId: string; runId: string } {
  const execution = Context.current().info.workflowExecution;
  if (execution === undefined) throw new TypeError('this activity was not started by a workflow');
  return execution;
}

/** Whether the current activity's run is of the type `snapshotDisks`. */
export function isOnlyForVolumes(): boolean {
  return Context.current().info.workflowType === 'snapshotDisks';
}

/** A version 4 UUID that a run makes of itself: a repeated activity makes the same one again. `purpose` tells several of a run apart. */
export function idOfRun(runId: string, purpose: string): string {
  const bytes = createHash('sha256').update(`${purpose}\n${runId}`).digest().subarray(0, 16);
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}
