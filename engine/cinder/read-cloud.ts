import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parse as parseYaml } from 'yaml';
import type {
  ApplicationCredentialAuth,
  CloudAuth,
  CloudSettings,
  Domain,
  Named,
  NoAuth,
  PasswordAuth,
} from './cloud.js';
import type { TlsSettings } from './http.js';
import { httpUrl } from './identity.js';
import { Secret } from './secret.js';

/** The cloud's settings cannot be used: the text names the variable or the key, and what it must be. `cause` is the file system's or the parser's error. */
export class CloudError extends Error {
  override readonly name = 'CloudError';
}

export interface ReadCloudOptions {
  /** Default: process.env. */
  env?: NodeJS.ProcessEnv;
  /** A name in clouds.yaml; it goes before OS_CLOUD. */
  cloud?: string;
  /** Where `./clouds.yaml` is. Default: the working directory. */
  folder?: string;
}

/**
 * The cloud that is configured, as every OpenStack tool reads it: a named one (`cloud`, else OS_CLOUD) of clouds.yaml, with the secrets of secure.yaml;
 * else the variables OS_…. Undefined when neither names one. A cloud is never taken just because a file lies about. Errors: CloudError.
 */
export function readCloud(options: ReadCloudOptions = {}): CloudSettings | undefined {
  const { env = process.env, folder = process.cwd() } = options;
  const name = options.cloud ?? set(env.OS_CLOUD);
  const entry = name === undefined ? entryOfVariables(env) : entryOfFile(name, env, folder);
  return entry === undefined ? undefined : settingsOf(entry);
}

/** The raw settings, whose keys are those of clouds.yaml. */
interface Entry {
  source: string;
  /** How people know a key: `OS_PASSWORD`, or `auth.password in cloud prod of …`. */
  called(key: string): string;
  keys: Record<string, unknown>;
  auth: Record<string, unknown>;
}

// The variables.

/** Keys of `auth` in clouds.yaml; every other variable is a key beside it. */
const authKeys = [
  'auth_url',
  'username',
  'user_id',
  'password',
  'project_name',
  'project_id',
  'tenant_name',
  'tenant_id',
  'user_domain_name',
  'user_domain_id',
  'project_domain_name',
  'project_domain_id',
  'default_domain_name',
  'default_domain_id',
  'application_credential_id',
  'application_credential_name',
  'application_credential_secret',
  'endpoint',
] as const;
type AuthKey = (typeof authKeys)[number];

const endpointOverrides = [
  'block_storage_endpoint_override',
  'volumev3_endpoint_override',
  'volume_endpoint_override',
] as const;

const otherKeys = [
  'auth_type',
  'region_name',
  'interface',
  'endpoint_type',
  'cacert',
  'cert',
  'key',
  ...endpointOverrides,
] as const;
type OtherKey = (typeof otherKeys)[number] | 'verify' | 'insecure' | 'regions';

function entryOfVariables(env: NodeJS.ProcessEnv): Entry | undefined {
  const values = (keys: readonly string[]) =>
    Object.fromEntries(
      keys.flatMap((key) => {
        const value = set(env[variableOf(key)]);
        return value === undefined ? [] : [[key, value]];
      }),
    );
  const auth = values(authKeys);
  const keys = values([...otherKeys, 'insecure']);
  // Others (OS_REGION_NAME, OS_CACERT) are often set for all, and are no cloud yet.
  const begun = Object.keys(auth).length > 0 || keys.auth_type !== undefined;
  return begun ? { source: 'the variables OS_…', called: variableOf, keys, auth } : undefined;
}

function variableOf(key: string): string {
  return `OS_${key.toUpperCase()}`;
}

/** An empty variable is one that is not set. */
function set(value: string | undefined): string | undefined {
  return value === undefined || value === '' ? undefined : value;
}

// clouds.yaml.

