import { chmod, mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readDatabaseUrl } from '@stillpoint/engine/catalogue/database-url.js';
import type { PostgresSettings } from '@stillpoint/engine/catalogue/postgres.js';
import { PostgresServer } from '@stillpoint/lab/postgres.js';

/** The PostgreSQL server of a test file, and the file with the password of its user. */
export async function postgresServer(): Promise<{ server: PostgresServer; passwordFile: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-postgres-'));
  // The server's own account passes through it.
  await chmod(folder, 0o711);
  const server = await PostgresServer.start(folder);
  const passwordFile = join(folder, 'password');
  await writeFile(passwordFile, `${server.login.password}\n`, { mode: 0o600 });
  return { server, passwordFile };
}

export function settingsOf(url: string, change: Partial<PostgresSettings> = {}): PostgresSettings {
  return { url: readDatabaseUrl(url), plain: false, ...change };
}
