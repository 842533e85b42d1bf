import { HostAgentError } from '@stillpoint/host-agent/errors.js';
import { expect, test } from 'vitest';
import {
  db1,
  fileSystem,
  freeze,
  frozen,
  host,
  operation,
  overriding,
  prepare,
  reserveRequest,
  web1,
  window1,
  window2,
} from './fixture.js';

const other = 'b3b3b3b3-1111-4222-8333-444444444444';

test('of two operations that prepare at the same time one gets the VM', async () => {
  const lab = await host();
  const room = await lab.room();
  const outcomes = await Promise.allSettled([
    room.reserve(reserveRequest()),
    room.reserve(reserveRequest({ operation: other, window: `${other}.1`, installation: 'another' })),
  ]);
  expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
  expect(outcomes[1]).toMatchObject({
    reason: { code: 'BUSY', metadata: { operation, window: window1, installation: 'lab' } },
  });
  expect(room.state(web1).reservation).toMatchObject({ operation, window: window1, installation: 'lab' });
});

test('a delete and a snapshot exclude one another', async () => {
  const lab = await host();
  const room = await lab.room();
  expect(await room.reserveForDelete({ vm: web1, operation: other, installation: 'another' })).toBeUndefined();
  expect(await room.reserveForDelete({ vm: web1, operation: other, installation: 'another' })).toBeUndefined();
  await expect(room.reserve(reserveRequest())).rejects.toMatchObject({ code: 'BUSY' });
  expect(await room.release(web1, other)).toBe(true);
  await room.reserve(reserveRequest());
  await expect(room.reserveForDelete({ vm: web1, operation: other, installation: 'another' })).rejects.toMatchObject({
    code: 'BUSY',
  });
});

test('a reservation of the same installation is dead: thawed, closed, told, and kept until it is released', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  const next = reserveRequest({ operation: other, window: `${other}.1` });
  expect(await room.reserve(next)).toEqual({ stale: { operation, window: window1 } });
  expect(lab.isFrozen()).toBe(false);
  expect(room.verdict(web1, window1)).toMatchObject({ held: false, lostReason: 'THAWED_EARLY' });
  expect(await room.reserve(next)).toEqual({ stale: { operation, window: window1 } });
  expect(await room.release(web1, operation)).toBe(true);
  expect(await room.reserve(next)).toMatchObject({ gaps: [] });
});

test('the same window is reserved again with the same answer, also at the same time', async () => {
  const lab = await host();
  const room = await lab.room();
  const calls = lab.calls();
  const [first, second] = await Promise.all([room.reserve(reserveRequest()), room.reserve(reserveRequest())]);
  expect(second).toEqual(first);
  expect(await room.reserve(reserveRequest())).toEqual(first);
  expect(calls.filter((name) => name === 'guestFileSystems')).toHaveLength(1);
});

test('a second window of the operation opens only when the first is closed', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  await expect(room.reserve(reserveRequest({ window: window2 }))).rejects.toMatchObject({ code: 'BUSY' });
  expect(room.state(web1).reservation?.window).toBe(window1);
  await room.thaw(web1, window1, 'lost worker');
  await prepare(lab, room, { window: window2 });
  await freeze(room, { window: window2 });
  expect(lab.isFrozen()).toBe(true);
  expect(room.prepared(window1)).toBeDefined();
});

test.each([
  ['shut off', (vm: Guest) => vm.shutOff(), 'VM_NOT_RUNNING'],
  ['paused', (vm: Guest) => vm.pause(), 'VM_PAUSED'],
  ['frozen by somebody else', (vm: Guest) => vm.freezeByOther(), 'ALREADY_FROZEN'],
  ['without a connected agent', (vm: Guest) => vm.disconnectAgent(), 'AGENT_NOT_CONNECTED'],
  ['with a silent agent', (vm: Guest) => vm.agent.stop(), 'AGENT_NOT_RESPONDING'],
  ['undefined', (vm: Guest) => vm.moveAway(), 'VM_NOT_FOUND'],
] as const)('a VM that is %s is refused and left alone, and nobody holds it', async (_, happens, code) => {
  const lab = await host();
  const room = await lab.room();
  happens(lab.world.vm(web1));
  const calls = lab.calls();
  for (const quiesce of ['required', 'best-effort'] as const) {
    await expect(room.reserve(reserveRequest({ quiesce }))).rejects.toMatchObject({ code });
  }
  expect(room.state(web1).reservation).toBeUndefined();
  expect(calls).not.toContain('thaw');
  expect(calls).not.toContain('freeze');
});

function startAnew(vm: Guest): void {
  vm.shutOff();
  vm.start();
  vm.connectAgent();
}

function unmountOne(vm: Guest): void {
  vm.agent.fileSystems.pop();
}

