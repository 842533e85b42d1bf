import {
  appendFile,
  type FileHandle,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import {
  freeze,
  frozen,
  type Host,
  host,
  operation,
  prepare,
  reserveRequest,
  until,
  verdictOf,
  web1,
  window1,
  window2,
} from './fixture.js';

const path = (lab: Host) => join(lab.folder, 'journal.jsonl');
const lines = async (lab: Host) => (await readFile(path(lab), 'utf8')).split('\n').filter((line) => line !== '');

/** Puts a link to /dev/full in the journal's place: every write fails with ENOSPC, as on a full disk. */
async function fillDisk(lab: Host): Promise<() => Promise<void>> {
  await rename(path(lab), `${path(lab)}.kept`);
  await symlink('/dev/full', path(lab));
  // The rewritten journal must fail as well.
  await mkdir(`${path(lab)}.new`);
  return async () => {
    await unlink(path(lab));
    await rm(`${path(lab)}.new`, { recursive: true });
    await rename(`${path(lab)}.kept`, path(lab));
  };
}

test('records carry a rising sequence number and both clocks', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  for (const hold of holds) hold.end({ done: true });
  await room.thaw(web1, window1, 'done');
  const records = (await lines(lab)).map((line) => JSON.parse(line));
  const types = records.map(({ type }) => type);
  expect(types.slice(0, 9)).toEqual([
    'reserved',
    'prepared',
    'lease',
    'frozen',
    'held',
    'held',
    'ended',
    'ended',
    'thaw-due',
  ]);
  expect(types.slice(9).sort()).toEqual(['settled', 'verdict']);
  for (const [index, record] of records.entries()) {
    expect(record).toMatchObject({ at: expect.any(Number), unixMs: expect.any(Number) });
    if (index > 0) expect(record.seq).toBeGreaterThan(records[index - 1].seq);
  }
});

test('the lease is fsynced before libvirt is asked, nothing is inside the window, and the verdict is before it is answered', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const happened = await recordSyncs(lab);
  const holds = ['vda', 'vdb'].map((cut) => room.hold(web1, window1, cut));
  await freeze(room);
  // Whatever the window writes has been written before the next step: an fsync for it would be seen.
  const written = (type: string) => lines(lab).then((all) => all.filter((line) => line.includes(`"${type}"`)).length);
  await expect.poll(() => written('held')).toBe(2);
  holds[0]?.end({ done: true });
  await expect.poll(() => written('ended')).toBe(1);
  holds[1]?.end({ done: true });
  await until(() => !lab.isFrozen(), 'thawed');
  await room.thaw(web1, window1, 'asked by the engine');
  happened.push('answered');

  const [leased, asked, thawed] = [happened.indexOf('fsync'), happened.indexOf('freeze'), happened.indexOf('thaw')];
  expect(leased).toBeGreaterThanOrEqual(0);
  expect(leased).toBeLessThan(asked);
  expect(happened.slice(asked, thawed)).not.toContain('fsync');
  expect(happened.slice(thawed, happened.indexOf('answered'))).toContain('fsync');
});

/** fsyncs of any file, and the port's freeze and thaw, in their order. */
async function recordSyncs(lab: Host): Promise<string[]> {
  const happened: string[] = [];
  lab.world.onCall(({ name, phase }) => {
    if (phase === 'begins' && (name === 'freeze' || name === 'thaw')) happened.push(name);
  });
  const handle = await open(path(lab), 'r');
  const prototype: FileHandle = Object.getPrototypeOf(handle);
  await handle.close();
  const sync = vi.spyOn(prototype, 'sync').mockImplementation(async () => void happened.push('fsync'));
  onTestFinished(() => sync.mockRestore());
  return happened;
}

test('a torn last line is dropped, and what is written next is not glued to it', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await prepare(lab, room);
  session.kill();
  await appendFile(path(lab), '{"seq":99,"type":"released","vm":"');

  const next = await lab.doomedLife();
  expect(next.room.warnings()).toEqual([]);
  expect(next.room.state(web1).reservation?.operation).toBe(operation);
  await next.room.thaw(web1, window1, 'failed');
  next.session.kill();
  const last = await lab.room();
  expect(last.warnings()).toEqual([]);
  expect(last.verdict(web1, window1)).toMatchObject({ lostReason: 'NEVER_FROZEN' });
});

