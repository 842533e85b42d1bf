/**
 * One connection of libvirt's RPC: framing, serials, pipelined calls, replies, events and keepalive. Knows no procedure by name.
 *
 * Source of the format: libvirt's src/rpc/virnetprotocol.x and docs/kbase/internals/rpc. A message is a 32-bit length that counts itself, a
 * header of six 32-bit words (program, version, procedure, type, serial, status) and an XDR body.
 *
 * The peer is not trusted. Whatever is no libvirt message ends the connection with LIBVIRT_PROTOCOL, and every waiting call with it.
 */
import { connect, type Socket } from 'node:net';
import { type CallOutcome, LibvirtConnectionError, LibvirtError } from './errors.js';
import { type Procedure, Program, readError } from './procedures.js';
import { XdrError, XdrReader, XdrWriter } from './xdr.js';

const LENGTH_BYTES = 4;
const HEADER_BYTES = 24;
/** VIR_NET_MESSAGE_MAX: 32 MiB for header and body together. */
const MESSAGE_MAX = 33_554_432;
const PROTOCOL_VERSION = 1;

const MessageType = { call: 0, reply: 1, message: 2 } as const;
const Status = { ok: 0, error: 1 } as const;
const Keepalive = { ping: 1, pong: 2 } as const;

/** More calls than this without an answer, all given up by their callers, and the peer is taken for dead. */
const ABANDONED_MAX = 1_000;

export interface CallOptions {
  /** Milliseconds until the call is given up with LIBVIRT_CALL_TIMEOUT; the answer that comes later is read and dropped. */
  timeoutMs?: number;
  /** Gives the call up with LIBVIRT_CALL_ABORTED. libvirtd knows nothing of it and carries on. */
  signal?: AbortSignal;
  /** Told, by performance.now(), when the request had been handed to the kernel. */
  onWritten?: (atMs: number) => void;
  /** Told, by performance.now(), when the reply (a result or an error) had been read from the socket; before the call settles. */
  onAnswered?: (atMs: number) => void;
}

export interface RpcSettings {
  /** Default of {@link CallOptions.timeoutMs}, in ms. */
  callTimeoutMs: number;
  /** A silent peer is pinged every so many ms. */
  keepaliveIntervalMs: number;
  /** The connection is given up when so many pings in a row were followed by no message at all. */
  keepaliveCount: number;
}

export interface RpcListener {
  /** An event. The body must be read completely; an XdrError thrown here ends the connection. */
  onEvent(program: number, procedure: number, body: XdrReader): void;
  /** The peer answered a call, which frees its slot there, whether or not anybody still waits for the answer. */
  onSlotFree(): void;
  /** Called once, when the connection has ended. Every call has been rejected by then. */
  onClosed(reason: LibvirtConnectionError): void;
}

interface PendingCall {
  program: number;
  procedure: number;
  /** Undefined once the caller has given up: the slot at the peer is still taken. */
  settle: { resolve: (body: XdrReader) => void; reject: (error: Error) => void } | undefined;
  onAnswered: ((atMs: number) => void) | undefined;
  name: string;
}

export class RpcConnection {
  readonly #socket: Socket;
  readonly #settings: RpcSettings;
  readonly #listener: RpcListener;
  readonly #pending = new Map<number, PendingCall>();
  readonly #keepalive: NodeJS.Timeout;
  #frames = new FrameReader();
  #serial = 0;
  #abandoned = 0;
  #unansweredPings = 0;
  #heardSincePing = false;
  #closed: LibvirtConnectionError | undefined;

