import { randomUUID } from 'node:crypto';

import { type Kysely, type Migration, Migrator, sql } from 'kysely';

import { CatalogueError } from './errors.js';
import type { Tables } from './tables.js';

/** In the order of their names. One that was released is never changed; the next one changes what it made. */
const migrations: Record<string, Migration> = {
  '0001_catalogue': {
    async up(db: Kysely<Tables>): Promise<void> {
      await db.schema
        .createTable('installation')
        .addColumn('only_row', 'boolean', (column) => column.primaryKey().defaultTo(true).check(sql`only_row`))
        .addColumn('id', 'text', (column) => column.notNull())
        .execute();
      await db.insertInto('installation').values({ id: randomUUID() }).execute();

      await db.schema
        .createTable('hosts')
        .addColumn('name', 'text', (column) => column.primaryKey())
        .addColumn('address', 'text', (column) => column.notNull())
        .addColumn('state', 'text', (column) => column.notNull())
        .addColumn('added_at', 'timestamptz', (column) => column.notNull())
        .execute();

      await db.schema
        .createTable('snapshots')
        .addColumn('snapshot_id', 'text', (column) => column.primaryKey())
        .addColumn('seq', 'bigint', (column) => column.generatedAlwaysAsIdentity().notNull().unique())
        .addColumn('vm', 'text', (column) => column.notNull())
        .addColumn('vm_name', 'text', (column) => column.notNull())
        .addColumn('host', 'text')
        .addColumn('name', 'text')
        .addColumn('description', 'text')
        .addColumn('quiesce', 'text', (column) => column.notNull())
        .addColumn('state', 'text', (column) => column.notNull())
        .addColumn('workflow_id', 'text')
        .addColumn('run_id', 'text')
        .addColumn('deleting_run_id', 'text')
        .addColumn('idempotency_key', 'text', (column) => column.unique())
        .addColumn('body_hash', 'text')
        .addColumn('created_at', 'timestamptz', (column) => column.notNull())
        .addColumn('ended_at', 'timestamptz')
        .addColumn('grade', 'text')
        .addColumn('window_id', 'text')
        .addColumn('plan', 'text')
        .addColumn('result', 'text')
        .addColumn('parts', 'text', (column) => column.notNull())
        .addColumn('error', 'text')
        .addColumn('pending', 'text', (column) => column.notNull())
        .execute();
      await db.schema.createIndex('snapshots_of_vm').on('snapshots').columns(['vm', 'seq']).execute();
      await db.schema.createIndex('snapshots_of_vm_name').on('snapshots').columns(['vm_name', 'seq']).execute();
      await db.schema.createIndex('snapshots_of_host').on('snapshots').columns(['host', 'state']).execute();

      await db.schema
        .createTable('window_slots')
        .addColumn('run_id', 'text', (column) => column.primaryKey())
        .addColumn('workflow_id', 'text', (column) => column.notNull())
        .addColumn('snapshot_id', 'text', (column) => column.notNull())
        .addColumn('seq', 'bigint', (column) => column.generatedAlwaysAsIdentity().notNull().unique())
        .addColumn('taken', 'boolean', (column) => column.notNull())
        .execute();
    },
  },
  '0002_several_engines': {
    async up(db: Kysely<Tables>): Promise<void> {
      await db.schema.alterTable('installation').addColumn('temporal_namespace', 'text').execute();
      await db.schema
        .alterTable('snapshots')
        .addColumn('claims', 'integer', (column) => column.notNull().defaultTo(1))
        .execute();
    },
  },
};

/**
 * Brings the tables to what this version needs; several engines may do so at once.
 *
 * @throws CatalogueError CATALOGUE_NEWER when a later version has been here
 */
export async function migrate(db: Kysely<Tables>): Promise<void> {
  const migrator = new Migrator({ db, provider: { getMigrations: async () => migrations } });
  const unknown = (await appliedMigrations(db)).filter((name) => !(name in migrations));
  if (unknown.length > 0) {
    throw new CatalogueError(
      'CATALOGUE_NEWER',
      `The catalogue has migrations unknown to this version: ${unknown.join(', ')}.`,
    );
  }
  const { error } = await migrator.migrateToLatest();
  if (error !== undefined) throw error;
}

async function appliedMigrations(db: Kysely<Tables>): Promise<string[]> {
  const tables = await db.introspection.getTables({ withInternalKyselyTables: true });
  if (!tables.some((table) => table.name === 'kysely_migration')) return [];
  const { rows } = await sql<{ name: string }>`select name from kysely_migration`.execute(db);
  return rows.map((row) => row.name);
}
