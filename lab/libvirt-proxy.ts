import { rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { LabError } from './errors.js';

/** The programs of libvirt's RPC (src/rpc/virnetprotocol.x, src/remote/*.x in libvirt). */
export const PROGRAMS = { remote: 0x20008086, qemu: 0x20008087, keepalive: 0x6b656570 } as const;

/** Calls by the names the tests use; any other is given by program and number. */
export const PROCEDURES = {
  OPEN: { program: PROGRAMS.remote, number: 1 },
  CLOSE: { program: PROGRAMS.remote, number: 2 },
  GET_XML_DESC: { program: PROGRAMS.remote, number: 14 },
  LOOKUP_BY_NAME: { program: PROGRAMS.remote, number: 23 },
  LOOKUP_BY_UUID: { program: PROGRAMS.remote, number: 24 },
  RESUME: { program: PROGRAMS.remote, number: 28 },
  SUSPEND: { program: PROGRAMS.remote, number: 34 },
  AUTH_LIST: { program: PROGRAMS.remote, number: 66 },
  SNAPSHOT_CREATE_XML: { program: PROGRAMS.remote, number: 185 },
  GET_STATE: { program: PROGRAMS.remote, number: 212 },
  BLOCK_JOB_ABORT: { program: PROGRAMS.remote, number: 237 },
  GET_BLOCK_JOB_INFO: { program: PROGRAMS.remote, number: 238 },
  LIST_ALL_DOMAINS: { program: PROGRAMS.remote, number: 273 },
  BLOCK_COMMIT: { program: PROGRAMS.remote, number: 290 },
  EVENT_CALLBACK_REGISTER_ANY: { program: PROGRAMS.remote, number: 316 },
  FSFREEZE: { program: PROGRAMS.remote, number: 335 },
  FSTHAW: { program: PROGRAMS.remote, number: 336 },
  GET_FSINFO: { program: PROGRAMS.remote, number: 349 },
  AGENT_SET_RESPONSE_TIMEOUT: { program: PROGRAMS.remote, number: 420 },
  AGENT_COMMAND: { program: PROGRAMS.qemu, number: 3 },
} as const;

export type ProcedureName = keyof typeof PROCEDURES;
export type Procedure = ProcedureName | { readonly program: number; readonly number: number };

/** `call`: client to libvirtd. `reply`: the answer to a call. `event`: unasked, libvirtd to client. */
export type FrameKind = 'call' | 'reply' | 'event' | 'stream';

/** One frame as it passed. */
export interface FrameRecord {
  /** Connections are counted from 1, in the order in which they came. */
  readonly connection: number;
  readonly kind: FrameKind;
  readonly program: number;
  readonly number: number;
  /** The procedure's name, or `<program>:<number>` in hex and decimal where it has none here. */
  readonly name: string;
  readonly serial: number;
  /** A reply: true where it is an error. */
  readonly failed: boolean;
  /** Milliseconds of performance.now() when it came to the proxy. */
  readonly atMs: number;
  /** The same when it went on; undefined where it is held or was dropped. */
  readonly passedAtMs: number | undefined;
  /** What follows the header, XDR. */
  readonly payload: Buffer;
}

/** Which frame a fault is for. */
export interface FrameMatch {
  readonly procedure: Procedure;
  readonly what: 'call' | 'reply' | 'event';
  /** Counted from 1, from the time the fault is set; default 1. */
  readonly nth?: number;
  /** Frames for which it is false are neither hit nor counted. */
  readonly where?: (payload: Buffer) => boolean;
}

/** A fault that waits for its frame or has it. */
export interface HeldFrame {
  /** Comes true when the frame has come to the proxy, which then holds it. */
  readonly reached: Promise<FrameRecord>;
  /** Lets it go on (or, if it has not come yet, lets it pass unhindered). */
  release(): void;
  /** Makes it vanish: the other side never sees it. */
  drop(): void;
}

type Fate = 'hold' | 'pass' | 'drop';

interface Frame {
  record: FrameRecord & { passedAtMs: number | undefined };
  readonly bytes: Buffer;
  readonly send: (bytes: Buffer) => void;
}

class Fault implements HeldFrame {
  readonly reached: Promise<FrameRecord>;
  readonly #match: FrameMatch;
  readonly #delayMs: number | undefined;
  #fate: Fate;
  #count = 0;
  #frame: Frame | undefined;
  #tell: (record: FrameRecord) => void = () => undefined;

  constructor(match: FrameMatch, fate: Fate, delayMs?: number) {
    this.#match = match;
    this.#fate = fate;
    this.#delayMs = delayMs;
    this.reached = new Promise((resolve) => {
      this.#tell = resolve;
    });
  }

  /** Takes the frame if it is the one, and says so. */
  take(frame: Frame): boolean {
    if (this.#frame !== undefined || !matches(this.#match, frame.record)) return false;
    this.#count += 1;
    if (this.#count !== (this.#match.nth ?? 1)) return false;
    this.#frame = frame;
    this.#tell(frame.record);
    if (this.#fate === 'pass') pass(frame);
    else if (this.#fate === 'hold' && this.#delayMs !== undefined) setTimeout(() => this.release(), this.#delayMs);
    return true;
  }

  release(): void {
    this.#settle('pass');
  }

  drop(): void {
    this.#settle('drop');
  }

  #settle(fate: Fate): void {
    if (this.#fate !== 'hold') return;
    this.#fate = fate;
    if (fate === 'pass' && this.#frame !== undefined) pass(this.#frame);
  }
}

function pass(frame: Frame): void {
  frame.record.passedAtMs = performance.now();
  frame.send(frame.bytes);
}

function matches(match: FrameMatch, record: FrameRecord): boolean {
  const { program, number } = typeof match.procedure === 'string' ? PROCEDURES[match.procedure] : match.procedure;
  if (record.program !== program || record.number !== number || record.kind !== match.what) return false;
  return match.where?.(record.payload) ?? true;
}

const HEADER = 24;
/** VIR_NET_MESSAGE_MAX with room for what comes with it; longer is no libvirt RPC. */
const FRAME_LIMIT = 33_554_432 + HEADER + 4;
const KINDS: readonly FrameKind[] = ['call', 'reply', 'event', 'stream', 'call', 'reply', 'stream'];

/**
 * Stands before libvirt's socket, passes every frame on, and holds, delays or drops the one it was told to: so a fault hits
 * the step it is meant for. It keeps a record of all calls and replies with their times.
 *
 * @example
 * const held = proxy.hold({ procedure: 'FSFREEZE', what: 'reply' });
 * const answer = client.freeze();
 * await held.reached; // The guest is frozen, and the client does not know it.
 * held.release();
 */
export class LibvirtProxy {
  readonly socket: string;
  readonly #upstream: string;
  readonly #server: Server;
  readonly #pairs = new Map<Socket, Socket>();
  readonly #records: FrameRecord[] = [];
  #faults: Fault[] = [];
  #connections = 0;
  #refusing = false;

  private constructor(socket: string, upstream: string) {
    this.socket = socket;
    this.#upstream = upstream;
    this.#server = createServer((client) => this.#accept(client));
  }

  /** Starts a proxy on the Unix socket `socket` before the one of libvirt. */
  static async start(options: { readonly socket: string; readonly upstream: string }): Promise<LibvirtProxy> {
    const proxy = new LibvirtProxy(options.socket, options.upstream);
    rmSync(options.socket, { force: true });
    await new Promise<void>((resolve, reject) => {
      proxy.#server.once('error', (error) =>
        reject(new LabError('PROXY_FAILED', `The proxy cannot listen on ${options.socket}`, { cause: error })),
      );
      proxy.#server.listen(options.socket, resolve);
    });
    return proxy;
  }

  /** All frames so far, keepalive left out. */
  get records(): readonly FrameRecord[] {
    return this.#records;
  }

  /** The calls so far, in their order. */
  calls(procedure?: Procedure): FrameRecord[] {
    return this.#records.filter((record) =>
      procedure === undefined ? record.kind === 'call' : matches({ procedure, what: 'call' }, record),
    );
  }

  /** Forgets the frames so far. */
  clearRecords(): void {
    this.#records.length = 0;
  }

  /** Holds one frame until it is released or dropped. */
  hold(match: FrameMatch): HeldFrame {
    return this.#add(new Fault(match, 'hold'));
  }

  /** Drops one frame; the connection stays open. */
  drop(match: FrameMatch): HeldFrame {
    return this.#add(new Fault(match, 'drop'));
  }

  /** Holds one frame for `delayMs` milliseconds. Frames behind it overtake it, as replies may. */
  delay(match: FrameMatch, delayMs: number): HeldFrame {
    return this.#add(new Fault(match, 'hold', delayMs));
  }

  /** Tells when a frame passes, and does nothing to it. */
  async seen(match: FrameMatch): Promise<FrameRecord> {
    return this.#add(new Fault(match, 'pass')).reached;
  }

  /** Forgets all faults; what is held goes on. */
  clearFaults(): void {
    for (const fault of this.#faults.splice(0)) fault.release();
  }

  /** Cuts all connections, as a dying libvirtd would; new ones are taken. */
  cut(): void {
    for (const [client, upstream] of this.#pairs) {
      client.destroy();
      upstream.destroy();
    }
  }

  /** Cuts all connections and every new one at once, until {@link accept}. */
  refuse(): void {
    this.#refusing = true;
    this.cut();
  }

  /** Takes connections again after {@link refuse}. */
  accept(): void {
    this.#refusing = false;
  }

  /** Closes everything and removes the socket. */
  async close(): Promise<void> {
    this.#faults = [];
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.cut();
    });
    rmSync(this.socket, { force: true });
  }

  #add(fault: Fault): Fault {
    this.#faults.push(fault);
    return fault;
  }

  #accept(client: Socket): void {
    if (this.#refusing) {
      client.destroy();
      return;
    }
    this.#connections += 1;
    const connection = this.#connections;
    const upstream = connect(this.#upstream);
    this.#pairs.set(client, upstream);
    const end = () => {
      client.destroy();
      upstream.destroy();
      this.#pairs.delete(client);
    };
    for (const socket of [client, upstream]) {
      socket.on('error', end);
      socket.on('close', end);
    }
    client.on('data', this.#splitter(connection, upstream, end));
    upstream.on('data', this.#splitter(connection, client, end));
  }

  /** Cuts a stream of bytes into frames and hands each on. */
  #splitter(connection: number, target: Socket, end: () => void): (bytes: Buffer) => void {
    let rest = Buffer.alloc(0);
    const send = (bytes: Buffer) => {
      if (!target.destroyed) target.write(bytes);
    };
    return (bytes) => {
      rest = Buffer.concat([rest, bytes]);
      while (rest.length >= 4) {
        const length = rest.readUInt32BE(0);
        if (length < HEADER + 4 || length > FRAME_LIMIT) return end();
        if (rest.length < length) return;
        const frame = Buffer.from(rest.subarray(0, length));
        rest = rest.subarray(length);
        this.#handle({ record: describe(connection, frame), bytes: frame, send });
      }
    };
  }

  #handle(frame: Frame): void {
    if (frame.record.program !== PROGRAMS.keepalive) this.#records.push(frame.record);
    if (!this.#faults.some((fault) => fault.take(frame))) pass(frame);
  }
}

function describe(connection: number, frame: Buffer): Frame['record'] {
  const [program, , number, type, serial, status] = [4, 8, 12, 16, 20, 24].map((at) => frame.readUInt32BE(at));
  const record = { program: program ?? 0, number: number ?? 0 };
  const known = Object.entries(PROCEDURES).find(
    ([, entry]) => entry.program === record.program && entry.number === record.number,
  );
  return {
    ...record,
    connection,
    kind: KINDS[type ?? 0] ?? 'stream',
    name: known?.[0] ?? `${record.program.toString(16)}:${record.number}`,
    serial: serial ?? 0,
    failed: status === 1,
    atMs: performance.now(),
    passedAtMs: undefined,
    payload: frame.subarray(HEADER + 4),
  };
}

/** The flags of a SNAPSHOT_CREATE_XML call: the last four bytes of its arguments. */
export function snapshotFlags(call: FrameRecord): number {
  return call.payload.readUInt32BE(call.payload.length - 4);
}
