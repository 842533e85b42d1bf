import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { CinderProxy } from '@stillpoint/lab/cinder-proxy.js';
import type { SnapshotPart } from '@stillpoint/lab/snapshot-check.js';
import type { Storage } from '@stillpoint/lab/storage/storage.js';
import { bringUp, World, type WorldOptions, type WorldParts } from './world.js';

/** Short where one would only wait: nothing comes later than that from a Cinder whose requests the proxy has dropped. */
const openstack = { undoWaitMs: 5_000, rpcTimeoutMs: 2_000, windowRequestTimeoutMs: 6_000 };

/** A snapshot as Cinder has it; what nobody reads is left out. */
export interface CinderSnapshot {
  readonly id: string;
  readonly volume_id: string;
  readonly name: string;
  readonly description: string;
  readonly status: string;
  readonly metadata: Readonly<Record<string, string>>;
}

/** What a world with a cloud is made of. */
export interface CephParts extends WorldParts {
  readonly storage: Storage;
  /** Between the engine and Cinder, and between the engine and Keystone. */
  readonly cinder: CinderProxy;
  readonly keystone: CinderProxy;
}

/** Brings up a world over a storage that runs, with a Keystone; the storage is its owner's. */
export async function bringUpOnCeph(
  options: Pick<WorldOptions, 'stateFolder' | 'progress'> & { readonly storage: Storage; readonly volumes: number },
): Promise<CephParts> {
  const { storage, volumes, ...worldOptions } = options;
  if (storage.keystone === undefined) throw new Error('the storage has a Keystone');
  const cinder = await CinderProxy.start({ upstream: storage.keystone.cinderEndpoint });
  const keystone = await CinderProxy.start({ upstream: storage.keystone.authUrl });
  try {
    const parts = await bringUp({
      ...worldOptions,
      ceph: { storage, volumes },
      engineConfig: { openstack },
      engineEnvironment: {
        ...storage.environment('member'),
        OS_AUTH_URL: `${keystone.url}/v3`,
        OS_VOLUMEV3_ENDPOINT_OVERRIDE: `${cinder.url}/v3`,
      },
    });
    return { ...parts, storage, cinder, keystone };
  } catch (error) {
    await Promise.all([cinder.close(), keystone.close()]);
    throw error;
  }
}

/**
 * One guest with two local disks and volumes on Ceph, the whole system over it as a user of Keystone with the role `member`, and proxies before libvirt,
 * Cinder and Keystone, so that a fault hits the step that it is meant for.
 */
export class CephWorld extends World {
  readonly storage: Storage;
  readonly cinder: CinderProxy;
  readonly keystone: CinderProxy;

  constructor(parts: CephParts) {
    super(parts);
    this.storage = parts.storage;
    this.cinder = parts.cinder;
    this.keystone = parts.keystone;
  }

  override async stop(): Promise<void> {
    this.cinder.clearFaults();
    this.keystone.clearFaults();
    await super.stop();
    await Promise.all([this.cinder.close(), this.keystone.close()]);
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
    if (status !== 200) throw new Error(`Cinder answered ${status} to the list of its snapshots`);
    return body.snapshots as CinderSnapshot[];
  }

  /** The snapshots in Ceph, by image. */
  async snapshotsInCeph(): Promise<Record<string, readonly string[]>> {
    const { images, trash } = await this.storage.rbdSnapshots();
    if (trash.length > 0) throw new Error(`Ceph's trash holds ${JSON.stringify(trash)}`);
    return Object.fromEntries(images.map(({ name, snapshots }) => [name, snapshots]));
  }

  override images(snapshot: SnapshotView): SnapshotPart[] {
    return snapshot.disks.map((part) => ({
      target: part.target,
      image: part.kind === 'local' ? part.path : this.storage.snapshotImage(part.volume, part.snapshot),
    }));
  }

  override async leftovers(): Promise<string[]> {
    const left = await super.leftovers();
    const inCinder = await this.snapshotsInCinder();
    left.push(...inCinder.map(({ id, status, name }) => `in Cinder: snapshot ${id} '${name}', ${status}`));
    const inCeph = Object.entries(await this.snapshotsInCeph());
    left.push(
      ...inCeph.filter(([, snapshots]) => snapshots.length > 0).map(([image, all]) => `in Ceph: ${image}@${all}`),
    );
    return left;
  }

  /** Deletes what has been left in the middle, so that what comes next does not fail for it. */
  async deleteAll(): Promise<void> {
    const { snapshots } = (await this.system.request<{ snapshots: SnapshotView[] }>('GET', '/v1/snapshots')).body;
    for (const { id, state } of snapshots) {
      if (state === 'complete' || state === 'cleanup-pending') await this.system.deleteSnapshot(id);
    }
  }

  override async mend(): Promise<void> {
    for (const proxy of [this.cinder, this.keystone]) {
      proxy.clearFaults();
      proxy.clearRecords();
      proxy.accept();
    }
    await this.storage.mend();
    await this.storage.setQuota({ snapshots: -1, gigabytes: -1 });
    await this.mendSystem();
    await super.mend();
  }
}
