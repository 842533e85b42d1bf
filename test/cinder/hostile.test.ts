/** Servers that are not what they say, or not well: what the client makes of it, and what it never does. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { type AddressInfo, createServer as createTcpServer, type Socket } from 'node:net';
import { CinderClient, type CinderClientSettings } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { afterEach, describe, expect, test } from 'vitest';

const project = 'aaaa0000bbbb1111cccc2222dddd3333';
const volume = '11111111-2222-4333-8444-555555555555';
const snapshot = {
  id: '66666666-2222-4333-8444-555555555555',
  volume_id: volume,
  name: 'n',
  description: null,
  status: 'creating',
  size: 1,
  created_at: '2026-11-21T12:00:00.000000',
  metadata: {},
};
const versions = { versions: [{ id: 'v3.0', status: 'CURRENT', version: '3.70', min_version: '3.0' }] };

let ends: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of ends.reverse()) await end();
  ends = [];
});

/** A client of whatever listens there. */
function clientOf(
  server: Server | ReturnType<typeof createTcpServer>,
  settings: CinderClientSettings = {},
): CinderClient {
  const { port } = server.address() as AddressInfo;
  const cloud = readCloud({
    env: { OS_AUTH_TYPE: 'noauth', OS_ENDPOINT: `http://127.0.0.1:${port}/v3`, OS_PROJECT_ID: project },
  });
  if (cloud === undefined) throw new Error('no cloud');
  const client = new CinderClient(cloud, settings);
  ends.push(() => client.close());
  return client;
}

