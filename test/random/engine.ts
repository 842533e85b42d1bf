import type { ActivityDeps, ActivitySettings, Cloud } from '@stillpoint/engine/activities/deps.js';
import { runsOf } from '@stillpoint/engine/activities/runs.js';
import { createWorker } from '@stillpoint/engine/activities/worker.js';
import type { Catalogue } from '@stillpoint/engine/catalogue/catalogue.js';
import { CatalogueError } from '@stillpoint/engine/catalogue/errors.js';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import type { CloudSettings } from '@stillpoint/engine/cinder/cloud.js';
import { credentialsFrom } from '@stillpoint/engine/hosts/credentials.js';
import { HostPool } from '@stillpoint/engine/hosts/pool.js';
import { connectWorker } from '@stillpoint/engine/temporal/connection.js';
import type { Client } from '@temporalio/client';
import type { NativeConnection, Worker } from '@temporalio/worker';
import type { Logger } from 'pino';
import { Tunnel } from './tunnel.js';

/** Cinder's times as the engine is told of them, shortened; the stand-in's own are shorter still. */
const cloudRules: Omit<Cloud, 'cinder'> = {
  pools: ['volumes'],
  checkAttachment: true,
  snapshotsCountGigabytes: true,
  undoWaitMs: 500,
  giveUpCreatingMs: 1_500,
  windowRequestTimeoutMs: 1_500,
  rpcTimeoutMs: 1_500,
};
const activitySettings: ActivitySettings = { windowSlots: 3, slotPollMs: 50, hostPollMs: 50, hostPatienceMs: 1_500 };

/** What all engines of an installation share. */
export interface Shared {
  catalogue: Catalogue;
  catalogueIsDown(): boolean;
  /** Told of each call of the catalogue's, before it is made. */
  onCatalogueCall(method: string, args: readonly unknown[]): void;
  cloud: CloudSettings;
  client: Client;
  temporal: { address: string; namespace: string };
  taskQueue: string;
  bundlePath: string;
  installationId: string;
  log: Logger;
}

/**
 * An engine: the Temporal worker with the real activities, its connections to the hosts and to Temporal each through a tunnel. In this process it can be killed as
 * a process is: from one moment on nothing that it does has an effect, and nobody is told.
 */
export class RandomEngine {
  readonly #shared: Shared;
  readonly #temporal: Tunnel;
  readonly #tunnels = new Map<string, Promise<Tunnel>>();
  #connection!: NativeConnection;
  #hosts!: HostPool;
  #cinder!: CinderClient;
  #worker!: Worker;
  #running: Promise<void> = Promise.resolve();
  #isDead = false;
  #bury: (reason: Error) => void = () => {};
  readonly #buried: Promise<never>;

  static async start(shared: Shared): Promise<RandomEngine> {
    const engine = new RandomEngine(shared, await Tunnel.to(shared.temporal.address));
    await engine.#start();
    return engine;
  }

