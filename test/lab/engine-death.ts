import { signalProcess } from '@stillpoint/lab/processes.js';
import { describe, expect, it } from 'vitest';
import { expectThawedSince, expectTrueEnd, reportDeaths, snapshotAt, steps, stepsNamed } from './deaths.js';
import { world } from './world.js';

reportDeaths();

describe('The engine is killed when', () => {
  it.each(steps)('$name: thawed within 5 s, and the run ends by itself', async (step) => {
    const { system } = world;
    const { id, letGo, log } = await snapshotAt(step);
    const diedAt = Date.now();
    await system.killEngine();
    if (step.blocksTheThaw) letGo();
    await expectThawedSince(diedAt, log);
    letGo();

    system.startEngine();
    await system.waitUntilReady();
    await expectTrueEnd(id, `engine killed when ${step.name}`, diedAt, log);
  });
});

describe('The engine is stopped when', () => {
  it.each(stepsNamed('freeze is answered', 'cut is about', 'cut is made'))(
    '$name: thawed within 5 s, and the run ends by itself when it goes on',
    async (step) => {
      const { system } = world;
      const { id, letGo, log } = await snapshotAt(step);
      const { engine } = system;
      if (engine === undefined) throw new Error('the engine does not run');
      const stoppedAt = Date.now();
      expect(signalProcess(engine, 'SIGSTOP')).toBe(true);
      try {
        if (step.blocksTheThaw) letGo();
        await expectThawedSince(stoppedAt, log);
        letGo();
      } finally {
        signalProcess(engine, 'SIGCONT');
      }
      await expectTrueEnd(id, `engine stopped when ${step.name}`, stoppedAt, log);
    },
  );
});

describe('After all that', () => {
  it('the VM’s next snapshot works', async () => {
    const snapshot = await world.snapshot();
    expect(snapshot).toMatchObject({ state: 'complete', grade: 'filesystem' });
    await world.expectConsistent(snapshot);
    await world.system.deleteSnapshot(snapshot.id);
    await world.expectNothingLeft();
  });
});
