import type { HostAgent } from './agent.js';
import type { AliveMessage, StartMessage } from './supervisor.js';

/**
 * The worker process. It imports nothing before it has shown its first sign of life and set its signal handlers; then the rooms, then recovery, then gRPC:
 * a guest may be waiting for its thaw.
 */

const aliveEveryMs = 250;

let agent: Promise<HostAgent> | undefined;
let stopAsked: string | undefined;
const stopSignal = new AbortController();

/** Thaws, journals and exits; once. A stop before the start waits for it: what the worker before this one left frozen is thawed first. */
function stop(why: string): void {
  if (stopAsked !== undefined) return;
  stopAsked = why;
  stopSignal.abort();
  if (agent !== undefined) stopAgent(agent, why);
  else if (!process.connected) process.exit(0);
}

function stopAgent(starting: Promise<HostAgent>, why: string): void {
  starting
    .then((running) => running.stop(why))
    .then(
      () => process.exit(0),
      () => process.exit(1),
    );
}

process.on('SIGTERM', () => stop('SIGTERM'));
// Ctrl-C in a terminal reaches the whole group.
process.on('SIGINT', () => stop('SIGINT'));
// The supervisor is dead: whoever starts the host agent again must find the port and the journal free, and no guest of ours frozen.
process.on('disconnect', () => {
  clearInterval(alive);
  stop('the supervisor is gone');
});
process.on('message', (message: StartMessage) => {
  if (message.type !== 'start' || agent !== undefined) return;
  agent = import('./agent.js').then(({ startHostAgent }) => startHostAgent(message.config, stopSignal.signal));
  // Die at once, and be started anew: recovery is the same code as after a crash.
  agent.catch((error: unknown) => {
    process.stderr.write(
      `the worker cannot start: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    );
    process.exit(1);
  });
  if (stopAsked !== undefined) stopAgent(agent, stopAsked);
});

let sending = false;
const alive = setInterval(tell, aliveEveryMs);
tell();

function tell(): void {
  // One at a time: a supervisor that is stopped reads none of them.
  if (sending || !process.connected || process.send === undefined) return;
  sending = true;
  const message: AliveMessage = { type: 'alive' };
  process.send(message, () => {
    sending = false;
  });
}