  /** Takes over a socket that is connected. */
  constructor(socket: Socket, settings: RpcSettings, listener: RpcListener) {
    this.#socket = socket;
    this.#settings = settings;
    this.#listener = listener;
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('end', () =>
      this.#end(
        unreachable(
          this.#frames.isEmpty
            ? 'libvirtd closed the connection'
            : 'libvirtd closed the connection in the middle of a message',
        ),
      ),
    );
    socket.on('error', (cause) => this.#end(unreachable(`the connection to libvirtd broke: ${cause.message}`, cause)));
    socket.on('close', () => this.#end(unreachable('the connection to libvirtd was closed')));
    this.#keepalive = setInterval(() => this.#ping(), settings.keepaliveIntervalMs);
  }

  /** Calls that the peer has not answered yet, those given up by their callers included: so many slots are taken there. */
  get inFlight(): number {
    return this.#pending.size;
  }

  get isOpen(): boolean {
    return this.#closed === undefined;
  }

  /**
   * Calls a procedure. Rejects with LibvirtError when libvirtd answers an error, else with LibvirtConnectionError; its `outcome` says
   * whether the call can have had an effect.
   */
  call<Args, Result>(procedure: Procedure<Args, Result>, args: Args, options: CallOptions = {}): Promise<Result> {
    const { signal } = options;
    if (this.#closed !== undefined) return Promise.reject(notSent(this.#closed));
    if (signal?.aborted === true) return Promise.reject(aborted(procedure.name, 'not-sent', signal));
    let message: Buffer;
    const serial = this.#nextSerial();
    try {
      message = encodeMessage(
        { program: procedure.program, procedure: procedure.number, type: MessageType.call, serial, status: Status.ok },
        (writer) => procedure.encode(writer, args),
      );
    } catch (cause) {
      return Promise.reject(
        new LibvirtConnectionError('LIBVIRT_REQUEST_INVALID', `${procedure.name}: ${textOf(cause)}`, 'not-sent', {
          cause,
        }),
      );
    }

    return new Promise<Result>((resolve, reject) => {
      const timeoutMs = options.timeoutMs ?? this.#settings.callTimeoutMs;
      const timer = setTimeout(() => {
        giveUp(
          new LibvirtConnectionError(
            'LIBVIRT_CALL_TIMEOUT',
            `libvirtd did not answer ${procedure.name} within ${timeoutMs} ms`,
            'unknown',
          ),
        );
      }, timeoutMs);
      const onAbort = () => giveUp(aborted(procedure.name, 'unknown', signal));
      const release = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
      };
      const giveUp = (error: Error) => {
        release();
        const call = this.#pending.get(serial);
        if (call !== undefined) call.settle = undefined;
        reject(error);
        this.#abandoned++;
        if (this.#abandoned > ABANDONED_MAX)
          this.#end(unreachable(`libvirtd left ${this.#abandoned} calls unanswered`));
      };
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#pending.set(serial, {
        program: procedure.program,
        procedure: procedure.number,
        name: procedure.name,
        onAnswered: options.onAnswered,
        settle: {
          resolve: (body) => {
            release();
            const result = procedure.decode(body);
            body.end();
            resolve(result);
          },
          reject: (error) => {
            release();
            reject(error);
          },
        },
      });
      this.#socket.write(message, (error) => {
        if (error === null || error === undefined) options.onWritten?.(performance.now());
      });
    });
  }

  /** Ends the connection from our side; waiting calls are rejected with LIBVIRT_UNREACHABLE. */
  close(): void {
    this.#end(unreachable('the connection to libvirtd was closed by the host agent'));
  }

  #read(chunk: Buffer): void {
    const atMs = performance.now();
    try {
      for (const frame of this.#frames.push(chunk)) {
        this.#unansweredPings = 0;
        this.#heardSincePing = true;
        this.#dispatch(frame, atMs);
        if (this.#closed !== undefined) return;
      }
    } catch (cause) {
      // Only what the decoders throw says something about the peer; any other error is a bug of ours and must be seen as one.
      if (!(cause instanceof XdrError)) throw cause;
      this.#end(
        new LibvirtConnectionError(
          'LIBVIRT_PROTOCOL',
          `libvirtd sent an invalid message: ${cause.message}`,
          'unknown',
          { cause },
        ),
      );
    }
  }

  #dispatch(frame: Buffer, atMs: number): void {
    const body = new XdrReader(frame);
    const program = body.uint();
    const version = body.uint();
    const procedure = body.int();
    const type = body.uint();
    const serial = body.uint();
    const status = body.uint();
    if (version !== PROTOCOL_VERSION) throw new XdrError(`version ${version} of program 0x${program.toString(16)}`);
    switch (program) {
      case Program.keepalive:
        if (type !== MessageType.message) throw new XdrError(`a keepalive message of type ${type}`);
        this.#answerKeepalive(procedure);
        return;
      case Program.remote:
      case Program.qemu:
        break;
      default:
        throw new XdrError(`unknown program 0x${program.toString(16)}`);
    }
    if (type === MessageType.message) {
      if (status !== Status.ok) throw new XdrError(`an event of status ${status}`);
      this.#listener.onEvent(program, procedure, body);
    } else if (type === MessageType.reply) {
      this.#answer({ program, procedure, serial, status }, body, atMs);
    } else {
      throw new XdrError(`a message of type ${type}`);
    }
  }

  #answer(
    header: { program: number; procedure: number; serial: number; status: number },
    body: XdrReader,
    atMs: number,
  ): void {
    const call = this.#pending.get(header.serial);
    if (call === undefined) throw new XdrError(`an answer to serial ${header.serial}, which is not waited for`);
    if (call.program !== header.program || call.procedure !== header.procedure) {
      throw new XdrError(`an answer of procedure ${header.procedure} to a call of ${call.procedure}`);
    }
    if (header.status !== Status.ok && header.status !== Status.error)
      throw new XdrError(`an answer of status ${header.status}`);

    const { settle } = call;
    if (settle === undefined) {
      this.#abandoned--;
    } else {
      // A body that cannot be read throws with the call still pending: closing the connection then rejects it with the others.
      if (header.status === Status.ok) {
        call.onAnswered?.(atMs);
        settle.resolve(body);
      } else {
        const error = readError(body);
        body.end();
        call.onAnswered?.(atMs);
        settle.reject(new LibvirtError(call.name, error));
      }
    }
    this.#pending.delete(header.serial);
    this.#listener.onSlotFree();
  }

  #answerKeepalive(procedure: number): void {
    if (procedure === Keepalive.pong) return;
    if (procedure !== Keepalive.ping) throw new XdrError(`a keepalive message ${procedure}`);
    // A peer that pings without reading must not fill our memory with pongs; one that reads slowly has our calls to hear from.
    if (this.#socket.writableLength === 0) this.#socket.write(keepaliveMessage(Keepalive.pong));
  }

  #ping(): void {
    if (this.#heardSincePing) {
      this.#heardSincePing = false;
      return;
    }
    if (this.#unansweredPings >= this.#settings.keepaliveCount) {
      const silentMs = this.#unansweredPings * this.#settings.keepaliveIntervalMs;
      this.#end(unreachable(`libvirtd has not answered for ${silentMs} ms (${this.#unansweredPings} keepalive pings)`));
      return;
    }
    this.#unansweredPings++;
    this.#socket.write(keepaliveMessage(Keepalive.ping));
  }

  #nextSerial(): number {
    do {
      this.#serial = this.#serial === 0xffff_ffff ? 1 : this.#serial + 1;
    } while (this.#pending.has(this.#serial));
    return this.#serial;
  }

  #end(reason: LibvirtConnectionError): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    clearInterval(this.#keepalive);
    this.#socket.destroy();
    this.#frames = new FrameReader();
    const calls = [...this.#pending.values()];
    this.#pending.clear();
    for (const call of calls) call.settle?.reject(reason);
    this.#listener.onClosed(reason);
  }
}

