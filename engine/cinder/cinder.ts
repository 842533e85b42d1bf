/**
 * What the engine needs of Cinder, in plain types. `client.ts` implements it over the REST API; the real Cinder and a stand-in of it pass one contract
 * suite (test/cinder/contract.ts).
 *
 * Every method rejects with a CinderError (errors.ts), or with the signal's reason when that ends it. One cloud and one project an engine.
 */
export interface Cinder {
  /**
   * Makes ready for a window: a token that stays valid for at least `validForMs`, the endpoint and its microversion known, and `connections` keep-alive
   * connections open, so that nothing of this is left to do while a guest is frozen.
   */
  makeReady(request: { validForMs: number; connections: number }, options?: CinderCallOptions): Promise<void>;
  /** The id of our project. */
  project(options?: CinderCallOptions): Promise<string>;
  /** A volume of our project. Errors: VOLUME_NOT_FOUND (also one of another project). */
  volume(id: string, options?: CinderCallOptions): Promise<CinderVolume>;
  /** What the project may still make; -1: no limit. */
  snapshotQuota(options?: CinderCallOptions): Promise<SnapshotQuota>;
  /**
   * Asks for a snapshot, once: a request whose outcome is unknown (`mayHaveHappened`) is never repeated here, for Cinder may still carry it out.
   * The data is cut after this is answered and before the status is `available`.
   */
  createSnapshot(request: NewVolumeSnapshot, options?: CreateOptions): Promise<VolumeSnapshot>;
  /** Errors: VOLUME_SNAPSHOT_NOT_FOUND. */
  snapshot(id: string, options?: CinderCallOptions): Promise<VolumeSnapshot>;
  /** Snapshots whose metadata has every one of these entries; all pages. */
  findSnapshots(
    query: { metadata: Record<string, string>; volumeId?: string },
    options?: CinderCallOptions,
  ): Promise<VolumeSnapshot[]>;
  /** Asks for the deletion; it is gone when `snapshot` says VOLUME_SNAPSHOT_NOT_FOUND. Errors: VOLUME_SNAPSHOT_BUSY (creating, or something depends on it). */
  deleteSnapshot(id: string, options?: CinderCallOptions): Promise<void>;
  /** Changes description and adds metadata. */
  describeSnapshot(
    id: string,
    change: { description?: string; metadata?: Record<string, string> },
    options?: CinderCallOptions,
  ): Promise<void>;
  /** os-update_snapshot_status: a snapshot stuck in `creating` is called `error`, so that it can be deleted. Errors: CINDER_FORBIDDEN with the smallest role. */
  giveUpCreating(id: string, options?: CinderCallOptions): Promise<void>;
  /** Closes its connections. */
  close(): Promise<void>;
}

export interface CinderCallOptions {
  signal?: AbortSignal;
  /** How long a single answer, Cinder's or Keystone's, may take, ms. Default: the client's own time. */
  answerMs?: number;
}

export interface CreateOptions extends CinderCallOptions {
  /** Called when the connection stands and nothing is written yet, each time that the request is about to be sent. What it throws ends the call: nothing was asked. */
  beforeSending?: () => void;
}

export interface CinderVolume {
  id: string;
  name: string;
  /** As Cinder says: `in-use`, `available`, `error`, … */
  status: string;
  sizeGiB: number;
  /** Where the image was renamed (a migrated volume): the id that its image name has. Absent: its own (only administrators are told). */
  nameId?: string;
  attachments: { instance: string; device: string; host: string }[];
  /** E.g. the back end's name: empty where Cinder does not tell. */
  volumeType: string;
}

export interface VolumeSnapshot {
  id: string;
  volumeId: string;
  name: string;
  description: string;
  /** `creating`, `available`, `deleting`, `error`, `error_deleting`, … */
  status: string;
  sizeGiB: number;
  /** ISO 8601, UTC, whole seconds. */
  createdAt: string;
  metadata: Record<string, string>;
}

export interface NewVolumeSnapshot {
  volumeId: string;
  name: string;
  description: string;
  metadata: Record<string, string>;
}

export interface SnapshotQuota {
  snapshots: { limit: number; used: number };
  /** Snapshots count against the project's gigabytes too, unless Cinder is set otherwise (`no_snapshot_gb_quota`). */
  gigabytes: { limit: number; used: number };
}
