import { setTimeout as delay } from 'node:timers/promises';
import type { SlotHolder } from '../catalogue/catalogue.js';
import type { ActivityDeps } from './deps.js';
import { currentRun } from './run.js';

/** Every how many polls the runs ahead are asked for, so that a dead one does not hold up everybody behind it. */
const pollsPerCheck = 10;

/** Waits for one of the installation's window slots. */
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