test('a corrupt record is told, the file is kept aside, and what can be read around it still counts', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await room.closeForUndo(web1, window2);
  await frozen(lab, { room });
  session.kill();
  // Nor does the domain tell, as after a host agent that did not note its leases there.
  lab.world.vm(web1).note = undefined;
  const damaged = (await lines(lab)).map((line) =>
    line.includes('"type":"lease"') ? line.replace('lease', 'leash') : line,
  );
  await writeFile(path(lab), `${damaged.join('\n')}\n`);

  const next = await lab.room();
  // No lease can be read: the guest is asked, and thawed because it may be ours.
  await until(() => !lab.isFrozen(), 'thawed');
  await until(() => next.warnings().some((text) => text.includes('was found frozen')), 'told');
  expect(next.warnings()[0]).toContain('corrupt');
  expect(await readdir(lab.folder)).toContain('journal.unreadable-1');
  await expect(freeze(next)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await expect(next.reserve(reserveRequest({ window: window2 }))).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(next.state(web1).reservation?.operation).toBe(operation);
});

test.each([
  ['garbage', async (lab: Host) => writeFile(path(lab), '\u0000\u0001 not a journal\n'.repeat(3))],
  [
    'a folder',
    async (lab: Host) => {
      await unlink(path(lab));
      await mkdir(path(lab));
    },
  ],
])('a journal that is %s does not prevent the start, and a frozen guest is found and thawed', async (_, damage) => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await frozen(lab, { room });
  session.kill();
  lab.world.vm(web1).note = undefined;
  await damage(lab);

  const next = await lab.room();
  await until(() => !lab.isFrozen(), 'thawed');
  expect(next.warnings()[0]).toContain('journal.unreadable-1');
  await until(() => next.state(web1).freezeState === 'thawed', 'settled');
  const fresh = 'c4c4c4c4-1111-4222-8333-444444444444';
  await prepare(lab, next, { operation: fresh, window: `${fresh}.1` });
});

test('guests are asked again in the next life when this one did not get an answer', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await frozen(lab, { room });
  session.kill();
  lab.world.vm(web1).note = undefined;
  await writeFile(path(lab), 'garbage\n');
  lab.world.vm(web1).agent.stop();
  const second = await lab.doomedLife();
  await until(() => second.room.warnings().some((text) => text.includes('is unknown')), 'told');
  second.session.kill();
  lab.world.vm(web1).agent.continue();
  await lab.room();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('a list of the VMs that is never answered does not keep guests from being asked', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await frozen(lab, { room });
  session.kill();
  lab.world.vm(web1).note = undefined;
  await writeFile(path(lab), 'garbage\n');
  lab.world.inject('listVms', { hold: 'before' });
  await lab.room({ callGuardMs: 50 });
  await until(() => !lab.isFrozen(), 'thawed');
});

test('a guest that does not answer is asked again when its agent is back', async () => {
  const lab = await host({ settings: { retryMaxMs: 60_000 } });
  const { room, session } = await lab.doomedLife();
  await frozen(lab, { room });
  session.kill();
  lab.world.vm(web1).note = undefined;
  await writeFile(path(lab), 'garbage\n');
  lab.world.vm(web1).disconnectAgent();
  const next = await lab.room();
  await until(() => next.warnings().some((text) => text.includes('is unknown')), 'told');
  lab.world.vm(web1).connectAgent();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('a readable journal never makes a stranger’s freeze ours', async () => {
  const lab = await host();
  lab.world.vm(web1).freezeByOther();
  const calls = lab.calls();
  const { room } = await lab.doomedLife();
  await room.shutdown();
  await lab.room();
  expect(calls).toEqual([]);
  expect(lab.isFrozen()).toBe(true);
});

test('nothing is reserved and nothing frozen without a journal that can be written', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const calls = lab.calls();
  const empty = await fillDisk(lab);
  await expect(freeze(room)).rejects.toMatchObject({ code: 'JOURNAL_UNWRITABLE' });
  expect(calls).not.toContain('freeze');
  await expect(
    room.reserveForDelete({ vm: '00000000-0000-4000-8000-000000000002', operation: 'delete-1', installation: 'lab' }),
  ).rejects.toMatchObject({ code: 'JOURNAL_UNWRITABLE' });
  expect(room.state('00000000-0000-4000-8000-000000000002').reservation).toBeUndefined();
  await expect(room.closeForUndo(web1, window2)).rejects.toMatchObject({ code: 'JOURNAL_UNWRITABLE' });
  await empty();
});

test('a window whose close cannot be written is told so, stays closed, and is closed on disk by the next try', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await prepare(lab, room);
  const empty = await fillDisk(lab);
  await expect(room.thaw(web1, window1, 'cancelled')).rejects.toMatchObject({ code: 'JOURNAL_UNWRITABLE' });
  await expect(freeze(room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await empty();
  const verdict = await room.thaw(web1, window1, 'cancelled');
  session.kill();
  expect((await lab.room()).verdict(web1, window1)).toEqual(verdict);
});

test('a disk that fills inside the window never stops the thaw, and the verdict is not held', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  const { holds } = await frozen(lab, { room });
  await until(() => room.state(web1).freezeState === 'frozen', 'frozen');
  const empty = await fillDisk(lab);
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'JOURNAL_UNWRITABLE', thawedFileSystems: 2 });
  expect(lab.isFrozen()).toBe(false);
  await empty();
  session.kill();
  expect(await verdictOf(await lab.room())).toMatchObject({ held: false });
});

