/** Keystone: credentials, the catalogue, and tokens that end. */
import { inspect } from 'node:util';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import type { SeenRequest } from '@stillpoint/lab/cinder-stand-in/faults.js';
import {
  type CinderStandIn,
  type CinderStandInOptions,
  startCinderStandIn,
} from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';

let standIn: CinderStandIn;
let clients: CinderClient[] = [];
let requests: SeenRequest[] = [];
const times = { acceptMs: 0, cutMs: 0, availableMs: 0, deleteMs: 0 };
const start = async (options: CinderStandInOptions = {}) => {
  standIn = await startCinderStandIn({ times, onRequest: (request) => requests.push(request), ...options });
};
beforeEach(() => start());
afterEach(async () => {
  for (const client of clients) await client.close();
  clients = [];
  requests = [];
  await standIn.close();
});

function clientOf(change: Record<string, string> = {}): CinderClient {
  const cloud = readCloud({ env: { ...standIn.environment(), ...change } });
  if (cloud === undefined) throw new Error('no cloud');
  const client = new CinderClient(cloud);
  clients.push(client);
  return client;
}

const application = (change: Record<string, string> = {}) => ({
  OS_AUTH_TYPE: 'v3applicationcredential',
  OS_APPLICATION_CREDENTIAL_SECRET: 'credential-secret',
  OS_PASSWORD: '',
  ...change,
});

describe('credentials', () => {
  test.each<[string, Record<string, string>]>([
    ['a password', {}],
    ['an address without /v3', { OS_AUTH_URL: '' }],
    [
      'ids',
      {
        OS_USERNAME: '',
        OS_USER_ID: 'stillpoint',
        OS_PROJECT_NAME: '',
        OS_PROJECT_ID: 'aaaa0000bbbb1111cccc2222dddd3333',
      },
    ],
    ['an application credential', application({ OS_APPLICATION_CREDENTIAL_ID: '0123456789abcdef0123456789abcdef' })],
    ["an application credential's name", application({ OS_APPLICATION_CREDENTIAL_NAME: 'engine' })],
  ])('by %s are accepted', async (_case, change) => {
    const url = change.OS_AUTH_URL === '' ? { OS_AUTH_URL: standIn.authUrl.replace('/v3', '/') } : {};
    const id = standIn.addVolume();
    expect(await clientOf({ ...change, ...url }).volume(id)).toMatchObject({ id });
  });

  test.each<[string, Record<string, string>]>([
    ['password', { OS_PASSWORD: 'wrong-secret' }],
    [
      'secret',
      application({ OS_APPLICATION_CREDENTIAL_NAME: 'engine', OS_APPLICATION_CREDENTIAL_SECRET: 'wrong-secret' }),
    ],
    ['project', { OS_PROJECT_NAME: 'wrong' }],
  ])('with a wrong %s are refused, and the refusal shows no secret', async (_case, change) => {
    const error = await clientOf(change)
      .snapshotQuota()
      .catch((error: unknown) => error);
    expect(error).toMatchObject({
      code: 'CINDER_UNAUTHORISED',
      message: expect.stringMatching(/^Keystone at .* refuses the credentials/),
    });
    expect(inspect(error, { depth: 9, showHidden: true })).not.toContain('wrong-secret');
  });

  test('that the other side repeats to us are not quoted', async () => {
    const message = 'no user with the password stillpoint-password';
    standIn.faults.set(
      { service: 'keystone' },
      { does: 'answer', status: 401, body: { error: { code: 401, message } } },
    );
    await expect(clientOf().snapshotQuota()).rejects.toThrow(/no user with the password \(secret\)/);
    const client = clientOf();
    await client.snapshotQuota();
    const echo = (request: SeenRequest) => `stillpoint-password ${request.path}`;
    standIn.faults.set(
      { service: 'cinder' },
      {
        does: 'answer',
        status: 400,
        body: { badRequest: { code: 400, message: echo({ service: 'cinder', method: '', path: '', body: '' }) } },
      },
    );
    await expect(client.snapshotQuota()).rejects.toMatchObject({ code: 'CINDER_BAD_REQUEST' });
  });

  test('are sent once for many calls side by side', async () => {
    const client = clientOf();
    await Promise.all(Array.from({ length: 8 }, () => client.snapshotQuota()));
    expect(standIn.keystone.issued).toBe(1);
  });

  test('are not waited for by whoever has no time any more; the others get their token', async () => {
    const client = clientOf();
    let goOn = () => {};
    const until = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    const struck = standIn.faults.set({ service: 'keystone' }, { does: 'hold-request', until });
    const ending = new AbortController();
    const one = client.snapshotQuota({ signal: ending.signal });
    const other = client.snapshotQuota();
    await struck;
    ending.abort(new Error('no time'));
    await expect(one).rejects.toThrow('no time');
    goOn();
    await expect(other).resolves.toBeDefined();
    expect(standIn.keystone.issued).toBe(1);
  });
});

