/** What the catalogue's methods reject with, and what to do. */
const advice = {
  CATALOGUE_UNAVAILABLE: 'The database does not answer now. Try again; see that it runs and that its disk is not full.',
  CATALOGUE_FAILED: "The database refused a statement of ours: report it with the engine's log.",
  CATALOGUE_IN_USE:
    'An embedded catalogue belongs to one engine. Stop the other engine, or give this one another state folder.',
  CATALOGUE_NEWER:
    'The catalogue was written by a newer Stillpoint. Start that version, or restore an older state folder.',
  HOST_EXISTS: 'Choose another name, or remove the host first.',
  HOST_NOT_FOUND: 'See the registered hosts: stillpoint host list.',
  HOST_IN_USE: "Delete the host's snapshots first. If the host is gone for good: stillpoint host remove --lost.",
  IDEMPOTENCY_CONFLICT: 'The Idempotency-Key was used with another request. Use a new key.',
  SNAPSHOT_ID_USED: 'Another run has used this snapshot id. Start again without one.',
} as const;

/** A stable code of the catalogue. */
export type CatalogueErrorCode = keyof typeof advice;

/**
 * Thrown by every method of the catalogue. `message` says what happened and what to do; `cause` is the database's or the file system's error.
 * CATALOGUE_UNAVAILABLE alone is worth repeating unchanged.
 */
export class CatalogueError extends Error {
  override readonly name = 'CatalogueError';
  readonly code: CatalogueErrorCode;

  constructor(code: CatalogueErrorCode, what: string, cause?: unknown) {
    super(`${what} ${advice[code]}`, cause === undefined ? undefined : { cause });
    this.code = code;
  }
}

/** Whether `error` is a CatalogueError, of this code if one is given. */
export function isCatalogueError(error: unknown, code?: CatalogueErrorCode): error is CatalogueError {
  return error instanceof CatalogueError && (code === undefined || error.code === code);
}

/**
 * SQLSTATE classes after which the same statement may succeed later: connection, resources, operator intervention, system, serialization.
 * See https://www.postgresql.org/docs/current/errcodes-appendix.html.
 */
const passing = /^(?:08|53|57|58|40)/;

/** The database's error as ours. One without an SQLSTATE never reached the database, or broke it. */
export function asCatalogueError(error: unknown): CatalogueError {
  if (error instanceof CatalogueError) return error;
  const state = (error as { code?: unknown } | null)?.code;
  const text = error instanceof Error ? error.message : String(error);
  if (typeof state === 'string' && /^[0-9A-Z]{5}$/.test(state) && !passing.test(state)) {
    return new CatalogueError('CATALOGUE_FAILED', `The database says: ${text} (${state}).`, error);
  }
  return new CatalogueError('CATALOGUE_UNAVAILABLE', `The catalogue failed: ${text}.`, error);
}
