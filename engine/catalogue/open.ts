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
    return await openOn(new PGliteDialect(await openPglite(join(stateFolder, 'catalogue'))), { onDisconnect: unlock });
  } catch (error) {
    await unlock();
    throw asCatalogueError(error);
  }
}

/**
 * Opens the catalogue on any database that speaks PostgreSQL's SQL. `prepare` comes before the migrations, `onDisconnect` after the connection has ended.
 *
 * @throws CatalogueError
 */
export async function openOn(
  dialect: Dialect,
  hooks: { prepare?: (db: Kysely<Tables>) => Promise<void>; onDisconnect?: () => Promise<void> } = {},
): Promise<Catalogue> {
  const db = new Kysely<Tables>({ dialect });
  try {
    await hooks.prepare?.(db);
    await migrate(db);
  } catch (error) {
    await db.destroy();
    throw asCatalogueError(error);
  }
  return new SqlCatalogue(db, hooks.onDisconnect);
}
