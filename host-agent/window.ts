import type { Disk, Vm } from './hypervisor.js';

/**
 * What the rooms of the host agent say to one another about a window. `freeze/` owns reservations, windows, leases, holds and verdicts;
 * `snapshot/` owns overlays; `rpc/` joins them and knows the wire.
 */

export type QuiescePolicy = 'required' | 'best-effort' | 'skip';

/** A place where the freeze does not cover the set (invariant 3). */
export interface CoverageGap {
  /** Disk of the set; empty where it is not one disk's. */
  target: string;
  /** Empty: the guest reports no file system on the disk. */
  mountpoint: string;
  reason: string;
  /** A vfat at /boot/efi, /efi or /boot, or a disk that the request accepts by name: named beside the grade, does not lower it. */
  accepted: boolean;
}

/** An overlay that Prepare made for a local disk. */
export interface Overlay {
  target: string;
  overlayPath: string;
  /** The active image before the cut: it holds the disk's data of the cut afterwards. */
  basePath: string;
  baseFormat: string;
  sizeBytes: number;
}

/** Who holds a VM. */
export interface Reservation {
  vm: string;
  operation: string;
  window: string;
  installation: string;
  reservedUnixMs: number;
}

/** Why a window's consistency was lost. Stable: they travel in Verdict.lost_reason. */
export type LostReason =
  | 'LIMIT'
  | 'CUT_FAILED'
  | 'HOLD_BROKEN'
  | 'NOT_HELD_IN_TIME'
  | 'STATUS_NOT_FROZEN'
  | 'STATUS_UNANSWERED'
  | 'COUNT_MISMATCH'
  | 'THAWED_EARLY'
  | 'ADMINISTRATOR'
  | 'AGENT_RESTARTED'
  | 'HOST_AGENT_RESTARTED'
  | 'SHUTDOWN'
  | 'CALLER_GONE'
  | 'FREEZE_FAILED'
  | 'NEVER_FROZEN'
  | 'UNDONE'
  | WhereGone
  /** The verdict could not be written: evidence that a restart would not find is none. */
  | 'JOURNAL_UNWRITABLE';

/**
 * Where a VM went whose guest was frozen: its life ended; it runs on another host, or may (libvirt does not know it any more); its memory lies in a file. After the
 * last two its guest may be frozen still: who meets it next thaws it.
 */
export type WhereGone = 'VM_GONE' | 'VM_MOVED' | 'VM_SAVED';

export interface CutRecord {
  cut: string;
  /** ms after the freeze's answer; undefined: never held. */
  heldMs: number | undefined;
  /** ms after the freeze's answer; undefined: never ended. */
  endedMs: number | undefined;
  outcome: 'done' | 'failed' | 'broken' | 'not held';
  reason: string;
}

/** What the journal can prove about a window; fsynced before it is answered, and answered unchanged until Release. */
export interface Verdict {
  window: string;
  held: boolean;
  /** Undefined exactly when held. */
  lostReason: LostReason | undefined;
  detail: string;
  /** libvirt was never asked to freeze in this window, and will not be. Older journals lack it: false. */
  neverAsked?: boolean;
  frozenFileSystems: number;
  /** Undefined: unknown. */
  thawedFileSystems: number | undefined;
  /** Freeze answer read -> thaw request written; 0: never frozen. */
  windowMs: number;
  frozenUnixMs: number;
  /** 0: no thaw was needed. */
  thawedUnixMs: number;
  thawedBy: string;
  cuts: CutRecord[];
  gaps: CoverageGap[];
}

export type FreezeState = 'thawed' | 'freezing' | 'frozen' | 'thawing' | 'maybe-frozen' | 'still-frozen';

/** What GetVm and ListVms say of a VM's holder and freeze. */
export interface HoldState {
  reservation: Reservation | undefined;
  freezeState: FreezeState;
  /** 0: not frozen. */
  frozenUnixMs: number;
  /** For still-frozen and maybe-frozen: why, and what to do. */
  detail: string;
  /** 0: no window is open. */
  windowLimitMs: number;
}

/** What Prepare pins and the cut reads again. */
export interface Pinned {
  domainId: number | undefined;
  /** Of every disk of the set: active source and size. */
  disks: { target: string; source: string; sizeBytes: number }[];
  /** Device, mount point and targets of each file system, as one comparable text; undefined: not asked (skip). */
  fileSystems: string | undefined;
  osId: string | undefined;
}