describe('a token', () => {
  test('is renewed before a window when it would end within it, and not otherwise', async () => {
    standIn.tokenLifetimeMs = 600_000;
    const client = clientOf();
    await client.makeReady({ validForMs: 60_000, connections: 1 });
    await client.makeReady({ validForMs: 60_000, connections: 1 });
    expect(standIn.keystone.issued).toBe(1);
    await client.makeReady({ validForMs: 590_000, connections: 1 });
    expect(standIn.keystone.issued).toBe(2);
  });

  test('that Cinder refuses is renewed, and the request repeated: a snapshot is made once', async () => {
    const client = clientOf();
    const volumeId = standIn.addVolume();
    await client.makeReady({ validForMs: 0, connections: 1 });
    standIn.keystone.revokeAll();
    await client.createSnapshot({ volumeId, name: 'n', description: '', metadata: {} });
    expect(standIn.keystone.issued).toBe(2);
    expect(standIn.volumes.snapshots()).toHaveLength(1);
  });

  test('that is refused when a window is made ready is renewed, too', async () => {
    const client = clientOf();
    await client.snapshotQuota();
    standIn.keystone.revokeAll();
    await client.makeReady({ validForMs: 0, connections: 3 });
    expect(standIn.keystone.issued).toBe(2);
  });

  test('that was refused to many is renewed once', async () => {
    const client = clientOf();
    await client.snapshotQuota();
    standIn.keystone.revokeAll();
    await Promise.all(Array.from({ length: 8 }, () => client.snapshotQuota()));
    expect(standIn.keystone.issued).toBe(2);
  });

  test('that is refused again ends it: nothing was done', async () => {
    const client = clientOf();
    await client.snapshotQuota();
    standIn.faults.set(
      { service: 'cinder', times: 9 },
      { does: 'answer', status: 401, body: { error: { code: 401, message: 'requires authentication' } } },
    );
    requests = [];
    const volumeId = standIn.addVolume();
    await expect(client.createSnapshot({ volumeId, name: 'n', description: '', metadata: {} })).rejects.toMatchObject({
      code: 'CINDER_UNAUTHORISED',
      mayHaveHappened: false,
    });
    expect(requests.filter(({ service }) => service === 'cinder')).toHaveLength(2);
  });
});

describe('the catalogue', () => {
  test('is read by region and interface', async () => {
    await expect(clientOf({ OS_REGION_NAME: 'lab', OS_INTERFACE: 'internal' }).snapshotQuota()).resolves.toBeDefined();
    await expect(clientOf({ OS_REGION_NAME: 'north' }).snapshotQuota()).rejects.toMatchObject({
      code: 'CINDER_NOT_CONFIGURED',
      message:
        "Keystone's catalogue has no public endpoint of volumev3 in the region north; it has public in lab, internal in lab, admin in lab.",
    });
  });

  test('is not asked where an endpoint is configured, with or without the project', async () => {
    for (const endpoint of [standIn.endpoint, standIn.endpoint.replace(/\/[^/]+$/, '/')]) {
      const client = clientOf({ OS_REGION_NAME: 'north', OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE: endpoint });
      await expect(client.snapshotQuota()).resolves.toBeDefined();
    }
  });
});

