import { type IncomingMessage, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';

import swagger from '@fastify/swagger';
import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifySchemaCompiler,
  LogController,
} from 'fastify';
import { createJsonSchemaTransform, jsonSchemaTransformObject, type ZodTypeProvider } from 'fastify-type-provider-zod';
import type { z } from 'zod';

import type { Catalogue } from '../catalogue/catalogue.js';
import { inputFaults } from '../contract/snapshot-input.js';
import type { Hosts } from '../hosts/hosts.js';
import { addCloudRoutes, type KnownCloud } from './cloud-routes.js';
import { addDoctorRoutes, type Doctor } from './doctor-routes.js';
import { addHealthRoutes } from './health-routes.js';
import { addHostRoutes } from './host-routes.js';
import { problemOf } from './problem-of.js';
import { Problem } from './problems.js';
import { type Runs, RunsUnavailable } from './runs.js';
import { SnapshotDesk } from './snapshot-desk.js';
import { addSnapshotRoutes } from './snapshot-routes.js';
import { VmDirectory } from './vm-directory.js';
import { addVmRoutes } from './vm-routes.js';

export interface ApiDependencies {
  catalogue: Catalogue;
  hosts: Hosts;
  runs: Runs;
  doctor: Doctor;
  /** Undefined: none is configured. */
  cloud: KnownCloud | undefined;
  log: FastifyBaseLogger;
}

export interface ApiTimes {
  /** How long what a host said of its VMs is good, ms. Default 2 000. */
  vmsKeptMs?: number;
  /** How long a host agent may take to answer, ms; a thaw has its own. Default 3 000. */
  hostTimeoutMs?: number;
  /** How long a run may take to tell its progress, ms. Default 2 000. */
  progressTimeoutMs?: number;
  /** How long /readyz waits for the catalogue and for Temporal, ms. Default 2 000. */
  readyTimeoutMs?: number;
  /** How long /v1/cloud waits for Keystone and Cinder, ms. Default 10 000. */
  cloudTimeoutMs?: number;
  /** When an `accepted` row without a run is given up, and how often that is looked for, ms. Default 60 000. */
  acceptedLimitMs?: number;
}

/** Fastify with zod's types in its routes. */
export type Api = FastifyInstance<
  import('node:http').Server,
  IncomingMessage,
  import('node:http').ServerResponse,
  FastifyBaseLogger,
  ZodTypeProvider
>;

/** Larger than any request of the contract: 512 targets and 2 200 characters of text. */
const bodyLimitBytes = 64 * 1024;

/** 255 characters, each of four bytes, each byte as %xx. */
const longestParameter = 255 * 4 * 3;

