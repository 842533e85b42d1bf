import { randomUUID } from 'node:crypto';

export interface StandInVolume {
  id: string;
  projectId: string;
  name: string;
  status: string;
  sizeGiB: number;
  volumeType: string;
  nameId: string | undefined;
  attachments: { instance: string; device: string; host: string }[];
}

export interface StandInSnapshot {
  id: string;
  projectId: string;
  volumeId: string;
  name: string;
  description: string;
  status: string;
  sizeGiB: number;
  createdAt: Date;
  metadata: Record<string, string>;
}

/** The instant at which a snapshot's data was cut, and what `onCut` said of it. */
export interface Cut {
  /** performance.now(), ms. */
  at: number;
  content: unknown;
}

/** Times of one snapshot, ms. The defaults were measured at Cinder 21.3 on Ceph 16.2, one machine. */
export interface SnapshotTimes {
  /** From the request to its 202. Default 110. */
  acceptMs: number;
  /** From the request to the cut of the data. Default 230. */
  cutMs: number;
  /** From the request to `available`. Default 390. */
  availableMs: number;
  /** From the 202 of a deletion until it is gone. Default 200. */
  deleteMs: number;
}

export const measuredTimes: SnapshotTimes = { acceptMs: 110, cutMs: 230, availableMs: 390, deleteMs: 200 };

export type OnCut = (volumeId: string, snapshotId: string) => unknown;

/** What Cinder answers with instead of doing it. */
export class Refused extends Error {
  override readonly name = 'Refused';
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Volumes and their snapshots, as cinder-volume would make them. */
export class Volumes {
  readonly #volumes = new Map<string, StandInVolume>();
  readonly #snapshots = new Map<string, StandInSnapshot>();
  readonly #cuts = new Map<string, Promise<Cut>>();
  readonly #timers = new Set<NodeJS.Timeout>();
  readonly #ends = new Map<string, 'sticks' | 'fails' | undefined>();
  readonly #dependedOn = new Set<string>();
  readonly #times: SnapshotTimes;
  readonly #onCut: OnCut | undefined;
  /** -1: no limit. */
  quota = { snapshots: -1, gigabytes: -1 };

  constructor(times: SnapshotTimes, onCut: OnCut | undefined) {
    this.#times = times;
    this.#onCut = onCut;
  }

  add(volume: Partial<StandInVolume> & { projectId: string }): StandInVolume {
    const { id = randomUUID(), attachments = [] } = volume;
    const whole: StandInVolume = {
      name: '',
      status: attachments.length > 0 ? 'in-use' : 'available',
      sizeGiB: 1,
      volumeType: 'ceph',
      nameId: undefined,
      ...volume,
      id,
      attachments,
    };
    this.#volumes.set(id, whole);
    return whole;
  }

  volume(id: string): StandInVolume {
    const volume = this.#volumes.get(id);
    if (volume === undefined) throw new Refused(404, `Volume ${id} could not be found.`);
    return volume;
  }

  snapshot(id: string): StandInSnapshot {
    const snapshot = this.#snapshots.get(id);
    if (snapshot === undefined) throw new Refused(404, `Snapshot ${id} could not be found.`);
    return snapshot;
  }

