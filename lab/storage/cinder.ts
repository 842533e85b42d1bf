import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { LabError } from '../errors.js';
import { CEPH_USER, POOL } from './ceph.js';
import { Daemon } from './daemon.js';
import type { Database } from './database.js';

export interface CinderPorts {
  readonly cinder: number;
  readonly rabbitmq: number;
}

/** A volume as Cinder's API shows it; what the lab does not read is left out. */
export interface CinderVolume {
  readonly id: string;
  readonly status: string;
}

/** A volume and who has it, for the guest that is to use it. */
export interface AttachedVolume {
  readonly id: string;
  readonly projectId: string;
  readonly attachmentId: string;
}

export interface CinderAnswer {
  readonly status: number;
  readonly body: Readonly<Record<string, unknown>>;
}

// The newest of Zed.
const MICROVERSION = 'volume 3.70';
const NOAUTH_USER = 'admin';

/** Cinder's API (without authentication), scheduler and volume service, on the storage's Ceph, database and RabbitMQ. */
export class Cinder {
  readonly daemons: { readonly api: Daemon; readonly scheduler: Daemon; readonly volume: Daemon };
  /** Without a project id. */
  readonly endpoint: string;
  readonly userId = NOAUTH_USER;
  readonly conf: string;
  readonly #folder: string;
  readonly #ports: CinderPorts;
  readonly #database: Database;

  constructor(folder: string, ports: CinderPorts, database: Database) {
    this.#folder = folder;
    this.#ports = ports;
    this.#database = database;
    this.endpoint = `http://127.0.0.1:${ports.cinder}/v3`;
    this.conf = join(folder, 'cinder.conf');
    const worker = (name: string) =>
      new Daemon(name, folder, {
        program: name,
        args: this.programArguments(name),
        before: () => this.#reports(name),
        // The first report comes when it takes its orders, and every later one while it does.
        ready: async (before) => {
          const now = await this.#reports(name);
          return Number(now) > 0 && now !== before;
        },
      });
    this.daemons = {
      api: this.apiDaemon('cinder-api', ports.cinder),
      scheduler: worker('cinder-scheduler'),
      volume: worker('cinder-volume'),
    };
  }

