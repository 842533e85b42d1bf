import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LibvirtProxy, PROCEDURES, type ProcedureName, snapshotFlags } from '@stillpoint/lab/libvirt-proxy.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

function frame(procedure: ProcedureName, type: number, serial: number, payload = Buffer.alloc(0), status = 0): Buffer {
  const { program, number } = PROCEDURES[procedure];
  const bytes = Buffer.alloc(28);
  [28 + payload.length, program, 1, number, type, serial, status].forEach((word, index) => {
    bytes.writeUInt32BE(word, index * 4);
  });
  return Buffer.concat([bytes, payload]);
}

/** Collects whole frames and hands them out one by one. */
class FrameReader {
  readonly closed: Promise<unknown>;
  readonly #frames: Buffer[] = [];
  readonly #waiting: ((frame: Buffer) => void)[] = [];

  constructor(socket: Socket) {
    this.closed = once(socket, 'close');
    socket.on('error', () => undefined);
    let rest = Buffer.alloc(0);
    socket.on('data', (bytes: Buffer) => {
      rest = Buffer.concat([rest, bytes]);
      while (rest.length >= 4 && rest.length >= rest.readUInt32BE(0)) {
        const length = rest.readUInt32BE(0);
        const next = rest.subarray(0, length);
        rest = rest.subarray(length);
        const waiting = this.#waiting.shift();
        if (waiting === undefined) this.#frames.push(next);
        else waiting(next);
      }
    });
  }

  next(): Promise<Buffer> {
    const ready = this.#frames.shift();
    return ready === undefined ? new Promise((resolve) => this.#waiting.push(resolve)) : Promise.resolve(ready);
  }

  async serial(): Promise<number> {
    return (await this.next()).readUInt32BE(20);
  }
}

describe('the proxy before libvirt', () => {
  let folder: string;
  let server: Server;
  let proxy: LibvirtProxy;
  /** The serials of the calls that have reached the server. */
  let arrived: number[];
  let upstreams: Socket[];

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lab-proxy-'));
    arrived = [];
    upstreams = [];
    // Answers each call at once with the call's own payload.
    server = createServer((socket) => {
      upstreams.push(socket);
      const reader = new FrameReader(socket);
      void (async () => {
        for (;;) {
          const call = await reader.next();
          arrived.push(call.readUInt32BE(20));
          const reply = Buffer.from(call);
          reply.writeUInt32BE(1, 16);
          socket.write(reply);
        }
      })();
    });
    server.listen(join(folder, 'libvirt'));
    await once(server, 'listening');
    proxy = await LibvirtProxy.start({ socket: join(folder, 'proxy'), upstream: join(folder, 'libvirt') });
  });

  afterEach(async () => {
    await proxy.close();
    server.close();
    for (const socket of upstreams) socket.destroy();
    await rm(folder, { recursive: true });
  });

  async function client(): Promise<{ socket: Socket; reader: FrameReader }> {
    const socket = connect(join(folder, 'proxy'));
    await once(socket, 'connect');
    return { socket, reader: new FrameReader(socket) };
  }

  it('passes calls and replies unchanged, and records both in their order', async () => {
    const { socket, reader } = await client();
    const call = frame('GET_STATE', 0, 7, Buffer.from('payload!'));
    socket.write(call);
    const reply = await reader.next();
    expect(reply.subarray(28).toString()).toBe('payload!');
    expect(proxy.records.map(({ name, kind, serial }) => [name, kind, serial])).toEqual([
      ['GET_STATE', 'call', 7],
      ['GET_STATE', 'reply', 7],
    ]);
    const [first, second] = proxy.records;
    expect(first?.passedAtMs).toBeLessThanOrEqual(second?.atMs ?? 0);
    socket.destroy();
  });

  it('understands frames that come in pieces and several at once', async () => {
    const { socket, reader } = await client();
    const bytes = Buffer.concat([frame('OPEN', 0, 1), frame('GET_STATE', 0, 2), frame('FSTHAW', 0, 3)]);
    socket.write(bytes.subarray(0, 2));
    socket.write(bytes.subarray(2, 30));
    socket.write(bytes.subarray(30));
    expect([await reader.serial(), await reader.serial(), await reader.serial()]).toEqual([1, 2, 3]);
    expect(proxy.calls().map(({ name }) => name)).toEqual(['OPEN', 'GET_STATE', 'FSTHAW']);
    socket.destroy();
  });

  it('holds a reply until it is released, while later ones overtake it', async () => {
    const held = proxy.hold({ procedure: 'FSFREEZE', what: 'reply' });
    const { socket, reader } = await client();
    socket.write(frame('FSFREEZE', 0, 1));
    expect((await held.reached).serial).toBe(1);
    expect(arrived).toEqual([1]);
    socket.write(frame('GET_STATE', 0, 2));
    expect(await reader.serial()).toBe(2);
    held.release();
    expect(await reader.serial()).toBe(1);
    socket.destroy();
  });

