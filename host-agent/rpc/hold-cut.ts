import type { handleBidiStreamingCall } from '@grpc/grpc-js';
import type { HoldCutRequest, HoldCutResponse } from '@stillpoint/proto';
import type { Logger } from 'pino';
import { isHostAgentError } from '../errors.js';
import type { FreezeRoom, Hold } from '../window.js';
import { logFailure, logOf } from './call.js';
import { toRpcFailure } from './status.js';
import { checkedBegin, checkedText, invalid } from './validate.js';

/**
 * HoldCut: begin -> (the freeze) -> held -> ping … -> done | failed -> ended.
 *
 * The stream is the engine's sign of life. Whatever ends it other than `done` or `failed` (cancelled, reset, half-closed, its connection given up by
 * keepalive) breaks the hold at once, and the freeze room thaws.
 */
export function holdCut(deps: {
  freeze: FreezeRoom;
  /** Recovery has begun: before that the journal is not known. */
  recovering: Promise<void>;
  /** ms between pings. Cinder cuts are sent only while the last one is less than 1 s old. */
  pingMs: number;
  log: Logger;
}): handleBidiStreamingCall<HoldCutRequest, HoldCutResponse> {
  return (call) => {
    const started = performance.now();
    let log = deps.log.child({ call: 'HoldCut' });
    let hold: Hold | undefined;
    let pings: NodeJS.Timeout | undefined;
    let ending = false;
    let over = false;

    const begin = (begun: Parameters<typeof checkedBegin>[0]) => {
      if (hold !== undefined) throw invalid('message', 'begin may come only once');
      log = logOf('HoldCut', deps.log, begun);
      const { vm, window, cut } = checkedBegin(begun);
      log = log.child({ cut });
      const begunHold = deps.freeze.hold(vm, window, cut);
      hold = begunHold;
      if (begunHold.lost.aborted) return lost(begunHold.lost);
      begunHold.lost.addEventListener('abort', () => lost(begunHold.lost), { once: true });
      begunHold.held.then(held, () => undefined);
    };

    const held = () => {
      if (over || ending) return;
      call.write({ message: { $case: 'held', value: {} } });
      pings = setInterval(() => call.write({ message: { $case: 'ping', value: {} } }), deps.pingMs);
    };

    const finish = (outcome: { done: true } | { failed: string }) => {
      if (hold === undefined) throw invalid('message', 'the first must be begin');
      // The last cut's end causes the thaw, which tells every hold that it is lost: this one has ended.
      ending = true;
      answer(hold.end(outcome));
    };

    const lost = (signal: AbortSignal) => {
      if (over || ending) return;
      const reason: unknown = signal.reason;
      answer({ inTime: false, reason: reason instanceof Error ? reason.message : 'The window is closed.' });
    };

    const answer = (ended: { inTime: boolean; reason: string }) => {
      over = true;
      clearInterval(pings);
      call.write({ message: { $case: 'ended', value: ended } });
      call.end();
      log.debug(
        { inTime: ended.inTime, reason: ended.reason, ms: Math.round(performance.now() - started) },
        'hold ended',
      );
    };

    const broken = (why: string) => {
      if (over) return;
      over = true;
      clearInterval(pings);
      if (hold === undefined) return;
      const ended = hold.end({ broken: why });
      log.warn({ inTime: ended.inTime }, `hold broken: ${why}`);
    };

    /** Of a protocol error or a refusal: the hold, if there is one, is broken by it. */
    const fail = (error: unknown) => {
      if (over) return;
      broken(isHostAgentError(error) ? error.message : 'an internal error');
      logFailure(log, error, started);
      call.emit('error', toRpcFailure(error));
    };

    const receive = (request: HoldCutRequest) => {
      if (over) return;
      try {
        const message = request.message;
        if (message?.$case === 'begin') begin(message.value);
        else if (message?.$case === 'done') finish({ done: true });
        else if (message?.$case === 'failed') finish({ failed: checkedText('failed.reason', message.value.reason) });
        else throw invalid('message', 'must be begin, done or failed');
      } catch (error) {
        fail(error);
      }
    };

    call.on('cancelled', () => broken('its stream was broken off (caller gone, or its connection lost)'));
    call.on('close', () => broken('its stream was closed'));
    deps.recovering.then(
      () => {
        // Reading begins here, so that nothing is taken in before the journal is known; until then grpc-js keeps it.
        call.on('data', receive);
        call.on('end', () => broken('its stream ended without done or failed'));
        call.on('end', () => {
          if (!call.writableEnded) call.end();
        });
      },
      (error: unknown) => fail(error),
    );
  };
}
