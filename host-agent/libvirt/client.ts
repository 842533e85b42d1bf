/**
 * libvirt's API as far as the host agent uses it, over its RPC socket, with reconnection.
 *
 * Four connections are open while libvirtd is up, for reasons told in lane.ts: one for events, whose end is what `down` means, and one at
 * least for each lane:
 *
 * - `quick`: what libvirtd marks as high priority. It keeps 5 threads for that which no slow call can take.
 * - `ordinary`: everything that may wait for QEMU, a guest or storage. At most 12 at once, because libvirtd has 20 threads (max_workers)
 *   for all its clients: were they all waiting for hung guests, no thaw would find one.
 * - `urgent`: thaw, freeze status and the timeouts they need. They never wait for the calls of other VMs.
 */
import { EventEmitter } from 'node:events';
import { LibvirtConnectionError, LibvirtError } from './errors.js';
import { Lane } from './lane.js';
import {
  type AgentEvent,
  AuthType,
  type BlockInfo,
  type BlockJobEvent,
  type BlockJobInfo,
  type Domain,
  Events,
  type FileSystemInfo,
  type JobStats,
  type LifecycleEvent,
  Procedures,
  Program,
} from './procedures.js';
import { type CallOptions, connectSocket, RpcConnection, type RpcListener } from './rpc.js';
import type { XdrReader } from './xdr.js';

/** Where libvirt's daemons listen: the modular one for QEMU first, since it is the one that serves where both exist. */
const SOCKET_PATHS = ['/run/libvirt/virtqemud-sock', '/run/libvirt/libvirt-sock'];

const ORDINARY_CALLS = 12;
const URGENT_CALLS = 64;
const QUICK_CALLS = 16;
const WAITING_CALLS = 10_000;

export interface LibvirtClientOptions {
  /** The libvirt driver to open; default `qemu:///system`. */
  uri?: string;
  /** Path of libvirtd's (or virtqemud's) unix socket; by default the first of the two usual ones that accepts a connection. */
  socketPath?: string;
  /** Default time limit of a call, in ms; default 30 000. */
  callTimeoutMs?: number;
  /** Time limit for each step of opening a connection, in ms; default 5 000. */
  connectTimeoutMs?: number;
  /** A silent libvirtd is pinged every so many ms; default 5 000. */
  keepaliveIntervalMs?: number;
  /** Pings without any answer until a connection is given up; default 3. */
  keepaliveCount?: number;
  /** First wait before a reconnection, in ms; it doubles with every try. Default 50. */
  reconnectMinMs?: number;
  /** Longest wait before a reconnection, in ms; default 1 000, because a guest may be waiting for its thaw. */
  reconnectMaxMs?: number;
}

/** Versions as libvirt counts them: major * 1 000 000 + minor * 1 000 + release. */
export interface Versions {
  libvirt: number;
  hypervisor: number;
}

export interface LibvirtClientEvents {
  /** Connected, events registered. Events between the last `down` and now are lost: whoever needs a state must ask for it again. */
  up: [versions: Versions];
  /** The connection for events is gone; it is being opened again. */
  down: [reason: Error];
  lifecycle: [event: LifecycleEvent];
  agent: [event: AgentEvent];
  blockJob: [event: BlockJobEvent];
}

/** Flags of libvirt's calls (libvirt/libvirt-domain.h, libvirt-domain-snapshot.h). */
export const DomainXmlFlag = { secure: 1, inactive: 2 } as const;
export const SnapshotFlag = { noMetadata: 4, diskOnly: 16, reuseExt: 32, atomic: 128 } as const;
export const BlockCommitFlag = { shallow: 1, active: 4 } as const;
export const BlockJobAbortFlag = { pivot: 2 } as const;

