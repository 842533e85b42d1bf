/**
 * Death at each step between freeze and thaw. The proxy before libvirt holds the flow at the step, the process is killed (or stopped) there, and libvirt's log
 * and the guest's kernel say for how long the guest stayed frozen after that: our own journal is not asked.
 */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';
import type { FrameMatch, HeldFrame } from '@stillpoint/lab/libvirt-proxy.js';
import { afterAll, expect } from 'vitest';
import { VM } from './whole-system.js';
import { world } from './world.js';

/** Invariant 1: that long after a death, the restart included, no guest is frozen any more. */
const LIMIT_MS = 5_000;

/** ms that the guest stayed frozen after a death, by cell. */
const frozenAfterDeath: [string, number][] = [];

/** Tells for how long the guest stayed frozen in the cells of this file. */
export function reportDeaths(): void {
  afterAll(() => {
    for (const [cell, ms] of frozenAfterDeath) console.log(`${cell.padEnd(90)} ${ms.toFixed(0).padStart(5)} ms`);
    const [cell, longest] = frozenAfterDeath.reduce((most, next) => (next[1] > most[1] ? next : most), ['none', 0]);
    console.log(
      `Longest frozen time after a death: ${longest.toFixed(0)} ms (${cell}), of ${frozenAfterDeath.length} cells`,
    );
  });
}

export interface Step {
  readonly name: string;
  /** Holds the flow there, once it comes so far. */
  hold(): Promise<HeldFrame>;
  /** The guest is frozen there for as long as the flow is held. */
  readonly isFrozen: boolean;
  /** What is held keeps every thaw back, or is one: it is let go as soon as the victim is dead. */
  readonly blocksTheThaw: boolean;
}

const held = (match: FrameMatch) => async () => world.proxy.hold(match);

export const steps: readonly Step[] = [
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

export const stepsNamed = (...names: string[]) => steps.filter(({ name }) => names.some((part) => name.includes(part)));

/** Asks for a snapshot and returns when the flow is held at the step. */
export async function snapshotAt(step: Step): Promise<{ id: string; frame: HeldFrame; log: LibvirtLog }> {
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
export async function expectThawedSince(diedAt: number, log: LibvirtLog): Promise<void> {
  await world.lab.guest.waitUntilThawed(30_000);
  expect(frozenMsAfter(diedAt, log)).toBeLessThanOrEqual(LIMIT_MS);
}

/**
 * The run ends by itself: complete with a grade that fsck and the order of writes confirm, or failed; then nothing is left. No freeze outlasted the death by
 * more than 5 s, also none that the death met under way.
 */
export async function expectTrueEnd(id: string, cell: string, diedAt: number, log: LibvirtLog): Promise<void> {
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
