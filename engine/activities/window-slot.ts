import { setTimeout as delay } from 'node:timers/promises';
import { ApplicationFailure } from '@temporalio/common';
import type { SlotHolder } from '../catalogue/catalogue.js';
import type { ActivityDeps } from './deps.js';
import { currentRun } from './run.js';

/**
 * Who is further behind does not wait in the worker, but is asked to come again: its place is kept in the catalogue, and the worker's activities are for those
 * whose turn is near, above all for the windows that are open.
 */
const mostAhead = 100;
const comeAgainMs = 10_000;

/** Every how many polls the runs ahead are asked for, so that a dead one does not hold up everybody behind it. */
const pollsPerCheck = 10;

/**
 * Waits for one of the installation's window slots.
 *
 * @throws ApplicationFailure WINDOW_QUEUED, which Temporal repeats, where very many are ahead
 */
export async function takeWindowSlot(
  deps: ActivityDeps,
  snapshotId: string,
  signal: AbortSignal,
  tell: (details: unknown) => void,
): Promise<void> {
  const { windowSlots: limit = 4, slotPollMs = 500 } = deps.settings ?? {};
  const run = currentRun();
  for (let poll = 0; ; poll += 1) {
    const answer = await deps.catalogue.takeSlot({ snapshotId, ...run, limit });
    if (answer.taken) return;
    if (answer.ahead > mostAhead) {
      throw ApplicationFailure.create({
        type: 'WINDOW_QUEUED',
        message: `${answer.ahead} snapshots are ahead of this one; it comes again in ${comeAgainMs / 1_000} s and keeps its place.`,
        nextRetryDelay: comeAgainMs,
      });
    }
    tell({ ahead: answer.ahead });
    if (poll % pollsPerCheck === 0) {
      for (const holder of answer.holders) {
        if (await isOver(deps, holder)) await deps.catalogue.giveBackSlot(holder.runId);
      }
    }
    await delay(slotPollMs, undefined, { signal }).catch(() => {
      throw signal.reason;
    });
  }
}

/** Temporal may be away for a moment: that is no reason for a run that waits to fail. */
async function isOver({ runs, log }: ActivityDeps, holder: SlotHolder): Promise<boolean> {
  try {
    return await runs.isClosed(holder.workflowId, holder.runId);
  } catch (error) {
    log.warn(
      { err: error, holder: holder.workflowId },
      'Temporal did not say whether a run ahead is over; asked again.',
    );
    return false;
  }
}
