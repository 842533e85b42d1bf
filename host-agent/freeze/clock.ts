/** The one clock of the room: the instants of the port (performance.now()), and wall time beside them for people. */
export interface Clock {
  /** ms, monotonic; the same clock as the port's `…At`. */
  now(): number;
  /** ms since 1970. */
  unixMs(): number;
}

export const processClock: Clock = { now: () => performance.now(), unixMs: () => Date.now() };
