import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LibvirtConnectionError, LibvirtError } from '@stillpoint/host-agent/libvirt/errors.js';
import { Procedures, Program } from '@stillpoint/host-agent/libvirt/procedures.js';
import {
  connectSocket,
  encodeMessage,
  FrameReader,
  RpcConnection,
  type RpcSettings,
} from '@stillpoint/host-agent/libvirt/rpc.js';
import { XdrError, type XdrReader } from '@stillpoint/host-agent/libvirt/xdr.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Arrivals, type FakeConnection, FakeLibvirtd, web1, writeDomain, writeError } from './fake-libvirtd.js';
import { fuzzSeed, Random } from './random.js';

const patient: RpcSettings = { callTimeoutMs: 20_000, keepaliveIntervalMs: 20_000, keepaliveCount: 3 };

let libvirtd: FakeLibvirtd;
let events: Arrivals<{ program: number; procedure: number; body: XdrReader }>;
let ends: Arrivals<LibvirtConnectionError>;
const open: RpcConnection[] = [];

beforeEach(async () => {
  libvirtd = await FakeLibvirtd.start();
  events = new Arrivals();
  ends = new Arrivals();
});

afterEach(async () => {
  for (const rpc of open.splice(0)) rpc.close();
  await libvirtd[Symbol.asyncDispose]();
});

async function connected(settings: Partial<RpcSettings> = {}): Promise<{ rpc: RpcConnection; peer: FakeConnection }> {
  const socket = await connectSocket(libvirtd.path);
  const rpc = new RpcConnection(
    socket,
    { ...patient, ...settings },
    {
      onEvent: (program, procedure, body) => events.add({ program, procedure, body }),
      onSlotFree: () => {},
      onClosed: (reason) => ends.add(reason),
    },
  );
  open.push(rpc);
  return { rpc, peer: await libvirtd.accepted.next() };
}

function failure(promise: Promise<unknown>): Promise<LibvirtConnectionError | LibvirtError> {
  return promise.then(
    (value) => Promise.reject(new Error(`it succeeded with ${JSON.stringify(value)}`)),
    (error) => error,
  );
}

