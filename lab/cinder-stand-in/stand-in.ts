import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { setTimeout as wait } from 'node:timers/promises';
import { type Answer, CinderApi, faultOf } from './cinder-api.js';
import { type Fault, Faults, type SeenRequest } from './faults.js';
import { StandInKeystone, type StandInProject, type StandInUser, type TokenOwner } from './keystone.js';
import { measuredTimes, type OnCut, Refused, type SnapshotTimes, Volumes } from './volumes.js';

export interface CinderStandInOptions {
  /** Default: free ones. */
  port?: number;
  times?: Partial<SnapshotTimes>;
  /**
   * Called at the instant of each cut, in the very turn of the event loop: whoever simulates the guest can say what its disk holds then. What it returns
   * or promises is kept as the cut's content.
   */
  onCut?: OnCut;
  /** Called with each request, before anything is done with it. */
  onRequest?: (request: SeenRequest) => void;
  /** Default: `admin` / `admin-password` with all roles, `stillpoint` / `stillpoint-password` with the role member. */
  users?: StandInUser[];
  project?: StandInProject;
  /** How long a token of Keystone's is good, ms. Default one hour. */
  tokenLifetimeMs?: number;
  /** The newest microversion is 3.x of this. Default 70. */
  newestMicroversion?: number;
  /** How many entries a list has at most (`osapi_max_limit`). Default 1000. */
  pageSize?: number;
  /** PEM texts: it speaks TLS then. */
  tls?: { key: string; cert: string };
}

const defaultUsers: StandInUser[] = [
  { name: 'admin', password: 'admin-password', roles: ['admin', 'member', 'reader'] },
  {
    name: 'stillpoint',
    password: 'stillpoint-password',
    roles: ['member', 'reader'],
    applicationCredential: { id: '0123456789abcdef0123456789abcdef', name: 'engine', secret: 'credential-secret' },
  },
];
const defaultProject: StandInProject = { id: 'aaaa0000bbbb1111cccc2222dddd3333', name: 'tenant1' };

/** Starts Cinder and Keystone as they look from outside, in this process, on one port of loopback. */
export async function startCinderStandIn(options: CinderStandInOptions = {}): Promise<CinderStandIn> {
  const standIn = new CinderStandIn(options);
  await standIn.up();
  return standIn;
}

/**
 * Cinder v3 and Keystone v3 in memory: volumes, attachments, snapshots with the real one's times, quota, tokens, policies; and faults.
 *
 * Both passwords and noauth are understood: a token `user:project` is taken where it names the project, as noauth takes it.
 */
export class CinderStandIn {
  readonly volumes: Volumes;
  readonly faults = new Faults();
  readonly keystone: StandInKeystone;
  readonly project: StandInProject;
  /** How long the tokens of Keystone's are good that are given from now on, ms. */
  tokenLifetimeMs: number;
  /** How many connections were accepted since the start. */
  connections = 0;
  readonly #options: CinderStandInOptions;
  readonly #users: readonly StandInUser[];
  readonly #api: CinderApi;
  readonly #times: SnapshotTimes;
  #server: Server | undefined;
  #port: number;
  readonly #sockets = new Set<Socket>();
  readonly #closed = new AbortController();

  constructor(options: CinderStandInOptions) {
    this.#options = options;
    this.#port = options.port ?? 0;
    this.#times = { ...measuredTimes, ...options.times };
    this.#users = options.users ?? defaultUsers;
    this.project = options.project ?? defaultProject;
    this.tokenLifetimeMs = options.tokenLifetimeMs ?? 3_600_000;
    this.volumes = new Volumes(this.#times, options.onCut);
    this.keystone = new StandInKeystone(this.#users, this.project, () => this.tokenLifetimeMs);
    this.#api = new CinderApi(this.volumes, {
      newestMicroversion: options.newestMicroversion ?? 70,
      pageSize: options.pageSize ?? 1000,
    });
  }

  get origin(): string {
    return `${this.#options.tls === undefined ? 'http' : 'https'}://127.0.0.1:${this.#port}`;
  }

  /** Whether it listens. */
  get isUp(): boolean {
    return this.#server !== undefined;
  }

  /** Cinder's address, with the project's id. */
  get endpoint(): string {
    return `${this.origin}/volume/v3/${this.project.id}`;
  }

  get authUrl(): string {
    return `${this.origin}/identity/v3`;
  }

  /** The variables with which any OpenStack client finds it: as a user of Keystone's (default `stillpoint`), or without authentication. */
  environment(as: string | { noauth: true } = 'stillpoint'): Record<string, string> {
    if (typeof as !== 'string') {
      return {
        OS_AUTH_TYPE: 'noauth',
        OS_ENDPOINT: this.endpoint,
        OS_USERNAME: 'admin',
        OS_PROJECT_ID: this.project.id,
      };
    }
    return {
      OS_AUTH_URL: this.authUrl,
      OS_USERNAME: as,
      OS_PASSWORD: this.#users.find(({ name }) => name === as)?.password ?? '',
      OS_USER_DOMAIN_NAME: 'Default',
      OS_PROJECT_NAME: this.project.name,
      OS_PROJECT_DOMAIN_NAME: 'Default',
      OS_REGION_NAME: 'lab',
    };
  }

  /** A volume of the project, attached if `instance` is given. */
  addVolume(volume: { id?: string; name?: string; sizeGiB?: number; instance?: string; device?: string } = {}): string {
    const { instance, device = '/dev/vdb', ...rest } = volume;
    const attachments = instance === undefined ? [] : [{ instance, device, host: 'lab' }];
    return this.volumes.add({ ...rest, attachments, projectId: this.project.id }).id;
  }