export interface ReserveRequest {
  vm: string;
  operation: string;
  window: string;
  installation: string;
  /** skip: the window is open for holds at once, unfrozen. */
  quiesce: QuiescePolicy;
  /** ms; undefined: the default for the guest's OS. */
  windowLimitMs: number | undefined;
  /** Targets of the set. */
  setDisks: string[];
  unquiescedDisks: string[];
}

/** A dead run's operation that still held the VM when the same installation prepared a new one. */
export interface StaleOperation {
  operation: string;
  window: string;
}

/** A hold of one cut on a window. */
export interface Hold {
  /** Resolves when the cut may be made: the guest is frozen; at once in an unfrozen window. Rejects with the reason of `lost`. */
  readonly held: Promise<void>;
  /** Aborts when the window was thawed or closed under the hold; its reason is a HostAgentError. */
  readonly lost: AbortSignal;
  /** Ends the hold. `inTime`: the window was still held, and `done` counts. Idempotent: a second end changes nothing. */
  end(outcome: { done: true } | { failed: string } | { broken: string }): { inTime: boolean; reason: string };
}

/** All of section 2 of docs/architecture.md: reservations, leases, windows, holds, the watch, verdicts. */
export interface FreezeRoom {
  /** Reads the journal, thaws and watches what an earlier life left frozen. Never rejects for an unreadable journal. Resolves when recovery has begun for every VM. */
  start(): Promise<void>;

  /**
   * Takes the VM for one operation and opens its window. Again for the same window: answers the same. For a new window of the same operation: only after the
   * first is closed. Errors: BUSY (metadata: holder), MAYBE_FROZEN, ALREADY_FROZEN, LIBVIRT_TOO_OLD, WINDOW_CLOSED, JOURNAL_UNWRITABLE and the guest agent's.
   * A reservation of the same installation under another operation is not taken over but thawed and told as `stale`.
   */
  reserve(
    request: ReserveRequest,
  ): Promise<
    | { stale: StaleOperation }
    | { gaps: CoverageGap[]; expectedFileSystems: number; guestOs: string; windowLimitMs: number }
  >;
  /**
   * Keeps what Prepare pinned and made with the reservation, durably, before anything is frozen; file systems and OS are those that reserve saw.
   * Errors: NOT_PREPARED, WINDOW_CLOSED, JOURNAL_UNWRITABLE.
   */
  keepPrepared(window: string, prepared: { pinned: Pinned; overlays: Overlay[] }): Promise<void>;
  /** What keepPrepared kept, for an open or closed window that is not released. */
  prepared(window: string): { pinned: Pinned; overlays: Overlay[] } | undefined;

  /** Freezes under a lease, once somebody stands ready for every cut; see docs/architecture.md section 2. `caller` aborts when nobody waits for the answer any more. */
  freeze(request: {
    vm: string;
    window: string;
    cuts: string[];
    freezeTimeoutMs: number;
    caller: AbortSignal;
  }): Promise<{ frozenFileSystems: number; frozenUnixMs: number; freezeCallMs: number; gaps: CoverageGap[] }>;
  /**
   * Stands ready for a cut, before or while its window is frozen, and holds the window for it from then on.
   * Errors: WINDOW_CLOSED, WINDOW_UNKNOWN, NOT_PREPARED, CUT_UNKNOWN, CUT_ALREADY_HELD.
   */
  hold(vm: string, window: string, cut: string): Hold;
  /** Thaws if need be, closes the window, answers the verdict. Errors: STILL_FROZEN, WINDOW_UNKNOWN. An unfrozen window: NEVER_FROZEN, closed. */
  thaw(vm: string, window: string, reason: string): Promise<Verdict>;
  /** Undefined: the window is open. Errors: WINDOW_UNKNOWN. */
  verdict(vm: string, window: string): Verdict | undefined;
  /** Thaws if need be and closes the window for good, also one that this host never saw: what undo calls first. Errors: STILL_FROZEN. */
  closeForUndo(vm: string, window: string): Promise<void>;
  /** Gives the VM back and drops the verdict; the ids of closed windows stay. An open window is thawed and closed first. */
  release(vm: string, operation: string): Promise<boolean>;
  /** Takes the VM for an operation without a window (delete). Errors: BUSY, MAYBE_FROZEN. */
  reserveForDelete(request: {
    vm: string;
    operation: string;
    installation: string;
  }): Promise<{ stale: StaleOperation } | undefined>;
  /** An administrator's thaw, whoever froze the guest. Errors: those of the guest agent. */
  thawVm(vm: string, askedBy: string): Promise<{ thawedFileSystems: number; lostWindow: string | undefined }>;
  /**
   * Thaws what a window of another host may have left frozen, now that the VM is here; an open window of this host is left alone. The count is 0 where nothing was
   * frozen, or nobody knows how much. Errors: STILL_FROZEN (it goes on), VM_NOT_FOUND, VM_NOT_RUNNING.
   */
  thawArrived(vm: string, window: string): Promise<number>;
  /** Gives a VM back by an administrator's word on the host: whoever held it. The answer says who. */
  releaseVm(vm: string, askedBy: string): Promise<Reservation | undefined>;

