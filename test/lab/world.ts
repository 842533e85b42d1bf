import { afterAll, afterEach, beforeAll } from 'vitest';
import { WholeSystem } from './whole-system.js';

/** The lab and the system of this test file: a start costs ten seconds of a processor, so several suites share one. */
export let world: WholeSystem;

/** Starts the world of this file, mends it after each test and ends it after the last. `name`: of the state folder. */
export function oneWorld(name: string): void {
  beforeAll(async () => {
    world = await WholeSystem.start(name);
  });
  afterAll(async () => {
    await world?.stop();
  });
  afterEach(async () => {
    await world.mend();
    await world.waitUntilNobodyHolds();
  });
}
