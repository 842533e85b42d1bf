/**
 * Ceph, Cinder and Keystone on one machine, for tests and for the demo. By hand: `npm run lab` brings all of it up together
 * with a guest on it, and prints where everything is; `node lab/dist/main.js up | down` does so and leaves it running.
 */
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { LabError } from '../errors.js';
import { ensurePackages, STORAGE_REQUIREMENTS } from '../packages.js';
import { identifyProcess, isRunning, type ProcessIdentity } from '../processes.js';
import { type ProgramResult, type Progress, runProgram } from '../programs.js';
import { CEPH_USER, Ceph, type MonitorPace, POOL, type PoolContent } from './ceph.js';
import { type AttachedVolume, Cinder } from './cinder.js';
import { type Daemon, killDaemons } from './daemon.js';
import { Database } from './database.js';
import { type Identity, Keystone, type KeystoneUser, REGION } from './keystone.js';
import { freePorts } from './ports.js';
import { rabbitmqDaemons, writeRabbitmqConfiguration } from './rabbitmq.js';
import { ensureSeed, plantSeed } from './seed.js';

export interface StorageOptions {
  /** Holds all that this storage makes; emptied at the start and removed at the end. At most 70 bytes long. */
  readonly folder: string;
  /** Holds the databases that any storage begins with. */
  readonly cacheFolder: string;
  /** True: Keystone too, and a second cinder-api that asks it. */
  readonly keystone: boolean;
  readonly monitor: MonitorPace;
  /** Ends the start: it throws then, and nothing is left. */
  readonly signal?: AbortSignal;
  readonly progress?: Progress;
}

export const DAEMON_NAMES = [
  'mon',
  'mgr',
  'osd',
  'mariadb',
  'epmd',
  'rabbitmq',
  'cinder-api',
  'cinder-scheduler',
  'cinder-volume',
  'keystone',
  'cinder-api-keystone',
] as const;
export type DaemonName = (typeof DAEMON_NAMES)[number];

/** As whom one asks Cinder: without authentication, or as one of Keystone's users. */
export type CinderCaller = 'noauth' | 'admin' | 'member' | 'stranger' | 'application-credential';

const PORT_NAMES = [
  ...(['monitorV2', 'monitorV1', 'mariadb', 'epmd', 'rabbitmq', 'rabbitmqDistribution'] as const),
  ...(['cinder', 'keystone', 'cinderAuth'] as const),
] as const;

/** What another process needs to know of a storage that runs. */
interface StorageRecord {
  readonly owner: ProcessIdentity;
  readonly keystone: boolean;
  readonly fsid: string;
  readonly secretKey: string;
  readonly ports: Record<(typeof PORT_NAMES)[number], number>;
  readonly identity: Identity;
}

/** sockaddr_un has room for 107 bytes; the sockets below the folder take up to 15 of them, RabbitMQ's file names more. */
const FOLDER_LIMIT = 70;

const recordFile = (folder: string) => join(folder, 'storage.json');

/**
 * Does once what every storage on this machine needs: packages, and the databases that they begin with.
 *
 * @throws LabError PACKAGES_MISSING, PROGRAM_FAILED.
 */
export async function prepareStorage(cacheFolder: string, progress: Progress = () => undefined): Promise<void> {
  await ensurePackages(STORAGE_REQUIREMENTS, progress);
  await ensureSeed(cacheFolder, progress);
}

/**
 * Brings up a storage and returns when volumes can be made. What an earlier run left in the folder is ended first. Several may
 * run side by side in different folders.
 *
 * @throws LabError LAB_IN_USE when another living process has a storage in this folder; PACKAGES_MISSING, PROGRAM_FAILED,
 *   STORAGE_FAILED: nothing is left running then, and the logs stay.
 */