  /** The newest first, as Cinder lists them. */
  snapshots(): StandInSnapshot[] {
    return [...this.#snapshots.values()].reverse();
  }

  cut(snapshotId: string): Promise<Cut> | undefined {
    return this.#cuts.get(snapshotId);
  }

  /** What the next snapshot of a volume comes to; undefined: nothing unusual. */
  nextSnapshot(volumeId: string, end: 'sticks' | 'fails' | undefined): void {
    this.#ends.set(volumeId, end);
  }

  /** A volume was made of this snapshot: its deletion is accepted and comes to nothing, until that volume is removed. */
  depend(snapshotId: string): { remove(): Promise<void> } {
    const { id } = this.snapshot(snapshotId);
    this.#dependedOn.add(id);
    return {
      remove: async () => {
        this.#dependedOn.delete(id);
      },
    };
  }

  used(projectId: string): { snapshots: number; gigabytes: number } {
    const ofProject = <T extends { projectId: string }>(all: Iterable<T>) =>
      [...all].filter((each) => each.projectId === projectId);
    const snapshots = ofProject(this.#snapshots.values());
    const sizes = [...ofProject(this.#volumes.values()), ...snapshots].map(({ sizeGiB }) => sizeGiB);
    return { snapshots: snapshots.length, gigabytes: sizes.reduce((sum, size) => sum + size, 0) };
  }

  create(request: {
    projectId: string;
    volumeId: string;
    name: string;
    description: string;
    metadata: Record<string, string>;
    inUse: boolean;
  }): StandInSnapshot {
    const { projectId, volumeId, name, description, metadata } = request;
    const volume = this.volume(volumeId);
    if (volume.status === 'error' || volume.status === 'maintenance') {
      const state = volume.status === 'error' ? 'error status' : 'maintenance mode';
      throw new Refused(400, `Invalid volume: The snapshot cannot be created when the volume is in ${state}.`);
    }
    const allowed = request.inUse ? ['available', 'in-use'] : ['available'];
    if (!allowed.includes(volume.status)) {
      throw new Refused(
        400,
        `Invalid volume: Volume ${volumeId} status must be ${allowed.join(', ')}, but current status is: ${volume.status}.`,
      );
    }
    const used = this.used(projectId);
    if (this.quota.snapshots >= 0 && used.snapshots >= this.quota.snapshots) {
      throw new Refused(
        413,
        `SnapshotLimitExceeded: Maximum number of snapshots allowed (${this.quota.snapshots}) exceeded`,
      );
    }
    if (this.quota.gigabytes >= 0 && used.gigabytes + volume.sizeGiB > this.quota.gigabytes) {
      throw new Refused(
        413,
        `VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. Requested ${volume.sizeGiB}G, quota is ${this.quota.gigabytes}G and ${used.gigabytes}G has been consumed.`,
      );
    }
    const snapshot: StandInSnapshot = {
      id: randomUUID(),
      projectId,
      volumeId,
      name,
      description,
      metadata: { ...metadata },
      status: 'creating',
      sizeGiB: volume.sizeGiB,
      createdAt: new Date(),
    };
    this.#snapshots.set(snapshot.id, snapshot);
    const end = this.#ends.get(volumeId);
    this.#ends.delete(volumeId);
    if (end === 'fails') this.#later(this.#times.availableMs, () => this.#settle(snapshot, 'error'));
    if (end === undefined) this.#cutLater(snapshot);
    return snapshot;
  }

  #cutLater(snapshot: StandInSnapshot): void {
    const { cutMs, availableMs } = this.#times;
    this.#cuts.set(
      snapshot.id,
      new Promise<Cut>((resolve) => {
        this.#later(cutMs, () => {
          const at = performance.now();
          // It is called within this very turn; only what it promises may come later.
          const content = this.#onCut?.(snapshot.volumeId, snapshot.id);
          void Promise.resolve(content).then((content) => resolve({ at, content }));
        });
      }),
    );
    this.#later(availableMs, () => this.#settle(snapshot, 'available'));
  }

  #settle(snapshot: StandInSnapshot, status: string): void {
    if (snapshot.status === 'creating') snapshot.status = status;
  }

  delete(id: string): void {
    const snapshot = this.snapshot(id);
    if (!['available', 'error', 'error_deleting'].includes(snapshot.status)) {
      throw new Refused(
        400,
        'Invalid snapshot: Snapshot status must be available or error and must not be part of a group.',
      );
    }
    snapshot.status = 'deleting';
    this.#later(this.#times.deleteMs, () => {
      if (this.#dependedOn.has(id)) snapshot.status = 'available';
      else this.#snapshots.delete(id);
    });
  }

  updateStatus(id: string, status: string): void {
    const snapshot = this.snapshot(id);
    if (snapshot.status !== 'creating') {
      throw new Refused(400, `Snapshot status ${snapshot.status} not allowed for update_snapshot_status`);
    }
    snapshot.status = status;
  }

  /** Nothing happens any more. */
  stop(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }

  #later(ms: number, then: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      then();
    }, ms);
    this.#timers.add(timer);
  }
}
