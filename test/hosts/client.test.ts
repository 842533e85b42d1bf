import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { constants, createServer as createHttp2Server } from 'node:http2';
import { type AddressInfo, createServer, type Server as TcpServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Metadata, Server, ServerCredentials, type ServerDuplexStream, status } from '@grpc/grpc-js';
import { credentialsFrom } from '@stillpoint/engine/hosts/credentials.js';
import { HostError } from '@stillpoint/engine/hosts/errors.js';
import { HostPool, type HostPoolOptions } from '@stillpoint/engine/hosts/pool.js';
import { makeCa, makeEngineCertificate, makeHostCertificate } from '@stillpoint/host-agent/certs.js';
import { HostAgentError } from '@stillpoint/host-agent/errors.js';
import { toRpcFailure } from '@stillpoint/host-agent/rpc/status.js';
import { checkedText } from '@stillpoint/host-agent/rpc/validate.js';
import {
  Any,
  ErrorInfo,
  type HoldCutRequest,
  type HoldCutResponse,
  type HostAgentServer,
  HostAgentService,
  Status,
} from '@stillpoint/proto';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';

/** The client against a server of the test's own: every answer, and every way not to answer. */

const cleanUp: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const undo of cleanUp.splice(0).reverse()) await undo();
});

async function serve(
  handlers: Partial<HostAgentServer>,
  credentials = ServerCredentials.createInsecure(),
  port = 0,
): Promise<{ server: Server; address: string }> {
  const server = new Server({ 'grpc.keepalive_permit_without_calls': 1 });
  server.addService(HostAgentService, handlers as HostAgentServer);
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(`127.0.0.1:${port}`, credentials, (error, at) => (error ? reject(error) : resolve(at)));
  });
  cleanUp.push(() => server.forceShutdown());
  return { server, address: `127.0.0.1:${bound}` };
}

interface Row {
  name: string;
  address: string;
  state: 'active' | 'lost';
}

async function pool(
  rows: Row[],
  options: HostPoolOptions & { security?: Parameters<typeof credentialsFrom>[0] } = {},
): Promise<HostPool> {
  const { security = { plain: true }, ...times } = options;
  const opened = await HostPool.open({ listHosts: async () => rows }, await credentialsFrom(security), {
    connectMs: 500,
    ...times,
  });
  cleanUp.push(() => opened.close());
  return opened;
}

async function clientOf(handlers: Partial<HostAgentServer>, options: HostPoolOptions = {}) {
  const { address, server } = await serve(handlers);
  const hosts = await pool([{ name: 'kvm-01', address, state: 'active' }], options);
  return { host: hosts.host('kvm-01'), server, hosts };
}

async function hostError(call: Promise<unknown>): Promise<HostError> {
  const error = await call.then(
    () => {
      throw new Error('the call succeeded');
    },
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof HostError)) throw error;
  return error;
}

const request = { vm: 'u', window: 'w.1', reason: 'test' };

it('tells overlay files with the disk that uses them, or none', async () => {
  const { host } = await clientOf({
    listOverlays: (_call, answer) =>
      answer(null, {
        overlays: [
          { path: '/i/a.sp-w.1.qcow2', windowId: 'w.1', vmUuid: 'u', target: 'vda' },
          { path: '/i/b.sp-w.1.qcow2', windowId: 'w.1', vmUuid: '', target: '' },
        ],
        unreadVmUuids: ['v'],
      }),
  });
  expect(await host.listOverlays()).toEqual({
    overlays: [
      { path: '/i/a.sp-w.1.qcow2', window: 'w.1', usedBy: { vm: 'u', target: 'vda' } },
      { path: '/i/b.sp-w.1.qcow2', window: 'w.1', usedBy: undefined },
    ],
    unreadVms: ['v'],
  });
});

