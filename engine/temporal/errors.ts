/** Where a Temporal server was looked for. The order is the order of the search. */
export type TemporalSource = 'environment' | 'command' | 'cache' | 'download' | 'go-build';

/** What this room can fail with; the text of each error says what to do. */
export type TemporalErrorCode =
  | 'TEMPORAL_NOT_FOUND'
  | 'TEMPORAL_CONFIG_INVALID'
  | 'TEMPORAL_COMMAND_UNUSABLE'
  | 'TEMPORAL_UNREACHABLE'
  | 'TEMPORAL_NAMESPACE_NOT_FOUND'
  | 'TEMPORAL_DOWNLOAD_FAILED'
  | 'TEMPORAL_CHECKSUM_MISMATCH'
  | 'TEMPORAL_BUILD_FAILED'
  | 'TEMPORAL_DEV_SERVER_FAILED'
  | 'TEMPORAL_PORT_IN_USE'
  | 'TEMPORAL_STATE_IN_USE'
  | 'SEARCH_ATTRIBUTES_REFUSED'
  | 'SEARCH_ATTRIBUTES_TYPE_CONFLICT'
  | 'SEARCH_ATTRIBUTES_NOT_READY';

/** An error of finding, starting or talking to Temporal. `cause` is what the system, the SDK or a child process said. */
export class TemporalError extends Error {
  override readonly name = 'TemporalError';
  readonly code: TemporalErrorCode;

  constructor(code: TemporalErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
  }
}

/** The first line of whatever was thrown, for a sentence of ours; the whole of it stays in `cause`. */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split('\n', 1)[0] ?? text;
}
