import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { CinderProxy } from '@stillpoint/lab/cinder-proxy.js';
import type { Lab } from '@stillpoint/lab/lab.js';
import { isRunning, signalProcess } from '@stillpoint/lab/processes.js';
import { type SetReport, type SnapshotPart, verifySet } from '@stillpoint/lab/snapshot-check.js';
import { attachStorage, type Storage } from '@stillpoint/lab/storage/storage.js';
import type { System } from '@stillpoint/lab/system.js';
import { expect } from 'vitest';
import { VM, WholeSystem } from '../lab/whole-system.js';
import { storageFolder } from './storage-folder.js';

export const LOCAL = ['vda', 'vdb'];
export const VOLUMES = ['vdc', 'vdd', 'vde', 'vdf'];

/** Short where a test would only wait: nothing comes later than that from a Cinder whose requests the proxy has dropped. */
const openstack = { undoWaitMs: 5_000, rpcTimeoutMs: 2_000, windowRequestTimeoutMs: 10_000 };

/** A snapshot as Cinder has it; what no test reads is left out. */
export interface CinderSnapshot {
  readonly id: string;
  readonly volume_id: string;
  readonly name: string;
  readonly description: string;
  readonly status: string;
  readonly metadata: Readonly<Record<string, string>>;
}

/**
 * One guest with two local disks and four volumes on Ceph, the whole system over it as a user of Keystone with the role `member`, and proxies before libvirt,
 * Cinder and Keystone, so that a fault hits the step that it is meant for.
 */
export class MixedSystem {
  readonly world: WholeSystem;
  readonly storage: Storage;
  readonly cinder: CinderProxy;
  readonly keystone: CinderProxy;

  private constructor(world: WholeSystem, storage: Storage, cinder: CinderProxy, keystone: CinderProxy) {
    this.world = world;
    this.storage = storage;
    this.cinder = cinder;
    this.keystone = keystone;
  }

  static async start(): Promise<MixedSystem> {
    const storage = attachStorage(storageFolder);
    if (storage.keystone === undefined) throw new Error('the storage of this suite has a Keystone');
    const cinder = await CinderProxy.start({ upstream: storage.keystone.cinderEndpoint });
    const keystone = await CinderProxy.start({ upstream: storage.keystone.authUrl });
    try {
      const world = await WholeSystem.start('ceph', {
        ceph: { storage, volumes: VOLUMES.length },
        engineConfig: { openstack },
        engineEnvironment: {
          ...storage.environment('member'),
          OS_AUTH_URL: `${keystone.url}/v3`,
          OS_VOLUMEV3_ENDPOINT_OVERRIDE: `${cinder.url}/v3`,
        },
      });
      return new MixedSystem(world, storage, cinder, keystone);
    } catch (error) {
      await Promise.all([cinder.close(), keystone.close()]);
      throw error;
    }
  }

  get lab(): Lab {
    return this.world.lab;
  }

  get system(): System {
    return this.world.system;
  }

  async stop(): Promise<void> {
    this.cinder.clearFaults();
    this.keystone.clearFaults();
    await this.world.stop();
    await Promise.all([this.cinder.close(), this.keystone.close()]);
  }

  /** Asks for a snapshot through the API and waits for the end of its run. */
  async snapshot(request: Record<string, unknown> = {}): Promise<SnapshotView> {
    return this.world.snapshot(request);
  }

  async begin(request: Record<string, unknown> = {}): Promise<string> {
    return this.system.createSnapshot(VM, request);
  }

  /** The id of the volume that the VM has as this disk. */
  volume(target: string): string {
    const id = this.lab.vm.volumes[target];
    if (id === undefined) throw new Error(`${target} is no volume`);
    return id;
  }

  /** All snapshots that Cinder has, of whatever project. */
  async snapshotsInCinder(): Promise<CinderSnapshot[]> {
    const { status, body } = await this.storage.request('GET', '/snapshots/detail?all_tenants=1');
    expect(status).toBe(200);
    return body.snapshots as CinderSnapshot[];
  }

  /** How many snapshots Cinder counts against the project's quota. */
  async snapshotsCounted(): Promise<number> {
    const { projectId } = this.storage.cinder;
    const { body } = await this.storage.request('GET', `/os-quota-sets/${projectId}?usage=true`);
    const { snapshots } = body.quota_set as { snapshots: { in_use: number; reserved: number } };
    return snapshots.in_use + snapshots.reserved;
  }

  /** The snapshots in Ceph, by image. */
  async snapshotsInCeph(): Promise<Record<string, readonly string[]>> {
    const { images, trash } = await this.storage.rbdSnapshots();
    expect(trash).toEqual([]);
    return Object.fromEntries(images.map(({ name, snapshots }) => [name, snapshots]));
  }

  /** The disks of a snapshot as QEMU's programs read them. */
  images(snapshot: SnapshotView): SnapshotPart[] {
    return snapshot.disks.map((part) => ({
      target: part.target,
      image: part.kind === 'local' ? part.path : this.storage.snapshotImage(part.volume, part.snapshot),
    }));
  }

  /** What the snapshot is worth by its content alone: all its disks are exported and checked. */
  async report(snapshot: SnapshotView): Promise<SetReport> {
    return verifySet(this.images(snapshot));
  }

  /** Every disk passes fsck with nothing to replay, and all together keep the order in which the guest wrote. */
  async expectConsistent(snapshot: SnapshotView): Promise<void> {
    const { clean, ordered, numbers, images } = await this.report(snapshot);
    expect(images.filter((image) => !image.clean)).toEqual([]);
    expect(numbers).toHaveLength(snapshot.disks.length);
    expect({ clean, ordered, numbers }).toMatchObject({ clean: true, ordered: true });
    expect(numbers.at(-1)).toBeGreaterThan(0);
  }

  /** Nothing is left of any snapshot: not on the host, not in the guest, not in Cinder, not in Ceph. */
  async expectNothingLeft(): Promise<void> {
    await this.world.expectNothingLeft();
    expect(await this.snapshotsInCinder()).toEqual([]);
    const inCeph = await this.snapshotsInCeph();
    expect(Object.values(inCeph).flat()).toEqual([]);
  }

  /** Deletes what a test has left that failed in the middle, so that the next one does not fail for it. */
  async deleteAll(): Promise<void> {
    const { snapshots } = (await this.system.request<{ snapshots: SnapshotView[] }>('GET', '/v1/snapshots')).body;
    for (const { id, state } of snapshots) {
      if (state === 'complete' || state === 'cleanup-pending') await this.system.deleteSnapshot(id);
    }
  }

  /** Brings whatever a test broke back to a system that works. */
  async mend(): Promise<void> {
    const { cinder, keystone, storage, system } = this;
    for (const proxy of [cinder, keystone]) {
      proxy.clearFaults();
      proxy.clearRecords();
      proxy.accept();
    }
    await storage.mend();
    await storage.setQuota({ snapshots: -1, gigabytes: -1 });
    if (system.engine !== undefined) signalProcess(system.engine, 'SIGCONT');
    if (system.engine === undefined || !isRunning(system.engine)) {
      system.startEngine();
      await system.waitUntilReady();
    }
    await this.world.mend();
  }
}
