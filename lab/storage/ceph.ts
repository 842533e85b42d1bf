import { randomBytes, randomUUID } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { runProgram } from '../programs.js';
import { Daemon } from './daemon.js';

/**
 * How quickly the monitor agrees with itself, which every RBD snapshot waits for: `stock` proposes once a second (Ceph's default),
 * `fast` every 20 ms.
 */
export type MonitorPace = 'stock' | 'fast';

const PACES: Readonly<Record<MonitorPace, Readonly<Record<string, string>>>> = {
  stock: { paxos_propose_interval: '1', paxos_min_wait: '0.05' },
  fast: { paxos_propose_interval: '0.02', paxos_min_wait: '0.005' },
};

/** What is in the pool, by Ceph's own word. */
export interface PoolContent {
  /** `snapshots`: names as RBD has them, `snapshot-<id>` where Cinder made it. */
  readonly images: readonly { readonly name: string; readonly snapshots: readonly string[] }[];
  /** Images that were deleted and wait for something (a clone, a snapshot that nobody knows of). */
  readonly trash: readonly string[];
}

export interface CephPorts {
  readonly monitorV2: number;
  readonly monitorV1: number;
}

export const POOL = 'volumes';
/** The user whose key Cinder and the guests have. */
export const CEPH_USER = 'cinder';

const CAPABILITIES: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'mon.': { mon: 'allow *' },
  'client.admin': { mon: 'allow *', osd: 'allow *', mgr: 'allow *' },
  'mgr.x': { mon: 'allow profile mgr', osd: 'allow *' },
  'osd.0': { mon: 'allow profile osd', mgr: 'allow profile osd', osd: 'allow *' },
  [`client.${CEPH_USER}`]: {
    mon: 'profile rbd',
    osd: `profile rbd pool=${POOL}`,
    mgr: `profile rbd pool=${POOL}`,
  },
};

/** A Ceph of one monitor, one manager and one OSD, for RBD images. */
export class Ceph {
  readonly daemons: { readonly mon: Daemon; readonly mgr: Daemon; readonly osd: Daemon };
  readonly conf: string;
  readonly #folder: string;
  readonly #ports: CephPorts;
  readonly #fsid: string;

