import {
  type DeleteSnapshotInput,
  PROGRESS_QUERY,
  type Progress,
  type SnapshotVmInput,
  searchAttributes,
  TASK_QUEUE,
  workflowIdOf,
} from '@stillpoint/workflows';
import {
  type Client,
  isGrpcServiceError,
  ServiceError,
  WorkflowExecutionAlreadyStartedError,
  type WorkflowExecutionDescription,
  WorkflowFailedError,
  WorkflowNotFoundError,
} from '@temporalio/client';
import { ApplicationFailure, CancelledFailure, defineSearchAttributeKey } from '@temporalio/common';

import type { Run, RunFacts, Runs, Started } from './runs.js';
import { RunsUnavailable } from './runs.js';

const vmKey = defineSearchAttributeKey(searchAttributes.vm.name, searchAttributes.vm.type);
const snapshotKey = defineSearchAttributeKey(searchAttributes.snapshot.name, searchAttributes.snapshot.type);
const quiesceKey = defineSearchAttributeKey(searchAttributes.quiesce.name, searchAttributes.quiesce.type);

/** Runs on a Temporal server. */
export class TemporalRuns implements Runs {
  readonly #client: Client;
  readonly #callTimeoutMs: number;

  /** @param callTimeoutMs how long one call to Temporal may take, with the client's own repetitions; default 10 000 */
  constructor(client: Client, callTimeoutMs = 10_000) {
    this.#client = client;
    this.#callTimeoutMs = callTimeoutMs;
  }

  startSnapshot(input: SnapshotVmInput & { snapshotId: string }, { vmName }: { vmName: string }): Promise<Started> {
    const quiesce = input.quiesce ?? 'required';
    return this.#start('snapshotVm', input.vm, input.snapshotId, {
      args: [input],
      staticSummary: summary(`Snapshot of ${vmName}`),
      staticDetails: [
        `Takes a live snapshot of **${markdown(vmName)}**${input.name === undefined ? '' : `, called **${markdown(input.name)}**`}.`,
        `Disks: ${input.disks?.join(', ') ?? 'all that can be snapshotted'}. Quiesce: ${quiesce}.`,
        ...(input.description === undefined ? [] : [markdown(input.description)]),
      ].join('\n\n'),
      typedSearchAttributes: [
        { key: vmKey, value: vmName },
        { key: snapshotKey, value: input.snapshotId },
        { key: quiesceKey, value: quiesce },
      ],
    });
  }

  startDelete(input: DeleteSnapshotInput, about: { vmName: string; snapshotName: string }): Promise<Started> {
    return this.#start('deleteSnapshot', input.vm, input.snapshotId, {
      args: [input],
      staticSummary: summary(`Deletion of a snapshot of ${about.vmName}`),
      staticDetails: `Deletes the snapshot **${markdown(about.snapshotName)}** of **${markdown(about.vmName)}**: its overlays are merged into their bases, and the snapshots of its volumes deleted.`,
      typedSearchAttributes: [
        { key: vmKey, value: about.vmName },
        { key: snapshotKey, value: input.snapshotId },
      ],
    });
  }

  async latest(vm: string): Promise<RunFacts | undefined> {
    return this.#describe(workflowIdOf(vm), undefined);
  }

  async describe(run: Run): Promise<RunFacts | undefined> {
    return this.#describe(run.workflowId, run.runId);
  }

  async progress(run: Run, timeoutMs: number): Promise<Progress | undefined> {
    try {
      return await this.#client.withDeadline(Date.now() + timeoutMs, () =>
        this.#client.workflow.getHandle(run.workflowId, run.runId).query<Progress>(PROGRESS_QUERY),
      );
    } catch (error) {
      // No worker, a worker that does not know the query yet, a run that is gone: nothing is known then, and nothing is wrong.
      if (error instanceof Error) return undefined;
      throw error;
    }
  }

  async ended(run: Run, signal: AbortSignal): Promise<void> {
    try {
      await this.#client.withAbortSignal(signal, () => this.#handle(run).result());
    } catch (error) {
      if (error instanceof WorkflowFailedError || error instanceof WorkflowNotFoundError) return;
      throw asUnavailable(error);
    }
  }

  async failure(run: Run): Promise<{ code: string; text: string } | undefined> {
    const facts = await this.describe(run);
    if (facts === undefined || facts.isOpen || facts.status === 'COMPLETED') return undefined;
    try {
      await this.#asked(() => this.#handle(run).result());
      return undefined;
    } catch (error) {
      if (!(error instanceof WorkflowFailedError)) throw error;
      const { cause } = error;
      if (cause instanceof ApplicationFailure) return { code: cause.type ?? 'INTERNAL', text: cause.message };
      if (cause instanceof CancelledFailure) return { code: 'CANCELLED', text: cause.message };
      return { code: `RUN_${facts.status}`, text: `The run ended as ${facts.status} without a word of its own.` };
    }
  }

  async cancel(run: Run): Promise<boolean> {
    if ((await this.describe(run))?.isOpen !== true) return false;
    try {
      await this.#asked(() => this.#handle(run).cancel());
      return true;
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return false;
      throw error;
    }
  }

  async ping(): Promise<void> {
    await this.#asked(() =>
      this.#client.workflowService.describeNamespace({ namespace: this.#client.options.namespace }),
    );
  }

  async #start(
    workflowType: string,
    vm: string,
    snapshotId: string,
    options: Pick<
      Parameters<Client['workflow']['start']>[1],
      'args' | 'staticSummary' | 'staticDetails' | 'typedSearchAttributes'
    >,
  ): Promise<Started> {
    const workflowId = workflowIdOf(vm);
    try {
      const handle = await this.#asked(() =>
        this.#client.workflow.start(workflowType, {
          ...options,
          taskQueue: TASK_QUEUE,
          workflowId,
          workflowIdConflictPolicy: 'FAIL',
          workflowIdReusePolicy: 'ALLOW_DUPLICATE',
        }),
      );
      return { started: { workflowId, runId: handle.firstExecutionRunId } };
    } catch (error) {
      const refused = error instanceof WorkflowExecutionAlreadyStartedError;
      if (!refused && !(error instanceof RunsUnavailable)) throw error;
      // The start may have arrived though its answer did not, or be the repetition of one that did: only Temporal knows.
      try {
        const found = await this.latest(vm);
        if (isRunOf(found, workflowType, snapshotId)) return { started: found };
        return refused ? { busy: found } : { unknown: error };
      } catch (lookUp) {
        return { unknown: lookUp };
      }
    }
  }

  async #describe(workflowId: string, runId: string | undefined): Promise<RunFacts | undefined> {
    try {
      return factsOf(await this.#asked(() => this.#client.workflow.getHandle(workflowId, runId).describe()));
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return undefined;
      throw error;
    }
  }

  #handle(run: Run) {
    return this.#client.workflow.getHandle(run.workflowId, run.runId, { followRuns: false });
  }

  async #asked<T>(ask: () => Promise<T>): Promise<T> {
    try {
      return await this.#client.withDeadline(Date.now() + this.#callTimeoutMs, ask);
    } catch (error) {
      throw asUnavailable(error);
    }
  }
}

