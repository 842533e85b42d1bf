import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { isAlive } from '@stillpoint/engine/temporal/cache.js';
import { connectClient } from '@stillpoint/engine/temporal/connection.js';
import { type DevServer, type DevServerOptions, startDevServer } from '@stillpoint/engine/temporal/dev-server.js';
import { registerSearchAttributes } from '@stillpoint/engine/temporal/search-attributes.js';
import { defineSearchAttributeKey } from '@temporalio/common';
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';

import { installedTemporal } from './fixtures/installed-command.js';

const vm = defineSearchAttributeKey('StillpointVm', 'KEYWORD');
const windowMs = defineSearchAttributeKey('StillpointWindowMs', 'DOUBLE');

let command: string;
let stateFolder: string;
let servers: DevServer[];

beforeAll(async () => {
  command = await installedTemporal();
}, 600_000);

beforeEach(async () => {
  stateFolder = await mkdtemp(join(tmpdir(), 'stillpoint-temporal-'));
  servers = [];
});

afterEach(async () => {
  await Promise.all(servers.map((server) => server.stop()));
  await rm(stateFolder, { recursive: true, force: true });
});

async function start(options: Partial<DevServerOptions> = {}): Promise<DevServer> {
  const server = await startDevServer({ command, stateFolder, ...options });
  servers.push(server);
  return server;
}

describe('the development server', () => {
  it('keeps its state when it is killed and started again on the same folder', async () => {
    const first = await start();
    const before = await connectClient(first.settings);
    await registerSearchAttributes(before.connection, 'default', [vm, windowMs]);
    const { firstExecutionRunId } = await before.client.workflow.start('nobodyRunsThis', {
      taskQueue: 'nobody',
      workflowId: 'vm-1',
      typedSearchAttributes: [{ key: vm, value: 'web-1' }],
    });
    await before.connection.close();
    process.kill(first.pid, 'SIGKILL');
    expect(await first.ended).toContain('SIGKILL');

    const second = await start();
    const after = await connectClient(second.settings);
    const { customAttributes } = await after.connection.operatorService.listSearchAttributes({ namespace: 'default' });
    expect(customAttributes).toMatchObject({ StillpointVm: 2, StillpointWindowMs: 4 });
    const run = await after.client.workflow.getHandle('vm-1').describe();
    expect([run.runId, run.status.name]).toEqual([firstExecutionRunId, 'RUNNING']);
    await after.connection.close();
  });

  it('serves the web UI on the port it was given', async () => {
    const [uiPort] = await unusedPorts(1);
    const server = await start({ uiPort: uiPort as number });
    expect(server.uiUrl).toBe(`http://127.0.0.1:${uiPort}`);
    expect((await fetch(server.uiUrl)).status).toBe(200);
  });

  it('is gone after stop, and its folder is free again', async () => {
    const first = await start();
    await first.stop();
    expect(isAlive(first.pid)).toBe(false);
    const second = await start();
    expect(isAlive(second.pid)).toBe(true);
  });

  it('refuses a state folder that another server uses, and names that one', async () => {
    const first = await start();
    await expect(startDevServer({ command, stateFolder, stopTimeoutMs: 1 })).rejects.toMatchObject({
      code: 'TEMPORAL_STATE_IN_USE',
      message: expect.stringContaining(`kill ${first.pid}`),
    });
  });

  it('ends when its owner is killed', async () => {
    const owner = spawn(
      process.execPath,
      [fileURLToPath(new URL('fixtures/server-owner.mjs', import.meta.url)), command, stateFolder],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const [line] = await once(createInterface(owner.stdout), 'line');
    const pid = Number(line);
    expect(isAlive(pid)).toBe(true);
    owner.kill('SIGKILL');
    await vi.waitFor(() => expect(isAlive(pid)).toBe(false), { timeout: 20_000 });
  });

  it('says that a port is in use when it was given one', async () => {
    const taken = createServer().listen(0, '127.0.0.1');
    await once(taken, 'listening');
    const { port } = taken.address() as AddressInfo;
    const [uiPort] = await unusedPorts(1);
    await expect(start({ port, uiPort: uiPort as number })).rejects.toMatchObject({ code: 'TEMPORAL_PORT_IN_USE' });
    taken.close();
  });
});

describe('a server that does not come up', () => {
  it('is an error that ends with the last lines of its log', async () => {
    const broken = await program('echo "no such thing" >&2; exit 3');
    await expect(start({ command: broken })).rejects.toMatchObject({
      code: 'TEMPORAL_DEV_SERVER_FAILED',
      message: expect.stringMatching(/it ended with 3[\s\S]*no such thing/),
    });
  });

  it('is killed when it stays silent', async () => {
    const silent = await program('trap "" TERM; echo "pid $$"; while :; do sleep 1; done');
    const failure = await start({ command: silent, startTimeoutMs: 300, stopTimeoutMs: 50 }).catch(
      (thrown: unknown) => thrown,
    );
    expect(failure).toMatchObject({
      code: 'TEMPORAL_DEV_SERVER_FAILED',
      message: expect.stringMatching(/within 0.3 s[\s\S]*pid \d+/),
    });
    const pid = Number(/pid (\d+)/.exec((failure as Error).message)?.[1]);
    expect(isAlive(pid)).toBe(false);
  });

  it('says so when the command cannot be run at all', async () => {
    await expect(start({ command: join(stateFolder, 'absent') })).rejects.toMatchObject({
      code: 'TEMPORAL_DEV_SERVER_FAILED',
      message: expect.stringContaining('ENOENT'),
    });
  });
});

async function program(body: string): Promise<string> {
  const path = join(stateFolder, 'program');
  await writeFile(path, `#!/bin/sh\n${body}\n`);
  await chmod(path, 0o755);
  return path;
}

async function unusedPorts(count: number): Promise<number[]> {
  const probes = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(probes.map((probe) => once(probe, 'listening')));
  const ports = probes.map((probe) => (probe.address() as AddressInfo).port);
  await Promise.all(probes.map((probe) => new Promise((resolve) => probe.close(resolve))));
  return ports;
}
