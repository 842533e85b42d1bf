import type { Quiesce } from '@stillpoint/workflows';

/**
 * The pool of clients to the host agents, in plain types: what ts-proto generates stops here.
 *
 * Every method rejects with a HostError: code of the host agent's table (host-agent's ErrorInfo.reason), or HOST_UNREACHABLE (no connection, or it broke:
 * what was asked may have happened), HOST_IDENTITY (the certificate is not the host's), HOST_LOST (removed as lost), HOST_NOT_FOUND (not registered).
 */
export interface Hosts {
  /** The client of a registered host; kept connected (keepalive 1 s, given up after 2 s). */
  host(name: string): HostClient;
  /** Names of the registered hosts that are not lost. */
  names(): Promise<string[]>;
  close(): Promise<void>;
}

export interface CallOptions {
  deadlineMs?: number;
  signal?: AbortSignal;
}

export interface HostClient {
  readonly name: string;
  facts(options?: CallOptions): Promise<HostFacts>;
  listVms(options?: CallOptions): Promise<HostVm[]>;
  getVm(vm: string, options?: CallOptions): Promise<HostVm>;
  /** Every file named as an overlay of Stillpoint, one entry a use. */
  listOverlays(options?: CallOptions): Promise<HostOverlayFiles>;
  prepare(request: PrepareCall, options?: CallOptions): Promise<PrepareAnswer>;
  freezeFileSystems(
    request: { vm: string; window: string; cuts: string[]; freezeTimeoutMs: number },
    options?: CallOptions,
  ): Promise<{ frozenFileSystems: number; frozenUnixMs: number; freezeCallMs: number; gaps: HostGap[] }>;
  /** Opens HoldCut; resolves when `held` has come. */
  holdCut(request: { vm: string; window: string; cut: string }, options?: CallOptions): Promise<CutHold>;
  snapshotVm(
    request: {
      vm: string;
      window: string;
      disks: string[];
      frozen: boolean;
      quiesce: Quiesce;
      cut: string;
      freezeTimeoutMs?: number;
    },
    options?: CallOptions,
  ): Promise<{
    overlays: HostOverlay[];
    transactionMs: number;
    verdict: HostVerdict | undefined;
    unfrozenReason: string;
  }>;
  thawFileSystems(request: { vm: string; window: string; reason: string }, options?: CallOptions): Promise<HostVerdict>;
  undo(
    request: { vm: string; window: string },
    options?: CallOptions & { onProgress?: (progress: HostMergeProgress) => void },
  ): Promise<HostMergeResult>;
  release(request: { vm: string; operation: string }, options?: CallOptions): Promise<boolean>;
  deleteSnapshot(
    request: { vm: string; operation: string; installation: string; window: string; overlays: HostOverlay[] },
    options?: CallOptions & {
      onProgress?: (progress: HostMergeProgress) => void;
      /** Called when the host is there and nothing is sent yet. */
      beforeSending?: () => void;
    },
  ): Promise<HostMergeResult>;
  /** `window`: only what that window, begun on another host, left frozen; a window that is open here is left alone. Without it: whoever froze the guest. */
  thawVm(
    request: { vm: string; askedBy: string; window?: string },
    options?: CallOptions,
  ): Promise<{ thawedFileSystems: number; lostWindow: string }>;
}

/** A hold of one volume's cut. */
export interface CutHold {
  /** Whether `held` or a ping came less than `ms` ago, by the monotonic clock: Cinder's create is sent only then. */
  isFresh(ms: number): boolean;
  /** Aborts when the stream breaks or the window is thawed under the hold. */
  readonly lost: AbortSignal;
  done(): Promise<{ inTime: boolean; reason: string }>;
  failed(reason: string): Promise<void>;
}

export interface HostFacts {
  hostName: string;
  installation: string;
  version: string;
  hypervisor: string;
  libvirtVersion: string;
  qemuVersion: string;
  hypervisorReachable: boolean;
  canQuiesce: boolean;
  diskLocations: string[];
  warnings: string[];
  startedUnixMs: number;
  /** Of every VM that the host agent knows something of, also while libvirt is away. */
  holds: { vm: string; hold: HostHold }[];
}

export interface HostVm {
  uuid: string;
  name: string;
  state: 'running' | 'paused' | 'shut-off' | 'other';
  guestAgent: 'connected' | 'disconnected' | 'not-configured' | 'unknown';
  disks: HostDisk[];
  hold: HostHold;
}

export interface HostDisk {
  target: string;
  kind: 'file' | 'block' | 'rbd' | 'network' | 'other';
  path: string;
  image: string;
  format: string;
  sizeBytes: number;
  serial: string;
  /** '' : it can be cut. Else the reason, e.g. 'read-only'. */
  leftOut: string;
  writable: boolean;
  chainDepth: number;
}

export interface HostHold {
  operation: string;
  window: string;
  installation: string;
  reservedUnixMs: number;
  freezeState: 'thawed' | 'freezing' | 'frozen' | 'thawing' | 'maybe-frozen' | 'still-frozen' | 'unknown';
  frozenUnixMs: number;
  freezeDetail: string;
  windowLimitMs: number;
}

export interface HostGap {
  target: string;
  mountpoint: string;
  reason: string;
  accepted: boolean;
}

export interface HostOverlay {
  target: string;
  overlayPath: string;
  basePath: string;
  baseFormat: string;
  sizeBytes: number;
}

export interface HostOverlayFiles {
  /** `usedBy` undefined: no VM's chain has it. */
  overlays: { path: string; window: string; usedBy: { vm: string; target: string } | undefined }[];
  /** VMs with a chain that could not be read to its end. */
  unreadVms: string[];
}

export interface PrepareCall {
  vm: string;
  operation: string;
  window: string;
  installation: string;
  localDisks: string[];
  setDisks: string[];
  unquiescedDisks: string[];
  quiesce: Quiesce;
  windowLimitMs: number;
}

export type PrepareAnswer =
  | { stale: { operation: string; window: string } }
  | {
      vm: HostVm;
      overlays: HostOverlay[];
      gaps: HostGap[];
      guestOs: string;
      windowLimitMs: number;
    };

export interface HostVerdict {
  window: string;
  held: boolean;
  lostReason: string;
  detail: string;
  /** libvirt was never asked to freeze: nothing was frozen. */
  neverAsked: boolean;
  frozenFileSystems: number;
  /** -1: unknown. */
  thawedFileSystems: number;
  windowMs: number;
  frozenUnixMs: number;
  thawedUnixMs: number;
  thawedBy: string;
  /** Negative ms: never. */
  cuts: { cut: string; heldMs: number; endedMs: number; outcome: string; reason: string }[];
  gaps: HostGap[];
}

export interface HostMergeProgress {
  target: string;
  doneBytes: number;
  totalBytes: number;
}

export interface HostMergeResult {
  complete: boolean;
  disks: {
    target: string;
    overlayPath: string;
    basePath: string;
    outcome: 'unused-deleted' | 'committed' | 'not-found' | 'pending';
    detail: string;
    reason: string;
    /** Of a pending one: no merge of it has ever begun. */
    untouched: boolean;
  }[];
}
