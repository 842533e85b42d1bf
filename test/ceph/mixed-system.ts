import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { type SetReport, verifySet } from '@stillpoint/lab/snapshot-check.js';
import { attachStorage } from '@stillpoint/lab/storage/storage.js';
import { expect } from 'vitest';
import { bringUpOnCeph, CephWorld } from '../../matrix/ceph-world.js';
import { VM } from '../../matrix/world.js';
import { testStateFolder } from '../lab/state-folder.js';
import { storageFolder } from './storage-folder.js';

export const LOCAL = ['vda', 'vdb'];
export const VOLUMES = ['vdc', 'vdd', 'vde', 'vdf'];

/** The matrix's world on Ceph, with what tests expect of it. */
export class MixedSystem extends CephWorld {
  static async start(): Promise<MixedSystem> {
    const options = { stateFolder: testStateFolder('ceph'), progress: console.log, volumes: VOLUMES.length };
    return new MixedSystem(await bringUpOnCeph({ ...options, storage: attachStorage(storageFolder) }));
  }

  async begin(request: Record<string, unknown> = {}): Promise<string> {
    return this.system.createSnapshot(VM, request);
  }

  /** How many snapshots Cinder counts against the project's quota. */
  async snapshotsCounted(): Promise<number> {
    const { projectId } = this.storage.cinder;
    const { body } = await this.storage.request('GET', `/os-quota-sets/${projectId}?usage=true`);
    const { snapshots } = body.quota_set as { snapshots: { in_use: number; reserved: number } };
    return snapshots.in_use + snapshots.reserved;
  }

  /** What the snapshot is worth by its content alone: all its disks are exported and checked. */
  async report(snapshot: SnapshotView): Promise<SetReport> {
    return verifySet(this.images(snapshot));
  }

  /** Every disk passes fsck with nothing to replay, and all together keep the order in which the guest wrote. */
  async expectConsistent(snapshot: SnapshotView): Promise<void> {
    expect(await this.inconsistencies(snapshot)).toEqual([]);
  }

  /** Nothing is left of any snapshot: not on the host, not in the guest, not in Cinder, not in Ceph. */
  async expectNothingLeft(): Promise<void> {
    expect(await this.leftovers()).toEqual([]);
  }
}