  it('holds a call before libvirt sees it', async () => {
    const held = proxy.hold({ procedure: 'FSTHAW', what: 'call' });
    const { socket, reader } = await client();
    socket.write(frame('FSTHAW', 0, 1));
    const record = await held.reached;
    expect(record.passedAtMs).toBeUndefined();
    expect(arrived).toEqual([]);
    held.release();
    expect(await reader.serial()).toBe(1);
    expect(arrived).toEqual([1]);
    socket.destroy();
  });

  it('drops what it holds, and the connection lives on', async () => {
    const held = proxy.hold({ procedure: 'FSFREEZE', what: 'reply' });
    const { socket, reader } = await client();
    socket.write(frame('FSFREEZE', 0, 1));
    await held.reached;
    held.drop();
    socket.write(frame('GET_STATE', 0, 2));
    expect(await reader.serial()).toBe(2);
    expect(proxy.records.find(({ kind, serial }) => kind === 'reply' && serial === 1)?.passedAtMs).toBeUndefined();
    socket.destroy();
  });

  it('drops a call without holding it first', async () => {
    const dropped = proxy.drop({ procedure: 'FSFREEZE', what: 'call' });
    const { socket, reader } = await client();
    socket.write(frame('FSFREEZE', 0, 1));
    await dropped.reached;
    socket.write(frame('FSFREEZE', 0, 2));
    expect(await reader.serial()).toBe(2);
    expect(arrived).toEqual([2]);
    socket.destroy();
  });

  it('hits the n-th frame of those that its condition selects', async () => {
    const where = (payload: Buffer) => payload.toString().startsWith('mine');
    const held = proxy.hold({ procedure: 'GET_STATE', what: 'call', nth: 2, where });
    const { socket, reader } = await client();
    for (const [serial, text] of [
      [1, 'mine'],
      [2, 'else'],
      [3, 'mine'],
      [4, 'mine'],
    ] as const) {
      socket.write(frame('GET_STATE', 0, serial, Buffer.from(text)));
    }
    expect((await held.reached).serial).toBe(3);
    expect([await reader.serial(), await reader.serial(), await reader.serial()]).toEqual([1, 2, 4]);
    held.release();
    expect(await reader.serial()).toBe(3);
    socket.destroy();
  });

  it('delays a reply, and passes it then', async () => {
    const delayed = proxy.delay({ procedure: 'FSTHAW', what: 'reply' }, 20);
    const { socket, reader } = await client();
    socket.write(frame('FSTHAW', 0, 1));
    const record = await delayed.reached;
    expect(await reader.serial()).toBe(1);
    expect(record.passedAtMs).toBeGreaterThan(record.atMs);
    socket.destroy();
  });

  it('tells of a frame and lets it pass', async () => {
    const seen = proxy.seen({ procedure: 'FSTHAW', what: 'call' });
    const { socket, reader } = await client();
    socket.write(frame('FSTHAW', 0, 9));
    expect((await seen).serial).toBe(9);
    expect(await reader.serial()).toBe(9);
    socket.destroy();
  });

  it('lets everything go on when its faults are cleared', async () => {
    const held = proxy.hold({ procedure: 'FSTHAW', what: 'reply' });
    const { socket, reader } = await client();
    socket.write(frame('FSTHAW', 0, 1));
    await held.reached;
    proxy.clearFaults();
    expect(await reader.serial()).toBe(1);
    socket.destroy();
  });

  it('cuts connections as a dying libvirtd does, and takes new ones', async () => {
    const first = await client();
    first.socket.write(frame('OPEN', 0, 1));
    await first.reader.next();
    proxy.cut();
    await first.reader.closed;
    const second = await client();
    second.socket.write(frame('OPEN', 0, 2));
    expect(await second.reader.serial()).toBe(2);
    expect(proxy.records.at(-1)?.connection).toBe(2);
    second.socket.destroy();
  });

  it('refuses connections until it is told to accept them', async () => {
    proxy.refuse();
    const refused = await client();
    await refused.reader.closed;
    proxy.accept();
    const accepted = await client();
    accepted.socket.write(frame('OPEN', 0, 1));
    expect(await accepted.reader.serial()).toBe(1);
    accepted.socket.destroy();
  });

  it('closes the client when libvirtd is gone', async () => {
    const { socket, reader } = await client();
    socket.write(frame('OPEN', 0, 1));
    await reader.next();
    for (const upstream of upstreams) upstream.destroy();
    await reader.closed;
    expect(socket.destroyed).toBe(true);
  });

  it.each([0, 27, 0x7fffffff])('closes a connection that claims a frame of %s bytes', async (length) => {
    const { socket, reader } = await client();
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(length);
    socket.write(bytes);
    await reader.closed;
    expect(arrived).toEqual([]);
  });

  it('reads the flags of a snapshot call', async () => {
    const { socket, reader } = await client();
    const flags = Buffer.alloc(4);
    flags.writeUInt32BE(0x52);
    socket.write(frame('SNAPSHOT_CREATE_XML', 0, 1, Buffer.concat([Buffer.from('dom, xml'), flags])));
    await reader.next();
    expect(proxy.calls('SNAPSHOT_CREATE_XML').map(snapshotFlags)).toEqual([0x52]);
    socket.destroy();
  });
});
