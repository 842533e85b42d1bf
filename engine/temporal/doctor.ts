import { setTimeout as delay } from 'node:timers/promises';
import { type DoctorReport, type ReconcileInput, TASK_QUEUE } from '@stillpoint/workflows';
import {
  type Client,
  ScheduleAlreadyRunning,
  type ScheduleHandle,
  ScheduleNotFoundError,
  type ScheduleOptions,
  ScheduleOverlapPolicy,
  WorkflowFailedError,
  WorkflowNotFoundError,
} from '@temporalio/client';
import { ApplicationFailure } from '@temporalio/common';
import type { Logger } from 'pino';

/** One run of `reconcile`. */
export interface DoctorRunFacts {
  /** Its workflow id. */
  id: string;
  state: 'running' | 'done' | 'failed';
  /** ISO 8601. */
  startedAt: string;
  error: { code: string; text: string } | null;
  report: DoctorReport | null;
}

/** Before the workflow ids of what people ask for. */
const askedFor = 'stillpoint-doctor-';

/** Runs of `reconcile` on a Temporal server: those that people start, and those of the installation's schedule. Rejects with the client's errors. */
export class TemporalDoctor {
  readonly #client: Client;
  readonly #schedule: ScheduleHandle;

  constructor(client: Client, installationId: string) {
    this.#client = client;
    this.#schedule = client.schedule.getHandle(scheduleIdOf(installationId));
  }

  /** Starts one; `id` is the caller's, and names the run from then on. */
  async start(id: string, input: ReconcileInput): Promise<DoctorRunFacts> {
    const workflowId = `${askedFor}${id}`;
    await this.#client.workflow.start('reconcile', {
      taskQueue: TASK_QUEUE,
      workflowId,
      args: [input],
      staticSummary: summaryOf(input.repair === true),
    });
    return { id: workflowId, state: 'running', startedAt: new Date().toISOString(), error: null, report: null };
  }

  /** Waits for its end until `signal` aborts. Undefined: there is none, or Temporal keeps it no longer. */
  async run(id: string, signal?: AbortSignal): Promise<DoctorRunFacts | undefined> {
    const handle = this.#client.workflow.getHandle(id, undefined, { followRuns: false });
    try {
      if (signal !== undefined) {
        await this.#client
          .withAbortSignal(signal, () => handle.result())
          .catch((error: unknown) => {
            if (!signal.aborted && !(error instanceof WorkflowFailedError)) throw error;
          });
      }
      const { type, status, startTime } = await handle.describe();
      if (type !== 'reconcile') return undefined;
      const startedAt = startTime.toISOString();
      if (status.name === 'RUNNING' || status.name === 'PAUSED')
        return { id, state: 'running', startedAt, error: null, report: null };
      return { id, startedAt, ...(await endOf(handle.result() as Promise<DoctorReport>)) };
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return undefined;
      throw error;
    }
  }

  /** The last run of the schedule that has ended. Undefined: there was none yet. */
  async last(): Promise<DoctorRunFacts | undefined> {
    try {
      const { recentActions } = (await this.#schedule.describe()).info;
      for (const { action } of recentActions.toReversed()) {
        const run = await this.run(action.workflow.workflowId);
        if (run !== undefined && run.state !== 'running') return run;
      }
      return undefined;
    } catch (error) {
      if (error instanceof ScheduleNotFoundError) return undefined;
      throw error;
    }
  }
}

async function endOf(result: Promise<DoctorReport>): Promise<Pick<DoctorRunFacts, 'state' | 'error' | 'report'>> {
  try {
    return { state: 'done', error: null, report: await result };
  } catch (error) {
    if (!(error instanceof WorkflowFailedError)) throw error;
    const { cause } = error;
    const failed =
      cause instanceof ApplicationFailure
        ? { code: cause.type ?? 'INTERNAL', text: cause.message }
        : { code: 'RUN_ENDED', text: `The run ended without a report: ${cause?.message ?? error.message}.` };
    return { state: 'failed', error: failed, report: null };
  }
}

/** One an installation. */
export function scheduleIdOf(installationId: string): string {
  return `stillpoint-reconcile-${installationId}`;
}

/**
 * Makes the installation's schedule of `reconcile`, or brings the one that is there to `everyMs`; what an administrator has paused stays so. Tries again,
 * visibly, every `againMs` (default 60 000) until it is made: an engine works without it.
 */
export async function keepSchedule(
  client: Client,
  {
    installationId,
    everyMs,
    log,
    signal,
    againMs = 60_000,
  }: { installationId: string; everyMs: number; log: Logger; signal: AbortSignal; againMs?: number },
): Promise<void> {
  while (!signal.aborted) {
    try {
      await client.withAbortSignal(signal, () => madeSchedule(client, installationId, everyMs));
      return;
    } catch (error) {
      if (signal.aborted) return;
      log.warn({ err: error, againMs }, "Temporal does not take the doctor's schedule; tried again");
      await delay(againMs, undefined, { signal }).catch(() => {});
    }
  }
}

async function madeSchedule(client: Client, installationId: string, everyMs: number): Promise<void> {
  const scheduleId = scheduleIdOf(installationId);
  const schedule = {
    scheduleId,
    spec: { intervals: [{ every: everyMs }] },
    policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: '1 minute' },
    action: {
      type: 'startWorkflow',
      workflowType: 'reconcile',
      workflowId: scheduleId,
      taskQueue: TASK_QUEUE,
      args: [{ repair: true }],
      staticSummary: summaryOf(true),
    },
  } satisfies ScheduleOptions;
  try {
    await client.schedule.create(schedule);
  } catch (error) {
    if (!(error instanceof ScheduleAlreadyRunning)) throw error;
    await client.schedule.getHandle(scheduleId).update(({ state }) => ({ ...schedule, state }));
  }
}

function summaryOf(repair: boolean): string {
  return repair
    ? 'Finds what no run could clean up, and repairs what is unambiguous'
    : 'Finds what no run could clean up';
}
