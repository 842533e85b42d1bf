/** Connections: opened before a window and kept; TLS; and the stand-in's own promises, on which other tests build. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { makeCa, makeHostCertificate } from '@stillpoint/host-agent/certs.js';
import {
  type CinderStandIn,
  type CinderStandInOptions,
  startCinderStandIn,
} from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';

let ends: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of ends.reverse()) await end();
  ends = [];
});

async function start(options: CinderStandInOptions = {}): Promise<CinderStandIn> {
  const standIn = await startCinderStandIn({
    times: { acceptMs: 0, cutMs: 1, availableMs: 2, deleteMs: 1 },
    ...options,
  });
  ends.push(() => standIn.close());
  return standIn;
}

function clientOf(standIn: CinderStandIn, change: Record<string, string> = {}): CinderClient {
  const cloud = readCloud({ env: { ...standIn.environment(), ...change } });
  if (cloud === undefined) throw new Error('no cloud');
  const client = new CinderClient(cloud);
  ends.push(() => client.close());
  return client;
}

const snapshotOf = (volumeId: string) => ({ volumeId, name: 'n', description: '', metadata: {} });

test('a window that was made ready opens no connection', async () => {
  const standIn = await start();
  const client = clientOf(standIn);
  const volumes = Array.from({ length: 8 }, () => standIn.addVolume());
  await client.makeReady({ validForMs: 60_000, connections: volumes.length });
  const { connections } = standIn;
  expect(connections).toBeGreaterThanOrEqual(volumes.length);
  await Promise.all(volumes.map((volumeId) => client.createSnapshot(snapshotOf(volumeId))));
  expect(standIn.connections).toBe(connections);
});

test('a create is not sent when its caller has changed its mind, on a kept connection and on a new one', async () => {
  const posts: string[] = [];
  const standIn = await start({ onRequest: ({ method, path }) => void (method === 'POST' && posts.push(path)) });
  const client = clientOf(standIn);
  const volumeId = standIn.addVolume();
  await client.makeReady({ validForMs: 60_000, connections: 1 });
  posts.length = 0;
  const beforeSending = () => {
    throw new RangeError('too late');
  };
  await expect(client.createSnapshot(snapshotOf(volumeId), { beforeSending })).rejects.toThrow(RangeError);
  await expect(client.createSnapshot(snapshotOf(volumeId), { beforeSending })).rejects.toThrow(RangeError);
  // Later than both, so they would have been seen by now.
  await client.createSnapshot(snapshotOf(volumeId));
  expect(posts).toEqual(['/snapshots']);
  expect(standIn.volumes.snapshots()).toHaveLength(1);
});

test('connections that broke meanwhile are opened anew when the next window is made ready', async () => {
  const standIn = await start();
  const client = clientOf(standIn);
  const volumes = [standIn.addVolume(), standIn.addVolume()];
  await client.makeReady({ validForMs: 0, connections: 2 });
  // At once: the client has not even heard of it.
  await standIn.down();
  await standIn.up();
  await client.makeReady({ validForMs: 0, connections: 2 });
  const { connections } = standIn;
  await Promise.all(volumes.map((volumeId) => client.createSnapshot(snapshotOf(volumeId))));
  expect(standIn.connections).toBe(connections);
});

describe('TLS', () => {
  let folder: string;
  let tls: { key: string; cert: string };
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'stillpoint-cinder-tls-'));
    await makeCa(folder);
    await makeHostCertificate(folder, 'localhost');
    tls = {
      key: await readFile(join(folder, 'localhost-key.pem'), 'utf8'),
      cert: await readFile(join(folder, 'localhost.pem'), 'utf8'),
    };
  });
  afterAll(() => rm(folder, { recursive: true }));

  // The certificate is for localhost, not for the address.
  const byName = (standIn: CinderStandIn) => ({
    OS_AUTH_URL: standIn.authUrl.replace('127.0.0.1', 'localhost'),
    OS_VOLUME_ENDPOINT_OVERRIDE: standIn.endpoint.replace('127.0.0.1', 'localhost'),
  });

  test('with the CA that is configured works', async () => {
    const standIn = await start({ tls });
    const id = standIn.addVolume();
    const client = clientOf(standIn, { ...byName(standIn), OS_CACERT: join(folder, 'ca.pem') });
    await client.makeReady({ validForMs: 0, connections: 3 });
    expect(await client.volume(id)).toMatchObject({ id });
  });

  test('without it is refused before anything is sent, and the advice says what to configure', async () => {
    let requests = 0;
    const standIn = await start({
      tls,
      onRequest: () => {
        requests += 1;
      },
    });
    await expect(clientOf(standIn, byName(standIn)).snapshotQuota()).rejects.toMatchObject({
      code: 'CINDER_UNREACHABLE',
      mayHaveHappened: false,
      advice: expect.stringMatching(/OS_CACERT/),
    });
    expect(requests).toBe(0);
  });

  test('of another name is refused', async () => {
    const standIn = await start({ tls });
    await expect(clientOf(standIn, { OS_CACERT: join(folder, 'ca.pem') }).snapshotQuota()).rejects.toMatchObject({
      code: 'CINDER_UNREACHABLE',
    });
  });

  test('unchecked works, where that is wanted', async () => {
    const standIn = await start({ tls });
    await expect(clientOf(standIn, { OS_INSECURE: 'true' }).snapshotQuota()).resolves.toBeDefined();
  });
});

describe('the stand-in', () => {
  const until = async (client: CinderClient, id: string, status: string) => {
    while ((await client.snapshot(id)).status !== status);
  };

  test('cuts before a snapshot is available, and keeps what the guest had then', async () => {
    let written = 0;
    const standIn = await start({ onCut: (volumeId, snapshotId) => ({ volumeId, snapshotId, written }) });
    const client = clientOf(standIn);
    const volumeId = standIn.addVolume();
    written = 1;
    const asked = performance.now();
    const { id } = await client.createSnapshot(snapshotOf(volumeId));
    await until(client, id, 'available');
    const available = performance.now();
    written = 2;
    const cut = await standIn.volumes.cut(id);
    expect(cut?.content).toEqual({ volumeId, snapshotId: id, written: 1 });
    expect(cut?.at).toBeGreaterThan(asked);
    expect(cut?.at).toBeLessThan(available);
  });

  test('that loses an answer has made the snapshot; that loses the request has not', async () => {
    const standIn = await start();
    const client = clientOf(standIn);
    const volumeId = standIn.addVolume();
    await client.makeReady({ validForMs: 0, connections: 1 });
    for (const [does, made] of [
      ['lose-answer', 1],
      ['lose-request', 1],
    ] as const) {
      standIn.faults.set({ method: 'POST', body: new RegExp(volumeId) }, { does });
      await expect(client.createSnapshot(snapshotOf(volumeId))).rejects.toMatchObject({
        code: 'CINDER_UNREACHABLE',
        mayHaveHappened: true,
      });
      expect(standIn.volumes.snapshots()).toHaveLength(made);
    }
  });

  test('sticks in creating, fails, and holds an answer, as told', async () => {
    const standIn = await start();
    const client = clientOf(standIn);
    const volumeId = standIn.addVolume();
    standIn.volumes.nextSnapshot(volumeId, 'sticks');
    const stuck = await client.createSnapshot(snapshotOf(volumeId));
    standIn.volumes.nextSnapshot(volumeId, 'fails');
    const failed = await client.createSnapshot(snapshotOf(volumeId));
    await until(client, failed.id, 'error');
    expect(await client.snapshot(stuck.id)).toMatchObject({ status: 'creating' });
    expect(standIn.volumes.cut(stuck.id)).toBeUndefined();

    let answer = () => {};
    const held = standIn.faults.set(
      { method: 'POST' },
      {
        does: 'hold-answer',
        until: new Promise<void>((resolve) => {
          answer = resolve;
        }),
      },
    );
    const creating = client.createSnapshot(snapshotOf(volumeId));
    await held;
    answer();
    await expect(creating).resolves.toMatchObject({ volumeId });
  });

  test('that is down refuses connections, and goes on at the same place', async () => {
    const standIn = await start();
    const client = clientOf(standIn, standIn.environment({ noauth: true }));
    const id = standIn.addVolume();
    await standIn.down();
    await expect(client.createSnapshot(snapshotOf(id))).rejects.toMatchObject({
      code: 'CINDER_UNREACHABLE',
      mayHaveHappened: false,
    });
    await standIn.up();
    expect(await client.volume(id)).toMatchObject({ id });
  });
});
