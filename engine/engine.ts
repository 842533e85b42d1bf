import { searchAttributes } from '@stillpoint/workflows';
import { defineSearchAttributeKey } from '@temporalio/common';
import type { Worker } from '@temporalio/worker';
import type { Logger } from 'pino';

import type { Cloud } from './activities/deps.js';
import { runsOf } from './activities/runs.js';
import { createWorker } from './activities/worker.js';
import { factsOf, type KnownCloud } from './api/cloud-routes.js';
import { RunsUnavailable } from './api/runs.js';
import { type Api, buildApi } from './api/server.js';
import { TemporalRuns } from './api/temporal-runs.js';
import type { Catalogue } from './catalogue/catalogue.js';
import { openCatalogue } from './catalogue/open.js';
import { CinderClient } from './cinder/client.js';
import { CloudError, readCloud } from './cinder/read-cloud.js';
import { type EngineConfig, hostAndPort } from './config.js';
import { credentialsFrom } from './hosts/credentials.js';
import { HostPool } from './hosts/pool.js';
import { type Attached, attach } from './temporal/attach.js';
import { type ConnectedClient, lazyClient, type TemporalSettings } from './temporal/connection.js';
import { keepSchedule, TemporalDoctor } from './temporal/doctor.js';
import { installRuntime } from './temporal/runtime.js';

const searchAttributeKeys = Object.values(searchAttributes).map(({ name, type }) =>
  defineSearchAttributeKey(name, type),
);

/** The engine's own part of an error that ends its start: the text says what to do. */
export class EngineError extends Error {
  override readonly name = 'EngineError';
}

/**
 * The engine: catalogue, hosts, Temporal worker and REST API, as the configuration's role says.
 *
 * The API listens before Temporal answers, because who is frozen must be seen and thawed also then; /readyz says 503 until the worker runs.
 */
export class Engine {
  readonly #log: Logger;
  readonly #catalogue: Catalogue;
  readonly #hosts: HostPool;
  readonly #temporal: ConnectedClient;
  readonly #cloud: ConfiguredCloud | undefined;
  readonly #stopping = new AbortController();
  #api: Api | undefined;
  #working: Promise<void> = Promise.resolve();

  /** Rejects when something ended that must not: the process is to end then, and to be started anew. */
  get failed(): Promise<void> {
    return this.#working;
  }

  /** Errors: CatalogueError, EngineError (certificates, the API's port), those of the file system. Nothing stays open then. */
  static async start(config: EngineConfig, settings: TemporalSettings, log: Logger): Promise<Engine> {
    installRuntime(log);
    const credentialsOf = await credentialsFrom(config.hosts).catch((cause: Error) => {
      throw new EngineError(
        `The certificate for talking to the hosts cannot be read: ${cause.message}. Make it (stillpoint-host-agent certs engine), or set hosts.tls to where it is.`,
        { cause },
      );
    });
    const cloud = configuredCloud(config, log);
    const catalogue = await catalogueOf(config, log);
    const hosts = await HostPool.open(catalogue, credentialsOf).catch(async (error: unknown) => {
      await catalogue.disconnect();
      throw error;
    });
    const engine = new Engine({ catalogue, hosts, cloud, temporal: lazyClient(settings), log });
    try {
      await engine.#start(config, settings);
      return engine;
    } catch (error) {
      await engine.stop();
      throw error;
    }
  }

  private constructor(parts: {
    catalogue: Catalogue;
    hosts: HostPool;
    cloud: ConfiguredCloud | undefined;
    temporal: ConnectedClient;
    log: Logger;
  }) {
    this.#catalogue = parts.catalogue;
    this.#hosts = parts.hosts;
    this.#cloud = parts.cloud;
    this.#temporal = parts.temporal;
    this.#log = parts.log;
  }

  async #start(config: EngineConfig, settings: TemporalSettings): Promise<void> {
    const runs = new AttachedRuns(this.#temporal.client);
    const installationId = await this.#catalogue.installationId();
    if (config.role !== 'worker') {
      this.#api = await buildApi({
        catalogue: this.#catalogue,
        hosts: this.#hosts,
        runs,
        doctor: new TemporalDoctor(this.#temporal.client, installationId),
        cloud: this.#cloud,
        log: this.#log,
      });
      await listen(this.#api, config.listen);
    }
    this.#working = this.#work(config, settings, runs, installationId);
    // Whoever started us asks `failed` later; until then a rejection is not an unhandled one.
    this.#working.catch(() => {});
  }

