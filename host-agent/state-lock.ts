import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { mkdir, stat } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';

/**
 * One worker at a time has the state folder: two would write one journal and thaw each other's windows.
 *
 * The lock is an abstract unix socket: the kernel frees it with its process, however that dies, and binding it is atomic. A file beside the journal says who
 * holds it, so that a newcomer can tell three cases apart: a supervised worker (waited for), an orphan whose supervisor died (it thaws and leaves by itself;
 * one that does not is hung and is killed: its leases are on disk), and a stranger's socket of the same name (passed over).
 */
export interface StateLockOptions {
  folder: string;
  log: Logger;
  /** Ends the wait: whoever has no state folder owes nobody a thaw. */
  stop: AbortSignal;
  /** ms that an orphan has to thaw its guests and leave; default 2 000: with the restart it stays below the 5 s of invariant 1. */
  orphanMs?: number;
  /** ms between tries; default 50. */
  retryMs?: number;
}

/**
 * Makes the state folder (mode 0700) if need be, and resolves with true when it is ours, with false when `stop` aborts before. The lock ends with the process.
 */
export async function takeStateFolder(options: StateLockOptions): Promise<boolean> {
  const { folder, log, stop, orphanMs = 2_000, retryMs = 50 } = options;
  await mkdir(folder, { recursive: true, mode: 0o700 });
  // Abstract sockets and /proc are Linux's. Elsewhere only simulated guests run, and each worker has its own.
  if (process.platform !== 'linux') return true;
  const holderPath = join(folder, 'worker.json');
  const name = await lockName(folder);
  const started = performance.now();
  let told: number | undefined;
  while (!(await bound(name))) {
    const holder = readHolder(holderPath);
    const waitedMs = performance.now() - started;
    if (holder?.pid !== told) {
      told = holder?.pid;
      log.warn({ folder, holder }, 'another worker has the state folder; waiting for its end');
    }
    if (waitedMs > orphanMs) {
      if (holder === undefined) {
        log.warn(
          { folder },
          'no host agent has the state folder, although its lock is taken: going on without the lock',
        );
        break;
      }
      if (isOrphan(holder)) {
        log.error(
          { pid: holder.pid },
          'the worker of a dead supervisor does not leave: killing it, its leases are on disk',
        );
        process.kill(holder.pid, 'SIGKILL');
      }
    }
    if (stop.aborted) return false;
    await delay(retryMs);
  }
  try {
    writeFileSync(
      holderPath,
      JSON.stringify({ pid: process.pid, startTicks: processStat(process.pid)?.startTicks, supervisor: process.ppid }),
      {
        mode: 0o600,
      },
    );
  } catch (error) {
    // A full disk must not keep the host agent from thawing.
    log.error({ err: error, path: holderPath }, 'cannot write who holds the state folder');
  }
  return true;
}

interface Holder {
  pid: number;
  startTicks: number | undefined;
  supervisor: number;
}

/** The process that the file names, if it still lives. */
function readHolder(path: string): Holder | undefined {
  try {
    const holder = JSON.parse(readFileSync(path, 'utf8')) as Holder;
    if (!Number.isInteger(holder.pid) || holder.pid <= 1) return undefined;
    const now = processStat(holder.pid);
    return now !== undefined && now.startTicks === holder.startTicks ? holder : undefined;
  } catch {
    return undefined;
  }
}

function isOrphan(holder: Holder): boolean {
  return processStat(holder.pid)?.parent !== holder.supervisor;
}

/** proc(5): field 4 is the parent, 22 the start in ticks since boot; with the pid it names one process for good. */
function processStat(pid: number): { parent: number; startTicks: number } | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The command's name (field 2) may hold spaces and brackets.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return { parent: Number(fields[1]), startTicks: Number(fields[19]) };
  } catch {
    return undefined;
  }
}

async function lockName(folder: string): Promise<string> {
  const { dev, ino } = await stat(folder);
  return `\0stillpoint-host-agent-${createHash('sha256').update(`${dev}:${ino}`).digest('hex').slice(0, 32)}`;
}

function bound(name: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server: Server = createServer((socket) => socket.destroy());
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(false);
      else reject(error);
    });
    server.listen(name, () => {
      server.unref();
      resolve(true);
    });
  });
}
