import type { Hypervisor, HypervisorEvent } from '@stillpoint/host-agent/hypervisor.js';
import { expect, test } from 'vitest';
import {
  freeze,
  freezeRequest,
  frozen,
  host,
  overriding,
  prepare,
  reserveRequest,
  until,
  verdictOf,
  web1,
  window1,
} from './fixture.js';

test('a freeze that held from before the first cut to after the last is held', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  expect(lab.isFrozen()).toBe(true);
  expect(room.state(web1)).toMatchObject({ freezeState: 'frozen', windowLimitMs: 30_000 });

  for (const hold of holds) expect(hold.end({ done: true })).toEqual({ inTime: true, reason: '' });

  const verdict = await room.thaw(web1, window1, 'asked by the engine');
  expect(verdict).toMatchObject({
    window: window1,
    held: true,
    lostReason: undefined,
    frozenFileSystems: 2,
    thawedFileSystems: 2,
    thawedBy: 'all cuts done',
    gaps: [],
  });
  expect(verdict.cuts.map(({ cut, outcome }) => `${cut} ${outcome}`)).toEqual(['vda done', 'vdb done']);
  expect(lab.isFrozen()).toBe(false);
  expect(room.state(web1)).toMatchObject({ freezeState: 'thawed', frozenUnixMs: 0, windowLimitMs: 0 });
});

test('the last cut thaws by itself, after asking the guest, and without waiting for anyone', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  holds[0]?.end({ done: true });
  expect(lab.isFrozen()).toBe(true);
  const calls = lab.calls();

  holds[1]?.end({ done: true });

  await until(() => !lab.isFrozen(), 'thawed');
  expect(calls.slice(0, 2)).toEqual(['freezeStatus', 'thaw']);
  expect((await verdictOf(room)).held).toBe(true);
});

test.each([
  ['fails', { failed: 'Cinder said no' }, 'CUT_FAILED', 'failed'],
  ['breaks', { broken: 'the stream was reset' }, 'HOLD_BROKEN', 'broken'],
] as const)('a hold that %s thaws at once, without the status question', async (_, outcome, reason, record) => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  const calls = lab.calls();

  expect(holds[0]?.end(outcome).inTime).toBe(false);

  await until(() => !lab.isFrozen(), 'thawed');
  expect(calls[0]).toBe('thaw');
  expect(holds[1]?.lost.aborted).toBe(true);
  expect(holds[1]?.lost.reason).toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(holds[1]?.end({ done: true }).inTime).toBe(false);
  const verdict = await verdictOf(room);
  expect(verdict).toMatchObject({ held: false, lostReason: reason });
  expect(verdict.cuts[0]).toMatchObject({ outcome: record });
  expect(verdict.cuts[1]).toMatchObject({ outcome: 'broken', endedMs: undefined });
});

test('nothing is frozen while nobody stands ready for a named cut', async () => {
  const lab = await host({ settings: { readyMs: 20 } });
  const room = await lab.room();
  await prepare(lab, room);
  const calls = lab.calls();
  const ready = room.hold(web1, window1, 'vda');
  await expect(room.freeze(freezeRequest())).rejects.toMatchObject({
    code: 'WINDOW_CLOSED',
    message: expect.stringContaining('Nobody stood ready within 20 ms for: vdb'),
  });

  const verdict = await verdictOf(room);
  expect(verdict).toMatchObject({ held: false, lostReason: 'NOT_HELD_IN_TIME', frozenFileSystems: 0 });
  expect(verdict.cuts[1]).toMatchObject({ cut: 'vdb', heldMs: undefined, outcome: 'not held' });
  await expect(ready.held).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(calls).not.toContain('freeze');
});

test('a freeze waits for the last cut to be ready, and each is held when it is answered', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const calls = lab.calls();
  const held = lab.world.inject('freeze', { hold: 'after' });
  const order: string[] = [];
  const stand = (cut: string) => {
    const hold = room.hold(web1, window1, cut);
    void hold.held.then(() => order.push(cut));
    return hold;
  };
  const holds = [stand('vda')];
  const freezing = room.freeze(freezeRequest());
  expect(calls).not.toContain('freeze');
  holds.push(stand('vdb'));
  await held.hit;
  expect(order).toEqual([]);
  held.release();
  await freezing;
  await Promise.all(holds.map((hold) => hold.held));
  expect(order).toEqual(['vda', 'vdb']);
  for (const hold of holds) hold.end({ done: true });
  const verdict = await verdictOf(room);
  expect(verdict.held).toBe(true);
  for (const { heldMs } of verdict.cuts) expect(heldMs).toBeGreaterThanOrEqual(0);
});