describe('A call', () => {
  it('resolves with what libvirtd answers', async () => {
    const { rpc } = await connected();
    const answer = rpc.call(Procedures.domainLookupByName, 'web-1');
    const call = await libvirtd.calls(Procedures.domainLookupByName).next();
    expect(call.body.string()).toBe('web-1');
    call.reply((w) => writeDomain(w));
    expect(await answer).toEqual(web1);
    expect(rpc.inFlight).toBe(0);
  });

  it('is told apart from others by its serial, in whatever order they are answered', async () => {
    const { rpc } = await connected();
    const names = ['a', 'b', 'c'];
    const answers = names.map((name) => rpc.call(Procedures.domainLookupByName, name));
    const calls = await libvirtd.calls(Procedures.domainLookupByName).take(3);
    for (const call of calls.reverse()) {
      const name = call.body.string();
      call.reply((w) => writeDomain(w, { ...web1, name }));
    }
    expect((await Promise.all(answers)).map((domain) => domain.name)).toEqual(names);
  });

  it('rejects with libvirt’s own error, field by field', async () => {
    const { rpc } = await connected();
    const answer = failure(rpc.call(Procedures.domainFsFreeze, { domain: web1, mountpoints: [] }));
    const fields = {
      number: 86,
      domain: 10,
      message: 'Guest agent is not responding',
      level: 2,
      str1: 'a',
      str2: null,
      str3: 'c',
      int1: 4,
      int2: -5,
    };
    (await libvirtd.calls(Procedures.domainFsFreeze).next()).fail(fields);
    const error = await answer;
    expect(error).toBeInstanceOf(LibvirtError);
    expect(error).toMatchObject({ ...fields, code: 'LIBVIRT_ERROR', procedure: 'DOMAIN_FSFREEZE' });
  });

  it('is answered by an error that names a domain and a network', async () => {
    const { rpc } = await connected();
    const answer = failure(rpc.call(Procedures.domainLookupByName, 'web-1'));
    const { connection, serial } = await libvirtd.calls(Procedures.domainLookupByName).next();
    connection.send({ procedure: 23, type: 1, serial, status: 1 }, (w) => {
      w.int(42).int(20).uint(0).int(2).uint(1); // no message, a domain
      writeDomain(w);
      w.uint(0).uint(0).uint(0).int(0).int(0).uint(1); // no strings, a network
      w.string('default').opaque(Buffer.alloc(16));
    });
    expect(await answer).toMatchObject({ number: 42, domain: 20, message: 'libvirt error 42 without a message' });
  });

  it('reports when its request was written and its reply read', async () => {
    const { rpc } = await connected();
    const times: [string, number][] = [];
    const startedAt = performance.now();
    const answer = rpc.call(Procedures.domainResume, web1, {
      onWritten: (atMs) => times.push(['written', atMs]),
      onAnswered: (atMs) => times.push(['answered', atMs]),
    });
    (await libvirtd.calls(Procedures.domainResume).next()).reply();
    await answer;
    expect(times.map(([what]) => what)).toEqual(['written', 'answered']);
    const instants = [startedAt, ...times.map(([, atMs]) => atMs), performance.now()];
    expect(instants).toEqual([...instants].sort((a, b) => a - b));
  });

  it('reports the instant of an error reply as well', async () => {
    const { rpc } = await connected();
    const answered: number[] = [];
    const answer = failure(rpc.call(Procedures.domainResume, web1, { onAnswered: (atMs) => answered.push(atMs) }));
    (await libvirtd.calls(Procedures.domainResume).next()).fail({ number: 55 });
    await answer;
    expect(answered).toHaveLength(1);
  });

  it('that is not answered in time is given up, its late reply is dropped, and the connection lives on', async () => {
    const { rpc } = await connected();
    const late = await failure(
      rpc.call(Procedures.domainFsFreeze, { domain: web1, mountpoints: [] }, { timeoutMs: 1 }),
    );
    expect(late).toMatchObject({ code: 'LIBVIRT_CALL_TIMEOUT', outcome: 'unknown' });
    expect(rpc.inFlight).toBe(1);

    (await libvirtd.calls(Procedures.domainFsFreeze).next()).reply((w) => w.int(3));
    const next = rpc.call(Procedures.domainResume, web1);
    (await libvirtd.calls(Procedures.domainResume).next()).reply();
    await next;
    expect(rpc.inFlight).toBe(0);
    expect(rpc.isOpen).toBe(true);
  });

  it('that its caller gives up is rejected at once', async () => {
    const { rpc } = await connected();
    const controller = new AbortController();
    const answer = failure(rpc.call(Procedures.domainResume, web1, { signal: controller.signal }));
    await libvirtd.calls(Procedures.domainResume).next();
    controller.abort();
    expect(await answer).toMatchObject({ code: 'LIBVIRT_CALL_ABORTED', outcome: 'unknown' });
  });

  it('that was given up before is not sent', async () => {
    const { rpc } = await connected();
    expect(await failure(rpc.call(Procedures.domainResume, web1, { signal: AbortSignal.abort() }))).toMatchObject({
      code: 'LIBVIRT_CALL_ABORTED',
      outcome: 'not-sent',
    });
    expect(libvirtd.calls(Procedures.domainResume).waiting).toBe(0);
  });

  it('with arguments that do not fit the protocol is not sent, and breaks nothing', async () => {
    const { rpc } = await connected();
    expect(await failure(rpc.call(Procedures.domainLookupByName, 'a\0b'))).toMatchObject({
      code: 'LIBVIRT_REQUEST_INVALID',
      outcome: 'not-sent',
    });
    expect(await failure(rpc.call(Procedures.domainLookupByName, 'x'.repeat(5_000_000)))).toMatchObject({
      code: 'LIBVIRT_REQUEST_INVALID',
    });
    expect(rpc.isOpen).toBe(true);
  });

  it('has an unknown outcome when the connection is lost, and is certainly not sent afterwards', async () => {
    const { rpc, peer } = await connected();
    const answer = failure(rpc.call(Procedures.domainResume, web1));
    await libvirtd.calls(Procedures.domainResume).next();
    peer.socket.destroy();
    expect(await answer).toMatchObject({ code: 'LIBVIRT_UNREACHABLE', outcome: 'unknown' });
    expect(await failure(rpc.call(Procedures.domainResume, web1))).toMatchObject({
      code: 'LIBVIRT_UNREACHABLE',
      outcome: 'not-sent',
    });
  });

  it('cannot start without a listening socket', async () => {
    expect(await failure(connectSocket(join(tmpdir(), 'no-such-socket')))).toMatchObject({
      code: 'LIBVIRT_UNREACHABLE',
      outcome: 'not-sent',
    });
  });
});

