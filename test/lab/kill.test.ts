/**
 * Death at each step between freeze and thaw. The proxy before libvirt holds the flow at the step, the process is killed (or stopped) there, and libvirt's log
 * and the guest's kernel say for how long the guest stayed frozen after that: our own journal is not asked.
 */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';
import type { FrameMatch, HeldFrame } from '@stillpoint/lab/libvirt-proxy.js';
import { signalProcess, waitForExit } from '@stillpoint/lab/processes.js';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { VM, WholeSystem } from './whole-system.js';

/** Invariant 1: that long after a death, the restart included, no guest is frozen any more. */
const LIMIT_MS = 5_000;

let world: WholeSystem;
/** ms that the guest stayed frozen after a death, by cell. */
const frozenAfterDeath: [string, number][] = [];

beforeAll(async () => {
  world = await WholeSystem.start('kill');
});
afterAll(async () => {
  await world?.stop();
  for (const [cell, ms] of frozenAfterDeath) console.log(`${cell.padEnd(90)} ${ms.toFixed(0).padStart(5)} ms`);
  const [cell, longest] = frozenAfterDeath.reduce((most, next) => (next[1] > most[1] ? next : most), ['none', 0]);
  console.log(
    `Longest frozen time after a death: ${longest.toFixed(0)} ms (${cell}), of ${frozenAfterDeath.length} cells`,
  );
});
afterEach(async () => {
  await world.mend();
});

interface Step {
  readonly name: string;
  /** Holds the flow there, once it comes so far. */
  hold(): Promise<HeldFrame>;
  /** The guest is frozen there for as long as the flow is held. */
  readonly isFrozen: boolean;
  /** What is held keeps every thaw back, or is one: it is let go as soon as the victim is dead. */
  readonly blocksTheThaw: boolean;
}

const held = (match: FrameMatch) => async () => world.proxy.hold(match);

const steps: readonly Step[] = [
  {
    name: 'the freeze is about to be sent',
    hold: held({ procedure: 'FSFREEZE', what: 'call' }),
    isFrozen: false,
    blocksTheThaw: true,
  },
  {
    name: 'the freeze is answered',
    hold: held({ procedure: 'FSFREEZE', what: 'reply' }),
    isFrozen: true,
    blocksTheThaw: true,
  },
  {
    name: 'the cut is about to be sent',
    hold: held({ procedure: 'SNAPSHOT_CREATE_XML', what: 'call' }),
    isFrozen: true,
    blocksTheThaw: false,
  },
  {
    name: 'the cut is made',
    hold: held({ procedure: 'SNAPSHOT_CREATE_XML', what: 'reply' }),
    isFrozen: true,
    blocksTheThaw: false,
  },
  {
    name: 'the guest is asked whether it is still frozen',
    hold: async () => {
      // The same question was asked before the freeze: the one behind the cut is meant.
      await world.proxy.seen({ procedure: 'SNAPSHOT_CREATE_XML', what: 'reply' });
      return world.proxy.hold({
        procedure: 'AGENT_COMMAND',
        what: 'call',
        where: (payload) => payload.includes('guest-fsfreeze-status'),
      });
    },
    isFrozen: false,
    blocksTheThaw: false,
  },
  {
    name: 'the thaw is about to be sent',
    hold: held({ procedure: 'FSTHAW', what: 'call' }),
    isFrozen: true,
    blocksTheThaw: true,
  },
  {
    name: 'the thaw is answered',
    hold: held({ procedure: 'FSTHAW', what: 'reply' }),
    isFrozen: false,
    blocksTheThaw: false,
  },
];

const stepsNamed = (...names: string[]) => steps.filter(({ name }) => names.some((part) => name.includes(part)));

/** Asks for a snapshot and returns when the flow is held at the step. */
async function snapshotAt(step: Step): Promise<{ id: string; frame: HeldFrame; log: LibvirtLog }> {
  const log = world.lab.log();
  const holding = step.hold();
  const id = await world.system.createSnapshot(VM);
  const frame = await holding;
  await frame.reached;
  if (step.isFrozen) expect(await world.lab.guest.isFrozen()).toBe(true);
  return { id, frame, log };
}

/** How long the guest was frozen after a death at `diedAt` (Date.now()), by libvirt's log: also by a freeze that came only then. */
function frozenMsAfter(diedAt: number, log: LibvirtLog): number {
  const times = log.frozenTimes().map(({ fromMs, untilMs = Date.now() }) => untilMs - Math.max(fromMs, diedAt));
  return Math.max(0, ...times);
}