function bootAnotherOs(vm: Guest): void {
  vm.agent.os = { id: 'alpine', isWindows: false };
}

type Guest = ReturnType<Awaited<ReturnType<typeof host>>['world']['vm']>;

test('a paused VM and a VM without an agent can be cut unfrozen', async () => {
  const lab = await host();
  const room = await lab.room();
  lab.world.vm(web1).disconnectAgent();
  lab.world.vm(web1).pause();
  expect(await room.reserve(reserveRequest({ quiesce: 'skip' }))).toMatchObject({ gaps: [], expectedFileSystems: 0 });
});

test('a libvirt that cannot bound the guest agent is refused, except for unfrozen windows', async () => {
  const lab = await host({ canSetAgentTimeout: false });
  const room = await lab.room();
  await expect(room.reserve(reserveRequest())).rejects.toMatchObject({ code: 'LIBVIRT_TOO_OLD' });
  await room.reserve(reserveRequest({ quiesce: 'skip' }));
});

test('a gap is refused under required and told under best-effort', async () => {
  const lab = await host({ vm: { fileSystems: [fileSystem('/', 'ext4', ['vda'])] } });
  const room = await lab.room();
  await expect(room.reserve(reserveRequest())).rejects.toMatchObject({
    code: 'QUIESCE_INCOMPLETE',
    metadata: { targets: 'vdb' },
  });
  expect(room.state(web1).reservation).toBeUndefined();
  expect(await room.reserve(reserveRequest({ quiesce: 'best-effort' }))).toMatchObject({
    gaps: [{ target: 'vdb', accepted: false }],
    expectedFileSystems: 1,
  });
});

test('another number of frozen file systems than expected is a gap of the freeze', async () => {
  const fileSystems = [
    fileSystem('/', 'ext4', ['vda']),
    fileSystem('/boot/efi', 'vfat', ['vda']),
    fileSystem('/data', 'ext4', ['vdb']),
  ];
  const lab = await host({ vm: { fileSystems } });
  const room = await lab.room();
  expect(await prepare(lab, room)).toMatchObject({ expectedFileSystems: 2, gaps: [{ accepted: true }] });
  const { frozenFileSystems, gaps } = await freeze(room);
  expect(frozenFileSystems).toBe(3);
  expect(gaps).toMatchObject([
    { target: 'vda', mountpoint: '/boot/efi', accepted: true },
    { target: '', accepted: false, reason: expect.stringContaining('3 file systems were frozen') },
  ]);
});

test('a thaw that is asked for while the guest is still read says that it is not done yet', async () => {
  const lab = await host({ settings: { thawAnswerMs: 50 } });
  const room = await lab.room();
  await prepare(lab, room);
  const held = lab.world.inject('guestFileSystems', { hold: 'after' });
  const refused = expect(freeze(room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await held.hit;
  await expect(room.thaw(web1, window1, 'too slow')).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  const calls = lab.calls();
  held.release();
  await refused;
  expect(calls).not.toContain('freeze');
  expect(await room.thaw(web1, window1, 'again')).toMatchObject({ lostReason: 'THAWED_EARLY' });
});

test.each([
  ['the domain was started anew', startAnew],
  ['its file systems are others', unmountOne],
  ['its OS is another', bootAnotherOs],
] as const)('a guest is not frozen when %s since it was prepared', async (_, happens) => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  happens(lab.world.vm(web1));
  const calls = lab.calls();
  await expect(freeze(room)).rejects.toMatchObject({ code: 'VM_CHANGED' });
  expect(calls).not.toContain('freeze');
  expect(await room.thaw(web1, window1, 'failed')).toMatchObject({ held: false, lostReason: 'NEVER_FROZEN' });
});

test('a guest that somebody froze since it was prepared is refused and not thawed', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  lab.world.vm(web1).freezeByOther();
  await expect(freeze(room)).rejects.toMatchObject({ code: 'ALREADY_FROZEN' });
  await room.thaw(web1, window1, 'failed');
  await room.release(web1, operation);
  expect(lab.isFrozen()).toBe(true);
});

test('a guest that somebody freezes at the last moment is refused and not thawed', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const held = lab.world.inject('freeze', { hold: 'before' });
  const refused = expect(freeze(room)).rejects.toMatchObject({ code: 'ALREADY_FROZEN' });
  await held.hit;
  lab.world.vm(web1).freezeByOther();
  held.release();
  await refused;
  expect(await room.thaw(web1, window1, 'failed')).toMatchObject({ lostReason: 'FREEZE_FAILED' });
  expect(lab.isFrozen()).toBe(true);
});

