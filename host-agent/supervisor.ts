import { type ChildProcess, fork } from 'node:child_process';
import type { Logger } from 'pino';
import type { HostAgentConfig } from './config.js';

/** What the supervisor says to its worker: once, first. A configuration edited later, however broken, waits for the supervisor's own restart. */
export interface StartMessage {
  type: 'start';
  config: HostAgentConfig;
}

/** What the worker says to its supervisor: every 250 ms that it lives. */
export interface AliveMessage {
  type: 'alive';
}

export interface SupervisorOptions {
  /** The program that runs as the worker. */
  workerPath: string;
  config: HostAgentConfig;
  log: Logger;
  /** ms of silence within which a worker is killed; default 2 000. */
  silenceMs?: number;
  /** ms that a starting worker may stay silent: loading programs takes long on a host that is out of memory or processors; default 10 000. */
  startSilenceMs?: number;
  /** ms, the longest pause before a restart; default 1 000. There is no last restart: a frozen guest may be waiting. */
  maxPauseMs?: number;
}

/**
 * Runs the worker as a child process, and again whenever it dies or falls silent, until `stop` aborts. Resolves when the worker has ended by itself after that.
 *
 * Stopping has no time limit here: the worker leaves when the freeze room has thawed, or has given up waiting for a thaw that is impossible now and goes on
 * with it at the next start. Whoever wants it shorter is the init system (TimeoutStopSec). A worker that dies while it stops is started again, to thaw what it
 * left, and stopped again; but not without end, because a worker that cannot run at all thaws nothing.
 */
export async function supervise(options: SupervisorOptions, stop: AbortSignal): Promise<void> {
  const { log, maxPauseMs = 1_000 } = options;
  let pauseMs = 0;
  let diedStopping = 0;
  for (;;) {
    const started = performance.now();
    const end = await runWorker(options, stop);
    const lifeMs = Math.round(performance.now() - started);
    if (stop.aborted && end.code === 0) return;
    if (stop.aborted && ++diedStopping > 3) {
      log.error(
        { ...end },
        'the worker dies again and again while it stops: a guest may still be frozen until the next start',
      );
      return;
    }
    log.error({ ...end, lifeMs }, 'the worker died; it is restarted');
    // At once after a life; ever slower, up to a second, when it dies at its start.
    pauseMs = lifeMs > 5_000 ? 0 : Math.min(maxPauseMs, pauseMs * 2 + 50);
    if (lifeMs <= 5_000 && pauseMs > 50) await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

/** One life of the worker. */
function runWorker(
  options: SupervisorOptions,
  stop: AbortSignal,
): Promise<{ code: number | null; signal: string | null }> {
  const { log, silenceMs = 2_000, startSilenceMs = 10_000 } = options;
  const worker = fork(options.workerPath, [], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  const passOn = () => {
    worker.kill('SIGTERM');
  };

  return new Promise((resolve) => {
    // Silence is counted in ticks of this process and not by the clock: while the machine sleeps, or this process is stopped, nobody is silent.
    const tickMs = 250;
    let silentTicks = 0;
    let allowedTicks = startSilenceMs / tickMs;
    const watch = setInterval(() => {
      silentTicks++;
      if (silentTicks < allowedTicks) return;
      worker.kill('SIGKILL');
      // Once: a worker that waits for storage dies only when it has got it.
      if (silentTicks === allowedTicks)
        log.error({ pid: worker.pid, silentMs: silentTicks * tickMs }, 'the worker is silent: killing it');
    }, tickMs);
    worker.on('message', (message: AliveMessage) => {
      if (message.type !== 'alive') return;
      if (allowedTicks !== silenceMs / tickMs) {
        allowedTicks = silenceMs / tickMs;
        // Only now: a SIGTERM before the worker has its handlers would end it with its guests frozen.
        if (stop.aborted) passOn();
        else stop.addEventListener('abort', passOn, { once: true });
      }
      silentTicks = 0;
    });

    const ended = (code: number | null, signal: string | null) => {
      clearInterval(watch);
      stop.removeEventListener('abort', passOn);
      resolve({ code, signal });
    };
    worker.on('exit', ended);
    worker.on('error', (error) => {
      log.error({ err: error }, 'the worker');
      if (worker.pid === undefined) ended(null, null);
    });
    send(worker, { type: 'start', config: options.config });
    log.info({ pid: worker.pid }, 'worker started');
  });
}

function send(worker: ChildProcess, message: StartMessage): void {
  // A worker that is dead by now is met by its exit.
  worker.send(message, () => {});
}