/** The REST API; the caller lets it listen (loopback only: it knows no authentication) and closes it. */
export async function buildApi(dependencies: ApiDependencies, times: ApiTimes = {}): Promise<Api> {
  const { catalogue, hosts, runs, doctor, cloud, log } = dependencies;
  const app: Api = Fastify({
    loggerInstance: log,
    bodyLimit: bodyLimitBytes,
    routerOptions: { maxParamLength: longestParameter, ignoreTrailingSlash: false },
    // Who looks is not worth a line; who changes something is: see below.
    logController: new LogController({ disableRequestLogging: true }),
    // An open long-poll must not keep the engine from stopping.
    forceCloseConnections: true,
    frameworkErrors: (error, _request, reply) => {
      void answerProblem(reply as unknown as FastifyReply, problemOf(error));
    },
    clientErrorHandler: answerBadHttp,
  }).withTypeProvider<ZodTypeProvider>();

  // A web page may send text/plain without asking first; nothing here wants it.
  app.removeContentTypeParser('text/plain');
  app.setValidatorCompiler(zodValidator);
  app.setSerializerCompiler(() => (data) => JSON.stringify(data));
  app.addHook('onRequest', refuseOtherSites);
  app.addHook('onSend', async (_request, reply) => {
    reply.header('cache-control', 'no-store').header('x-content-type-options', 'nosniff');
  });
  app.addHook('onResponse', async (request, reply) => {
    if (request.method === 'GET' || request.method === 'HEAD') return;
    request.log.info({ method: request.method, url: request.url, status: reply.statusCode }, 'request');
  });
  answerProblems(app);

  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Stillpoint',
        version: '1',
        description:
          'Consistent live snapshots of virtual machines. Errors are application/problem+json (RFC 9457) with a stable `code`.',
        license: { name: 'Apache-2.0', url: 'https://www.apache.org/licenses/LICENSE-2.0' },
      },
      tags: [
        { name: 'hosts', description: 'Hypervisors with a host agent' },
        { name: 'vms', description: 'What the hosts say of their VMs' },
        { name: 'snapshots', description: 'Snapshots and the runs that make and delete them' },
        { name: 'doctor', description: 'What no run could clean up, and its repair' },
        { name: 'cloud', description: 'OpenStack, whose volumes are snapshotted' },
        { name: 'health', description: 'For load balancers and supervisors' },
      ],
    },
    transform: createJsonSchemaTransform({ skipList: ['/openapi.json'] }),
    transformObject: (document) => asAnswered(jsonSchemaTransformObject(document)),
  });
  const directory = new VmDirectory(hosts, {
    keepMs: times.vmsKeptMs ?? 2_000,
    timeoutMs: times.hostTimeoutMs ?? 3_000,
  });
  const acceptedLimitMs = times.acceptedLimitMs ?? 60_000;
  const desk = new SnapshotDesk(
    catalogue,
    runs,
    { progressTimeoutMs: times.progressTimeoutMs ?? 2_000, acceptedLimitMs },
    log,
  );

  await app.register(async (routes) => {
    const api = routes.withTypeProvider<ZodTypeProvider>();
    api.get('/openapi.json', { schema: { hide: true } }, () => app.swagger());
    addHealthRoutes(api, { catalogue, runs, readyTimeoutMs: times.readyTimeoutMs ?? 2_000 });
    addHostRoutes(api, { catalogue, directory });
    addVmRoutes(api, { hosts, directory });
    addCloudRoutes(api, { cloud, cloudTimeoutMs: times.cloudTimeoutMs ?? 10_000 });
    addSnapshotRoutes(api, { desk, directory });
    addDoctorRoutes(api, { doctor });
  });

  const sweep = setInterval(() => {
    void desk.sweep().catch((error: unknown) => log.warn({ err: error }, 'The sweep through the snapshots failed'));
  }, acceptedLimitMs);
  sweep.unref();
  app.addHook('onClose', async () => clearInterval(sweep));
  await app.ready();
  return app;
}

const zodValidator: FastifySchemaCompiler<z.ZodType> =
  ({ schema, httpPart }) =>
  (data: unknown) => {
    const parsed = schema.safeParse(data);
    if (parsed.success) return { value: parsed.data };
    const faults = inputFaults(parsed.error);
    const [first] = faults;
    const where = httpPart === 'querystring' ? 'query' : (httpPart ?? 'request');
    return {
      error: new Problem(
        'INPUT_INVALID',
        `${where}: ${faults.map((fault) => `${fault.field === '' ? '' : `${fault.field} `}${fault.message}`).join('; ')}.`.slice(
          0,
          1_000,
        ),
        { field: first?.field ?? '', in: where, errors: faults.slice(0, 20) },
      ),
    };
  };

/**
 * A web page that a person has open may send requests to this machine, also by a name of its own that resolves to 127.0.0.1 (DNS rebinding). Such a
 * request carries the page's Host or Origin.
 */
async function refuseOtherSites(request: FastifyRequest): Promise<void> {
  const { host, origin } = request.headers;
  if (host === undefined || !isLoopbackName(nameOf(host))) {
    throw new Problem(
      'HOST_HEADER_REFUSED',
      'Ask for http://127.0.0.1 or http://localhost: this API is for this machine only.',
    );
  }
  if (origin !== undefined && origin !== `http://${host}`) {
    throw new Problem('ORIGIN_REFUSED', 'This API answers no requests of other web sites.');
  }
}