describe('An event', () => {
  it('reaches the listener while calls wait', async () => {
    const { rpc, peer } = await connected();
    const answer = rpc.call(Procedures.domainResume, web1);
    const call = await libvirtd.calls(Procedures.domainResume).next();
    peer.event(318, (w) => w.int(0));
    expect(await events.next()).toMatchObject({ program: Program.remote, procedure: 318 });
    call.reply();
    await answer;
  });
});

describe('Bytes that are not libvirt’s protocol', () => {
  const reply = (change: object, encode: Parameters<typeof encodeMessage>[1] = () => {}) =>
    encodeMessage({ program: Program.remote, procedure: 28, type: 1, serial: 1, status: 0, ...change }, encode);
  const withVersion = (version: number) => {
    const message = reply({});
    message.writeUInt32BE(version, 8);
    return message;
  };

  it.each<[string, Buffer]>([
    ['a length of 0', Buffer.from('00000000', 'hex')],
    ['a length of 27, less than a header', Buffer.from('0000001b', 'hex')],
    ['a length above 32 MiB', Buffer.from('02000005', 'hex')],
    ['the largest length there is', Buffer.from('ffffffff', 'hex')],
    ['HTTP', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
    ['an unknown program', reply({ program: 0x2000_8099 })],
    ['another version', withVersion(2)],
    ['an unknown serial', reply({ serial: 77 })],
    ['the answer to another procedure', reply({ procedure: 34 })],
    ['the answer of another program', reply({ program: Program.qemu })],
    ['an unknown status', reply({ status: 7 })],
    ['a stream', reply({ type: 3 })],
    ['a call from the server', reply({ type: 0 })],
    ['an event of status error', reply({ type: 2, status: 1 })],
    ['a keepalive message of an unknown kind', reply({ program: Program.keepalive, procedure: 9, type: 2 })],
    ['a keepalive reply', reply({ program: Program.keepalive, procedure: 1, type: 1 })],
    ['an answer with bytes left over', reply({}, (w) => w.int(0))],
    ['an error without its fields', reply({ status: 1 })],
    ['an error that is cut off', reply({ status: 1 }, (w) => w.int(1).int(10).uint(1).uint(100))],
    [
      'an error with bytes left over',
      reply({ status: 1 }, (w) => {
        writeError(w, {});
        w.int(0);
      }),
    ],
  ])('such as %s reject every waiting call with LIBVIRT_PROTOCOL and close the connection', async (_, bytes) => {
    const { rpc, peer } = await connected();
    const calls = [
      failure(rpc.call(Procedures.domainResume, web1)),
      failure(rpc.call(Procedures.domainLookupByName, 'web-1')),
    ];
    await libvirtd.calls(Procedures.domainLookupByName).next();
    peer.socket.write(bytes);
    for (const error of await Promise.all(calls)) {
      expect(error).toBeInstanceOf(LibvirtConnectionError);
      expect(error).toMatchObject({ code: 'LIBVIRT_PROTOCOL', outcome: 'unknown' });
    }
    expect(await ends.next()).toMatchObject({ code: 'LIBVIRT_PROTOCOL' });
    await peer.closed;
    expect(rpc.isOpen).toBe(false);
  });

  it('in an event close the connection too', async () => {
    const socket = await connectSocket(libvirtd.path);
    const rpc = new RpcConnection(socket, patient, {
      onEvent: (_program, _procedure, body) => {
        body.string();
      },
      onSlotFree: () => {},
      onClosed: (reason) => ends.add(reason),
    });
    open.push(rpc);
    const peer = await libvirtd.accepted.next();
    peer.event(318, (w) => w.uint(0xffff));
    expect(await ends.next()).toMatchObject({ code: 'LIBVIRT_PROTOCOL' });
  });

  it('that stop in the middle of a message are a lost connection', async () => {
    const { rpc, peer } = await connected();
    const answer = failure(rpc.call(Procedures.domainResume, web1));
    await libvirtd.calls(Procedures.domainResume).next();
    peer.socket.end(reply({}).subarray(0, 20));
    expect(await answer).toMatchObject({
      code: 'LIBVIRT_UNREACHABLE',
      message: expect.stringContaining('in the middle of a message'),
    });
  });

  const seed = fuzzSeed();
  it(`never hang or crash a call, however a valid stream is damaged (FUZZ_SEED=${seed})`, async () => {
    const random = new Random(seed);
    const valid = Buffer.concat([
      encodeMessage({ program: Program.remote, procedure: 318, type: 2, serial: 0, status: 0 }, (w) => w.int(1)),
      encodeMessage({ program: Program.remote, procedure: 23, type: 1, serial: 1, status: 0 }, (w) => writeDomain(w)),
      encodeMessage({ program: Program.keepalive, procedure: 1, type: 2, serial: 0, status: 0 }, () => {}),
      encodeMessage({ program: Program.remote, procedure: 24, type: 1, serial: 2, status: 1 }, (w) =>
        writeError(w, { str1: 'x' }),
      ),
    ]);
    const strange: unknown[] = [];
    for (let round = 0; round < 300; round++) {
      const { rpc, peer } = await connected();
      const calls = [
        rpc.call(Procedures.domainLookupByName, 'web-1'),
        rpc.call(Procedures.domainLookupByUuid, web1.uuid),
      ];
      const bytes = random.damage(valid);
      const cut = random.below(bytes.length + 1);
      peer.socket.write(bytes.subarray(0, cut));
      peer.socket.end(bytes.subarray(cut));
      for (const result of await Promise.allSettled(calls)) {
        if (result.status === 'fulfilled') continue;
        const { reason } = result;
        if (!(reason instanceof LibvirtError) && !(reason instanceof LibvirtConnectionError)) strange.push(reason);
      }
      await ends.next();
    }
    expect(strange).toEqual([]);
  });
});

describe('Keepalive', () => {
  it('answers libvirtd’s pings', async () => {
    const { peer } = await connected();
    peer.ping();
    await peer.pongs.next();
    expect(libvirtd.connections).toHaveLength(1);
  });

  it('gives up a connection that answers no ping, with all its calls', async () => {
    libvirtd.answersPings = false;
    const { rpc } = await connected({ keepaliveIntervalMs: 5, keepaliveCount: 2 });
    const answer = failure(rpc.call(Procedures.domainResume, web1));
    expect(await answer).toMatchObject({ code: 'LIBVIRT_UNREACHABLE', message: expect.stringContaining('keepalive') });
    expect(await ends.next()).toMatchObject({ code: 'LIBVIRT_UNREACHABLE' });
  });

  it('keeps a connection whose peer answers nothing but pings', async () => {
    const { rpc } = await connected({ keepaliveIntervalMs: 2, keepaliveCount: 2 });
    const answer = failure(rpc.call(Procedures.domainResume, web1, { timeoutMs: 100 }));
    expect(await answer).toMatchObject({ code: 'LIBVIRT_CALL_TIMEOUT' });
    expect(rpc.isOpen).toBe(true);
  });

  it('does not pile up pongs for a peer that pings and never reads', async () => {
    const path = join(libvirtd.path, '..', 'deaf-sock');
    const sockets: Socket[] = [];
    const server = createServer((socket) => {
      socket.pause();
      sockets.push(socket);
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const socket = await connectSocket(path);
    const rpc = new RpcConnection(socket, patient, {
      onEvent: (_program, procedure) => events.add({ program: 0, procedure, body: undefined as never }),
      onSlotFree: () => {},
      onClosed: () => {},
    });
    open.push(rpc);
    const ping = encodeMessage({ program: Program.keepalive, procedure: 1, type: 2, serial: 0, status: 0 }, () => {});
    const marker = encodeMessage({ program: Program.remote, procedure: 318, type: 2, serial: 0, status: 0 }, () => {});
    sockets[0]?.write(Buffer.concat([...Array.from({ length: 200_000 }, () => ping), marker]));
    await events.next();
    expect(socket.writableLength).toBeLessThan(100);
    for (const peer of sockets) peer.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
});

describe('FrameReader', () => {
  const message = (size: number) =>
    encodeMessage({ program: 1, procedure: 2, type: 1, serial: 3, status: 0 }, (w) => w.opaque(Buffer.alloc(size, 1)));

  it('finds the same messages however the bytes are cut into chunks', () => {
    const messages = [message(0), message(40), message(100_000), message(4)];
    const stream = Buffer.concat(messages);
    const whole = messages.map((m) => m.subarray(4).toString('hex'));
    for (const size of [1, 3, 4, 28, 100, 65_536, stream.length]) {
      const frames = new FrameReader();
      const found: string[] = [];
      for (let at = 0; at < stream.length; at += size) {
        for (const frame of frames.push(stream.subarray(at, at + size))) found.push(frame.toString('hex'));
      }
      expect(found).toEqual(whole);
      expect(frames.isEmpty).toBe(true);
    }
  });

  it('accepts the largest message of libvirt and refuses one byte more', () => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(33_554_432 + 4);
    expect([...new FrameReader().push(length)]).toEqual([]);
    length.writeUInt32BE(33_554_432 + 5);
    expect(() => [...new FrameReader().push(length)]).toThrow(XdrError);
  });
});
