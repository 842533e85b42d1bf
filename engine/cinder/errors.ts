/**
 * Codes of what can go wrong with Cinder and Keystone; they travel to people unchanged, as the host agent's do.
 */
export const cinderErrors = {
  CINDER_NOT_CONFIGURED: 'No cloud is configured for this engine.',
  CINDER_UNREACHABLE: 'Cinder or Keystone does not answer, or the connection broke.',
  CINDER_OVERLOADED: 'Cinder or Keystone is overloaded (429, 503, or a 413 that asks to retry).',
  CINDER_UNAUTHORISED: 'Keystone refuses the credentials, or Cinder the token.',
  CINDER_FORBIDDEN: 'The policy does not allow it to this user.',
  CINDER_QUOTA: 'The project has no quota left for it.',
  CINDER_BAD_REQUEST: 'Cinder refuses the request as it stands.',
  CINDER_BAD_ANSWER: 'An answer that is none of the API.',
  CINDER_FAILED: 'Cinder failed inside (5xx).',
  VOLUME_NOT_FOUND: 'The project has no such volume.',
  VOLUME_BUSY: 'The volume is in a state that allows no snapshot.',
  VOLUME_SNAPSHOT_NOT_FOUND: 'The project has no such snapshot.',
  VOLUME_SNAPSHOT_BUSY: 'The snapshot is in a state that does not allow this, or something depends on it.',
} as const;
export type CinderErrorCode = keyof typeof cinderErrors;

/** Thrown by every call of Cinder. `cause` is what fetch or the parser threw, where something did. */
export class CinderError extends Error {
  override readonly name = 'CinderError';
  readonly code: CinderErrorCode;
  /** The request was sent and its answer is not known: Cinder may have done it, or may do it yet. */
  readonly mayHaveHappened: boolean;
  /** Cinder asks to come back no earlier, ms. */
  readonly retryAfterMs: number | undefined;
  /** What a person can do. */
  readonly advice: string;

  constructor(
    code: CinderErrorCode,
    message: string,
    more: { advice?: string; mayHaveHappened?: boolean; retryAfterMs?: number | undefined; cause?: unknown } = {},
  ) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.code = code;
    this.mayHaveHappened = more.mayHaveHappened ?? false;
    this.retryAfterMs = more.retryAfterMs;
    this.advice = more.advice ?? '';
  }
}

export function isCinderError(error: unknown, ...codes: CinderErrorCode[]): error is CinderError {
  return error instanceof CinderError && (codes.length === 0 || codes.includes(error.code));
}
