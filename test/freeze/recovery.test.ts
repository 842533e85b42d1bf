import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import {
  db1,
  freeze,
  frozen,
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

test('a guest that a killed host agent left frozen is thawed by its next life, and its window is lost', async () => {
  const lab = await host();
  const { room: dead, session } = await lab.doomedLife();
  const { holds } = await frozen(lab, { room: dead });
  holds[0]?.end({ done: true });
  // Written, though not fsynced: what is told to the disk later than the death is not evidence.
  await expect.poll(() => readFile(join(lab.folder, 'journal.jsonl'), 'utf8')).toContain('"type":"ended"');
  expect(lab.isFrozen()).toBe(true);
  session.kill();

  const calls = lab.calls();
  const room = await lab.room();
  const verdict = await verdictOf(room);
  expect(lab.isFrozen()).toBe(false);
  expect(verdict).toMatchObject({ held: false, lostReason: 'HOST_AGENT_RESTARTED', frozenFileSystems: 2 });
  expect(verdict.cuts.map(({ cut, outcome }) => `${cut} ${outcome}`)).toEqual(['vda done', 'vdb broken']);
  expect(calls.filter((name) => name !== 'setAgentTimeout')[0]).toBe('thaw');
  await expect(freeze(room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(room.state(web1).reservation).toMatchObject({ operation, window: window1 });
  expect(room.prepared(window1)).toBeDefined();
  expect(room.installation()).toBe('lab');
});

test('the lease is on disk before libvirt is asked for the freeze', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await prepare(lab, room);
  const asked = lab.world.inject('freeze', { die: 'before' });
  void freeze(room).catch(() => undefined);
  await asked.hit;
  const journal = await readFile(join(lab.folder, 'journal.jsonl'), 'utf8');
  expect(journal).toContain('"type":"lease"');
  session.kill();

  const next = await lab.room();
  expect(await verdictOf(next)).toMatchObject({
    held: false,
    lostReason: 'HOST_AGENT_RESTARTED',
    frozenUnixMs: 0,
    neverAsked: false,
  });
});

test('a host agent that dies between freeze and its answer thaws in its next life', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await prepare(lab, room);
  const asked = lab.world.inject('freeze', { die: 'after' });
  void freeze(room).catch(() => undefined);
  await asked.hit;
  await until(() => lab.isFrozen(), 'frozen');
  session.kill();
  const next = await lab.room();
  expect(await verdictOf(next)).toMatchObject({ lostReason: 'HOST_AGENT_RESTARTED' });
  expect(lab.isFrozen()).toBe(false);
});

test('every VM is thawed at start, and one that cannot be does not keep the others frozen', async () => {
  const lab = await host();
  const { room: dead, session } = await lab.doomedLife();
  await frozen(lab, { room: dead });
  const other = 'b3b3b3b3-1111-4222-8333-444444444444';
  const reserve = { vm: db1, operation: other, window: `${other}.1`, setDisks: ['vda'] };
  await frozen(lab, { room: dead, reserve, cuts: ['vda'] });
  session.kill();
  lab.world.inject('thaw', { hold: 'before' }, { vm: web1 });

  const room = await lab.room({ thawAnswerMs: 50 });
  await until(() => !lab.isFrozen(db1), 'the other VM is thawed');
  expect(lab.isFrozen()).toBe(true);
  await until(() => room.state(web1).freezeState === 'still-frozen', 'told');
});

test('a start without libvirt thaws as soon as libvirt is back', async () => {
  const lab = await host({ settings: { retryFirstMs: 60_000, retryMaxMs: 60_000 } });
  const { room: dead, session } = await lab.doomedLife();
  await frozen(lab, { room: dead });
  session.kill();
  lab.world.connectionDown();
  const room = await lab.room();
  await until(() => room.state(web1).freezeState === 'still-frozen', 'told');
  lab.world.connectionUp();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('the watch over a freeze that may still happen survives a restart', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await prepare(lab, room);
  lab.world.inject('freezeStatus', { reject: 'AGENT_NOT_RESPONDING' }, { skip: 2, times: 1_000_000 });
  const late = lab.world.inject('freeze', { late: 'AGENT_NOT_RESPONDING' });
  await expect(freeze(room)).rejects.toMatchObject({ code: 'FREEZE_TIMEOUT' });
  await room.thaw(web1, window1, 'failed');
  const verdict = room.verdict(web1, window1);
  await room.release(web1, operation);
  session.kill();

  const silent = lab.world.inject('thaw', { reject: 'AGENT_NOT_RESPONDING' }, { times: 1_000_000 });
  const next = await lab.room();
  await until(() => next.state(web1).detail !== '', 'told');
  expect(next.state(web1).freezeState).toBe('maybe-frozen');
  await expect(next.reserve(reserveRequest({ window: window2 }))).rejects.toMatchObject({ code: 'MAYBE_FROZEN' });
  await late.happen().catch(() => undefined);
  lab.world.vm(web1).agent.frozen = true;
  silent.remove();
  await until(() => !lab.isFrozen(), 'thawed');
  expect(verdict).toMatchObject({ lostReason: 'FREEZE_FAILED' });
});

test('a verdict is answered unchanged after a restart, until it is released', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  const { holds } = await frozen(lab, { room });
  for (const hold of holds) hold.end({ done: true });
  const verdict = await room.thaw(web1, window1, 'asked by the engine');
  expect(verdict.held).toBe(true);
  session.kill();

  const next = await lab.doomedLife();
  expect(next.room.verdict(web1, window1)).toEqual(verdict);
  expect(await next.room.thaw(web1, window1, 'again')).toEqual(verdict);
  await next.room.release(web1, operation);
  next.session.kill();

  const last = await lab.room();
  expect(() => last.verdict(web1, window1)).toThrowError(expect.objectContaining({ code: 'WINDOW_UNKNOWN' }));
  await expect(last.reserve(reserveRequest())).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test('a prepared window survives a restart and is frozen then', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await prepare(lab, room);
  const kept = room.prepared(window1);
  session.kill();

  const next = await lab.room();
  expect(next.prepared(window1)).toEqual(kept);
  await freeze(next);
  expect(lab.isFrozen()).toBe(true);
});

test('a window that undo closed stays closed over restarts, also one that was never seen', async () => {
  const lab = await host();
  const { room, session } = await lab.doomedLife();
  await prepare(lab, room);
  await room.closeForUndo(web1, window1);
  await room.closeForUndo(web1, window2);
  session.kill();
  const next = await lab.room();
  await expect(freeze(next)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await expect(next.reserve(reserveRequest({ window: window2 }))).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test('shutdown thaws every window, journals it, and refuses new freezes', async () => {
  const lab = await host();
  const { room } = await lab.life();
  const { holds } = await frozen(lab, { room });
  await room.shutdown();
  expect(lab.isFrozen()).toBe(false);
  expect(holds[0]?.lost.aborted).toBe(true);
  await expect(freeze(room)).rejects.toMatchObject({ code: 'SHUTTING_DOWN' });
  await expect(room.reserve(reserveRequest())).rejects.toMatchObject({ code: 'SHUTTING_DOWN' });

  const next = await lab.room();
  expect(next.verdict(web1, window1)).toMatchObject({ held: false, lostReason: 'SHUTDOWN', thawedFileSystems: 2 });
});

test('shutdown ends although a guest cannot be thawed, and the next life thaws it', async () => {
  const lab = await host({ settings: { thawAnswerMs: 50 } });
  const { room } = await lab.doomedLife();
  await frozen(lab, { room });
  lab.world.vm(web1).pause();
  await room.shutdown();
  expect(lab.isFrozen()).toBe(true);
  lab.world.vm(web1).resume();
  await lab.room();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('a shutdown waits for a freeze under way longer than for a thaw: nobody else would thaw what it freezes', async () => {
  const lab = await host({ settings: { thawAnswerMs: 50 } });
  const { room } = await lab.life();
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'after' });
  const refused = expect(freeze(room)).rejects.toMatchObject({ code: 'SHUTTING_DOWN' });
  await held.hit;
  let stopped = false;
  const stopping = room.shutdown().then(() => {
    stopped = true;
  });
  // Answered as STILL_FROZEN after the same time, so a shutdown that waits no longer than that is over by now.
  await expect(room.thaw(web1, window1, 'asked')).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  await expect(room.thaw(web1, window1, 'asked again')).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  expect(stopped).toBe(false);
  held.release();
  await Promise.all([refused, stopping]);
  expect(lab.isFrozen()).toBe(false);
});

test('a shutdown while the freeze is under way thaws as soon as it is answered', async () => {
  const lab = await host();
  const { room } = await lab.life();
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'after' });
  const refused = expect(freeze(room)).rejects.toMatchObject({ code: 'SHUTTING_DOWN' });
  await held.hit;
  const stopping = room.shutdown();
  held.release();
  await Promise.all([refused, stopping]);
  expect(lab.isFrozen()).toBe(false);
});