  /** Listens, at the port it had before. */
  async up(): Promise<void> {
    const handle = (request: IncomingMessage, response: ServerResponse) => {
      this.#handle(request, response).catch(() => response.destroy());
    };
    const { tls } = this.#options;
    const server = tls === undefined ? createServer(handle) : createTlsServer(tls, handle);
    server.keepAliveTimeout = 75_000;
    server.on('connection', (socket: Socket) => {
      this.connections += 1;
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    server.listen(this.#port, '127.0.0.1');
    await once(server, 'listening');
    this.#port = (server.address() as AddressInfo).port;
    this.#server = server;
  }

  /** Refuses connections and breaks those that stand; what goes on inside goes on. */
  async down(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (server === undefined) return;
    const closed = once(server, 'close');
    server.close();
    this.cutConnections();
    await closed;
  }

  cutConnections(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async close(): Promise<void> {
    this.#closed.abort();
    this.volumes.stop();
    await this.down();
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', this.origin);
    const seen: SeenRequest = { ...placeOf(url.pathname), method: request.method ?? '', body: await text(request) };
    this.#options.onRequest?.(seen);
    const fault = this.faults.take(seen);
    const answer = await this.#answer(request, url, seen, fault);
    if (answer === undefined) {
      request.socket.destroy();
      return;
    }
    response.writeHead(answer.status, {
      ...(answer.body === undefined ? {} : { 'content-type': 'application/json' }),
      'x-openstack-request-id': `req-${randomBytes(8).toString('hex')}`,
      ...answer.headers,
    });
    response.end(
      answer.body === undefined
        ? undefined
        : typeof answer.body === 'string'
          ? answer.body
          : JSON.stringify(answer.body),
    );
  }

  /** Undefined: the connection is to be cut. */
  async #answer(
    request: IncomingMessage,
    url: URL,
    seen: SeenRequest,
    fault: Fault | undefined,
  ): Promise<Answer | undefined> {
    if (fault?.does === 'lose-request') return undefined;
    if (fault?.does === 'answer') return fault;
    if (fault?.does === 'hold-request') await this.#until(fault.until);
    const began = performance.now();
    const answer = seen.service === 'keystone' ? this.#authenticate(seen) : this.#cinder(request, url, seen);
    if (seen.method === 'POST' && seen.path === '/snapshots' && answer.status === 202) {
      await this.#wait(began + this.#times.acceptMs - performance.now());
    }
    if (fault?.does === 'lose-answer') return undefined;
    if (fault?.does === 'answer-after') return fault;
    if (fault?.does === 'hold-answer') await this.#until(fault.until);
    if (fault?.does === 'wait') await this.#wait(fault.ms);
    return answer;
  }

  #authenticate({ method, path, body }: SeenRequest): Answer {
    if (method !== 'POST' || path !== '/auth/tokens') return faultOf(404, 'Could not find the page.', 'error');
    const issued = this.keystone.issue(parsed(body), this.endpoint);
    if (issued === 'malformed') return faultOf(400, 'Expecting to find auth in the request body.', 'error');
    if (issued === undefined) return faultOf(401, 'The request you have made requires authentication.', 'error');
    return { status: 201, body: issued.body, headers: { 'x-subject-token': issued.token } };
  }

  #cinder(request: IncomingMessage, url: URL, { method, path, body }: SeenRequest): Answer {
    const projectId = /\/v3\/([^/]+)/.exec(url.pathname)?.[1];
    const token = String(request.headers['x-auth-token'] ?? '');
    const owner = this.keystone.ownerOf(token) ?? noauthOwner(token, this.project.id);
    if (owner === undefined) return faultOf(401, 'The request you have made requires authentication.', 'error');
    if (projectId === undefined) return this.#api.versions();
    if (owner.projectId !== projectId) return faultOf(400, 'Malformed request url');
    try {
      return this.#api.answer({
        method,
        path,
        query: url.searchParams,
        body: parsed(body),
        owner,
        microversion: String(request.headers['openstack-api-version'] ?? 'volume 3.0'),
        base: this.endpoint,
      });
    } catch (error) {
      if (error instanceof Refused) return faultOf(error.status, error.message);
      throw error;
    }
  }

  async #wait(ms: number): Promise<void> {
    if (ms > 0) await wait(ms, undefined, { signal: this.#closed.signal });
  }

  async #until(promise: Promise<unknown>): Promise<void> {
    const { signal } = this.#closed;
    await Promise.race([promise, new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))]);
  }
}

/** `/identity/v3/…` and `/volume/v3/<project>/…`. */
function placeOf(pathname: string): Pick<SeenRequest, 'service' | 'path'> {
  const [, service, , ...rest] = pathname.split('/');
  return service === 'identity'
    ? { service: 'keystone', path: `/${rest.join('/')}` }
    : { service: 'cinder', path: `/${rest.slice(1).join('/')}` };
}

/** noauth: everybody is an administrator. */
function noauthOwner(token: string, projectId: string): TokenOwner | undefined {
  const [user = '', project] = token.split(':');
  return project === projectId ? { user, roles: ['admin', 'member', 'reader'], projectId } : undefined;
}

function parsed(body: string): unknown {
  try {
    return body === '' ? undefined : JSON.parse(body);
  } catch {
    return undefined;
  }
}
