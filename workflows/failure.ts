import {
  ActivityFailure,
  ApplicationFailure,
  CancelledFailure,
  ChildWorkflowFailure,
  isCancellation,
  TimeoutFailure,
} from '@temporalio/workflow';

/** A failed step in plain words. `code` is one of contract.ts or of the host agent. */
export interface Failure {
  code: string;
  /** What happened, without a full stop. */
  text: string;
  /** What a person can do; may be empty. */
  advice: string;
  /** What the activity told beside its text. */
  metadata?: Record<string, string>;
  /** The SDK's error. */
  cause?: unknown;
}

/** What an activity's ApplicationFailure carries in `details[0]`. */
export interface FailureDetails {
  advice?: string;
  metadata?: Record<string, string>;
}

/** Reads what an activity, or its absence, has thrown. */
export function failureOf(error: unknown): Failure {
  if (isCancellation(error)) {
    return { code: 'CANCELLED', text: 'the run was cancelled', advice: '', cause: error };
  }
  const cause = error instanceof ActivityFailure || error instanceof ChildWorkflowFailure ? error.cause : error;
  if (cause instanceof ApplicationFailure) {
    const details = cause.details?.[0] as FailureDetails | undefined;
    return {
      code: cause.type ?? 'INTERNAL',
      text: withoutFullStop(cause.message),
      advice: details?.advice ?? '',
      ...(details?.metadata && { metadata: details.metadata }),
      cause: error,
    };
  }
  if (cause instanceof TimeoutFailure) {
    return cause.timeoutType === 'HEARTBEAT'
      ? {
          code: 'WORKER_LOST',
          text: "the engine's worker died or was cut off in the middle of a step",
          advice: 'See that an engine runs, then ask for the snapshot again.',
          cause: error,
        }
      : {
          code: 'STEP_TIMED_OUT',
          text: 'a step did not end in its time',
          advice: "Look at the step in the Temporal UI and at the engine's log.",
          cause: error,
        };
  }
  return {
    code: 'INTERNAL',
    text: withoutFullStop(error instanceof Error ? error.message : String(error)),
    advice: "An error in Stillpoint: report it with the engine's log.",
    cause: error,
  };
}

/** The error that ends a run: first line for people, type for programs. */
export function runFailure(failure: Failure, sentences: readonly string[]): Error {
  const message = sentences.filter((sentence) => sentence !== '').join(' ');
  if (failure.code === 'CANCELLED') return new CancelledFailure(message, [], asError(failure.cause));
  const cause = asError(failure.cause);
  return ApplicationFailure.create({
    message,
    type: failure.code,
    nonRetryable: true,
    details: [{ advice: failure.advice }],
    ...(cause === undefined ? {} : { cause }),
  });
}

function asError(cause: unknown): Error | undefined {
  return cause instanceof Error ? cause : undefined;
}

function withoutFullStop(text: string): string {
  return text.replace(/[.\s]+$/, '');
}
