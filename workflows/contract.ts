/**
 * The public contract of the workflows: names, input, result, errors, search attributes. A management engine of any make may start a run with its own
 * Temporal client against this page (docs/workflows.md shows how), and gets the same checks, record and grade as through the REST API.
 *
 * Everything here is plain JSON. The zod schema in engine/contract/ is checked against these types by the compiler.
 */

/** Every Stillpoint worker listens here. */
export const TASK_QUEUE = 'stillpoint';

/** The id under which every run of a VM must be started: one operation at a time per VM. `vm` is libvirt's UUID. */
export function workflowIdOf(vm: string): string {
  return `vm-${vm.toLowerCase()}`;
}

/** `<operation id>.<attempt>`: everything made for a try carries it. */
export function windowIdOf(operation: string, attempt: number): string {
  return `${operation}.${attempt}`;
}

/** Search attributes; the project registers them on the namespace. */
export const searchAttributes = {
  /** VM's name. */
  vm: { name: 'StillpointVm', type: 'KEYWORD' },
  host: { name: 'StillpointHost', type: 'KEYWORD' },
  /** Snapshot id. */
  snapshot: { name: 'StillpointSnapshot', type: 'KEYWORD' },
  grade: { name: 'StillpointGrade', type: 'KEYWORD' },
  quiesce: { name: 'StillpointQuiesce', type: 'KEYWORD' },
  windowMs: { name: 'StillpointWindowMs', type: 'DOUBLE' },
  /** Of a run of `reconcile`: how many of its findings are left. */
  findings: { name: 'StillpointFindings', type: 'INT' },
} as const;

/** `required`: fail rather than be inconsistent. `best-effort`: go on without a freeze, and the grade tells. `skip`: never freeze. */
export type Quiesce = 'required' | 'best-effort' | 'skip';

/**
 * How consistent a snapshot was proven to be, best first. `filesystem`: the freeze held and covered the set. `crash`: all disks are one instant.
 * `per-disk`: each disk is crash-consistent by itself, their common order is not kept.
 */
export type Grade = 'filesystem' | 'crash' | 'per-disk';

/** Input of `snapshotVm`, which takes any set, and of `snapshotDisks`, which refuses a set with a disk of the host. */
export interface SnapshotVmInput {
  /** libvirt's UUID of the VM, lower case. */
  vm: string;
  /** Snapshot id (uuid4); absent: the run makes its own. The REST API sets it. */
  snapshotId?: string;
  /** For people; absent: made from the time. */
  name?: string;
  description?: string;
  /** Absent: `required`. */
  quiesce?: Quiesce;
  /** Targets; absent: all writable disks that can be snapshotted. Naming an impossible one is an error. */
  disks?: string[];
  /** Targets that may stay unfrozen (say swap); they are named beside the grade. */
  unquiesced?: string[];
  /** How long the guest agent may take to freeze: 1 000 to 600 000 ms; absent: 30 000. */
  freezeTimeoutMs?: number;
  /** How long the guest may stay frozen: 100 to 60 000 ms; absent: 30 000, Windows 8 000. */
  windowLimitMs?: number;
}

/** Input of `deleteSnapshot`, started under the id of the snapshot's VM. */
export interface DeleteSnapshotInput {
  vm: string;
  snapshotId: string;
  /** Take back only what a run has left: a snapshot that is complete is refused (SNAPSHOT_STATE). */
  leftoversOnly?: boolean;
  /** Refuse also (SNAPSHOT_STATE) where Temporal does not say that the run died which left it: what nobody has asked for needs that proof. */
  provenDead?: boolean;
}

/** Input of `reconcile`, which compares catalogue, Temporal, Cinder and the hosts. */
export interface ReconcileInput {
  /** Repair what is unambiguous; absent: false, it only reports. */
  repair?: boolean;
}

