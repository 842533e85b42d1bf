import type { DiskPart, RemovedPart, SnapshotVmResult } from '@stillpoint/workflows';
import { type ExpressionBuilder, type Kysely, type Selectable, sql, type Transaction, type Updateable } from 'kysely';

import type { AcceptRequest, Catalogue, HostRow, SnapshotRow, SnapshotState, TakeOverRequest } from './catalogue.js';
import { asCatalogueError, CatalogueError } from './errors.js';
import type { SnapshotsTable, Tables } from './tables.js';

/** Rows in these states may need their host again. */
const needsHost: SnapshotState[] = ['running', 'recording', 'undoing', 'complete', 'cleanup-pending', 'deleting'];

/**
 * The catalogue over any database that speaks PostgreSQL's SQL. Every decision between two runs is one conditional update: of two that come at once
 * the database lets one through, and the other sees that no row met its condition any more.
 */
export class SqlCatalogue implements Catalogue {
  readonly #db: Kysely<Tables>;
  readonly #onDisconnect: (() => Promise<void>) | undefined;

  constructor(db: Kysely<Tables>, onDisconnect: (() => Promise<void>) | undefined) {
    this.#db = db;
    this.#onDisconnect = onDisconnect;
  }

  // ---- hosts

  addHost({ name, address }: { name: string; address: string }): Promise<HostRow> {
    return asked(async () => {
      const fresh = { address, state: 'active' as const, added_at: new Date() };
      // A host that was lost and repaired comes back under its name.
      const row = await this.#db
        .insertInto('hosts')
        .values({ name, ...fresh })
        .onConflict((conflict) => conflict.column('name').doUpdateSet(fresh).where('hosts.state', '=', 'lost'))
        .returningAll()
        .executeTakeFirst();
      if (row === undefined) throw new CatalogueError('HOST_EXISTS', `There is a host '${name}' already.`);
      return hostRow(row);
    });
  }

  listHosts(): Promise<HostRow[]> {
    return asked(async () => (await this.#db.selectFrom('hosts').selectAll().orderBy('name').execute()).map(hostRow));
  }

  removeHost(name: string): Promise<void> {
    return asked(() =>
      this.#db.transaction().execute(async (transaction) => {
        const host = await transaction
          .selectFrom('hosts')
          .select('name')
          .where('name', '=', name)
          .forUpdate()
          .executeTakeFirst();
        if (host === undefined) throw new CatalogueError('HOST_NOT_FOUND', `There is no host '${name}'.`);
        const { needed } = await transaction
          .selectFrom('snapshots')
          .select((expression) => expression.fn.countAll<string>().as('needed'))
          .where('host', '=', name)
          .where('state', 'in', needsHost)
          .executeTakeFirstOrThrow();
        if (Number(needed) > 0) {
          throw new CatalogueError(
            'HOST_IN_USE',
            `${needed} snapshot(s) or running operations need the host '${name}'.`,
          );
        }
        await transaction.deleteFrom('hosts').where('name', '=', name).execute();
      }),
    );
  }

  markHostLost(name: string): Promise<HostRow> {
    return asked(async () => {
      const row = await this.#db
        .updateTable('hosts')
        .set({ state: 'lost' })
        .where('name', '=', name)
        .returningAll()
        .executeTakeFirst();
      if (row === undefined) throw new CatalogueError('HOST_NOT_FOUND', `There is no host '${name}'.`);
      return hostRow(row);
    });
  }

  // ---- snapshots: making

