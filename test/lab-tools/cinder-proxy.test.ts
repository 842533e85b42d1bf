import { once } from 'node:events';
import { Agent, createServer, type IncomingMessage, request, type Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { CinderProxy } from '@stillpoint/lab/cinder-proxy.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const snapshots = { method: 'POST', path: /\/snapshots$/ };

interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  readonly text: string;
}

describe('the proxy before Cinder', () => {
  let server: Server;
  let proxy: CinderProxy;
  let agent: Agent;
  /** What has reached the server: method, path, body. */
  let arrived: string[];
  let upstreams: Socket[];

  beforeEach(async () => {
    arrived = [];
    upstreams = [];
    // Answers each request with what it was.
    server = createServer(async (asked, answer) => {
      let body = '';
      for await (const chunk of asked) body += String(chunk);
      arrived.push(`${asked.method} ${asked.url} ${body.slice(0, 20)}`);
      answer.writeHead(202, { 'x-length': String(body.length), 'x-host': asked.headers.host ?? '' }).end(body);
    });
    server.on('connection', (socket) => upstreams.push(socket));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    proxy = await CinderProxy.start({ upstream: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v3` });
    agent = new Agent({ keepAlive: true, maxSockets: 1 });
  });
  afterEach(async () => {
    agent.destroy();
    await proxy.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });

  const send = (method: string, path: string, body = '') =>
    new Promise<Answer>((resolve, reject) => {
      const sent = request(`${proxy.url}${path}`, { method, agent }, async (answer) => {
        let text = '';
        for await (const chunk of answer) text += String(chunk);
        resolve({ status: answer.statusCode ?? 0, headers: answer.headers, text });
      });
      sent.once('error', reject);
      sent.end(body);
    });
  const create = (body = 'a') => send('POST', '/v3/p/snapshots', body);

  it('passes requests and answers on, bodies of any size, over connections that stay open on both sides', async () => {
    const large = 'x'.repeat(3_000_000);
    expect(await create(large)).toMatchObject({ status: 202, headers: { 'x-length': '3000000' }, text: large });
    expect(await send('GET', '/v3/p/snapshots?name=a%20b')).toMatchObject({ status: 202, text: '' });
    expect(arrived).toEqual([`POST /v3/p/snapshots ${'x'.repeat(20)}`, 'GET /v3/p/snapshots?name=a%20b ']);
    expect(upstreams).toHaveLength(1);
    expect(proxy.records.map(({ connection, status }) => [connection, status])).toEqual([
      [1, 202],
      [1, 202],
    ]);
    expect(proxy.requests(snapshots)).toHaveLength(1);
    // Links that the server makes lead through the proxy again.
    expect((await create()).headers['x-host']).toBe(new URL(proxy.url).host);
  });

  it('holds the n-th request of its kind, which the server has not seen then', async () => {
    const held = proxy.hold({ ...snapshots, what: 'request', nth: 2 });
    await create('first');
    const second = create('second');
    expect(await held.reached).toMatchObject({ method: 'POST', path: '/v3/p/snapshots', passedAtMs: undefined });
    expect(arrived).toEqual(['POST /v3/p/snapshots first']);
    held.release();
    expect((await second).text).toBe('second');
  });

  it('holds an answer after the server has carried the request out', async () => {
    const held = proxy.hold({ ...snapshots, what: 'answer' });
    const created = create();
    expect(await held.reached).toMatchObject({ status: 202, answeredAtMs: undefined });
    expect(arrived).toHaveLength(1);
    held.release();
    expect((await created).status).toBe(202);
  });

  it('drops a request before it reaches the server, and only that one', async () => {
    const dropped = proxy.drop({ ...snapshots, what: 'request' });
    await expect(create('lost')).rejects.toMatchObject({ code: 'ECONNRESET' });
    expect((await dropped.reached).passedAtMs).toBeUndefined();
    expect((await create('next')).text).toBe('next');
    expect(arrived).toEqual(['POST /v3/p/snapshots next']);
  });

  it('drops an answer to what was carried out', async () => {
    const dropped = proxy.drop({ ...snapshots, what: 'answer' });
    await expect(create('made')).rejects.toMatchObject({ code: 'ECONNRESET' });
    await dropped.reached;
    expect(arrived).toEqual(['POST /v3/p/snapshots made']);
  });

  it('drops what it has held', async () => {
    const held = proxy.hold({ ...snapshots, what: 'request' });
    const lost = expect(create()).rejects.toMatchObject({ code: 'ECONNRESET' });
    await held.reached;
    held.drop();
    await lost;
    expect(arrived).toEqual([]);
  });

  it('delays a request', async () => {
    const delayed = proxy.delay({ ...snapshots, what: 'request' }, 30);
    await create();
    const { atMs, passedAtMs = 0 } = await delayed.reached;
    // Timers may fire a millisecond early by this clock.
    expect(passedAtMs - atMs).toBeGreaterThan(28);
  });

  it("answers in the server's stead", async () => {
    const overloaded = proxy.answer(
      { ...snapshots, what: 'request' },
      { status: 503, headers: { 'retry-after': '1' }, body: { overLimit: {} } },
    );
    expect(await create('no')).toMatchObject({
      status: 503,
      headers: { 'retry-after': '1' },
      text: '{"overLimit":{}}',
    });
    expect((await overloaded).status).toBe(503);
    expect(arrived).toEqual([]);
    void proxy.answer({ ...snapshots, what: 'answer' }, { status: 202, body: '{"snapshot":' });
    expect(await create('yes')).toMatchObject({ status: 202, text: '{"snapshot":' });
    expect(arrived).toEqual(['POST /v3/p/snapshots yes']);
  });

  it('tells what passes, and hits only what the test means', async () => {
    const seen = proxy.seen({ path: /snapshots/, what: 'answer', where: ({ path }) => path.endsWith('?mine') });
    await send('GET', '/v3/p/snapshots?other');
    await send('GET', '/v3/p/snapshots?mine');
    expect((await seen).path).toBe('/v3/p/snapshots?mine');
  });

  it('lets go of everything when the faults are cleared', async () => {
    const held = proxy.hold({ ...snapshots, what: 'request' });
    const created = create();
    await held.reached;
    proxy.clearFaults();
    expect((await created).status).toBe(202);
    expect((await create()).status).toBe(202);
  });

  it('lets the server carry out what it was asked when the client has gone', async () => {
    const held = proxy.hold({ ...snapshots, what: 'answer' });
    const gone = create('done').catch((error: unknown) => error);
    await held.reached;
    agent.destroy();
    await gone;
    held.release();
    expect(arrived).toEqual(['POST /v3/p/snapshots done']);
    expect((await create('more')).text).toBe('more');
  });

  it('forgets the request of a client that has gone while it was held', async () => {
    const held = proxy.hold({ ...snapshots, what: 'request' });
    const gone = create('never').catch((error: unknown) => error);
    await held.reached;
    agent.destroy();
    await gone;
    await until(() => proxy.openConnections === 0);
    held.release();
    await create('after');
    expect(arrived).toEqual(['POST /v3/p/snapshots after']);
  });

  it('cuts the connection of a client when the server cuts its own, and when there is no server', async () => {
    await create();
    const closed = until(() => proxy.openConnections === 0);
    upstreams[0]?.destroy();
    await closed;
    await new Promise((resolve) => server.close(resolve));
    await expect(create()).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it('refuses connections until it is to accept them again', async () => {
    await create();
    proxy.refuse();
    await expect(create()).rejects.toMatchObject({ code: 'ECONNRESET' });
    proxy.accept();
    expect((await create()).status).toBe(202);
  });
});

async function until(done: () => boolean): Promise<void> {
  while (!done()) await new Promise((resolve) => setImmediate(resolve));
}
