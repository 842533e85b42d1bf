import { execFile } from 'node:child_process';
import type { Logger } from 'pino';

/**
 * Tells systemd that this process has started (READY=1) and lives (WATCHDOG=1): at once, and where the unit has a WatchdogSec three times in that long;
 * who is silent for longer is killed and started again by systemd. Outside systemd (no NOTIFY_SOCKET) it does nothing.
 *
 * Node has no datagram sockets in the file system, which sd_notify(3) wants: systemd's own `systemd-notify` sends them. The timer runs in the event loop, so
 * that a process that is stopped or in a loop sends none.
 */
export function answerSystemd(log: Logger, env: NodeJS.ProcessEnv = process.env): void {
  if (env.NOTIFY_SOCKET === undefined || env.NOTIFY_SOCKET === '') return;
  let sending = false;
  let failed = false;
  const fail = (error: unknown) => {
    sending = false;
    if (failed) return;
    failed = true;
    log.error(
      { err: error },
      'systemd cannot be told that the host agent lives, and will start it again and again: see that systemd-notify can be run',
    );
  };
  const everyMs = watchdogMs(env) / 3;
  const send = () => {
    // One at a time: it waits until systemd has taken the message. READY=1 again and again, for one may be lost.
    if (sending) return;
    sending = true;
    // One that hangs is given up for the next; a host without memory throws here and does not call back.
    const options = { env, timeout: everyMs || 10_000, killSignal: 'SIGKILL' } as const;
    try {
      execFile('systemd-notify', ['READY=1', 'WATCHDOG=1'], options, (error) => {
        if (error === null) sending = false;
        else fail(error);
      });
    } catch (error) {
      fail(error);
    }
  };
  send();
  if (everyMs > 0) setInterval(send, everyMs).unref();
}

/** ms of silence after which systemd acts; 0: it does not watch this process. In µs in WATCHDOG_USEC (sd_watchdog_enabled(3)). */
function watchdogMs({ WATCHDOG_USEC: limit, WATCHDOG_PID: pid }: NodeJS.ProcessEnv): number {
  const isOurs = pid === undefined || Number(pid) === process.pid;
  const ms = Number(limit) / 1_000;
  return isOurs && Number.isFinite(ms) ? ms : 0;
}