  accept(request: AcceptRequest): Promise<{ row: SnapshotRow; isNew: boolean }> {
    return asked(async () => {
      // Twice: the row that was in the way can be withdrawn before it is read.
      for (let attempt = 1; attempt <= 2; attempt += 1) {
        const made = await this.#db
          .insertInto('snapshots')
          .values({
            snapshot_id: request.snapshotId,
            vm: request.vm,
            vm_name: storable(request.vmName),
            name: request.name ?? null,
            description: request.description ?? null,
            quiesce: request.quiesce,
            state: 'accepted',
            idempotency_key: request.idempotencyKey ?? null,
            body_hash: request.bodyHash,
            created_at: new Date(),
            parts: '[]',
            pending: '[]',
          })
          .onConflict((conflict) => conflict.doNothing())
          .returningAll()
          .executeTakeFirst();
        if (made !== undefined) return { row: snapshotRow(made), isNew: true };
        if (request.idempotencyKey === undefined) break;
        const claimed = await this.#db
          .updateTable('snapshots')
          .set((row) => ({ claims: row('claims', '+', 1) }))
          .where('idempotency_key', '=', request.idempotencyKey)
          .where('body_hash', '=', request.bodyHash)
          .where('state', '=', 'accepted')
          .returningAll()
          .executeTakeFirst();
        const earlier =
          claimed ??
          (await this.#db
            .selectFrom('snapshots')
            .selectAll()
            .where('idempotency_key', '=', request.idempotencyKey)
            .executeTakeFirst());
        if (earlier === undefined) continue;
        if (earlier.body_hash === request.bodyHash) return { row: snapshotRow(earlier), isNew: false };
        throw new CatalogueError('IDEMPOTENCY_CONFLICT', `It belongs to the snapshot ${earlier.snapshot_id}.`);
      }
      throw new CatalogueError('SNAPSHOT_ID_USED', `The snapshot id ${request.snapshotId} is taken.`);
    });
  }

  withdraw({ snapshotId, claims }: Pick<SnapshotRow, 'snapshotId' | 'claims'>): Promise<void> {
    return asked(async () => {
      await this.#db
        .deleteFrom('snapshots')
        .where('snapshot_id', '=', snapshotId)
        .where('state', '=', 'accepted')
        .where('claims', '=', claims)
        .execute();
    });
  }