  private constructor(shared: Shared, temporal: Tunnel) {
    this.#shared = shared;
    this.#temporal = temporal;
    this.#buried = new Promise((_, reject) => {
      this.#bury = reject;
    });
    this.#buried.catch(() => {});
  }

  get isDead(): boolean {
    return this.#isDead;
  }

  /** Its connections to the hosts, as its API would use them. */
  get hosts(): HostPool {
    return this.#hosts;
  }

  /** kill -9. `close` must follow. */
  kill(): void {
    this.#isDead = true;
    this.#temporal.refuse();
    for (const tunnel of this.#tunnels.values()) void tunnel.then((open) => open.refuse());
  }

  /** Nothing of Temporal's arrives, for so long. */
  cutOffFromTemporal(): () => void {
    this.#temporal.refuse();
    return () => {
      if (!this.#isDead) this.#temporal.open();
    };
  }

  /** To a host. */
  async tunnelTo(address: string): Promise<Tunnel> {
    let tunnel = this.#tunnels.get(address);
    if (tunnel === undefined) {
      tunnel = Tunnel.to(address);
      this.#tunnels.set(address, tunnel);
    }
    const open = await tunnel;
    if (this.#isDead) open.refuse();
    return open;
  }

  /** A host that is gone: its tunnel is closed. */
  async forget(address: string): Promise<void> {
    const tunnel = this.#tunnels.get(address);
    this.#tunnels.delete(address);
    await (await tunnel)?.close();
  }

  /** SIGTERM, as far as it is not dead. */
  async close(): Promise<void> {
    // A killed one has to end in this process all the same; what it says to Temporal now is of no run any more.
    this.#temporal.open();
    this.#bury(new Error('This engine was killed.'));
    try {
      if (this.#worker.getState() === 'RUNNING') this.#worker.shutdown();
      await this.#running;
    } finally {
      await this.#hosts.close();
      await this.#cinder.close();
      await this.#connection.close();
      for (const tunnel of this.#tunnels.values()) await (await tunnel).close();
      await this.#temporal.close();
    }
  }

  async #start(): Promise<void> {
    const { catalogue, cloud, client, temporal, taskQueue, bundlePath, installationId, log } = this.#shared;
    const registry = {
      listHosts: async () => {
        const hosts = await catalogue.listHosts();
        return Promise.all(
          hosts.map(async (host) =>
            host.state === 'lost' ? host : { ...host, address: (await this.tunnelTo(host.address)).address },
          ),
        );
      },
    };
    this.#hosts = await HostPool.open(registry, await credentialsFrom({ plain: true }));
    this.#cinder = new CinderClient(cloud, { requestTimeoutMs: 2_000 });
    this.#connection = await connectWorker({
      connection: { address: this.#temporal.address },
      namespace: temporal.namespace,
    });
    const deps: ActivityDeps = {
      catalogue: this.#mortal(this.#catalogueSeen()),
      hosts: this.#mortalHosts(),
      cloud: { ...cloudRules, cinder: this.#mortal(this.#cinder) },
      runs: this.#mortal(runsOf(client)),
      log,
      installationId,
      settings: activitySettings,
    };
    this.#worker = await createWorker({
      connection: this.#connection,
      namespace: temporal.namespace,
      taskQueue,
      bundlePath,
      shutdownGraceMs: 200,
      deps,
    });
    this.#running = this.#worker.run();
    this.#running.catch(() => {});
  }

  #catalogueSeen(): Catalogue {
    const { catalogue, catalogueIsDown, onCatalogueCall } = this.#shared;
    return watched(catalogue, (method, args) => {
      onCatalogueCall(method, args);
      if (catalogueIsDown()) throw new CatalogueError('CATALOGUE_UNAVAILABLE', 'The catalogue is down.');
    });
  }

  #mortalHosts(): HostPool {
    const hosts = this.#hosts;
    return new Proxy(hosts, {
      get: (_, name) => (name === 'host' ? (of: string) => this.#mortal(hosts.host(of)) : bound(hosts, name)),
    });
  }

  /** What a killed engine asks for is not asked, and what it is answered it never hears. */
  #mortal<T extends object>(whole: T): T {
    return new Proxy(whole, {
      get: (_, name) => {
        const method = bound(whole, name);
        if (typeof method !== 'function') return method;
        return async (...args: unknown[]) => {
          if (this.#isDead) return await this.#buried;
          try {
            const answer: unknown = await method(...args);
            return this.#isDead ? await this.#buried : answer;
          } catch (error) {
            if (this.#isDead) return await this.#buried;
            throw error;
          }
        };
      },
    });
  }
}

function watched<T extends object>(whole: T, before: (method: string, args: readonly unknown[]) => void): T {
  return new Proxy(whole, {
    get: (_, name) => {
      const method = bound(whole, name);
      if (typeof method !== 'function') return method;
      return async (...args: unknown[]) => {
        before(String(name), args);
        return await method(...args);
      };
    },
  });
}

function bound(whole: object, name: string | symbol): unknown {
  const value: unknown = Reflect.get(whole, name);
  return typeof value === 'function' ? value.bind(whole) : value;
}
