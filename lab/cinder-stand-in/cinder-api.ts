import { z } from 'zod';
import type { TokenOwner } from './keystone.js';
import { Refused, type StandInSnapshot, type StandInVolume, type Volumes } from './volumes.js';

export interface Answer {
  status: number;
  /** A text is sent as it is. */
  body?: unknown;
  headers?: Record<string, string>;
}

export interface ApiRequest {
  method: string;
  /** Below the project. */
  path: string;
  query: URLSearchParams;
  body: unknown;
  owner: TokenOwner;
  /** The header: `volume 3.66`. */
  microversion: string;
  /** The address with the project, for links. */
  base: string;
}

const metadata = z.record(z.string().min(1).max(255), z.string().max(255));
const newSnapshot = z.strictObject({
  snapshot: z.strictObject({
    volume_id: z.string(),
    name: z.string().max(255).nullish(),
    description: z.string().max(255).nullish(),
    metadata: metadata.nullish(),
    force: z.boolean().optional(),
  }),
});
const changedSnapshot = z.object({
  snapshot: z.object({ name: z.string().max(255), description: z.string().max(255) }).partial(),
});
const moreMetadata = z.object({ metadata });
const updateStatus = z.object({ 'os-update_snapshot_status': z.object({ status: z.string() }) });

/** Cinder's REST API v3, as much of it as Stillpoint asks for. */
export class CinderApi {
  readonly #volumes: Volumes;
  readonly #newest: number;
  readonly #pageSize: number;

  constructor(volumes: Volumes, options: { newestMicroversion: number; pageSize: number }) {
    this.#volumes = volumes;
    this.#newest = options.newestMicroversion;
    this.#pageSize = options.pageSize;
  }

  versions(): Answer {
    const v3 = { id: 'v3.0', status: 'CURRENT', version: `3.${this.#newest}`, min_version: '3.0', links: [] };
    return { status: 200, body: { versions: [v3] } };
  }

  /** Errors: Refused. */
  answer(request: ApiRequest): Answer {
    const { method, path, owner } = request;
    const minor = Number(/^volume 3\.(\d+)$/.exec(request.microversion)?.[1]);
    if (!(minor <= this.#newest)) {
      throw new Refused(
        406,
        `Version ${request.microversion.slice(7)} is not supported by the API. Minimum is 3.0 and maximum is 3.${this.#newest}.`,
      );
    }
    const [, kind = '', id, below] = path.split('/');
    if (kind === 'volumes' && method === 'GET' && id !== undefined) {
      return { status: 200, body: { volume: this.#shownVolume(this.#volumeOf(id, owner), owner) } };
    }
    if (kind === 'limits' && method === 'GET') return this.#limits(owner);
    if (kind === 'snapshots' && id === undefined && method === 'POST') return this.#create(request, minor);
    if (kind === 'snapshots' && (id === undefined || id === 'detail') && method === 'GET')
      return this.#list(request, minor);
    if (kind === 'snapshots' && id !== undefined) {
      const snapshot = this.#snapshotOf(id, owner);
      const at = `${method} ${below ?? ''}`;
      if (at === 'GET ') return { status: 200, body: { snapshot: shownSnapshot(snapshot) } };
      if (at === 'PUT ') return this.#change(snapshot, request);
      if (at === 'DELETE ') return this.#delete(snapshot, owner);
      if (at === 'POST metadata') return this.#addMetadata(snapshot, request);
      if (at === 'POST action') return this.#updateStatus(snapshot, request);
    }
    throw new Refused(404, 'The resource could not be found.');
  }

  #create({ body, owner }: ApiRequest, minor: number): Answer {
    mustBe('member', owner, 'volume:create_snapshot');
    const { snapshot: asked } = valid(newSnapshot, body);
    if (asked.force === false && minor >= 66)
      throw new Refused(400, "Invalid input received: Invalid value for 'force'.");
    // An administrator may even take those of others.
    this.#volumeOf(asked.volume_id, owner);
    const created = this.#volumes.create({
      projectId: owner.projectId,
      volumeId: asked.volume_id,
      name: asked.name ?? '',
      description: asked.description ?? '',
      metadata: asked.metadata ?? {},
      inUse: minor >= 66 || asked.force === true,
    });
    return {
      status: 202,
      body: {
        snapshot: { ...shownSnapshot(created), created_at: created.createdAt.toISOString().replace('Z', '789') },
      },
    };
  }

  #list({ query, owner, base }: ApiRequest, minor: number): Answer {
    const volumeId = query.get('volume_id');
    const name = query.get('name');
    const entries = minor >= 22 ? entriesOf(query.get('metadata')) : [];
    const all = this.#volumes
      .snapshots()
      .filter(
        (each) =>
          each.projectId === owner.projectId &&
          (volumeId === null || each.volumeId === volumeId) &&
          (name === null || each.name === name) &&
          entries.every(([key, value]) => each.metadata[key] === value),
      );
    const marker = query.get('marker');
    const before = marker === null ? -1 : all.findIndex(({ id }) => id === marker);
    if (marker !== null && before < 0) throw new Refused(404, `Snapshot ${marker} could not be found.`);
    const limit = Math.min(Number(query.get('limit') ?? this.#pageSize), this.#pageSize);
    const page = all.slice(before + 1, before + 1 + limit);
    const last = page.at(-1);
    const links =
      page.length === limit && last !== undefined
        ? [{ rel: 'next', href: `${base}/snapshots/detail?marker=${last.id}` }]
        : undefined;
    return {
      status: 200,
      body: { snapshots: page.map(shownSnapshot), ...(links === undefined ? {} : { snapshots_links: links }) },
    };
  }

  #change(snapshot: StandInSnapshot, { body, owner }: ApiRequest): Answer {
    mustBe('member', owner, 'volume:update_snapshot');
    const { name, description } = valid(changedSnapshot, body).snapshot;
    if (name !== undefined) snapshot.name = name;
    if (description !== undefined) snapshot.description = description;
    return { status: 200, body: { snapshot: shownSnapshot(snapshot) } };
  }

