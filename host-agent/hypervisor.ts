/**
 * The port: what the rooms above need of a hypervisor. `libvirt/` and `simulated/` implement it and pass one contract suite
 * (test/hypervisor/contract.ts).
 *
 * Every method rejects with a HostAgentError of the codes it names, or of LIBVIRT_UNREACHABLE, LIBVIRT_PROTOCOL, LIBVIRT_CALL_TIMEOUT,
 * LIBVIRT_ERROR. Instants called `…At` are milliseconds of this process's monotonic clock (performance.now()).
 */
export interface Hypervisor {
  /** Which implementation this is; it is named beside the grade. */
  readonly kind: 'libvirt' | 'simulated';

  /** Versions and capabilities. */
  facts(): Promise<HypervisorFacts>;
  /** Every VM, running or not. */
  listVms(): Promise<Vm[]>;
  /** One VM as its live (or, shut off, its inactive) definition says. Errors: VM_NOT_FOUND. */
  getVm(uuid: string): Promise<Vm>;
  /**
   * As getVm, but read after every modifying job of the domain: XML read while a snapshot runs is the old one (invariant 9).
   * Each disk's `blockJob` is asked for. `inactive` holds the disks of the persistent definition; absent for a transient domain.
   * Errors: VM_NOT_FOUND, VM_NOT_RUNNING (stopped meanwhile), HYPERVISOR_BUSY.
   */
  getVmBehindJob(uuid: string): Promise<{ vm: Vm; inactive?: Disk[] }>;

  /**
   * Notes a text in the running domain, in a namespace of Stillpoint's own: it goes where the VM goes (migration, save and restore, managed save) and ends with
   * this life of it. `undefined` removes it. Not in the persistent definition: what starts from there is no frozen guest. It waits for the domain's job.
   * Errors: VM_NOT_FOUND, VM_NOT_RUNNING, HYPERVISOR_BUSY.
   */
  setNote(uuid: string, note: string | undefined): Promise<void>;
  /** Sets how long libvirt waits for the guest agent, in whole seconds (at least 1); `default` is libvirt's own. It is the domain's: others share it. */
  setAgentTimeout(uuid: string, seconds: number | 'default'): Promise<void>;
  /** The guest's OS by its agent, else by the domain's metadata, else undefined. `timeoutS` bounds the agent's answer (whole seconds). */
  guestOs(uuid: string, timeoutS: number): Promise<GuestOs | undefined>;
  /** The file systems the guest agent reports. Errors: AGENT_NOT_CONFIGURED, AGENT_NOT_CONNECTED, AGENT_NOT_RESPONDING, VM_NOT_RUNNING, VM_PAUSED. */
  guestFileSystems(uuid: string): Promise<GuestFileSystem[]>;
  /** Asks the guest agent whether file systems are frozen; `timeoutS` bounds its answer (whole seconds, at least 1). Errors as guestFileSystems. */
  freezeStatus(uuid: string, timeoutS: number): Promise<'frozen' | 'thawed'>;
  /**
   * Freezes every file system of the guest. After any rejection but AGENT_NOT_CONFIGURED, AGENT_NOT_CONNECTED, VM_NOT_RUNNING, VM_PAUSED, VM_NOT_FOUND,
   * ALREADY_FROZEN and FREEZE_HOOK_FAILED the guest may be frozen, or freeze later.
   * Errors: those, AGENT_NOT_RESPONDING, FREEZE_FAILED, HYPERVISOR_BUSY.
   */
  freeze(uuid: string): Promise<{ fileSystems: number; repliedAt: number }>;
  /** Thaws; of a guest that is not frozen: 0. `requestedAt` is when the request was written. Errors as guestFileSystems, and HYPERVISOR_BUSY. */
  thaw(uuid: string): Promise<{ fileSystems: number; requestedAt: number; repliedAt: number }>;