test.each([
  ['failed', { failed: 'no token' }, 'CUT_FAILED'],
  ['broke', { broken: 'its stream was broken off' }, 'HOLD_BROKEN'],
  ['said done too early', { done: true }, 'HOLD_BROKEN'],
] as const)('nothing is frozen after a cut that %s before the freeze', async (_, outcome, reason) => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const calls = lab.calls();
  const [vda, vdb] = ['vda', 'vdb'].map((cut) => room.hold(web1, window1, cut));
  expect(vda?.end(outcome).inTime).toBe(false);
  expect(vdb?.lost.aborted).toBe(true);
  await expect(vda?.held).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await expect(room.freeze(freezeRequest())).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: reason, frozenFileSystems: 0 });
  expect(calls).not.toContain('freeze');
});

test('a guest whose cut breaks while the freeze is under way is thawed as soon as that is answered', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const [vda, vdb] = ['vda', 'vdb'].map((cut) => room.hold(web1, window1, cut));
  const held = lab.world.inject('freeze', { hold: 'after' });
  const freezing = expect(room.freeze(freezeRequest())).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await held.hit;
  vda?.end({ broken: 'its stream was broken off' });
  held.release();
  await freezing;
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'HOLD_BROKEN' });
  expect(lab.isFrozen()).toBe(false);
  await expect(vdb?.held).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test('who stands ready is told at once when the window is closed instead', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const hold = room.hold(web1, window1, 'vda');
  await room.thaw(web1, window1, 'cancelled');
  await expect(hold.held).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(await verdictOf(room)).toMatchObject({ lostReason: 'NEVER_FROZEN' });
});

test("the window's limit thaws whatever happens", async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab, { reserve: { windowLimitMs: 100 } });
  const verdict = await verdictOf(room);
  expect(verdict).toMatchObject({ held: false, lostReason: 'LIMIT', thawedBy: 'window limit' });
  expect(verdict.windowMs).toBeGreaterThanOrEqual(95);
  expect(lab.isFrozen()).toBe(false);
  expect(holds[0]?.end({ done: true }).inTime).toBe(false);
});

test('Windows has the shorter limit', async () => {
  const lab = await host({ vm: { os: { id: 'mswindows', isWindows: true } } });
  const room = await lab.room();
  expect(await prepare(lab, room)).toMatchObject({ windowLimitMs: 8_000, guestOs: 'mswindows' });
});

test('a thaw asked for before every cut is done loses the window', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  holds[0]?.end({ done: true });
  const verdict = await room.thaw(web1, window1, 'cancelled');
  expect(verdict).toMatchObject({ held: false, lostReason: 'THAWED_EARLY', thawedBy: 'cancelled' });
  expect(lab.isFrozen()).toBe(false);
});

test('a guest that was thawed by somebody else inside the window was not held', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  lab.world.vm(web1).thawByOther();
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'STATUS_NOT_FROZEN' });
});

test('a status question that is not answered loses the window, and the thaw still goes out', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  lab.world.inject('freezeStatus', { reject: 'AGENT_NOT_RESPONDING' });
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'STATUS_UNANSWERED', thawedFileSystems: 2 });
  expect(lab.isFrozen()).toBe(false);
});

test('a status question that hangs does not keep the guest frozen', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab, { reserve: { windowLimitMs: 200 } });
  lab.world.inject('freezeStatus', { hold: 'before' });
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'STATUS_UNANSWERED' });
  expect(lab.isFrozen()).toBe(false);
});

test('as many file systems must thaw as froze', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  lab.world.vm(web1).agent.fileSystems.pop();
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({
    held: false,
    lostReason: 'COUNT_MISMATCH',
    frozenFileSystems: 2,
    thawedFileSystems: 1,
  });
});

test('a thaw whose reply is lost leaves the count unknown, and the guest thawed', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  lab.world.inject('thaw', { loseReply: 'AGENT_NOT_RESPONDING' });
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({
    held: false,
    lostReason: 'COUNT_MISMATCH',
    thawedFileSystems: undefined,
  });
});

test('a guest agent that restarts inside the window loses it', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  lab.world.vm(web1).disconnectAgent();
  lab.world.vm(web1).connectAgent();
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'AGENT_RESTARTED' });
});

