import { ensurePostgres } from '@stillpoint/lab/postgres.js';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';

/** Before the first file: the server that every file starts one of, and Temporal's. */
export async function setup(): Promise<void> {
  await ensurePostgres(console.log);
  await installedTemporal();
}
