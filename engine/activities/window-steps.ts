import { setTimeout as delay } from 'node:timers/promises';

/** Longer than this no step keeps its end to itself, ms: who watches a long window is to see what is done. */
const tellAfterMs = 1_000;

/**
 * The steps (freeze, cuts) of the windows that are open in this process.
 *
 * Nothing in a window waits for Temporal: the cuts follow the host's `held`, and the host thaws by itself at the last cut's end. So a step that went well tells
 * Temporal so only when the last step has ended: what server and worker make of it takes no processor from Cinder while a guest is frozen. A step that went
 * wrong ends all waiting.
 */
export class WindowSteps {
  readonly #windows = new Map<string, { running: number; readonly over: AbortController }>();
  readonly #tellAfterMs: number;

  constructor(settings: { readonly tellAfterMs?: number } = {}) {
    this.#tellAfterMs = settings.tellAfterMs ?? tellAfterMs;
  }

  /** Does a step's work and answers with its result when every step of the window has ended here, one has failed, `signal` is aborted, or a second is over. */
  async run<T>(window: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const steps = this.#windows.get(window) ?? { running: 0, over: new AbortController() };
    this.#windows.set(window, steps);
    steps.running += 1;
    let failed = true;
    try {
      const result = await work();
      failed = false;
      return result;
    } finally {
      steps.running -= 1;
      if (steps.running === 0) this.#windows.delete(window);
      if (failed || steps.running === 0) steps.over.abort();
      else {
        const told = AbortSignal.any([steps.over.signal, signal]);
        await delay(this.#tellAfterMs, undefined, { signal: told }).catch(() => undefined);
      }
    }
  }
}
