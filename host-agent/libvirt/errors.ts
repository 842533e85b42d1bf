/**
 * Whether a call that failed on our side can have reached libvirtd: `not-sent` (it can not, so nothing happened) or `unknown` (it may have
 * been carried out, or still be carried out later).
 */
export type CallOutcome = 'not-sent' | 'unknown';

/**
 * Stable codes of failures of the connection, as opposed to errors that libvirtd answered:
 *
 * - `LIBVIRT_UNREACHABLE`: no connection, or it broke before the answer. Wait for the client's `up`.
 * - `LIBVIRT_PROTOCOL`: the peer sent bytes that are not libvirt's protocol. The connection is closed; look at what listens on the socket.
 * - `LIBVIRT_CALL_TIMEOUT`: no answer in time. The connection lives on.
 * - `LIBVIRT_CALL_ABORTED`: the caller gave up through its signal. The connection lives on.
 * - `LIBVIRT_REQUEST_INVALID`: the arguments do not fit libvirt's protocol (a string or list too long, a NUL in a string). Nothing was sent.
 * - `LIBVIRT_AUTH`: libvirtd wants an authentication that this client does not offer. Run as root, or allow the socket in libvirtd.conf.
 * - `LIBVIRT_BUSY`: all connections are taken by calls that libvirtd does not answer. Nothing was sent.
 */
export type LibvirtConnectionCode =
  | 'LIBVIRT_UNREACHABLE'
  | 'LIBVIRT_PROTOCOL'
  | 'LIBVIRT_CALL_TIMEOUT'
  | 'LIBVIRT_CALL_ABORTED'
  | 'LIBVIRT_REQUEST_INVALID'
  | 'LIBVIRT_AUTH'
  | 'LIBVIRT_BUSY';

/** A call that got no answer from libvirtd, with the reason as a stable `code`; `cause` is the system's or the decoder's error, if any. */
export class LibvirtConnectionError extends Error {
  override readonly name = 'LibvirtConnectionError';
  readonly code: LibvirtConnectionCode;
  readonly outcome: CallOutcome;

  constructor(code: LibvirtConnectionCode, message: string, outcome: CallOutcome, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.outcome = outcome;
  }
}

/** The fields of libvirt's `remote_error`, as they come over the wire. */
export interface LibvirtErrorFields {
  /** virErrorNumber, e.g. 42 for VIR_ERR_NO_DOMAIN. */
  number: number;
  /** virErrorDomain: the part of libvirt that failed, e.g. 10 for QEMU. */
  domain: number;
  message: string;
  /** virErrorLevel: 1 warning, 2 error. */
  level: number;
  str1: string | null;
  str2: string | null;
  str3: string | null;
  int1: number;
  int2: number;
}

/** An error that libvirtd answered; `number` and `domain` are libvirt's own (libvirt/virterror.h). */
export class LibvirtError extends Error {
  override readonly name = 'LibvirtError';
  readonly code = 'LIBVIRT_ERROR';
  readonly procedure: string;
  readonly number: number;
  readonly domain: number;
  readonly level: number;
  readonly str1: string | null;
  readonly str2: string | null;
  readonly str3: string | null;
  readonly int1: number;
  readonly int2: number;

  constructor(procedure: string, fields: LibvirtErrorFields) {
    super(fields.message);
    this.procedure = procedure;
    this.number = fields.number;
    this.domain = fields.domain;
    this.level = fields.level;
    this.str1 = fields.str1;
    this.str2 = fields.str2;
    this.str3 = fields.str3;
    this.int1 = fields.int1;
    this.int2 = fields.int2;
  }
}

/** The virErrorNumber values that this agent tells apart (libvirt/virterror.h). */
export const ErrorNumber = {
  internalError: 1,
  noSupport: 3,
  invalidArg: 8,
  noDomain: 42,
  operationInvalid: 55,
  operationTimeout: 68,
  argumentUnsupported: 74,
  blockCopyActive: 83,
  agentUnresponsive: 86,
  agentUnsynced: 97,
  agentCommandTimeout: 112,
  agentCommandFailed: 113,
} as const;

/** The virErrorDomain values that this agent tells apart (libvirt/virterror.h). */
export const ErrorDomain = { none: 0, qemu: 10 } as const;

function hasNumber(error: unknown, number: number): error is LibvirtError {
  return error instanceof LibvirtError && error.number === number;
}

/** True when libvirt says that there is no such domain (undefined, or transient and stopped). */
export function isNoDomain(error: unknown): error is LibvirtError {
  return hasNumber(error, ErrorNumber.noDomain);
}

/** True when libvirt refuses because of the domain's state: not running, or paused. The message does not say which: ask for the state. */
export function isOperationInvalid(error: unknown): error is LibvirtError {
  return hasNumber(error, ErrorNumber.operationInvalid);
}

/** True when the guest agent is not connected, went away or did not answer in time; a freeze may then still happen. */
export function isAgentUnresponsive(error: unknown): error is LibvirtError {
  return (
    hasNumber(error, ErrorNumber.agentUnresponsive) ||
    hasNumber(error, ErrorNumber.agentUnsynced) ||
    hasNumber(error, ErrorNumber.agentCommandTimeout)
  );
}

/**
 * True when another job held the domain's lock for too long (libvirt waits 30 s for it), so that nothing was begun. The number is that of
 * every timeout of libvirt; the lock's comes from no driver in particular, or has this text.
 */
export function isJobLockTimeout(error: unknown): error is LibvirtError {
  return (
    hasNumber(error, ErrorNumber.operationTimeout) &&
    (error.domain === ErrorDomain.none || error.message.includes('cannot acquire state change lock'))
  );
}
