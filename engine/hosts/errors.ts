import { type ServiceError, status } from '@grpc/grpc-js';
import { ErrorInfo, Status } from '@stillpoint/proto';

/** Codes that this room adds to the host agent's own table. */
const ownAdvice = {
  HOST_UNREACHABLE: 'See that the host is up and that stillpoint-host-agent runs there.',
  HOST_IDENTITY: "Give the host a certificate of its registered name, or register it under its certificate's name.",
  HOST_LOST: 'An administrator removed the host as lost; nothing more is asked of it.',
  HOST_NOT_FOUND: 'Register the host: stillpoint host add NAME ADDRESS.',
  HOST_NEEDS_TLS: "Configure the engine's certificates; without TLS only host agents on this machine are talked to.",
} as const;
type OwnCode = keyof typeof ownAdvice;

/**
 * Every failure of a call to a host agent. `code` is a reason of the host agent's table (it has answered), or one of ours: HOST_UNREACHABLE (no
 * connection, or it broke), HOST_IDENTITY, HOST_LOST, HOST_NOT_FOUND, HOST_NEEDS_TLS. `cause` is gRPC's error.
 */
export class HostError extends Error {
  override readonly name = 'HostError';
  readonly code: string;
  readonly host: string;
  readonly advice: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** The request may have reached the host agent, and have had its effect, though nothing was answered. */
  readonly mayHaveHappened: boolean;

  constructor(
    host: string,
    code: string,
    message: string,
    more: { advice?: string; metadata?: Record<string, string>; mayHaveHappened?: boolean; cause?: unknown } = {},
  ) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.code = code;
    this.host = host;
    this.advice = more.advice ?? ownAdvice[code as OwnCode] ?? '';
    this.metadata = more.metadata ?? {};
    this.mayHaveHappened = more.mayHaveHappened ?? false;
  }
}

/** Whether `error` is a HostError, of one of these codes if any are given. */
export function isHostError(error: unknown, ...codes: string[]): error is HostError {
  return error instanceof HostError && (codes.length === 0 || codes.includes(error.code));
}

/** gRPC statuses that say that nobody has answered: the connection, the deadline, the server's end of the stream. */
const unanswered: ReadonlySet<number> = new Set([status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED]);

/**
 * grpc-js calls it INTERNAL when HTTP/2 ends a call without a status of gRPC's, as a host agent does that dies. It hands on neither HTTP/2's code nor
 * Node's error, so its words must do.
 */
const brokenOff = /^Received RST_STREAM with code \d+/;

/** ErrorInfo.domain of what the host agent says itself; anything else on the way (a proxy) is not read as its word. */
const hostAgentDomain = 'stillpoint.host';

/** A failed call's error. Only what carries the host agent's own ErrorInfo is read as its answer; an unknown error is never read as another. */
export function fromServiceError(host: string, error: ServiceError): HostError {
  const answer = hostAgentAnswer(error);
  if (answer !== undefined) {
    const { advice = '', ...metadata } = answer.info.metadata;
    return new HostError(host, answer.info.reason, answer.message, { advice, metadata, cause: error });
  }
  if (unanswered.has(error.code) || (error.code === status.INTERNAL && brokenOff.test(error.details))) {
    return new HostError(host, 'HOST_UNREACHABLE', `The host agent of ${host} did not answer: ${error.details}.`, {
      mayHaveHappened: true,
      cause: error,
    });
  }
  return new HostError(
    host,
    'INTERNAL',
    `The host agent of ${host} failed: ${error.details} (gRPC ${status[error.code]}).`,
    {
      advice: "See that engine and host agent are of one version, and look at the host agent's log.",
      mayHaveHappened: true,
      cause: error,
    },
  );
}

/** No connection was there within the time: the request was not sent. */
export function notConnected(host: string, address: string, withinMs: number, cause?: unknown): HostError {
  return new HostError(
    host,
    'HOST_UNREACHABLE',
    `The host agent of ${host} cannot be reached at ${address} (tried for ${withinMs / 1000} s).`,
    { cause },
  );
}

function hostAgentAnswer(error: ServiceError): { message: string; info: ErrorInfo } | undefined {
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!(bytes instanceof Uint8Array)) return undefined;
  try {
    const { message, details } = Status.decode(bytes);
    for (const detail of details) {
      if (!detail.typeUrl.endsWith('/google.rpc.ErrorInfo')) continue;
      const info = ErrorInfo.decode(detail.value);
      if (info.domain === hostAgentDomain && info.reason !== '') return { message, info };
    }
  } catch {
    // Bytes that are no google.rpc.Status are nobody's answer.
  }
  return undefined;
}
