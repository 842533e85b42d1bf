import { expect, test } from 'vitest';
import { freezeRequest, host, prepare, until, verdictOf, web1, window1 } from './fixture.js';

test('an unfrozen window gives holds and never freezes or thaws', async () => {
  const lab = await host();
  const room = await lab.room();
  const calls = lab.calls();
  await prepare(lab, room, { quiesce: 'skip' });
  await expect(room.freeze(freezeRequest())).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  const vda = room.hold(web1, window1, 'vda');
  const vdb = room.hold(web1, window1, 'vdb');
  expect(vda.end({ broken: 'stream reset' }).inTime).toBe(false);
  expect(vdb.lost.aborted).toBe(false);
  expect(vdb.end({ done: true })).toEqual({ inTime: true, reason: '' });
  expect(room.verdict(web1, window1)).toBeUndefined();
  expect(() => room.hold(web1, window1, 'vda')).toThrowError(expect.objectContaining({ code: 'CUT_ALREADY_HELD' }));

  const verdict = await room.thaw(web1, window1, 'done');
  expect(verdict).toMatchObject({ held: false, lostReason: 'NEVER_FROZEN', windowMs: 0, thawedUnixMs: 0 });
  expect(verdict.cuts.map(({ cut, outcome }) => `${cut} ${outcome}`)).toEqual(['vda broken', 'vdb done']);
  expect(calls).not.toContain('freeze');
  expect(calls).not.toContain('thaw');
  expect(calls).not.toContain('freezeStatus');
});

test('closing an unfrozen window takes the permission to cut back', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room, { quiesce: 'skip' });
  const hold = room.hold(web1, window1, 'vda');
  await room.closeForUndo(web1, window1);
  expect(hold.lost.aborted).toBe(true);
  expect(hold.end({ done: true }).inTime).toBe(false);
  expect(() => room.hold(web1, window1, 'vdb')).toThrowError(expect.objectContaining({ code: 'WINDOW_CLOSED' }));
});

test('an unfrozen window stays open over a restart, and a cut is still held once', async () => {
  const lab = await host();
  const first = await lab.life();
  await prepare(lab, first.room, { quiesce: 'skip' });
  first.room.hold(web1, window1, 'vda');
  first.room.hold(web1, window1, 'vdb').end({ done: true });
  await first.room.shutdown();

  const room = await lab.room();
  expect(() => room.hold(web1, window1, 'vda')).toThrowError(expect.objectContaining({ code: 'CUT_ALREADY_HELD' }));
  room.hold(web1, window1, 'vdc').end({ done: true });
  await room.thaw(web1, window1, 'done');
  await until(() => room.verdict(web1, window1) !== undefined, 'closed');
  expect((await verdictOf(room)).cuts.map(({ cut, outcome }) => `${cut} ${outcome}`)).toEqual([
    'vda broken',
    'vdb done',
    'vdc done',
  ]);
});