function entryOfFile(name: string, env: NodeJS.ProcessEnv, folder: string): Entry {
  const clouds = firstFile('clouds', set(env.OS_CLIENT_CONFIG_FILE), env, folder);
  if (clouds === undefined) {
    throw new CloudError(
      `The cloud '${name}' is to be used, but there is no clouds.yaml: not named by OS_CLIENT_CONFIG_FILE, nor in ${placesOf(env, folder).join(', ')}.`,
    );
  }
  const found = cloudIn(clouds, name);
  if (found === undefined) {
    const others = Object.keys(cloudsIn(clouds)).slice(0, 20);
    throw new CloudError(`${clouds.path} has no cloud '${name}'; it has ${others.join(', ') || 'none'}.`);
  }
  const secure = firstFile('secure', set(env.OS_CLIENT_SECURE_FILE), env, folder);
  const merged = secure === undefined ? found : { ...found, ...cloudIn(secure, name) };
  const auth = { ...objectOr(found.auth), ...objectOr(secure === undefined ? undefined : cloudIn(secure, name)?.auth) };
  if (typeof merged.profile === 'string') {
    throw new CloudError(
      `${clouds.path}: the cloud '${name}' takes its settings from the profile '${merged.profile}', which is not known here: write auth_url and what else it holds into the cloud itself.`,
    );
  }
  const source = `cloud ${name} of ${clouds.path}`;
  const called = (key: string) => `${(authKeys as readonly string[]).includes(key) ? 'auth.' : ''}${key} in ${source}`;
  return { source, called, keys: merged, auth };
}

interface ConfigFile {
  path: string;
  value: Record<string, unknown>;
}

/** `/etc/openstack` is the last. */
function placesOf(env: NodeJS.ProcessEnv, folder: string): string[] {
  const home = set(env.HOME) ?? homedir();
  return [folder, join(set(env.XDG_CONFIG_HOME) ?? join(home, '.config'), 'openstack'), '/etc/openstack'];
}

function firstFile(
  name: 'clouds' | 'secure',
  named: string | undefined,
  env: NodeJS.ProcessEnv,
  folder: string,
): ConfigFile | undefined {
  const inPlaces = placesOf(env, folder).flatMap((place) =>
    ['yaml', 'yml', 'json'].map((ending) => join(place, `${name}.${ending}`)),
  );
  const paths = named === undefined ? inPlaces : [named, ...inPlaces];
  for (const path of paths) {
    const text = readOr(path, (cause) => {
      // A file that is named must be there; the others may.
      if (cause.code === 'ENOENT' && path !== named) return undefined;
      throw new CloudError(`${path} cannot be read: ${cause.message}`, { cause });
    });
    if (text === undefined) continue;
    return { path, value: yamlOf(path, text) };
  }
  return undefined;
}

function readOr(path: string, or: (cause: NodeJS.ErrnoException) => undefined): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    return or(cause as NodeJS.ErrnoException);
  }
}

function yamlOf(path: string, text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = parseYaml(text) ?? {};
  } catch (cause) {
    // The parser quotes the lines around the mistake, which may hold a password.
    const at = (cause as { linePos?: { line: number }[] }).linePos?.[0];
    throw new CloudError(`${path} is no valid YAML${at === undefined ? '' : ` (line ${at.line})`}.`);
  }
  if (!isObject(value)) throw new CloudError(`${path}: must hold keys and values.`);
  return value;
}

function cloudsIn({ value }: ConfigFile): Record<string, unknown> {
  return objectOr(value.clouds);
}

function cloudIn(file: ConfigFile, name: string): Record<string, unknown> | undefined {
  const clouds = cloudsIn(file);
  const cloud = Object.hasOwn(clouds, name) ? clouds[name] : undefined;
  if (cloud === undefined || isObject(cloud)) return cloud;
  throw new CloudError(`${file.path}: clouds.${name} must hold keys and values.`);
}