  async #work(
    config: EngineConfig,
    settings: TemporalSettings,
    runs: AttachedRuns,
    installationId: string,
  ): Promise<void> {
    const { signal } = this.#stopping;
    let attached: Attached;
    try {
      attached = await attach({
        settings,
        connected: this.#temporal,
        searchAttributes: searchAttributeKeys,
        ...(config.database === undefined
          ? {}
          : {
              admit: async (namespaceId) => {
                if (namespaceId !== undefined) await this.#catalogue.bindToTemporal(namespaceId);
                else
                  this.#log.warn(
                    'Temporal does not tell the id of its namespace: nobody sees when engines of two namespaces share this database',
                  );
              },
            }),
        ...(config.role === 'api'
          ? {}
          : {
              makeWorker: (connection) =>
                createWorker({
                  connection,
                  namespace: settings.namespace,
                  deps: {
                    catalogue: this.#catalogue,
                    hosts: this.#hosts,
                    cloud: this.#cloud,
                    runs: runsOf(this.#temporal.client),
                    log: this.#log,
                    installationId,
                    settings: { windowSlots: config.windowSlots },
                  },
                }),
            }),
        log: this.#log,
        signal,
      });
    } catch (error) {
      if (signal.aborted) return;
      throw error;
    }
    try {
      runs.attached = true;
      this.#log.info({ role: config.role, temporal: settings.connection.address }, 'ready');
      if (attached.worker !== undefined) {
        const ended = new AbortController();
        const scheduling = keepSchedule(this.#temporal.client, {
          installationId,
          everyMs: config.reconcileEveryMs,
          log: this.#log,
          signal: AbortSignal.any([signal, ended.signal]),
        });
        await runUntil(signal, attached.worker).finally(() => ended.abort());
        await scheduling;
      }
    } finally {
      await attached.close();
    }
  }

  /** Ends in order: no new requests, then the worker (running steps have 20 s), then hosts, Temporal and the catalogue. */
  async stop(): Promise<void> {
    await this.#api?.close();
    this.#stopping.abort();
    await this.#working.catch((error: unknown) => this.#log.error({ err: error }, 'The worker failed'));
    await this.#hosts.close();
    await this.#cloud?.cinder.close();
    await this.#temporal.connection.close();
    await this.#catalogue.disconnect();
  }
}

/** PostgreSQL's driver is loaded only where it is used. */
async function catalogueOf({ database, stateFolder }: EngineConfig, log: Logger): Promise<Catalogue> {
  if (database === undefined) return openCatalogue(stateFolder);
  const { openPostgres } = await import('./catalogue/postgres.js');
  return openPostgres(database, log);
}

type ConfiguredCloud = Cloud & KnownCloud;

/** The cloud of clouds.yaml or of the variables OS_…; none is no error: then only disks of the hosts are snapshotted. */
function configuredCloud({ openstack }: EngineConfig, log: Logger): ConfiguredCloud | undefined {
  const { cloud: name, requestTimeoutMs, ...rules } = openstack;
  try {
    const settings = readCloud(name === undefined ? {} : { cloud: name });
    if (settings === undefined) {
      log.info('No cloud is configured: Ceph disks are left out of snapshots (docs/openstack.md).');
      return undefined;
    }
    for (const warning of settings.warnings) log.warn({ cloud: settings.source }, warning);
    log.info({ cloud: settings.source }, 'Ceph disks are snapshotted through Cinder');
    return { cinder: new CinderClient(settings, { requestTimeoutMs }), about: factsOf(settings), ...rules };
  } catch (cause) {
    if (!(cause instanceof CloudError)) throw cause;
    throw new EngineError(`The cloud cannot be used: ${cause.message}`, { cause });
  }
}

/** Nothing is started on a cluster that does not know our search attributes yet. */
class AttachedRuns extends TemporalRuns {
  attached = false;

  override async ping(): Promise<void> {
    if (!this.attached) throw new RunsUnavailable('Temporal did not answer yet: see the log.');
    await super.ping();
  }
}

async function runUntil(signal: AbortSignal, worker: Worker): Promise<void> {
  const shutdown = () => worker.shutdown();
  const running = worker.run();
  if (signal.aborted) shutdown();
  else signal.addEventListener('abort', shutdown, { once: true });
  try {
    await running;
  } finally {
    signal.removeEventListener('abort', shutdown);
  }
  if (!signal.aborted) throw new EngineError('The Temporal worker ended by itself.');
}

async function listen(api: Api, address: string): Promise<void> {
  try {
    await api.listen(hostAndPort(address));
  } catch (cause) {
    const inUse = (cause as NodeJS.ErrnoException).code === 'EADDRINUSE';
    throw new EngineError(
      inUse
        ? `Another program listens on ${address}. Stop it, or set listen (STILLPOINT_ENGINE_LISTEN) to another port.`
        : `The API cannot listen on ${address}: ${(cause as Error).message}.`,
      { cause },
    );
  }
}
