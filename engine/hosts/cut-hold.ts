import type { ClientDuplexStream, ServiceError } from '@grpc/grpc-js';
import type { HoldCutRequest, HoldCutResponse } from '@stillpoint/proto';
import { fromServiceError, HostError } from './errors.js';
import type { CutHold } from './hosts.js';
import { reasonToWire } from './wire.js';

/**
 * Begins a hold on its stream and resolves when the host agent has said `held`: in a window that is to be frozen, when it is.
 *
 * @throws HostError as the host agent refuses it, WINDOW_CLOSED when the window ends before it was held, or HOST_UNREACHABLE when the stream breaks first; the signal's reason when that ends it
 */
export function beginHold(
  host: string,
  stream: ClientDuplexStream<HoldCutRequest, HoldCutResponse>,
  request: { vm: string; window: string; cut: string },
  signal: AbortSignal | undefined,
): Promise<CutHold> {
  const lost = new AbortController();
  let heardAt = Number.NEGATIVE_INFINITY;
  const ended = deferred<{ inTime: boolean; reason: string }>();
  const held = deferred<CutHold>();

  const breaks = (reason: unknown): void => {
    lost.abort(reason);
    held.reject(reason);
    ended.reject(reason);
  };
  const abort = () => stream.cancel();
  signal?.addEventListener('abort', abort, { once: true });
  stream.on('data', ({ message }: HoldCutResponse) => {
    heardAt = performance.now();
    if (message?.$case === 'held') held.resolve(hold);
    if (message?.$case === 'ended') {
      ended.resolve(message.value);
      const reason = new HostError(host, 'WINDOW_CLOSED', `The hold has ended: ${message.value.reason}`);
      lost.abort(reason);
      held.reject(reason);
    }
  });
  stream.on('error', (error: ServiceError) => breaks(signal?.aborted ? signal.reason : fromServiceError(host, error)));
  stream.on('end', () => {
    signal?.removeEventListener('abort', abort);
    breaks(
      new HostError(host, 'HOST_UNREACHABLE', `The host agent of ${host} ended the hold without a word.`, {
        mayHaveHappened: true,
      }),
    );
  });

  const hold: CutHold = {
    // By the monotonic clock: the wall clock may be set while we wait.
    isFresh: (ms) => !lost.signal.aborted && performance.now() - heardAt < ms,
    lost: lost.signal,
    done: () => {
      stream.write({ message: { $case: 'done', value: {} } });
      stream.end();
      return ended.promise;
    },
    failed: async (reason) => {
      stream.write({ message: { $case: 'failed', value: { reason: reasonToWire(reason) } } });
      stream.end();
      // A hold that is broken has thawed the window as surely as a failed one.
      await ended.promise.catch(() => {});
    },
  };
  stream.write({
    message: { $case: 'begin', value: { vmUuid: request.vm, windowId: request.window, cut: request.cut } },
  });
  return held.promise;
}

/** A promise whose end comes from events; nobody need be waiting when it fails. */
function deferred<T>() {
  let resolve: (value: T) => void = () => {};
  let reject: (reason: unknown) => void = () => {};
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => {});
  return { promise, resolve, reject };
}