test('a lost connection to libvirt could have hidden a restart of the guest agent', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  lab.world.connectionDown();
  lab.world.connectionUp();
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'AGENT_RESTARTED' });
  expect(lab.isFrozen()).toBe(false);
});

test('so could one that was lost while the freeze was under way', async () => {
  const lab = await host();
  const session = lab.world.session();
  let tell: (event: HypervisorEvent) => void = () => undefined;
  const onEvent: Hypervisor['onEvent'] = (listener) => {
    tell = listener;
    return session.onEvent(listener);
  };
  const room = await lab.roomOver(overriding(session, { onEvent }));
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'after' });
  const hold = room.hold(web1, window1, 'vda');
  const freezing = room.freeze(freezeRequest({ cuts: ['vda'] }));
  await held.hit;
  // Only the connection that brings events; the freeze is asked on another.
  tell({ type: 'connection', up: false });
  held.release();
  await freezing;
  hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'AGENT_RESTARTED' });
});

test('a VM that is shut off while frozen owes no thaw', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  lab.world.vm(web1).shutOff();
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'VM_GONE' });
  expect(holds[0]?.lost.aborted).toBe(true);
  expect(room.state(web1).freezeState).toBe('thawed');
});

test('a VM that is moved away while frozen owes no thaw here', async () => {
  const lab = await host();
  const { room } = await frozen(lab, { reserve: { windowLimitMs: 100 } });
  lab.world.inject('thaw', { reject: 'VM_NOT_FOUND' }, { times: 1_000 });
  lab.world.inject('freezeStatus', { reject: 'VM_NOT_FOUND' }, { times: 1_000 });
  lab.world.inject('getVm', { reject: 'VM_NOT_FOUND' }, { times: 1_000 });
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'VM_MOVED' });
});

test('a freeze whose caller is gone when it is answered is thawed at once', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const caller = new AbortController();
  const held = lab.world.inject('freeze', { hold: 'after' });
  const freezing = freeze(room, { caller: caller.signal });
  const refused = expect(freezing).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await held.hit;
  await until(() => lab.isFrozen(), 'frozen');
  expect(room.state(web1).freezeState).toBe('freezing');
  caller.abort();
  held.release();

  await refused;
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'CALLER_GONE' });
  expect(lab.isFrozen()).toBe(false);
});

test('nothing is frozen for a caller who is gone before libvirt is asked', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const calls = lab.calls();
  await expect(freeze(room, { caller: AbortSignal.abort() })).rejects.toMatchObject({
    code: 'WINDOW_CLOSED',
  });
  expect(calls).not.toContain('freeze');
});

test('a thaw that comes while the freeze is under way thaws as soon as it is answered', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'after' });
  const freezing = expect(freeze(room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await held.hit;
  const thawing = room.thaw(web1, window1, 'cancelled');
  held.release();
  await freezing;
  expect(await thawing).toMatchObject({ held: false, lostReason: 'THAWED_EARLY', thawedBy: 'cancelled' });
  expect(lab.isFrozen()).toBe(false);
});

test('a freeze that fails in a window that was closed meanwhile says that it is closed', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'before' });
  const freezing = expect(freeze(room)).rejects.toMatchObject({
    code: 'WINDOW_CLOSED',
    cause: { code: 'AGENT_NOT_CONNECTED' },
  });
  await held.hit;
  const undone = room.closeForUndo(web1, window1);
  lab.world.vm(web1).disconnectAgent();
  held.release();
  await Promise.all([freezing, undone]);
  expect(room.verdict(web1, window1)).toMatchObject({ held: false, lostReason: 'UNDONE' });
});

