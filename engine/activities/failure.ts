import { CancelledFailure } from '@temporalio/activity';
import { ApplicationFailure } from '@temporalio/common';
import { isCatalogueError } from '../catalogue/errors.js';
import { isCinderError } from '../cinder/errors.js';
import { isHostError } from '../hosts/errors.js';
import type { ActivityDeps, Cloud } from './deps.js';

/** An activity's failure with one of the public codes (workflows/contract.ts), thrown by the activities themselves. */
export class ActivityError extends Error {
  override readonly name = 'ActivityError';
  readonly code: string;
  readonly advice: string;
  readonly metadata: Record<string, string>;

  constructor(
    code: string,
    message: string,
    more: { advice?: string; metadata?: Record<string, string>; cause?: unknown } = {},
  ) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.code = code;
    this.advice = more.advice ?? '';
    this.metadata = more.metadata ?? {};
  }
}

/** What may be otherwise the next time, though nobody does anything about the request: connections, restarts, a busy or full machine. */
const passing: ReadonlySet<string> = new Set([
  'CATALOGUE_UNAVAILABLE',
  'CATALOGUE_DENIED',
  'CINDER_UNREACHABLE',
  'CINDER_OVERLOADED',
  'CINDER_FAILED',
  'HOST_UNREACHABLE',
  'SHUTTING_DOWN',
  'LIBVIRT_UNREACHABLE',
  'LIBVIRT_CALL_TIMEOUT',
  'HYPERVISOR_BUSY',
  'JOURNAL_UNWRITABLE',
  'STILL_FROZEN',
]);

/** Whether the same call may succeed when repeated unchanged. */
export function isPassing(error: unknown): boolean {
  return passing.has(codeOf(error) ?? '');
}

/** The stable code that an error carries. */
export function codeOf(error: unknown): string | undefined {
  if (error instanceof ActivityError || isHostError(error) || isCatalogueError(error) || isCinderError(error)) {
    return error.code;
  }
  return undefined;
}

function adviceOf(error: unknown): string {
  return error instanceof ActivityError || isHostError(error) || isCinderError(error) ? error.advice : '';
}

/** The same failure with more metadata; a cancellation too, because what it leaves behind must be told. `cause` is the error itself. */
export function asActivityError(error: unknown, metadata: Record<string, string>): ActivityError {
  const known = error instanceof ActivityError || isHostError(error) ? error.metadata : {};
  const code = codeOf(error) ?? (error instanceof CancelledFailure ? codeOfStop(error) : 'INTERNAL');
  return new ActivityError(code, error instanceof Error ? error.message : String(error), {
    advice: adviceOf(error),
    metadata: { ...known, ...metadata },
    cause: error,
  });
}

/** A step is stopped by the run's cancel, or because its worker shuts down or was given up: then nobody has cancelled anything. */
function codeOfStop({ message }: CancelledFailure): 'CANCELLED' | 'WORKER_LOST' {
  return message === 'CANCELLED' ? 'CANCELLED' : 'WORKER_LOST';
}

/** Whether it is the run's cancel that has ended the signal. */
export function isRunCancelled({ reason }: AbortSignal): boolean {
  return reason instanceof CancelledFailure && codeOfStop(reason) === 'CANCELLED';
}

/** @throws ActivityError CINDER_NOT_CONFIGURED: the run was planned by an engine that knew the cloud. */
export function cloudOf({ cloud }: ActivityDeps): Cloud {
  if (cloud !== undefined) return cloud;
  throw new ActivityError('CINDER_NOT_CONFIGURED', 'This engine knows no cloud, and the snapshot has Cinder volumes.', {
    advice: 'Configure the same cloud for every engine (docs/openstack.md).',
  });
}

/**
 * The error as Temporal carries it: type is the stable code, `details[0]` has advice and metadata. An error without a code is INTERNAL.
 * A cancellation passes as it is.
 */
export function toFailure(error: unknown, isRetryable: (error: unknown) => boolean): Error {
  if (error instanceof CancelledFailure || error instanceof ApplicationFailure) return error;
  const advice = adviceOf(error);
  const metadata = error instanceof ActivityError || isHostError(error) ? error.metadata : {};
  const cause = error instanceof Error ? error : undefined;
  return ApplicationFailure.create({
    type: codeOf(error) ?? 'INTERNAL',
    message: error instanceof Error ? error.message : String(error),
    nonRetryable: !isRetryable(error),
    details: [{ advice, metadata }],
    ...(cause === undefined ? {} : { cause }),
  });
}