/** virDomainState. */
export const DomainState = {
  running: 1,
  blocked: 2,
  paused: 3,
  shutdown: 4,
  shutOff: 5,
  crashed: 6,
  pmSuspended: 7,
} as const;
/** virDomainShutoffReason, as far as it is told apart. */
export const ShutoffReason = { unknown: 0, migrated: 4, saved: 5 } as const;
/** virDomainEventType and, of the event 'stopped', virDomainEventStoppedDetailType. */
export const LifecycleStopped = 5;
export const StoppedDetail = { migrated: 3, saved: 4 } as const;
/** virDomainMetadataType and virDomainModificationImpact. */
const METADATA_ELEMENT = 2;
const AFFECT_LIVE = 1;
/** virConnectListAllDomainsFlags: no filter. */
const ALL_DOMAINS = 0;

/**
 * A client that stays connected to one libvirtd.
 *
 * @example
 * const client = new LibvirtClient();
 * client.on('agent', ({ domain, connected }) => log.info({ vm: domain.name, connected }, 'guest agent'));
 * await client.start(AbortSignal.timeout(10_000));
 * const domain = await client.lookupByName('web-1');
 * const frozen = await client.fsFreeze(domain, { timeoutMs: 35_000 });
 */
export class LibvirtClient extends EventEmitter<LibvirtClientEvents> {
  readonly #uri: string;
  readonly #socketPaths: readonly string[];
  readonly #callTimeoutMs: number;
  readonly #connectTimeoutMs: number;
  readonly #keepaliveIntervalMs: number;
  readonly #keepaliveCount: number;
  readonly #reconnectMinMs: number;
  readonly #reconnectMaxMs: number;
  readonly #quick: Lane;
  readonly #ordinary: Lane;
  readonly #urgent: Lane;
  readonly #lanes: readonly Lane[];
  readonly #closing = new AbortController();
  #events: RpcConnection | undefined;
  #versions: Versions | undefined;
  #lastFailure: Error = new LibvirtConnectionError('LIBVIRT_UNREACHABLE', 'not connected to libvirtd yet', 'not-sent');
  #loop: Promise<void> | undefined;

