import { randomUUID } from 'node:crypto';
import { link, readFile, rename, rm, writeFile } from 'node:fs/promises';

import { CatalogueError } from './errors.js';

interface Holder {
  pid: number;
  /** When the process started, in the system's own terms; '' where the system does not say. A pid is used again, this pair is not. */
  started: string;
  /** Makes each lock another one. */
  token: string;
}

/**
 * Takes a lock file for this process, or for good from a process that is dead.
 *
 * @returns what gives it back
 * @throws CatalogueError CATALOGUE_IN_USE naming the process that holds it
 */
export async function takeLock(path: string): Promise<() => Promise<void>> {
  const mine: Holder = { pid: process.pid, started: await startOf(process.pid), token: randomUUID() };
  await take(path, mine);
  return async () => {
    if ((await read(path))?.token === mine.token) await rm(path, { force: true });
  };
}

async function take(path: string, mine: Holder): Promise<void> {
  for (;;) {
    if (await place(path, mine, link)) return;
    const holder = await read(path);
    if (holder === undefined) continue;
    if (await isAlive(holder)) {
      throw new CatalogueError('CATALOGUE_IN_USE', `Process ${holder.pid} holds the catalogue (${path}).`);
    }
    // Only the holder of a dead lock's succession may replace that lock, so two heirs never both think that they have it.
    const succession = `${path}.${holder.token}`;
    await take(succession, mine);
    try {
      if ((await read(path))?.token === holder.token) {
        await place(path, mine, rename);
        return;
      }
    } finally {
      await rm(succession, { force: true });
    }
  }
}

/** Puts a whole lock in place in one step: nobody ever reads half of one. */
async function place(path: string, mine: Holder, put: typeof link | typeof rename): Promise<boolean> {
  const written = `${path}.new-${randomUUID()}`;
  await writeFile(written, `${JSON.stringify(mine)}\n`, { mode: 0o600 });
  try {
    await put(written, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  } finally {
    await rm(written, { force: true });
  }
}

async function read(path: string): Promise<Holder | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  try {
    const holder = JSON.parse(text) as Partial<Holder> | null;
    if (
      Number.isInteger(holder?.pid) &&
      typeof holder?.started === 'string' &&
      /^[\w-]{1,64}$/.test(holder.token ?? '')
    ) {
      return holder as Holder;
    }
  } catch {
    // Falls to the error below: a damaged lock says nothing about whether its holder lives.
  }
  throw new CatalogueError(
    'CATALOGUE_IN_USE',
    `The lock ${path} cannot be read. If no engine runs on this folder, delete that file.`,
  );
}

async function isAlive(holder: Holder): Promise<boolean> {
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  return (await startOf(holder.pid)) === holder.started;
}

/** Boot and clock tick of a process's start (proc(5), field 22 of stat); '' where there is no such file. */
async function startOf(pid: number): Promise<string> {
  try {
    const [boot, stat] = await Promise.all([
      readFile('/proc/sys/kernel/random/boot_id', 'utf8'),
      readFile(`/proc/${pid}/stat`, 'utf8'),
    ]);
    // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    const afterName = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return `${boot.trim()} ${afterName[19] ?? ''}`;
  } catch {
    return '';
  }
}
