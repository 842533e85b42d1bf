import { type Logger, pino } from 'pino';

/**
 * JSON lines on stdout, for journald. Written asynchronously: a log that nobody reads must not hold up a thaw. `flush` resolves when all is written;
 * `flushNow` is for the end of a process that cannot wait.
 */
export function createLog(level: string): { log: Logger; flush: () => Promise<void>; flushNow: () => void } {
  const destination = pino.destination({ fd: 1, sync: false });
  const log = pino({ level, base: { process: process.pid }, timestamp: pino.stdTimeFunctions.isoTime }, destination);
  const flush = () => new Promise<void>((resolve) => destination.flush(() => resolve()));
  const flushNow = () => {
    try {
      destination.flushSync();
    } catch {
      // Not open yet, or its reader is gone: there is nobody left to tell.
    }
  };
  return { log, flush, flushNow };
}
