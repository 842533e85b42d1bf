import { expect, test } from 'vitest';
import {
  freeze,
  frozen,
  host,
  operation,
  overriding,
  prepare,
  preparedOf,
  reserveRequest,
  until,
  verdictOf,
  web1,
  window1,
  window2,
} from './fixture.js';

test.each(['AGENT_NOT_RESPONDING', 'LIBVIRT_CALL_TIMEOUT'] as const)(
  'a freeze that ends in %s and happens later is thawed',
  async (code) => {
    const lab = await host();
    const room = await lab.room();
    await prepare(lab, room);
    lab.world.inject('freezeStatus', { reject: 'AGENT_NOT_RESPONDING' }, { skip: 2, times: 3 });
    const late = lab.world.inject('freeze', { late: code });
    await expect(freeze(room)).rejects.toMatchObject({ code: 'FREEZE_TIMEOUT' });
    expect(room.state(web1)).toMatchObject({ freezeState: 'maybe-frozen' });
    await late.happen();
    expect(lab.isFrozen()).toBe(true);
    await until(() => !lab.isFrozen(), 'thawed');
    await until(() => room.state(web1).freezeState === 'thawed', 'settled');
    expect(await room.thaw(web1, window1, 'failed')).toMatchObject({ held: false, lostReason: 'FREEZE_FAILED' });
  },
);

test('while a freeze is unsettled new freezes are refused, and the watch ends only with an answer', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const silent = lab.world.inject('freezeStatus', { reject: 'AGENT_NOT_RESPONDING' }, { skip: 2, times: 1_000_000 });
  lab.world.inject('freeze', { late: 'AGENT_NOT_RESPONDING' });
  await expect(freeze(room)).rejects.toMatchObject({ code: 'FREEZE_TIMEOUT' });

  expect(await room.thaw(web1, window1, 'failed')).toMatchObject({ lostReason: 'FREEZE_FAILED', frozenUnixMs: 0 });
  await expect(room.reserve(reserveRequest({ window: window2 }))).rejects.toMatchObject({ code: 'MAYBE_FROZEN' });
  await room.reserve(reserveRequest({ window: window2, quiesce: 'skip' }));
  await room.release(web1, operation);
  await expect(room.reserveForDelete({ vm: web1, operation: 'delete-1', installation: 'lab' })).rejects.toMatchObject({
    code: 'MAYBE_FROZEN',
  });
  expect(room.warnings()).toEqual([expect.stringContaining('may be frozen')]);

  silent.remove();
  await until(() => room.state(web1).freezeState === 'thawed', 'settled');
  expect(room.warnings()).toEqual([]);
  const next = 'c4c4c4c4-1111-4222-8333-444444444444';
  await room.reserve(reserveRequest({ operation: next, window: `${next}.1` }));
});

test('a freeze that libvirt never answers ends by our own guard, and is watched until it does', async () => {
  const lab = await host({ settings: { callGuardMs: 100 } });
  const room = await lab.room();
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'before' });
  await expect(freeze(room)).rejects.toMatchObject({ code: 'FREEZE_TIMEOUT' });
  const calls = lab.calls();
  await until(() => calls.filter((name) => name === 'freezeStatus').length > 2, 'asked several times');
  // The guest says 'thawed', but the freeze is still on its way.
  expect(room.state(web1).freezeState).toBe('maybe-frozen');
  held.release();
  await until(() => calls.includes('thaw'), 'thaw sent');
  await until(() => room.state(web1).freezeState === 'thawed', 'settled');
  expect(lab.isFrozen()).toBe(false);
});

test.each([
  ['FREEZE_HOOK_FAILED', 'FREEZE_HOOK_FAILED'],
  ['AGENT_NOT_CONNECTED', 'AGENT_NOT_CONNECTED'],
] as const)('a freeze refused with %s surely did not happen: no watch', async (injected, code) => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  lab.world.inject('freeze', { reject: injected });
  await expect(freeze(room)).rejects.toMatchObject({ code });
  expect(room.state(web1).freezeState).toBe('thawed');
  expect(await room.thaw(web1, window1, 'failed')).toMatchObject({ held: false, lostReason: 'FREEZE_FAILED' });
  await room.reserve(reserveRequest({ window: window2 }));
});

test.each(['FREEZE_FAILED', 'HYPERVISOR_BUSY', 'LIBVIRT_UNREACHABLE', 'LIBVIRT_ERROR'] as const)(
  'a freeze that ends in %s and did happen is thawed',
  async (code) => {
    const lab = await host();
    const room = await lab.room();
    await prepare(lab, room);
    lab.world.inject('freeze', { loseReply: code });
    await expect(freeze(room)).rejects.toMatchObject({ code });
    await until(() => !lab.isFrozen() && room.state(web1).freezeState === 'thawed', 'thawed');
  },
);