test('a closed window freezes, holds and prepares nothing ever again', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  const verdict = await room.thaw(web1, window1, 'cancelled');
  const calls = lab.calls();

  await expect(freeze(room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(() => room.hold(web1, window1, 'vda')).toThrowError(expect.objectContaining({ code: 'WINDOW_CLOSED' }));
  expect(await room.thaw(web1, window1, 'again')).toEqual(verdict);
  await room.release(web1, verdict.window.slice(0, -2));
  await expect(prepare(lab, room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await expect(freeze(room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  expect(calls).not.toContain('freeze');
});

test('a thaw of a window that was never frozen closes it', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  expect(room.verdict(web1, window1)).toBeUndefined();
  expect(await room.thaw(web1, window1, 'cancelled')).toMatchObject({ held: false, lostReason: 'NEVER_FROZEN' });
  await expect(freeze(room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test('holds are refused by name: before Prepare has ended, of a cut that was not named, and twice', async () => {
  const lab = await host();
  const room = await lab.room();
  await room.reserve(reserveRequest());
  const code = (call: () => unknown) => {
    try {
      call();
    } catch (error) {
      return error instanceof Error && 'code' in error ? error.code : error;
    }
    return undefined;
  };
  expect(code(() => room.hold(web1, window1, 'vda'))).toBe('NOT_PREPARED');
  await prepare(lab, room);
  const hold = room.hold(web1, window1, 'vda');
  room.hold(web1, window1, 'vdb');
  const unnamed = room.hold(web1, window1, 'vdy');
  await room.freeze(freezeRequest());
  await expect(unnamed.held).rejects.toMatchObject({ code: 'CUT_UNKNOWN' });
  expect(code(() => room.hold(web1, window1, 'vdz'))).toBe('CUT_UNKNOWN');
  expect(code(() => room.hold(web1, window1, 'vda'))).toBe('CUT_ALREADY_HELD');
  hold.end({ done: true });
  expect(code(() => room.hold(web1, window1, 'vda'))).toBe('CUT_ALREADY_HELD');
  expect(code(() => room.hold(web1, 'elsewhere.1', 'vda'))).toBe('WINDOW_UNKNOWN');
});

test('a second end of a hold changes nothing', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  expect(holds[0]?.end({ done: true }).inTime).toBe(true);
  expect(holds[0]?.end({ broken: 'stream closed' }).inTime).toBe(true);
  expect(room.state(web1).freezeState).toBe('frozen');
});

test('a window is frozen once, and a second freeze does it no harm', async () => {
  const lab = await host();
  const { room, holds } = await frozen(lab);
  await expect(freeze(room)).rejects.toMatchObject({ code: 'ALREADY_FROZEN' });
  for (const hold of holds) hold.end({ done: true });
  expect(await verdictOf(room)).toMatchObject({ held: true });
});

test.each([0, 999, 600_001, Number.NaN])('a freeze timeout of %s ms is refused', async (freezeTimeoutMs) => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  await expect(freeze(room, { freezeTimeoutMs })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

test('the agent timeout is the freeze’s before, the thaw’s inside and the configured one after', async () => {
  const lab = await host({ settings: { agentTimeoutAfter: 7 } });
  const agent = lab.world.vm(web1).agent;
  const room = await lab.room();
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'before' });
  const freezing = freeze(room, { freezeTimeoutMs: 12_345 });
  await held.hit;
  expect(agent.timeoutS).toBe(13);
  held.release();
  await freezing;
  await until(() => agent.timeoutS === 60, 'the thaw has a longer timeout');
  expect(lab.isFrozen()).toBe(true);
  await room.thaw(web1, window1, 'done');
  await until(() => agent.timeoutS === 7, 'the configured timeout is back');
});

test('a libvirt that hangs in setting the timeout does not keep the thaw back', async () => {
  const lab = await host({ settings: { callGuardMs: 300 } });
  const room = await lab.room();
  await prepare(lab, room);
  const skip = 1;
  lab.world.inject('setAgentTimeout', { hold: 'before' }, { skip, times: 1_000 });
  await freeze(room);
  await room.thaw(web1, window1, 'done');
  expect(lab.isFrozen()).toBe(false);
});

test('VMs never wait for each other', async () => {
  const lab = await host({ settings: { thawAnswerMs: 50 } });
  const { room } = await frozen(lab);
  lab.world.inject('thaw', { hold: 'before' }, { vm: web1 });
  const stuck = room.thaw(web1, window1, 'cancelled').catch(() => undefined);
  const other = '1c7d8b9e-0000-4f2c-8b3e-2f5f6a1d7c02';
  const db1 = '00000000-0000-4000-8000-000000000002';
  const { holds } = await frozen(lab, {
    room,
    reserve: { vm: db1, operation: other, window: `${other}.1`, setDisks: ['vda'] },
    cuts: ['vda'],
  });
  holds[0]?.end({ done: true });
  expect(await verdictOf(room, db1, `${other}.1`)).toMatchObject({ held: true });
  expect(lab.isFrozen()).toBe(true);
  expect(await stuck).toBeUndefined();
});
