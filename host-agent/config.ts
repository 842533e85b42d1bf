import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { isAbsolute } from 'node:path';
import { parse as parseYaml } from 'yaml';
import { z } from 'zod';

/** Where the configuration lies unless --config or STILLPOINT_HOST_AGENT_CONFIG says otherwise. */
export const defaultConfigPath = '/etc/stillpoint/host-agent.yaml';

/** Every key's variable is this and the key's words: listen -> STILLPOINT_HOST_AGENT_LISTEN, libvirt.uri -> STILLPOINT_HOST_AGENT_LIBVIRT_URI. */
const variablePrefix = 'STILLPOINT_HOST_AGENT_';
const pathVariable = `${variablePrefix}CONFIG`;

const absolutePath = z.string().refine((path) => isAbsolute(path) && !path.includes('\0'), 'must be an absolute path');
const ms = (least: number, most: number) => z.number().int().min(least).max(most);

const schema = z
  .strictObject({
    /** The name under which an administrator registers this host; its certificate carries it. */
    hostName: z.string().min(1).max(253).default(hostname()),
    /** Address and port of the gRPC server. */
    listen: z
      .string()
      .regex(/^(\[[0-9a-fA-F:]+\]|[^:\s[\]]+):\d{1,5}$/, 'must be ADDRESS:PORT, an IPv6 address in brackets')
      .default('0.0.0.0:8701'),
    /** Serve without TLS; only on a loopback address. */
    insecure: z.boolean().default(false),
    /** PEM files, as `stillpoint-host-agent certs` makes them. */
    tls: z
      .strictObject({
        ca: absolutePath.default('/etc/stillpoint/tls/ca.pem'),
        certificate: absolutePath.default('/etc/stillpoint/tls/host.pem'),
        key: absolutePath.default('/etc/stillpoint/tls/host-key.pem'),
      })
      .prefault({}),
    /** Journal and administrator's socket; root only. */
    stateFolder: absolutePath.default('/var/lib/stillpoint/host-agent'),
    logLevel: z.enum(['debug', 'info', 'warn', 'error']).default('info'),
    hypervisor: z.enum(['libvirt', 'simulated']).default('libvirt'),
    libvirt: z
      .strictObject({
        /** Path of libvirtd's or virtqemud's unix socket; without it the usual ones are tried. */
        socket: absolutePath.exactOptional(),
        uri: z.string().min(1).default('qemu:///system'),
      })
      .prefault({}),
    disks: z
      .strictObject({
        /** Folders and device prefixes in which local disks and overlays may lie; a disk elsewhere is left out. */
        locations: z.array(absolutePath).min(1).default(['/var/lib/libvirt/images', '/var/lib/nova/instances']),
        /** Where the overlays of block devices are made; one of the locations, by default the first folder among them. */
        overlayFolder: absolutePath.exactOptional(),
      })
      .prefault({}),
    freeze: z
      .strictObject({
        /** A guest is thawed after so long, whatever happens, unless the request says otherwise. */
        windowLimitMs: ms(100, 60_000).default(30_000),
        /** The same for Windows, whose VSS gives up at 10 s. */
        windowLimitWindowsMs: ms(100, 60_000).default(8_000),
        /** How long the guest agent may take to thaw: a thaw hook may be slow. */
        thawTimeoutS: z.number().int().min(1).max(600).default(60),
        /** libvirt's guest agent timeout of a domain once we are done with it: libvirt cannot say what it was before. */
        agentTimeoutAfterS: z.union([z.literal('default'), z.number().int().min(1).max(3_600)]).default('default'),
      })
      .prefault({}),
    snapshot: z
      .strictObject({
        /** How long libvirt may still begin a switch to an overlay whose answer was lost: its own wait for a domain's job is 30 s. */
        lateSwitchMs: ms(1_000, 600_000).default(35_000),
      })
      .prefault({}),
    /** With `hypervisor: simulated`: guests in memory. */
    simulated: z
      .strictObject({
        vms: z
          .array(
            z.strictObject({
              name: z.string().min(1),
              uuid: z.uuid().exactOptional(),
              disks: z
                .array(
                  z.strictObject({
                    target: z.string().regex(/^[a-z]{2,4}[a-z0-9]*$/),
                    kind: z.enum(['file', 'block', 'rbd', 'network']).exactOptional(),
                    format: z.enum(['qcow2', 'raw']).exactOptional(),
                    sizeBytes: z.number().int().positive().exactOptional(),
                    serial: z.string().exactOptional(),
                    readOnly: z.boolean().exactOptional(),
                  }),
                )
                .min(1),
              state: z.enum(['running', 'shut-off']).exactOptional(),
              guestAgent: z.enum(['connected', 'disconnected', 'not-configured']).exactOptional(),
            }),
          )
          .default([]),
        /** ms that calls take; by default as measured on the lab. */
        latencies: z
          .strictObject({
            freeze: ms(0, 600_000).exactOptional(),
            thaw: ms(0, 600_000).exactOptional(),
            snapshot: ms(0, 600_000).exactOptional(),
            state: ms(0, 600_000).exactOptional(),
            merge: ms(0, 600_000).exactOptional(),
          })
          .prefault({}),
      })
      .prefault({}),
  })
  .superRefine((config, context) => {
    if (config.insecure && !isLoopback(config.listen)) {
      context.addIssue({
        code: 'custom',
        path: ['insecure'],
        message: `is allowed on a loopback address only, not on ${config.listen}: whoever reaches this port freezes guests`,
      });
    }
  });