test('a folder that is a file does not prevent the start: nothing is frozen, and guests are asked', async () => {
  const lab = await host();
  await rm(lab.folder, { recursive: true });
  await writeFile(lab.folder, '');
  lab.world.vm(web1).freezeByOther();
  const room = await lab.room();
  await until(() => !lab.isFrozen(), 'thawed');
  expect(room.warnings()[0]).toContain('cannot be moved aside');
  await expect(room.reserve(reserveRequest())).rejects.toMatchObject({ code: 'JOURNAL_UNWRITABLE' });
});

test('a journal that is removed under the running host agent is written anew before the next lease', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await room.closeForUndo(web1, window2);
  await prepare(lab, room);
  await unlink(path(lab));
  await freeze(room);
  session.kill();
  const next = await lab.room();
  expect(await verdictOf(next)).toMatchObject({ lostReason: 'HOST_AGENT_RESTARTED' });
  expect(lab.isFrozen()).toBe(false);
  await expect(next.reserve(reserveRequest({ window: window2 }))).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test('a rewritten journal says the same as before, and forgets only old closed windows', async () => {
  const lab = await host({
    settings: { compactAfterRecords: 10, closedWindowsKept: 3, closedWindowsKeptMs: 0 },
  });
  const { room, session } = await lab.doomedLife();
  const { holds } = await frozen(lab, { room });
  for (const hold of holds) hold.end({ done: true });
  const verdict = await room.thaw(web1, window1, 'done');
  for (let attempt = 2; attempt <= 30; attempt++) await room.closeForUndo(web1, `${operation}.${attempt}`);
  session.kill();
  expect((await lines(lab)).length).toBeLessThan(25);

  const next = await lab.room();
  expect(next.verdict(web1, window1)).toEqual(verdict);
  expect(next.state(web1).reservation?.operation).toBe(operation);
  await next.release(web1, operation);
  await expect(next.reserve(reserveRequest({ window: `${operation}.30` }))).rejects.toMatchObject({
    code: 'WINDOW_CLOSED',
  });
  await expect(next.reserve(reserveRequest({ window: `${operation}.2` }))).resolves.toBeDefined();
});

test('a journal rewritten while a thaw is owed still owes it', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await frozen(lab, { room });
  await unlink(path(lab));
  await room.closeForUndo(web1, window2);
  session.kill();
  expect(await verdictOf(await lab.room())).toMatchObject({ lostReason: 'HOST_AGENT_RESTARTED', frozenFileSystems: 2 });
  expect(lab.isFrozen()).toBe(false);
});

test('a thaw that is owed after its operation was released is owed in a rewritten journal too', async () => {
  const lab = await host({ settings: { thawAnswerMs: 50 } });
  const { room, session } = await lab.doomedLife();
  await frozen(lab, { room });
  lab.world.vm(web1).pause();
  await room.releaseVm(web1, 'root');
  await unlink(path(lab));
  await room.closeForUndo(web1, window2);
  session.kill();

  const next = await lab.room();
  await until(() => next.state(web1).freezeState === 'still-frozen', 'known to be frozen');
  lab.world.vm(web1).resume();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('the journal is not rewritten while a guest is frozen', async () => {
  const lab = await host({ settings: { compactAfterRecords: 2 } });
  const { room } = await frozen(lab);
  await room.closeForUndo(web1, window2);
  // Only a rewritten journal begins with the installation.
  expect((await lines(lab))[0]).toContain('"type":"reserved"');
  await room.release(web1, operation);
  for (let attempt = 3; attempt <= 6; attempt++) await room.closeForUndo(web1, `${operation}.${attempt}`);
  expect((await lines(lab))[0]).toContain('"type":"installation"');
});

test('a journal that no rewriting shortens is not rewritten at every record', async () => {
  const lab = await host({ settings: { compactAfterRecords: 5 } });
  const room = await lab.room();
  for (let attempt = 1; attempt <= 30; attempt++) await room.closeForUndo(web1, `${operation}.${attempt}`);
  // A rewritten record has a new number: every 6th record rewrites those before it, which makes 120 numbers in all.
  const written = (await lines(lab)).map((line) => (JSON.parse(line) as { seq: number }).seq);
  expect(written).toHaveLength(30);
  expect(written.at(-1)).toBeLessThanOrEqual(120);
});

test('records that are appended from the answers of others are all written', async () => {
  const lab = await host();
  const room = await lab.room();
  let chain: Promise<unknown> = Promise.resolve();
  for (let attempt = 1; attempt <= 20; attempt++) {
    chain = chain.then(() => room.closeForUndo(web1, `${operation}.${attempt}`));
  }
  await chain;
  expect(await lines(lab)).toHaveLength(20);
});