  /**
   * One transaction: switches each named disk to its prepared overlay (disk-only, atomic, reuse-ext, no-metadata); every other disk of the domain is
   * named with snapshot='no'; never QUIESCE. Errors: SNAPSHOT_FAILED (nothing switched), VM_NOT_RUNNING, HYPERVISOR_BUSY.
   */
  snapshotDisks(uuid: string, overlays: readonly OverlayFile[]): Promise<{ requestedAt: number; repliedAt: number }>;
  /**
   * Merges `overlay` into the image below it, anywhere in the live chain of `target`: block commit, and pivot where it is the active image.
   * Resolves when the job has ended and the chain no longer holds it; joins a job of the same overlay that already runs. Does not delete the file.
   * Errors: MERGE_FAILED, DISK_NOT_FOUND, BLOCK_JOB_ACTIVE (another's job; ours has not begun), VM_NOT_RUNNING, HYPERVISOR_BUSY. An aborted signal
   * stops waiting, not the job.
   */
  mergeOverlay(
    uuid: string,
    target: string,
    overlay: string,
    options?: { onProgress?: (progress: { doneBytes: number; totalBytes: number }) => void; signal?: AbortSignal },
  ): Promise<void>;
  /**
   * For a VM that is defined and shut off: makes the persistent definition of `target` use `to` instead of `from`. Refused while it runs or has a
   * managed-save image. The images below are no longer named there, for libvirt to find them in the headers: so with `to` the same as `from` it makes
   * a definition forget a chain that was changed below. Errors: VM_CHANGED (it names another image, or it was started), VM_NOT_FOUND.
   */
  replaceImage(uuid: string, target: string, change: { from: string; to: string; toFormat: string }): Promise<void>;

  /** Image files and block devices of the host. */
  readonly images: Images;

  /** Subscribes to events; returns the function that ends the subscription. Listeners must not throw. */
  onEvent(listener: (event: HypervisorEvent) => void): () => void;
  /** Connects (and keeps reconnecting by itself). Resolves at the first connection, or rejects with LIBVIRT_UNREACHABLE when `signal` ends the wait. */
  start(signal?: AbortSignal): Promise<void>;
  /** Ends every connection. */
  close(): Promise<void>;
}

/** What happens on the hypervisor by itself. */
export type HypervisorEvent =
  | { type: 'connection'; up: boolean }
  | {
      type: 'lifecycle';
      uuid: string;
      what: 'started' | 'stopped' | 'paused' | 'resumed' | 'defined' | 'undefined' | 'other';
      /** Of `stopped`: it runs on elsewhere, or lies in a file; absent: it ended here. */
      why?: 'moved' | 'saved';
    }
  | { type: 'agent'; uuid: string; connected: boolean }
  | { type: 'block-job'; uuid: string; target: string; what: 'ready' | 'completed' | 'failed' | 'cancelled' };

export interface HypervisorFacts {
  /** Whether the hypervisor answers now; the versions are empty when not. */
  reachable: boolean;
  /** E.g. "9.0.0". */
  libvirtVersion: string;
  /** E.g. "7.2.22". */
  qemuVersion: string;
  /** virDomainAgentSetResponseTimeout exists: libvirt 5.10 or newer. Without it nothing is quiesced. */
  canSetAgentTimeout: boolean;
}

export interface GuestOs {
  /** E.g. "debian", "mswindows". */
  id: string;
  /** VSS gives up after 10 s: Windows has a shorter window limit. */
  isWindows: boolean;
}

/** One mounted file system as the guest agent reports it. */
export interface GuestFileSystem {
  mountpoint: string;
  /** E.g. "ext4", "vfat". */
  type: string;
  /** Device in the guest ("vda2", "dm-0"): several mounts of one file system share it. */
  device: string;
  /** Targets of the disks below it; empty where the guest agent cannot tell. */
  targets: string[];
}

export type VmState = 'running' | 'paused' | 'shut-off' | 'other';