test('a paused guest is told as still frozen, with what to do, and thawed when it is resumed', async () => {
  const lab = await host({ settings: { retryFirstMs: 60_000, retryMaxMs: 60_000, thawAnswerMs: 50 } });
  const { room } = await frozen(lab);
  lab.world.vm(web1).pause();
  await expect(room.thaw(web1, window1, 'cancelled')).rejects.toMatchObject({
    code: 'STILL_FROZEN',
    message: expect.stringContaining('Resume the VM'),
  });
  expect(room.state(web1)).toMatchObject({
    freezeState: 'still-frozen',
    detail: expect.stringContaining('Resume the VM'),
  });
  expect(room.warnings()).toEqual([expect.stringContaining('still frozen')]);
  expect(room.verdict(web1, window1)).toBeUndefined();

  // No retry is due for a minute: only the event can have caused this.
  lab.world.vm(web1).resume();
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'THAWED_EARLY', thawedFileSystems: 2 });
  expect(lab.isFrozen()).toBe(false);
});

test('a guest whose agent was killed is thawed when the agent is back', async () => {
  const lab = await host({ settings: { retryFirstMs: 60_000, retryMaxMs: 60_000, thawAnswerMs: 50 } });
  const { room } = await frozen(lab);
  lab.world.vm(web1).disconnectAgent();
  await expect(room.thaw(web1, window1, 'cancelled')).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  lab.world.vm(web1).connectAgent();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('a guest is thawed when libvirt is back', async () => {
  const lab = await host({ settings: { retryFirstMs: 60_000, retryMaxMs: 60_000, thawAnswerMs: 50 } });
  const { room } = await frozen(lab);
  lab.world.connectionDown();
  await expect(room.thaw(web1, window1, 'cancelled')).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  expect(room.state(web1).detail).toContain('Start libvirtd');
  lab.world.connectionUp();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('without any event a thaw is repeated until it works', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  lab.world.inject('thaw', { reject: 'HYPERVISOR_BUSY' }, { times: 5 });
  expect(await room.thaw(web1, window1, 'cancelled')).toMatchObject({ thawedFileSystems: 2 });
  expect(lab.isFrozen()).toBe(false);
});

test('a guest agent that does not answer the thaw is told as still frozen', async () => {
  const lab = await host({ settings: { thawAnswerMs: 100 } });
  const { room } = await frozen(lab);
  lab.world.vm(web1).agent.stop();
  await expect(room.thaw(web1, window1, 'cancelled')).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  expect(room.state(web1)).toMatchObject({
    freezeState: 'still-frozen',
    detail: expect.stringContaining('guest agent'),
  });
  lab.world.vm(web1).agent.continue();
  expect(await verdictOf(room)).toMatchObject({ thawedFileSystems: 2 });
});

test('a thaw that says it worked and did not is repeated', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  let lies = 2;
  const vm = lab.world.vm(web1);
  lab.world.onCall(({ name, phase }) => {
    // Its thaw hook freezes again: the count is right, but only once.
    if (name === 'thaw' && phase === 'answered' && lies-- > 0) vm.freezeByOther();
  });
  vm.agent.fileSystems.pop();
  await room.thaw(web1, window1, 'cancelled');
  expect(lab.isFrozen()).toBe(false);
});

test('a VM that was saved to disk while frozen is thawed when it is restored', async () => {
  const lab = await host({ settings: { thawAnswerMs: 50 } });
  const { room } = await frozen(lab);
  const vm = lab.world.vm(web1);
  vm.managedSave();
  await expect(room.thaw(web1, window1, 'cancelled')).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  await until(() => room.state(web1).detail.includes('saved to disk'), 'told');
  vm.start();
  vm.connectAgent();
  vm.freezeByOther();
  await until(() => !lab.isFrozen(), 'thawed');
});

test('a status answer that was asked for before the freeze was answered proves nothing, even when both answers come together', async () => {
  const lab = await host({ settings: { callGuardMs: 20 } });
  const hypervisor = lab.world.session();
  let answerFreeze: () => void = () => undefined;
  let answerStatus: (() => void) | undefined;
  let asked = 0;
  // Two connections to libvirt: one brings the old status, the other the freeze's success.
  const crossed = overriding(hypervisor, {
    freeze: () =>
      new Promise((resolve) => {
        answerFreeze = () => resolve({ fileSystems: 2, repliedAt: performance.now() });
      }),
    freezeStatus: (uuid: string, timeoutS: number) => {
      // The first two are the checks before the freeze.
      if (++asked !== 3) return hypervisor.freezeStatus(uuid, timeoutS);
      return new Promise((resolve) => {
        answerStatus = () => resolve('thawed');
      });
    },
  });
  const room = await lab.roomOver(crossed);
  await room.reserve(reserveRequest());
  asked = 0;
  await room.keepPrepared(window1, preparedOf(lab));
  await expect(freeze(room)).rejects.toMatchObject({ code: 'FREEZE_TIMEOUT' });
  await until(() => answerStatus !== undefined, 'the status asked for');
  lab.world.vm(web1).agent.frozen = true;
  answerStatus?.();
  answerFreeze();
  await until(() => room.state(web1).freezeState === 'thawed', 'settled');
  expect(lab.isFrozen()).toBe(false);
});
