import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { runProgram } from '../programs.js';
import { Daemon } from './daemon.js';
import { answers } from './ports.js';

/** MariaDB for Cinder and Keystone: one folder, loopback, no passwords. */
export class Database {
  readonly daemon: Daemon;
  readonly #folder: string;
  readonly #port: number;

  constructor(folder: string, port: number) {
    this.#folder = folder;
    this.#port = port;
    const args = [
      '--no-defaults',
      '--user=root',
      `--datadir=${join(folder, 'mariadb')}`,
      `--socket=${this.#socket}`,
      '--bind-address=127.0.0.1',
      `--port=${port}`,
      `--pid-file=${join(folder, 'mariadb.pid')}`,
      '--skip-grant-tables',
      // Without grants it would listen on no port.
      '--skip-networking=0',
      '--skip-name-resolve',
      '--innodb-flush-log-at-trx-commit=2',
      '--innodb-buffer-pool-size=64M',
      '--innodb-log-file-size=16M',
      '--performance-schema=OFF',
      '--max-connections=300',
    ];
    this.daemon = new Daemon('mariadb', folder, {
      program: 'mariadbd',
      args,
      // Its greeting comes first, once it takes connections.
      ready: () => answers(port),
    });
  }

  /** Makes an empty data folder. */
  async initialise(): Promise<void> {
    const data = join(this.#folder, 'mariadb');
    await mkdir(data, { recursive: true });
    const args = ['--no-defaults', '--user=root', `--datadir=${data}`, '--skip-test-db'];
    await runProgram('mariadb-install-db', [...args, '--auth-root-authentication-method=normal']);
  }

  /** The URL of one schema, as SQLAlchemy reads it. */
  url(schema: string): string {
    return `mysql+pymysql://root@127.0.0.1:${this.#port}/${schema}?charset=utf8`;
  }

  /** Runs SQL and answers what it prints: one line a row, columns by tabs. */
  async query(sql: string): Promise<string> {
    const args = ['--no-defaults', `--socket=${this.#socket}`, '--batch', '--skip-column-names', '-e', sql];
    return (await runProgram('mariadb', args, { timeoutMs: 20_000 })).stdout.trim();
  }

  get #socket(): string {
    return join(this.#folder, 'mariadb.sock');
  }
}
