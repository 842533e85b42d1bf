/**
 * A writer in the guest puts an increasing number alternately on every file system, local and on Ceph, fsync each. What a snapshot's disks hold of it says
 * whether they are of one instant. The snapshots stay, so that nothing is merged under an image that is read: this comes last.
 */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { isOrdered, readNumbers } from '@stillpoint/lab/snapshot-check.js';
import { beforeAll, describe, expect, it } from 'vitest';
import { LOCAL, VOLUMES } from './mixed-system.js';
import { mixed } from './the-system.js';

const MANY = 20;
/** A snapshot takes two seconds, and many times that on a machine that is busy. */
const TIMEOUT_MS = 900_000;

const ALL = [...LOCAL, ...VOLUMES];
/** In turn: a chain takes 30 images, and has 21 of them when the frozen snapshots are made. */
const UNFROZEN_SETS = [...LOCAL.map((local) => [local, ...VOLUMES]), VOLUMES];

/** Takes that many snapshots of the sets in turn, and judges each by its content while the next one is taken. */
async function judged<T>(
  sets: readonly string[][],
  what: { quiesce: 'required' | 'skip'; grade: string },
  judge: (snapshot: SnapshotView) => Promise<T>,
): Promise<T[]> {
  const told: T[] = [];
  let last: Promise<T> | undefined;
  for (let count = 0; count < MANY; count += 1) {
    const disks = sets[count % sets.length] ?? [];
    const snapshot = await mixed.snapshot({ quiesce: what.quiesce, disks });
    expect(snapshot).toMatchObject({ state: 'complete', grade: what.grade, partial: disks.length < ALL.length });
    expect(snapshot.disks.map(({ target }) => target)).toEqual(disks);
    if (last !== undefined) told.push(await last);
    last = judge(snapshot);
  }
  return last === undefined ? told : [...told, await last];
}

/** Every disk has told its number, and the guest went on writing between the snapshots, or their order would prove nothing. */
function expectWritten(sets: readonly string[][], numbers: readonly (readonly number[])[]): void {
  expect(numbers.map((each) => each.length)).toEqual(numbers.map((_, index) => sets[index % sets.length]?.length));
  expect(new Set(numbers.map((each) => each.at(-1))).size).toBe(MANY);
}

describe('The order in which the guest wrote to its disks', () => {
  beforeAll(async () => {
    await mixed.lab.guest.setWriterPause(0.1);
  });

  it(
    `is kept by each of ${MANY} snapshots that are graded filesystem, and every disk passes fsck`,
    async () => {
      const asked = { quiesce: 'required', grade: 'filesystem' } as const;
      const reports = await judged([ALL], asked, (snapshot) => mixed.report(snapshot));
      expect(reports.filter(({ clean, ordered }) => !clean || !ordered)).toEqual([]);
      expectWritten(
        [ALL],
        reports.map(({ numbers }) => numbers),
      );
    },
    TIMEOUT_MS,
  );

  it(
    `is broken by at least one of ${MANY} that nobody froze, and all of these are graded per-disk`,
    async () => {
      const asked = { quiesce: 'skip', grade: 'per-disk' } as const;
      const numbers = await judged(UNFROZEN_SETS, asked, (snapshot) => readNumbers(mixed.images(snapshot)));
      expectWritten(UNFROZEN_SETS, numbers);
      const broken = numbers.filter((each) => !isOrdered(each));
      expect(broken.length).toBeGreaterThan(0);
      console.log(`${broken.length} of ${MANY} unfrozen snapshots broke the order, say ${broken[0]?.join(', ')}`);
    },
    TIMEOUT_MS,
  );
});
