import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CinderProxy } from '@stillpoint/lab/cinder-proxy.js';
import { defaultStateFolder, Lab } from '@stillpoint/lab/lab.js';
import { identifyProcess } from '@stillpoint/lab/processes.js';
import { isOrdered, verifySet } from '@stillpoint/lab/snapshot-check.js';
import { attachStorage, type Storage, startStorage } from '@stillpoint/lab/storage/storage.js';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { testStateFolder } from './state-folder.js';

const folder = testStateFolder('storage');
const start = () =>
  startStorage({
    folder,
    cacheFolder: join(defaultStateFolder(), 'cache'),
    keystone: true,
    monitor: 'fast',
    progress: console.log,
  });

/** Makes a snapshot of a volume and waits until it is available, which is when its data is cut. */
async function snapshot(storage: Storage, volumeId: string, name: string): Promise<string> {
  const made = await storage.request('POST', '/snapshots', { snapshot: { volume_id: volumeId, name, force: true } });
  expect(made.status).toBe(202);
  const { id } = made.body.snapshot as { id: string };
  for (;;) {
    const { body } = await storage.request('GET', `/snapshots/${id}`);
    const { status } = body.snapshot as { status: string };
    if (status === 'available') return id;
    expect(status).toBe('creating');
    await delay(20);
  }
}

let storage: Storage;

beforeAll(async () => {
  storage = await start();
});
afterAll(async () => {
  await storage?.stop();
});