function isRunOf(run: RunFacts | undefined, workflowType: string, snapshotId: string): run is RunFacts {
  return run !== undefined && run.workflowType === workflowType && run.snapshotId === snapshotId;
}

/** The client's errors for 'no answer' as ours; its answers ('not found', 'already started', 'failed') stay what they are. */
export function asUnavailable(error: unknown): unknown {
  if (error instanceof ServiceError || isGrpcServiceError(error)) {
    const reason = error instanceof Error ? (error.cause instanceof Error ? error.cause.message : error.message) : '';
    return new RunsUnavailable(`Temporal does not answer: ${reason}.`, { cause: error });
  }
  return error;
}

function factsOf(description: WorkflowExecutionDescription): RunFacts {
  return {
    workflowId: description.workflowId,
    runId: description.runId,
    workflowType: description.type,
    snapshotId: description.typedSearchAttributes.get(snapshotKey),
    isOpen: description.status.name === 'RUNNING' || description.status.name === 'PAUSED',
    waiting: waitOf(description.raw.pendingActivities ?? []),
    status: description.status.name,
    startedAt: description.startTime.toISOString(),
  };
}

type PendingActivity = NonNullable<WorkflowExecutionDescription['raw']['pendingActivities']>[number];

/** What a step that does not get on has told: its last failure, or what its heartbeats say that it waits for. */
function waitOf(pending: readonly PendingActivity[]): string | undefined {
  for (const { attempt, lastFailure, heartbeatDetails } of pending) {
    const waitingFor = heartbeatWait(heartbeatDetails?.payloads?.at(-1)?.data);
    const text = waitingFor ?? lastFailure?.message ?? undefined;
    if (text !== undefined) return attempt && attempt > 1 ? `${text} (try ${attempt})` : text;
  }
  return undefined;
}

/** `waitingFor` of a heartbeat (engine/activities/merge.ts). */
function heartbeatWait(data: Uint8Array | null | undefined): string | undefined {
  try {
    const details = JSON.parse(Buffer.from(data ?? []).toString()) as { waitingFor?: unknown } | null;
    return typeof details?.waitingFor === 'string' ? details.waitingFor : undefined;
  } catch {
    // No heartbeat, or one without details.
    return undefined;
  }
}

/** Names are other people's text, and the Temporal UI renders Markdown. */
function markdown(text: string): string {
  return text.replace(/[\\`*_[\]<>#|]/g, '\\$&').replace(/\n/g, '  \n');
}

/** One line of at most 200 bytes: more is refused (https://docs.temporal.io/workflow-execution#user-metadata). */
function summary(text: string): string {
  // By characters: half of one is no UTF-8, and Temporal would refuse the whole run.
  const characters = [...text.replace(/\s+/g, ' ')];
  while (Buffer.byteLength(characters.join('')) > 200) characters.pop();
  return characters.join('');
}
