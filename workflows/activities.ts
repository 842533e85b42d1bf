import type {
  DeleteSnapshotInput,
  DeleteSnapshotResult,
  DiskPart,
  DoctorReport,
  Finding,
  Gap,
  Grade,
  LeftOutDisk,
  LocalPart,
  Quiesce,
  ReconcileInput,
  RemovedPart,
  SnapshotVmInput,
  SnapshotVmResult,
  VolumePart,
  WindowFacts,
} from './contract.js';

/**
 * What the workflows need of the world. engine/activities/ implements it. Plain JSON goes in and out.
 * Failures are ApplicationFailures whose type is a code of contract.ts or of the host agent; `nonRetryable` says whether repeating can help.
 */
export interface Activities {
  /**
   * Checks the input (the one zod schema), the workflow id and the VM, plans the disks (whose volume a disk is, by serial, image and attachment; a run of
   * the type `snapshotDisks` has no local ones), and takes over or makes the catalogue's row (state `running`).
   * Repeating it in the same run answers the same plan.
   */
  acceptSnapshot(input: SnapshotVmInput): Promise<Plan>;
  /** Waits for one of the installation's window slots; heartbeats with the number of runs ahead. Cancellable while it waits. */
  takeWindowSlot(request: { snapshotId: string }): Promise<void>;
  /** Gives the slot back; of one that is not held: nothing. */
  giveBackWindowSlot(request: { snapshotId: string }): Promise<void>;

  /**
   * Takes the VM on its host, makes overlays and checks, checks the volumes and the quota, and makes Cinder's token and connections ready. A dead run of this VM that still holds it is thawed and undone (or released, where it was recorded)
   * first.
   */
  prepare(request: WindowRequest & { plan: Plan; quiesce: Quiesce }): Promise<Prepared>;
  /** Freezes; on any failure the guest is thawed or watched by its host agent. */
  freezeFileSystems(request: WindowRequest & { cuts: string[]; freezeTimeoutMs: number }): Promise<Frozen>;
  /**
   * The local cut: one libvirt transaction, held by its own call. `frozen`: this run has frozen the guest. Else `quiesce` says whether the host agent
   * freezes and thaws in the same call.
   */
  snapshotLocalDisks(
    request: WindowRequest & {
      disks: string[];
      frozen: boolean;
      quiesce: 'required' | 'skip';
      cut: string;
      freezeTimeoutMs: number;
    },
  ): Promise<LocalCut>;
  /**
   * One volume's cut: held on the host from before the create is sent until Cinder says `available`. Its failure says in the metadata `outcome` whether
   * nothing of it is there or will appear (`none`), or all of it that ever will (`made`); without that word it may still appear.
   */
  snapshotVolume(request: WindowRequest & { plan: Plan; disk: PlannedVolume; cut: string }): Promise<VolumeCut>;
  /** Thaws if the host agent has not yet, closes the window for good, and answers what the journal proves. Unfrozen windows: closes. */
  thawFileSystems(request: WindowRequest & { frozen: boolean; reason: string }): Promise<WindowVerdict>;

  /** Row `running` -> `recording`, finds and verifies every part by the window's id, writes the record. A missing part: `recorded: false`. */
  recordSnapshot(
    request: WindowRequest & { plan: Plan; record: SnapshotRecord },
  ): Promise<{ recorded: true; result: SnapshotVmResult } | { recorded: false; missing: string }>;
  /**
   * Takes back all that the window made, and verifies it. `isLast`: row -> `undoing` first, so that nothing is recorded any more; else another window
   * follows, and the row stays `running` for it. `parts`: what prepare made, as far as it said. `mayBeThere`: targets of volumes of which Cinder may
   * have something; where there are none, Cinder is not asked. `mayAppear`: those whose create has an unknown outcome; it looks for their snapshots until
   * Cinder's own request timeout has passed.
   */
  undoWindow(
    request: WindowRequest & {
      plan: Plan;
      isLast: boolean;
      parts: LocalPart[];
      mayBeThere: string[];
      mayAppear: string[];
    },
  ): Promise<Undone>;
  /** Gives the VM back: the last call of every run. */
  release(request: { host: string; vm: string; operation: string }): Promise<void>;
  /** The final word of a run that recorded nothing. */
  closeSnapshot(request: {
    snapshotId: string;
    state: 'failed' | 'cancelled' | 'cleanup-pending';
    error: { code: string; text: string } | undefined;
    pending: string[];
    /** What could not be taken back: deleting the snapshot merges it later. */
    left: PartsLeft | undefined;
  }): Promise<void>;

  /** Checks the input, the workflow id and the snapshot's state; row -> `deleting`. */
  acceptDelete(input: DeleteSnapshotInput): Promise<DeletePlan>;
  /**
   * Merges the snapshot's overlays into their bases and deletes its volumes' snapshots. Heartbeats progress. Cancelled before it has touched anything, it
   * answers that of every part.
   */
  deleteParts(request: DeletePlan): Promise<{ complete: boolean; disks: RemovedPart[] }>;
  /** Row -> `deleted` (with the new places of later snapshots' images), or back to where it can be deleted again. */
  closeDelete(request: {
    plan: DeletePlan;
    outcome:
      | { deleted: true; disks: RemovedPart[] }
      | { deleted: false; error: { code: string; text: string }; disks: RemovedPart[] };
  }): Promise<DeleteSnapshotResult>;

