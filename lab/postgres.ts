import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { chmod, chown, copyFile, mkdir, open, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { makeCa, makeHostCertificate } from '@stillpoint/host-agent/certs.js';
import { LabError } from './errors.js';
import { ensurePackages } from './packages.js';
import { type Progress, runProgram } from './programs.js';
import { freePorts } from './storage/ports.js';

/** Where Debian and Ubuntu put each version's programs. */
const VERSIONS = '/usr/lib/postgresql';
const ACCOUNT = 'postgres';
const READY_LIMIT_MS = 60_000;

/** What PostgreSQL needs on the host: any version that a release of Debian or Ubuntu in use brings, and a few to come. */
const REQUIREMENTS = [
  { package: 'postgresql', anyOf: Array.from({ length: 10 }, (_, at) => join(VERSIONS, `${13 + at}`, 'bin/postgres')) },
  { package: 'util-linux', anyOf: ['/usr/bin/setpriv'] },
];

/**
 * Installs Debian's PostgreSQL where it is missing, without the cluster that its package would make and start.
 *
 * @throws LabError PACKAGES_MISSING
 */
export async function ensurePostgres(progress: Progress): Promise<void> {
  const settings = '/etc/postgresql-common/createcluster.conf';
  const isOurs = versions().length === 0 && process.getuid?.() === 0 && !existsSync(settings);
  if (isOurs) {
    await mkdir('/etc/postgresql-common', { recursive: true });
    await writeFile(settings, 'create_main_cluster = false\n');
  }
  try {
    await ensurePackages(REQUIREMENTS, progress);
  } finally {
    // As it comes, for whoever wants a cluster of another version later.
    if (isOurs) await copyFile('/usr/share/postgresql-common/createcluster.conf', settings).catch(() => rm(settings));
  }
}

/**
 * A PostgreSQL server of one test: its own data, port and certificate, no part of the host's own. It runs as the package's account where this process is root, and ends
 * with this process, however that ends.
 *
 * On its socket every user is let in, over TCP (with TLS, or without) only who has a password: `login`.
 */
export class PostgresServer {
  readonly port: number;
  /** Who signed the server's certificate, which is for `localhost`. */
  readonly caFile: string;
  readonly login = { user: 'stillpoint', password: 'of the test' };
  readonly #folder: string;
  #process: ChildProcess | undefined;

  private constructor(folder: string, port: number) {
    this.#folder = folder;
    this.port = port;
    this.caFile = join(folder, 'tls', 'ca.pem');
  }

  /** Makes a server in an empty folder that other accounts may pass through, and starts it. Throws LabError. */
  static async start(folder: string): Promise<PostgresServer> {
    const { postgres: port } = await freePorts(['postgres']);
    const server = new PostgresServer(folder, port);
    await server.#make();
    await server.start();
    await server.query(`create role ${server.login.user} login password '${server.login.password}'`);
    return server;
  }

  /** Makes a database that belongs to `login`'s user; answers the URL of it over TCP. `options`: of create database. */
  async createDatabase(name: string, options = "encoding 'UTF8'"): Promise<string> {
    await this.query(`create database ${name} owner ${this.login.user} template template0 ${options}`);
    return `postgresql://${this.login.user}@127.0.0.1:${this.port}/${name}`;
  }

  /** Runs SQL as the superuser; answers what psql prints: one line a row, columns by |. */
  async query(sql: string, database = 'postgres'): Promise<string> {
    const args = ['-h', this.#folder, '-p', String(this.port), '-U', ACCOUNT, '-XAtq', '-v', 'ON_ERROR_STOP=1'];
    return (await runProgram(program('psql'), [...args, '-c', sql, database])).stdout.trim();
  }

  /** Starts it again after `stop` or `crash`, and waits until it takes connections. */
  async start(): Promise<void> {
    const log = await open(join(this.#folder, 'log'), 'a');
    const settings = {
      listen_addresses: '127.0.0.1',
      port: this.port,
      unix_socket_directories: this.#folder,
      ssl: 'on',
      ssl_cert_file: join(this.#folder, 'tls', 'localhost.pem'),
      ssl_key_file: join(this.#folder, 'tls', 'localhost-key.pem'),
      shared_buffers: '16MB',
      // Nothing of a test outlives the machine.
      fsync: 'off',
    };
    const args = Object.entries(settings).flatMap(([key, value]) => ['-c', `${key}=${value}`]);
    const child = spawn('setpriv', asAccount(program('postgres'), '-D', this.#data, ...args), {
      stdio: ['ignore', log.fd, log.fd],
      cwd: this.#folder,
      env: { LC_ALL: 'C.UTF-8' },
    });
    await log.close();
    this.#process = child;
    const deadline = performance.now() + READY_LIMIT_MS;
    while (!(await this.#isReady(child))) {
      if (child.exitCode !== null || performance.now() > deadline) {
        const tail = readFileSync(join(this.#folder, 'log'), 'utf8').slice(-2000);
        throw new LabError('PROGRAM_FAILED', `PostgreSQL does not start; the end of its log:\n${tail}`);
      }
      await delay(20);
    }
  }

  /** Ends it in order, whoever is connected (`fast`), or at once, as a crash does (`immediate`). */
  async stop(how: 'fast' | 'immediate' = 'fast'): Promise<void> {
    const child = this.#process;
    if (child === undefined || child.exitCode !== null) return;
    const exited = once(child, 'exit');
    child.kill(how === 'fast' ? 'SIGINT' : 'SIGQUIT');
    await exited;
  }

  /** Stops all of it in its tracks (SIGSTOP): its connections stay, and nothing answers. Answers what lets it go on. */
  freeze(): () => void {
    const { pid } = this.#process ?? {};
    if (pid === undefined) throw new LabError('PROGRAM_FAILED', 'PostgreSQL does not run');
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number);
    const signal = (name: NodeJS.Signals) => {
      for (const each of [pid, ...children]) process.kill(each, name);
    };
    signal('SIGSTOP');
    return () => signal('SIGCONT');
  }

  /** Ends it and removes all that it has made. */
  async end(): Promise<void> {
    await this.stop('immediate');
    await rm(this.#folder, { recursive: true, force: true });
  }

  get #data(): string {
    return join(this.#folder, 'data');
  }

  async #make(): Promise<void> {
    const tls = join(this.#folder, 'tls');
    await makeCa(tls);
    await makeHostCertificate(tls, 'localhost');
    await mkdir(this.#data, { mode: 0o700 });
    if (process.getuid?.() === 0) {
      const { uid, gid } = await account();
      for (const path of [this.#folder, this.#data, tls, join(tls, 'localhost-key.pem')]) await chown(path, uid, gid);
      await chmod(join(tls, 'localhost.pem'), 0o644);
    }
    const options = [
      '--encoding=UTF8',
      '--locale=C.UTF-8',
      '--no-sync',
      '--auth-local=trust',
      '--auth-host=scram-sha-256',
    ];
    await runProgram('setpriv', asAccount(program('initdb'), '-D', this.#data, '-U', ACCOUNT, ...options), {
      cwd: this.#folder,
    });
  }

  /** The server's own word, which pg_ctl waits for too. */
  async #isReady({ pid }: ChildProcess): Promise<boolean> {
    const lines = (await readFile(join(this.#data, 'postmaster.pid'), 'utf8').catch(() => '')).split('\n');
    return lines[0] === String(pid) && lines[7]?.trim() === 'ready';
  }
}

/** The arguments of setpriv(1): PostgreSQL does not run as root. */
function asAccount(...command: string[]): string[] {
  const change = process.getuid?.() === 0 ? [`--reuid=${ACCOUNT}`, `--regid=${ACCOUNT}`, '--init-groups'] : [];
  return [...change, '--pdeathsig=SIGINT', '--', ...command];
}

async function account(): Promise<{ uid: number; gid: number }> {
  const line = (await readFile('/etc/passwd', 'utf8')).split('\n').find((entry) => entry.startsWith(`${ACCOUNT}:`));
  const [, , uid, gid] = (line ?? '').split(':');
  if (gid === undefined)
    throw new LabError('PACKAGES_MISSING', `There is no account ${ACCOUNT}: is postgresql installed?`);
  return { uid: Number(uid), gid: Number(gid) };
}

/** Oldest first. */
function versions(): string[] {
  const found = existsSync(VERSIONS) ? readdirSync(VERSIONS) : [];
  return found
    .filter((version) => existsSync(join(VERSIONS, version, 'bin/postgres')))
    .sort((a, b) => Number(a) - Number(b));
}

function program(name: string): string {
  return join(VERSIONS, versions().at(-1) ?? '', 'bin', name);
}
