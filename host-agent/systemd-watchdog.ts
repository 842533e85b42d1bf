import { execFile } from 'node:child_process';
import type { Logger } from 'pino';

/**
 * Tells systemd that this process has started (READY=1) and, where the unit has a WatchdogSec, three times in that long that it lives (WATCHDOG=1):
 * who is silent for longer is killed and started again by systemd. Outside systemd (no NOTIFY_SOCKET) it does nothing.
 *
 * Node has no datagram sockets in the file system, which sd_notify(3) wants: systemd's own `systemd-notify` sends them. The timer runs in the event loop, so
 * that a process that is stopped or in a loop sends none.
 */
export function answerSystemd(log: Logger, env: NodeJS.ProcessEnv = process.env): void {
  if (env.NOTIFY_SOCKET === undefined || env.NOTIFY_SOCKET === '') return;
  let sending = false;
  let failed = false;
  const send = (message: string) => {
    // One at a time: it waits until systemd has taken the message.
    if (sending) return;
    sending = true;
    execFile('systemd-notify', [message], { env }, (error) => {
      sending = false;
      if (error === null || failed) return;
      failed = true;
      log.error(
        { err: error },
        'systemd cannot be told that the host agent lives, and will start it again and again: see that systemd-notify can be run',
      );
    });
  };
  send('READY=1');
  const everyMs = watchdogMs(env) / 3;
  if (everyMs > 0) setInterval(() => send('WATCHDOG=1'), everyMs).unref();
}

/** ms of silence after which systemd acts; 0: it does not watch this process. In µs in WATCHDOG_USEC (sd_watchdog_enabled(3)). */
function watchdogMs({ WATCHDOG_USEC: limit, WATCHDOG_PID: pid }: NodeJS.ProcessEnv): number {
  const isOurs = pid === undefined || Number(pid) === process.pid;
  const ms = Number(limit) / 1_000;
  return isOurs && Number.isFinite(ms) ? ms : 0;
}