/** Connects to a unix socket. Rejects with LIBVIRT_UNREACHABLE, outcome `not-sent`. */
export function connectSocket(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path });
    const onError = (cause: Error) => {
      socket.destroy();
      reject(
        new LibvirtConnectionError(
          'LIBVIRT_UNREACHABLE',
          `cannot connect to libvirtd at ${path}: ${cause.message}`,
          'not-sent',
          { cause },
        ),
      );
    };
    socket.once('error', onError);
    socket.once('connect', () => {
      socket.off('error', onError);
      resolve(socket);
    });
  });
}

interface MessageHeader {
  program: number;
  procedure: number;
  type: number;
  serial: number;
  status: number;
}

/** A whole message, ready to be written. Throws XdrError when it would exceed libvirt's limit. */
export function encodeMessage(header: MessageHeader, encodeBody: (writer: XdrWriter) => void): Buffer {
  const writer = new XdrWriter();
  writer.uint(0).uint(header.program).uint(PROTOCOL_VERSION).int(header.procedure);
  writer.uint(header.type).uint(header.serial).uint(header.status);
  encodeBody(writer);
  const message = writer.bytes();
  if (message.length > MESSAGE_MAX + LENGTH_BYTES)
    throw new XdrError(`a message of ${message.length} bytes exceeds libvirt's limit`);
  message.writeUInt32BE(message.length, 0);
  return message;
}

