import type { ClientReadableStream, ServiceError } from '@grpc/grpc-js';
import { HostAgentClient } from '@stillpoint/proto';
import type { CredentialsOf } from './credentials.js';
import { fromServiceError, HostError, notConnected } from './errors.js';

/** Times of a connection, ms. */
export interface ChannelTimes {
  /** How long a call waits for a connection before it gives up unsent; connections that are refused are tried again within it. Default 2 000. */
  connectMs?: number;
  /** A ping this often, also without calls. Default 1 000. */
  keepaliveMs?: number;
  /** The connection is given up when a ping is not answered for so long. Default 2 000. */
  keepaliveTimeoutMs?: number;
}

/** One gRPC call: `deadlineMs` from when it is sent. */
export interface CallLimits {
  deadlineMs: number;
  signal: AbortSignal | undefined;
}

/** One host's connection: kept up, and every failure told as what it is. */
export class HostChannel {
  readonly host: string;
  readonly #address: string;
  readonly #client: HostAgentClient;
  readonly #connectMs: number;
  /** Why the last TLS handshake was refused by us. */
  #identityProblem: string | undefined;
  /** Ends each call that is under way. */
  readonly #underWay = new Set<() => void>();
  #givenUp: HostError | undefined;

  constructor(host: { name: string; address: string }, credentialsOf: CredentialsOf, times: ChannelTimes = {}) {
    this.host = host.name;
    this.#address = host.address;
    this.#connectMs = times.connectMs ?? 2_000;
    const credentials = credentialsOf(host, (problem) => {
      this.#identityProblem = problem;
    });
    this.#client = new HostAgentClient(host.address, credentials, {
      // The host's registered name is what its certificate must carry, at whatever address it is.
      'grpc.ssl_target_name_override': host.name,
      'grpc.default_authority': host.name,
      'grpc.keepalive_time_ms': times.keepaliveMs ?? 1_000,
      'grpc.keepalive_timeout_ms': times.keepaliveTimeoutMs ?? 2_000,
      'grpc.keepalive_permit_without_calls': 1,
      // gRPC's own patience (1 s, growing to 2 min) is longer than ours.
      'grpc.initial_reconnect_backoff_ms': 100,
      'grpc.max_reconnect_backoff_ms': 1_000,
      // What is repeated, and whether it may be, is decided by the caller.
      'grpc.enable_retries': 0,
      'grpc.service_config_disable_resolution': 1,
    });
  }

  /** No new calls; those under way go on. */
  close(): void {
    this.#client.close();
  }

  /** No new calls, and those under way end with `reason`: of a host that is given up nobody waits for an answer, though its connection may still stand. */
  giveUp(reason: HostError): void {
    this.#givenUp = reason;
    this.#client.close();
    for (const end of this.#underWay) end();
  }

  /** A unary call. Rejects with a HostError, or with the signal's reason when that has ended it. */
  async unary<T>(
    limits: CallLimits,
    begin: (
      client: HostAgentClient,
      deadline: number,
      answer: (error: ServiceError | null, response: T) => void,
    ) => { cancel(): void },
  ): Promise<T> {
    await this.#connected(limits.signal);
    return new Promise<T>((resolve, reject) => {
      const call = begin(this.#client, Date.now() + limits.deadlineMs, (error, response) => {
        limits.signal?.removeEventListener('abort', abort);
        this.#underWay.delete(abort);
        if (error === null) resolve(response);
        else reject(this.#reasonOf(error, limits.signal));
      });
      const abort = () => call.cancel();
      limits.signal?.addEventListener('abort', abort, { once: true });
      this.#underWay.add(abort);
    });
  }

  /** A stream of answers; ends when it does. No deadline: the keepalive ends what is cut off. */
  async stream<T>(
    signal: AbortSignal | undefined,
    begin: (client: HostAgentClient) => ClientReadableStream<T>,
    onMessage: (message: T) => void,
  ): Promise<void> {
    await this.#connected(signal);
    const stream = begin(this.#client);
    const abort = () => stream.cancel();
    signal?.addEventListener('abort', abort, { once: true });
    this.#underWay.add(abort);
    try {
      for await (const message of stream) onMessage(message as T);
    } catch (error) {
      throw this.#reasonOf(error as ServiceError, signal);
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#underWay.delete(abort);
    }
  }

  #reasonOf(error: ServiceError, signal: AbortSignal | undefined): unknown {
    return signal?.aborted ? signal.reason : (this.#givenUp ?? fromServiceError(this.host, error));
  }

  /** The connected client, for a stream in both directions. */
  async duplex<T extends { cancel(): void; once(event: 'close', listener: () => void): unknown }>(
    signal: AbortSignal | undefined,
    begin: (client: HostAgentClient) => T,
  ): Promise<T> {
    await this.#connected(signal);
    const stream = begin(this.#client);
    const abort = () => stream.cancel();
    this.#underWay.add(abort);
    stream.once('close', () => this.#underWay.delete(abort));
    return stream;
  }

  #connected(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const abort = () => reject(signal?.reason);
      signal?.addEventListener('abort', abort, { once: true });
      this.#client.waitForReady(Date.now() + this.#connectMs, (error) => {
        signal?.removeEventListener('abort', abort);
        if (error === undefined || error === null) resolve();
        else if (this.#identityProblem !== undefined) reject(this.#identityError(error));
        else reject(notConnected(this.host, this.#address, this.#connectMs, error));
      });
    });
  }

  #identityError(cause: unknown): HostError {
    return new HostError(
      this.host,
      'HOST_IDENTITY',
      `What answers at ${this.#address} is not ${this.host}: ${this.#identityProblem}.`,
      {
        cause,
      },
    );
  }
}
