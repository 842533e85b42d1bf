import { chmod, rm } from 'node:fs/promises';
import { Server, ServerCredentials, type ServerOptions } from '@grpc/grpc-js';
import {
  type HostAgentAdminServer,
  HostAgentAdminService,
  type HostAgentServer,
  HostAgentService,
} from '@stillpoint/proto';
import type { Logger } from 'pino';
import { onlyTheEngine } from './identity.js';

/** Fully qualified name of the service, for gRPC health. */
export const hostAgentServiceName = 'stillpoint.host.v1.HostAgent';

/** PEM texts of a server that only the engine may call; `insecure` for loopback. */
export type Transport = { ca: Buffer; certificate: Buffer; key: Buffer } | 'insecure';

export interface KeepaliveSettings {
  /** ms without a sign of life after which the peer is pinged; default 1 000. */
  keepaliveTimeMs?: number;
  /** ms after which a peer that does not answer the ping is given up, and every stream of it is broken; default 2 000. */
  keepaliveTimeoutMs?: number;
}

/** A gRPC server that listens. */
export interface Listening {
  /** As bound: with the port that the system chose for port 0. */
  readonly address: string;
  setHealth(serving: boolean): void;
  /** Refuses new calls, gives the open ones `graceMs`, then ends them. */
  stop(graceMs: number): Promise<void>;
}

/** Serves the engine at `listen` (`host:port`). Rejects when the address cannot be bound. */
export async function serveEngine(options: {
  listen: string;
  transport: Transport;
  hostAgent: HostAgentServer;
  log: Logger;
  keepalive?: KeepaliveSettings;
}): Promise<Listening> {
  const secure = options.transport !== 'insecure';
  const server = new Server({
    ...serverOptions(options.keepalive ?? {}),
    ...(secure ? { interceptors: [onlyTheEngine(options.log)] } : {}),
  });
  server.addService(HostAgentService, options.hostAgent);
  const setHealth = await addHealth(server);
  const port = await bind(server, options.listen, credentialsOf(options.transport));
  const host = options.listen.slice(0, options.listen.lastIndexOf(':'));
  return { address: `${host}:${port}`, setHealth, stop: (graceMs) => stop(server, graceMs) };
}

/**
 * Serves the administrator's command line on a unix socket: root's alone by the folder's mode and its own. The caller holds the state folder, so that a
 * socket found there is a dead process's.
 */
export async function serveAdministrator(options: {
  socketPath: string;
  hostAgent: HostAgentServer;
  admin: HostAgentAdminServer;
}): Promise<Listening> {
  await rm(options.socketPath, { force: true });
  const server = new Server(serverOptions({}));
  server.addService(HostAgentService, options.hostAgent);
  server.addService(HostAgentAdminService, options.admin);
  await bind(server, `unix:${options.socketPath}`, ServerCredentials.createInsecure());
  await chmod(options.socketPath, 0o600);
  return { address: options.socketPath, setHealth: () => {}, stop: (graceMs) => stop(server, graceMs) };
}

function serverOptions({ keepaliveTimeMs = 1_000, keepaliveTimeoutMs = 2_000 }: KeepaliveSettings): ServerOptions {
  return {
    // A hung or cut-off engine is given up after both together, which with the thaw must stay below 5 s. grpc-js's server sets no limit on a client's
    // own pings, so that the engine may do the same in the other direction.
    'grpc.keepalive_time_ms': keepaliveTimeMs,
    'grpc.keepalive_timeout_ms': keepaliveTimeoutMs,
    // The largest request, a deletion with all its overlays, has some ten kilobytes.
    'grpc.max_receive_message_length': 1024 * 1024,
    'grpc.max_concurrent_streams': 256,
  };
}

function credentialsOf(transport: Transport): ServerCredentials {
  if (transport === 'insecure') return ServerCredentials.createInsecure();
  return ServerCredentials.createSsl(
    transport.ca,
    [{ private_key: transport.key, cert_chain: transport.certificate }],
    true,
  );
}

function bind(server: Server, address: string, credentials: ServerCredentials): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (error, port) => {
      if (error === null) return resolve(port);
      // Binding is tried again for as long as the port is taken, and grpc-js keeps every server that was not shut down.
      server.forceShutdown();
      reject(error);
    });
  });
}

/** Loaded late: it parses a .proto file, and nothing that a thaw needs waits for it. */
async function addHealth(server: Server): Promise<(serving: boolean) => void> {
  const { HealthImplementation } = await import('grpc-health-check');
  const health = new HealthImplementation({ '': 'SERVING', [hostAgentServiceName]: 'SERVING' });
  health.addToServer(server);
  return (serving) => {
    health.setStatus('', serving ? 'SERVING' : 'NOT_SERVING');
    health.setStatus(hostAgentServiceName, serving ? 'SERVING' : 'NOT_SERVING');
  };
}

async function stop(server: Server, graceMs: number): Promise<void> {
  let grace: NodeJS.Timeout | undefined;
  await new Promise<void>((resolve) => {
    server.tryShutdown(() => resolve());
    grace = setTimeout(() => {
      server.forceShutdown();
      resolve();
    }, graceMs);
  });
  clearTimeout(grace);
}