  /** Freeze state and holder of a VM. */
  state(vm: string): HoldState;
  /** The same of every VM that is held, or was. */
  states(): { vm: string; state: HoldState }[];
  /** What a person should know now: unreadable journal, guests still frozen. */
  warnings(): string[];
  /** Installation in the journal; empty until the first reservation. */
  installation(): string;
  /** SIGTERM: thaws every window, journals, ends the timers. Resolves when done. */
  shutdown(): Promise<void>;
}

export type MergeOutcome = 'unused-deleted' | 'committed' | 'not-found' | 'pending';

export interface MergedDisk {
  target: string;
  overlayPath: string;
  basePath: string;
  outcome: MergeOutcome;
  detail: string;
  /** Stable reason of a pending outcome. */
  reason: string;
  /** Of a pending outcome: no merge of it has ever begun, so its base still holds the disk as it was at the cut. */
  untouched?: boolean;
}

export interface MergeProgress {
  target: string;
  doneBytes: number;
  totalBytes: number;
}

/** Why a disk is left out of snapshots, or undefined. */
export type LeftOut =
  | 'read-only'
  | 'shareable'
  | 'lun'
  | 'removable'
  | 'network'
  | 'location'
  | 'format'
  | 'transient'
  | 'no-source';

/** A file that is named as an overlay of a window, whoever's; in the chain of a VM's disk, or in none. */
export interface OverlayFile {
  /** Resolved. */
  path: string;
  window: string;
  usedBy: { vm: string; target: string } | undefined;
}

export interface OverlayFiles {
  /** One entry a use. */
  overlays: OverlayFile[];
  /** Those with a chain that could not be read to its end. */
  unreadVms: string[];
}

/** Which disks, which flags, overlays, undo, delete. Prepare, cut, undo and delete of one VM run one at a time. */
export interface SnapshotRoom {
  /** Where disks may lie (host-agent.yaml), for GetHost. */
  readonly diskLocations: string[];
  /** The verdict on every disk of a VM: snapshottable (undefined) or why not. RBD disks are undefined too: the engine cuts them. */
  leftOut(vm: Vm): Promise<Map<string, LeftOut | undefined>>;
  /** Size as the guest sees it; 0 where unknown. */
  sizeBytes(disk: Disk): Promise<number>;
  /** Every overlay file in the locations' folders, beside the images that VMs use, and in their chains. Who asks while they are read joins that. */
  overlayFiles(): Promise<OverlayFiles>;
  /** All checks and the overlay files for the local disks of a window, durably; idempotent per window. See Prepare in the proto for errors. */
  prepare(request: {
    vm: string;
    window: string;
    localDisks: string[];
    setDisks: string[];
    alreadyPrepared: Overlay[] | undefined;
  }): Promise<{
    vm: Vm;
    pinned: Omit<Pinned, 'fileSystems' | 'osId'>;
    overlays: Overlay[];
  }>;
  /**
   * The cut: reads the VM again (VM_CHANGED on any difference from `pinned`), notes without fsync that libvirt is asked, and switches all overlays in one
   * transaction. Errors: VM_CHANGED, SNAPSHOT_FAILED, …
   */
  cut(request: { vm: string; window: string; pinned: Pinned; overlays: Overlay[] }): Promise<{ transactionMs: number }>;
  /** Takes a window's overlays back; idempotent, joins a run of the same. The window must be closed before. Never rejects for one disk: that disk is `pending`. */
  undo(request: {
    vm: string;
    window: string;
    overlays: Overlay[];
    onProgress: (progress: MergeProgress) => void;
    signal: AbortSignal;
  }): Promise<MergedDisk[]>;
  /** Merges a recorded snapshot's overlays, wherever in the chain they are; as undo. */
  delete(request: {
    vm: string;
    window: string;
    overlays: Overlay[];
    onProgress: (progress: MergeProgress) => void;
    signal: AbortSignal;
  }): Promise<MergedDisk[]>;
}