describe('a storage', () => {
  it('has volumes that are attached and snapshotted through Cinder, and lie in Ceph', async () => {
    const vm = randomUUID();
    const id = await storage.createVolume('one');
    const volume = await storage.attachVolume(id, vm, '/dev/vdc');
    const snapshotId = await snapshot(storage, id, 'first');
    const { body } = await storage.request('GET', `/snapshots/detail?volume_id=${id}`);
    expect(body.snapshots).toEqual([expect.objectContaining({ id: snapshotId, name: 'first', status: 'available' })]);
    expect((await storage.request('GET', `/volumes/${id}`)).body.volume).toMatchObject({
      status: 'in-use',
      attachments: [expect.objectContaining({ server_id: vm, device: '/dev/vdc' })],
    });
    const inCeph = { name: `volume-${id}`, snapshots: [`snapshot-${snapshotId}`] };
    expect((await storage.rbdSnapshots()).images).toContainEqual(inCeph);
    expect(await storage.rbd(['info', `${storage.pool}/volume-${id}`])).toContain('size 1 GiB');
    const report = await verifySet([{ target: 'vdc', image: storage.snapshotImage(id, snapshotId) }]);
    expect(report).toMatchObject({ clean: true, numbers: [0] });
    await storage.removeVolume(volume);
    expect(await storage.rbdSnapshots()).toEqual({ images: [], trash: [] });
  });

  it('shows the same to the command cinder, without authentication and as a member of the project', async () => {
    const id = await storage.createVolume('seen');
    const snapshotId = await snapshot(storage, id, 'from-rest');
    for (const caller of ['noauth', 'member'] as const) {
      const { exitCode, stdout } = await storage.cinderCommand(['snapshot-list'], caller);
      expect(exitCode).toBe(0);
      expect(stdout).toMatch(new RegExp(`${snapshotId}.*available.*from-rest`));
    }
    expect((await storage.cinderCommand(['snapshot-list'], 'stranger')).stdout).not.toContain(snapshotId);
    const { exitCode } = await storage.cinderCommand(['snapshot-show', snapshotId], 'stranger');
    expect(exitCode).not.toBe(0);
    await storage.request('DELETE', `/volumes/${id}?cascade=true`);
  });

  it('gives tokens for passwords and for an application credential, and names its Cinder in the catalogue', async () => {
    const { keystone } = storage;
    if (keystone === undefined) throw new Error('It was started with Keystone');
    const { id, secret } = keystone.applicationCredential;
    const answer = await fetch(`${keystone.authUrl}/auth/tokens`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        auth: { identity: { methods: ['application_credential'], application_credential: { id, secret } } },
      }),
    });
    expect(answer.status).toBe(201);
    const { token } = (await answer.json()) as {
      token: { project: { id: string }; roles: { name: string }[]; catalog: { type: string; endpoints: object[] }[] };
    };
    expect(token.project.id).toBe(keystone.member.projectId);
    expect(token.roles.map(({ name }) => name)).toContain('member');
    expect(token.roles.map(({ name }) => name)).not.toContain('admin');
    expect(token.catalog.find(({ type }) => type === 'volumev3')?.endpoints).toEqual([
      expect.objectContaining({ url: `${keystone.cinderEndpoint}/${token.project.id}`, interface: 'public' }),
    ]);
  });

  it('has quotas that a test can set for a project', async () => {
    const projectId = randomUUID().replaceAll('-', '');
    await storage.setQuota({ volumes: 0 }, projectId);
    const wanted = { volume: { name: 'too-much', size: 1 } };
    expect(await storage.request('POST', '/volumes', wanted, projectId)).toMatchObject({
      status: 413,
      body: { overLimit: expect.anything() },
    });
  });

  it('has a monitor whose pace can be changed while it runs', async () => {
    const interval = () => storage.monitorOption('paxos_propose_interval');
    expect(await interval()).toBe(0.02);
    await storage.setMonitor('stock');
    expect(await interval()).toBe(1);
    await storage.daemon('mon').restart();
    expect(await interval()).toBe(1);
    await storage.setMonitor('fast');
    expect(await interval()).toBe(0.02);
  });

  it('has daemons each of which can be frozen, and goes on where it stood', async () => {
    for (const daemon of storage.daemons) {
      const { pids } = daemon;
      await daemon.freeze();
      expect([daemon.name, daemon.isFrozen]).toEqual([daemon.name, true]);
      await daemon.thaw();
      expect([daemon.name, daemon.isFrozen, daemon.pids]).toEqual([daemon.name, false, pids]);
    }
  });

  it('comes back with all it had after the end of every daemon, killed or stopped', async () => {
    const id = await storage.createVolume('kept');
    const before = storage.daemons.flatMap(({ pids }) => pids);
    await Promise.all(storage.daemons.map((daemon, index) => (index % 2 === 0 ? daemon.kill() : daemon.stop())));
    expect(before.map(identifyProcess).filter(Boolean)).toEqual([]);
    await storage.mend();
    expect(storage.daemons.filter(({ pids }) => pids.length === 0)).toEqual([]);
    const snapshotId = await snapshot(storage, id, 'after');
    expect((await storage.cinderCommand(['snapshot-list'], 'member')).stdout).toContain(snapshotId);
    await storage.request('DELETE', `/volumes/${id}?cascade=true`);
  });

  it('is found by other processes, and stays with the one that started it', async () => {
    const found = attachStorage(folder);
    expect(found.cinder).toEqual(storage.cinder);
    expect(found.daemon('mon').pids).toEqual(storage.daemon('mon').pids);
    expect((await found.request('GET', '/volumes')).status).toBe(200);
    expect(() => attachStorage(testStateFolder('no-storage'))).toThrow(/No storage is up/);
  });

  it('loses an answer of the real Cinder by the proxy before it', async () => {
    const id = await storage.createVolume('proxied');
    const proxy = await CinderProxy.start({ upstream: storage.cinder.endpoint });
    try {
      const lost = proxy.drop({ method: 'POST', path: /\/snapshots$/, what: 'answer' });
      const { projectId, userId } = storage.cinder;
      const asked = fetch(`${proxy.url}/v3/${projectId}/snapshots`, {
        method: 'POST',
        headers: { 'x-auth-token': `${userId}:${projectId}`, 'content-type': 'application/json' },
        body: JSON.stringify({ snapshot: { volume_id: id, name: 'lost', force: true } }),
      });
      await expect(asked).rejects.toThrow();
      expect((await lost.reached).status).toBe(202);
      const { body } = await storage.request('GET', `/snapshots/detail?volume_id=${id}`);
      expect(body.snapshots).toEqual([expect.objectContaining({ name: 'lost' })]);
    } finally {
      await proxy.close();
    }
  });

  describe('with a guest on it', () => {
    let lab: Lab;

    beforeAll(async () => {
      const ceph = { storage, volumes: 2 };
      lab = await Lab.up({ stateFolder: testStateFolder('mixed'), ceph, progress: console.log });
    });
    afterAll(async () => {
      await lab?.down();
      await rm(testStateFolder('mixed'), { recursive: true, force: true });
    });

    it('gets new volumes with new disks, and nothing of the old ones stays', async () => {
      const old = Object.values(lab.vm.volumes);
      await lab.reset();
      const volumes = Object.values(lab.vm.volumes);
      expect(volumes).toHaveLength(2);
      const { images, trash } = await storage.rbdSnapshots();
      for (const id of old) expect(images.map(({ name }) => name)).not.toContain(`volume-${id}`);
      for (const id of volumes) expect(images).toContainEqual({ name: `volume-${id}`, snapshots: [] });
      expect(trash).toEqual([]);
    });
  });
});

describe('the end of a storage', () => {
  it('comes by the next start, also by one that is called off, and leaves no process', async () => {
    const left = storage.daemons.flatMap(({ pids }) => pids);
    expect(left.length).toBeGreaterThanOrEqual(storage.daemons.length);
    const calledOff = new AbortController();
    const starting = startStorage({
      folder,
      cacheFolder: join(defaultStateFolder(), 'cache'),
      keystone: false,
      monitor: 'stock',
      signal: calledOff.signal,
      progress: (line) => {
        if (line.includes('serves')) calledOff.abort(new Error('called off'));
      },
    });
    await expect(starting).rejects.toThrow('called off');
    expect(left.map(identifyProcess).filter(Boolean)).toEqual([]);
    expect(() => attachStorage(folder)).toThrow(/No storage is up/);
  });
});

it('judges an order by the round that the writer makes', () => {
  expect([
    isOrdered([7, 7, 7]),
    isOrdered([8, 7, 7]),
    isOrdered([8, 8, 7]),
    isOrdered([7, 8, 7]),
    isOrdered([9, 8, 7]),
    isOrdered([9, 7]),
    isOrdered([]),
  ]).toEqual([true, true, true, false, false, false, false]);
});