export interface Vm {
  uuid: string;
  name: string;
  /** libvirt's id of the running domain: it changes with every start. */
  domainId: number | undefined;
  state: VmState;
  /** Of a VM that is shut off: how its last life ended, as far as libvirt knows (since its own start); undefined: it is not shut off. */
  offBecause: 'moved' | 'saved' | 'ended' | 'unknown' | undefined;
  /** What setNote noted, or somebody else in our namespace: not to be trusted. Undefined: nothing. */
  note: string | undefined;
  persistent: boolean;
  /** A managed-save image would bring old block state back: undo and delete touch nothing. */
  hasManagedSave: boolean;
  guestAgent: 'connected' | 'disconnected' | 'not-configured' | 'unknown';
  /** A migration in or out is under way. */
  migrating: boolean;
  disks: Disk[];
}

export interface Disk {
  /** "vda". */
  target: string;
  device: 'disk' | 'cdrom' | 'floppy' | 'lun' | 'other';
  kind: 'file' | 'block' | 'rbd' | 'network' | 'other';
  /** file and block: path of the active image as the definition names it; undefined: no source. */
  path: string | undefined;
  /** rbd: "pool/image"; network: "protocol:name". */
  image: string | undefined;
  format: string;
  serial: string | undefined;
  readOnly: boolean;
  shareable: boolean;
  transient: boolean;
  /** A block job runs on it: any kind where it was read behind the job, else only what the definition shows (a copy or an active commit). */
  blockJob: boolean;
  /** Paths of the backing chain as libvirt knows it, active image first; only file and block images. */
  chain: ChainImage[];
}

export interface ChainImage {
  path: string;
  format: string;
  kind: 'file' | 'block';
}

/** An overlay file that Prepare made, for one disk. */
export interface OverlayFile {
  target: string;
  path: string;
}

/** Image files and block devices: qemu-img and the file system, or a simulation of both. */
export interface Images {
  /** The path with every symlink resolved, and what it is. Errors: DISK_NOT_FOUND (nothing there). */
  resolve(path: string): Promise<{ path: string; kind: 'file' | 'block' }>;
  /**
   * Of the image alone, also while QEMU uses it, read as `format` and never probed: a guest can write any header onto its raw disk.
   * Errors: IMAGE_INVALID, DISK_NOT_FOUND.
   */
  info(path: string, format: string): Promise<ImageInfo>;
  /**
   * Size as the guest sees it, read as `format` without a child program: the cut asks it inside the window. Formats: qcow2, raw.
   * Errors: IMAGE_INVALID, DISK_NOT_FOUND.
   */
  sizeBytes(path: string, format: string): Promise<number>;
  /** Bytes free for new data on the file system of `folder`. */
  freeBytes(folder: string): Promise<number>;
  /** Makes an empty qcow2 overlay of `base`, with the owner and mode of `likeFile`, durably (fsync of file and folder). Errors: OVERLAY_EXISTS, NO_SPACE, IMAGE_INVALID. */
  createOverlay(overlay: {
    path: string;
    base: string;
    baseFormat: string;
    sizeBytes: number;
    likeFile: string;
  }): Promise<void>;
  /** Whether any process of the host holds the file open. */
  isOpen(path: string): Promise<boolean>;
  /** Whether the overlay holds no data of its own: everything reads through to its base. */
  isEmptyOverlay(path: string): Promise<boolean>;
  /** Commits a file that no QEMU uses into its base, under QEMU's image lock. Errors: IMAGE_LOCKED is MERGE_FAILED with metadata.reason. */
  commitOffline(overlay: string): Promise<void>;
  /** Makes the header of a qcow2 that no QEMU uses name another image below it, without touching data; under QEMU's image lock. Errors: as commitOffline. */
  rebase(path: string, to: { backing: string; backingFormat: string }): Promise<void>;
  /** Deletes a file; of a missing one: nothing. */
  delete(path: string): Promise<void>;
  /** Whether something is there. */
  exists(path: string): Promise<boolean>;
  /** Paths in `folder` whose names contain `.sp-`: overlays of ours. */
  listOverlays(folder: string): Promise<string[]>;
}

export interface ImageInfo {
  format: string;
  virtualSizeBytes: number;
  /** Path of the image below as the header names it, made absolute. */
  backing: string | undefined;
  backingFormat: string | undefined;
}
