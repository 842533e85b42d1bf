import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { KnownCloud } from '@stillpoint/engine/api/cloud-routes.js';
import { type Api, type ApiTimes, buildApi } from '@stillpoint/engine/api/server.js';
import type { Catalogue } from '@stillpoint/engine/catalogue/catalogue.js';
import { openCatalogue } from '@stillpoint/engine/catalogue/open.js';
import { pino } from 'pino';
import { expect } from 'vitest';
import { z } from 'zod';

import { FakeDoctor, FakeHosts, FakeRuns } from './fakes.js';

type Json = Record<string, unknown>;
interface Operation {
  responses: Record<string, { content?: Record<string, { schema: Json }> }>;
}
interface Document extends Json {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
}

export interface Answer {
  status: number;
  headers: Record<string, unknown>;
  // biome-ignore lint/suspicious/noExplicitAny: what a test expects is the type
  body: any;
}

/** The API over the real embedded catalogue, with hosts and Temporal in memory. Every answer is held against the OpenAPI document. */
export class ServedApi {
  readonly hosts = new FakeHosts();
  readonly runs = new FakeRuns();
  readonly doctor = new FakeDoctor();
  readonly catalogue: Catalogue;
  readonly app: Api;
  readonly document: Document;
  readonly #folder: string | undefined;
  readonly #others: Api[] = [];

  static async start(times: ApiTimes = { vmsKeptMs: 0 }): Promise<ServedApi> {
    const folder = await mkdtemp(join(tmpdir(), 'stillpoint-api-'));
    return new ServedApi(folder, await openCatalogue(folder)).#ready(times, undefined);
  }

  /** An API whose catalogue nobody asks: opening the real one takes seconds. */
  static withoutCatalogue(times: ApiTimes, cloud: KnownCloud | undefined): Promise<ServedApi> {
    const nobodys: Pick<Catalogue, 'disconnect'> = { disconnect: async () => {} };
    return new ServedApi(undefined, nobodys as Catalogue).#ready(times, cloud);
  }

  private constructor(folder: string | undefined, catalogue: Catalogue) {
    this.#folder = folder;
    this.catalogue = catalogue;
    this.app = undefined as unknown as Api;
    this.document = undefined as unknown as Document;
  }

  async #ready(times: ApiTimes, cloud: KnownCloud | undefined): Promise<ServedApi> {
    const { catalogue, hosts, runs, doctor } = this;
    const app = await buildApi({ catalogue, hosts, runs, doctor, cloud, log: pino({ level: 'silent' }) }, times);
    const document = app.swagger() as unknown as Document;
    return Object.assign(this, { app, document });
  }

  /** A second API over the same catalogue, with a Temporal of its own that knows no run; stops with this one. */
  async anotherEngine(times: ApiTimes = { vmsKeptMs: 0 }, cloud?: KnownCloud): Promise<ServedApi> {
    const other = await new ServedApi(this.#folder, this.catalogue).#ready(times, cloud);
    this.#others.push(other.app);
    return other;
  }

  async stop(): Promise<void> {
    for (const app of this.#others) await app.close();
    await this.app.close();
    await this.catalogue.disconnect();
    if (this.#folder !== undefined) await rm(this.#folder, { recursive: true });
  }

  async ask(
    method: 'GET' | 'POST' | 'DELETE' | 'PUT' | 'PATCH',
    url: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer> {
    const answer = await this.app.inject({
      method,
      url,
      headers: { host: '127.0.0.1:8700', ...headers },
      ...(body === undefined ? {} : { payload: body as object }),
    });
    const json = answer.body === '' ? undefined : JSON.parse(answer.body);
    this.#holdAgainstDocument(method, url, answer.statusCode, String(answer.headers['content-type'] ?? ''), json);
    return { status: answer.statusCode, headers: answer.headers, body: json };
  }

  #holdAgainstDocument(method: string, url: string, status: number, contentType: string, body: unknown): void {
    if (status >= 400) {
      expect(contentType).toMatch(/^application\/problem\+json/);
      expect(body).toMatchObject({
        status,
        code: expect.any(String),
        type: expect.stringMatching(/^urn:stillpoint:problem:/),
      });
    }
    const path = url.split('?', 1)[0] ?? '';
    const operation = Object.entries(this.document.paths).find(([pattern]) =>
      new RegExp(`^${pattern.replace(/\{[^}]+\}/g, '[^/]+')}$`).test(path),
    )?.[1][method.toLowerCase()];
    if (operation === undefined) {
      // Unknown addresses and methods, and the document itself.
      expect([200, 400, 403, 404, 405]).toContain(status);
      return;
    }
    const response = operation.responses[status] ?? operation.responses[`${String(status)[0]}XX`];
    expect(response, `${method} ${path} answers ${status}, which the document does not know`).toBeDefined();
    const schema = Object.values(response?.content ?? {})[0]?.schema;
    if (schema === undefined || body === undefined) return;
    const parsed = z.fromJSONSchema(this.#resolved(schema) as never).safeParse(body);
    expect(parsed.success ? '' : z.prettifyError(parsed.error)).toBe('');
  }

  #resolved(schema: unknown): unknown {
    if (Array.isArray(schema)) return schema.map((each) => this.#resolved(each));
    if (typeof schema !== 'object' || schema === null) return schema;
    const { $ref } = schema as { $ref?: string };
    if ($ref !== undefined) {
      const target = $ref
        .slice(2)
        .split('/')
        .reduce<unknown>((at, part) => (at as Json)[part], this.document);
      expect(target, `${$ref} is in the document`).toBeDefined();
      return this.#resolved(target);
    }
    return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, this.#resolved(value)]));
  }
}