/** A Cinder whose versions are right; `answer` does the rest. */
async function cinderThat(
  answer: (request: IncomingMessage, response: ServerResponse) => void,
  settings: CinderClientSettings = {},
): Promise<CinderClient> {
  const server = createServer((request, response) => {
    if (request.url === '/v3/') response.end(JSON.stringify(versions));
    else answer(request, response);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  ends.push(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return clientOf(server, settings);
}

const answering = (body: unknown, status = 200, headers: Record<string, string> = {}) =>
  cinderThat((_request, response) => {
    response.writeHead(status, headers);
    response.end(typeof body === 'string' ? body : JSON.stringify(body));
  });

const create = (client: CinderClient) =>
  client.createSnapshot({ volumeId: volume, name: 'n', description: '', metadata: {} });

describe('an answer that is none of the API', () => {
  test.each<[string, unknown, number?, Record<string, string>?]>([
    ['no JSON', '<html>Welcome</html>'],
    ['nothing', ''],
    ['null', null],
    ['a list', []],
    ['another type for a text', { snapshot: { ...snapshot, status: { a: 1 } } }],
    ['another type for a number', { snapshot: { ...snapshot, size: '1' } }],
    ['an id that is a path', { snapshot: { ...snapshot, id: '../../volumes' } }],
    ['another snapshot than was asked for', { snapshot: { ...snapshot, id: volume } }],
    ['no time', { snapshot: { ...snapshot, created_at: 'yesterday' } }],
    ['metadata that are no texts', { snapshot: { ...snapshot, metadata: { a: [] } } }],
    ['a text without end', { snapshot: { ...snapshot, status: 's'.repeat(5000) } }],
    ['packed bytes', 'x', 200, { 'content-encoding': 'gzip' }],
    ['a redirect', '', 302, { location: 'http://127.0.0.1:1/' }],
    ['a permanent redirect', '', 308, { location: '/v3/' }],
    ['a 404 of a proxy', '<html>not found</html>', 404],
    ['a 404 about something else', { itemNotFound: { code: 404, message: 'The resource could not be found.' } }, 404],
    ['a 400 of a proxy', 'bad', 400],
  ])('is told as that: %s', async (_case, body, status, headers) => {
    const client = await answering(body, status, headers);
    await expect(client.snapshot(snapshot.id)).rejects.toMatchObject({
      code: 'CINDER_BAD_ANSWER',
      mayHaveHappened: false,
    });
  });

  test('to a creation leaves open whether it has happened', async () => {
    for (const body of ['', { snapshot: { ...snapshot, volume_id: snapshot.id } }]) {
      const client = await answering(body, 202);
      await expect(create(client)).rejects.toMatchObject({ code: 'CINDER_BAD_ANSWER', mayHaveHappened: true });
    }
    await expect(create(await answering({ snapshot }, 202))).resolves.toMatchObject({ id: snapshot.id });
  });

  test('is not read to its end when it is too long', async () => {
    let sent = 0;
    const client = await cinderThat((_request, response) => {
      const piece = 'x'.repeat(1024 * 1024);
      const more = (): void => {
        if (response.destroyed || sent > 200) return;
        sent += 1;
        if (response.write(piece)) setImmediate(more);
        else response.once('drain', more);
      };
      more();
    });
    await expect(client.snapshot(snapshot.id)).rejects.toMatchObject({
      code: 'CINDER_BAD_ANSWER',
      message: expect.stringMatching(/more than 16777216 bytes/),
    });
    expect(sent).toBeLessThan(100);
  });

  test('of bytes that are no HTTP is told as that', async () => {
    const server = createTcpServer((socket) => socket.resume().end('SSH-2.0-OpenSSH_9.2\r\n'));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    ends.push(() => new Promise((resolve) => server.close(resolve)));
    await expect(clientOf(server).volume(volume)).rejects.toMatchObject({ code: 'CINDER_BAD_ANSWER' });
  });

  test('with a change of protocol is told as that', async () => {
    const client = await cinderThat((request) => {
      request.socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n');
    });
    await expect(client.volume(volume)).rejects.toMatchObject({ code: 'CINDER_BAD_ANSWER' });
  });
});

describe('versions', () => {
  test.each<[string, unknown]>([
    ['that are none', { versions: [] }],
    ['of v2 only', { versions: [{ id: 'v2.0', version: '', min_version: '' }] }],
    ['without numbers', { versions: [{ id: 'v3.0', version: '3.x', min_version: '3.0' }] }],
    ['that are all newer than ours', { versions: [{ id: 'v3.0', version: '3.99', min_version: '3.90' }] }],
  ])('%s are no Cinder that we know', async (_case, body) => {
    const server = createServer((_request, response) => response.end(JSON.stringify(body)));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    ends.push(() => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    });
    await expect(create(clientOf(server))).rejects.toMatchObject({ code: 'CINDER_BAD_ANSWER', mayHaveHappened: false });
  });
});

describe('a list', () => {
  test('goes on where it ended, whatever address it gives for that', async () => {
    const asked: string[] = [];
    const client = await cinderThat((request, response) => {
      asked.push(request.url ?? '');
      const first = !(request.url ?? '').includes('marker');
      const links = [{ rel: 'next', href: 'http://169.254.169.254/latest/meta-data' }];
      const id = first ? snapshot.id : volume;
      response.end(JSON.stringify({ snapshots: [{ ...snapshot, id }], ...(first ? { snapshots_links: links } : {}) }));
    });
    expect(await client.findSnapshots({ metadata: {} })).toMatchObject([{ id: snapshot.id }, { id: volume }]);
    expect(asked).toEqual([`/v3/${project}/snapshots/detail`, `/v3/${project}/snapshots/detail?marker=${snapshot.id}`]);
  });

  test.each([1, 2])('that comes round again after %i pages ends', async (different) => {
    let pages = 0;
    const client = await cinderThat((_request, response) => {
      pages += 1;
      const id = pages % different === 0 ? snapshot.id : volume;
      response.end(JSON.stringify({ snapshots: [{ ...snapshot, id }], snapshots_links: [{ rel: 'next', href: '' }] }));
    });
    await expect(client.findSnapshots({ metadata: {} })).rejects.toMatchObject({ code: 'CINDER_BAD_ANSWER' });
  });

  test('shows nothing of what was not asked for, nor of another project', async () => {
    const others = [
      { ...snapshot, metadata: { stillpoint_window: 'w.10' } },
      { ...snapshot, id: volume, metadata: { stillpoint_window: 'w.1' }, volume_id: snapshot.id },
      {
        ...snapshot,
        metadata: { stillpoint_window: 'w.1' },
        'os-extended-snapshot-attributes:project_id': 'b'.repeat(32),
      },
      { ...snapshot, metadata: JSON.parse('{"__proto__": "x"}') as object },
    ];
    const client = await answering({ snapshots: others });
    expect(await client.findSnapshots({ metadata: { stillpoint_window: 'w.1' }, volumeId: volume })).toEqual([]);
    expect(await client.findSnapshots({ metadata: { constructor: 'x' } })).toEqual([]);
  });
});

describe('a server that does not answer', () => {
  test('whom nobody can reach was sent nothing', async () => {
    const server = createTcpServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const client = clientOf(server);
    await new Promise((resolve) => server.close(resolve));
    await expect(create(client)).rejects.toMatchObject({
      code: 'CINDER_UNREACHABLE',
      mayHaveHappened: false,
      message: expect.stringMatching(/^Cinder at http:\/\/127\.0\.0\.1:\d+ did not answer: .*ECONNREFUSED/),
    });
  });

  test('within its time may have done it', async () => {
    const client = await cinderThat(() => {}, { requestTimeoutMs: 50 });
    await expect(create(client)).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', mayHaveHappened: true });
    await expect(client.volume(volume)).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', mayHaveHappened: false });
  });

  test('within the time of this one request may have done it, too', async () => {
    const client = await cinderThat(() => {});
    const snapshot = { volumeId: volume, name: 'n', description: '', metadata: {} };
    await expect(client.createSnapshot(snapshot, { answerMs: 50 })).rejects.toMatchObject({
      code: 'CINDER_UNREACHABLE',
      mayHaveHappened: true,
      message: expect.stringContaining('50 ms'),
    });
    await expect(client.volume(volume, { answerMs: 50 })).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE' });
  });

  test('but byte by byte is not waited for longer', async () => {
    const client = await cinderThat(
      (_request, response) => {
        response.write('{');
        const drip = setInterval(() => response.write(' '), 5);
        response.once('close', () => clearInterval(drip));
      },
      { requestTimeoutMs: 80 },
    );
    await expect(create(client)).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', mayHaveHappened: true });
  });

  test('and breaks off may have done it', async () => {
    const before = await cinderThat((request) => request.socket.destroy());
    await expect(create(before)).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', mayHaveHappened: true });
    const within = await cinderThat((request, response) => {
      response.writeHead(202, { 'content-length': '1000' });
      response.write('{"snapshot"', () => request.socket.destroy());
    });
    await expect(create(within)).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', mayHaveHappened: true });
  });

  test('is left by whoever has no time any more, and the connection with it', async () => {
    let closed: Promise<unknown> | undefined;
    const reason = new Error('the window was closed');
    const ending = new AbortController();
    const client = await cinderThat((request) => {
      closed = once(request.socket, 'close');
      ending.abort(reason);
    });
    await expect(client.volume(volume, { signal: ending.signal })).rejects.toBe(reason);
    await closed;
    expect(closed).toBeDefined();
  });

  test('with TLS, where the handshake is never finished, was sent nothing', async () => {
    const sockets: Socket[] = [];
    const server = createTcpServer((socket) => sockets.push(socket));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    ends.push(() => {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(resolve));
    });
    const { port } = server.address() as AddressInfo;
    const cloud = readCloud({
      env: { OS_AUTH_TYPE: 'noauth', OS_ENDPOINT: `https://127.0.0.1:${port}/v3`, OS_PROJECT_ID: project },
    });
    if (cloud === undefined) throw new Error('no cloud');
    const client = new CinderClient(cloud, { connectTimeoutMs: 50 });
    ends.push(() => client.close());
    await expect(create(client)).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', mayHaveHappened: false });
  });
});

describe('what goes out', () => {
  test('never has a path that the caller could bend', async () => {
    const client = await answering({ snapshot });
    for (const id of ['', '..', `${volume}/action`, '../volumes', `${volume}?all_tenants=1`, `${volume}\n`, 'x\0']) {
      await expect(client.volume(id)).rejects.toMatchObject({ code: 'CINDER_BAD_REQUEST' });
      await expect(client.snapshot(id)).rejects.toMatchObject({ code: 'CINDER_BAD_REQUEST' });
      await expect(client.deleteSnapshot(id)).rejects.toMatchObject({ code: 'CINDER_BAD_REQUEST' });
      await expect(client.findSnapshots({ metadata: {}, volumeId: id })).rejects.toMatchObject({
        code: 'CINDER_BAD_REQUEST',
      });
    }
  });
});

test('what a server says is quoted in one line, without control characters, and not at any length', async () => {
  const message = `Invalid volume: \u0000\u001b[31mred\r\nnext line\u202e ${'x'.repeat(10_000)}`;
  const client = await answering({ badRequest: { code: 400, message } }, 400);
  const error = await create(client).catch((error: Error) => error);
  expect(error).toMatchObject({ code: 'VOLUME_BUSY' });
  const { message: text } = error as Error;
  expect(text).toMatch(/Invalid volume: \[31mred next line x+…/);
  expect(text).not.toMatch(/\p{Cc}|\p{Cf}/u);
  expect(text.length).toBeLessThan(700);
});
