import type { DiskPart, Quiesce, RemovedPart, SnapshotVmResult } from '@stillpoint/workflows';

/**
 * The catalogue: hosts, snapshots, window slots. One implementation over kysely, on PGlite (embedded, one engine) or PostgreSQL, with the same SQL.
 *
 * The snapshot's row decides between record and undo by one conditional update each (docs/architecture.md section 2): methods that answer a boolean
 * answer false when somebody else was first, and change nothing then. All are safe to repeat by the same run.
 *
 * Errors: CatalogueError with code CATALOGUE_UNAVAILABLE or CATALOGUE_DENIED (retry), CATALOGUE_FAILED, or one of those named below.
 */
export interface Catalogue {
  // ---- hosts
  /** Adds a host, or takes a lost one back. Errors: HOST_EXISTS. */
  addHost(host: { name: string; address: string }): Promise<HostRow>;
  listHosts(): Promise<HostRow[]>;
  /** Removes a host that no row needs. Errors: HOST_NOT_FOUND, HOST_IN_USE. */
  removeHost(name: string): Promise<void>;
  /** An administrator's word that the host is fenced and its guests are dead: the row stays as `lost`, and every wait for it ends. */
  markHostLost(name: string): Promise<HostRow>;

  // ---- snapshots
  /**
   * The API's `accepted` row. The same Idempotency-Key with the same hash answers the row that exists (if it is `accepted` still, with one claim more: its
   * sender may start the run that another one did not); with another hash: IDEMPOTENCY_CONFLICT.
   */
  accept(request: AcceptRequest): Promise<{ row: SnapshotRow; isNew: boolean }>;
  /** Deletes an `accepted` row whose start was refused, unless somebody has claimed it since it was read. Of any other: nothing. */
  withdraw(row: Pick<SnapshotRow, 'snapshotId' | 'claims'>): Promise<void>;
  /**
   * The run's first activity: takes the `accepted` row over, or makes one; state `running`. The same run again: answers the row.
   * Errors: SNAPSHOT_ID_USED, HOST_NOT_FOUND (the host was removed since).
   */
  takeOver(request: TakeOverRequest): Promise<SnapshotRow>;
  /** `running` -> `recording` (also true when this run is there already). */
  beginRecording(snapshotId: string, runId: string): Promise<boolean>;
  /** `running` | `recording` -> `undoing` (also true when this run is there already). */
  beginUndoing(snapshotId: string, runId: string): Promise<boolean>;
  /** The final write: needs `recording` by this run; state `complete`. */
  record(snapshotId: string, runId: string, result: SnapshotVmResult): Promise<boolean>;
  /** The final word of a run that recorded nothing; keeps what is pending. `running` | `undoing` by this run, or an `accepted` row that no run took over. */
  close(
    snapshotId: string,
    runId: string,
    end: {
      state: 'failed' | 'cancelled' | 'cleanup-pending';
      error: { code: string; text: string } | undefined;
      pending: string[];
      /** Parts that could not be taken back: they become the row's, so that deleting it merges them. */
      left?: { window: string; parts: DiskPart[] };
    },
  ): Promise<boolean>;
  /** `complete` | `cleanup-pending` | `failed` | `cancelled`, or in any state by a run of the same workflow id that is over -> `deleting` by this run. */
  beginDeleting(snapshotId: string, run: { workflowId: string; runId: string }): Promise<boolean>;
  /**
   * `deleting` -> `deleted`; every other snapshot of the VM whose image was one of `merged[].overlay` now has it in `merged[].path`.
   */
  finishDeleting(snapshotId: string, runId: string, merged: RemovedPart[]): Promise<boolean>;
  /** `deleting` -> `complete` where every part is told to be pending and untouched; else `cleanup-pending` with what is left of its parts. */
  abandonDeleting(
    snapshotId: string,
    runId: string,
    end: { error: { code: string; text: string }; merged: RemovedPart[] },
  ): Promise<boolean>;
  getSnapshot(snapshotId: string): Promise<SnapshotRow | undefined>;
  /** Newest first; `after` is the last id of the page before. `deleted` rows only when asked for by state. */
  listSnapshots(query: {
    vm?: string;
    grade?: string;
    states?: readonly SnapshotState[];
    limit: number;
    after?: string;
  }): Promise<SnapshotRow[]>;

  // ---- window slots
  /**
   * Takes one of `limit` slots for a run, or answers how many wait before it, and who holds the slots or waits before it (so that those of closed
   * runs can be voided: a dead one in the queue would hold up everybody behind it). First come, first served.
   */
  takeSlot(request: {
    snapshotId: string;
    workflowId: string;
    runId: string;
    limit: number;
  }): Promise<{ taken: true } | { taken: false; ahead: number; holders: SlotHolder[] }>;
  /** Gives back the slot of a run, or its place in the queue; of none: nothing. */
  giveBackSlot(runId: string): Promise<void>;

  /** Resolves when a trivial query is answered. */
  ping(): Promise<void>;
  /** Installation id: made once, with the first migration. */
  installationId(): Promise<string>;
  /**
   * Binds the catalogue for good to a Temporal namespace (its id), or sees that it is bound to this one: to engines of another one every run in here would look
   * like one that is over. Errors: CATALOGUE_OF_ANOTHER.
   */
  bindToTemporal(namespaceId: string): Promise<void>;
  /** Ends the connection; PGlite: releases the lock file. */
  disconnect(): Promise<void>;
}

export interface HostRow {
  name: string;
  /** host:port. */
  address: string;
  state: 'active' | 'lost';
  addedAt: string;
}

export interface SlotHolder {
  snapshotId: string;
  workflowId: string;
  runId: string;
}

export type SnapshotState =
  | 'accepted'
  | 'running'
  | 'recording'
  | 'undoing'
  | 'complete'
  | 'failed'
  | 'cancelled'
  | 'cleanup-pending'
  | 'deleting'
  | 'deleted';

export interface AcceptRequest {
  snapshotId: string;
  /** VM's UUID. */
  vm: string;
  vmName: string;
  name: string | undefined;
  description: string | undefined;
  quiesce: Quiesce;
  idempotencyKey: string | undefined;
  /** SHA-256 of the canonical body. */
  bodyHash: string;
}

export interface TakeOverRequest {
  snapshotId: string;
  vm: string;
  vmName: string;
  host: string;
  name: string;
  description: string | undefined;
  quiesce: Quiesce;
  workflowId: string;
  runId: string;
  /** ISO 8601. */
  startedAt: string;
  /** The run's Plan, kept so that the activity's repetition answers the same. */
  plan: unknown;
}

export interface SnapshotRow {
  snapshotId: string;
  vm: string;
  vmName: string;
  host: string | undefined;
  name: string | undefined;
  description: string | undefined;
  quiesce: Quiesce;
  state: SnapshotState;
  workflowId: string | undefined;
  /** The run that made it. */
  runId: string | undefined;
  /** The run that deletes it, or did so last. */
  deletingRunId: string | undefined;
  createdAt: string;
  /** How many requests have set out to start its run. */
  claims: number;
  endedAt: string | undefined;
  plan: unknown;
  result: SnapshotVmResult | undefined;
  /** The parts as they are now: paths follow the merges of other snapshots. */
  parts: DiskPart[];
  error: { code: string; text: string } | undefined;
  pending: string[];
  /** The window in which the parts were made. */
  windowId: string | undefined;
}
