import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';

import { type Dialect, Kysely } from 'kysely';
import { PGliteDialect } from 'kysely-pglite-dialect';

import type { Catalogue } from './catalogue.js';
import { asCatalogueError } from './errors.js';
import { takeLock } from './lock.js';
import { migrate } from './migrations.js';
import { openPglite } from './pglite.js';
import { SqlCatalogue } from './sql-catalogue.js';
import type { Tables } from './tables.js';

/**
 * Opens the embedded catalogue in the state folder (`catalogue/` and its lock file): made at the first start, brought up to date at every other.
 *
 * @throws CatalogueError CATALOGUE_IN_USE when another engine has it, CATALOGUE_NEWER, CATALOGUE_UNAVAILABLE
 */
export async function openCatalogue(stateFolder: string): Promise<Catalogue> {
  await mkdir(stateFolder, { recursive: true });
  const unlock = await takeLock(join(stateFolder, 'catalogue.lock'));
  try {
    return await openOn(new PGliteDialect(await openPglite(join(stateFolder, 'catalogue'))), unlock);
  } catch (error) {
    await unlock();
    throw asCatalogueError(error);
  }
}

/** Opens the catalogue on any database that speaks PostgreSQL's SQL. `onDisconnect` runs after the connection has ended. */
export async function openOn(dialect: Dialect, onDisconnect: () => Promise<void> = async () => {}): Promise<Catalogue> {
  const db = new Kysely<Tables>({ dialect });
  try {
    await migrate(db);
  } catch (error) {
    await db.destroy();
    throw asCatalogueError(error);
  }
  return new SqlCatalogue(db, onDisconnect);
}
