import { Client, Connection, isGrpcServiceError } from '@temporalio/client';
import { loadClientConnectConfig } from '@temporalio/envconfig';
import { NativeConnection, type NativeConnectionOptions } from '@temporalio/worker';

import { reasonOf, TemporalError } from './errors.js';

/** gRPC status NOT_FOUND. */
const grpcNotFound = 5;

/** Where a cluster is, how to talk to it (TLS, API key), and the namespace that Stillpoint lives in. */
export interface TemporalSettings {
  readonly connection: NativeConnectionOptions & { readonly address: string };
  readonly namespace: string;
}

/** The settings of a server without TLS, say the development server. `address` is host:port. */
export function plainSettings(address: string, namespace = 'default'): TemporalSettings {
  return { connection: { address }, namespace };
}

/**
 * The cluster that Temporal's usual environment names: TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_TLS_…,
 * TEMPORAL_API_KEY, or a profile (TEMPORAL_PROFILE) of the file TEMPORAL_CONFIG_FILE or its default place.
 *
 * See https://docs.temporal.io/develop/environment-configuration.
 * @returns undefined when no address is set there
 * @throws TemporalError TEMPORAL_CONFIG_INVALID when the file, the profile or a certificate cannot be read
 */
export function settingsFromEnvironment(env: NodeJS.ProcessEnv): TemporalSettings | undefined {
  try {
    const { connectionOptions, namespace } = loadClientConnectConfig({ overrideEnvVars: definedOnly(env) });
    const { address, ...others } = connectionOptions;
    if (!address) return undefined;
    return { connection: { address, ...others }, namespace: namespace ?? 'default' };
  } catch (error) {
    throw new TemporalError(
      'TEMPORAL_CONFIG_INVALID',
      `Temporal's settings in the environment (TEMPORAL_…) or its configuration file are wrong: ${reasonOf(error)}`,
      error,
    );
  }
}

/** A client, and the connection below it: for the operator service, and to be closed in the end. */
export interface ConnectedClient {
  readonly client: Client;
  readonly connection: Connection;
}

/**
 * Connects a client and sees that the namespace exists.
 *
 * @param connectTimeoutMs default 10 000
 * @throws TemporalError TEMPORAL_UNREACHABLE, TEMPORAL_NAMESPACE_NOT_FOUND
 */
export async function connectClient(settings: TemporalSettings, connectTimeoutMs = 10_000): Promise<ConnectedClient> {
  const connection = await reach(settings, () =>
    Connection.connect({ ...settings.connection, connectTimeout: connectTimeoutMs }),
  );
  try {
    await requireNamespace(connection, settings.namespace);
  } catch (error) {
    await connection.close();
    throw error;
  }
  return { client: new Client({ connection, namespace: settings.namespace }), connection };
}

/** A client that connects with its first call: the engine's API answers also while Temporal is away. Call `requireNamespace` when it is back. */
export function lazyClient(settings: TemporalSettings): ConnectedClient {
  const connection = Connection.lazy({ ...settings.connection });
  return { client: new Client({ connection, namespace: settings.namespace }), connection };
}

/**
 * Connects what a Worker needs. Install the runtime first (`runtime.ts`): the first connection fixes it.
 *
 * @throws TemporalError TEMPORAL_UNREACHABLE
 */
export function connectWorker(settings: TemporalSettings): Promise<NativeConnection> {
  return reach(settings, () => NativeConnection.connect({ ...settings.connection }));
}

async function reach<T>(settings: TemporalSettings, connect: () => Promise<T>): Promise<T> {
  try {
    return await connect();
  } catch (error) {
    throw new TemporalError(
      'TEMPORAL_UNREACHABLE',
      `Temporal does not answer at ${settings.connection.address} (${reasonOf(error)}). ` +
        'See that the cluster runs and that TEMPORAL_ADDRESS and the TLS settings are right.',
      error,
    );
  }
}

/**
 * Sees that the namespace exists.
 *
 * @returns its id, which no other namespace of any cluster has; undefined where the cluster forbids the question
 * @throws TemporalError TEMPORAL_NAMESPACE_NOT_FOUND
 */
export async function requireNamespace(connection: Connection, namespace: string): Promise<string | undefined> {
  try {
    const { namespaceInfo } = await connection.workflowService.describeNamespace({ namespace });
    return namespaceInfo?.id || undefined;
  } catch (error) {
    // A cluster may forbid this question and still let us work, so only a clear 'no' counts.
    if (!isGrpcServiceError(error) || (error.code as number) !== grpcNotFound) return undefined;
    throw new TemporalError(
      'TEMPORAL_NAMESPACE_NOT_FOUND',
      `The Temporal cluster has no namespace '${namespace}'. Set TEMPORAL_NAMESPACE, or create it: ` +
        `temporal operator namespace create --namespace ${namespace}`,
      error,
    );
  }
}

function definedOnly(env: NodeJS.ProcessEnv): Record<string, string> {
  const defined: Record<string, string> = {};
  for (const [name, value] of Object.entries(env)) {
    if (value !== undefined) defined[name] = value;
  }
  return defined;
}
