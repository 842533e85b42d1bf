import type { handleServerStreamingCall, handleUnaryCall, ServerWritableStream } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { HostAgentError, isHostAgentError } from '../errors.js';
import { toRpcFailure } from './status.js';

/** What a handler knows of its call. */
export interface Call {
  /** Aborts when nobody waits for the answer any more: cancelled, deadline passed, connection lost. */
  readonly gone: AbortSignal;
  /** Carries the call's name and the ids that the request names. */
  readonly log: Logger;
}

/** A unary handler as grpc-js wants it: nothing that `handle` throws or that the caller does can escape into the process. */
export function unary<Request extends object, Response>(
  name: string,
  log: Logger,
  handle: (request: Request, call: Call) => Promise<Response>,
): handleUnaryCall<Request, Response> {
  return (call, callback) => {
    const callLog = logOf(name, log, call.request);
    const gone = new AbortController();
    // grpc-js emits `cancelled` after a normal end too.
    let answered = false;
    const lost = () => {
      if (!answered) gone.abort(callerGone());
    };
    call.on('cancelled', lost);
    if (call.cancelled) lost();
    const started = performance.now();
    Promise.resolve()
      .then(() => handle(call.request, { gone: gone.signal, log: callLog }))
      .then(
        (response) => {
          answered = true;
          callLog.debug({ ms: elapsedMs(started) }, 'answered');
          callback(null, response);
        },
        (error: unknown) => {
          answered = true;
          logFailure(callLog, error, started);
          callback(toRpcFailure(error));
        },
      );
  };
}

/** A server-streaming handler; `handle` writes through `write`, which does nothing once the caller is gone. */
export function serverStream<Request extends object, Response>(
  name: string,
  log: Logger,
  handle: (request: Request, call: Call, write: (response: Response) => void) => Promise<void>,
): handleServerStreamingCall<Request, Response> {
  return (call: ServerWritableStream<Request, Response>) => {
    const callLog = logOf(name, log, call.request);
    const gone = new AbortController();
    let ended = false;
    const lost = () => {
      if (!ended) gone.abort(callerGone());
    };
    call.on('cancelled', lost);
    if (call.cancelled) lost();
    const started = performance.now();
    const write = (response: Response) => {
      if (!ended && !gone.signal.aborted) call.write(response);
    };
    Promise.resolve()
      .then(() => handle(call.request, { gone: gone.signal, log: callLog }, write))
      .then(
        () => {
          ended = true;
          callLog.debug({ ms: elapsedMs(started) }, 'ended');
          if (!gone.signal.aborted) call.end();
        },
        (error: unknown) => {
          ended = true;
          logFailure(callLog, error, started);
          if (!gone.signal.aborted) call.emit('error', toRpcFailure(error));
        },
      );
  };
}

function callerGone(): HostAgentError {
  return new HostAgentError('WINDOW_CLOSED', 'The caller of this call is gone.');
}

export function logFailure(log: Logger, error: unknown, started: number): void {
  const ms = elapsedMs(started);
  if (isHostAgentError(error) && error.code !== 'INTERNAL') {
    log.warn({ code: error.code, ms, metadata: error.metadata, cause: causeText(error) }, error.message);
  } else {
    log.error({ code: 'INTERNAL', ms, err: error }, 'unexpected error');
  }
}

function causeText(error: HostAgentError): string | undefined {
  if (error.cause === undefined) return undefined;
  return error.cause instanceof Error ? error.cause.message : String(error.cause);
}

function elapsedMs(started: number): number {
  return Math.round((performance.now() - started) * 10) / 10;
}

/** The ids are logged as they came, before they are checked: bounded here. */
export function logOf(call: string, log: Logger, request: object): Logger {
  const named = request as { vmUuid?: unknown; windowId?: unknown; operationId?: unknown };
  const ids: Record<string, string> = { call };
  if (typeof named.vmUuid === 'string') ids.vm = named.vmUuid.slice(0, 64);
  if (typeof named.windowId === 'string') ids.window = named.windowId.slice(0, 64);
  if (typeof named.operationId === 'string') ids.operation = named.operationId.slice(0, 64);
  return log.child(ids);
}