/** What the reconciler may find; docs/doctor.md says of each what proves it and what a repair does. */
export const findingCodes = [
  'RUN_GONE',
  'CLEANUP_PENDING',
  'VM_HELD',
  'VM_HELD_ELSEWHERE',
  'GUEST_FROZEN',
  'OVERLAY_UNCLAIMED',
  'VOLUME_SNAPSHOT_LEFT',
  'VOLUME_SNAPSHOT_UNKNOWN',
  'SNAPSHOT_NOT_WHOLE',
  'HOST_AWAY',
  'CLOUD_AWAY',
] as const;
export type FindingCode = (typeof findingCodes)[number];

export interface Finding {
  code: FindingCode;
  /** What it is about; together with the code the same in every report. */
  about: { host?: string; vm?: { uuid: string; name: string }; snapshotId?: string; thing?: string };
  /** What was found, in plain words. */
  text: string;
  /** What a person can do; where it can be repaired: what the repair does. */
  advice: string;
  outcome: 'for-a-person' | 'repairable' | 'repaired' | 'not-repaired';
  /** Of one that was not repaired: why. */
  detail: string;
}

/** Result of `reconcile`. */
export interface DoctorReport {
  /** ISO 8601: when it looked. */
  at: string;
  /** Whether it was to repair. */
  repair: boolean;
  /** What was compared. */
  looked: { hosts: number; snapshots: number; overlays: number; volumeSnapshots: number };
  findings: Finding[];
  /** Findings that are not told, because there are too many. */
  omitted: number;
}

/** One disk's part of a snapshot. */
export type DiskPart = LocalPart | VolumePart;

/** The part of a disk on the host. */
export interface LocalPart {
  target: string;
  kind: 'local';
  /** The image that holds the disk's data of the cut, on the host. */
  path: string;
  format: string;
  /** The overlay that the guest writes to since; deleting the snapshot merges it into `path`. */
  overlay: string;
  sizeBytes: number;
}

/** The part of a disk that is a Cinder volume. */
export interface VolumePart {
  target: string;
  kind: 'volume';
  /** Cinder's id of the volume. */
  volume: string;
  /** Cinder's id of the snapshot that holds the disk's data of the cut. */
  snapshot: string;
  sizeBytes: number;
}

/** A disk that is not in the snapshot, and why. */
export interface LeftOutDisk {
  target: string;
  reason: string;
  /** Writable: the snapshot is partial without it. */
  writable: boolean;
}

/** A place that the freeze did not cover. */
export interface Gap {
  target: string;
  mountpoint: string;
  reason: string;
  accepted: boolean;
}

/** Result of `snapshotVm` and `snapshotDisks`: what was recorded. */
export interface SnapshotVmResult {
  snapshotId: string;
  name: string;
  vm: { uuid: string; name: string };
  host: string;
  grade: Grade;
  /** Why this grade, in plain words. */
  why: string;
  quiesce: Quiesce;
  /** A writable disk is left out. */
  partial: boolean;
  leftOut: LeftOutDisk[];
  /** What stayed unfrozen by the request's leave or by rule. */
  unfrozen: Gap[];
  disks: DiskPart[];
  window: WindowFacts;
  /** "libvirt" or "simulated". */
  hypervisor: string;
}

export interface WindowFacts {
  id: string;
  /** Freeze answer read -> thaw request written, on the host, ms; 0: never frozen. */
  ms: number;
  /** ISO 8601; absent: never frozen. */
  frozenAt?: string;
  thawedAt?: string;
  frozenFileSystems: number;
}

export interface DeleteSnapshotResult {
  snapshotId: string;
  vm: { uuid: string; name: string };
  host: string;
  disks: RemovedPart[];
}

/** What became of one disk's part. */
export type RemovedPart = MergedPart | DeletedVolumePart;

export interface MergedPart {
  target: string;
  kind: 'local';
  overlay: string;
  /** Into which image it was merged. */
  path: string;
  outcome: 'unused-deleted' | 'committed' | 'not-found' | 'pending';
  detail: string;
  /** Of a pending one: its merge has begun, or may have, so the image below it is not to be relied on. */
  begun?: true;
}

