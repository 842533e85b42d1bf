import { createHash, randomUUID } from 'node:crypto';

import type { Progress } from '@stillpoint/workflows';
import type { FastifyBaseLogger } from 'fastify';

import type { Catalogue, SnapshotRow, SnapshotState } from '../catalogue/catalogue.js';
import type { SnapshotRequest } from '../contract/snapshot-input.js';
import { Problem } from './problems.js';
import { type Run, type RunFacts, type Runs, RunsUnavailable } from './runs.js';
import type { SnapshotView } from './schemas.js';
import { NoAnswerInTime, within } from './within.js';

export interface SnapshotDeskTimes {
  /** How long a run may take to answer the query of its progress, ms. */
  progressTimeoutMs: number;
  /** An `accepted` row without a run is given up when it is so old, ms. */
  acceptedLimitMs: number;
}

/** A run of which the API knows that it goes on, and the row as it was read last. */
interface Followed {
  run: Run;
  kind: 'snapshot' | 'delete';
  row: SnapshotRow;
}

/** Of a step that runs longer than this, people want to know why, ms. */
const longStepMs = 2_000;

/** Some run has taken the row over and has not written its end. */
const inARun: SnapshotState[] = ['running', 'recording', 'undoing', 'deleting'];
const inFlight: SnapshotState[] = ['accepted', ...inARun];

/**
 * Snapshots as the API's users see them: the catalogue's row, and while its run goes on what the run itself says. A followed run is never looked up in
 * the catalogue: people who watch a snapshot must not make its window longer.
 */
export class SnapshotDesk {
  readonly #catalogue: Catalogue;
  readonly #runs: Runs;
  readonly #times: SnapshotDeskTimes;
  readonly #log: FastifyBaseLogger;
  readonly #followed = new Map<string, Followed>();

  constructor(catalogue: Catalogue, runs: Runs, times: SnapshotDeskTimes, log: FastifyBaseLogger) {
    this.#catalogue = catalogue;
    this.#runs = runs;
    this.#times = times;
    this.#log = log;
  }