  /** An API server on this Cinder; `further`: a second configuration file, read after the first. */
  apiDaemon(name: string, port: number, further: readonly string[] = []): Daemon {
    return new Daemon(name, this.#folder, {
      program: 'cinder-api',
      args: [...this.programArguments(name), ...further],
      ready: async () =>
        (await fetch(`http://127.0.0.1:${port}/healthcheck`, { signal: AbortSignal.timeout(2_000) })).ok,
    });
  }

  programArguments(name: string): string[] {
    return ['--config-file', this.conf, '--log-file', join(this.#folder, 'logs', `${name}.log`)];
  }

  /** Starts the services and waits until a volume could be made. `ceph`: comes true when Ceph serves, which the volume service alone needs. */
  async start(ceph: Promise<unknown>, signal?: AbortSignal): Promise<void> {
    const { api, scheduler, volume } = this.daemons;
    await Promise.all([api.start(signal), scheduler.start(signal), ceph.then(() => volume.start(signal))]);
    while (!(await this.#hasPool().catch(() => false))) {
      signal?.throwIfAborted();
      await delay(50);
    }
  }

  /** Says whether the scheduler knows where to put a volume. */
  async #hasPool(): Promise<boolean> {
    // Short: a question that RabbitMQ lost is answered after Cinder's own 60 s, and a second one at once.
    const { body } = await this.request('GET', '0', '/scheduler-stats/get_pools', undefined, 5_000);
    return Array.isArray(body.pools) && body.pools.length > 0;
  }

  /** One request as the administrator that everybody is without authentication; `path` is what follows the project id. */
  async request(
    method: string,
    projectId: string,
    path: string,
    body?: unknown,
    timeoutMs = 90_000,
  ): Promise<CinderAnswer> {
    const answer = await fetch(`${this.endpoint}/${projectId}${path}`, {
      method,
      headers: {
        'x-auth-token': `${NOAUTH_USER}:${projectId}`,
        'openstack-api-version': MICROVERSION,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(timeoutMs),
    });
    const text = await answer.text();
    return { status: answer.status, body: text === '' ? {} : (JSON.parse(text) as CinderAnswer['body']) };
  }

  /** Makes a volume and waits until it is available. @throws LabError STORAGE_FAILED. */
  async createVolume(projectId: string, name: string, sizeGib = 1): Promise<CinderVolume> {
    const wanted = { volume: { name, size: sizeGib } };
    const { id } = await this.#demand<CinderVolume>('volume', 'POST', projectId, '/volumes', wanted);
    return this.waitForVolume(projectId, id, 'available');
  }

  async volume(projectId: string, id: string): Promise<CinderVolume | undefined> {
    const { status, body } = await this.request('GET', projectId, `/volumes/${id}`);
    return status === 404 ? undefined : (body.volume as CinderVolume);
  }

  /** Waits for a volume's status. @throws LabError STORAGE_FAILED when it ends in an error or takes longer than 60 s. */
  async waitForVolume(projectId: string, id: string, status: string): Promise<CinderVolume> {
    const deadline = performance.now() + 60_000;
    for (;;) {
      const volume = await this.volume(projectId, id);
      if (volume?.status === status) return volume;
      if (volume === undefined || volume.status.startsWith('error') || performance.now() > deadline) {
        throw new LabError('STORAGE_FAILED', `Volume ${id} is '${volume?.status ?? 'gone'}' and not '${status}'`);
      }
      await delay(30);
    }
  }

  /** Tells Cinder that a VM has the volume, in the three steps in which Nova does: it is in-use then. */
  async attach(projectId: string, volumeId: string, vmUuid: string, device: string): Promise<AttachedVolume> {
    const wanted = { attachment: { volume_uuid: volumeId, instance_uuid: vmUuid } };
    const { id } = await this.#demand<{ id: string }>('attachment', 'POST', projectId, '/attachments', wanted);
    const connector = {
      host: 'lab-host',
      ip: '127.0.0.1',
      initiator: 'iqn.2026-01.lab:host',
      mountpoint: device,
      multipath: false,
      platform: 'x86_64',
      os_type: 'linux',
    };
    await this.#demand('attachment', 'PUT', projectId, `/attachments/${id}`, { attachment: { connector } });
    await this.#demand(undefined, 'POST', projectId, `/attachments/${id}/action`, { 'os-complete': {} });
    await this.waitForVolume(projectId, volumeId, 'in-use');
    return { id: volumeId, projectId, attachmentId: id };
  }

  /**
   * Takes a volume from its VM, as an administrator does by force: to delete an attachment with an instance Cinder first asks a
   * Nova whether that one agrees (CVE-2023-2088), and there is none.
   */
  async detach({ projectId, id }: Pick<AttachedVolume, 'projectId' | 'id'>): Promise<void> {
    const free = { 'os-reset_status': { status: 'available', attach_status: 'detached' } };
    const { status } = await this.request('POST', projectId, `/volumes/${id}/action`, free);
    if (status !== 202 && status !== 404) {
      throw new LabError('STORAGE_FAILED', `Volume ${id} was not detached: Cinder answered ${status}`);
    }
  }

  /** Gives an available volume from one project to another. */
  async transfer(id: string, fromProjectId: string, toProjectId: string): Promise<void> {
    interface Transfer {
      readonly id: string;
      readonly auth_key: string;
    }
    const offer = { transfer: { volume_id: id, name: id } };
    const offered = await this.#demand<Transfer>('transfer', 'POST', fromProjectId, '/os-volume-transfer', offer);
    const accept = { accept: { auth_key: offered.auth_key } };
    await this.#demand('transfer', 'POST', toProjectId, `/os-volume-transfer/${offered.id}/accept`, accept);
  }

  /** Deletes a volume with its snapshots, and waits until Cinder knows it no more. */
  async deleteVolume(projectId: string, id: string): Promise<void> {
    const { status } = await this.request('DELETE', projectId, `/volumes/${id}?cascade=true`);
    if (status !== 202 && status !== 404) {
      throw new LabError('STORAGE_FAILED', `Volume ${id} was not deleted: Cinder answered ${status}`);
    }
    for (;;) {
      const volume = await this.volume(projectId, id);
      if (volume === undefined) return;
      if (volume.status !== 'deleting') {
        throw new LabError('STORAGE_FAILED', `Volume ${id} is '${volume.status}' and not deleted`);
      }
      await delay(50);
    }
  }

  /** Sets quotas of a project: -1 is none, which is the lab's default for volumes, snapshots and gigabytes. */
  async setQuota(projectId: string, quota: Readonly<Record<string, number>>): Promise<void> {
    await this.#demand('quota_set', 'PUT', projectId, `/os-quota-sets/${projectId}`, { quota_set: quota });
  }

  writeConfiguration(cephConf: string): void {
    const at = (name: string) => join(this.#folder, 'cinder', name);
    mkdirSync(at('lock'), { recursive: true });
    const text = `[DEFAULT]
auth_strategy = noauth
api_paste_config = /etc/cinder/api-paste.ini
state_path = ${at('')}
my_ip = 127.0.0.1
host = lab
transport_url = rabbit://guest:guest@127.0.0.1:${this.#ports.rabbitmq}/
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = ${this.#ports.cinder}
osapi_volume_workers = 1
enabled_backends = ceph
rootwrap_config = /etc/cinder/rootwrap.conf
quota_volumes = -1
quota_snapshots = -1
quota_gigabytes = -1
periodic_fuzzy_delay = 0
backend_stats_polling_interval = 3
# Often, for whoever waits until a service works; and late to be given up, for machines that are busy.
report_interval = 1
service_down_time = 60
[database]
connection = ${this.#database.url('cinder')}
[oslo_concurrency]
lock_path = ${at('lock')}
[oslo_messaging_rabbit]
heartbeat_in_pthread = false
[coordination]
backend_url = file://${at('coordination')}
[ceph]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = ceph
rbd_pool = ${POOL}
rbd_user = ${CEPH_USER}
rbd_ceph_conf = ${cephConf}
rados_connect_timeout = 15
rbd_exclusive_cinder_pool = true
`;
    writeFileSync(this.conf, text, { mode: 0o600 });
  }

  /** How often a service has told the database that it works; empty where it never was there. */
  async #reports(binary: string): Promise<string> {
    return this.#database.query(
      `select report_count from cinder.services where deleted = 0 and \`binary\` = '${binary}'`,
    );
  }

  async #demand<Answer>(
    what: string | undefined,
    method: string,
    projectId: string,
    path: string,
    body: unknown,
  ): Promise<Answer> {
    const answer = await this.request(method, projectId, path, body);
    if (answer.status < 200 || answer.status > 299) {
      const said = JSON.stringify(answer.body).slice(0, 500);
      throw new LabError('STORAGE_FAILED', `Cinder answered ${answer.status} to ${method} ${path}: ${said}`);
    }
    return (what === undefined ? undefined : answer.body[what]) as Answer;
  }
}
