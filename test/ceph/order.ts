/**
 * A writer in the guest puts an increasing number alternately on every file system, local and on Ceph, fsync each. What a snapshot's disks hold of it says
 * whether they are of one instant. The snapshots stay, so that nothing is merged under an image that is read: this comes last.
 */
import type { SetReport } from '@stillpoint/lab/snapshot-check.js';
import { describe, expect, it } from 'vitest';
import { LOCAL, VOLUMES } from './mixed-system.js';
import { mixed } from './the-system.js';

const MANY = 20;
/** A snapshot takes two seconds, and many times that on a machine that is busy. */
const TIMEOUT_MS = 900_000;

/** Takes a snapshot of all disks and begins to judge it by its content, which goes on while the next one is taken. */
async function taken(quiesce: 'required' | 'skip', grade: string): Promise<{ judged: Promise<SetReport> }> {
  const snapshot = await mixed.snapshot({ quiesce });
  expect(snapshot).toMatchObject({ state: 'complete', grade, partial: false });
  expect(snapshot.disks).toHaveLength(LOCAL.length + VOLUMES.length);
  return { judged: mixed.report(snapshot) };
}

describe('The order in which the guest wrote to its disks', () => {
  it(
    `is kept by each of ${MANY} snapshots that are graded filesystem, and every disk passes fsck`,
    async () => {
      const reports: SetReport[] = [];
      let last = await taken('required', 'filesystem');
      for (let count = 1; count <= MANY; count += 1) {
        const next = count < MANY ? await taken('required', 'filesystem') : last;
        reports.push(await last.judged);
        last = next;
      }
      expect(reports.filter(({ clean, ordered }) => !clean || !ordered)).toEqual([]);
      expect(reports.map(({ numbers }) => numbers.length)).toEqual(reports.map(() => LOCAL.length + VOLUMES.length));
      // The guest went on writing between them, or the order would prove nothing.
      expect(new Set(reports.map(({ numbers }) => numbers[0])).size).toBe(MANY);
    },
    TIMEOUT_MS,
  );

  it(
    `is broken by at least one of ${MANY} that nobody froze, and all of these are graded per-disk`,
    async () => {
      const reports: SetReport[] = [];
      while (reports.length < MANY && reports.every(({ ordered }) => ordered)) {
        reports.push(await (await taken('skip', 'per-disk')).judged);
      }
      expect(reports.some(({ ordered }) => !ordered)).toBe(true);
      console.log(`the order was broken by unfrozen snapshot ${reports.length}: ${reports.at(-1)?.numbers.join(', ')}`);
    },
    TIMEOUT_MS,
  );
});