  /** Compares catalogue, Temporal, Cinder and hosts, and judges. Changes nothing. */
  examine(input: ReconcileInput): Promise<Examination>;
  /** Under the VM's workflow id: proves the leftover again, and removes it. `removed` false: it is not there any more. */
  removeLeftover(leftover: Leftover): Promise<{ removed: boolean }>;
}

/** What `reconcile` is told to do. */
export interface Examination extends Omit<DoctorReport, 'findings' | 'repair'> {
  findings: JudgedFinding[];
}

export interface JudgedFinding extends Omit<Finding, 'outcome' | 'detail'> {
  /** Absent: a person decides. */
  repair?: Repair;
}

/** How a finding is repaired: by a run under the VM's workflow id, so that it races no snapshot. */
export type Repair = { kind: 'clean-up'; vm: string; snapshotId: string } | Leftover;

/** A thing of ours that no snapshot needs, and that no snapshot's deletion would find. */
export type Leftover =
  /** A reservation whose operation is dead. */
  | { kind: 'reservation'; vm: string; host: string; operation: string; window: string }
  /** Cinder's id of a snapshot that its row does not know. */
  | { kind: 'volume-snapshot'; vm: string; snapshotId: string; volumeSnapshot: string };

/** Which window, on which host. */
export interface WindowRequest {
  host: string;
  vm: string;
  /** Snapshot id. */
  operation: string;
  window: string;
}

/** Parts that are still there though nothing was recorded. */
export interface PartsLeft {
  window: string;
  parts: DiskPart[];
}

/** What acceptSnapshot decided. */
export interface Plan {
  snapshotId: string;
  name: string;
  vm: { uuid: string; name: string };
  host: string;
  quiesce: Quiesce;
  /** Every disk of the set. */
  setDisks: string[];
  /** Those that the host agent cuts. */
  localDisks: string[];
  /** Those that Cinder cuts. */
  volumes: PlannedVolume[];
  unquiesced: string[];
  leftOut: LeftOutDisk[];
  freezeTimeoutMs: number;
  /** 0: the host's default for the guest's OS. */
  windowLimitMs: number;
  hypervisor: string;
}

/** A disk of the set that is a Cinder volume. */
export interface PlannedVolume {
  target: string;
  /** Cinder's id. */
  volume: string;
  /** Id of the project that has it: another one, which an engine may be configured for later, knows nothing of its snapshots. */
  project?: string;
  /** Its name in Cinder; may be empty. */
  name: string;
  sizeBytes: number;
}

export interface Prepared {
  gaps: Gap[];
  guestOs: string;
  windowLimitMs: number;
  /** Of the local disks. */
  parts: LocalPart[];
  /** What was found and cleaned before: a dead run's leftovers. Empty: nothing. */
  cleaned: string;
}

export interface Frozen {
  frozenFileSystems: number;
  /** ISO 8601. */
  frozenAt: string;
  freezeCallMs: number;
  gaps: Gap[];
}

export interface LocalCut {
  parts: LocalPart[];
  transactionMs: number;
}

export interface VolumeCut {
  part: VolumePart;
  /** ms from the create's sending to Cinder's `available`. */
  cutMs: number;
}

/** The host agent's verdict, or HOST_LOST where an administrator said that the host is gone. */
export interface WindowVerdict {
  held: boolean;
  /** Undefined exactly when held. */
  lostReason?: string;
  detail: string;
  window: WindowFacts;
  /** ms after the freeze's answer. */
  cuts: { cut: string; heldMs?: number; endedMs?: number; outcome: string; reason: string }[];
  gaps: Gap[];
  thawedBy: string;
  /** The host that has the VM now and has thawed it, where the window's own could not. */
  thawedOn?: string;
  /** libvirt was never asked to freeze in this window, and will not be. */
  neverAsked?: true;
}

export interface SnapshotRecord {
  grade: Grade;
  why: string;
  partial: boolean;
  unfrozen: Gap[];
  /** Of the local disks; the volumes' are found in Cinder by the window's id. */
  parts: LocalPart[];
  window: WindowFacts;
  quiesce: Quiesce;
}

export interface Undone {
  /** Everything is verified gone. */
  complete: boolean;
  /** Parts that are still there, as far as they are known. */
  left: DiskPart[];
  /** What remains and what will end it, one sentence each. */
  pending: string[];
}

export interface DeletePlan {
  /** The deleting operation (uuid4 of the run), not the snapshot's. */
  operation: string;
  snapshotId: string;
  name: string;
  vm: { uuid: string; name: string };
  host: string;
  /** Window in which the snapshot was made. */
  window: string;
  parts: DiskPart[];
  /** The set's volumes: whatever of this snapshot Cinder still has for them goes. */
  volumes: PlannedVolume[];
  /** Its run died (was terminated), or could not say which parts it left: whatever its windows made is taken back. */
  leftOpen: boolean;
  /** No deletion of it was ever begun: its row was `complete`. */
  isWhole?: boolean;
}