describe('an answered error', () => {
  it("is the host agent's own code, text, advice and values", async () => {
    const { host } = await clientOf({
      release: (_call, answer) =>
        answer(toRpcFailure(new HostAgentError('BUSY', 'Held by another.', { metadata: { holder: 'op-1' } }))),
    });
    const error = await hostError(host.release({ vm: 'u', operation: 'o' }));
    expect(error).toMatchObject({
      code: 'BUSY',
      message: 'Held by another.',
      metadata: { holder: 'op-1' },
      mayHaveHappened: false,
    });
    expect(error.advice).toContain('stillpoint-host-agent release VM');
  });

  it.each([
    ['without details', undefined],
    ['with details that are no google.rpc.Status', Buffer.from([255, 255, 255, 1, 2])],
    ['with the details of somebody else', details('example.com', 'AGENT_NOT_CONNECTED')],
  ])('%s is never read as a code of the table', async (_what, bytes) => {
    const metadata = new Metadata();
    if (bytes) metadata.set('grpc-status-details-bin', bytes);
    for (const code of [status.FAILED_PRECONDITION, status.INTERNAL]) {
      const { host } = await clientOf({
        release: (_call, answer) => answer({ code, details: 'no agent', metadata }),
      });
      expect((await hostError(host.release({ vm: 'u', operation: 'o' }))).code).toBe('INTERNAL');
    }
  });

  function details(domain: string, reason: string): Buffer {
    const info = Buffer.from(ErrorInfo.encode({ domain, reason, metadata: {} }).finish());
    const any = Any.create({ typeUrl: 'type.googleapis.com/google.rpc.ErrorInfo', value: info });
    return Buffer.from(Status.encode({ code: 9, message: 'x', details: [any] }).finish());
  }
});

