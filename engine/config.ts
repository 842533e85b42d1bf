import { readFileSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { parse as parseYaml } from 'yaml';
import { z } from 'zod';

import { readDatabaseUrl } from './catalogue/database-url.js';
import type { Security } from './hosts/credentials.js';

/** Where the configuration lies unless --config or STILLPOINT_ENGINE_CONFIG says otherwise. */
export const defaultConfigPath = '/etc/stillpoint/engine.yaml';

/** Every key's variable is this and the key's words: stateFolder -> STILLPOINT_ENGINE_STATE_FOLDER, hosts.tls.ca -> STILLPOINT_ENGINE_HOSTS_TLS_CA. */
const variablePrefix = 'STILLPOINT_ENGINE_';
const pathVariable = `${variablePrefix}CONFIG`;

const absolutePath = z.string().refine((path) => isAbsolute(path) && !path.includes('\0'), 'must be an absolute path');

const defaultTls = {
  ca: '/etc/stillpoint/tls/ca.pem',
  certificate: '/etc/stillpoint/tls/engine.pem',
  key: '/etc/stillpoint/tls/engine-key.pem',
};

const schema = z
  .strictObject({
    /** Address and port of the REST API. */
    listen: z
      .string()
      .regex(
        /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]):\d{1,5}$/,
        'must be ADDRESS:PORT on this machine only (127.0.0.1, [::1] or localhost): the API knows no authentication, and whoever reaches it freezes and thaws guests',
      )
      .refine((listen) => Number(portOf(listen)) <= 65_535, 'must have a port up to 65535')
      .default('127.0.0.1:8700'),
    /** The embedded catalogue, and its lock file. */
    stateFolder: absolutePath.default('/var/lib/stillpoint/engine'),
    /** The catalogue in a PostgreSQL that several engines share, instead of the embedded one. */
    database: z
      .strictObject({
        /** Where it is, without a password; what it leaves out PGHOST, PGPORT, PGUSER, PGDATABASE say. */
        url: z.string().transform((url, context) => {
          try {
            return readDatabaseUrl(url);
          } catch (error) {
            context.addIssue((error as Error).message);
            return z.NEVER;
          }
        }),
        /** Holds the password and nothing else. Default: PGPASSWORD, PGPASSFILE. */
        passwordFile: absolutePath.exactOptional(),
        /** PEM file of those who may sign the server's certificate. Default: the authorities that Node knows. */
        ca: absolutePath.exactOptional(),
        /** Without TLS to another machine; on this one there is none unless `ca` is set. */
        plain: z.boolean().default(false),
      })
      .refine((database) => !(database.plain && database.ca), 'has both ca and plain: choose one')
      .exactOptional(),
    /** The REST API, the Temporal worker, or both. */
    role: z.enum(['all', 'api', 'worker']).default('all'),
    /** How the host agents are talked to. */
    hosts: z
      .strictObject({
        /** PEM files, as `stillpoint-host-agent certs` makes them. */
        tls: z
          .strictObject({
            ca: absolutePath.default(defaultTls.ca),
            certificate: absolutePath.default(defaultTls.certificate),
            key: absolutePath.default(defaultTls.key),
          })
          .exactOptional(),
        /** Without TLS: only for host agents on this machine. */
        plain: z.boolean().default(false),
      })
      .refine((hosts) => !(hosts.plain && hosts.tls), 'has both tls and plain: choose one')
      .prefault({}),
    /** What is to be known of the cloud beside clouds.yaml and the variables OS_…; without a cloud only local disks are snapshotted. */
    openstack: z
      .strictObject({
        /** A name in clouds.yaml. Default: OS_CLOUD, else the variables OS_…. */
        cloud: z.string().min(1).max(255).exactOptional(),
        /** The Ceph pools in which the volumes' images may be. */
        pools: z.array(z.string().min(1).max(255)).min(1).default(['volumes']),
        /** Whether an attachment of the volume must name the VM's UUID; false for managers that leave instance_uuid empty. */
        checkAttachment: z.boolean().default(true),
        /** Whether snapshots count against the project's gigabytes; false where Cinder has `no_snapshot_gb_quota`. */
        snapshotsCountGigabytes: z.boolean().default(true),
        /** How long an undo waits for a snapshot that is still `creating`, ms. */
        undoWaitMs: z.number().int().min(0).max(3_600_000).default(60_000),
        /** How long after its creation a snapshot in `creating` is taken for dead and may be called `error`, ms. */
        giveUpCreatingMs: z.number().int().min(60_000).max(86_400_000).default(600_000),
        /** How long an answer of Cinder or Keystone may take outside a window, ms. */
        requestTimeoutMs: z.number().int().min(1_000).max(90_000).default(30_000),
        /** The same inside a window, while the guest is frozen, ms. At most so long that a cut ends by itself before its step times out (workflows/steps.ts). */
        windowRequestTimeoutMs: z.number().int().min(500).max(30_000).default(8_000),
        /** Cinder's own timeout (`rpc_response_timeout`): a request without an answer can have no effect any more when it has passed, ms. */
        rpcTimeoutMs: z.number().int().min(1_000).max(3_600_000).default(60_000),
      })
      .prefault({}),
    /** How many windows may be open at once in the installation. */
    windowSlots: z.number().int().min(1).max(64).default(4),
    /** How often the installation's schedule looks for what no run could clean up, and repairs what is unambiguous, ms. */
    reconcileEveryMs: z.number().int().min(60_000).max(2_592_000_000).default(3_600_000),
    logLevel: z.enum(['debug', 'info', 'warn', 'error']).default('info'),
  })
  .refine((engine) => engine.role !== 'api' || engine.database, {
    path: ['role'],
    message: 'can be api only with a database: no worker could share the embedded catalogue with it',
  })
  .transform(({ hosts, ...others }) => {
    const security: Security = hosts.plain ? { plain: true } : { tls: hosts.tls ?? defaultTls };
    return { ...others, hosts: security };
  });

