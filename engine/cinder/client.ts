import type { z } from 'zod';
import { limits, oneSnapshot, oneVolume, pageOfSnapshots, uuidLike, versions } from './answers.js';
import type {
  Cinder,
  CinderCallOptions,
  CinderVolume,
  CreateOptions,
  NewVolumeSnapshot,
  SnapshotQuota,
  VolumeSnapshot,
} from './cinder.js';
import type { CloudSettings } from './cloud.js';
import { CinderError, isCinderError } from './errors.js';
import { type HttpAnswer, HttpConnections, type HttpRequest } from './http.js';
import { type Access, type Identity, identityOf } from './identity.js';
import { type Asked, type Asking, explained, jsonOf, notOfTheApi, refusal } from './refusals.js';
import { quotable } from './secret.js';

export interface CinderClientSettings {
  /** How long a connection, with its TLS handshake, may take, ms. Default 5 000. */
  connectTimeoutMs?: number;
  /** How long an answer may take, to its last byte, ms. Default 30 000. */
  requestTimeoutMs?: number;
}

/**
 * Cinder's REST API, v3, with Keystone v3 or noauth before it.
 *
 * Nothing is repeated but a request whose token was refused, once, with a new token. Connections are kept alive; `makeReady` opens and warms them.
 */
export class CinderClient implements Cinder {
  readonly #http: HttpConnections;
  readonly #identity: Identity;
  /** The microversion of each address of Cinder: one in practice. */
  readonly #microversions = new Map<string, Microversion>();

  constructor(cloud: CloudSettings, settings: CinderClientSettings = {}) {
    const { connectTimeoutMs = 5_000, requestTimeoutMs = 30_000 } = settings;
    this.#http = new HttpConnections(cloud.tls, { connectMs: connectTimeoutMs, answerMs: requestTimeoutMs });
    this.#identity = identityOf(cloud, this.#http);
  }

  close(): Promise<void> {
    this.#http.close();
    return Promise.resolve();
  }

