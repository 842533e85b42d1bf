import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';

import { problemCodes, statusOf } from '@stillpoint/engine/api/problems.js';
import { cinderErrors } from '@stillpoint/engine/cinder/errors.js';
import { hostAgentErrorCodes } from '@stillpoint/host-agent/errors.js';
import { workflowErrors } from '@stillpoint/workflows';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';

import { someVm } from './fakes.js';
import { ServedApi } from './served.js';

interface Operation {
  responses: Record<string, { content?: Record<string, unknown> }>;
}

describe('the edge of the REST API', () => {
  let served: ServedApi;
  beforeAll(async () => {
    served = await ServedApi.start();
    served.hosts.add('host-a', someVm());
  });
  afterAll(() => served.stop());

  it('is described by OpenAPI 3.1, every route and what it answers', async () => {
    const { body } = await served.ask('GET', '/openapi.json');
    expect(body.openapi).toBe('3.1.0');
    expect(Object.keys(body.paths).sort()).toEqual([
      '/healthz',
      '/readyz',
      '/v1/cloud',
      '/v1/doctor',
      '/v1/doctor/{id}',
      '/v1/hosts',
      '/v1/hosts/{name}',
      '/v1/snapshots',
      '/v1/snapshots/{id}',
      '/v1/snapshots/{id}/cancel',
      '/v1/snapshots/{id}/cleanup',
      '/v1/vms',
      '/v1/vms/{vm}',
      '/v1/vms/{vm}/snapshots',
      '/v1/vms/{vm}/thaw',
    ]);
    const { schema } = body.paths['/v1/vms/{vm}/snapshots'].post.requestBody.content['application/json'];
    expect(schema.additionalProperties).toBe(false);
    expect(schema.properties.windowLimitMs).toMatchObject({ minimum: 100, maximum: 60_000 });
  });

  it('says in its OpenAPI document of what type a problem is, and which body may be left out', async () => {
    const { body } = await served.ask('GET', '/openapi.json');
    const operations = Object.values<Record<string, Operation>>(body.paths).flatMap((path) => Object.values(path));
    const types = (status: RegExp) =>
      operations.flatMap(({ responses }) =>
        Object.entries(responses)
          .filter(([code]) => status.test(code))
          .flatMap(([, { content }]) => Object.keys(content ?? {})),
      );
    expect(new Set(types(/^[45]/))).toEqual(new Set(['application/problem+json']));
    expect(new Set(types(/^2/))).toEqual(new Set(['application/json']));
    expect(body.paths['/v1/hosts'].post.requestBody.required).toBe(true);
    for (const route of ['/v1/doctor', '/v1/vms/{vm}/snapshots']) {
      expect(body.paths[route].post.requestBody.required).toBe(false);
    }
  });

  it('knows every code of the host agent', () => {
    expect(problemCodes).toEqual(expect.arrayContaining([...hostAgentErrorCodes]));
  });

  it('has every code with its status in docs/api.md, and no other', async () => {
    const text = await readFile(new URL('../../docs/api.md', import.meta.url), 'utf8');
    const documented = [...text.matchAll(/^\| `([A-Z_]+)` \| (\d+) \|/gm)].map(
      ([, code, status]) => `${code} ${status}`,
    );
    expect(documented.sort()).toEqual(problemCodes.map((code) => `${code} ${statusOf(code)}`).sort());
  });

  it('tells in docs/workflows.md every code with which a run may end, in the code’s own words', async () => {
    const text = await readFile(new URL('../../docs/workflows.md', import.meta.url), 'utf8');
    const documented = Object.fromEntries(
      [...text.matchAll(/^\| `([A-Z_]+)` \| (.+) \|$/gm)].map(([, code, words]) => [code, words]),
    );
    expect(documented).toEqual({ ...workflowErrors, ...cinderErrors });
  });

  it('lives and is ready, and says what is not', async () => {
    expect((await served.ask('GET', '/healthz')).status).toBe(200);
    expect((await served.ask('GET', '/readyz')).status).toBe(200);
    served.runs.unavailable = new Error('down');
    expect(await served.ask('GET', '/readyz')).toMatchObject({
      status: 503,
      body: { code: 'NOT_READY', notReady: ['temporal'] },
    });
    served.runs.unavailable = undefined;
  });

  it('says that it is not ready when Temporal does not answer at all', async () => {
    const hasty = await served.anotherEngine({ readyTimeoutMs: 1_000 });
    hasty.runs.ping = () => new Promise(() => {});
    expect(await hasty.ask('GET', '/readyz')).toMatchObject({ status: 503, body: { notReady: ['temporal'] } });
  });

  it.each(['evil.example', 'evil.example:8700', '127.0.0.1.evil.example', '10.0.0.1:8700', 'localhost@evil.example'])(
    'refuses the Host %s, which a rebound name carries',
    async (host) => {
      expect(await served.ask('GET', '/v1/vms', undefined, { host })).toMatchObject({
        status: 403,
        body: { code: 'HOST_HEADER_REFUSED' },
      });
    },
  );

  it.each(['127.0.0.1', '127.0.0.1:8700', 'localhost:1', '[::1]:8700', 'LOCALHOST'])(
    'answers to the Host %s',
    async (host) => {
      expect((await served.ask('GET', '/healthz', undefined, { host })).status).toBe(200);
    },
  );

  it('refuses a page of another site, and allows none by CORS', async () => {
    for (const origin of ['https://evil.example', 'http://localhost:3000', 'null']) {
      expect((await served.ask('POST', '/v1/vms/web-1/thaw', undefined, { origin })).status).toBe(403);
    }
    const own = await served.ask('GET', '/v1/vms', undefined, { origin: 'http://127.0.0.1:8700' });
    expect(own.status).toBe(200);
    expect(Object.keys(own.headers).filter((name) => name.startsWith('access-control'))).toEqual([]);
  });

  it('answers 404 to unknown addresses and 405 with Allow to unknown methods', async () => {
    for (const url of ['/', '/v1', '/v1/vms/a/b', '/v2/vms', '/v1/snapshots/x/y/z']) {
      expect(await served.ask('GET', url)).toMatchObject({ status: 404, body: { code: 'NOT_FOUND' } });
    }
    expect(await served.ask('PUT', '/v1/hosts')).toMatchObject({ status: 405, headers: { allow: 'GET, HEAD, POST' } });
    expect(await served.ask('POST', '/v1/snapshots/x')).toMatchObject({
      status: 405,
      body: { allow: 'DELETE, GET, HEAD' },
    });
    expect((await served.ask('GET', '/v1/vms/web-1/thaw')).status).toBe(405);
    // Whatever they carry.
    expect((await served.ask('PUT', '/v1/hosts', 'x', { 'content-type': 'text/plain' })).status).toBe(405);
    const query = await served.app.inject({
      method: 'QUERY' as 'GET',
      url: '/v1/hosts',
      headers: { host: 'localhost' },
    });
    expect(query.statusCode).toBe(405);
  });

  it.each([
    ['no JSON', '{', 'application/json', 400, 'BODY_MALFORMED'],
    ['an empty body that says it is JSON', '', 'application/json', 400, 'BODY_MALFORMED'],
    ['null', 'null', 'application/json', 400, 'INPUT_INVALID'],
    ['a prototype', '{"__proto__":{"name":"x"}}', 'application/json', 400, 'BODY_MALFORMED'],
    ['a constructor', '{"constructor":{"prototype":{}}}', 'application/json', 400, 'BODY_MALFORMED'],
    ['a form', 'name=x', 'application/x-www-form-urlencoded', 415, 'MEDIA_TYPE_UNSUPPORTED'],
    ['text', '{}', 'text/plain', 415, 'MEDIA_TYPE_UNSUPPORTED'],
    ['more than the limit', JSON.stringify({ name: 'x'.repeat(70_000) }), 'application/json', 413, 'BODY_TOO_LARGE'],
    ['deep nesting', `{"name":${'['.repeat(30_000)}${']'.repeat(30_000)}}`, 'application/json', 400, 'INPUT_INVALID'],
  ])('answers a body of %s clearly', async (_what, payload, type, status, code) => {
    for (const url of ['/v1/hosts', '/v1/vms/web-1/snapshots']) {
      expect(await served.ask('POST', url, payload, { 'content-type': type })).toMatchObject({
        status,
        body: { code },
      });
    }
  });

  it.each([
    '/v1/vms/',
    '/v1/vms/%',
    '/v1/vms/%zz',
    '/v1/vms/%00',
    `/v1/vms/${'x'.repeat(400)}`,
    '/v1/vms/%F0%28%8C%28',
    '//',
    '/v1/snapshots?%',
  ])('answers %s with a 4xx', async (url) => {
    const { status } = await served.ask('GET', url);
    expect(status).toBeGreaterThanOrEqual(400);
    expect(status).toBeLessThan(500);
  });

  it('tells nothing of its insides when it fails', async () => {
    const failing = vi.spyOn(served.catalogue, 'listHosts').mockRejectedValue(new Error('secret insides'));
    const answer = await served.ask('GET', '/v1/hosts');
    expect(answer).toMatchObject({ status: 500, body: { code: 'INTERNAL' } });
    expect(JSON.stringify(answer.body)).not.toContain('secret');
    failing.mockRestore();
  });

  it('answers 400 to what is no HTTP', async () => {
    await served.app.listen({ host: '127.0.0.1', port: 0 });
    const address = served.app.server.address();
    if (address === null || typeof address === 'string') throw new Error('no port');
    const socket = connect(address.port, '127.0.0.1');
    socket.write('\u0016\u0003\u0001 hello\r\n\r\n');
    const chunks: Buffer[] = [];
    socket.on('data', (chunk) => chunks.push(chunk));
    await once(socket, 'close');
    expect(Buffer.concat(chunks).toString()).toMatch(/^HTTP\/1.1 400 .*"code":"REQUEST_MALFORMED"/s);
  });
});
