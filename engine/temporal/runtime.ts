import { type Logger, type LogLevel, type LogMetadata, makeTelemetryFilterString, Runtime } from '@temporalio/worker';
import type { Logger as PinoLogger } from 'pino';

let installed = false;

/**
 * Gives Temporal's SDK our logger. Call it before the first connection; later calls of the process change nothing,
 * because the SDK allows one runtime only.
 *
 * Signals stay ours: the engine ends its API, its holds and its worker in that order, so the SDK must not stop the
 * worker by itself.
 */
export function installRuntime(log: PinoLogger): void {
  if (installed) return;
  Runtime.install({
    logger: pinoAdapter(log),
    shutdownSignals: [],
    telemetryOptions: {
      logging: { filter: makeTelemetryFilterString({ core: 'WARN', other: 'ERROR' }), forward: {} },
    },
  });
  installed = true;
}

/** Temporal's logger interface over pino. */
export function pinoAdapter(log: PinoLogger): Logger {
  const write = (level: LogLevel, message: string, meta: LogMetadata = {}): void => {
    const { error, ...rest } = meta;
    const bound = error === undefined ? rest : { ...rest, err: error };
    log[pinoLevel[level]](bound, message);
  };
  return {
    log: write,
    trace: (message, meta) => write('TRACE', message, meta),
    debug: (message, meta) => write('DEBUG', message, meta),
    info: (message, meta) => write('INFO', message, meta),
    warn: (message, meta) => write('WARN', message, meta),
    error: (message, meta) => write('ERROR', message, meta),
  };
}

const pinoLevel = { TRACE: 'trace', DEBUG: 'debug', INFO: 'info', WARN: 'warn', ERROR: 'error' } as const;