  takeOver(request: TakeOverRequest): Promise<SnapshotRow> {
    const taken = {
      vm_name: storable(request.vmName),
      host: request.host,
      name: storable(request.name),
      description: request.description === undefined ? null : storable(request.description),
      quiesce: request.quiesce,
      state: 'running' as const,
      workflow_id: request.workflowId,
      run_id: request.runId,
      plan: JSON.stringify(request.plan ?? null),
    };
    return asked(() =>
      this.#db.transaction().execute(async (transaction) => {
        await keepHost(transaction, request.host);
        const row = await transaction
          .insertInto('snapshots')
          .values({
            ...taken,
            snapshot_id: request.snapshotId,
            vm: request.vm,
            created_at: new Date(request.startedAt),
            parts: '[]',
            pending: '[]',
          })
          .onConflict((conflict) =>
            conflict
              .column('snapshot_id')
              .doUpdateSet(taken)
              .where('snapshots.state', '=', 'accepted')
              .where('snapshots.vm', '=', request.vm),
          )
          .returningAll()
          .executeTakeFirst();
        if (row !== undefined) return snapshotRow(row);
        const earlier = await transaction
          .selectFrom('snapshots')
          .selectAll()
          .where('snapshot_id', '=', request.snapshotId)
          .executeTakeFirst();
        if (earlier?.run_id === request.runId) return snapshotRow(earlier);
        throw new CatalogueError(
          'SNAPSHOT_ID_USED',
          `The snapshot id ${request.snapshotId} belongs to ${earlier?.workflow_id ?? 'another request'}.`,
        );
      }),
    );
  }

  beginRecording(snapshotId: string, runId: string): Promise<boolean> {
    // `complete` by this run: its final write was made, but the activity did not live to say so.
    return this.#change(
      snapshotId,
      { run_id: runId, from: ['running'], already: ['recording', 'complete'] },
      { state: 'recording' },
    );
  }

  beginUndoing(snapshotId: string, runId: string): Promise<boolean> {
    return this.#change(
      snapshotId,
      { run_id: runId, from: ['running', 'recording'], already: ['undoing'] },
      { state: 'undoing' },
    );
  }

  record(snapshotId: string, runId: string, result: SnapshotVmResult): Promise<boolean> {
    return this.#change(
      snapshotId,
      { run_id: runId, from: ['recording'], already: ['complete'] },
      {
        state: 'complete',
        ended_at: new Date(),
        grade: result.grade,
        window_id: result.window.id,
        result: JSON.stringify(result),
        parts: JSON.stringify(result.disks),
      },
    );
  }

  close(
    snapshotId: string,
    runId: string,
    end: {
      state: 'failed' | 'cancelled' | 'cleanup-pending';
      error: { code: string; text: string } | undefined;
      pending: string[];
      left?: { window: string; parts: DiskPart[] };
    },
  ): Promise<boolean> {
    const closed = {
      state: end.state,
      ended_at: new Date(),
      error: end.error === undefined ? null : JSON.stringify(end.error),
      pending: JSON.stringify(end.pending),
      ...(end.left === undefined ? {} : { window_id: end.left.window, parts: JSON.stringify(end.left.parts) }),
    };
    return asked(async () => {
      if (
        await this.#change(snapshotId, { run_id: runId, from: ['running', 'undoing'], already: [end.state] }, closed)
      ) {
        return true;
      }
      // A run whose first activity was refused never took its row over.
      const neverTaken = await this.#db
        .updateTable('snapshots')
        .set({ ...closed, run_id: runId })
        .where('snapshot_id', '=', snapshotId)
        .where('state', '=', 'accepted')
        .returning('snapshot_id')
        .executeTakeFirst();
      return neverTaken !== undefined;
    });
  }

  // ---- snapshots: deleting

  beginDeleting(snapshotId: string, run: { workflowId: string; runId: string }): Promise<boolean> {
    return asked(async () => {
      const row = await this.#db
        .updateTable('snapshots')
        .set({ state: 'deleting', workflow_id: run.workflowId, deleting_run_id: run.runId })
        .where('snapshot_id', '=', snapshotId)
        .where((where) =>
          where.or([
            where('state', 'in', ['complete', 'cleanup-pending', 'failed', 'cancelled']),
            // Only one run is open under a VM's workflow id: another one that was at work under it is over.
            where.and([
              where('state', 'in', ['running', 'recording', 'undoing', 'deleting']),
              where('workflow_id', '=', run.workflowId),
            ]),
          ]),
        )
        .returning('snapshot_id')
        .executeTakeFirst();
      return row !== undefined;
    });
  }

  finishDeleting(snapshotId: string, runId: string, merged: RemovedPart[]): Promise<boolean> {
    return asked(() =>
      this.#db.transaction().execute(async (transaction) => {
        const row = await transaction
          .updateTable('snapshots')
          .set({ state: 'deleted', ended_at: new Date(), parts: '[]', pending: '[]', error: null })
          .where('snapshot_id', '=', snapshotId)
          .where('deleting_run_id', '=', runId)
          .where('state', 'in', ['deleting', 'deleted'])
          .returningAll()
          .executeTakeFirst();
        if (row === undefined) return false;
        await moveImages(transaction, row, merged);
        return true;
      }),
    );
  }

  abandonDeleting(
    snapshotId: string,
    runId: string,
    end: { error: { code: string; text: string }; merged: RemovedPart[] },
  ): Promise<boolean> {
    return asked(() =>
      this.#db.transaction().execute(async (transaction) => {
        const row = await transaction
          .selectFrom('snapshots')
          .selectAll()
          .where('snapshot_id', '=', snapshotId)
          .where('deleting_run_id', '=', runId)
          .where('state', '=', 'deleting')
          .forUpdate()
          .executeTakeFirst();
        if (row === undefined) return false;
        const gone = new Set(end.merged.filter(isGone).map(thing));
        const parts = fromJson<DiskPart[]>(row.parts);
        const left = parts.filter((part) => !gone.has(thing(part)));
        const known = new Set(parts.map(thing));
        const found = end.merged.filter((part) => !isGone(part) && !known.has(thing(part)));
        // Once each: a Cinder that does not answer is pending without the id of the part that is known.
        const pending = [
          ...new Set([
            ...left.map((part) => whatIsPending(part, end.merged)),
            ...found.map(({ target, detail }) => `${target}: ${detail}`),
          ]),
        ];
        // With any part gone, or of which nobody can say that it is not, it is no snapshot of that window any more; until then it is as good as before.
        // And what another deletion has left is not whole, though this one has touched nothing.
        const wasWhole = row.result !== null && fromJson<string[]>(row.pending).length === 0;
        const isWhole = wasWhole && parts.every((part) => isUntouched(part, end.merged));
        await transaction
          .updateTable('snapshots')
          .set({
            state: isWhole ? 'complete' : 'cleanup-pending',
            parts: JSON.stringify(left),
            error: JSON.stringify(end.error),
            // Where nobody knows what is left, what was pending still is: the next deletion must not take it for nothing.
            ...(parts.length === 0 && pending.length === 0 ? {} : { pending: JSON.stringify(isWhole ? [] : pending) }),
          })
          .where('snapshot_id', '=', snapshotId)
          .execute();
        await moveImages(transaction, row, end.merged);
        return true;
      }),
    );
  }

  // ---- snapshots: reading

  getSnapshot(snapshotId: string): Promise<SnapshotRow | undefined> {
    return asked(async () => {
      const row = await this.#db
        .selectFrom('snapshots')
        .selectAll()
        .where('snapshot_id', '=', snapshotId)
        .executeTakeFirst();
      return row && snapshotRow(row);
    });
  }

  listSnapshots(query: {
    vm?: string;
    grade?: string;
    states?: readonly SnapshotState[];
    limit: number;
    after?: string;
  }): Promise<SnapshotRow[]> {
    const { vm, grade, states, limit, after } = query;
    return asked(async () => {
      let rows = this.#db.selectFrom('snapshots').selectAll().orderBy('seq', 'desc').limit(limit);
      rows = states === undefined ? rows.where('state', '!=', 'deleted') : rows.where('state', 'in', states);
      if (vm !== undefined) {
        const asked = storable(vm);
        rows = rows.where((where) => where.or([where('vm', '=', asked), where('vm_name', '=', asked)]));
      }
      if (grade !== undefined) rows = rows.where('grade', '=', grade);
      if (after !== undefined) rows = rows.where('seq', '<', (from) => seqOf(from, after));
      return (await rows.execute()).map(snapshotRow);
    });
  }

  // ---- window slots

  takeSlot(request: SlotRequest): Promise<SlotAnswer> {
    return asked(async () => {
      // Whose turn it is not only reads. A write would be synced to the disk at every poll, with the embedded database by the engine's one thread:
      // inside the windows for which this run waits.
      const seen = turnOf(request, await slotsIn(this.#db));
      if (seen !== 'not in the queue' && seen !== 'free') return seen;
      return this.#db.transaction().execute(async (transaction) => {
        // One at a time decides: this row is the queue's lock.
        await transaction.selectFrom('installation').select('id').forUpdate().executeTakeFirstOrThrow();
        await transaction
          .insertInto('window_slots')
          .values({
            run_id: request.runId,
            workflow_id: request.workflowId,
            snapshot_id: request.snapshotId,
            taken: false,
          })
          .onConflict((conflict) => conflict.column('run_id').doNothing())
          .execute();
        const turn = turnOf(request, await slotsIn(transaction));
        if (turn === 'not in the queue') throw new Error(`The run ${request.runId} is not in the queue it was put in.`);
        if (turn !== 'free') return turn;
        await transaction
          .updateTable('window_slots')
          .set({ taken: true })
          .where('run_id', '=', request.runId)
          .execute();
        return { taken: true as const };
      });
    });
  }

  giveBackSlot(runId: string): Promise<void> {
    return asked(async () => {
      await this.#db.deleteFrom('window_slots').where('run_id', '=', runId).execute();
    });
  }

  // ---- the whole

  ping(): Promise<void> {
    return asked(async () => {
      await sql`select 1`.execute(this.#db);
    });
  }

  installationId(): Promise<string> {
    return asked(async () => (await this.#db.selectFrom('installation').select('id').executeTakeFirstOrThrow()).id);
  }

  bindToTemporal(namespaceId: string): Promise<void> {
    return asked(async () => {
      const bound = await this.#db
        .updateTable('installation')
        .set({ temporal_namespace: namespaceId })
        .where((where) =>
          where.or([where('temporal_namespace', 'is', null), where('temporal_namespace', '=', namespaceId)]),
        )
        .returning('id')
        .executeTakeFirst();
      if (bound === undefined) {
        throw new CatalogueError(
          'CATALOGUE_OF_ANOTHER',
          'This database is the catalogue of an installation with another Temporal namespace.',
        );
      }
    });
  }

  async disconnect(): Promise<void> {
    await this.#db.destroy();
    await this.#onDisconnect?.();
  }

  /** One conditional update by a run; of a row that is `already` there by the same run: true, and nothing changes. */
  #change(
    snapshotId: string,
    by: { run_id: string; from: SnapshotState[]; already: SnapshotState[] },
    set: Updateable<SnapshotsTable>,
  ): Promise<boolean> {
    return asked(async () => {
      const changed = await this.#db
        .updateTable('snapshots')
        .set(set)
        .where('snapshot_id', '=', snapshotId)
        .where('run_id', '=', by.run_id)
        .where('state', 'in', by.from)
        .returning('snapshot_id')
        .executeTakeFirst();
      if (changed !== undefined) return true;
      const already = await this.#db
        .selectFrom('snapshots')
        .select('snapshot_id')
        .where('snapshot_id', '=', snapshotId)
        .where('run_id', '=', by.run_id)
        .where('state', 'in', by.already)
        .executeTakeFirst();
      return already !== undefined;
    });
  }
}

async function asked<T>(ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    throw asCatalogueError(error);
  }
}

