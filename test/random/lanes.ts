import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connectClient, plainSettings } from '@stillpoint/engine/temporal/connection.js';
import { installRuntime } from '@stillpoint/engine/temporal/runtime.js';
import { pino } from 'pino';
import { Lane, leanBundle } from './lane.js';
import type { FromLanes, ToLanes } from './net.js';
import { runScenario } from './run.js';
import { scenarioOf } from './scenario.js';

/** A process of lanes (net.ts): runs the seeds that it is given, several side by side. An error that nobody handles ends it, and is a finding. */

const waiting: ((seed: number | undefined) => void)[] = [];

function nextSeed(): Promise<number | undefined> {
  return new Promise((resolve) => {
    waiting.push(resolve);
    tell({ type: 'next' });
  });
}

function tell(message: FromLanes): void {
  process.send?.(message);
}

async function open({ name, lanes, folder, address, logFolder }: Extract<ToLanes, { type: 'open' }>): Promise<void> {
  installRuntime(pino({ level: 'silent' }));
  const { client, connection } = await connectClient(plainSettings(address));
  const bundlePath = join(folder, `${name}.js`);
  await leanBundle(fileURLToPath(import.meta.resolve('@stillpoint/workflows/bundle')), bundlePath);
  await Promise.all(
    Array.from({ length: lanes }, async (_, i) => {
      const lane = await Lane.open({
        name: `${name}-${i}`,
        folder: join(folder, `${name}-${i}`),
        client,
        temporal: { address, namespace: 'default' },
        bundlePath,
        ...(logFolder === undefined ? {} : { logFile: join(logFolder, `${name}-${i}.log`) }),
      });
      for (let seed = await nextSeed(); seed !== undefined; seed = await nextSeed()) {
        tell({ type: 'outcome', outcome: await runScenario(lane, scenarioOf(seed)) });
      }
      await lane.close();
    }),
  );
  await connection.close();
  const { user, system } = process.cpuUsage();
  tell({ type: 'processor time', seconds: (user + system) / 1e6 });
  process.disconnect();
}

process.on('message', (message: ToLanes) => {
  if (message.type === 'seed') waiting.shift()?.(message.seed);
  else void open(message);
});
process.on('disconnect', () => process.exit());
