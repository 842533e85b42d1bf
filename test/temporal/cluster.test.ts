import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { fileURLToPath } from 'node:url';

import { status } from '@grpc/grpc-js';
import {
  type ConnectedClient,
  connectClient,
  connectWorker,
  plainSettings,
} from '@stillpoint/engine/temporal/connection.js';
import { type DevServer, startDevServer } from '@stillpoint/engine/temporal/dev-server.js';
import { installRuntime } from '@stillpoint/engine/temporal/runtime.js';
import { registerSearchAttributes } from '@stillpoint/engine/temporal/search-attributes.js';
import { searchAttributes } from '@stillpoint/workflows';
import type { Client, Connection } from '@temporalio/client';
import { defineSearchAttributeKey } from '@temporalio/common';
import { bundleWorkflowCode, DefaultLogger, Worker } from '@temporalio/worker';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';

import { installedTemporal } from './fixtures/installed-command.js';
import { refusingCluster } from './fixtures/refusing-cluster.js';

const keys = Object.values(searchAttributes);
const logged: string[] = [];
const logStream = new PassThrough().setEncoding('utf8').on('data', (line: string) => logged.push(line));

let folder: string;
let server: DevServer;
let client: Client;
let connection: Connection;

beforeAll(async () => {
  installRuntime(pino(logStream));
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-cluster-'));
  server = await startDevServer({ command: await installedTemporal(), stateFolder: folder });
  ({ client, connection } = await connectClient(server.settings));
}, 600_000);

afterAll(async () => {
  await connection.close();
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});

describe('a cluster that exists', () => {
  it('has the search attributes once they are registered, at once usable, however often that is asked', async () => {
    await Promise.all([
      registerSearchAttributes(connection, 'default', keys),
      registerSearchAttributes(connection, 'default', keys),
    ]);
    await registerSearchAttributes(connection, 'default', keys);
    await client.workflow.start('nobodyRunsThis', {
      taskQueue: 'nobody',
      workflowId: 'vm-attributes',
      typedSearchAttributes: [{ key: defineSearchAttributeKey('StillpointGrade', 'KEYWORD'), value: 'per-disk' }],
    });
    const run = await client.workflow.getHandle('vm-attributes').describe();
    expect(run.typedSearchAttributes.get(defineSearchAttributeKey('StillpointGrade', 'KEYWORD'))).toBe('per-disk');
  });

  it('keeps a search attribute of that name and another type, which is an error', async () => {
    await registerSearchAttributes(connection, 'default', [{ name: 'StillpointTaken', type: 'INT' }]);
    await expect(
      registerSearchAttributes(connection, 'default', [{ name: 'StillpointTaken', type: 'KEYWORD' }]),
    ).rejects.toMatchObject({ code: 'SEARCH_ATTRIBUTES_TYPE_CONFLICT' });
  });

  it('runs a bundle that was made beforehand, and the logs of workflow and SDK come to ours', async () => {
    const { code } = await bundleWorkflowCode({
      workflowsPath: fileURLToPath(new URL('fixtures/greeting-workflow.ts', import.meta.url)),
      logger: new DefaultLogger('ERROR'),
    });
    const codePath = join(folder, 'bundle.js');
    await writeFile(codePath, code);
    const workerConnection = await connectWorker(server.settings);
    const worker = await Worker.create({
      connection: workerConnection,
      taskQueue: 'greetings',
      workflowBundle: { codePath },
    });
    const answer = await worker.runUntil(
      client.workflow.execute('greeting', { taskQueue: 'greetings', workflowId: 'vm-greeting', args: ['Ada'] }),
    );
    await workerConnection.close();
    expect(answer).toBe('hello Ada');
    const lines = logged
      .join('')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(lines).toContainEqual(expect.objectContaining({ level: 30, msg: 'greeting', name: 'Ada' }));
  });

  it('says which namespace is missing and how to create it', async () => {
    await expect(connectClient(plainSettings(server.address, 'absent'))).rejects.toMatchObject({
      code: 'TEMPORAL_NAMESPACE_NOT_FOUND',
      message: expect.stringContaining('temporal operator namespace create --namespace absent'),
    });
  });
});

describe('a cluster that is not ours', () => {
  let stop = (): void => {};
  afterEach(() => stop());

  async function connected(answers: Parameters<typeof refusingCluster>[0]): Promise<ConnectedClient> {
    const cluster = await refusingCluster(answers);
    const other = await connectClient(plainSettings(cluster.address));
    stop = () => {
      void other.connection.close();
      cluster.stop();
    };
    return other;
  }

  it.each([
    ['lets us ask but not add', { AddSearchAttributes: status.PERMISSION_DENIED }],
    [
      'has no operator service for us and does not know the attributes',
      { ListSearchAttributes: status.UNIMPLEMENTED, CountWorkflowExecutions: status.INVALID_ARGUMENT },
    ],
  ])('gives the commands for someone who may, when it %s', async (_, answers) => {
    const other = await connected(answers);
    await expect(registerSearchAttributes(other.connection, 'default', keys)).rejects.toMatchObject({
      code: 'SEARCH_ATTRIBUTES_REFUSED',
      message: expect.stringMatching(
        /--namespace default --name StillpointVm --type Keyword\n[\s\S]*--name StillpointWindowMs --type Double/,
      ),
    });
  });

  it('is good enough without rights when an administrator has registered the attributes', async () => {
    const other = await connected({ ListSearchAttributes: status.PERMISSION_DENIED });
    await expect(registerSearchAttributes(other.connection, 'default', keys)).resolves.toBeUndefined();
  });

  it('is an error when it never comes to know what it accepted', async () => {
    const other = await connected({ CountWorkflowExecutions: status.INVALID_ARGUMENT });
    const options = { readyTimeoutMs: 20, pollMs: 5 };
    await expect(registerSearchAttributes(other.connection, 'default', keys, options)).rejects.toMatchObject({
      code: 'SEARCH_ATTRIBUTES_NOT_READY',
    });
  });

  it('may forbid asking for the namespace', async () => {
    const other = await connected({ DescribeNamespace: status.PERMISSION_DENIED });
    expect(other.client.options.namespace).toBe('default');
  });
});

describe('a cluster that does not answer', () => {
  it.each([
    ['a client', () => connectClient(plainSettings('127.0.0.1:1'), 200)],
    ['a worker', () => connectWorker(plainSettings('127.0.0.1:1'))],
  ])('gives %s an error that names the address', async (_, connect) => {
    await expect(connect()).rejects.toMatchObject({
      code: 'TEMPORAL_UNREACHABLE',
      message: expect.stringContaining('127.0.0.1:1'),
    });
  });
});