type SlotRequest = Parameters<Catalogue['takeSlot']>[0];
type SlotAnswer = Awaited<ReturnType<Catalogue['takeSlot']>>;
type Slot = Selectable<Tables['window_slots']>;

function slotsIn(db: Kysely<Tables>): Promise<Slot[]> {
  return db.selectFrom('window_slots').selectAll().orderBy('seq').execute();
}

function turnOf({ runId, limit }: SlotRequest, slots: Slot[]): SlotAnswer | 'free' | 'not in the queue' {
  const mine = slots.findIndex((slot) => slot.run_id === runId);
  if (mine < 0) return 'not in the queue';
  if (slots[mine]?.taken === true) return { taken: true };
  const holders = slots.filter((slot, at) => slot.taken || at < mine);
  if (holders.length < limit) return 'free';
  return {
    taken: false,
    ahead: holders.filter((slot) => !slot.taken).length,
    holders: holders.map((slot) => ({
      snapshotId: slot.snapshot_id,
      workflowId: slot.workflow_id,
      runId: slot.run_id,
    })),
  };
}

/** Against a removal at the same time: the host is there, and stays until the transaction's end. */
async function keepHost(transaction: Transaction<Tables>, name: string): Promise<void> {
  const host = await transaction
    .selectFrom('hosts')
    .select('name')
    .where('name', '=', name)
    .forShare()
    .executeTakeFirst();
  if (host === undefined) throw new CatalogueError('HOST_NOT_FOUND', `There is no host '${name}' any more.`);
}

