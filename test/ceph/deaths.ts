/**
 * The engine or the host agent dies while Cinder is busy, or anywhere else in the window that the workflow owns. libvirt's log and the guest's kernel say when
 * the guest was thawed: our own journal is not asked.
 */
import type { FrameMatch } from '@stillpoint/lab/libvirt-proxy.js';
import { signalProcess } from '@stillpoint/lab/processes.js';
import { afterAll, describe, expect, it } from 'vitest';
import { leavingNothing, log, mixed } from './the-system.js';

/** A disk of the host, and volumes enough for cuts side by side: each more is exported and checked in every cell. */
const DISKS = ['vda', 'vdc', 'vdd'];
/** A killed engine breaks its streams at once. */
const KILLED_ENGINE_MS = 1_000;
/** Invariant 1. */
const ANY_DEATH_MS = 5_000;

/** ms from a death to the thaw that libvirt sent, by cell. */
const thawedAfter: [string, number][] = [];

afterAll(() => {
  for (const [cell, ms] of thawedAfter) console.log(`${cell.padEnd(90)} ${ms.toFixed(0).padStart(5)} ms`);
});

/** Where the flow stands still, with the guest frozen. */
interface Place {
  readonly name: string;
  /** Begins a snapshot, and answers when the flow is there; `goOn` lets it go on from there. */
  reach(): Promise<{ id: string; goOn: () => Promise<void> }>;
  /** What stands still keeps every thaw back: it goes on as soon as the victim is dead. */
  readonly blocksTheThaw?: boolean;
}

const createPath = { method: 'POST', path: /\/snapshots$/ } as const;

const whileCinderIsBusy: readonly Place[] = [
  {
    name: 'a create is on its way to Cinder',
    reach: async () => {
      const held = mixed.cinder.hold({ ...createPath, what: 'request' });
      const id = await mixed.begin({ disks: DISKS });
      await held.reached;
      return { id, goOn: async () => held.release() };
    },
  },
  {
    name: 'Cinder has taken the create, and has not made the snapshot yet',
    reach: async () => {
      const service = mixed.storage.daemon('cinder-volume');
      await service.freeze();
      const answered = mixed.cinder.seen({ method: 'GET', path: /\/snapshots\/[0-9a-f-]{36}$/, what: 'answer' });
      const id = await mixed.begin({ disks: DISKS });
      await answered;
      return { id, goOn: () => service.thaw() };
    },
  },
];

const atLibvirt = (name: string, match: FrameMatch, more: Pick<Place, 'blocksTheThaw'> = {}): Place => ({
  name,
  ...more,
  reach: async () => {
    const held = mixed.proxy.hold(match);
    const id = await mixed.begin({ disks: DISKS });
    await held.reached;
    return { id, goOn: async () => held.release() };
  },
});

const freezeIsAnswered = atLibvirt(
  'the freeze is answered',
  { procedure: 'FSFREEZE', what: 'reply' },
  { blocksTheThaw: true },
);
const localCutIsHeld = atLibvirt('the local cut is about to be sent', {
  procedure: 'SNAPSHOT_CREATE_XML',
  what: 'call',
});
const localCutIsMade = atLibvirt('the local cut is made', { procedure: 'SNAPSHOT_CREATE_XML', what: 'reply' });
const thawIsHeld = atLibvirt(
  'the thaw is about to be sent',
  { procedure: 'FSTHAW', what: 'call' },
  { blocksTheThaw: true },
);

/** The guest is thawed, by its kernel's word, and libvirt sent the thaw within that time after the death. */
async function expectThawedSince(diedAt: number, limitMs: number, cell: string): Promise<void> {
  await mixed.lab.guest.waitUntilThawed(30_000);
  const thaw = log
    .agent()
    .find(
      ({ direction, command, atMs }) => direction === 'sent' && command === 'guest-fsfreeze-thaw' && atMs >= diedAt,
    );
  const afterMs = (thaw?.atMs ?? Number.POSITIVE_INFINITY) - diedAt;
  thawedAfter.push([cell, afterMs]);
  expect(afterMs).toBeLessThanOrEqual(limitMs);
}

/** The run ends by itself: complete, as fsck and the order of the writes confirm, or failed; and nothing is left. */
async function expectTrueEnd(id: string): Promise<void> {
  const snapshot = await mixed.system.waitForSnapshot(id);
  expect(['complete', 'failed']).toContain(snapshot.state);
  if (snapshot.state === 'complete') {
    expect(snapshot.grade).toBe('filesystem');
    await mixed.expectConsistent(snapshot);
    await mixed.system.deleteSnapshot(id);
  } else {
    expect(snapshot).toMatchObject({ grade: null, pending: [] });
    expect(snapshot.error?.text).not.toBe('');
  }
}

async function killTheEngine({ name, reach, blocksTheThaw }: Place, limitMs: number): Promise<void> {
  const { lab, system } = mixed;
  const { id, goOn } = await reach();
  expect(await lab.guest.isFrozen()).toBe(true);
  const diedAt = Date.now();
  await system.killEngine();
  try {
    if (blocksTheThaw === true) await goOn();
    await expectThawedSince(diedAt, limitMs, `engine killed when ${name}`);
  } finally {
    system.startEngine();
    await goOn();
    await system.waitUntilReady();
  }
  await expectTrueEnd(id);
}

describe('The engine is killed when', () => {
  leavingNothing();

  it.each([freezeIsAnswered, ...whileCinderIsBusy, localCutIsHeld, localCutIsMade])(
    '$name: thawed within 1 s, and the run ends by itself',
    (place) => killTheEngine(place, KILLED_ENGINE_MS),
  );

  // Every cut has ended: none has a stream that could break, and the thaw is on its way.
  it('the thaw is about to be sent: thawed within 5 s, and the run ends by itself', () =>
    killTheEngine(thawIsHeld, ANY_DEATH_MS));
});

describe('The engine is stopped when', () => {
  leavingNothing();

  it.each(whileCinderIsBusy)('$name: thawed within 5 s; what it cuts late is taken back', async ({ name, reach }) => {
    const { lab, system } = mixed;
    const { id, goOn } = await reach();
    expect(await lab.guest.isFrozen()).toBe(true);
    const { engine } = system;
    if (engine === undefined) throw new Error('the engine does not run');
    const stoppedAt = Date.now();
    expect(signalProcess(engine, 'SIGSTOP')).toBe(true);
    try {
      await expectThawedSince(stoppedAt, ANY_DEATH_MS, `engine stopped when ${name}`);
      // Cinder carries out what the engine had asked for, and the engine finds out when it goes on.
      await goOn();
    } finally {
      signalProcess(engine, 'SIGCONT');
    }
    await expectTrueEnd(id);
  });
});

describe("The host agent's worker is killed when", () => {
  leavingNothing();

  it.each([...whileCinderIsBusy, localCutIsMade])(
    '$name: thawed within 5 s by the next one, and the run ends by itself',
    async ({ name, reach }) => {
      const { lab, system } = mixed;
      const { id, goOn } = await reach();
      expect(await lab.guest.isFrozen()).toBe(true);
      const diedAt = Date.now();
      system.killHostAgentWorker();
      await expectThawedSince(diedAt, ANY_DEATH_MS, `worker killed when ${name}`);
      await goOn();
      await expectTrueEnd(id);
    },
  );
});