describe("what Keystone's failures are", () => {
  test.each<[string, number, unknown]>([
    ['CINDER_OVERLOADED', 503, 'busy'],
    ['CINDER_OVERLOADED', 429, 'slowly'],
    ['CINDER_FAILED', 500, { error: { code: 500, message: 'An unexpected error' } }],
    ['CINDER_UNREACHABLE', 504, '<html>Gateway timeout</html>'],
    ['CINDER_FORBIDDEN', 403, { error: { code: 403, message: 'You are not authorized' } }],
    ['CINDER_BAD_REQUEST', 400, { error: { code: 400, message: 'Expecting to find domain in user.' } }],
    ['CINDER_BAD_ANSWER', 404, '<html>no such page</html>'],
    ['CINDER_BAD_ANSWER', 201, '<html>Welcome</html>'],
    ['CINDER_BAD_ANSWER', 201, { token: { expires_at: 'tomorrow', issued_at: '2026-11-21T12:00:00Z' } }],
    ['CINDER_BAD_ANSWER', 201, { token: { expires_at: '2026-11-21T13:00:00Z', issued_at: '2026-11-21T12:00:00Z' } }],
    ['CINDER_BAD_ANSWER', 302, ''],
  ])('%s: HTTP %i', async (code, status, body) => {
    const volumeId = standIn.addVolume();
    standIn.faults.set({ service: 'keystone' }, { does: 'answer', status, body });
    await expect(
      clientOf().createSnapshot({ volumeId, name: 'n', description: '', metadata: {} }),
    ).rejects.toMatchObject({
      code,
      mayHaveHappened: false,
      message: expect.stringContaining('Keystone'),
    });
  });

  test('CINDER_UNREACHABLE: no answer within the time of the request, though others wait longer for the same one', async () => {
    const volumeId = standIn.addVolume();
    let answer = () => {};
    const until = new Promise<void>((resolve) => {
      answer = resolve;
    });
    standIn.faults.set({ service: 'keystone' }, { does: 'hold-answer', until });
    const client = clientOf();
    const patient = client.project();
    const snapshot = { volumeId, name: 'n', description: '', metadata: {} };
    await expect(client.createSnapshot(snapshot, { answerMs: 50 })).rejects.toMatchObject({
      code: 'CINDER_UNREACHABLE',
      mayHaveHappened: false,
      message: expect.stringMatching(/^Keystone .*50 ms/),
    });
    answer();
    await expect(patient).resolves.toBe(standIn.project.id);
  });

  test('CINDER_UNREACHABLE: nobody there', async () => {
    const client = clientOf();
    await standIn.down();
    await expect(client.snapshotQuota()).rejects.toMatchObject({
      code: 'CINDER_UNREACHABLE',
      message: expect.stringMatching(/^Keystone/),
    });
    await standIn.up();
    await expect(client.snapshotQuota()).resolves.toBeDefined();
  });

  test('CINDER_UNAUTHORISED: a token for no project', async () => {
    const token = { expires_at: '2026-11-21T13:00:00Z', issued_at: '2026-11-21T12:00:00Z' };
    standIn.faults.set(
      { service: 'keystone' },
      { does: 'answer', status: 201, body: { token }, headers: { 'x-subject-token': 'abc' } },
    );
    await expect(clientOf().snapshotQuota()).rejects.toMatchObject({
      code: 'CINDER_UNAUTHORISED',
      advice: expect.stringMatching(/OS_PROJECT_NAME/),
    });
  });
});