function isGone(part: RemovedPart): boolean {
  return part.outcome !== 'pending';
}

/** The deletion says of this part that it is still there, as it was. */
function isUntouched({ target }: DiskPart, removed: readonly RemovedPart[]): boolean {
  const of = removed.filter((part) => part.target === target);
  return of.length > 0 && of.every((part) => !isGone(part) && !part.begun);
}

/** What of a part is to go: the overlay, or Cinder's snapshot. */
function thing(part: DiskPart | RemovedPart): string {
  return part.kind === 'local' ? part.overlay : part.snapshot;
}

function whatIsPending(part: DiskPart, removed: RemovedPart[]): string {
  const detail = removed.find(({ target, outcome }) => target === part.target && outcome === 'pending')?.detail ?? '';
  const what =
    part.kind === 'local' ? `${part.overlay} is to be merged` : `Cinder's snapshot ${part.snapshot} is to be deleted`;
  return `${part.target}: ${detail === '' ? `${what}; delete the snapshot again.` : detail}`;
}

/** An image that was merged into another one is where every other snapshot of the VM finds its data from now on. */
async function moveImages(
  transaction: Transaction<Tables>,
  of: { vm: string; snapshot_id: string },
  merged: RemovedPart[],
): Promise<void> {
  const movedTo = new Map(
    merged.flatMap((part) => (part.kind === 'local' && isGone(part) ? [[part.overlay, part.path]] : [])),
  );
  const others = await transaction
    .selectFrom('snapshots')
    .select(['snapshot_id', 'parts'])
    .where('vm', '=', of.vm)
    .where('snapshot_id', '!=', of.snapshot_id)
    .where('parts', '!=', '[]')
    .forUpdate()
    .execute();
  for (const other of others) {
    const parts = fromJson<DiskPart[]>(other.parts);
    if (!parts.some((part) => part.kind === 'local' && movedTo.has(part.path))) continue;
    const moved = parts.map((part) =>
      part.kind === 'local' ? { ...part, path: movedTo.get(part.path) ?? part.path } : part,
    );
    await transaction
      .updateTable('snapshots')
      .set({ parts: JSON.stringify(moved) })
      .where('snapshot_id', '=', other.snapshot_id)
      .execute();
  }
}

