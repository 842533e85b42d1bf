import { existsSync, readFileSync } from 'node:fs';
import { cp, open, readdir, rename, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * The folder of an embedded PostgreSQL that holds nothing yet, made by `npm run build` for this version of PGlite. A start that makes its own (initdb) takes
 * five seconds of a processor and 800 MB.
 */
export const emptyDatabase = join(distFolder(), `empty-database-${pgliteVersion()}`);

/**
 * Puts a copy of the empty database into the folder, if that holds no database and the build has made one. It is there whole or not at all, also when the host
 * loses power: every file is on the disk before the folder gets its name.
 */
export async function copyEmptyDatabase(folder: string): Promise<void> {
  if (existsSync(join(folder, 'PG_VERSION')) || !existsSync(emptyDatabase)) return;
  const work = `${folder}.new`;
  await rm(work, { recursive: true, force: true });
  await cp(emptyDatabase, work, { recursive: true });
  await syncAll(work);
  // Over the empty folder; one that holds something is refused (ENOTEMPTY).
  await rename(work, folder);
  await sync(dirname(folder));
}

async function syncAll(folder: string): Promise<void> {
  const entries = await readdir(folder, { recursive: true });
  // A thousand small files: side by side, as far as the thread pool goes, the disk takes many at once.
  await Promise.all([folder, ...entries.map((entry) => join(folder, entry))].map(sync));
}

async function sync(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** `dist` of the engine, whether this runs from there or from its source. */
function distFolder(): string {
  const engine = dirname(dirname(fileURLToPath(import.meta.url)));
  return engine.endsWith(`${sep}dist`) ? engine : join(engine, 'dist');
}

function pgliteVersion(): string {
  const main = createRequire(import.meta.url).resolve('@electric-sql/pglite');
  const { version } = JSON.parse(readFileSync(join(dirname(dirname(main)), 'package.json'), 'utf8'));
  return String(version);
}
