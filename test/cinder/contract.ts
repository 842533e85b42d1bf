import { randomUUID } from 'node:crypto';
import type { Cinder, NewVolumeSnapshot, VolumeSnapshot } from '@stillpoint/engine/cinder/cinder.js';
import { type CinderErrorCode, isCinderError } from '@stillpoint/engine/cinder/errors.js';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';

/**
 * What a Cinder brings to the contract: our client, connected as a user who has the role member (or, without authentication, as whoever), and the hands of its administrator, who acts on the
 * world and never through our client. Volumes are 1 GiB.
 */
export interface CinderUnderTest {
  readonly cinder: Cinder;
  /** Without authentication everybody is an administrator, to whom Cinder refuses less. */
  readonly asAdministrator: boolean;
  /** A volume of the project: in-use, attached to `instance` at `device`, if they are given; otherwise available. */
  makeVolume(attachment?: { instance: string; device: string }): Promise<string>;
  /** A volume of another project. */
  makeStrangersVolume(): Promise<string>;
  setVolumeStatus(volumeId: string, status: string): Promise<void>;
  setSnapshotStatus(snapshotId: string, status: string): Promise<void>;
  /** -1: no limit. */
  setQuota(quota: { snapshots: number; gigabytes: number }): Promise<void>;
  /** Makes a volume of the snapshot, on which the snapshot's deletion then fails; `remove` deletes that volume. */
  makeDependent(snapshotId: string): Promise<{ remove(): Promise<void> }>;
  /** After all tests: everything that was made goes. */
  close(): Promise<void>;
}

const nobody = '00000000-0000-4000-8000-00000000dead';