  async makeReady(
    request: { validForMs: number; connections: number },
    options: CinderCallOptions = {},
  ): Promise<void> {
    await this.#identity.access(request.validForMs, options);
    // Even if it is known: an exchanged Cinder may know others.
    await this.#authenticated(options, (access) => this.#askVersions(access, options));
    // Requests that begin together have a connection each, which is kept then. They carry the token, so that Cinder has had it checked by Keystone, too.
    await Promise.all(
      Array.from({ length: request.connections }, () =>
        this.#call(
          { what: 'list of snapshots' },
          { method: 'GET', path: '/snapshots', query: { limit: '1' }, ...options },
        ),
      ),
    );
  }

  async project(options: CinderCallOptions = {}): Promise<string> {
    return (await this.#identity.access(0, options)).projectId;
  }

  async volume(id: string, options: CinderCallOptions = {}): Promise<CinderVolume> {
    const asked: Asked = { what: 'volume', id };
    const { access, read } = await this.#call(asked, { method: 'GET', path: `/volumes/${checked(id)}`, ...options });
    const { volume, projectId } = read(oneVolume);
    // An administrator is shown everybody's.
    if (!isOurs(projectId, access)) throw notOurs('VOLUME_NOT_FOUND', `volume ${id}`);
    return volume;
  }

  async snapshotQuota(options: CinderCallOptions = {}): Promise<SnapshotQuota> {
    const { read } = await this.#call({ what: 'quota' }, { method: 'GET', path: '/limits', ...options });
    return read(limits);
  }

  async createSnapshot(request: NewVolumeSnapshot, options: CreateOptions = {}): Promise<VolumeSnapshot> {
    const { volumeId, name, description, metadata } = request;
    checked(volumeId);
    const { read } = await this.#call(
      { what: 'new snapshot', id: volumeId },
      {
        method: 'POST',
        path: '/snapshots',
        body: (microversion) => ({
          snapshot: {
            volume_id: volumeId,
            name,
            description,
            metadata,
            ...(microversion.snapshotsInUse ? {} : { force: true }),
          },
        }),
        ...options,
      },
    );
    const { snapshot } = read(oneSnapshot, (answer) => sameId(answer.snapshot.volumeId, volumeId));
    return snapshot;
  }

  async snapshot(id: string, options: CinderCallOptions = {}): Promise<VolumeSnapshot> {
    const { access, read } = await this.#call(
      { what: 'snapshot', id },
      { method: 'GET', path: `/snapshots/${checked(id)}`, ...options },
    );
    const { snapshot, projectId } = read(oneSnapshot, (answer) => sameId(answer.snapshot.id, id));
    if (!isOurs(projectId, access)) throw notOurs('VOLUME_SNAPSHOT_NOT_FOUND', `volume snapshot ${id}`);
    return snapshot;
  }

  async findSnapshots(
    query: { metadata: Record<string, string>; volumeId?: string },
    options: CinderCallOptions = {},
  ): Promise<VolumeSnapshot[]> {
    const { metadata, volumeId } = query;
    const wanted = Object.entries(metadata);
    const found = new Map<string, VolumeSnapshot>();
    /** The last ones of the pages: a list that comes round again would never end. */
    const seen = new Set<string>();
    let marker: string | undefined;
    for (;;) {
      const { access, read } = await this.#call(
        { what: 'list of snapshots' },
        {
          method: 'GET',
          path: '/snapshots/detail',
          query: {
            ...(volumeId === undefined ? {} : { volume_id: checked(volumeId) }),
            ...(wanted.length === 0 ? {} : { metadata: pythonDict(wanted) }),
            ...(marker === undefined ? {} : { marker }),
          },
          ...options,
        },
      );
      const page = read(pageOfSnapshots, ({ snapshots }) => !seen.has(snapshots.at(-1)?.snapshot.id ?? ''));
      for (const { snapshot, projectId } of page.snapshots) {
        // A filter that Cinder does not know, or that its administrator has switched off, it leaves out without a word.
        const fits =
          isOurs(projectId, access) &&
          (volumeId === undefined || sameId(snapshot.volumeId, volumeId)) &&
          wanted.every(([key, value]) => Object.hasOwn(snapshot.metadata, key) && snapshot.metadata[key] === value);
        if (fits) found.set(snapshot.id, snapshot);
      }
      const last = page.snapshots.at(-1)?.snapshot.id;
      if (!page.hasNext || last === undefined) return [...found.values()];
      seen.add(last);
      marker = last;
    }
  }

  async deleteSnapshot(id: string, options: CinderCallOptions = {}): Promise<void> {
    await this.#call(
      { what: 'deletion of the snapshot', id },
      { method: 'DELETE', path: `/snapshots/${checked(id)}`, ...options },
    );
  }

  async describeSnapshot(
    id: string,
    change: { description?: string; metadata?: Record<string, string> },
    options: CinderCallOptions = {},
  ): Promise<void> {
    const asked: Asked = { what: 'change of the snapshot', id };
    const { description, metadata } = change;
    if (metadata !== undefined) {
      await this.#call(asked, {
        method: 'POST',
        path: `/snapshots/${checked(id)}/metadata`,
        body: () => ({ metadata }),
        ...options,
      });
    }
    if (description !== undefined) {
      await this.#call(asked, {
        method: 'PUT',
        path: `/snapshots/${checked(id)}`,
        body: () => ({ snapshot: { description } }),
        ...options,
      });
    }
  }

  async giveUpCreating(id: string, options: CinderCallOptions = {}): Promise<void> {
    await this.#call(
      { what: 'change of the snapshot', id },
      {
        method: 'POST',
        path: `/snapshots/${checked(id)}/action`,
        body: () => ({ 'os-update_snapshot_status': { status: 'error' } }),
        ...options,
      },
    );
  }

  #call(asked: Asked, call: Call): Promise<{ access: Access; read: Read }> {
    const { method, path, query = {}, body, beforeSending, ...options } = call;
    return this.#authenticated(options, async (access) => {
      const { root, base } = apiOf(access);
      const microversion = await this.#microversion(access, options);
      const url = new URL(base + path);
      for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
      const version = { 'openstack-api-version': `volume ${microversion.name}` };
      const request: HttpRequest =
        body === undefined
          ? { method, url, headers: version, ...options }
          : {
              method,
              url,
              headers: { ...version, 'content-type': 'application/json' },
              body: JSON.stringify(body(microversion)),
              ...options,
              beforeSending,
            };
      try {
        const { answer, asking } = await this.#request(asked, request, access);
        return { access, read: reader(answer, asking) };
      } catch (error) {
        if (isCinderError(error, 'CINDER_BAD_REQUEST')) this.#microversions.delete(root);
        throw error;
      }
    });
  }

  /** The newest microversion that both sides know; asked for before a window, or by the first call. */
  async #microversion(access: Access, options: CinderCallOptions): Promise<Microversion> {
    return this.#microversions.get(apiOf(access).root) ?? (await this.#askVersions(access, options));
  }

  async #askVersions(access: Access, options: CinderCallOptions): Promise<Microversion> {
    const { root } = apiOf(access);
    // Unlike the address above it, this one asks for authentication.
    const { answer, asking } = await this.#request(
      { what: 'versions' },
      { method: 'GET', url: new URL(`${root}/`), headers: {}, ...options },
      access,
    );
    const { oldest, newest } = reader(answer, asking)(versions);
    const chosen = microversions.find(({ minor }) => minor <= newest);
    if (chosen === undefined || chosen.minor < oldest) {
      throw notOfTheApi(`its microversions are 3.${oldest} to 3.${newest}`, asking);
    }
    this.#microversions.set(root, chosen);
    return chosen;
  }

  /** One request, whose answer is 2xx. */
  async #request(asked: Asked, request: HttpRequest, access: Access): Promise<{ answer: HttpAnswer; asking: Asking }> {
    const { url, method, headers } = request;
    const changes = method !== 'GET';
    const asking: Asking = { service: 'Cinder', at: url.origin, asked, changes, secrets: [access.token] };
    const withToken = { ...headers, accept: 'application/json', 'x-auth-token': access.token.reveal() };
    const answer = await this.#http.request({ ...request, headers: withToken }).catch((error: unknown) => {
      throw explained(error, asking);
    });
    if (answer.status < 200 || answer.status > 299) throw refusal(answer, asking);
    return { answer, asking };
  }

  /** What Cinder refuses for its token is repeated with a new one, once: it was not carried out. */
  async #authenticated<T>(options: CinderCallOptions, request: (access: Access) => Promise<T>): Promise<T> {
    const access = await this.#identity.access(0, options);
    try {
      return await request(access);
    } catch (error) {
      if (!isCinderError(error, 'CINDER_UNAUTHORISED')) throw error;
    }
    return await request(await this.#identity.renewed(access, options));
  }
}

