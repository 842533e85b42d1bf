import { randomUUID } from 'node:crypto';
import { chmod, link, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import type { Progress } from './progress.js';

/** The version of the `temporal` command that Stillpoint downloads or builds: server 1.31.2, UI 2.50.1. */
export const temporalVersion = '1.8.2';

/**
 * The project's own place for the `temporal` command: `<root>/temporal/<version>/temporal`.
 *
 * The version is part of the path, so a newer Stillpoint never runs an older server by accident.
 */
export class TemporalCache {
  readonly folder: string;
  readonly executable: string;
  readonly #lockPollMs: number;

  /** @param lockPollMs how often a waiting process looks whether another has finished filling the cache */
  constructor(root: string, lockPollMs = 500) {
    this.folder = join(root, 'temporal', temporalVersion);
    this.executable = join(this.folder, 'temporal');
    this.#lockPollMs = lockPollMs;
  }

  /** A fresh path in the same file system as the cache, so that what is made there can be renamed into place. */
  async scratchPath(): Promise<string> {
    await mkdir(this.folder, { recursive: true });
    return join(this.folder, `.new-${process.pid}-${randomUUID()}`);
  }

  /** Puts a finished executable into the cache in one step: nobody ever sees half of it. */
  async install(madeAt: string): Promise<string> {
    await chmod(madeAt, 0o755);
    await rename(madeAt, this.executable);
    return this.executable;
  }

  /**
   * Runs `fill` while no other process of this machine fills the cache.
   *
   * A lock of a dead process is taken over. Two processes that do so at the same instant may both go on: that costs
   * time only, since each works under its own scratch path and the last rename wins.
   */
  async exclusively<T>(progress: Progress, fill: () => Promise<T>): Promise<T> {
    const lock = join(this.folder, '.lock');
    for (let waited = false; !(await this.#tryLock(lock)); waited = true) {
      const holder = await readHolder(lock);
      if (holder === undefined) continue;
      if (!isAlive(holder)) {
        await rm(lock, { force: true });
        continue;
      }
      if (!waited) {
        progress(
          `Waiting for process ${holder}, which is already fetching or building Temporal (if it is not, delete ${lock})`,
        );
      }
      await delay(this.#lockPollMs);
    }
    try {
      await this.#sweep();
      return await fill();
    } finally {
      await rm(lock, { force: true });
    }
  }

  /** A process that was killed may have left a half-made server of some hundred megabytes. */
  async #sweep(): Promise<void> {
    for (const name of await readdir(this.folder)) {
      const maker = /^\.new-(\d+)-/.exec(name)?.[1];
      if (maker && !isAlive(Number(maker))) await rm(join(this.folder, name), { recursive: true, force: true });
    }
  }

  /** The lock appears with its holder's process id already in it, so nobody ever reads an empty one. */
  async #tryLock(lock: string): Promise<boolean> {
    const written = await this.scratchPath();
    await writeFile(written, `${process.pid}\n`);
    try {
      await link(written, lock);
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
      throw error;
    } finally {
      await rm(written, { force: true });
    }
  }
}

/** `${XDG_CACHE_HOME:-~/.cache}/stillpoint`. */
export function cacheRoot(env: NodeJS.ProcessEnv): string {
  return join(env.XDG_CACHE_HOME || join(env.HOME || homedir(), '.cache'), 'stillpoint');
}

/** The process that holds the lock; undefined when it was given back in the meantime. */
async function readHolder(lock: string): Promise<number | undefined> {
  try {
    return Number.parseInt(await readFile(lock, 'utf8'), 10);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Whether a process with that id exists, ours or not. */
export function isAlive(pid: number): boolean {
  if (!Number.isInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