  /**
   * Starts a snapshot; answers its id. The row is there before the run, and withdrawn when the start is refused.
   *
   * @throws Problem VM_BUSY naming the holder, IDEMPOTENCY_CONFLICT, TEMPORAL_UNAVAILABLE (with the id, when the start may have arrived)
   */
  async take(
    vm: { uuid: string; name: string },
    request: SnapshotRequest,
    idempotencyKey: string | undefined,
  ): Promise<SnapshotRow> {
    const { row, isNew } = await this.#catalogue.accept({
      snapshotId: randomUUID(),
      vm: vm.uuid,
      vmName: vm.name,
      name: request.name,
      description: request.description,
      quiesce: request.quiesce ?? 'required',
      idempotencyKey,
      bodyHash: hashOf({ vm: vm.uuid, ...request }),
    });
    // The first request with this key was seen through; it is this one's answer, whatever has become of it.
    if (!isNew && !(await this.#neverStarted(row))) return row;

    const started = await this.#runs
      .startSnapshot({ ...request, vm: vm.uuid, snapshotId: row.snapshotId }, { vmName: vm.name })
      .catch(async (error: unknown) => {
        await this.#catalogue.withdraw(row);
        throw error;
      });
    if ('started' in started) {
      this.#followed.set(row.snapshotId, { run: started.started, kind: 'snapshot', row });
      return row;
    }
    if ('busy' in started) {
      await this.#catalogue.withdraw(row);
      throw busy(vm, started.busy);
    }
    throw startUnknown(row.snapshotId, started.unknown);
  }

  /** @throws Problem SNAPSHOT_NOT_FOUND */
  async view(snapshotId: string): Promise<SnapshotView> {
    const followed = this.#followed.get(snapshotId) ?? (await this.#find(snapshotId));
    if ('run' in followed) {
      const progress = await this.#runs.progress(followed.run, this.#times.progressTimeoutMs);
      const live = await this.#ifOpen(followed.run, progress);
      if (live !== undefined) return viewOf(followed.row, { ...followed, progress: live.progress });
      return this.#withSteps(await this.#viewOfEnded(snapshotId, followed));
    }
    return this.#withSteps(viewOf(followed));
  }

  /**
   * What an open run tells, or undefined: it is over. A terminated run tells its last words for ever, and a step that is repeated, or waits, is known to
   * Temporal and not to the run: so Temporal is asked where nothing has happened for a while. Steps of a window are too short for the question.
   */
  async #ifOpen(run: Run, progress: Progress | undefined): Promise<{ progress: Progress | undefined } | undefined> {
    if (progress?.state === 'done') return undefined;
    const step = progress?.steps.at(-1);
    if (step !== undefined && Date.now() - Date.parse(step.startedAt) - (step.ms ?? 0) < longStepMs)
      return { progress };
    const facts = await this.#runs.describe(run);
    if (facts?.isOpen !== true) return undefined;
    const isWaiting = progress !== undefined && progress.waiting === undefined && step?.ms === undefined;
    return { progress: isWaiting ? { ...progress, waiting: facts.waiting } : progress };
  }

  /** The steps of a run that is over, for as long as Temporal keeps it and a worker can tell; how long each took is what people ask afterwards. */
  async #withSteps(view: SnapshotView): Promise<SnapshotView> {
    if (view.run === null || view.state === 'deleted') return view;
    const progress = await this.#runs.progress(view.run, this.#times.progressTimeoutMs);
    return progress === undefined ? view : { ...view, progress: progressView(progress) };
  }

  /** As `view`, once the run is over or `signal` has aborted. */
  async viewAtEnd(snapshotId: string, signal: AbortSignal): Promise<SnapshotView> {
    const followed = this.#followed.get(snapshotId) ?? (await this.#find(snapshotId));
    if (!('run' in followed)) return this.view(snapshotId);
    const isOver = await this.#runs.ended(followed.run, signal).then(
      () => true,
      (error: unknown) => {
        if (signal.aborted) return false;
        throw error;
      },
    );
    // What a run told last is not asked then: one that was terminated would still say that it goes on.
    return isOver ? this.#withSteps(await this.#viewOfEnded(snapshotId, followed)) : this.view(snapshotId);
  }

  /**
   * A page of at most `limit` snapshots, newest first; `next` is the last id that was looked at, where more follow. Rows whose run is over without a word
   * are what the single view says they are: a page by state may be short, then.
   */
  async list(
    query: Omit<Parameters<Catalogue['listSnapshots']>[0], 'states'> & { state?: SnapshotState },
  ): Promise<{ snapshots: SnapshotView[]; next: string | undefined }> {
    const { state, limit, ...of } = query;
    const states = state === 'cleanup-pending' ? [state, ...inARun] : state && [state];
    const found = await this.#catalogue.listSnapshots({ ...of, limit: limit + 1, ...(states && { states }) });
    const page = found.slice(0, limit);
    const rows = await Promise.all(
      page.map((row) =>
        within(this.#times.progressTimeoutMs, this.#asItIs(row)).catch((error: unknown) => {
          // Then the list says what is written.
          if (error instanceof RunsUnavailable || error instanceof NoAnswerInTime) return row;
          throw error;
        }),
      ),
    );
    return {
      snapshots: rows.filter((row) => state === undefined || row.state === state).map((row) => viewOf(row)),
      next: found.length > limit ? page.at(-1)?.snapshotId : undefined,
    };
  }

  /**
   * Starts the deletion of a snapshot; one that goes on already is the same.
   *
   * @throws Problem SNAPSHOT_NOT_FOUND, SNAPSHOT_STATE, VM_BUSY, TEMPORAL_UNAVAILABLE
   */
  async remove(snapshotId: string): Promise<SnapshotRow> {
    const row = await this.#row(snapshotId);
    const goesOn =
      row.state !== 'deleting' && inFlight.includes(row.state) && (await this.#runOf(row, 'snapshot'))?.isOpen;
    // One whose run was terminated, and so never ended its row, is deleted like any other.
    if (row.state === 'deleted' || row.state === 'accepted' || goesOn) {
      throw new Problem(
        'SNAPSHOT_STATE',
        row.state === 'deleted'
          ? `The snapshot ${snapshotId} is deleted already.`
          : `The snapshot ${snapshotId} is ${row.state}. Wait for its end or cancel it, then delete it.`,
        { state: row.state },
      );
    }
    return this.#startDeletion(row, false);
  }

  /**
   * Finishes what is pending of a snapshot: its deletion, of one that has nothing else to lose.
   *
   * @throws Problem SNAPSHOT_NOT_FOUND, SNAPSHOT_STATE of any that is not cleanup-pending, VM_BUSY, TEMPORAL_UNAVAILABLE
   */
  async cleanUp(snapshotId: string): Promise<SnapshotRow> {
    const row = await this.#asItIs(await this.#row(snapshotId));
    if (row.state === 'cleanup-pending') return this.#startDeletion(row, true);
    const { state } = row;
    throw new Problem(
      'SNAPSHOT_STATE',
      inFlight.includes(state)
        ? `The snapshot ${snapshotId} is ${state}: its run goes on. Follow it: stillpoint snapshot show ${snapshotId} --wait.`
        : `The snapshot ${snapshotId} is ${state}: nothing of it is pending.${state === 'complete' ? ' To delete it: stillpoint snapshot delete.' : ''}`,
      { state },
    );
  }

  /** @throws Problem SNAPSHOT_NOT_FOUND, SNAPSHOT_STATE when no run of it goes on */
  async cancel(snapshotId: string): Promise<void> {
    const followed = this.#followed.get(snapshotId);
    if (followed !== undefined && (await this.#runs.cancel(followed.run))) return;
    const found = await this.#find(snapshotId);
    if ('run' in found && (await this.#runs.cancel(found.run))) return;
    const { state } = await this.#row(snapshotId);
    throw new Problem('SNAPSHOT_STATE', `No run of the snapshot ${snapshotId} goes on; there is nothing to cancel.`, {
      state,
    });
  }

  /**
   * Sees runs off that are over and that nobody looked at since. And ends `accepted` rows that no run will take over: their engine died before it could
   * start the run, or the run's first activity was refused. Rows that are young are left to whoever is about to start their run.
   */
  async sweep(): Promise<void> {
    for (const [snapshotId, followed] of this.#followed) {
      if (!(await this.#isOpen(followed.run))) await this.#viewOfEnded(snapshotId, followed);
    }
    const rows = await this.#catalogue.listSnapshots({ states: ['accepted'], limit: 200 });
    for (const row of rows) {
      if (Date.now() - Date.parse(row.createdAt) < this.#times.acceptedLimitMs) continue;
      const run = await this.#runs.latest(row.vm);
      if (run?.snapshotId !== row.snapshotId) {
        this.#log.warn(
          { snapshot: row.snapshotId, vm: row.vm },
          'No run was started for an accepted snapshot: withdrawn',
        );
        await this.#catalogue.withdraw(row);
      } else if (!run.isOpen) {
        await this.#closeRefused(row, run);
      }
    }
  }

  async #startDeletion(row: SnapshotRow, leftoversOnly: boolean): Promise<SnapshotRow> {
    if (row.host === undefined) {
      throw new Problem(
        'SNAPSHOT_STATE',
        `The snapshot ${row.snapshotId} is ${row.state}: it was never begun on a host, and there is nothing to delete.`,
        { state: row.state },
      );
    }
    const started = await this.#runs.startDelete(
      { vm: row.vm, snapshotId: row.snapshotId, ...(leftoversOnly && { leftoversOnly }) },
      { vmName: row.vmName, snapshotName: row.name ?? row.snapshotId },
    );
    if ('busy' in started) throw busy({ uuid: row.vm, name: row.vmName }, started.busy);
    if ('unknown' in started) throw startUnknown(row.snapshotId, started.unknown);
    this.#followed.set(row.snapshotId, { run: started.started, kind: 'delete', row: { ...row, state: 'deleting' } });
    return row;
  }

  async #row(snapshotId: string): Promise<SnapshotRow> {
    const row = await this.#catalogue.getSnapshot(snapshotId);
    if (row === undefined) {
      throw new Problem('SNAPSHOT_NOT_FOUND', `There is no snapshot ${snapshotId}. See: stillpoint snapshot list.`);
    }
    return row;
  }

  /** The engine that accepted the row died before it could start the run, or Temporal did not say whether it was started. */
  async #neverStarted(row: SnapshotRow): Promise<boolean> {
    if (row.state !== 'accepted' || this.#followed.has(row.snapshotId)) return false;
    return (await this.#runs.latest(row.vm))?.snapshotId !== row.snapshotId;
  }

  /** The row, with its run if that goes on: started by another engine, by a Temporal client, or before this engine's start. */
  async #find(snapshotId: string): Promise<Followed | SnapshotRow> {
    const row = await this.#row(snapshotId);
    if (!inFlight.includes(row.state)) return row;
    const kind = row.state === 'deleting' ? 'delete' : 'snapshot';
    const run = await this.#runOf(row, kind);
    // Of a row that a run has taken over Temporal keeps the run for as long as it is open.
    if (run === undefined) return row.state === 'accepted' ? row : leftBy(row, undefined);
    const followed: Followed = { run: { workflowId: run.workflowId, runId: run.runId }, kind, row };
    if (!run.isOpen) return followed;
    this.#followed.set(snapshotId, followed);
    return followed;
  }

  /** The row, as it was read or, where its run is over, as that has left it. */
  async #asItIs(row: SnapshotRow): Promise<SnapshotRow> {
    if (!inARun.includes(row.state)) return row;
    const facts = await this.#runOf(row, row.state === 'deleting' ? 'delete' : 'snapshot');
    if (facts?.isOpen === true) return row;
    // The run may have written its end since the row was read, and then ended.
    const now = await this.#row(row.snapshotId);
    const isOfTheSame = now.runId === row.runId && now.deletingRunId === row.deletingRunId;
    return isOfTheSame && inARun.includes(now.state) ? leftBy(now, facts) : now;
  }

  async #runOf(row: SnapshotRow, kind: Followed['kind']): Promise<RunFacts | undefined> {
    const runId = kind === 'delete' ? row.deletingRunId : row.runId;
    if (row.workflowId !== undefined && runId !== undefined) {
      return this.#runs.describe({ workflowId: row.workflowId, runId });
    }
    const latest = await this.#runs.latest(row.vm);
    return latest?.snapshotId === row.snapshotId ? latest : undefined;
  }

  async #isOpen(run: Run): Promise<boolean> {
    return (await this.#runs.describe(run))?.isOpen ?? false;
  }

  /** The run has said its last word; the row has it, unless the run did not live to write it. */
  async #viewOfEnded(snapshotId: string, followed: Followed): Promise<SnapshotView> {
    let row = await this.#row(snapshotId);
    if (row.state === 'deleting' && row.deletingRunId !== followed.run.runId) {
      // Another engine has begun its deletion.
      this.#followed.delete(snapshotId);
      return this.view(snapshotId);
    }
    if (inFlight.includes(row.state)) {
      const facts = await this.#runs.describe(followed.run);
      // `done` is said a moment before the run ends: what it writes is written.
      if (facts?.isOpen === true) return viewOf(row, { ...followed, progress: undefined });
      if (row.state === 'accepted' && facts !== undefined) row = await this.#closeRefused(row, facts);
      else row = leftBy(row, facts);
    } else if (followed.kind === 'delete' && row.state !== 'deleted' && row.error === undefined) {
      // A deletion that was refused at its first step has changed nothing in the row.
      row = { ...row, error: await this.#runs.failure(followed.run) };
    }
    this.#followed.delete(snapshotId);
    return viewOf(row, { run: followed.run });
  }

  async #closeRefused(row: SnapshotRow, run: RunFacts): Promise<SnapshotRow> {
    const error = (await this.#runs.failure(run)) ?? endedWithoutAWord(run);
    const state = error.code === 'CANCELLED' ? 'cancelled' : 'failed';
    await this.#catalogue.close(row.snapshotId, run.runId, { state, error, pending: [] });
    return this.#row(row.snapshotId);
  }
}

/** A row whose run is over and did not live to write its end: nothing happens to it by itself any more. */
function leftBy(row: SnapshotRow, run: RunFacts | undefined): SnapshotRow {
  const pending = `What its run made is taken back by stillpoint snapshot cleanup ${row.snapshotId}, or by the next snapshot of this VM.`;
  return {
    ...row,
    state: 'cleanup-pending',
    error: row.error ?? endedWithoutAWord(run),
    pending: row.pending.length > 0 ? row.pending : [pending],
  };
}

function endedWithoutAWord(run: RunFacts | undefined): { code: string; text: string } {
  return {
    code: 'RUN_ENDED',
    text:
      `The run ended${run === undefined ? '' : ` as ${run.status}`} before it could write its outcome. The guest is thawed by its host ` +
      '(stillpoint vms shows it); stillpoint snapshot cleanup, or the next snapshot of this VM, takes back what the run left.',
  };
}

function busy(vm: { uuid: string; name: string }, holder: RunFacts | undefined): Problem {
  const what =
    holder === undefined
      ? 'Another operation'
      : `${holder.workflowType}${holder.snapshotId === undefined ? '' : ` of snapshot ${holder.snapshotId}`} (since ${holder.startedAt})`;
  return new Problem(
    'VM_BUSY',
    `${what} runs on the VM ${vm.name}. Wait for its end, or cancel it: stillpoint snapshot cancel ${holder?.snapshotId ?? 'ID'}.`,
    holder === undefined
      ? {}
      : {
          holder: {
            workflowId: holder.workflowId,
            runId: holder.runId,
            workflowType: holder.workflowType,
            snapshotId: holder.snapshotId ?? null,
            startedAt: holder.startedAt,
          },
        },
  );
}

function startUnknown(snapshotId: string, cause: unknown): Problem {
  return new Problem(
    'TEMPORAL_UNAVAILABLE',
    `Temporal did not say whether the run was started. Look at the snapshot ${snapshotId} in a moment, or repeat the request with the same Idempotency-Key.`,
    { snapshotId },
    cause,
  );
}

/** SHA-256 over the request's JSON with sorted keys, so that their order does not matter. */
function hashOf(request: Record<string, unknown>): string {
  const sorted = Object.fromEntries(Object.entries(request).sort(([one], [other]) => (one < other ? -1 : 1)));
  return createHash('sha256').update(JSON.stringify(sorted)).digest('hex');
}

const stateOfProgress: Partial<Record<Progress['state'], SnapshotState>> = {
  recording: 'recording',
  undoing: 'undoing',
  deleting: 'deleting',
};

function viewOf(
  row: SnapshotRow,
  live: { run?: Run; kind?: Followed['kind']; progress?: Progress | undefined } = {},
): SnapshotView {
  const { result } = row;
  const { run = runOfRow(row), kind, progress } = live;
  const goesOn = progress && (kind === 'delete' ? 'deleting' : (stateOfProgress[progress.state] ?? 'running'));
  return {
    id: row.snapshotId,
    name: row.name ?? null,
    description: row.description ?? null,
    vm: { uuid: row.vm, name: row.vmName },
    host: row.host ?? null,
    quiesce: row.quiesce,
    state: goesOn ?? row.state,
    grade: result?.grade ?? null,
    why: result?.why ?? null,
    partial: result?.partial ?? null,
    createdAt: row.createdAt,
    endedAt: row.endedAt ?? null,
    window: result?.window ?? null,
    disks: row.parts,
    leftOut: result?.leftOut ?? [],
    unfrozen: result?.unfrozen ?? [],
    error: row.error ?? null,
    pending: row.pending,
    run: run ?? null,
    progress: progress === undefined ? null : progressView(progress),
  };
}

function progressView(progress: Progress): SnapshotView['progress'] {
  return {
    state: progress.state,
    waiting: progress.waiting ?? null,
    steps: progress.steps.map(({ name, startedAt, ms, error }) => ({
      name,
      startedAt,
      ms: ms ?? null,
      error: error ?? null,
    })),
  };
}

function runOfRow(row: SnapshotRow): Run | undefined {
  const runId = row.deletingRunId ?? row.runId;
  return row.workflowId === undefined || runId === undefined ? undefined : { workflowId: row.workflowId, runId };
}
