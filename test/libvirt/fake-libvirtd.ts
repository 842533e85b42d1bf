/**
 * A libvirtd that does what a test tells it: a unix socket, the handshake, and answers call by call, in any order, right or wrong.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { LibvirtErrorFields } from '@stillpoint/host-agent/libvirt/errors.js';
import { type Procedure, Procedures, Program } from '@stillpoint/host-agent/libvirt/procedures.js';
import { encodeMessage, FrameReader } from '@stillpoint/host-agent/libvirt/rpc.js';
import { XdrReader, type XdrWriter } from '@stillpoint/host-agent/libvirt/xdr.js';

type Encode = (writer: XdrWriter) => void;
type AnyProcedure = Pick<Procedure<never, unknown>, 'program' | 'number'>;

/** A call that has arrived; the test answers it when and how it likes. */
export interface FakeCall {
  readonly program: number;
  readonly procedure: number;
  readonly serial: number;
  readonly body: XdrReader;
  readonly connection: FakeConnection;
  reply(encode?: Encode): void;
  fail(fields: Partial<LibvirtErrorFields>): void;
}

export class FakeConnection {
  readonly socket: Socket;
  /** Resolves when the client has ended the connection. */
  readonly closed: Promise<void>;
  readonly pongs = new Arrivals<void>();

  constructor(socket: Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.on('error', () => {});
  }

  send(
    header: { program?: number; procedure: number; type: number; serial?: number; status?: number },
    encode: Encode = () => {},
  ): void {
    const { program = Program.remote, serial = 0, status = 0, ...rest } = header;
    this.socket.write(encodeMessage({ ...rest, program, serial, status }, encode));
  }

  event(procedure: number, encode: Encode): void {
    this.send({ procedure, type: 2 }, encode);
  }

  ping(): void {
    this.send({ program: Program.keepalive, procedure: 1, type: 2 });
  }
}

/** A queue whose reader waits. */
export class Arrivals<T> {
  readonly #items: T[] = [];
  readonly #readers: ((item: T) => void)[] = [];

  add(item: T): void {
    const reader = this.#readers.shift();
    if (reader === undefined) this.#items.push(item);
    else reader(item);
  }

  next(): Promise<T> {
    const item = this.#items.shift();
    return item === undefined ? new Promise((resolve) => this.#readers.push(resolve)) : Promise.resolve(item);
  }

  async take(count: number): Promise<T[]> {
    const items: T[] = [];
    while (items.length < count) items.push(await this.next());
    return items;
  }

  get waiting(): number {
    return this.#items.length;
  }
}

export class FakeLibvirtd {
  readonly path: string;
  /** Every connection, in the order they came. */
  readonly connections: FakeConnection[] = [];
  readonly accepted = new Arrivals<FakeConnection>();
  answersPings = true;
  /** AUTH_LIST's answer. */
  authTypes: number[] = [0];
  readonly #folder: string;
  readonly #arrivals = new Map<string, Arrivals<FakeCall>>();
  readonly #answers = new Map<string, (call: FakeCall) => void>();
  #server: Server;
  #callbacks = 0;

  private constructor(folder: string) {
    this.#folder = folder;
    this.path = join(folder, 'libvirt-sock');
    this.#server = this.#listener();
    this.answer(Procedures.authList, (call) =>
      call.reply((w) => w.array(this.authTypes, 20, (item, type) => item.int(type))),
    );
    this.answer(Procedures.connectOpen, (call) => call.reply());
    this.answer(Procedures.eventRegister, (call) => call.reply((w) => w.int(this.#callbacks++)));
    this.answer(Procedures.connectGetLibVersion, (call) => call.reply((w) => w.uhyper(9_000_000n)));
    this.answer(Procedures.connectGetVersion, (call) => call.reply((w) => w.uhyper(7_002_022n)));
  }

  static async start(): Promise<FakeLibvirtd> {
    const fake = new FakeLibvirtd(await mkdtemp(join(tmpdir(), 'fake-libvirtd-')));
    await fake.listen();
    return fake;
  }

  /** Answers every call of a procedure; without it calls wait in `calls()`. */
  answer(procedure: AnyProcedure, answer: (call: FakeCall) => void): void {
    this.#answers.set(key(procedure.program, procedure.number), answer);
  }

  /** The calls of a procedure that has no `answer`, as they come. */
  calls(procedure: AnyProcedure): Arrivals<FakeCall> {
    const name = key(procedure.program, procedure.number);
    let arrivals = this.#arrivals.get(name);
    if (arrivals === undefined) {
      arrivals = new Arrivals();
      this.#arrivals.set(name, arrivals);
    }
    return arrivals;
  }

  /** Goes away as a killed libvirtd does: all connections end, nothing listens. */
  async stop(): Promise<void> {
    for (const connection of this.connections.splice(0)) connection.socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async listen(): Promise<void> {
    if (!this.#server.listening) {
      this.#server = this.#listener();
      await new Promise<void>((resolve) => this.#server.listen(this.path, resolve));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await rm(this.#folder, { recursive: true, force: true });
  }

  #listener(): Server {
    return createServer((socket) => {
      const connection = new FakeConnection(socket);
      this.connections.push(connection);
      const frames = new FrameReader();
      socket.on('data', (chunk: Buffer) => {
        for (const frame of frames.push(chunk)) this.#receive(connection, frame);
      });
      this.accepted.add(connection);
    });
  }

  #receive(connection: FakeConnection, frame: Buffer): void {
    const body = new XdrReader(frame);
    const program = body.uint();
    body.uint();
    const procedure = body.int();
    const type = body.uint();
    const serial = body.uint();
    body.uint();
    if (program === Program.keepalive) {
      if (procedure === 2) connection.pongs.add();
      else if (this.answersPings) connection.send({ program, procedure: 2, type: 2 });
      return;
    }
    const call: FakeCall = {
      program,
      procedure,
      serial,
      body,
      connection,
      reply: (encode) => connection.send({ program, procedure, serial, type: 1 }, encode),
      fail: (fields) =>
        connection.send({ program, procedure, serial, type: 1, status: 1 }, (w) => writeError(w, fields)),
    };
    if (type !== 0) throw new Error(`the client sent a message of type ${type}`);
    const answer = this.#answers.get(key(program, procedure));
    if (answer === undefined) this.calls({ program, number: procedure }).add(call);
    else answer(call);
  }
}

export function writeError(writer: XdrWriter, fields: Partial<LibvirtErrorFields>): void {
  const string = (value: string | null | undefined) => writer.optional(value ?? null, (w, text) => w.string(text));
  writer.int(fields.number ?? 1).int(fields.domain ?? 10);
  string(fields.message ?? 'internal error: told so by the test');
  writer.int(fields.level ?? 2).uint(0); // no domain
  string(fields.str1);
  string(fields.str2);
  string(fields.str3);
  writer.int(fields.int1 ?? -1).int(fields.int2 ?? -1);
  writer.uint(0); // no network
}

export const web1 = { name: 'web-1', uuid: '6a0d5f5e-3c3f-4a43-9f0f-0c1d2e3f4a5b', id: 7 };

export function writeDomain(writer: XdrWriter, domain: { name: string; uuid: string; id: number } = web1): XdrWriter {
  return writer
    .string(domain.name)
    .opaque(Buffer.from(domain.uuid.replaceAll('-', ''), 'hex'))
    .int(domain.id);
}

function key(program: number, procedure: number): string {
  return `${program}:${procedure}`;
}
