/** What the catalogue's methods reject with, and what to do. */
const advice = {
  CATALOGUE_UNAVAILABLE: 'The database does not answer now. Try again; see that it runs and that its disk is not full.',
  CATALOGUE_DENIED:
    "The database does not let this engine in: see the user, the password, the database's name and the certificates (docs/postgresql.md).",
  CATALOGUE_OF_ANOTHER:
    'Give each installation a database of its own. If that Temporal is gone for good and this one takes its place, see docs/postgresql.md.',
  CATALOGUE_FAILED: "The database refused a statement of ours: report it with the engine's log.",
  CATALOGUE_IN_USE:
    'An embedded catalogue belongs to one engine. Stop the other engine, give this one another state folder, or let both share a PostgreSQL (docs/postgresql.md).',
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
 * CATALOGUE_UNAVAILABLE is worth repeating unchanged, and CATALOGUE_DENIED where the engine was let in before: somebody changes a password just now.
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
 * SQLSTATE classes after which the same statement may succeed later: connection, a server that is no primary now, resources, operator intervention, system,
 * serialization. See https://www.postgresql.org/docs/current/errcodes-appendix.html.
 */
const passing = /^(?:08|25006|53|57|58|40)/;

/** SQLSTATE of a login, a database or a right that is not there, and the codes of Node's TLS for a certificate that is not believed. */
const denied = /^(?:28...|3D...|42501|[A-Z_]*CERT[A-Z_]*|UNABLE_TO_VERIFY_LEAF_SIGNATURE)$/;

/** Whether the connection is as good as before: the server refused a statement, and neither goes away nor is the primary no more. */
export function leavesConnectionGood(error: unknown): boolean {
  return isDatabasesWord(error) && !/^(?:25006|57P)/.test(error.code);
}

/** Whether a server of PostgreSQL said so in its protocol, in answer to a statement or a login. */
function isDatabasesWord(error: unknown): error is Error & { code: string } {
  const { code, severity } = (error ?? {}) as { code?: unknown; severity?: unknown };
  return error instanceof Error && typeof code === 'string' && typeof severity === 'string';
}

/** The database's error as ours. One that is no word of its server never reached it, or broke it. */
export function asCatalogueError(error: unknown): CatalogueError {
  if (error instanceof CatalogueError) return error;
  // Of a name with several addresses Node tells the attempts, and itself nothing.
  const told = error instanceof AggregateError ? error.errors[0] : error;
  const text = told instanceof Error ? told.message : String(told);
  const code = (told as { code?: unknown } | null)?.code;
  if (typeof code === 'string' && denied.test(code)) {
    return new CatalogueError('CATALOGUE_DENIED', `The database says: ${text} (${code}).`, error);
  }
  if (isDatabasesWord(told) && !passing.test(told.code)) {
    return new CatalogueError('CATALOGUE_FAILED', `The database says: ${text} (${told.code}).`, error);
  }
  return new CatalogueError('CATALOGUE_UNAVAILABLE', `The catalogue failed: ${text}.`, error);
}