describe('no answer', () => {
  it('is HOST_UNREACHABLE that cannot have happened when nobody listens', async () => {
    const { address, server } = await serve({});
    server.forceShutdown();
    const hosts = await pool([{ name: 'kvm-01', address, state: 'active' }]);
    const error = await hostError(hosts.host('kvm-01').thawFileSystems(request));
    expect(error).toMatchObject({ code: 'HOST_UNREACHABLE', mayHaveHappened: false });
    expect(error.message).toContain(address);
  });

  it('is HOST_UNREACHABLE that may have happened when the deadline passes', async () => {
    const { host } = await clientOf({ thawFileSystems: () => {} });
    const error = await hostError(host.thawFileSystems(request, { deadlineMs: 50 }));
    expect(error).toMatchObject({ code: 'HOST_UNREACHABLE', mayHaveHappened: true });
  });

  it('is HOST_UNREACHABLE that may have happened when the host agent dies during the call', async () => {
    const dying: { server?: Server } = {};
    const { host, server } = await clientOf({ thawFileSystems: () => dying.server?.forceShutdown() });
    dying.server = server;
    const error = await hostError(host.thawFileSystems(request));
    expect(error).toMatchObject({ code: 'HOST_UNREACHABLE', mayHaveHappened: true });
  });

  it.each([
    ['NO_ERROR', constants.NGHTTP2_NO_ERROR],
    ['PROTOCOL_ERROR', constants.NGHTTP2_PROTOCOL_ERROR],
    ['INTERNAL_ERROR', constants.NGHTTP2_INTERNAL_ERROR],
    ['CANCEL', constants.NGHTTP2_CANCEL],
  ])('is HOST_UNREACHABLE that may have happened when the stream is reset without a status: %s', async (_, code) => {
    const server = createHttp2Server();
    server.on('stream', (stream) => {
      stream.on('error', () => {});
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
      stream.close(code);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    cleanUp.push(() => server.close());
    const { port } = server.address() as AddressInfo;
    const hosts = await pool([{ name: 'kvm-01', address: `127.0.0.1:${port}`, state: 'active' }]);
    const error = await hostError(hosts.host('kvm-01').thawFileSystems(request));
    expect(error).toMatchObject({ code: 'HOST_UNREACHABLE', mayHaveHappened: true });
  });

  it('of a host that is cut off without a word is noticed by the keepalive, also without a deadline', async () => {
    const silent = await swallowing();
    const hosts = await pool([{ name: 'kvm-01', address: silent.address, state: 'active' }], {
      keepaliveMs: 50,
      keepaliveTimeoutMs: 50,
    });
    const call = hosts.host('kvm-01').undo({ vm: 'u', window: 'w.1' });
    await silent.connected;
    silent.swallow();
    expect((await hostError(call)).code).toBe('HOST_UNREACHABLE');
  });

  it('ends with the reason of the signal that stopped it', async () => {
    const asked = new AbortController();
    const { host } = await clientOf({ thawFileSystems: () => asked.abort(new Error('the activity was cancelled')) });
    await expect(host.thawFileSystems(request, { signal: asked.signal })).rejects.toThrow('the activity was cancelled');
  });

  it('of a merge that ends without a result is no success', async () => {
    const { host } = await clientOf({ undo: (call) => call.end() });
    expect((await hostError(host.undo({ vm: 'u', window: 'w.1' }))).code).toBe('HOST_UNREACHABLE');
  });
});

/** A server before which a proxy can go silent: connections stay open, and nothing passes any more. */
async function swallowing(): Promise<{ address: string; connected: Promise<void>; swallow(): void }> {
  let isSilent = false;
  let reached = () => {};
  const connected = new Promise<void>((resolve) => {
    reached = resolve;
  });
  const { address } = await serve({ undo: () => reached() });
  const { connect } = await import('node:net');
  const proxy: TcpServer = createServer((socket) => {
    const [, port] = address.split(':');
    const onward = connect(Number(port), '127.0.0.1');
    socket.on('data', (bytes) => isSilent || onward.write(bytes));
    onward.on('data', (bytes) => isSilent || socket.write(bytes));
    socket.on('error', () => {}).on('close', () => onward.destroy());
    onward.on('error', () => {}).on('close', () => socket.destroy());
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', () => resolve()));
  cleanUp.push(() => proxy.close());
  const at = proxy.address();
  if (at === null || typeof at === 'string') throw new Error('no port');
  return {
    address: `127.0.0.1:${at.port}`,
    connected,
    swallow: () => {
      isSilent = true;
    },
  };
}

describe('what the wire says', () => {
  it('becomes the careful answer where it is unknown', async () => {
    const { host } = await clientOf({
      getVm: (_call, answer) =>
        answer(null, {
          vm: {
            uuid: 'u',
            name: 'web-1',
            domainId: 1,
            state: 77 as never,
            guestAgent: 77 as never,
            persistent: true,
            disks: [
              {
                target: 'vda',
                kind: 77 as never,
                path: '',
                image: '',
                format: '',
                sizeBytes: 0,
                serial: '',
                leftOut: 77 as never,
                writable: true,
                chainDepth: 1,
              },
            ],
          },
        }),
    });
    const vm = await host.getVm('u');
    expect(vm).toMatchObject({ state: 'other', guestAgent: 'unknown', hold: { freezeState: 'unknown' } });
    expect(vm.disks[0]).toMatchObject({ kind: 'other', leftOut: 'unknown reason' });
  });

  it('a merge with an outcome that we do not know is not complete', async () => {
    const { host } = await clientOf({
      undo: (call) => {
        const disk = {
          target: 'vda',
          overlayPath: 'o',
          basePath: 'b',
          outcome: 77 as never,
          detail: '',
          reason: '',
          untouched: true,
        };
        call.write({ message: { $case: 'progress', value: { target: 'vda', doneBytes: 1, totalBytes: 2 } } });
        call.write({ message: { $case: 'result', value: { complete: true, disks: [disk] } } });
        call.end();
      },
    });
    const told: number[] = [];
    const result = await host.undo({ vm: 'u', window: 'w.1' }, { onProgress: ({ doneBytes }) => told.push(doneBytes) });
    expect(result).toMatchObject({ complete: false, disks: [{ outcome: 'pending' }] });
    expect(told).toEqual([1]);
  });
});

describe('a hold', () => {
  type Stream = ServerDuplexStream<HoldCutRequest, HoldCutResponse>;
  const hold = { vm: 'u', window: 'w.1', cut: 'volume-1' };

  async function holding(): Promise<{ cut: Awaited<ReturnType<typeof begin>>; stream: Stream; server: Server }> {
    let give = (_stream: Stream) => {};
    const given = new Promise<Stream>((resolve) => {
      give = resolve;
    });
    const { host, server } = await clientOf({
      holdCut: (stream: Stream) => {
        stream.once('data', () => stream.write({ message: { $case: 'held', value: {} } }));
        give(stream);
      },
    });
    const begin = () => host.holdCut(hold);
    return { cut: await begin(), stream: await given, server };
  }

  it('is fresh while it is heard of, and by time no longer', async () => {
    const { cut, stream } = await holding();
    expect(cut.isFresh(60_000)).toBe(true);
    expect(cut.isFresh(0)).toBe(false);
    stream.write({ message: { $case: 'ping', value: {} } });
    expect(cut.lost.aborted).toBe(false);
  });

  it('is lost, and not fresh, as soon as its stream breaks', async () => {
    const { cut, server } = await holding();
    const lost = new Promise((resolve) => cut.lost.addEventListener('abort', resolve, { once: true }));
    server.forceShutdown();
    await lost;
    expect(cut.isFresh(60_000)).toBe(false);
    expect((cut.lost.reason as HostError).code).toBe('HOST_UNREACHABLE');
    expect((await hostError(cut.done())).code).toBe('HOST_UNREACHABLE');
  });

  it('is lost when the window is thawed under it', async () => {
    const { cut, stream } = await holding();
    const lost = new Promise((resolve) => cut.lost.addEventListener('abort', resolve, { once: true }));
    stream.write({ message: { $case: 'ended', value: { inTime: false, reason: 'LIMIT' } } });
    await lost;
    expect((cut.lost.reason as HostError).code).toBe('WINDOW_CLOSED');
    expect(await cut.done()).toMatchObject({ inTime: false, reason: 'LIMIT' });
  });

  it("answers done with the host agent's word", async () => {
    const { cut, stream } = await holding();
    stream.on('data', ({ message }: HoldCutRequest) => {
      if (message?.$case !== 'done') return;
      stream.write({ message: { $case: 'ended', value: { inTime: true, reason: '' } } });
      stream.end();
    });
    expect(await cut.done()).toEqual({ inTime: true, reason: '' });
  });

  it('that failed tells why in a text that the host agent takes, whatever was said elsewhere', async () => {
    const { cut, stream } = await holding();
    const told = new Promise<string | undefined>((resolve) => {
      stream.on('data', ({ message }: HoldCutRequest) => {
        if (message?.$case === 'failed') resolve(checkedText('reason', message.value.reason));
        stream.end();
      });
    });
    await cut.failed(`Cinder failed:\n\u0007${'x'.repeat(499 - 16)}\u{1f600} and so on`);
    expect(await told).toMatch(/^Cinder failed: x+ $/);
  });

  it('whose window ends before it was held is refused with the reason', async () => {
    const { host } = await clientOf({
      holdCut: (stream: Stream) => {
        stream.write({ message: { $case: 'ended', value: { inTime: false, reason: 'the freeze failed' } } });
        stream.end();
      },
    });
    const error = await hostError(host.holdCut(hold));
    expect(error).toMatchObject({ code: 'WINDOW_CLOSED', message: expect.stringContaining('the freeze failed') });
  });

  it('that is refused is an answered error', async () => {
    const { host } = await clientOf({
      holdCut: (stream: Stream) => stream.emit('error', toRpcFailure(new HostAgentError('WINDOW_CLOSED', 'Closed.'))),
    });
    expect((await hostError(host.holdCut(hold))).code).toBe('WINDOW_CLOSED');
  });
});

describe('the pool', () => {
  it('asks the registry nothing for a host that it knows: a thaw does not wait for the catalogue', async () => {
    const { address } = await serve({ release: (_call, answer) => answer(null, { released: true }) });
    let isDown = false;
    const registry = {
      listHosts: async (): Promise<Row[]> => {
        if (isDown) throw new Error('the catalogue is down');
        return [{ name: 'kvm-01', address, state: 'active' }];
      },
    };
    const hosts = await HostPool.open(registry, await credentialsFrom({ plain: true }), { refreshMs: 5 });
    cleanUp.push(() => hosts.close());
    isDown = true;
    // Who is frozen is seen all the same.
    expect(await hosts.names()).toEqual(['kvm-01']);
    expect(await hosts.host('kvm-01').release({ vm: 'u', operation: 'o' })).toBe(true);
  });

  it('tells a host that is not registered from one that was given up', async () => {
    const hosts = await pool([{ name: 'kvm-02', address: '127.0.0.1:1', state: 'lost' }]);
    expect((await hostError(hosts.host('kvm-01').facts())).code).toBe('HOST_NOT_FOUND');
    expect((await hostError(hosts.host('kvm-02').facts())).code).toBe('HOST_LOST');
    expect(await hosts.names()).toEqual([]);
  });

  it('ends what is under way at a host that is given up, though its connection stands', async () => {
    let begun = (): void => {};
    const underWay = new Promise<void>((resolve) => {
      let left = 2;
      begun = () => {
        left -= 1;
        if (left === 0) resolve();
      };
    });
    const { address } = await serve({ thawFileSystems: () => begun(), undo: () => begun() });
    const rows: Row[] = [{ name: 'kvm-01', address, state: 'active' }];
    const hosts = await pool(rows);
    const host = hosts.host('kvm-01');
    const thaw = hostError(host.thawFileSystems(request));
    const undo = hostError(host.undo({ vm: 'u', window: 'w.1' }));
    await underWay;
    rows[0] = { name: 'kvm-01', address, state: 'lost' };
    await hosts.names();
    expect([(await thaw).code, (await undo).code]).toEqual(['HOST_LOST', 'HOST_LOST']);
  });

  it('follows a host to its new address', async () => {
    const handlers: Partial<HostAgentServer> = { release: (_call, answer) => answer(null, { released: true }) };
    const first = await serve(handlers);
    const second = await serve({ release: (_call, answer) => answer(null, { released: false }) });
    const row: Row = { name: 'kvm-01', address: first.address, state: 'active' };
    const rows = [row];
    const hosts = await pool(rows);
    expect(await hosts.host('kvm-01').release({ vm: 'u', operation: 'o' })).toBe(true);
    rows[0] = { ...row, address: second.address };
    await hosts.names();
    expect(await hosts.host('kvm-01').release({ vm: 'u', operation: 'o' })).toBe(false);
  });

  it('talks without TLS to this machine only', async () => {
    const hosts = await pool([{ name: 'kvm-01', address: '192.0.2.1:8701', state: 'active' }]);
    expect((await hostError(hosts.host('kvm-01').facts())).code).toBe('HOST_NEEDS_TLS');
  });
});

describe('mTLS', () => {
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'stillpoint-certs-'));
    await makeCa(folder);
    await makeEngineCertificate(folder);
    await makeHostCertificate(folder, 'kvm-01');
    await makeHostCertificate(folder, 'kvm-02');
    return () => rm(folder, { recursive: true });
  });

  const security = () => ({
    tls: { ca: join(folder, 'ca.pem'), certificate: join(folder, 'engine.pem'), key: join(folder, 'engine-key.pem') },
  });

  async function serveAs(certificate: string): Promise<string> {
    const credentials = ServerCredentials.createSsl(
      await readFile(join(folder, 'ca.pem')),
      [
        {
          cert_chain: await readFile(join(folder, `${certificate}.pem`)),
          private_key: await readFile(join(folder, `${certificate}-key.pem`)),
        },
      ],
      true,
    );
    const { address } = await serve({ release: (_call, answer) => answer(null, { released: true }) }, credentials);
    return address;
  }

  it("accepts a certificate of the host's registered name, at whatever address it is", async () => {
    const hosts = await pool([{ name: 'kvm-01', address: await serveAs('kvm-01'), state: 'active' }], {
      security: security(),
    });
    expect(await hosts.host('kvm-01').release({ vm: 'u', operation: 'o' })).toBe(true);
  });

  it("refuses another host's certificate as HOST_IDENTITY, naming both", async () => {
    const hosts = await pool([{ name: 'kvm-01', address: await serveAs('kvm-02'), state: 'active' }], {
      security: security(),
    });
    const error = await hostError(hosts.host('kvm-01').release({ vm: 'u', operation: 'o' }));
    expect(error).toMatchObject({ code: 'HOST_IDENTITY', mayHaveHappened: false });
    expect(error.message).toContain('its certificate is for kvm-02, not for kvm-01');
  });

  it('reads a host without TLS as unreachable, never as an answer', async () => {
    const { address } = await serve({ release: (_call, answer) => answer(null, { released: true }) });
    const hosts = await pool([{ name: 'kvm-01', address, state: 'active' }], { security: security() });
    expect((await hostError(hosts.host('kvm-01').release({ vm: 'u', operation: 'o' }))).code).toBe('HOST_UNREACHABLE');
  });
});