function seqOf(from: ExpressionBuilder<Tables, 'snapshots'>, snapshotId: string) {
  return from.selectFrom('snapshots as page_end').select('page_end.seq').where('page_end.snapshot_id', '=', snapshotId);
}

/** PostgreSQL's text holds every character but U+0000. */
function storable(text: string): string {
  return text.replaceAll('\u0000', '\uFFFD');
}

function fromJson<T>(text: string): T {
  return JSON.parse(text) as T;
}

function hostRow(row: Selectable<Tables['hosts']>): HostRow {
  return { name: row.name, address: row.address, state: row.state, addedAt: row.added_at.toISOString() };
}

function snapshotRow(row: Selectable<SnapshotsTable>): SnapshotRow {
  return {
    snapshotId: row.snapshot_id,
    vm: row.vm,
    vmName: row.vm_name,
    host: row.host ?? undefined,
    name: row.name ?? undefined,
    description: row.description ?? undefined,
    quiesce: row.quiesce,
    state: row.state,
    workflowId: row.workflow_id ?? undefined,
    runId: row.run_id ?? undefined,
    deletingRunId: row.deleting_run_id ?? undefined,
    createdAt: row.created_at.toISOString(),
    claims: row.claims,
    endedAt: row.ended_at?.toISOString(),
    plan: row.plan === null ? undefined : fromJson(row.plan),
    result: row.result === null ? undefined : fromJson(row.result),
    parts: fromJson(row.parts),
    error: row.error === null ? undefined : fromJson(row.error),
    pending: fromJson(row.pending),
    windowId: row.window_id ?? undefined,
  };
}
