import { setTimeout as delay } from 'node:timers/promises';

import type { SnapshotView } from '../api/schemas.js';
import type { Context } from './context.js';
import { CommandError, exitCodes } from './exit-codes.js';
import { progressView } from './progress-view.js';

/** How long one question waits at the API for the end of the run: as often are its steps seen. Each costs the run a query, so not oftener. */
const waitS = 0.5;
const pauseMs = 250;

/** The states in which nothing more happens by itself. */
export const endStates: ReadonlySet<SnapshotView['state']> = new Set([
  'complete',
  'failed',
  'cancelled',
  'cleanup-pending',
  'deleted',
]);

/**
 * Shows a snapshot's run until it is over, and answers what has become of the snapshot. An engine that is away for less than a minute is waited for: the
 * run goes on without it, or when it is back.
 *
 * @throws CommandError INTERRUPTED (the run goes on), API_UNREACHABLE, and the API's
 */
export async function follow(context: Context, id: string): Promise<SnapshotView> {
  const view = context.json ? undefined : progressView(context.terminal);
  const patience = new Patience(60_000);
  try {
    for (;;) {
      try {
        const snapshot = await ask(context, id);
        patience.renew();
        view?.show(snapshot);
        if (endStates.has(snapshot.state)) return snapshot;
      } catch (error) {
        if (!(error instanceof CommandError) || error.exitCode !== exitCodes.unreachable) throw error;
        if (patience.isOver()) throw error;
        if (patience.isNew()) view?.note(`${error.code}: ${error.message} Trying again for a minute …`);
      }
      // An answer may come at once (no run is known yet): not in a tight loop then.
      await delay(pauseMs, undefined, { signal: context.interrupted });
    }
  } catch (error) {
    if (!context.interrupted.aborted) throw error;
    throw new CommandError(
      exitCodes.interrupted,
      'INTERRUPTED',
      `Not waiting any longer. The run of snapshot ${id} goes on. Follow it: stillpoint snapshot show ${id} --wait. End it: stillpoint snapshot cancel ${id}.`,
    );
  }
}

function ask(context: Context, id: string): Promise<SnapshotView> {
  return context.api.request<SnapshotView>('GET', `/v1/snapshots/${encodeURIComponent(id)}`, {
    query: { wait: String(waitS) },
  });
}

class Patience {
  readonly #limitMs: number;
  #since: number | undefined;

  constructor(limitMs: number) {
    this.#limitMs = limitMs;
  }

  /** Whether this is the first failure in a row. */
  isNew(): boolean {
    const first = this.#since === undefined;
    this.#since ??= performance.now();
    return first;
  }

  isOver(): boolean {
    return this.#since !== undefined && performance.now() - this.#since > this.#limitMs;
  }

  renew(): void {
    this.#since = undefined;
  }
}
