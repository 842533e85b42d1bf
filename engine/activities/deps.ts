import type { Logger } from 'pino';
import type { Catalogue } from '../catalogue/catalogue.js';
import type { Cinder } from '../cinder/cinder.js';
import type { Hosts } from '../hosts/hosts.js';

/** What the activities work with. */
export interface ActivityDeps {
  catalogue: Catalogue;
  hosts: Hosts;
  /** Undefined: this engine knows no cloud, and leaves Ceph disks out. */
  cloud: Cloud | undefined;
  /** Which runs are over: their window slots are void. */
  runs: Runs;
  log: Logger;
  /** This installation's id, from the catalogue. */
  installationId: string;
  settings?: ActivitySettings;
}

export interface ActivitySettings {
  /** How many windows may be open at once in the installation. Default 4: throughput is flat from there on, and each window only grows. */
  windowSlots?: number;
  /** How often a waiting run asks for its slot, ms. Default 500. */
  slotPollMs?: number;
  /** How long an undo or a deletion waits for a host or a Cinder that does not answer before it ends as pending, ms. Default 120 000. */
  hostPatienceMs?: number;
  /** How often it asks meanwhile, ms. Default 1 000. */
  hostPollMs?: number;
}

/** The cloud whose volumes are snapshotted, and what is to be expected of it. */
export interface Cloud {
  cinder: Cinder;
  /** Ceph pools that the cloud's volumes lie in. */
  pools: readonly string[];
  /** Whether Cinder's attachment must name the VM; off for managers that leave it empty. */
  checkAttachment: boolean;
  /** Whether snapshots count against the project's gigabytes; off where Cinder has `no_snapshot_gb_quota`. */
  snapshotsCountGigabytes: boolean;
  /** How long an undo waits for a snapshot in `creating`, ms. */
  undoWaitMs: number;
  /** So long after its create a snapshot in `creating` is given up by os-update_snapshot_status, ms: a merely slow one would leave an RBD snapshot nobody knows of. */
  giveUpCreatingMs: number;
  /** How long a cut waits for an answer, ms: the guest is frozen meanwhile. */
  windowRequestTimeoutMs: number;
  /** Cinder's own timeout (`rpc_response_timeout`), ms: a create with an unknown outcome appears within it or never. */
  rpcTimeoutMs: number;
}

/** Temporal's word on a run. */
export interface Runs {
  /** Whether the run is closed, or was never there. */
  isClosed(workflowId: string, runId: string): Promise<boolean>;
  /** The run's status by Temporal's name (COMPLETED, TERMINATED, …); `undefined`: it was never there, or Temporal has it no more. */
  statusOf(workflowId: string, runId: string): Promise<string | undefined>;
  /** Whether a run is open under this id. */
  hasOpen(workflowId: string): Promise<boolean>;
}
