import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connectClient } from '@stillpoint/engine/temporal/connection.js';
import { type DevServer, startDevServer } from '@stillpoint/engine/temporal/dev-server.js';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';
import { EngineProgram } from './fixtures/engine-program.js';

let folder: string;
let command: string;
let temporal: DevServer;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-engine-program-'));
  command = await installedTemporal();
  temporal = await startDevServer({ command, stateFolder: join(folder, 'temporal') });
});
afterAll(async () => {
  await temporal?.stop();
  await rm(folder, { recursive: true, force: true });
});

let engines: EngineProgram[] = [];
afterEach(async () => {
  await Promise.all(engines.map((engine) => engine.stop()));
  engines = [];
});

const engineOn = async (stateFolder: string, more = {}) => {
  const engine = await EngineProgram.start(folder, { stateFolder, ...more }, { TEMPORAL_ADDRESS: temporal.address });
  engines.push(engine);
  return engine;
};

async function restartTemporal(): Promise<void> {
  const port = Number(temporal.address.split(':').at(-1));
  temporal = await startDevServer({ command, stateFolder: join(folder, 'temporal'), port });
}

test('SIGTERM ends the engine with 0 and gives the catalogue back', async () => {
  const stateFolder = join(folder, 'sigterm');
  const engine = await engineOn(stateFolder);
  await engine.said(/^ready$/);
  expect(await engine.status('/readyz')).toBe(200);
  expect(existsSync(join(stateFolder, 'catalogue.lock'))).toBe(true);
  expect(await engine.stop()).toEqual({ code: 0, err: '' });
  expect(existsSync(join(stateFolder, 'catalogue.lock'))).toBe(false);
});

test('a second engine on the same catalogue ends 1 and says what to do', async () => {
  const stateFolder = join(folder, 'second');
  const first = await engineOn(stateFolder);
  await first.api();
  const second = await engineOn(stateFolder);
  const { code, err } = await second.ended;
  expect(code).toBe(1);
  expect(err).toContain(`Process ${first.process.pid} holds the catalogue`);
  expect(err).toContain('Stop the other engine');
});

test('the engine starts while Temporal is away, answers for hosts and VMs, and is ready once Temporal is there', async () => {
  await temporal.stop();
  const engine = await engineOn(join(folder, 'early'));
  await engine.said(/^Not ready, will try again: Temporal does not answer/);
  expect(await engine.status('/readyz')).toBe(503);
  expect(await engine.status('/v1/vms')).toBe(200);
  await restartTemporal();
  await engine.said(/^ready$/);
  expect(await engine.status('/readyz')).toBe(200);
});

test('the engine can be stopped while Temporal is away', async () => {
  const engine = await engineOn(join(folder, 'away'));
  await engine.said(/^ready$/);
  await temporal.stop();
  expect(await engine.status('/readyz')).toBe(503);
  expect(await engine.stop()).toEqual({ code: 0, err: '' });
  await restartTemporal();
});

test('the engine outlives a restart of Temporal', async () => {
  const engine = await engineOn(join(folder, 'restart'));
  await engine.said(/^ready$/);
  await temporal.stop();
  expect(await engine.status('/readyz')).toBe(503);
  await restartTemporal();
  await expect.poll(() => engine.status('/readyz'), { timeout: 30_000 }).toBe(200);
  expect(engine.process.exitCode).toBeNull();
});

test('an engine makes the schedule of its installation, as often as its configuration says, and another start leaves it', async () => {
  const { client, connection } = await connectClient(temporal.settings);
  const schedules = async () => {
    const ids: string[] = [];
    for await (const { scheduleId } of client.schedule.list()) ids.push(scheduleId);
    return ids.filter((id) => id.startsWith('stillpoint-reconcile-') && !before.includes(id));
  };
  const before: string[] = [];
  try {
    before.push(...(await schedules()));
    for (const reconcileEveryMs of [120_000, 180_000]) {
      const engine = await engineOn(join(folder, 'scheduled'), { reconcileEveryMs });
      await expect
        .poll(
          async () => {
            const handles = (await schedules()).map((id) => client.schedule.getHandle(id));
            return (await Promise.all(handles.map((handle) => handle.describe()))).map(({ spec }) => spec.intervals);
          },
          { timeout: 30_000 },
        )
        .toMatchObject([[{ every: reconcileEveryMs }]]);
      expect((await engine.stop()).code).toBe(0);
    }
  } finally {
    await connection.close();
  }
});
