import { describe, expect, it } from 'vitest';
import { expectThawedSince, expectTrueEnd, reportDeaths, snapshotAt, steps } from './deaths.js';
import { world } from './world.js';

reportDeaths();

describe('The guest agent is killed, and comes back, when', () => {
  it.each(steps)('$name: thawed within 5 s, and the run ends by itself', async (step) => {
    const { id, letGo, log } = await snapshotAt(step);
    const diedAt = Date.now();
    await world.lab.guest.killAgent();
    letGo();
    await expectThawedSince(diedAt, log);
    await expectTrueEnd(id, `guest agent killed when ${step.name}`, diedAt, log);
  });
});

describe('The guest agent is stopped when', () => {
  it.each(steps)('$name: thawed within 5 s of its going on, and the run ends by itself', async (step) => {
    const { guest } = world.lab;
    const { id, letGo, log } = await snapshotAt(step);
    await guest.stopAgent();
    letGo();
    await guest.contAgent();
    const goesOnAt = Date.now();
    await expectThawedSince(goesOnAt, log);
    await expectTrueEnd(id, `guest agent stopped when ${step.name}`, goesOnAt, log);
  });
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