/**
 * Cuts a stream of bytes into messages (header and body, without the length). A length is judged before anything is kept for it, and
 * memory is taken only for bytes that came, so a peer that announces 32 MiB and sends nothing costs nothing. What is kept lies in one
 * buffer: a list of chunks would cost a peer's single bytes a hundred times their size.
 */
export class FrameReader {
  #kept = Buffer.alloc(0);
  #length = 0;

  /** True between two messages. */
  get isEmpty(): boolean {
    return this.#length === 0;
  }

  /** Yields every message that is complete with `chunk`. Throws XdrError for a length outside 28 bytes to 32 MiB + 4. */
  *push(chunk: Buffer): Generator<Buffer> {
    const bytes = this.#length === 0 ? chunk : this.#append(chunk);
    let at = 0;
    while (bytes.length - at >= LENGTH_BYTES) {
      const length = bytes.readUInt32BE(at);
      if (length < LENGTH_BYTES + HEADER_BYTES || length > LENGTH_BYTES + MESSAGE_MAX) {
        throw new XdrError(`a message of ${length} bytes`);
      }
      if (bytes.length - at < length) break;
      yield bytes.subarray(at + LENGTH_BYTES, at + length);
      at += length;
    }
    if (bytes === chunk || at > 0) {
      this.#kept = Buffer.from(bytes.subarray(at));
      this.#length = this.#kept.length;
    }
  }

  #append(chunk: Buffer): Buffer {
    const length = this.#length + chunk.length;
    if (length > this.#kept.length) {
      const larger = Buffer.allocUnsafe(Math.max(length, this.#kept.length * 2));
      larger.set(this.#kept.subarray(0, this.#length));
      this.#kept = larger;
    }
    this.#kept.set(chunk, this.#length);
    this.#length = length;
    return this.#kept.subarray(0, length);
  }
}

function keepaliveMessage(procedure: number): Buffer {
  const header = { program: Program.keepalive, procedure, type: MessageType.message, serial: 0, status: Status.ok };
  return encodeMessage(header, () => {});
}

function unreachable(message: string, cause?: unknown): LibvirtConnectionError {
  return new LibvirtConnectionError(
    'LIBVIRT_UNREACHABLE',
    message,
    'unknown',
    cause === undefined ? undefined : { cause },
  );
}

function notSent(reason: LibvirtConnectionError): LibvirtConnectionError {
  return new LibvirtConnectionError('LIBVIRT_UNREACHABLE', reason.message, 'not-sent', { cause: reason });
}

function aborted(name: string, outcome: CallOutcome, signal: AbortSignal | undefined): LibvirtConnectionError {
  return new LibvirtConnectionError('LIBVIRT_CALL_ABORTED', `${name} was given up by its caller`, outcome, {
    cause: signal?.reason,
  });
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
