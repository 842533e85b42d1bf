import { Context } from '@temporalio/activity';

/** How often a running activity says that it lives, ms; workflows/steps.ts gives it 3 s. */
const everyMs = 1_000;

/**
 * Runs an activity's work with a heartbeat every second, and with the signal that Temporal aborts when the activity is to stop. `tell` sets what the
 * Temporal UI shows as heartbeat details from then on. `atOnce`: the first goes out when the work begins.
 */
export async function whileBeating<T>(
  work: (signal: AbortSignal, tell: (details: unknown) => void) => Promise<T>,
  { atOnce = true } = {},
): Promise<T> {
  const context = Context.current();
  let details: unknown;
  const beat = () => context.heartbeat(details);
  const timer = setInterval(beat, everyMs);
  // Only who has heartbeaten hears of a cancel.
  if (atOnce) beat();
  try {
    return await work(context.cancellationSignal, (now) => {
      details = now;
    });
  } finally {
    clearInterval(timer);
  }
}