/** Every method and the errors that the port promises, over one implementation. */
export function describeCinder(name: string, setup: () => Promise<CinderUnderTest>): void {
  describe(`Cinder: ${name}`, () => {
    let under: CinderUnderTest;
    let cinder: Cinder;
    let volume: string;
    const instance = randomUUID();
    const made = new Set<string>();

    beforeAll(async () => {
      under = await setup();
      cinder = under.cinder;
      volume = await under.makeVolume({ instance, device: '/dev/vdc' });
    });
    afterEach(async () => {
      await under.setQuota({ snapshots: -1, gigabytes: -1 });
      await under.setVolumeStatus(volume, 'in-use');
      for (const id of made) await remove(id);
    });
    afterAll(() => under?.close());

    const request = (change: Partial<NewVolumeSnapshot> = {}): NewVolumeSnapshot => ({
      volumeId: volume,
      name: 'web-1 vdc',
      description: "Stillpoint's: of web-1",
      metadata: { stillpoint_installation: 'lab', stillpoint_window: `${randomUUID()}.1` },
      ...change,
    });
    const create = async (change: Partial<NewVolumeSnapshot> = {}): Promise<VolumeSnapshot> => {
      const snapshot = await cinder.createSnapshot(request(change));
      made.add(snapshot.id);
      return snapshot;
    };
    const reached = async (id: string, status: string): Promise<VolumeSnapshot> => {
      for (;;) {
        const snapshot = await cinder.snapshot(id);
        if (snapshot.status === status) return snapshot;
        if (snapshot.status === 'error') throw new Error(`${id} came to error`);
      }
    };
    const available = async (change: Partial<NewVolumeSnapshot> = {}) =>
      reached((await create(change)).id, 'available');
    const gone = async (id: string): Promise<void> => {
      for (;;) {
        try {
          await cinder.snapshot(id);
        } catch (error) {
          if (isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND')) break;
          throw error;
        }
      }
      made.delete(id);
    };
    const remove = async (id: string): Promise<void> => {
      await cinder.deleteSnapshot(id);
      await gone(id);
    };
    const rejects = async (call: Promise<unknown>, code: CinderErrorCode): Promise<void> => {
      await expect(call).rejects.toMatchObject({ name: 'CinderError', code, mayHaveHappened: false });
    };

    describe('volumes', () => {
      it('tell what they are and who has them', async () => {
        expect(await cinder.volume(volume)).toMatchObject({
          id: volume,
          status: 'in-use',
          sizeGiB: 1,
          attachments: [{ instance, device: '/dev/vdc', host: expect.any(String) }],
          volumeType: expect.stringMatching(/./),
        });
      });

      it('are of a project that has an id', async () => {
        expect(await cinder.project()).toMatch(/^[\w-]+$/);
      });

      it('without an attachment are available', async () => {
        const free = await under.makeVolume();
        expect(await cinder.volume(free)).toMatchObject({ status: 'available', attachments: [] });
      });

      it('that do not exist, or are of another project, are not found', async () => {
        await rejects(cinder.volume(nobody), 'VOLUME_NOT_FOUND');
        await rejects(cinder.volume(await under.makeStrangersVolume()), 'VOLUME_NOT_FOUND');
      });
    });

    describe('a snapshot', () => {
      it('of a volume in use is creating, then available, and is what was asked for', async () => {
        const asked = request({ name: 'ein Name: "Anführung" \u2603', description: "it's\\one" });
        const snapshot = await create(asked);
        expect(snapshot).toMatchObject({ ...asked, id: expect.any(String), status: 'creating', sizeGiB: 1 });
        const done = await reached(snapshot.id, 'available');
        expect(done).toEqual({ ...snapshot, status: 'available' });
        expect(Math.abs(Date.parse(done.createdAt) - Date.now())).toBeLessThan(600_000);
      });

      it('of a volume that nobody uses can be made, too', async () => {
        const free = await under.makeVolume();
        expect(await available({ volumeId: free })).toMatchObject({ volumeId: free });
      });

      it('of several volumes can be made side by side', async () => {
        const volumes = [volume, await under.makeVolume(), await under.makeVolume()];
        await cinder.makeReady({ validForMs: 60_000, connections: volumes.length });
        const snapshots = await Promise.all(volumes.map((volumeId) => available({ volumeId })));
        expect(snapshots.map(({ volumeId }) => volumeId)).toEqual(volumes);
      });

      it('of a volume that is busy is refused, with its status', async () => {
        for (const status of ['error', 'maintenance', 'backing-up']) {
          await under.setVolumeStatus(volume, status);
          await rejects(cinder.createSnapshot(request()), 'VOLUME_BUSY');
          await expect(cinder.createSnapshot(request())).rejects.toThrow(`is ${status},`);
        }
      });

      it('of a volume that is not there, or not ours, is refused', async () => {
        await rejects(cinder.createSnapshot(request({ volumeId: nobody })), 'VOLUME_NOT_FOUND');
        const volumeId = await under.makeStrangersVolume();
        const create = cinder.createSnapshot(request({ volumeId }));
        if (under.asAdministrator) await expect(create).resolves.toMatchObject({ volumeId });
        else await rejects(create, 'VOLUME_NOT_FOUND');
      });

      it('with a name that is too long is refused', async () => {
        await rejects(cinder.createSnapshot(request({ name: 'n'.repeat(256) })), 'CINDER_BAD_REQUEST');
      });

      it('that is not there is not found, whatever is asked of it', async () => {
        await rejects(cinder.snapshot(nobody), 'VOLUME_SNAPSHOT_NOT_FOUND');
        await rejects(cinder.deleteSnapshot(nobody), 'VOLUME_SNAPSHOT_NOT_FOUND');
        await rejects(cinder.describeSnapshot(nobody, { description: 'd' }), 'VOLUME_SNAPSHOT_NOT_FOUND');
        await rejects(cinder.describeSnapshot(nobody, { metadata: { a: 'b' } }), 'VOLUME_SNAPSHOT_NOT_FOUND');
        await rejects(cinder.giveUpCreating(nobody), 'VOLUME_SNAPSHOT_NOT_FOUND');
      });

      it('is described anew, and keeps the metadata that it had', async () => {
        const { id, metadata } = await available();
        await cinder.describeSnapshot(id, {
          description: 'graded filesystem',
          metadata: { stillpoint_grade: 'filesystem' },
        });
        expect(await cinder.snapshot(id)).toMatchObject({
          description: 'graded filesystem',
          metadata: { ...metadata, stillpoint_grade: 'filesystem' },
        });
      });

      it('is gone some time after its deletion', async () => {
        const { id } = await available();
        await cinder.deleteSnapshot(id);
        await gone(id);
        await rejects(cinder.deleteSnapshot(id), 'VOLUME_SNAPSHOT_NOT_FOUND');
      });

      it('of which a volume was made is deleted in words only', async () => {
        const { id } = await available();
        const dependent = await under.makeDependent(id);
        await cinder.deleteSnapshot(id);
        await reached(id, 'available');
        await dependent.remove();
      });

      it('in creating is not deleted, but can be given up', async () => {
        const { id } = await available();
        await under.setSnapshotStatus(id, 'creating');
        await rejects(cinder.deleteSnapshot(id), 'VOLUME_SNAPSHOT_BUSY');
        await cinder.giveUpCreating(id);
        expect(await cinder.snapshot(id)).toMatchObject({ status: 'error' });
        await remove(id);
      });

      it('that is available is not given up', async () => {
        const { id } = await available();
        await rejects(cinder.giveUpCreating(id), 'VOLUME_SNAPSHOT_BUSY');
      });
    });

    describe('the list of snapshots', () => {
      it('is searched by all of the metadata and by the volume', async () => {
        const other = await under.makeVolume();
        const window = `${randomUUID()}.1`;
        const metadata = { stillpoint_installation: 'lab', stillpoint_window: window };
        const one = await available({ metadata: { ...metadata, stillpoint_disk: 'vdc' } });
        const two = await available({ volumeId: other, metadata });
        await available({ metadata: { ...metadata, stillpoint_window: `${window}0` } });
        const ids = async (query: Parameters<Cinder['findSnapshots']>[0]) =>
          (await cinder.findSnapshots(query)).map(({ id }) => id).sort();
        expect(await ids({ metadata })).toEqual([one.id, two.id].sort());
        expect(await ids({ metadata, volumeId: other })).toEqual([two.id]);
        expect(await ids({ metadata: { ...metadata, stillpoint_disk: 'vdc' } })).toEqual([one.id]);
        expect(await ids({ metadata: { ...metadata, stillpoint_disk: 'vdd' } })).toEqual([]);
        expect(await cinder.findSnapshots({ metadata, volumeId: volume })).toEqual([one]);
      });

      it('is searched by values with any characters', async () => {
        const metadata = { odd: `it's {"a": 'b'}, \\ & % _ + ü ☃` };
        const { id } = await available({ metadata });
        expect(await cinder.findSnapshots({ metadata })).toMatchObject([{ id }]);
        expect(await cinder.findSnapshots({ metadata: { odd: metadata.odd.slice(0, -1) } })).toEqual([]);
      });

      it('has a snapshot from its creation on', async () => {
        const metadata = { stillpoint_window: `${randomUUID()}.1` };
        const { id } = await create({ metadata });
        expect(await cinder.findSnapshots({ metadata })).toMatchObject([{ id, metadata }]);
        await reached(id, 'available');
      });
    });

    describe('the quota', () => {
      it('is told, with what is used of it', async () => {
        await under.setQuota({ snapshots: 50, gigabytes: 500 });
        const before = await cinder.snapshotQuota();
        expect(before).toMatchObject({ snapshots: { limit: 50 }, gigabytes: { limit: 500 } });
        await available();
        const after = await cinder.snapshotQuota();
        expect(after.snapshots.used).toBe(before.snapshots.used + 1);
        expect(after.gigabytes.used).toBe(before.gigabytes.used + 1);
      });

      it('without a limit is -1', async () => {
        expect(await cinder.snapshotQuota()).toMatchObject({ snapshots: { limit: -1 }, gigabytes: { limit: -1 } });
      });

      it('of snapshots that is used up is named', async () => {
        const { snapshots } = await cinder.snapshotQuota();
        await under.setQuota({ snapshots: snapshots.used, gigabytes: -1 });
        await rejects(cinder.createSnapshot(request()), 'CINDER_QUOTA');
        await expect(cinder.createSnapshot(request())).rejects.toThrow(/quota of snapshots/);
      });

      it('of gigabytes that is used up is named', async () => {
        const { gigabytes } = await cinder.snapshotQuota();
        await under.setQuota({ snapshots: -1, gigabytes: gigabytes.used });
        await rejects(cinder.createSnapshot(request()), 'CINDER_QUOTA');
        await expect(cinder.createSnapshot(request())).rejects.toThrow(/quota of gigabytes/);
      });
    });

    it('a call whose signal has ended is given up with its reason', async () => {
      const reason = new Error('the window was closed');
      await expect(cinder.volume(volume, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    });
  });
}
