import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { CinderError, cinderErrors } from '@stillpoint/engine/cinder/errors.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { hostileText } from './domain-texts.js';
import { tries } from './runs.js';

/** A Keystone and a Cinder that answer what the API says, but for some parts of it. */

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const project = 'aaaa0000bbbb1111cccc2222dddd3333';
const volume = '11111111-2222-4333-8444-555555555555';
const id = '66666666-2222-4333-8444-555555555555';
const snapshot = {
  id,
  volume_id: volume,
  name: 'n',
  description: null,
  status: 'available',
  size: 1,
  created_at: '2026-11-21T12:00:00.000000',
  metadata: { stillpoint_window: 'w.1' },
};

let server: Server;
let address: string;
/** Given an address and the answer as it ought to be: what is answered. */
let answer: (path: string, right: Json) => { status: number; headers: Record<string, string>; body: string };

beforeAll(async () => {
  server = createServer((request, response) => {
    const path = (request.url ?? '').split('?')[0] ?? '';
    const { status, headers, body } = answer(path, rightAnswer(path));
    response.writeHead(status, headers);
    response.end(body);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

function rightAnswer(path: string): Json {
  if (path.endsWith('/auth/tokens')) {
    const endpoint = { interface: 'public', region: 'r', region_id: 'r', url: `${address}/v3/${project}` };
    return {
      token: {
        issued_at: '2026-11-21T12:00:00.000000Z',
        expires_at: '2026-11-21T13:00:00.000000Z',
        project: { id: project },
        catalog: [{ type: 'volumev3', endpoints: [endpoint] }],
      },
    };
  }
  if (path.endsWith('/v3/')) return { versions: [{ id: 'v3.0', version: '3.70', min_version: '3.0' }] };
  if (path.endsWith('/limits')) {
    const absolute = {
      maxTotalSnapshots: 10,
      totalSnapshotsUsed: 1,
      maxTotalVolumeGigabytes: 9,
      totalGigabytesUsed: 1,
    };
    return { limits: { absolute } };
  }
  if (path.includes('/volumes/')) {
    return { volume: { id: volume, name: 'v', status: 'in-use', size: 1, volume_type: 't', attachments: [] } };
  }
  return path.endsWith('/detail') ? { snapshots: [snapshot] } : { snapshot };
}

/** The same JSON with one place of it replaced, or given another key. */
function damaged(value: Json, at: number, by: Json): Json {
  let place = 0;
  const walk = (here: Json): Json => {
    if (place++ === at) return by;
    if (Array.isArray(here)) return here.map(walk);
    if (typeof here !== 'object' || here === null) return here;
    return Object.fromEntries(Object.entries(here).map(([key, each]) => [key, walk(each)]));
  };
  return walk(value);
}

const json = fc.oneof(
  hostileText,
  fc.jsonValue({ maxDepth: 2 }) as fc.Arbitrary<Json>,
  fc.constantFrom<Json>(
    'x'.repeat(100_000),
    Number.MAX_SAFE_INTEGER,
    -1,
    1e308,
    '../../volumes',
    `${id}/action`,
    {},
    [],
  ),
);

const fault = fc.record({
  path: fc.constantFrom('/auth/tokens', '/v3/', '/limits', '/volumes/', '/snapshots'),
  status: fc.constantFrom(200, 200, 200, 200, 202, 204, 300, 302, 400, 401, 403, 404, 409, 413, 429, 500, 503, 599),
  headers: fc.oneof(
    fc.constant<Record<string, string>>({}),
    fc.constantFrom<Record<string, string>>(
      { 'retry-after': 'soon' },
      { 'retry-after': '999999999999' },
      { 'retry-after': '-5' },
      { location: 'http://127.0.0.1:1/' },
      { 'content-encoding': 'gzip' },
      { 'x-subject-token': '' },
      { 'x-subject-token': 'other token' },
      { 'content-type': 'text/html' },
    ),
  ),
  at: fc.nat(25),
  by: json,
  raw: fc.option(
    fc.oneof(hostileText, fc.constantFrom('[', '{"a":', '"'.repeat(100), '['.repeat(100_000), '{"__proto__":{"a":1}}')),
    { nil: undefined, freq: 4 },
  ),
});

const calls: Record<string, (client: CinderClient) => Promise<unknown>> = {
  makeReady: (client) => client.makeReady({ validForMs: 60_000, connections: 2 }),
  project: (client) => client.project(),
  volume: (client) => client.volume(volume),
  snapshotQuota: (client) => client.snapshotQuota(),
  createSnapshot: (client) =>
    client.createSnapshot({ volumeId: volume, name: 'n', description: '', metadata: { stillpoint_window: 'w.1' } }),
  snapshot: (client) => client.snapshot(id),
  findSnapshots: (client) => client.findSnapshots({ metadata: { stillpoint_window: 'w.1' } }),
  deleteSnapshot: (client) => client.deleteSnapshot(id),
  describeSnapshot: (client) => client.describeSnapshot(id, { metadata: { stillpoint_grade: 'filesystem' } }),
  giveUpCreating: (client) => client.giveUpCreating(id),
};

test('whatever Keystone and Cinder answer, a call ends with what was asked for or with an error of ours, and asks nobody else', async () => {
  const password = 'a-secret-nobody-may-see';
  await fc.assert(
    fc.asyncProperty(
      fc.array(fault, { maxLength: 2 }),
      fc.constantFrom(...Object.keys(calls)),
      async (faults, name) => {
        answer = (path, right) => {
          const wrong = faults.find((each) => path.includes(each.path));
          const token: Record<string, string> = path.endsWith('/auth/tokens') ? { 'x-subject-token': 'token' } : {};
          if (wrong === undefined) return { status: 200, headers: token, body: JSON.stringify(right) };
          const body = wrong.raw ?? JSON.stringify(damaged(right, wrong.at, wrong.by));
          return {
            status: wrong.status,
            headers: { ...token, ...wrong.headers },
            body: wrong.status === 204 ? '' : body,
          };
        };
        const cloud = readCloud({
          env: {
            OS_AUTH_URL: `${address}/v3`,
            OS_USERNAME: 'u',
            OS_PASSWORD: password,
            OS_PROJECT_NAME: 'p',
            OS_USER_DOMAIN_NAME: 'd',
            OS_PROJECT_DOMAIN_NAME: 'd',
          },
        });
        if (cloud === undefined) throw new Error('no cloud');
        const client = new CinderClient(cloud, { requestTimeoutMs: 5_000, connectTimeoutMs: 1_000 });
        try {
          const got = await calls[name]?.(client);
          expect(JSON.stringify(got ?? null).length).toBeLessThan(300_000);
        } catch (error) {
          if (!(error instanceof CinderError)) throw error;
          expect(Object.keys(cinderErrors)).toContain(error.code);
          expect(error.message).not.toContain(password);
          expect(error.message.length).toBeLessThan(2_000);
          expect(error.message).not.toMatch(/\p{Cc}/u);
          if (error.retryAfterMs !== undefined) expect(error.retryAfterMs).toBeGreaterThanOrEqual(0);
        } finally {
          await client.close();
        }
      },
    ),
    tries(250),
  );
});
