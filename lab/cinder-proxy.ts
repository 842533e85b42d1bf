import { Agent, createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { LabError } from './errors.js';

/** One request as it passed, and its answer. */
export interface ExchangeRecord {
  /** Connections are counted from 1, in the order in which they came. */
  readonly connection: number;
  readonly method: string;
  /** With the query, as the client wrote it. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  /** Milliseconds of performance.now() when it came to the proxy. */
  readonly atMs: number;
  /** The same when it went on to the server; undefined where it is held, was dropped or was answered here. */
  readonly passedAtMs: number | undefined;
  /** The status that the client got or is to get; undefined before there is one. */
  readonly status: number | undefined;
  /** When the answer went on to the client; undefined where it is held or was dropped. */
  readonly answeredAtMs: number | undefined;
}

/** Which request or answer a fault is for. */
export interface ExchangeMatch {
  /** Default any. */
  readonly method?: string;
  /** Tried on the path without the query. */
  readonly path: RegExp;
  /** `request`: before it reaches the server; `answer`: after the server has carried it out. */
  readonly what: 'request' | 'answer';
  /** Counted from 1, from the time the fault is set; default 1. */
  readonly nth?: number;
  /** Exchanges for which it is false are neither hit nor counted. */
  readonly where?: (record: ExchangeRecord) => boolean;
}

/** A fault that waits for its exchange or has it. */
export interface HeldExchange {
  /** Comes true when the request or the answer has come to the proxy, which then holds it. */
  readonly reached: Promise<ExchangeRecord>;
  /** Lets it go on (or, if it has not come yet, lets it pass unhindered). */
  release(): void;
  /** Makes it vanish: the client's connection is cut. */
  drop(): void;
}

/** An answer that the server never gave. */
export interface CannedAnswer {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** Sent as it is; an object is sent as JSON. */
  readonly body?: string | object;
}

type Fate = 'hold' | 'pass' | 'drop' | CannedAnswer;

/** A request or an answer on its way, and what can be done with it. */
interface Passing {
  readonly record: MutableRecord;
  readonly what: ExchangeMatch['what'];
  readonly pass: () => void;
  readonly drop: () => void;
  readonly answer: (canned: CannedAnswer) => void;
}

type MutableRecord = { -readonly [Key in keyof ExchangeRecord]: ExchangeRecord[Key] };

class Fault implements HeldExchange {
  readonly reached: Promise<ExchangeRecord>;
  readonly #match: ExchangeMatch;
  readonly #delayMs: number | undefined;
  #fate: Fate;
  #count = 0;
  #passing: Passing | undefined;
  #tell: (record: ExchangeRecord) => void = () => undefined;

  constructor(match: ExchangeMatch, fate: Fate, delayMs?: number) {
    this.#match = match;
    this.#fate = fate;
    this.#delayMs = delayMs;
    this.reached = new Promise((resolve) => {
      this.#tell = resolve;
    });
  }

  /** Takes the request or answer if it is the one, and says so. */
  take(passing: Passing): boolean {
    if (this.#passing !== undefined || passing.what !== this.#match.what) return false;
    if (!matches(this.#match, passing.record)) return false;
    this.#count += 1;
    if (this.#count !== (this.#match.nth ?? 1)) return false;
    this.#passing = passing;
    if (this.#fate !== 'hold') this.#do(this.#fate);
    else if (this.#delayMs !== undefined) setTimeout(() => this.release(), this.#delayMs);
    this.#tell(passing.record);
    return true;
  }

  release(): void {
    this.#settle('pass');
  }

  drop(): void {
    this.#settle('drop');
  }

  #settle(fate: 'pass' | 'drop'): void {
    if (this.#fate !== 'hold') return;
    this.#fate = fate;
    this.#do(fate);
  }

  #do(fate: Exclude<Fate, 'hold'>): void {
    if (fate === 'pass') this.#passing?.pass();
    else if (fate === 'drop') this.#passing?.drop();
    else this.#passing?.answer(fate);
  }
}

function matches(match: ExchangeMatch, record: ExchangeRecord): boolean {
  if (match.method !== undefined && match.method !== record.method) return false;
  return match.path.test(record.path.split('?')[0] ?? '') && (match.where?.(record) ?? true);
}

/**
 * Stands before Cinder (or Keystone), passes every request and answer on, and holds, delays or drops the one it was told to, or answers
 * in its stead: so a fault hits the step it is meant for. Each connection of a client has one of its own behind it, and both live as
 * long: who keeps connections open meets here what it would meet without the proxy.
 *
 * @example
 * const lost = proxy.drop({ method: 'POST', path: /\/snapshots$/, what: 'answer' });
 * await expect(client.createSnapshot(volume)).rejects.toThrow();
 * await lost.reached; // Cinder makes the snapshot, and the client does not know it.
 */
export class CinderProxy {
  /** `http://127.0.0.1:<port>`, without a path. */
  readonly url: string;
  readonly #upstream: URL;
  readonly #server: Server;
  readonly #connections = new Map<Socket, { readonly number: number; readonly agent: Agent }>();
  readonly #records: MutableRecord[] = [];
  #faults: Fault[] = [];
  #count = 0;
  #refusing = false;

  private constructor(server: Server, upstream: URL) {
    this.#server = server;
    this.#upstream = upstream;
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on('connection', (socket) => this.#connect(socket));
    server.on('request', (asked, answer) => this.#ask(asked, answer));
  }

  /** Starts a proxy on a free port of 127.0.0.1. `upstream`: any URL of the server behind it; its path does not matter. */
  static async start(options: { readonly upstream: string }): Promise<CinderProxy> {
    // It has no patience of its own: what is held, is held.
    const server = createServer({ requestTimeout: 0, headersTimeout: 0, keepAliveTimeout: 0 });
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) =>
        reject(new LabError('PROXY_FAILED', 'The proxy finds no port of 127.0.0.1 to listen on', { cause: error })),
      );
      server.listen(0, '127.0.0.1', resolve);
    });
    return new CinderProxy(server, new URL(options.upstream));
  }

  /** All requests so far, in the order in which they came. */
  get records(): readonly ExchangeRecord[] {
    return this.#records;
  }

  /** The requests so far of that method and path. */
  requests(match: Pick<ExchangeMatch, 'method' | 'path'>): ExchangeRecord[] {
    return this.#records.filter((record) => matches({ ...match, what: 'request' }, record));
  }

  /** How many clients' connections are open now. */
  get openConnections(): number {
    return this.#connections.size;
  }

  /** Forgets the requests so far. */
  clearRecords(): void {
    this.#records.length = 0;
  }

  /** Holds a request or an answer until it is released or dropped. */
  hold(match: ExchangeMatch): HeldExchange {
    return this.#add(new Fault(match, 'hold'));
  }

  /** Drops a request, which the server never sees, or the answer to one that it has carried out; cuts the client's connection. */
  drop(match: ExchangeMatch): HeldExchange {
    return this.#add(new Fault(match, 'drop'));
  }

  /** Holds a request or an answer for `delayMs` milliseconds. */
  delay(match: ExchangeMatch, delayMs: number): HeldExchange {
    return this.#add(new Fault(match, 'hold', delayMs));
  }

  /** Answers in the server's stead: to a request that it never sees, or instead of its own answer. Tells when it happened. */
  async answer(match: ExchangeMatch, canned: CannedAnswer): Promise<ExchangeRecord> {
    return this.#add(new Fault(match, canned)).reached;
  }

  /** Tells when a request or an answer passes, and does nothing to it. */
  async seen(match: ExchangeMatch): Promise<ExchangeRecord> {
    return this.#add(new Fault(match, 'pass')).reached;
  }

  /** Forgets all faults; what is held goes on. */
  clearFaults(): void {
    for (const fault of this.#faults.splice(0)) fault.release();
  }

  /** Cuts all connections, as a dying server would; new ones are taken. */
  cut(): void {
    for (const socket of this.#connections.keys()) socket.destroy();
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

  /** Closes everything. */
  async close(): Promise<void> {
    this.#faults = [];
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.cut();
    });
  }

  #add(fault: Fault): Fault {
    this.#faults.push(fault);
    return fault;
  }

  #connect(socket: Socket): void {
    if (this.#refusing) {
      socket.destroy();
      return;
    }
    this.#count += 1;
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    this.#connections.set(socket, { number: this.#count, agent });
    socket.on('error', () => socket.destroy());
    socket.once('close', () => {
      this.#connections.delete(socket);
      // Only what waits for a next request: the server carries out what it was asked, whether somebody listens or not.
      for (const idle of Object.values(agent.freeSockets).flat()) idle?.destroy();
    });
  }

  #ask(asked: IncomingMessage, answer: ServerResponse): void {
    const { socket } = asked;
    const connection = this.#connections.get(socket);
    if (connection === undefined) return;
    const record: MutableRecord = {
      connection: connection.number,
      method: asked.method ?? '',
      path: asked.url ?? '',
      headers: asked.headers,
      atMs: performance.now(),
      passedAtMs: undefined,
      status: undefined,
      answeredAtMs: undefined,
    };
    this.#records.push(record);
    this.#meet({
      record,
      what: 'request',
      pass: () => this.#forward(asked, answer, record, connection.agent),
      drop: () => socket.destroy(),
      answer: (canned) => {
        asked.resume();
        sendCanned(answer, canned, record);
      },
    });
  }

  #forward(asked: IncomingMessage, answer: ServerResponse, record: MutableRecord, agent: Agent): void {
    const { socket } = asked;
    // Whoever gave up while it was held has not asked.
    if (socket.destroyed) return;
    record.passedAtMs = performance.now();
    const { hostname, port } = this.#upstream;
    const { connection: _hop, ...headers } = asked.headers;
    const upstream = request({ hostname, port, agent, method: record.method, path: record.path, headers });
    upstream.on('error', () => socket.destroy());
    upstream.once('socket', (behind) => {
      if (!upstream.reusedSocket) behind.once('close', () => socket.destroy());
    });
    asked.pipe(upstream);
    asked.once('close', () => {
      // Given up in the middle of its body: as a server would see it.
      if (!asked.complete) upstream.destroy();
    });
    upstream.once('response', (answered) => {
      record.status = answered.statusCode;
      this.#meet({
        record,
        what: 'answer',
        pass: () => {
          if (socket.destroyed) return discard(answered, agent);
          record.answeredAtMs = performance.now();
          const { connection: _hopToo, ...answerHeaders } = answered.headers;
          answer.writeHead(answered.statusCode ?? 502, answerHeaders);
          answered.pipe(answer);
        },
        drop: () => {
          discard(answered, agent);
          socket.destroy();
        },
        answer: (canned) => {
          answered.resume();
          sendCanned(answer, canned, record);
        },
      });
    });
  }

  #meet(passing: Passing): void {
    if (!this.#faults.some((fault) => fault.take(passing))) passing.pass();
  }
}

/** Takes an answer that nobody waits for to its end, and closes the connection on which it came. */
function discard(answered: IncomingMessage, agent: Agent): void {
  answered.once('end', () => agent.destroy());
  answered.resume();
}

function sendCanned(answer: ServerResponse, { status, headers, body = '' }: CannedAnswer, record: MutableRecord): void {
  record.status = status;
  record.answeredAtMs = performance.now();
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  const length = { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(text)) };
  answer.writeHead(status, { ...length, ...headers });
  answer.end(text);
}
