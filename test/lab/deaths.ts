/**
 * Death at each step between freeze and thaw. The proxy before libvirt holds the flow at the step, the process is killed (or stopped) there, and libvirt's log
 * and the guest's kernel say for how long the guest stayed frozen after that: our own journal is not asked.
 */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';
import { afterAll, expect } from 'vitest';
import { frozenMsAfter } from '../../matrix/frozen.js';
import { heldBy, localSteps, type Reached, type Step } from '../../matrix/steps.js';
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

/** The matrix's steps between freeze and thaw, named by what is held there, and one more that lies between two of them. */
export const steps: readonly Step[] = [
  ...localSteps
    .filter(({ name }) => ['freezing', 'frozen', 'cutting', 'cuts done', 'thawing', 'thawed'].includes(name))
    .map((step) => ({ ...step, name: step.place })),
  heldBy(
    {
      name: 'the guest is asked whether it is still frozen',
      place: 'behind the cut',
      isFrozen: false,
      blocksTheThaw: false,
    },
    async ({ proxy }) => {
      // The same question was asked before the freeze.
      await proxy.seen({ procedure: 'SNAPSHOT_CREATE_XML', what: 'reply' });
      return proxy.hold({
        procedure: 'AGENT_COMMAND',
        what: 'call',
        where: (payload) => payload.includes('guest-fsfreeze-status'),
      });
    },
  ),
];

export const stepsNamed = (...names: string[]) => steps.filter(({ name }) => names.some((part) => name.includes(part)));

/** Asks for a snapshot and returns when the flow is held at the step. */
export async function snapshotAt(step: Step): Promise<Reached & { log: LibvirtLog }> {
  const log = world.lab.log();
  const reached = await step.reach(world);
  if (step.isFrozen) expect(await world.lab.guest.isFrozen()).toBe(true);
  return { ...reached, log };
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
