/** What a script may rely on; docs/cli.md has the same table. */
export const exitCodes = {
  ok: 0,
  /** Failed, or something that nobody foresaw. */
  failed: 1,
  usage: 2,
  notFound: 3,
  /** Busy, or in conflict with what is there. */
  conflict: 4,
  /** The API, or something that it needs (Temporal, a host), does not answer. */
  unreachable: 5,
  /** The snapshot, or its deletion, failed or was cancelled. */
  snapshotFailed: 6,
  /** Also of `snapshot cleanup --wait`: something is pending still. */
  cleanupPending: 7,
  /** `doctor` has found something that is not repaired. */
  findingsLeft: 8,
  /** Ctrl-C, as shells count it: 128 + SIGINT. */
  interrupted: 130,
} as const;

/** Ends the command with a text for the reader and an exit code. `code` is the API's, where it has one. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly exitCode: number;
  readonly code: string;
  /** Further members for --json, as the API has sent them. */
  readonly problem: Readonly<Record<string, unknown>>;

  constructor(
    exitCode: number,
    code: string,
    message: string,
    more: { problem?: Record<string, unknown>; cause?: unknown } = {},
  ) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.exitCode = exitCode;
    this.code = code;
    this.problem = more.problem ?? {};
  }
}

/** The exit code of an answer that is no success. */
export function exitCodeOf(status: number): number {
  if (status === 400) return exitCodes.usage;
  if (status === 404) return exitCodes.notFound;
  if (status === 409 || status === 422) return exitCodes.conflict;
  if (status === 503) return exitCodes.unreachable;
  return exitCodes.failed;
}
