import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { adminSocketPath } from './admin-socket.js';
import type { HostAgentConfig } from './config.js';
import { createFreezeRoom } from './freeze/room.js';
import type { Hypervisor } from './hypervisor.js';
import { createLog } from './log.js';
import type { Listening, Transport } from './rpc/server.js';
import { takeStateFolder } from './state-lock.js';
import { version } from './version.js';
import type { FreezeRoom } from './window.js';

/** The host agent in this process, from its recovery on. */
export interface HostAgent {
  /** Thaws what is frozen, journals, ends the calls and the connections. */
  stop(why: string): Promise<void>;
}

/** ms between tries to serve when a port is taken, a certificate is missing or the disk is full. */
const serveAgainMs = 1_000;
/** ms that calls have to end in after the thaws. */
const callGraceMs = 1_000;

/**
 * Starts the host agent: the state folder, libvirt and recovery first, because a guest may be waiting for its thaw; then everything else, which is loaded
 * only then. `stop` aborts when a stop is asked for: it ends a wait for the state folder, and nothing else. What keeps it from serving (no certificate, port taken) keeps no guest from being thawed: it is told, and tried again.
 */
export async function startHostAgent(config: HostAgentConfig, stop: AbortSignal): Promise<HostAgent> {
  const { log, flush, flushNow } = createLog(config.logLevel);
  process.on('uncaughtException', (error, origin) => {
    // What the rooms know may be wrong now. The journal is right: the next worker goes on from there.
    log.fatal({ err: error, origin }, 'the worker ends: an error that nobody expected');
    flushNow();
    process.exit(1);
  });
  process.on('exit', flushNow);

  const folder = config.stateFolder;
  if (!(await takeStateFolder({ folder, log, stop }))) return { stop: flush };
  const stopping = new AbortController();
  const hypervisor = await openHypervisor(config);
  const connected = hypervisor.start(stopping.signal).catch((error: unknown) => {
    if (!stopping.signal.aborted) log.warn({ err: error }, 'no connection to the hypervisor yet');
  });
  const freeze = createFreezeRoom({
    hypervisor,
    folder,
    hostName: config.hostName,
    log: log.child({ room: 'freeze' }),
    settings: {
      windowLimitMs: config.freeze.windowLimitMs,
      windowLimitWindowsMs: config.freeze.windowLimitWindowsMs,
      thawTimeoutS: config.freeze.thawTimeoutS,
      agentTimeoutAfter: config.freeze.agentTimeoutAfterS,
    },
  });
  await freeze.start();
  log.info({ version, sinceStartMs: Math.round(performance.now()), warnings: freeze.warnings() }, 'recovery has begun');

  const serving = serve({ config, hypervisor, freeze, stopping: stopping.signal, log });
  return {
    async stop(why) {
      log.info({ why }, 'stopping: thawing what is frozen');
      stopping.abort();
      void serving.then((opened) => {
        for (const listening of opened) listening.setHealth(false);
      });
      // Calls go on meanwhile: an engine that waits for its verdict gets it.
      await freeze.shutdown();
      await Promise.all((await serving).map((listening) => listening.stop(callGraceMs)));
      await hypervisor.close();
      await connected;
      log.info('stopped');
      await flush();
    },
  };
}

async function openHypervisor(config: HostAgentConfig): Promise<Hypervisor> {
  if (config.hypervisor === 'simulated') {
    const { createSimulatedHypervisor } = await import('./simulated/hypervisor.js');
    const { vms, latencies } = config.simulated;
    return createSimulatedHypervisor({ vms, latencies });
  }
  const { createLibvirtHypervisor } = await import('./libvirt/hypervisor.js');
  const { socket, uri } = config.libvirt;
  return createLibvirtHypervisor({ uri, ...(socket === undefined ? {} : { socketPath: socket }) });
}

/** Serves the engine and the administrator, each as soon as it can be. */
async function serve(deps: {
  config: HostAgentConfig;
  hypervisor: Hypervisor;
  freeze: FreezeRoom;
  stopping: AbortSignal;
  log: Logger;
}): Promise<Listening[]> {
  const { config, log } = deps;
  const services = await untilItCan(deps, () => openServices(deps));
  if (services === undefined) return [];
  const { hostAgent, admin } = services;
  const { serveAdministrator, serveEngine } = await import('./rpc/server.js');

  const administrator = untilItCan(deps, () =>
    serveAdministrator({ socketPath: adminSocketPath(config.stateFolder), hostAgent, admin }),
  );
  const engine = untilItCan(deps, async () =>
    serveEngine({ listen: config.listen, transport: await readTransport(config), hostAgent, log }),
  ).then((listening) => {
    if (listening === undefined) return undefined;
    const { insecure, hostName } = config;
    log.info(
      { listen: listening.address, insecure, hostName, sinceStartMs: Math.round(performance.now()) },
      'listening',
    );
    return listening;
  });
  const opened = await Promise.all([administrator, engine]);
  return opened.filter((listening) => listening !== undefined);
}

/** Tries again every second until it can be done, or the host agent stops (undefined). */
async function untilItCan<Result>(
  { stopping, log }: { stopping: AbortSignal; log: Logger },
  open: () => Promise<Result>,
): Promise<Result | undefined> {
  let told = '';
  while (!stopping.aborted) {
    try {
      return await open();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      // Once for each cause, and not every second.
      if (message !== told) log.error({ err: error }, 'cannot serve yet; trying again every second');
      told = message;
    }
    await delay(serveAgainMs, undefined, { signal: stopping }).catch(() => {});
  }
  return undefined;
}

async function openServices(deps: Parameters<typeof serve>[0]) {
  const { config, hypervisor, freeze, stopping, log } = deps;
  const [{ createSnapshotRoom }, { createServices }] = await Promise.all([
    import('./snapshot/room.js'),
    import('./rpc/service.js'),
  ]);
  const { locations, overlayFolder } = config.disks;
  const snapshot = await createSnapshotRoom({
    hypervisor,
    folder: join(config.stateFolder, 'snapshots'),
    locations,
    settings: { lateSwitchMs: config.snapshot.lateSwitchMs },
    ...(overlayFolder === undefined ? {} : { overlayFolder }),
    log: log.child({ room: 'snapshot' }),
  });
  return createServices({
    hostName: config.hostName,
    hypervisor,
    freeze,
    snapshot,
    recovering: Promise.resolve(),
    stopping,
    log: log.child({ room: 'rpc' }),
  });
}

async function readTransport(config: HostAgentConfig): Promise<Transport> {
  if (config.insecure) return 'insecure';
  const read = async (path: string) => {
    try {
      return await readFile(path);
    } catch (cause) {
      throw new Error(
        `${path} cannot be read. Make the certificates with stillpoint-host-agent certs, or name them under tls: in host-agent.yaml.`,
        { cause },
      );
    }
  };
  const { ca, certificate, key } = config.tls;
  return { ca: await read(ca), certificate: await read(certificate), key: await read(key) };
}