test('a freeze needs what Prepare made', async () => {
  const lab = await host();
  const room = await lab.room();
  await expect(freeze(room)).rejects.toMatchObject({ code: 'NOT_PREPARED' });
  await room.reserve(reserveRequest());
  await expect(freeze(room)).rejects.toMatchObject({ code: 'NOT_PREPARED' });
  await expect(freeze(room, { vm: db1 })).rejects.toMatchObject({ code: 'NOT_PREPARED' });
});

test.each([
  [{ windowLimitMs: 99 }],
  [{ windowLimitMs: 60_001 }],
  [{ window: 'elsewhere.1' }],
  [{ window: `${operation}.0` }],
  [{ vm: '../etc' }],
  [{ installation: '' }],
  [{ setDisks: [] }],
])('a reservation with %j is refused', async (changes) => {
  const lab = await host();
  const room = await lab.room();
  await expect(room.reserve(reserveRequest(changes))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

test('undo closes a window that this host never saw', async () => {
  const lab = await host();
  const room = await lab.room();
  await room.closeForUndo(web1, window1);
  await room.closeForUndo(web1, window1);
  await expect(room.reserve(reserveRequest())).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test('undo closes a window whose Prepare is still under way', async () => {
  const lab = await host();
  const room = await lab.room();
  const held = lab.world.inject('guestFileSystems', { hold: 'before' });
  const reserving = room.reserve(reserveRequest());
  await held.hit;
  const closing = room.closeForUndo(web1, window1);
  held.release();
  await Promise.all([reserving, closing]);
  await expect(prepare(lab, room)).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test('what Prepare made is not kept for a window that undo closed meanwhile', async () => {
  const lab = await host();
  const room = await lab.room();
  await room.reserve(reserveRequest());
  await room.closeForUndo(web1, window1);
  const pinned = { domainId: 1, disks: [], fileSystems: undefined, osId: undefined };
  await expect(room.keepPrepared(window1, { pinned, overlays: [] })).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
  await expect(room.keepPrepared(window2, { pinned, overlays: [] })).rejects.toMatchObject({ code: 'NOT_PREPARED' });
});

test('undo thaws an open window and closes it', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  await room.closeForUndo(web1, window1);
  expect(lab.isFrozen()).toBe(false);
  expect(room.verdict(web1, window1)).toMatchObject({ held: false, lostReason: 'UNDONE' });
});

test('release gives the VM back, drops the verdict, and thaws what is still open', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  expect(await room.release(web1, other)).toBe(false);
  expect(await room.release(web1, operation)).toBe(true);
  expect(lab.isFrozen()).toBe(false);
  expect(room.state(web1).reservation).toBeUndefined();
  expect(room.prepared(window1)).toBeUndefined();
  expect(() => room.verdict(web1, window1)).toThrowError(expect.objectContaining({ code: 'WINDOW_UNKNOWN' }));
  expect(await room.release(web1, operation)).toBe(false);
});

test("an administrator's release says who held the VM, and thaws", async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  expect(await room.releaseVm(web1, 'root')).toMatchObject({ operation, window: window1, installation: 'lab' });
  expect(lab.isFrozen()).toBe(false);
  expect(await room.releaseVm(web1, 'root')).toBeUndefined();
  await expect(room.reserve(reserveRequest())).rejects.toMatchObject({ code: 'WINDOW_CLOSED' });
});

test("an administrator's thaw thaws a window of ours, and names it", async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  expect(await room.thawVm(web1, 'root')).toEqual({ thawedFileSystems: 2, lostWindow: window1 });
  expect(room.verdict(web1, window1)).toMatchObject({ lostReason: 'ADMINISTRATOR' });
});

test("an administrator's thaw thaws a stranger's freeze", async () => {
  const lab = await host();
  const room = await lab.room();
  lab.world.vm(web1).freezeByOther();
  expect(await room.thawVm(web1, 'root')).toEqual({ thawedFileSystems: 2, lostWindow: undefined });
  expect(lab.isFrozen()).toBe(false);
  lab.world.vm(web1).disconnectAgent();
  await expect(room.thawVm(web1, 'root')).rejects.toMatchObject({ code: 'AGENT_NOT_CONNECTED' });
});

test("an administrator's thaw works with a libvirt that is too old to freeze with", async () => {
  const lab = await host({ canSetAgentTimeout: false });
  const setAgentTimeout = async () => {
    throw new HostAgentError('LIBVIRT_TOO_OLD', 'libvirt 5.9.0 cannot bound an answer');
  };
  const room = await lab.roomOver(overriding(lab.world.session(), { setAgentTimeout }));
  lab.world.vm(web1).agent.frozen = true;
  expect(await room.thawVm(web1, 'root')).toEqual({ thawedFileSystems: 2, lostWindow: undefined });
  expect(lab.isFrozen()).toBe(false);
});