export interface DeletedVolumePart {
  target: string;
  kind: 'volume';
  volume: string;
  /** Cinder's id of the snapshot; empty where none was found. */
  snapshot: string;
  outcome: 'deleted' | 'not-found' | 'pending';
  detail: string;
  /** Of a pending one: Cinder has begun to delete it, or may have, so its data is not to be relied on. */
  begun?: true;
}

/** What a deletion says of parts that it has not touched. */
export function untouchedParts(parts: readonly DiskPart[]): RemovedPart[] {
  return parts.map((part) =>
    part.kind === 'local'
      ? { target: part.target, kind: part.kind, overlay: part.overlay, path: part.path, outcome: 'pending', detail: '' }
      : {
          target: part.target,
          kind: part.kind,
          volume: part.volume,
          snapshot: part.snapshot,
          outcome: 'pending',
          detail: '',
        },
  );
}

/**
 * Types of the ApplicationFailure that ends a failed run, beside the host agent's codes (VM_NOT_RUNNING, AGENT_NOT_CONNECTED, …) and Cinder's
 * (CINDER_QUOTA, VOLUME_BUSY, …), which pass through.
 * A cancelled run ends as Cancelled, thawed and clean.
 */
export const workflowErrors = {
  INPUT_INVALID: 'The input is not valid; the text names the field.',
  WORKFLOW_ID_WRONG: 'Runs of a VM must be started under vm-<its libvirt UUID>; the text prints the right one.',
  SNAPSHOT_ID_USED: 'Another run has used this snapshot id.',
  SNAPSHOT_NOT_FOUND: 'No such snapshot.',
  SNAPSHOT_STATE: 'The snapshot is in a state that does not allow this.',
  VM_AMBIGUOUS: 'Several hosts report this VM as running.',
  HOST_UNREACHABLE: 'The host agent does not answer.',
  HOST_IDENTITY: "The host agent's certificate does not carry the host's registered name.",
  HOST_LOST: 'An administrator removed the host as lost.',
  NO_DISKS: 'No disk of this VM can be snapshotted.',
  LOCAL_DISK_IN_SET: 'snapshotDisks takes Ceph volumes only, and the set has a disk of the host.',
  VOLUME_MISMATCH: "A disk's serial, its image and Cinder's attachment do not agree that the volume is this VM's.",
  VOLUME_SNAPSHOT_FAILED: 'Cinder could not make the snapshot: its status is error.',
  HOLD_BROKEN: 'The host agent was not heard of for a second: nothing was asked of Cinder any more.',
  CONSISTENCY_LOST: 'The freeze did not hold, and the policy is required.',
  CUT_MISSING: 'A cut was not made.',
  WORKER_LOST: 'The worker that ran a step died or was cut off.',
  STEP_TIMED_OUT: 'A step did not end in its time.',
  CLEANUP_PENDING: 'Something made for the snapshot could not be taken back yet; the text says what and what will.',
  CATALOGUE_REFUSED: 'Another run or administrator decided over this snapshot first.',
} as const;
export type WorkflowErrorCode = keyof typeof workflowErrors;

/** Answer of the query `progress`. */
export interface Progress {
  state:
    | 'checking'
    | 'queued'
    | 'preparing'
    | 'freezing'
    /** The cuts are made, with the guest frozen; where the host owns the window, it freezes, cuts and thaws in this step. */
    | 'frozen'
    /** The cuts are made, without a freeze. */
    | 'cutting'
    | 'thawing'
    | 'recording'
    | 'undoing'
    | 'deleting'
    | 'done';
  snapshotId: string | undefined;
  steps: ProgressStep[];
  /** Set while something waits that a person should know: still frozen, catalogue down, queued behind others. */
  waiting: string | undefined;
}

export interface ProgressStep {
  /** E.g. "freeze file systems". */
  name: string;
  /** ISO 8601. */
  startedAt: string;
  /** Absent: it runs. */
  ms?: number;
  /** Absent: it runs or is well. */
  error?: string;
}

/** Name of the query. */
export const PROGRESS_QUERY = 'progress';