  #addMetadata(snapshot: StandInSnapshot, { body, owner }: ApiRequest): Answer {
    mustBe('member', owner, 'volume:update_snapshot_metadata');
    Object.assign(snapshot.metadata, valid(moreMetadata, body).metadata);
    return { status: 200, body: { metadata: snapshot.metadata } };
  }

  #delete(snapshot: StandInSnapshot, owner: TokenOwner): Answer {
    mustBe('member', owner, 'volume:delete_snapshot');
    this.#volumes.delete(snapshot.id);
    return { status: 202 };
  }

  #updateStatus(snapshot: StandInSnapshot, { body, owner }: ApiRequest): Answer {
    mustBe('member', owner, 'snapshot_extension:snapshot_actions:update_snapshot_status');
    this.#volumes.updateStatus(snapshot.id, valid(updateStatus, body)['os-update_snapshot_status'].status);
    return { status: 202 };
  }

  #limits({ projectId }: TokenOwner): Answer {
    const { quota } = this.#volumes;
    const used = this.#volumes.used(projectId);
    const absolute = {
      maxTotalSnapshots: quota.snapshots,
      totalSnapshotsUsed: used.snapshots,
      maxTotalVolumeGigabytes: quota.gigabytes,
      totalGigabytesUsed: used.gigabytes,
    };
    return { status: 200, body: { limits: { rate: [], absolute } } };
  }

  #volumeOf(id: string, owner: TokenOwner): StandInVolume {
    const volume = this.#volumes.volume(id);
    if (!sees(owner, volume)) throw new Refused(404, `Volume ${id} could not be found.`);
    return volume;
  }

  #snapshotOf(id: string, owner: TokenOwner): StandInSnapshot {
    const snapshot = this.#volumes.snapshot(id);
    if (!sees(owner, snapshot)) throw new Refused(404, `Snapshot ${id} could not be found.`);
    return snapshot;
  }

  #shownVolume(volume: StandInVolume, owner: TokenOwner): object {
    return {
      id: volume.id,
      name: volume.name,
      status: volume.status,
      size: volume.sizeGiB,
      volume_type: volume.volumeType,
      attachments: volume.attachments.map(({ instance, device, host }) => ({
        volume_id: volume.id,
        server_id: instance,
        device,
        host_name: host,
      })),
      metadata: {},
      'os-vol-tenant-attr:tenant_id': volume.projectId,
      ...(owner.roles.includes('admin') ? { 'os-vol-mig-status-attr:name_id': volume.nameId ?? null } : {}),
    };
  }
}

/** An error's body: `kind` is its name in Cinder, `error` in Keystone. */
export function faultOf(status: number, message: string, kind = kinds[status] ?? 'computeFault'): Answer {
  const retry = status === 413 ? { retryAfter: '0' } : {};
  return {
    status,
    body: { [kind]: { code: status, message, ...retry } },
    headers: status === 413 ? { 'retry-after': '0' } : {},
  };
}

const kinds: Partial<Record<number, string>> = {
  400: 'badRequest',
  403: 'forbidden',
  404: 'itemNotFound',
  409: 'conflictingRequest',
  413: 'overLimit',
};

function sees({ roles, projectId }: TokenOwner, thing: { projectId: string }): boolean {
  return roles.includes('admin') || thing.projectId === projectId;
}

function mustBe(role: string, { roles }: TokenOwner, rule: string): void {
  if (!roles.includes(role)) throw new Refused(403, `Policy doesn't allow ${rule} to be performed.`);
}

function valid<T>(schema: z.ZodType<T>, body: unknown): T {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new Refused(400, `Invalid input for field/attribute ${String(issue?.path.at(-1))}. ${issue?.message ?? ''}`);
}

function shownSnapshot(snapshot: StandInSnapshot): object {
  return {
    id: snapshot.id,
    volume_id: snapshot.volumeId,
    name: snapshot.name,
    description: snapshot.description,
    status: snapshot.status,
    size: snapshot.sizeGiB,
    // UTC, without saying so, in whole seconds.
    created_at: snapshot.createdAt.toISOString().replace(/\d\d\dZ$/, '000000'),
    updated_at: null,
    metadata: snapshot.metadata,
    'os-extended-snapshot-attributes:project_id': snapshot.projectId,
  };
}

/** A dict literal of Python's, with texts only. */
function entriesOf(literal: string | null): [string, string][] {
  if (literal === null) return [];
  const plain = (text = '') => text.replace(/\\(.)/g, (_, character: string) => (character === 'n' ? '\n' : character));
  return [...literal.matchAll(/'((?:[^'\\]|\\.)*)'\s*:\s*'((?:[^'\\]|\\.)*)'/g)].map(([, key, value]) => [
    plain(key),
    plain(value),
  ]);
}