export async function startStorage(options: StorageOptions): Promise<Storage> {
  const folder = resolve(options.folder);
  const { signal, progress = () => undefined } = options;
  if (Buffer.byteLength(folder) > FOLDER_LIMIT || !/^\/[\w.+@/-]+$/.test(folder)) {
    throw new LabError('STATE_FOLDER_UNUSABLE', `'${folder}' is longer than ${FOLDER_LIMIT} bytes or needs quoting`);
  }
  await ensurePackages(STORAGE_REQUIREMENTS, progress);
  const owner = readRecord(folder)?.owner;
  if (owner !== undefined && owner.pid !== process.pid && isRunning(owner)) {
    throw new LabError('LAB_IN_USE', `The storage in ${folder} belongs to process ${owner.pid}, which runs`);
  }
  await endStorage(folder);
  for (const name of ['logs', 'processes', 'ceph']) await mkdir(join(folder, name), { recursive: true, mode: 0o755 });
  signal?.throwIfAborted();
  try {
    return await bringUp(folder, options, progress);
  } catch (error) {
    await killDaemons(folder);
    throw error;
  }
}

/**
 * Finds a storage that another process has started, which goes on to own it.
 *
 * @throws LabError LAB_NOT_UP.
 */
export function attachStorage(folder: string): Storage {
  const record = readRecord(resolve(folder));
  if (record === undefined) throw new LabError('LAB_NOT_UP', `No storage is up in ${folder}; start it first`);
  return new Storage(resolve(folder), record);
}

/** Ends whatever storage was started in the folder, by whom ever it was, removes it, and says how many processes ended. */
export async function endStorage(folder: string): Promise<number> {
  const ended = await killDaemons(folder);
  await rm(folder, { recursive: true, force: true });
  return ended;
}