function objectOr(value: unknown): Record<string, unknown> {
  return isObject(value) ? value : {};
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

// What both come to.

function settingsOf(entry: Entry): CloudSettings {
  const { auth, warnings } = authOf(entry);
  const endpoint = endpointOverrides
    .map((key) => address(entry, key, other(entry, key)))
    .find((url) => url !== undefined);
  const region = other(entry, 'region_name') ?? onlyRegion(entry);
  const tls = tlsOf(entry);
  if (!tls.verify) {
    warnings.push(
      `${entry.source}: the certificates of Keystone and Cinder are not checked, so that anybody on the way can read the credentials. Name their CA instead (OS_CACERT, cacert).`,
    );
  }
  return {
    source: entry.source,
    auth,
    ...(endpoint === undefined ? {} : { endpoint }),
    ...(region === undefined ? {} : { region }),
    interface: interfaceOf(entry),
    tls,
    warnings,
  };
}

function authOf(entry: Entry): { auth: CloudAuth; warnings: string[] } {
  const asked = (other(entry, 'auth_type') ?? guessedType(entry)).replace(/^v3/, '').replace(/_/g, '');
  switch (asked) {
    case 'password':
      return { auth: passwordOf(entry), warnings: plainWarnings(entry) };
    case 'applicationcredential':
      return { auth: applicationCredentialOf(entry), warnings: plainWarnings(entry) };
    case 'noauth':
    case 'none':
      return {
        auth: noAuthOf(entry),
        warnings: [`${entry.source}: Cinder is spoken to without authentication, which is for laboratories.`],
      };
    default:
      throw new CloudError(`${entry.called('auth_type')} must be password, v3applicationcredential or noauth.`);
  }
}

/** As openstackclient does: an application credential where there is one. */
function guessedType(entry: Entry): string {
  const { auth } = entry;
  return auth.application_credential_id === undefined && auth.application_credential_secret === undefined
    ? 'password'
    : 'v3applicationcredential';
}

function passwordOf(entry: Entry): PasswordAuth {
  const url = authUrlOf(entry);
  const user = userOf(entry);
  const password = new Secret(needed(entry, 'password'));
  const projectId = text(entry, 'project_id') ?? text(entry, 'tenant_id');
  const projectName = text(entry, 'project_name') ?? text(entry, 'tenant_name');
  if (projectId === undefined && projectName === undefined) {
    throw new CloudError(
      `${entry.called('project_name')} or project_id is missing: Stillpoint works in one project of the cloud.`,
    );
  }
  const project: Named =
    projectId === undefined ? { name: projectName ?? '', domain: domainOf(entry, 'project') } : { id: projectId };
  return { type: 'password', url, user, password, project };
}

function applicationCredentialOf(entry: Entry): ApplicationCredentialAuth {
  const id = text(entry, 'application_credential_id');
  return {
    type: 'application-credential',
    url: authUrlOf(entry),
    credential: id === undefined ? { name: needed(entry, 'application_credential_name'), user: userOf(entry) } : { id },
    secret: new Secret(needed(entry, 'application_credential_secret')),
  };
}

function noAuthOf(entry: Entry): NoAuth {
  const endpoint = endpointOverrides.map((key) => other(entry, key)).find((url) => url !== undefined);
  const url = address(entry, 'endpoint', text(entry, 'endpoint') ?? endpoint) ?? needed(entry, 'endpoint');
  const projectId = text(entry, 'project_id') ?? /\/v3\/([\w-]+)\/?$/.exec(url)?.[1] ?? needed(entry, 'project_id');
  if (!/^[\w-]{1,255}$/.test(projectId))
    throw new CloudError(`${entry.called('project_id')} must be the id of a project.`);
  const user = text(entry, 'username') ?? text(entry, 'user_id') ?? 'stillpoint';
  if (!/^[\w.@-]{1,255}$/.test(user)) throw new CloudError(`${entry.called('username')} must be the name of a user.`);
  return { type: 'noauth', endpoint: url, user, projectId };
}

function userOf(entry: Entry): Named {
  const id = text(entry, 'user_id');
  return id === undefined ? { name: needed(entry, 'username'), domain: domainOf(entry, 'user') } : { id };
}

/** `default` where none is given, as openstackclient has it. */
function domainOf(entry: Entry, of: 'user' | 'project'): Domain {
  for (const prefix of [`${of}_domain`, 'default_domain'] as const) {
    const id = text(entry, `${prefix}_id`);
    if (id !== undefined) return { id };
    const name = text(entry, `${prefix}_name`);
    if (name !== undefined) return { name };
  }
  return { id: 'default' };
}

function authUrlOf(entry: Entry): string {
  const url = address(entry, 'auth_url', needed(entry, 'auth_url')) ?? '';
  if (/\/v2\.0\/?$/.test(url)) throw new CloudError(`${entry.called('auth_url')} must be that of Keystone v3.`);
  return url;
}

function plainWarnings(entry: Entry): string[] {
  const url = new URL(authUrlOf(entry));
  return url.protocol === 'https:' || /^(?:localhost|127(?:\.\d+){3}|\[::1\])$/.test(url.hostname)
    ? []
    : [`${entry.called('auth_url')} is not https: the credentials can be read by anybody on the way.`];
}

function interfaceOf(entry: Entry): CloudSettings['interface'] {
  const given = other(entry, 'interface') === undefined ? ('endpoint_type' as const) : ('interface' as const);
  // keystoneclient's older names.
  const value = (other(entry, given) ?? 'public').replace(/URL$/, '');
  if (value === 'public' || value === 'internal' || value === 'admin') return value;
  throw new CloudError(`${entry.called(given)} must be public, internal or admin.`);
}

function onlyRegion({ keys }: Entry): string | undefined {
  const { regions } = keys;
  const [only, ...others] = Array.isArray(regions) ? (regions as unknown[]) : [];
  if (others.length > 0) return undefined;
  return typeof only === 'string' ? only : isObject(only) && typeof only.name === 'string' ? only.name : undefined;
}

function tlsOf(entry: Entry): TlsSettings {
  const ca = pem(entry, 'cacert');
  const certificate = pem(entry, 'cert');
  // Both may be in one file.
  const key = pem(entry, 'key') ?? certificate;
  const verify = flag(entry, 'verify') ?? !(flag(entry, 'insecure') ?? false);
  return {
    verify,
    ...(ca === undefined ? {} : { ca }),
    ...(certificate === undefined || key === undefined ? {} : { client: { certificate, key } }),
  };
}

function pem(entry: Entry, key: 'cacert' | 'cert' | 'key'): string | undefined {
  const path = other(entry, key);
  if (path === undefined) return undefined;
  return readOr(path.replace(/^~(?=\/)/, homedir()), (cause) => {
    throw new CloudError(`${entry.called(key)}: ${path} cannot be read: ${cause.message}`, { cause });
  });
}

function flag(entry: Entry, key: 'verify' | 'insecure'): boolean | undefined {
  const value = entry.keys[key];
  if (value === undefined || value === null || typeof value === 'boolean') return value ?? undefined;
  const word = String(value).toLowerCase();
  if (['true', '1', 'yes', 'on'].includes(word)) return true;
  if (['false', '0', 'no', 'off'].includes(word)) return false;
  throw new CloudError(`${entry.called(key)} must be true or false.`);
}

function address(entry: Entry, key: AuthKey | OtherKey, url: string | undefined): string | undefined {
  if (url === undefined || httpUrl(url) !== undefined) return url;
  throw new CloudError(`${entry.called(key)} must be an address of http or https, without user and password in it.`);
}

function needed(entry: Entry, key: AuthKey): string {
  const value = text(entry, key);
  if (value === undefined) throw new CloudError(`${entry.called(key)} is missing.`);
  return value;
}

function text(entry: Entry, key: AuthKey): string | undefined {
  return textOf(entry, key, entry.auth[key]);
}

function other(entry: Entry, key: OtherKey): string | undefined {
  return textOf(entry, key, entry.keys[key]);
}

/** YAML reads a password of digits, or an id, as a number. */
function textOf(entry: Entry, key: string, value: unknown): string | undefined {
  if (value === undefined || value === null || value === '') return undefined;
  if (typeof value !== 'string' && typeof value !== 'number')
    throw new CloudError(`${entry.called(key)} must be a text.`);
  const given = String(value);
  if (given.length > 4096 || given.includes('\0'))
    throw new CloudError(`${entry.called(key)} must be a text of at most 4096 characters.`);
  return given;
}