/** Waits until the guest's kernel holds nothing frozen, which must be so within 5 s of the death. */
async function expectThawedSince(diedAt: number, log: LibvirtLog): Promise<void> {
  await world.lab.guest.waitUntilThawed(30_000);
  expect(frozenMsAfter(diedAt, log)).toBeLessThanOrEqual(LIMIT_MS);
}

/**
 * The run ends by itself: complete with a grade that fsck and the order of writes confirm, or failed; then nothing is left. No freeze outlasted the death by
 * more than 5 s, also none that the death met under way.
 */
async function expectTrueEnd(id: string, cell: string, diedAt: number, log: LibvirtLog): Promise<void> {
  const snapshot: SnapshotView = await world.system.waitForSnapshot(id);
  expect(['complete', 'failed']).toContain(snapshot.state);
  if (snapshot.state === 'complete') {
    expect(snapshot.grade).toBe('filesystem');
    await world.expectConsistent(snapshot);
    await world.system.deleteSnapshot(id);
  } else {
    expect(snapshot).toMatchObject({ grade: null, pending: [] });
    expect(snapshot.error?.text).not.toBe('');
  }
  await world.expectNothingLeft();
  const afterMs = frozenMsAfter(diedAt, log);
  frozenAfterDeath.push([`${cell} -> ${snapshot.state}`, afterMs]);
  expect(afterMs).toBeLessThanOrEqual(LIMIT_MS);
}

describe('The engine is killed when', () => {
  it.each(steps)('$name: thawed within 5 s, and the run ends by itself', async (step) => {
    const { system } = world;
    const { id, frame, log } = await snapshotAt(step);
    const diedAt = Date.now();
    await system.killEngine();
    if (step.blocksTheThaw) frame.release();
    await expectThawedSince(diedAt, log);
    frame.release();

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
      const { id, frame, log } = await snapshotAt(step);
      const { engine } = system;
      if (engine === undefined) throw new Error('the engine does not run');
      const stoppedAt = Date.now();
      expect(signalProcess(engine, 'SIGSTOP')).toBe(true);
      try {
        if (step.blocksTheThaw) frame.release();
        await expectThawedSince(stoppedAt, log);
        frame.release();
      } finally {
        signalProcess(engine, 'SIGCONT');
      }
      await expectTrueEnd(id, `engine stopped when ${step.name}`, stoppedAt, log);
    },
  );
});

describe("The host agent's worker is killed when", () => {
  it.each(steps)('$name: thawed within 5 s by the next one, and the run ends by itself', async (step) => {
    const { id, frame, log } = await snapshotAt(step);
    const diedAt = Date.now();
    world.system.killHostAgentWorker();
    await expectThawedSince(diedAt, log);
    frame.release();
    await expectTrueEnd(id, `worker killed when ${step.name}`, diedAt, log);
  });
});

describe('The host agent is killed, supervisor and worker, and started again, when', () => {
  it.each(steps)('$name: thawed within 5 s, and the run ends by itself', async (step) => {
    const { system } = world;
    const { id, frame, log } = await snapshotAt(step);
    const diedAt = Date.now();
    await system.killHostAgent();
    system.startHostAgent();
    await expectThawedSince(diedAt, log);
    frame.release();
    await expectTrueEnd(id, `host agent killed when ${step.name}`, diedAt, log);
  });
});

describe('The host agent is told to stop (SIGTERM) when', () => {
  it('the cut is made: it thaws before it goes, and the run ends by itself when it is back', async () => {
    const { system } = world;
    const [step] = stepsNamed('cut is made');
    if (step === undefined) throw new Error('no such step');
    const { id, frame, log } = await snapshotAt(step);
    const { hostAgent } = system;
    if (hostAgent === undefined) throw new Error('the host agent does not run');
    const toldAt = Date.now();
    expect(signalProcess(hostAgent, 'SIGTERM')).toBe(true);
    await expectThawedSince(toldAt, log);
    frame.release();
    expect(await waitForExit(hostAgent, 60_000)).toBe(true);
    system.startHostAgent();
    await expectTrueEnd(id, 'host agent told to stop when the cut is made', toldAt, log);
  });
});

describe('The guest agent is killed, and comes back, when', () => {
  it.each(steps)('$name: thawed within 5 s, and the run ends by itself', async (step) => {
    const { id, frame, log } = await snapshotAt(step);
    const diedAt = Date.now();
    await world.lab.guest.killAgent();
    frame.release();
    await expectThawedSince(diedAt, log);
    await expectTrueEnd(id, `guest agent killed when ${step.name}`, diedAt, log);
  });
});

describe('The guest agent is stopped when', () => {
  it.each(steps)('$name: thawed within 5 s of its going on, and the run ends by itself', async (step) => {
    const { guest } = world.lab;
    const { id, frame, log } = await snapshotAt(step);
    await guest.stopAgent();
    frame.release();
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
