/**
 * How calls share connections.
 *
 * libvirtd limits a client to 5 unanswered calls (max_client_requests). The sixth waits at the server unread, and so does everything
 * behind it on that socket: keepalive pings too, so that a healthy connection would look dead. And a freeze or a block job may keep its call
 * open for as long as a guest likes. Therefore
 *
 * - a connection carries at most 4 unanswered calls, those that their callers gave up included: the fifth slot keeps libvirtd reading;
 * - a call that finds no free slot opens a further connection (about a millisecond on the unix socket) instead of waiting behind others;
 * - calls of different urgency use different lanes, each with connections of its own: what makes one lane slow does not reach the others.
 */
import { LibvirtConnectionError } from './errors.js';
import type { Procedure } from './procedures.js';
import type { CallOptions, RpcConnection, RpcListener } from './rpc.js';

const CALLS_PER_CONNECTION = 4;
/** Connections kept open without a call, so that the next call need not open one. */
const IDLE_CONNECTIONS = 1;

export interface LaneSettings {
  /** Calls under way at once, those that were given up but not answered included; further ones wait in order. */
  maxCalls: number;
  /** What waits at most, as a protection of memory; beyond it calls are refused with LIBVIRT_BUSY. */
  maxWaiting: number;
  /** Default of CallOptions.timeoutMs, in ms; it includes the wait for a slot. */
  callTimeoutMs: number;
}

/** Opens a connection that is ready for calls. Rejects with LibvirtConnectionError or LibvirtError, and never hangs. */
export type OpenConnection = (listener: RpcListener) => Promise<RpcConnection>;

export class Lane {
  readonly #open: OpenConnection;
  readonly #settings: LaneSettings;
  readonly #connections = new Set<RpcConnection>();
  readonly #waiting = new Set<() => void>();
  /** Calls that have their turn but are not on a connection yet. */
  #starting = 0;
  #closed = false;

  constructor(open: OpenConnection, settings: LaneSettings) {
    this.#open = open;
    this.#settings = settings;
  }

  /** Opens the first connection, so that the first call finds it. */
  async warm(): Promise<void> {
    if (this.#connections.size === 0) await this.#connect();
  }

  /** As RpcConnection.call, on a connection with a free slot; the timeout includes the wait for it. */
  async call<Args, Result>(procedure: Procedure<Args, Result>, args: Args, options: CallOptions = {}): Promise<Result> {
    const timeoutMs = options.timeoutMs ?? this.#settings.callTimeoutMs;
    const limit: Limit = {
      name: procedure.name,
      timeoutMs,
      deadline: performance.now() + timeoutMs,
      signal: options.signal,
    };
    await this.#turn(limit);
    let call: Promise<Result>;
    try {
      // Nothing may await between the choice of a connection and the call: others would choose the same slot.
      let connection = this.#leastLoaded();
      while (connection === undefined) {
        await within(this.#connect(), limit);
        connection = this.#leastLoaded();
      }
      call = connection.call(procedure, args, { ...options, timeoutMs: remainingMs(limit) });
    } finally {
      this.#starting--;
      this.#admit();
    }
    return call;
  }

  /**
   * Closes the connections without a call, for when another connection to the same libvirtd broke: they would only be found broken by the
   * next call, whose outcome would then be unknown, where a new connection tells at once that nothing was sent.
   */
  closeIdle(): void {
    for (const connection of this.#connections) if (connection.inFlight === 0) connection.close();
  }

  /** Closes all connections for good; calls under way are rejected with LIBVIRT_UNREACHABLE. */
  close(): void {
    this.#closed = true;
    for (const connection of this.#connections) connection.close();
  }

  get #underWay(): number {
    let calls = this.#starting;
    for (const connection of this.#connections) calls += connection.inFlight;
    return calls;
  }

  /** Resolves with `#starting` raised by one. */
  #turn(limit: Limit): Promise<void> {
    if (this.#underWay < this.#settings.maxCalls) {
      this.#starting++;
      return Promise.resolve();
    }
    if (this.#waiting.size >= this.#settings.maxWaiting) {
      return Promise.reject(
        new LibvirtConnectionError(
          'LIBVIRT_BUSY',
          `${limit.name}: ${this.#underWay} calls wait for libvirtd already`,
          'not-sent',
        ),
      );
    }
    return new Promise((resolve, reject) => {
      const release = onLimit(limit, (error) => {
        this.#waiting.delete(admit);
        reject(error);
      });
      const admit = () => {
        release();
        this.#waiting.delete(admit);
        this.#starting++;
        resolve();
      };
      this.#waiting.add(admit);
    });
  }

  #admit(): void {
    for (const admit of this.#waiting) {
      if (this.#underWay >= this.#settings.maxCalls) return;
      admit();
    }
  }

  /** A connection with a free slot. */
  #leastLoaded(): RpcConnection | undefined {
    let best: RpcConnection | undefined;
    for (const connection of this.#connections) {
      if (connection.inFlight >= CALLS_PER_CONNECTION) continue;
      if (best === undefined || connection.inFlight < best.inFlight) best = connection;
    }
    return best;
  }

  async #connect(): Promise<void> {
    let opened: RpcConnection | undefined;
    const connection = await this.#open({
      onEvent: () => {}, // events are registered on another connection
      onSlotFree: () => {
        this.#admit();
        if (opened !== undefined) this.#closeIfSpare(opened);
      },
      onClosed: () => {
        if (opened !== undefined) this.#connections.delete(opened);
        this.#admit();
      },
    });
    if (this.#closed) connection.close();
    if (!connection.isOpen)
      throw new LibvirtConnectionError('LIBVIRT_UNREACHABLE', 'libvirtd closed a new connection', 'not-sent');
    opened = connection;
    this.#connections.add(connection);
  }

  #closeIfSpare(connection: RpcConnection): void {
    if (connection.inFlight > 0 || this.#starting > 0) return;
    let idle = 0;
    for (const other of this.#connections) if (other.inFlight === 0) idle++;
    if (idle > IDLE_CONNECTIONS) connection.close();
  }
}

interface Limit {
  name: string;
  timeoutMs: number;
  /** By performance.now(). */
  deadline: number;
  signal: AbortSignal | undefined;
}

function remainingMs(limit: Limit): number {
  return Math.max(1, limit.deadline - performance.now());
}

/** Calls `exceeded` once, when the deadline passes or the signal aborts; returns the function that calls it off. */
function onLimit(limit: Limit, exceeded: (error: LibvirtConnectionError) => void): () => void {
  const { name, signal } = limit;
  const onAbort = () => {
    release();
    exceeded(
      new LibvirtConnectionError('LIBVIRT_CALL_ABORTED', `${name} was given up by its caller`, 'not-sent', {
        cause: signal?.reason,
      }),
    );
  };
  const timer = setTimeout(() => {
    release();
    exceeded(
      new LibvirtConnectionError(
        'LIBVIRT_CALL_TIMEOUT',
        `${name} could not be sent within ${limit.timeoutMs} ms`,
        'not-sent',
      ),
    );
  }, remainingMs(limit));
  const release = () => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  };
  if (signal?.aborted === true) queueMicrotask(onAbort);
  else signal?.addEventListener('abort', onAbort, { once: true });
  return release;
}

/** `work`, given up (not ended) when the limit is exceeded first. */
function within(work: Promise<void>, limit: Limit): Promise<void> {
  return new Promise((resolve, reject) => {
    const release = onLimit(limit, reject);
    work.then(resolve, reject).finally(release);
  });
}