async function bringUp(folder: string, options: StorageOptions, progress: Progress): Promise<Storage> {
  const { signal } = options;
  const startedAt = performance.now();
  const tell = (what: string) =>
    progress(`storage: ${what} after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  const ports = await freePorts(PORT_NAMES);
  const fsid = randomUUID();
  const parts = new Parts(folder, ports, fsid);
  progress(`storage: starting Ceph, MariaDB and RabbitMQ`);
  const database = async () => {
    const seed = await ensureSeed(options.cacheFolder, progress);
    const planted = await plantSeed(seed, folder);
    await parts.database.daemon.start(signal);
    return planted;
  };
  const ceph = parts.ceph.create(signal).then((key) => {
    tell('Ceph serves');
    return key;
  });
  const broker = async () => {
    writeRabbitmqConfiguration(folder);
    await parts.broker.epmd.start(signal);
    await parts.broker.rabbitmq.start(signal);
    tell('RabbitMQ serves');
  };
  const cinder = async (identity: Promise<Identity>) => {
    parts.cinder.writeConfiguration(parts.ceph.conf);
    await identity;
    await parts.cinder.start(ceph, signal);
    tell('Cinder serves');
  };
  const keystone = async (identity: Promise<Identity>) => {
    await parts.keystone.start(await identity, signal);
    tell('Keystone serves');
  };
  const identity = database();
  const all = [ceph, broker(), cinder(identity), ...(options.keystone ? [keystone(identity)] : [])];
  // All have ended before anything is cleaned up: nobody starts a daemon behind that.
  const failed = (await Promise.allSettled([identity, ...all])).find((outcome) => outcome.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
  if (options.monitor !== 'fast') await parts.ceph.setPace(options.monitor);
  const owner = identifyProcess(process.pid);
  if (owner === undefined) throw new LabError('UNSUPPORTED_PLATFORM', '/proc is not mounted; the lab needs it');
  const record = { owner, keystone: options.keystone, fsid, ports, secretKey: await ceph, identity: await identity };
  writeFileSync(`${recordFile(folder)}.new`, JSON.stringify(record, null, 2), { mode: 0o600 });
  renameSync(`${recordFile(folder)}.new`, recordFile(folder));
  return new Storage(folder, record);
}

function readRecord(folder: string): StorageRecord | undefined {
  const file = recordFile(folder);
  return existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as StorageRecord) : undefined;
}

/** The programs of one storage, whether they run or not. */
class Parts {
  readonly ceph: Ceph;
  readonly database: Database;
  readonly broker: { readonly epmd: Daemon; readonly rabbitmq: Daemon };
  readonly cinder: Cinder;
  readonly keystone: Keystone;

  constructor(folder: string, ports: StorageRecord['ports'], fsid: string) {
    this.ceph = new Ceph(folder, ports, fsid);
    this.database = new Database(folder, ports.mariadb);
    this.broker = rabbitmqDaemons(folder, ports);
    this.cinder = new Cinder(folder, ports, this.database);
    this.keystone = new Keystone(folder, ports, this.database, this.cinder);
  }
}

/** A storage that runs: real Ceph, real Cinder, and a real Keystone where it was asked for. */
export class Storage {
  readonly folder: string;
  readonly fsid: string;
  readonly pool = POOL;
  readonly cephUser = CEPH_USER;
  /** The key of client.cinder, base64 as Ceph has it: what QEMU and libvirt need. */
  readonly secretKey: string;
  /** Cinder's own API, without authentication. `endpoint` ends with /v3. */
  readonly cinder: { readonly endpoint: string; readonly projectId: string; readonly userId: string };
  readonly keystone: StorageKeystone | undefined;
  readonly #parts: Parts;
  readonly #ports: StorageRecord['ports'];
  readonly #identity: Identity;

  constructor(folder: string, record: StorageRecord) {
    this.folder = folder;
    this.fsid = record.fsid;
    this.secretKey = record.secretKey;
    this.#parts = new Parts(folder, record.ports, record.fsid);
    this.#ports = record.ports;
    this.#identity = record.identity;
    const { cinder, keystone } = this.#parts;
    // The member's project: both APIs show the same volumes.
    this.cinder = { endpoint: cinder.endpoint, projectId: record.identity.member.projectId, userId: cinder.userId };
    this.keystone = record.keystone
      ? {
          authUrl: keystone.authUrl,
          cinderEndpoint: `http://127.0.0.1:${record.ports.cinderAuth}/v3`,
          region: REGION,
          ...record.identity,
        }
      : undefined;
  }

  get cephConf(): string {
    return this.#parts.ceph.conf;
  }

  /** Where QEMU finds the monitor. */
  get monitors(): readonly { readonly host: string; readonly port: number }[] {
    return [{ host: '127.0.0.1', port: this.#ports.monitorV1 }];
  }

  daemon(name: DaemonName): Daemon {
    const { ceph, database, broker, cinder, keystone } = this.#parts;
    const daemons: Record<DaemonName, Daemon> = {
      ...ceph.daemons,
      ...broker,
      mariadb: database.daemon,
      'cinder-api': cinder.daemons.api,
      'cinder-scheduler': cinder.daemons.scheduler,
      'cinder-volume': cinder.daemons.volume,
      keystone: keystone.daemons.keystone,
      'cinder-api-keystone': keystone.daemons.cinderApi,
    };
    return daemons[name];
  }

  /** The daemons of this storage, whether they run or not. */
  get daemons(): Daemon[] {
    const withoutKeystone = (name: DaemonName) => name !== 'keystone' && name !== 'cinder-api-keystone';
    return DAEMON_NAMES.filter((name) => this.keystone !== undefined || withoutKeystone(name)).map((name) =>
      this.daemon(name),
    );
  }

  /** Brings every daemon back to work, whatever a test did to it. */
  async mend(): Promise<void> {
    const mend = async (daemon: Daemon) => (daemon.isFrozen ? daemon.thaw() : daemon.start());
    // Side by side those that do not need each other.
    const needed: readonly DaemonName[] = ['mon', 'mariadb', 'epmd'];
    const serving: readonly DaemonName[] = ['mgr', 'osd', 'rabbitmq'];
    const groups = [needed, serving, DAEMON_NAMES.filter((name) => !needed.includes(name) && !serving.includes(name))];
    for (const names of groups) {
      await Promise.all(this.daemons.filter(({ name }) => names.some((one) => one === name)).map(mend));
    }
  }

  /** Sets the pace of the monitor, at once and for its next start. */
  async setMonitor(pace: MonitorPace): Promise<void> {
    await this.#parts.ceph.setPace(pace);
  }

  /** What an option of the monitor is now, by the monitor's own word; a number. */
  async monitorOption(name: string): Promise<number> {
    return this.#parts.ceph.monitorOption(name);
  }

  /** Seconds for which tokens are good that are issued from now on; restarts Keystone. */
  async setTokenLifetime(seconds: number): Promise<void> {
    this.#parts.keystone.setTokenLifetime(seconds);
    await this.daemon('keystone').restart();
  }

  /** Runs `rbd` with the administrator's key and answers what it printed. */
  async rbd(args: readonly string[]): Promise<string> {
    return this.#parts.ceph.rbd(args);
  }

  /** What is in the pool, by Ceph's own word: images, their snapshots, and the trash. */
  async rbdSnapshots(): Promise<PoolContent> {
    return this.#parts.ceph.poolContent();
  }

  /** A snapshot as QEMU's programs read it; the user's own ceph.conf is not asked. */
  snapshotImage(volumeId: string, snapshotId: string): string {
    return `${this.#image(volumeId)}@snapshot-${snapshotId}:${this.#access}`;
  }

  /** Writes a snapshot's content to a raw file, sparse; `rbd export` would read a volume's holes too, and takes ten times as long. */
  async exportVolumeSnapshot(volumeId: string, snapshotId: string, toFile: string): Promise<void> {
    const source = this.snapshotImage(volumeId, snapshotId);
    await runProgram('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', source, toFile]);
  }

  /** One request to Cinder without authentication; `path` is what follows the project id. */
  async request(method: string, path: string, body?: unknown, projectId = this.cinder.projectId) {
    return this.#parts.cinder.request(method, projectId, path, body);
  }

  /** Makes a volume of 1 GiB with an ext4 on it, in which the guest's writer finds its file. */
  async createVolume(name: string, projectId = this.cinder.projectId): Promise<string> {
    const { id } = await this.#parts.cinder.createVolume(projectId, name);
    await this.#writeFileSystem(id);
    return id;
  }

  /** Tells Cinder that a VM has the volume: it is in-use then. `device`: as the guest sees it, /dev/vdc. */
  async attachVolume(
    volumeId: string,
    vmUuid: string,
    device: string,
    projectId = this.cinder.projectId,
  ): Promise<AttachedVolume> {
    return this.#parts.cinder.attach(projectId, volumeId, vmUuid, device);
  }

  /** Takes a volume from the VM that has it, by Cinder's word: it is available then. */
  async detachVolume(volumeId: string, projectId = this.cinder.projectId): Promise<void> {
    await this.#parts.cinder.detach({ id: volumeId, projectId });
  }

  /** Gives an available volume to another project, as its owners would: one offers it, the other takes it. */
  async giveVolume(volumeId: string, fromProjectId: string, toProjectId: string): Promise<void> {
    await this.#parts.cinder.transfer(volumeId, fromProjectId, toProjectId);
  }

  /** Detaches a volume and deletes it with all its snapshots. Nobody may have it open. */
  async removeVolume(volume: AttachedVolume): Promise<void> {
    await this.#parts.cinder.detach(volume);
    await this.#parts.cinder.deleteVolume(volume.projectId, volume.id);
  }

  /** Sets quotas of a project: -1 is none, which is the lab's default. */
  async setQuota(quota: Readonly<Record<string, number>>, projectId = this.cinder.projectId): Promise<void> {
    await this.#parts.cinder.setQuota(projectId, quota);
  }

  /** The variables by which every OpenStack tool finds this Cinder. */
  environment(caller: CinderCaller): Record<string, string> {
    if (caller === 'noauth') {
      return {
        OS_AUTH_TYPE: 'noauth',
        OS_ENDPOINT: this.cinder.endpoint,
        // The name that the command 'cinder' has for it.
        CINDER_ENDPOINT: this.cinder.endpoint,
        OS_PROJECT_ID: this.cinder.projectId,
        OS_USERNAME: this.cinder.userId,
        OS_USER_ID: this.cinder.userId,
      };
    }
    if (this.keystone === undefined) throw new LabError('LAB_NOT_UP', 'This storage was started without Keystone');
    const common = { OS_AUTH_URL: this.keystone.authUrl, OS_REGION_NAME: REGION, OS_IDENTITY_API_VERSION: '3' };
    if (caller === 'application-credential') {
      const { id, secret } = this.#identity.applicationCredential;
      return {
        ...common,
        OS_AUTH_TYPE: 'v3applicationcredential',
        OS_APPLICATION_CREDENTIAL_ID: id,
        OS_APPLICATION_CREDENTIAL_SECRET: secret,
      };
    }
    const user: KeystoneUser = this.#identity[caller];
    return {
      ...common,
      OS_AUTH_TYPE: 'password',
      OS_USERNAME: user.name,
      OS_PASSWORD: user.password,
      OS_PROJECT_NAME: user.projectName,
      OS_USER_DOMAIN_ID: 'default',
      OS_PROJECT_DOMAIN_ID: 'default',
    };
  }

  /** Runs the command `cinder` (which takes no application credential) as an OpenStack administrator would, whatever its exit code. */
  async cinderCommand(
    args: readonly string[],
    caller: Exclude<CinderCaller, 'application-credential'> = 'noauth',
  ): Promise<ProgramResult> {
    const variables = Object.entries(this.environment(caller)).map(([key, value]) => `${key}=${value}`);
    const anyExitCode = Array.from({ length: 256 }, (_, code) => code);
    // Nothing of the caller's own cloud may leak into it.
    const clean = ['-i', 'PATH=/usr/bin:/bin', 'LC_ALL=C.UTF-8', `HOME=${this.folder}`, ...variables];
    return runProgram('env', [...clean, 'cinder', '--os-volume-api-version', '3.70', ...args], { accept: anyExitCode });
  }

  /** Ends every process and removes the folder. */
  async stop(): Promise<void> {
    await endStorage(this.folder);
  }

  #image(volumeId: string): string {
    return `rbd:${POOL}/volume-${volumeId}`;
  }

  get #access(): string {
    return `id=${CEPH_USER}:conf=${this.cephConf}`;
  }

  async #writeFileSystem(volumeId: string): Promise<void> {
    const source = await this.#fileSystem();
    const target = `${this.#image(volumeId)}:${this.#access}`;
    await runProgram('qemu-img', ['convert', '-n', '--target-is-zero', '-f', 'raw', '-O', 'raw', source, target]);
  }

  /** A file of 1 GiB with the file system that every volume gets. */
  async #fileSystem(): Promise<string> {
    const file = join(this.folder, 'ext4.raw');
    if (existsSync(file)) return file;
    const content = join(this.folder, `ext4-content-${randomUUID()}`);
    await mkdir(join(content, 'writer'), { recursive: true });
    writeFileSync(join(content, 'writer', 'number'), `${'0'.repeat(10)}\n`);
    // Few inodes and a small journal: less to write, and less to read at every check.
    const layout = ['-q', '-F', '-t', 'ext4', '-N', '2048', '-J', 'size=8', '-L', 'ceph', '-d', content];
    await runProgram('mke2fs', [...layout, `${content}.raw`, '1024M']);
    renameSync(`${content}.raw`, file);
    await rm(content, { recursive: true, force: true });
    return file;
  }
}

/** Keystone, as one who uses it sees it. */
export interface StorageKeystone extends Identity {
  /** Ends with /v3. */
  readonly authUrl: string;
  /** The Cinder that the catalogue names, without a project id; ends with /v3. */
  readonly cinderEndpoint: string;
  readonly region: string;
}
