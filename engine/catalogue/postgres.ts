import { readFile } from 'node:fs/promises';
import { type Kysely, PostgresDialect, type PostgresPoolClient, sql } from 'kysely';
import pg from 'pg';
import type { Logger } from 'pino';

import type { Catalogue } from './catalogue.js';
import type { DatabaseServer } from './database-url.js';
import { CatalogueError, leavesConnectionGood } from './errors.js';
import { openOn } from './open.js';
import type { Tables } from './tables.js';

export interface PostgresSettings {
  url: DatabaseServer;
  /** Holds the password and nothing else; read for each new connection, so that a new one is taken into use by itself. Else PGPASSWORD, PGPASSFILE. */
  passwordFile?: string;
  /** PEM file of those who may sign the server's certificate. Default: Node's own list. */
  ca?: string;
  /** No TLS to another machine. On this one there is none unless `ca` is given. */
  plain: boolean;
}

export interface PostgresTimes {
  /** How long a connection may take to be made, or waited for, ms. Default 5 000. */
  connectMs?: number;
  /** How long the server may work on a statement, waiting for other transactions included, ms. Default 10 000. */
  statementMs?: number;
  /** How long the server's answer may take; then the connection is given up, ms. Default 12 000. */
  answerMs?: number;
}

/** Connections of one engine: activities and requests hold one for milliseconds. */
const mostConnections = 10;
/** Connections are made anew by and by, so that none stays for ever with a server that is not the primary any more, s. */
const longestLifeS = 300;

/**
 * Opens the catalogue in a PostgreSQL that several engines share; the first makes its tables. Connections that break, with a restart of the server say, are made
 * anew when they are next needed.
 *
 * @throws CatalogueError CATALOGUE_UNAVAILABLE, CATALOGUE_DENIED, CATALOGUE_NEWER
 */
export async function openPostgres(
  settings: PostgresSettings,
  log: Logger,
  { connectMs = 5_000, statementMs = 10_000, answerMs = 12_000 }: PostgresTimes = {},
): Promise<Catalogue> {
  const { passwordFile } = settings;
  const pool = new pg.Pool({
    ...withoutUndefined(settings.url),
    ...(passwordFile === undefined ? {} : { password: () => readText(passwordFile).then((text) => text.trimEnd()) }),
    ssl: await tlsOf(settings),
    application_name: 'stillpoint-engine',
    max: mostConnections,
    maxLifetimeSeconds: longestLifeS,
    connectionTimeoutMillis: connectMs,
    statement_timeout: statementMs,
    query_timeout: answerMs,
    keepAlive: true,
  });
  // Without a listener an error of a connection ends the process: 'error' of the pool is one that nobody used, the client's own one that a query has heard of.
  pool.on('error', (error) => log.warn({ err: error }, 'The database has closed a connection'));
  pool.on('connect', (client) => client.on('error', () => {}));
  const dialect = new PostgresDialect({
    pool: { connect: async () => dropWhenBroken(await pool.connect()), end: () => pool.end() },
  });
  return openOn(dialect, { prepare: requireUtf8 });
}

/** What a guest says must fit into the record, whatever it is. */
async function requireUtf8(db: Kysely<Tables>): Promise<void> {
  const { rows } = await sql<{ server_encoding: string }>`show server_encoding`.execute(db);
  const encoding = rows[0]?.server_encoding;
  if (encoding === 'UTF8') return;
  throw new CatalogueError(
    'CATALOGUE_DENIED',
    `The database's encoding is ${encoding}; make one with: createdb --encoding UTF8 --template template0.`,
  );
}

/** A connection that failed may have an answer still to come, or none ever: it is asked no more, and does not go back into the pool. */
function dropWhenBroken(client: pg.PoolClient): PostgresPoolClient {
  let failure: Error | undefined;
  return {
    // By a cursor, kysely's other way, nothing of ours is read.
    query: (async (text: string, parameters: unknown[]) => {
      if (failure !== undefined) throw failure;
      try {
        return await client.query(text, parameters);
      } catch (error) {
        if (!leavesConnectionGood(error)) failure = error as Error;
        throw error;
      }
    }) as unknown as PostgresPoolClient['query'],
    release: () => client.release(failure),
  };
}

async function tlsOf({ url, ca, plain }: PostgresSettings): Promise<pg.PoolConfig['ssl']> {
  if (ca !== undefined) return { ca: await readText(ca) };
  return plain || isOnThisMachine(url.host ?? process.env.PGHOST ?? 'localhost') ? false : {};
}

function isOnThisMachine(host: string): boolean {
  return host.startsWith('/') || host === 'localhost' || host === '::1' || /^127(?:\.\d{1,3}){3}$/.test(host);
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new CatalogueError('CATALOGUE_DENIED', `${path} cannot be read: ${(cause as Error).message}.`, cause);
  }
}

function withoutUndefined({ host, port, user, database }: DatabaseServer): pg.PoolConfig {
  return {
    ...(host === undefined ? {} : { host }),
    ...(port === undefined ? {} : { port }),
    ...(user === undefined ? {} : { user }),
    ...(database === undefined ? {} : { database }),
  };
}
