import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type TemporalWorld, temporalWorld } from '../workflows/fixtures/temporal.js';
import { Lane, leanBundle } from './lane.js';
import { type Outcome, runScenario } from './run.js';
import { scenarioOf } from './scenario.js';

/** A few scenarios of `npm run random`, so that the net itself stays whole. */

/** Without the death of an engine, whose steps take their time to time out. */
const quickSeeds = [3, 14, 17, 23];

let temporal: TemporalWorld;
let folder: string;
const lanes: Lane[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-random-'));
  temporal = await temporalWorld();
  const { client, address } = temporal;
  const bundlePath = join(folder, 'workflows.js');
  await leanBundle(temporal.bundlePath, bundlePath);
  for (const name of ['lane-a', 'lane-b']) {
    lanes.push(
      await Lane.open({
        name,
        folder: join(folder, name),
        client,
        temporal: { address, namespace: 'default' },
        bundlePath,
      }),
    );
  }
});

afterAll(async () => {
  await Promise.all(lanes.map((lane) => lane.close()));
  await temporal.close();
  await rm(folder, { recursive: true, force: true });
});

describe('random faults', () => {
  it('make the same scenario of the same seed', () => {
    expect(scenarioOf(4711)).toEqual(scenarioOf(4711));
    expect(scenarioOf(4711)).not.toEqual(scenarioOf(4712));
  });

  it('break no invariant', async () => {
    const seeds = [...quickSeeds];
    const outcomes: Outcome[] = [];
    await Promise.all(
      lanes.map(async (lane) => {
        for (let seed = seeds.shift(); seed !== undefined; seed = seeds.shift()) {
          outcomes.push(await runScenario(lane, scenarioOf(seed)));
        }
      }),
    );
    expect(outcomes).toHaveLength(quickSeeds.length);
    expect(outcomes.filter(({ findings }) => findings.length > 0)).toEqual([]);
  });
});
