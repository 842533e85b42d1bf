import { signalProcess, waitForExit } from '@stillpoint/lab/processes.js';
import { describe, expect, it } from 'vitest';
import { expectThawedSince, expectTrueEnd, reportDeaths, snapshotAt, steps, stepsNamed } from './deaths.js';
import { world } from './world.js';

reportDeaths();

// At every step it is the host agent as a whole that dies; its worker alone where that differs most for its supervisor's next one.
describe("The host agent's worker is killed when", () => {
  it.each(stepsNamed('freeze is answered', 'cut is made', 'thaw is about to be sent'))(
    '$name: thawed within 5 s by the next one, and the run ends by itself',
    async (step) => {
      const { id, letGo, log } = await snapshotAt(step);
      const diedAt = Date.now();
      world.system.killHostAgentWorker();
      await expectThawedSince(diedAt, log);
      letGo();
      await expectTrueEnd(id, `worker killed when ${step.name}`, diedAt, log);
    },
  );
});

describe('The host agent is killed, supervisor and worker, and started again, when', () => {
  it.each(steps)('$name: thawed within 5 s, and the run ends by itself', async (step) => {
    const { system } = world;
    const { id, letGo, log } = await snapshotAt(step);
    const diedAt = Date.now();
    await system.killHostAgent();
    system.startHostAgent();
    await expectThawedSince(diedAt, log);
    letGo();
    await expectTrueEnd(id, `host agent killed when ${step.name}`, diedAt, log);
  });
});

describe('The host agent is told to stop (SIGTERM) when', () => {
  it('the cut is made: it thaws before it goes, and the run ends by itself when it is back', async () => {
    const { system } = world;
    const [step] = stepsNamed('cut is made');
    if (step === undefined) throw new Error('no such step');
    const { id, letGo, log } = await snapshotAt(step);
    const { hostAgent } = system;
    if (hostAgent === undefined) throw new Error('the host agent does not run');
    const toldAt = Date.now();
    expect(signalProcess(hostAgent, 'SIGTERM')).toBe(true);
    await expectThawedSince(toldAt, log);
    letGo();
    expect(await waitForExit(hostAgent, 60_000)).toBe(true);
    system.startHostAgent();
    await expectTrueEnd(id, 'host agent told to stop when the cut is made', toldAt, log);
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
