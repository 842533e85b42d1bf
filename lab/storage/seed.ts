import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { identifyProcess } from '../processes.js';
import { type Progress, runProgram } from '../programs.js';
import { Cinder } from './cinder.js';
import { killDaemons } from './daemon.js';
import { Database } from './database.js';
import { type Identity, Keystone } from './keystone.js';
import { freePorts } from './ports.js';

/** Changes whenever a seed made now would differ from one made before, the packages apart. */
const RECIPE = 1;
const PACKAGES = ['cinder-common', 'keystone', 'mariadb-server-core'];
/** What of a storage's folder makes up a seed. */
const PARTS = ['mariadb', 'keystone', 'identity.json'];

/**
 * The databases of Cinder and Keystone with their tables, and Keystone's keys and users, made once on a machine: the migrations
 * take longer than everything else.
 */
export async function ensureSeed(cacheFolder: string, progress: Progress): Promise<string> {
  const seed = join(cacheFolder, `storage-${await recipeHash()}`);
  if (existsSync(seed)) return seed;
  progress('storage: making the databases of Cinder and Keystone (once on this machine)');
  const startedAt = performance.now();
  await mkdir(cacheFolder, { recursive: true });
  await removeAbandoned(cacheFolder);
  const work = await mkdtemp(join(cacheFolder, `storage-making-${process.pid}-`));
  try {
    await make(work);
    await rename(join(work, 'seed'), seed).catch((error: unknown) => {
      // Somebody else has made the same one meanwhile, which is as good.
      if (!existsSync(seed)) throw error;
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  progress(`storage: databases made in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  return seed;
}

/** Puts a copy of the seed into a storage's folder, and says whom its Keystone knows. */
export async function plantSeed(seed: string, folder: string): Promise<Identity> {
  for (const part of PARTS) await runProgram('cp', ['-a', '--reflink=auto', join(seed, part), folder]);
  return JSON.parse(readFileSync(join(folder, 'identity.json'), 'utf8')) as Identity;
}

async function recipeHash(): Promise<string> {
  // Where there is no dpkg the recipe alone decides.
  const { stdout } = await runProgram('dpkg-query', ['-W', ...PACKAGES], { accept: [0, 1] });
  return createHash('sha256')
    .update(JSON.stringify([RECIPE, stdout]))
    .digest('hex')
    .slice(0, 16);
}

async function removeAbandoned(cacheFolder: string): Promise<void> {
  for (const entry of await readdir(cacheFolder)) {
    const pid = Number(entry.match(/^storage-making-(\d+)-/)?.[1]);
    if (!(pid > 0) || identifyProcess(pid) !== undefined) continue;
    await killDaemons(join(cacheFolder, entry));
    await rm(join(cacheFolder, entry), { recursive: true, force: true });
  }
}

async function make(folder: string): Promise<void> {
  for (const name of ['logs', 'processes', 'seed']) await mkdir(join(folder, name), { recursive: true });
  const ports = await freePorts(['mariadb', 'rabbitmq', 'cinder', 'keystone', 'cinderAuth']);
  const database = new Database(folder, ports.mariadb);
  const cinder = new Cinder(folder, ports, database);
  const keystone = new Keystone(folder, ports, database, cinder);
  try {
    await database.initialise();
    await database.daemon.start();
    const [identity] = await Promise.all([keystone.create(), createCinderTables(folder, cinder, database)]);
    await keystone.daemons.keystone.kill();
    // In order: its files are to be complete.
    await database.daemon.stop();
    await writeFile(join(folder, 'identity.json'), JSON.stringify(identity, null, 2), { mode: 0o600 });
    for (const part of PARTS) await rename(join(folder, part), join(folder, 'seed', part));
  } finally {
    await keystone.daemons.keystone.kill();
    await database.daemon.kill();
  }
}

async function createCinderTables(folder: string, cinder: Cinder, database: Database): Promise<void> {
  await database.query('create database cinder character set utf8');
  cinder.writeConfiguration(join(folder, 'ceph.conf'));
  await runProgram('cinder-manage', [...cinder.programArguments('cinder-manage'), 'db', 'sync']);
}
