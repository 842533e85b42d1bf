/**
 * libvirt's errors as the port's. The table was measured (libvirt 9.0, QEMU 7.2) and completed from libvirt/virterror.h.
 *
 * A number decides where it can. Where one number covers different conditions, the domain's state and definition are looked at, and the
 * text is read. The text alone would not do: libvirtd translates its messages to the host's locale (the guest agent does not). What none of
 * them explains stays LIBVIRT_ERROR or the task's own failure: an unknown error is never read as one of the known ones.
 */
import { HostAgentError, type HostAgentErrorCode } from '../errors.js';
import type { Vm } from '../hypervisor.js';
import { DomainState } from './client.js';
import {
  ErrorDomain,
  ErrorNumber,
  isAgentUnresponsive,
  isJobLockTimeout,
  isNoDomain,
  isOperationInvalid,
  LibvirtConnectionError,
  LibvirtError,
} from './errors.js';
import { XmlError } from './xml.js';

/** What was asked for: it decides what an error is called that is none of the known conditions. */
export type Task = 'read' | 'agent' | 'freeze' | 'snapshot' | 'merge';

const UNKNOWN_ERROR: Readonly<Record<Task, HostAgentErrorCode>> = {
  read: 'LIBVIRT_ERROR',
  agent: 'LIBVIRT_ERROR',
  freeze: 'LIBVIRT_ERROR',
  snapshot: 'SNAPSHOT_FAILED',
  merge: 'MERGE_FAILED',
};

const CONNECTION_ERROR: Readonly<Record<LibvirtConnectionError['code'], HostAgentErrorCode>> = {
  LIBVIRT_UNREACHABLE: 'LIBVIRT_UNREACHABLE',
  LIBVIRT_AUTH: 'LIBVIRT_UNREACHABLE',
  LIBVIRT_PROTOCOL: 'LIBVIRT_PROTOCOL',
  LIBVIRT_CALL_TIMEOUT: 'LIBVIRT_CALL_TIMEOUT',
  LIBVIRT_CALL_ABORTED: 'LIBVIRT_CALL_TIMEOUT',
  LIBVIRT_BUSY: 'HYPERVISOR_BUSY',
  LIBVIRT_REQUEST_INVALID: 'INVALID_ARGUMENT',
};

/** What was seen of the domain just after an error, to tell apart what libvirt does not. */
export interface Look {
  /** virDomainState. */
  state: number;
  guestAgent: Vm['guestAgent'];
}

/** Whether toHostAgentError needs a look at the domain to tell this error apart. */
export function needsLook(error: unknown): boolean {
  if (!(error instanceof LibvirtError)) return false;
  const { number } = error;
  return (
    number === ErrorNumber.operationInvalid ||
    number === ErrorNumber.argumentUnsupported ||
    number === ErrorNumber.agentUnresponsive
  );
}

/**
 * The port's error for a failed call; a HostAgentError stays as it is.
 *
 * @param look asked for after an error for which needsLook holds; undefined when the domain could not be looked at.
 */
export function toHostAgentError(error: unknown, task: Task, look?: Look): HostAgentError {
  if (error instanceof HostAgentError) return error;
  if (error instanceof LibvirtConnectionError) {
    const metadata = { outcome: error.outcome };
    return new HostAgentError(CONNECTION_ERROR[error.code], error.message, { cause: error, metadata });
  }
  if (error instanceof LibvirtError) {
    const metadata = { libvirtCode: String(error.number), libvirtDomain: String(error.domain) };
    return new HostAgentError(codeOf(error, task, look), error.message, { cause: error, metadata });
  }
  if (error instanceof XmlError) {
    return new HostAgentError('LIBVIRT_PROTOCOL', `libvirt answered ${error.message}`, { cause: error });
  }
  return new HostAgentError('INTERNAL', String(error), { cause: error });
}

function codeOf(error: LibvirtError, task: Task, look: Look | undefined): HostAgentErrorCode {
  const usesAgent = task === 'agent' || task === 'freeze';
  const known =
    (isNoDomain(error) ? 'VM_NOT_FOUND' : undefined) ??
    (isOperationInvalid(error) ? stateError(error, usesAgent, look) : undefined) ??
    (isJobLockTimeout(error) ? 'HYPERVISOR_BUSY' : undefined) ??
    (usesAgent ? agentError(error, task, look) : undefined);
  return known ?? UNKNOWN_ERROR[task];
}

/** 'domain is not running' is what libvirt says of a paused domain as well, when the guest agent is needed. */
function stateError(error: LibvirtError, usesAgent: boolean, look: Look | undefined): HostAgentErrorCode | undefined {
  switch (look?.state) {
    case DomainState.shutOff:
    case DomainState.crashed:
    case DomainState.shutdown:
      return 'VM_NOT_RUNNING';
    case DomainState.paused:
    case DomainState.pmSuspended:
      return usesAgent ? 'VM_PAUSED' : undefined;
    default:
      // It runs again by now, or cannot be looked at. The QEMU driver itself refuses a paused one, a more general part one that is off.
      if (!error.message.includes('domain is not running')) return undefined;
      return usesAgent && error.domain === ErrorDomain.qemu ? 'VM_PAUSED' : 'VM_NOT_RUNNING';
  }
}

function agentError(error: LibvirtError, task: Task, look: Look | undefined): HostAgentErrorCode | undefined {
  const { number, message } = error;
  if (number === ErrorNumber.argumentUnsupported) {
    const isMissing = message.includes('QEMU guest agent is not configured') || look?.guestAgent === 'not-configured';
    return isMissing ? 'AGENT_NOT_CONFIGURED' : undefined;
  }
  if (isAgentUnresponsive(error)) {
    // This text alone comes before a command is sent. After any other a freeze may still happen, however the agent looks now.
    const unsent = number === ErrorNumber.agentUnresponsive && message.includes('QEMU guest agent is not connected');
    const isGone = unsent || (task === 'agent' && look?.guestAgent === 'disconnected');
    return isGone ? 'AGENT_NOT_CONNECTED' : 'AGENT_NOT_RESPONDING';
  }
  if (number === ErrorNumber.internalError || number === ErrorNumber.agentCommandFailed) {
    if (message.includes('the agent is in frozen state')) return 'ALREADY_FROZEN';
    if (task !== 'freeze') return undefined;
    if (/fsfreeze hook has (failed|terminated)/.test(message)) return 'FREEZE_HOOK_FAILED';
    if (message.includes("'guest-fsfreeze-freeze")) return 'FREEZE_FAILED';
  }
  return undefined;
}