function nameOf(host: string): string {
  return host.replace(/:\d{1,5}$/, '').toLowerCase();
}

/** Whether a name or address means this machine alone. */
export function isLoopbackName(name: string): boolean {
  return name === 'localhost' || name === '[::1]' || name === '::1' || /^127(?:\.\d{1,3}){3}$/.test(name);
}

function answerProblems(app: Api): void {
  const methodsOf = new Map<string, Set<string>>();
  app.addHook('onRoute', (route) => {
    const methods = methodsOf.get(route.url) ?? new Set();
    for (const method of [route.method].flat()) methods.add(method);
    methodsOf.set(route.url, methods);
  });

  app.setErrorHandler((error, request, reply) => {
    const problem =
      error instanceof RunsUnavailable
        ? new Problem('TEMPORAL_UNAVAILABLE', `${error.message} See that it runs, and try again.`, {}, error)
        : problemOf(error);
    // Who polls /readyz is told what is away; the log has heard it from whoever needed it.
    if (problem.code === 'NOT_READY') request.log.debug(problem.message);
    else if (problem.status >= 500) request.log.error({ err: error }, problem.message);
    return answerProblem(reply, problem);
  });

  // Before the body is looked at: what an unknown address or method carries does not matter.
  app.addHook('onRequest', async (request, reply) => {
    if (!request.is404) return;
    const path = request.url.split('?', 1)[0] ?? '';
    const allowed = [...methodsOf].filter(([url]) => matches(url, path)).flatMap(([, methods]) => [...methods]);
    if (allowed.length === 0) {
      throw new Problem('NOT_FOUND', 'There is nothing at this address. See /openapi.json.');
    }
    const allow = [...new Set(allowed)].sort().join(', ');
    reply.header('allow', allow);
    throw new Problem('METHOD_NOT_ALLOWED', `It knows: ${allow}.`, { allow });
  });
}

function matches(url: string, path: string): boolean {
  const [wanted, given] = [url.split('/'), path.split('/')];
  return (
    wanted.length === given.length &&
    wanted.every((part, at) => (part.startsWith(':') ? given[at] !== '' : part === given[at]))
  );
}

/** What the generator of the document cannot know: the media type of problems, and that a body of which nothing is required may be absent. */
function asAnswered(document: ReturnType<typeof jsonSchemaTransformObject>): typeof document {
  for (const { requestBody, responses } of operationsOf(document)) {
    const body = requestBody?.content?.['application/json'];
    if (requestBody !== undefined && body?.schema?.required === undefined) requestBody.required = false;
    for (const [status, { content }] of Object.entries(responses ?? {})) {
      const json = content?.['application/json'];
      if (!/^[45]/.test(status) || content === undefined || json === undefined) continue;
      delete content['application/json'];
      content['application/problem+json'] = json;
    }
  }
  return document;
}

interface DocumentedOperation {
  requestBody?: { required?: boolean; content?: Record<string, { schema?: { required?: string[] } }> };
  responses?: Record<string, { content?: Record<string, unknown> }>;
}

function operationsOf(document: object): DocumentedOperation[] {
  const { paths = {} } = document as { paths?: Record<string, Record<string, DocumentedOperation>> };
  return Object.values(paths).flatMap((path) => Object.values(path));
}

function answerProblem(reply: FastifyReply, problem: Problem): FastifyReply {
  return reply
    .status(problem.status)
    .header('content-type', 'application/problem+json')
    .serializer((body: unknown) => JSON.stringify(body))
    .send(problem.body());
}

/** What is no HTTP at all never reaches a route. */
function answerBadHttp(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const body = JSON.stringify(new Problem('REQUEST_MALFORMED', 'The request could not be read as HTTP.').body());
  socket.end(
    `HTTP/1.1 400 ${STATUS_CODES[400]}\r\ncontent-type: application/problem+json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}