/** The engine's configuration, checked and complete. Where Temporal is, its own environment says (TEMPORAL_ADDRESS and the profiles). */
export type EngineConfig = z.infer<typeof schema>;

/** Thrown when the configuration cannot be used: the text names the file or variable, the key and what it must be. `cause` is the parser's error. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

/**
 * Reads the configuration: the file (a missing one at the default place means all defaults), and over it every variable `STILLPOINT_ENGINE_…`.
 * Unknown keys and variables are errors, so that a mistyped one is never silently a default. Errors: ConfigError.
 */
export function readConfig(options: { path?: string; env?: NodeJS.ProcessEnv } = {}): EngineConfig {
  const env = options.env ?? process.env;
  const askedFor = options.path ?? env[pathVariable];
  const path = askedFor ?? defaultConfigPath;
  const merged = withVariables(readFile(path, askedFor !== undefined), env);
  const parsed = schema.safeParse(merged.value);
  if (parsed.success) return parsed.data;
  throw new ConfigError(
    parsed.error.issues
      .map((issue) => {
        const key = issue.path.join('.');
        return `${merged.variables.get(key) ?? path}: ${key === '' ? '' : `${key} `}${issue.message}`;
      })
      .join('\n'),
    { cause: parsed.error },
  );
}

/** Host and port of a `listen` address, an IPv6 address without its brackets. */
export function hostAndPort(listen: string): { host: string; port: number } {
  const host = listen.slice(0, listen.lastIndexOf(':')).replace(/^\[(.*)\]$/, '$1');
  return { host, port: Number(portOf(listen)) };
}

function portOf(listen: string): string {
  return listen.slice(listen.lastIndexOf(':') + 1);
}

function readFile(path: string, mustExist: boolean): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    if (!mustExist && (cause as NodeJS.ErrnoException).code === 'ENOENT') return {};
    throw new ConfigError(`${path} cannot be read: ${(cause as Error).message}`, { cause });
  }
  let value: unknown;
  try {
    value = parseYaml(text) ?? {};
  } catch (cause) {
    throw new ConfigError(`${path} is no valid YAML: ${(cause as Error).message}`, { cause });
  }
  if (!isObject(value)) throw new ConfigError(`${path}: must hold keys and values.`);
  return value;
}

function withVariables(
  file: Record<string, unknown>,
  env: NodeJS.ProcessEnv,
): { value: Record<string, unknown>; variables: Map<string, string> } {
  const value = structuredClone(file);
  /** Which variable gave a key: for the error's text. */
  const variables = new Map<string, string>();
  const leaves = new Map(leavesOf(schema.in, []).map((leaf) => [variableOf(leaf.key), leaf]));
  for (const [variable, text] of Object.entries(env)) {
    if (!variable.startsWith(variablePrefix) || variable === pathVariable || text === undefined) continue;
    const leaf = leaves.get(variable);
    if (leaf === undefined) throw new ConfigError(`${variable}: no key of the engine's configuration has this name.`);
    put(value, leaf.key, leaf.isText ? text : yamlOr(text));
    variables.set(leaf.key.join('.'), variable);
  }
  return { value, variables };
}

function variableOf(key: string[]): string {
  return variablePrefix + key.map((word) => word.replace(/[A-Z]/g, (capital) => `_${capital}`).toUpperCase()).join('_');
}

/** Every key that has no keys below it. Texts stay texts; the others are read as YAML reads them (numbers, true). */
function leavesOf(type: z.core.$ZodType, key: string[]): { key: string[]; isText: boolean }[] {
  if (type instanceof z.ZodDefault || type instanceof z.ZodPrefault || type instanceof z.ZodExactOptional) {
    return leavesOf(type.def.innerType, key);
  }
  if (type instanceof z.ZodObject) {
    return Object.entries(type.shape).flatMap(([word, below]) => leavesOf(below as z.core.$ZodType, [...key, word]));
  }
  return [{ key, isText: type instanceof z.ZodString || type instanceof z.ZodEnum }];
}

function yamlOr(text: string): unknown {
  try {
    return parseYaml(text);
  } catch {
    return text;
  }
}

function put(value: Record<string, unknown>, key: string[], leaf: unknown): void {
  let object = value;
  for (const word of key.slice(0, -1)) {
    const below = object[word];
    const next = isObject(below) ? below : {};
    object[word] = next;
    object = next;
  }
  object[key.at(-1) ?? ''] = leaf;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