/** The host agent's configuration, checked and complete. */
export type HostAgentConfig = z.infer<typeof schema>;

/** Thrown when the configuration cannot be used: the text names the file or variable, the key and what it must be. `cause` is the parser's error. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

/**
 * Reads the configuration: the file (a missing one at the default place means all defaults), and over it every variable `STILLPOINT_HOST_AGENT_…`.
 * Unknown keys and variables are errors, so that a mistyped one is never silently a default. Errors: ConfigError.
 */
export function readConfig(options: { path?: string; env?: NodeJS.ProcessEnv } = {}): HostAgentConfig {
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

/** Whether a `listen` address is reachable from this machine only. */
export function isLoopback(listen: string): boolean {
  const host = listen.slice(0, listen.lastIndexOf(':'));
  return host === 'localhost' || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host);
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
  if (typeof value !== 'object' || Array.isArray(value)) throw new ConfigError(`${path}: must hold keys and values.`);
  return value as Record<string, unknown>;
}

function withVariables(
  file: Record<string, unknown>,
  env: NodeJS.ProcessEnv,
): { value: Record<string, unknown>; variables: Map<string, string> } {
  const value = structuredClone(file);
  /** Which variable gave a key: for the error's text. */
  const variables = new Map<string, string>();
  const keys = new Map(leafKeys(schema, []).map((key) => [variableOf(key), key]));
  for (const [variable, text] of Object.entries(env)) {
    if (!variable.startsWith(variablePrefix) || variable === pathVariable || text === undefined) continue;
    const key = keys.get(variable);
    if (key === undefined)
      throw new ConfigError(`${variable}: no key of the host agent's configuration has this name.`);
    put(value, key, valueOfVariable(key, text));
    variables.set(key.join('.'), variable);
  }
  return { value, variables };
}

function variableOf(key: string[]): string {
  return variablePrefix + key.map((word) => word.replace(/[A-Z]/g, (capital) => `_${capital}`).toUpperCase()).join('_');
}

/** Paths of every key that has no keys below it. */
function leafKeys(type: z.core.$ZodType, path: string[]): string[][] {
  const inner = unwrapped(type);
  if (!(inner instanceof z.ZodObject)) return [path];
  return Object.entries(inner.shape).flatMap(([key, child]) => leafKeys(child as z.core.$ZodType, [...path, key]));
}

function unwrapped(type: z.core.$ZodType): z.core.$ZodType {
  if (type instanceof z.ZodDefault || type instanceof z.ZodPrefault || type instanceof z.ZodExactOptional) {
    return unwrapped(type.def.innerType);
  }
  return type;
}

function typeAt(key: string[]): z.core.$ZodType {
  let type: z.core.$ZodType = schema;
  for (const word of key) {
    const object = unwrapped(type);
    if (object instanceof z.ZodObject) type = object.shape[word] as z.core.$ZodType;
  }
  return unwrapped(type);
}

/** Texts stay texts; everything else is read as YAML reads it (numbers, true, lists and objects in brackets); a list may also be a,b,c. */
function valueOfVariable(key: string[], text: string): unknown {
  const type = typeAt(key);
  if (type instanceof z.ZodString || type instanceof z.ZodEnum) return text;
  if (type instanceof z.ZodArray && !text.trimStart().startsWith('['))
    return text.split(',').map((part) => part.trim());
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
    if (typeof below !== 'object' || below === null || Array.isArray(below)) object[word] = {};
    object = object[word] as Record<string, unknown>;
  }
  object[key.at(-1) ?? ''] = leaf;
}
