/** The contract of the Cinder port over a real Cinder on Ceph, without authentication and with a real Keystone. */
import { randomUUID } from 'node:crypto';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { attachStorage, type CinderCaller, type Storage } from '@stillpoint/lab/storage/storage.js';
import { beforeAll, expect, test } from 'vitest';
import { type CinderUnderTest, describeCinder } from '../cinder/contract.js';
import { storageFolder } from './storage-folder.js';

let storage: Storage;
beforeAll(() => {
  storage = attachStorage(storageFolder);
});

async function realCinder(caller: CinderCaller): Promise<CinderUnderTest> {
  const cloud = readCloud({ env: storage.environment(caller) });
  if (cloud === undefined) throw new Error('no cloud');
  const cinder = new CinderClient(cloud);
  const strangersProject = randomUUID().replaceAll('-', '');

  const ask = async (method: string, path: string, body?: unknown, projectId = storage.cinder.projectId) => {
    const answer = await storage.request(method, path, body, projectId);
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.body;
  };
  const makeVolume = async (from: { snapshot_id?: string } = {}, projectId = storage.cinder.projectId) => {
    const { volume } = await ask('POST', '/volumes', { volume: { size: 1, ...from } }, projectId);
    const { id } = volume as { id: string };
    for (;;) {
      const { volume } = await ask('GET', `/volumes/${id}`, undefined, projectId);
      const { status } = volume as { status: string };
      if (status === 'available') return id;
      if (status !== 'creating') throw new Error(`volume ${id} is ${status}`);
    }
  };
  return {
    cinder,
    asAdministrator: caller === 'noauth',
    makeVolume: async (attachment) => {
      const id = await makeVolume();
      if (attachment !== undefined) await storage.attachVolume(id, attachment.instance, attachment.device);
      return id;
    },
    makeStrangersVolume: () => makeVolume({}, strangersProject),
    setVolumeStatus: async (id, status) => {
      await ask('POST', `/volumes/${id}/action`, { 'os-reset_status': { status } });
    },
    setSnapshotStatus: async (id, status) => {
      await ask('POST', `/snapshots/${id}/action`, { 'os-reset_status': { status } });
    },
    setQuota: (quota) => storage.setQuota(quota),
    makeDependent: async (snapshotId) => {
      const id = await makeVolume({ snapshot_id: snapshotId });
      return {
        remove: async () => {
          await ask('DELETE', `/volumes/${id}`);
          while ((await storage.request('GET', `/volumes/${id}`)).status !== 404);
        },
      };
    },
    close: () => cinder.close(),
  };
}

describeCinder('real, a member of Keystone', () => realCinder('member'));

// What differs is the way in: the whole suite for each would take minutes.
test.each(['noauth', 'application-credential'] as const)(
  'with %s a snapshot is made, found and deleted',
  async (caller) => {
    const { cinder, makeVolume, close } = await realCinder(caller);
    const metadata = { stillpoint_window: `${randomUUID()}.1` };
    await cinder.makeReady({ validForMs: 60_000, connections: 2 });
    const { id } = await cinder.createSnapshot({
      volumeId: await makeVolume(),
      name: caller,
      description: '',
      metadata,
    });
    while ((await cinder.snapshot(id)).status === 'creating');
    expect(await cinder.findSnapshots({ metadata })).toMatchObject([{ id, status: 'available', name: caller }]);
    await cinder.deleteSnapshot(id);
    while ((await cinder.findSnapshots({ metadata })).length > 0);
    await expect(cinder.snapshot(id)).rejects.toMatchObject({ code: 'VOLUME_SNAPSHOT_NOT_FOUND' });
    await close();
  },
);