interface Call extends CreateOptions {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** Below the project. */
  path: string;
  query?: Record<string, string>;
  body?: (microversion: Microversion) => object;
}

interface Microversion {
  name: string;
  minor: number;
  /** A volume in use needs no `force` for a snapshot; from there on it is not even allowed to say false. */
  snapshotsInUse: boolean;
}

/** Those that change what we use, the newest first: 3.66 snapshots of volumes in use, 3.22 the metadata filter of lists (Cinder's API history). */
const microversions: readonly Microversion[] = [
  { name: '3.66', minor: 66, snapshotsInUse: true },
  { name: '3.22', minor: 22, snapshotsInUse: false },
  { name: '3.0', minor: 0, snapshotsInUse: false },
];

/** `root` ends in /v3 (the version's own address), `base` in the project's id. Catalogues have either. */
function apiOf({ endpoint, projectId }: Access): { root: string; base: string } {
  const path = endpoint.pathname.replace(/\/+$/, '');
  const upToVersion = /^(.*\/v3)(?:\/[^/]+)?$/.exec(path)?.[1] ?? `${path}/v3`;
  const root = `${endpoint.origin}${upToVersion}`;
  return { root, base: `${root}/${projectId}` };
}

type Read = <T>(schema: z.ZodType<T>, fits?: (answer: T) => boolean) => T;

function reader(answer: HttpAnswer, asking: Asking): Read {
  return (schema, fits) => {
    const parsed = schema.safeParse(jsonOf(answer.text));
    if (!parsed.success) {
      const [issue] = parsed.error.issues;
      throw notOfTheApi(`${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`.trim(), asking, parsed.error);
    }
    if (fits?.(parsed.data) === false) throw notOfTheApi('something else than was asked for', asking);
    return parsed.data;
  };
}

function checked(id: string): string {
  if (uuidLike.safeParse(id).success) return id;
  throw new CinderError('CINDER_BAD_REQUEST', `'${quotable(id, [], 80)}' is no id of a volume or a volume snapshot.`, {
    advice: 'Ids are UUIDs.',
  });
}

function sameId(one: string, other: string): boolean {
  return plainId(one) === plainId(other);
}

/** Keystone's ids have no dashes, Cinder's have. */
function plainId(id: string): string {
  return id.replaceAll('-', '').toLowerCase();
}

function isOurs(projectId: string | undefined, access: Access): boolean {
  return projectId === undefined || sameId(projectId, access.projectId);
}

function notOurs(code: 'VOLUME_NOT_FOUND' | 'VOLUME_SNAPSHOT_NOT_FOUND', what: string): CinderError {
  return new CinderError(code, `The project has no ${what}: it is another project's.`, {
    advice: 'See that the engine is configured for the project that it belongs to.',
  });
}

/** The metadata filter is a dict literal of Python's: {'k':'v'}. */
function pythonDict(entries: [string, string][]): string {
  const text = (value: string) =>
    `'${value.replace(/[\\']/g, '\\$&').replaceAll('\n', '\\n').replaceAll('\r', '\\r')}'`;
  return `{${entries.map(([key, value]) => `${text(key)}:${text(value)}`).join(',')}}`;
}