  constructor(options: LibvirtClientOptions = {}) {
    super();
    this.#uri = options.uri ?? 'qemu:///system';
    this.#socketPaths = options.socketPath === undefined ? SOCKET_PATHS : [options.socketPath];
    this.#callTimeoutMs = options.callTimeoutMs ?? 30_000;
    this.#connectTimeoutMs = options.connectTimeoutMs ?? 5_000;
    this.#keepaliveIntervalMs = options.keepaliveIntervalMs ?? 5_000;
    this.#keepaliveCount = options.keepaliveCount ?? 3;
    this.#reconnectMinMs = options.reconnectMinMs ?? 50;
    this.#reconnectMaxMs = options.reconnectMaxMs ?? 1_000;
    const lane = (maxCalls: number) =>
      new Lane((listener) => this.#open(listener), {
        maxCalls,
        maxWaiting: WAITING_CALLS,
        callTimeoutMs: this.#callTimeoutMs,
      });
    this.#quick = lane(QUICK_CALLS);
    this.#ordinary = lane(ORDINARY_CALLS);
    this.#urgent = lane(URGENT_CALLS);
    this.#lanes = [this.#quick, this.#ordinary, this.#urgent];
  }

  /** The versions of the libvirtd that is connected now; undefined while there is none. */
  get versions(): Versions | undefined {
    return this.#versions;
  }

  /**
   * Starts connecting, which goes on until `close`. Resolves when libvirtd is connected for the first time; rejects with
   * LIBVIRT_UNREACHABLE (`cause`: the last failure) when `signal` ends the wait before that.
   */
  start(signal?: AbortSignal): Promise<void> {
    this.#loop ??= this.#stayConnected();
    if (this.#versions !== undefined) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const onUp = () => {
        signal?.removeEventListener('abort', onAbort);
        resolve();
      };
      const onAbort = () => {
        this.off('up', onUp);
        const text = `libvirtd is not reachable: ${this.#lastFailure.message}`;
        reject(new LibvirtConnectionError('LIBVIRT_UNREACHABLE', text, 'not-sent', { cause: this.#lastFailure }));
      };
      this.once('up', onUp);
      if (signal?.aborted === true) onAbort();
      else signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** Closes every connection; calls under way are rejected with LIBVIRT_UNREACHABLE. */
  async close(): Promise<void> {
    this.#closing.abort();
    this.#events?.close();
    for (const lane of this.#lanes) lane.close();
    await this.#loop;
  }

  listAllDomains(options?: CallOptions): Promise<Domain[]> {
    return this.#quick.call(Procedures.connectListAllDomains, { flags: ALL_DOMAINS }, options);
  }

  lookupByName(name: string, options?: CallOptions): Promise<Domain> {
    return this.#quick.call(Procedures.domainLookupByName, name, options);
  }

  lookupByUuid(uuid: string, options?: CallOptions): Promise<Domain> {
    return this.#quick.call(Procedures.domainLookupByUuid, uuid, options);
  }

  /** The domain's state (DomainState) and virDomain*Reason. */
  getState(domain: Domain, options?: CallOptions): Promise<{ state: number; reason: number }> {
    return this.#quick.call(Procedures.domainGetState, { domain, flags: 0 }, options);
  }

  /** Whether the domain has a definition that outlives its stop. */
  isPersistent(domain: Domain, options?: CallOptions): Promise<boolean> {
    return this.#quick.call(Procedures.domainIsPersistent, domain, options);
  }

  /** The domain's XML; the live one of a running domain unless DomainXmlFlag.inactive is set. */
  getXml(domain: Domain, flags = 0, options?: CallOptions): Promise<string> {
    return this.#ordinary.call(Procedures.domainGetXmlDesc, { domain, flags }, options);
  }

  hasManagedSaveImage(domain: Domain, options?: CallOptions): Promise<boolean> {
    return this.#ordinary.call(Procedures.domainHasManagedSaveImage, { domain, flags: 0 }, options);
  }

  /** Puts one element into the running domain's metadata, in place of the one of the same namespace; null removes that. */
  setLiveMetadata(
    domain: Domain,
    element: { xml: string | null; key: string; uri: string },
    options?: CallOptions,
  ): Promise<void> {
    const { xml: metadata, key, uri } = element;
    const args = { domain, type: METADATA_ELEMENT, metadata, key, uri, flags: AFFECT_LIVE };
    return this.#ordinary.call(Procedures.domainSetMetadata, args, options);
  }

  /** Changes the persistent definition, or makes one. */
  defineXml(xml: string, options?: CallOptions): Promise<Domain> {
    return this.#ordinary.call(Procedures.domainDefineXml, { xml, flags: 0 }, options);
  }

  suspend(domain: Domain, options?: CallOptions): Promise<void> {
    return this.#ordinary.call(Procedures.domainSuspend, domain, options);
  }

  resume(domain: Domain, options?: CallOptions): Promise<void> {
    return this.#ordinary.call(Procedures.domainResume, domain, options);
  }

  /** The job that runs on the domain (migration, save, dump, backup); type 0 when none does. */
  getJobStats(domain: Domain, options?: CallOptions): Promise<JobStats> {
    return this.#ordinary.call(Procedures.domainGetJobStats, { domain, flags: 0 }, options);
  }

  /** Sizes of a disk's active image; `disk` is a target (`vda`). It waits for the domain's job. */
  getBlockInfo(domain: Domain, disk: string, options?: CallOptions): Promise<BlockInfo> {
    return this.#ordinary.call(Procedures.domainGetBlockInfo, { domain, disk, flags: 0 }, options);
  }

  /** Snapshots disks as the XML says, with flags of SnapshotFlag; resolves with the snapshot's name. */
  createSnapshot(domain: Domain, xml: string, flags: number, options?: CallOptions): Promise<{ name: string }> {
    return this.#ordinary.call(Procedures.domainSnapshotCreateXml, { domain, xml, flags }, options);
  }

  /** Starts a block commit of `top` (null: the active image) into `base` (null: the lowest); it goes on after the answer. */
  blockCommit(
    domain: Domain,
    disk: string,
    images: { base: string | null; top: string | null },
    flags: number,
    options?: CallOptions,
  ): Promise<void> {
    return this.#ordinary.call(
      Procedures.domainBlockCommit,
      { domain, disk, ...images, bandwidth: 0n, flags },
      options,
    );
  }

  /** Ends a block job; with BlockJobAbortFlag.pivot by switching to its destination. */
  blockJobAbort(domain: Domain, disk: string, flags: number, options?: CallOptions): Promise<void> {
    return this.#ordinary.call(Procedures.domainBlockJobAbort, { domain, disk, flags }, options);
  }

  /** The disk's block job, or null when none runs. */
  getBlockJobInfo(domain: Domain, disk: string, options?: CallOptions): Promise<BlockJobInfo | null> {
    return this.#ordinary.call(Procedures.domainGetBlockJobInfo, { domain, disk, flags: 0 }, options);
  }

  /** The guest's file systems, by its agent. */
  getFsInfo(domain: Domain, options?: CallOptions): Promise<FileSystemInfo[]> {
    return this.#ordinary.call(Procedures.domainGetFsInfo, { domain, flags: 0 }, options);
  }

  /** Freezes all file systems of the guest; resolves with their number. After a failure the guest may be frozen (facts: a late freeze). */
  fsFreeze(domain: Domain, options?: CallOptions): Promise<number> {
    return this.#ordinary.call(Procedures.domainFsFreeze, { domain, mountpoints: [] }, options);
  }

  /** Thaws all file systems of the guest; resolves with their number, 0 when nothing was frozen. Urgent. */
  fsThaw(domain: Domain, options?: CallOptions): Promise<number> {
    return this.#urgent.call(Procedures.domainFsThaw, { domain, mountpoints: [] }, options);
  }

  /** How long libvirt waits for the guest agent, in whole seconds; -1 is libvirt's default, -2 for ever. Urgent. Since libvirt 5.10. */
  setAgentResponseTimeout(domain: Domain, seconds: number, options?: CallOptions): Promise<void> {
    return this.#urgent.call(Procedures.domainAgentSetResponseTimeout, { domain, timeout: seconds }, options);
  }

  /**
   * Sends a raw command to the guest agent and resolves with its raw answer. `seconds` (whole, at least 1) bounds the answer and must be
   * given: libvirt's default may block without limit. Urgent, for it is how the freeze status is asked.
   */
  agentCommand(domain: Domain, command: string, seconds: number, options?: CallOptions): Promise<string | null> {
    return this.#urgent.call(Procedures.qemuAgentCommand, { domain, command, timeout: seconds }, options);
  }

  async #stayConnected(): Promise<void> {
    let waitMs = this.#reconnectMinMs;
    while (!this.#closing.signal.aborted) {
      const connected = await this.#connect();
      if (connected !== undefined) {
        waitMs = this.#reconnectMinMs;
        this.emit('up', connected.versions);
        const reason = await connected.ended;
        this.#versions = undefined;
        this.#lastFailure = reason;
        for (const lane of this.#lanes) lane.closeIdle();
        this.emit('down', reason);
      }
      await this.#pause(waitMs);
      waitMs = Math.min(waitMs * 2, this.#reconnectMaxMs);
    }
  }

  /** Opens the connection for events and warms the lanes; undefined when libvirtd can't be reached now. */
  async #connect(): Promise<{ versions: Versions; ended: Promise<Error> } | undefined> {
    let onEnded: (reason: Error) => void = () => {};
    const ended = new Promise<Error>((resolve) => {
      onEnded = resolve;
    });
    let events: RpcConnection | undefined;
    try {
      events = await this.#open({
        onEvent: (program, procedure, body) => this.#emitEvent(program, procedure, body),
        onSlotFree: () => {},
        onClosed: onEnded,
      });
      const options = { timeoutMs: this.#connectTimeoutMs, signal: this.#closing.signal };
      for (const event of Object.values(Events))
        await events.call(Procedures.eventRegister, { eventId: event.id }, options);
      const libvirt = Number(await events.call(Procedures.connectGetLibVersion, undefined, options));
      const hypervisor = Number(await events.call(Procedures.connectGetVersion, undefined, options));
      await Promise.all(this.#lanes.map((lane) => lane.warm()));
      this.#closing.signal.throwIfAborted();
      this.#events = events;
      this.#versions = { libvirt, hypervisor };
      return { versions: this.#versions, ended };
    } catch (error) {
      events?.close();
      if (!(error instanceof Error)) throw error;
      this.#lastFailure = error;
      return undefined;
    }
  }

  #emitEvent(program: number, procedure: number, body: XdrReader): void {
    if (program !== Program.remote) return;
    switch (procedure) {
      case Events.lifecycle.number:
        this.emit('lifecycle', whole(body, Events.lifecycle.decode));
        break;
      case Events.blockJob.number:
        this.emit('blockJob', whole(body, Events.blockJob.decode));
        break;
      case Events.agent.number:
        this.emit('agent', whole(body, Events.agent.decode));
        break;
      default: // an event that nobody registered for: newer daemons may send more than asked for
    }
  }

  async #open(listener: RpcListener): Promise<RpcConnection> {
    if (this.#closing.signal.aborted) {
      throw new LibvirtConnectionError('LIBVIRT_UNREACHABLE', 'the client is closed', 'not-sent');
    }
    const socket = await this.#connectAnySocket();
    const connection = new RpcConnection(
      socket,
      {
        callTimeoutMs: this.#callTimeoutMs,
        keepaliveIntervalMs: this.#keepaliveIntervalMs,
        keepaliveCount: this.#keepaliveCount,
      },
      listener,
    );
    const options = { timeoutMs: this.#connectTimeoutMs, signal: this.#closing.signal };
    try {
      const types = await connection.call(Procedures.authList, undefined, options);
      if (!types.includes(AuthType.none)) {
        const text = `libvirtd asks for authentication (types ${types.join(', ')}): run the host agent as root, or set auth_unix_rw = "none"`;
        throw new LibvirtConnectionError('LIBVIRT_AUTH', text, 'not-sent');
      }
      await connection.call(Procedures.connectOpen, { uri: this.#uri }, options);
      return connection;
    } catch (error) {
      connection.close();
      throw beforeSending(error);
    }
  }

  async #connectAnySocket() {
    let failure: unknown;
    for (const path of this.#socketPaths) {
      try {
        return await connectSocket(path);
      } catch (error) {
        failure = error;
      }
    }
    throw failure;
  }

  #pause(ms: number): Promise<void> {
    const { signal } = this.#closing;
    if (signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(done, ms);
      signal.addEventListener('abort', done, { once: true });
      function done() {
        clearTimeout(timer);
        signal.removeEventListener('abort', done);
        resolve();
      }
    });
  }
}

function whole<T>(body: XdrReader, decode: (reader: XdrReader) => T): T {
  const value = decode(body);
  body.end();
  return value;
}

/**
 * A failure to open a connection, as it concerns the call that needed one: that call was not sent, and an error that libvirtd answered to
 * OPEN is not an answer to it.
 */
function beforeSending(cause: unknown): unknown {
  if (!(cause instanceof LibvirtConnectionError) && !(cause instanceof LibvirtError)) return cause;
  if (cause.code === 'LIBVIRT_AUTH') return cause;
  const code = cause.code === 'LIBVIRT_PROTOCOL' ? 'LIBVIRT_PROTOCOL' : 'LIBVIRT_UNREACHABLE';
  return new LibvirtConnectionError(code, `cannot open a connection to libvirtd: ${cause.message}`, 'not-sent', {
    cause,
  });
}