  constructor(folder: string, ports: CephPorts, fsid: string) {
    this.#folder = folder;
    this.#ports = ports;
    this.#fsid = fsid;
    this.conf = join(folder, 'ceph.conf');
    const daemon = (name: string, id: string, ready: () => Promise<boolean>) =>
      new Daemon(name, folder, { program: `ceph-${name}`, args: ['-f', '-c', this.conf, '-i', id], ready });
    this.daemons = {
      mon: daemon('mon', 'a', async () => (await this.#ceph<Quorum>(['quorum_status'])).quorum.length === 1),
      mgr: daemon('mgr', 'x', async () => (await this.#ceph<{ available: boolean }>(['mgr', 'stat'])).available),
      // That it is up is the monitor's belief; that it serves is seen when it reads.
      osd: daemon('osd', '0', async () => {
        await this.rbd(['ls', POOL], 3_000);
        return true;
      }),
    };
  }

  /** Makes an empty Ceph and starts it; returns when its pool takes images. Answers the key of client.cinder. */
  async create(signal?: AbortSignal): Promise<string> {
    this.setConfiguredPace('fast');
    const keys = this.#writeKeyrings();
    const osdId = randomUUID();
    for (const name of ['mon', 'mgr', 'osd']) await mkdir(this.#at(name), { recursive: true });
    await runProgram('monmaptool', [
      ...['--create', '--clobber', '--addv', 'a', this.#address, '--fsid', this.#fsid],
      this.#at('monmap'),
    ]);
    const osdMade = runProgram('ceph-osd', [
      ...['-c', this.conf, '-i', '0', '--mkfs', '--osd-uuid', osdId],
      // It need not wait for the monitor, which is made at the same time.
      ...['--no-mon-config', '--monmap', this.#at('monmap')],
    ]);
    const poolMade = this.#createMonitor(osdId, signal);
    await Promise.all([osdMade, poolMade]);
    await Promise.all([
      this.daemons.mgr.start(signal),
      this.daemons.osd.start(signal),
      // Waits by itself until the OSD serves.
      this.rbd(['pool', 'init', POOL], 120_000),
    ]);
    return keys[`client.${CEPH_USER}`] ?? '';
  }

  /** Sets the pace of the monitor, at once (if it runs) and for its next start. */
  async setPace(pace: MonitorPace): Promise<void> {
    this.setConfiguredPace(pace);
    if (this.daemons.mon.pids.length === 0) return;
    for (const [key, value] of Object.entries(PACES[pace]))
      await this.#ceph(['tell', 'mon.a', 'config', 'set', key, value]);
  }

  async monitorOption(name: string): Promise<number> {
    const answer = await this.#ceph<Record<string, string>>(['tell', 'mon.a', 'config', 'get', name]);
    return Number(answer[name]);
  }

  /** Runs `rbd` with the administrator's key and answers what it printed. */
  async rbd(args: readonly string[], timeoutMs = 60_000): Promise<string> {
    return (await runProgram('rbd', ['-c', this.conf, ...args], { timeoutMs })).stdout;
  }

  async poolContent(): Promise<PoolContent> {
    const [list, trash] = await Promise.all([
      this.rbd(['ls', '--long', '--format', 'json', POOL]),
      this.rbd(['trash', 'ls', '--all', '--format', 'json', POOL]),
    ]);
    const snapshots = new Map<string, string[]>();
    for (const { image, snapshot } of JSON.parse(list) as { image: string; snapshot?: string }[]) {
      const known = snapshots.get(image) ?? [];
      snapshots.set(image, snapshot === undefined ? known : [...known, snapshot]);
    }
    return {
      images: [...snapshots].map(([name, names]) => ({ name, snapshots: names })),
      trash: (JSON.parse(trash) as { name: string }[]).map(({ name }) => name),
    };
  }

  /** Writes ceph.conf; running daemons do not read it again. */
  setConfiguredPace(pace: MonitorPace): void {
    writeFileSync(this.conf, this.#configuration(pace));
  }

  async #createMonitor(osdId: string, signal?: AbortSignal): Promise<void> {
    const made = ['--mkfs', '-i', 'a', '--monmap', this.#at('monmap'), '--keyring', this.#at('keyring.all')];
    await runProgram('ceph-mon', ['-c', this.conf, ...made]);
    await this.daemons.mon.start(signal);
    await this.#ceph(['osd', 'new', osdId]);
    await this.#ceph(['osd', 'pool', 'create', POOL, '8', '8']);
  }

  async #ceph<Answer>(args: readonly string[]): Promise<Answer> {
    const all = ['-c', this.conf, '--connect-timeout', '5', '--format', 'json', ...args];
    const { stdout } = await runProgram('ceph', all, { timeoutMs: 30_000 });
    return (stdout.trim() === '' ? undefined : JSON.parse(stdout)) as Answer;
  }

  #writeKeyrings(): Record<string, string> {
    mkdirSync(this.#folder, { recursive: true });
    const keys: Record<string, string> = {};
    let all = '';
    for (const [entity, capabilities] of Object.entries(CAPABILITIES)) {
      const key = makeKey();
      const caps = Object.entries(capabilities).map(([service, cap]) => `\tcaps ${service} = "${cap}"\n`);
      const keyring = `[${entity}]\n\tkey = ${key}\n${caps.join('')}`;
      writeFileSync(this.#at(`keyring.${entity === 'mon.' ? 'mon.a' : entity}`), keyring, { mode: 0o600 });
      all += keyring;
      keys[entity] = key;
    }
    writeFileSync(this.#at('keyring.all'), all, { mode: 0o600 });
    return keys;
  }

  #at(name: string): string {
    return join(this.#folder, 'ceph', name);
  }

  get #address(): string {
    return `[v2:127.0.0.1:${this.#ports.monitorV2},v1:127.0.0.1:${this.#ports.monitorV1}]`;
  }

  #configuration(pace: MonitorPace): string {
    const monitor = Object.entries(PACES[pace]).map(([key, value]) => `${key} = ${value}\n`);
    return `[global]
fsid = ${this.#fsid}
mon_initial_members = a
mon_host = ${this.#address}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = ${this.#at('keyring.$name')}
run_dir = ${this.#at('')}
admin_socket =
log_file = ${join(this.#folder, 'logs')}/$name.log
crash_dir = ${this.#at('crash')}
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
[mon]
# Without it the monitor obeys no 'tell'.
admin_socket = ${this.#at('mon.asok')}
mon_data = ${this.#at('mon')}
mon_data_avail_warn = 2
mon_data_avail_crit = 1
${monitor.join('')}[mgr]
mgr_data = ${this.#at('mgr')}
mgr_initial_modules =
[osd]
osd_data = ${this.#at('osd')}
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_size = 17179869184
bluestore_block_create = true
`;
  }
}

interface Quorum {
  readonly quorum: readonly number[];
}

/** A cephx key: CryptoKey of Ceph's src/auth/Crypto.h (AES, time of creation, 16 bytes), base64. */
function makeKey(): string {
  const header = Buffer.alloc(12);
  header.writeUInt16LE(1, 0);
  header.writeUInt32LE(Math.floor(Date.now() / 1000), 2);
  header.writeUInt16LE(16, 10);
  return Buffer.concat([header, randomBytes(16)]).toString('base64');
}
