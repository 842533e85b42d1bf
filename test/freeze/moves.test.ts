/** Guests that are moved, saved or restored while they are frozen: the lease's note in the domain goes with them. */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  freeze,
  freezeRequest,
  frozen,
  type Host,
  host,
  operation,
  overriding,
  prepare,
  reserveRequest,
  until,
  verdictOf,
  web1,
  window1,
  window2,
} from './fixture.js';

const note = (changes: Record<string, unknown> = {}) =>
  JSON.stringify({ version: 1, window: window1, host: 'kvm-9', installation: 'lab', ...changes });

const noteOf = (lab: Host) => lab.world.vm(web1).note;
const noNote = (lab: Host) => until(() => noteOf(lab) === undefined, 'the note is removed');

/** A guest that is frozen, and no host agent of this host knows why. */
function frozenElsewhere(lab: Host, text = note()): void {
  lab.world.vm(web1).note = text;
  lab.world.vm(web1).freezeByOther();
}

/** Makes the host agent look at the VM, and resolves when it has. */
async function lookedAt(lab: Host, happening: () => void): Promise<void> {
  let answered = false;
  lab.world.onCall(({ name, phase }) => {
    answered ||= phase === 'answered' && (name === 'getVm' || name === 'listVms');
  });
  happening();
  await until(() => answered, 'looked at');
}

describe('The note of a lease', () => {
  test('is in the domain before libvirt is asked to freeze, and says whose window on which host', async () => {
    const lab = await host();
    const room = await lab.room();
    await prepare(lab, room);
    const asked = lab.world.inject('freeze', { hold: 'before' });
    const freezing = freeze(room);
    await asked.hit;
    expect(JSON.parse(noteOf(lab) ?? '')).toEqual({
      version: 1,
      window: window1,
      host: 'kvm-1',
      installation: 'lab',
    });
    asked.release();
    await freezing;
  });

  test('is removed after the thaw, and nothing of it is asked of libvirt inside the window', async () => {
    const lab = await host();
    const { room, holds } = await frozen(lab);
    const calls = lab.calls();
    for (const hold of holds) hold.end({ done: true });
    expect(await room.thaw(web1, window1, 'asked')).toMatchObject({ held: true });
    await noNote(lab);
    expect(calls.indexOf('setNote')).toBeGreaterThan(calls.indexOf('thaw'));
  });

  test('that cannot be written keeps the guest from being frozen', async () => {
    const lab = await host();
    const room = await lab.room();
    await prepare(lab, room);
    lab.world.inject('setNote', { reject: 'HYPERVISOR_BUSY' });
    const calls = lab.calls();
    await expect(freeze(room)).rejects.toMatchObject({
      code: 'HYPERVISOR_BUSY',
      message: expect.stringContaining('noted'),
    });
    expect(calls).not.toContain('freeze');
    expect(await room.thaw(web1, window1, 'failed')).toMatchObject({ lostReason: 'NEVER_FROZEN', neverAsked: true });
  });

  test('of a freeze that was given up is removed', async () => {
    const lab = await host();
    const room = await lab.room();
    await prepare(lab, room);
    const reading = lab.world.inject('guestFileSystems', { reject: 'AGENT_NOT_RESPONDING' });
    await expect(freeze(room)).rejects.toMatchObject({ code: 'AGENT_NOT_RESPONDING' });
    await reading.hit;
    await noNote(lab);
  });

  test('that cannot be removed at once is removed later', async () => {
    const lab = await host();
    const { room } = await frozen(lab);
    lab.world.inject('setNote', { reject: 'HYPERVISOR_BUSY' }, { times: 3 });
    await room.thaw(web1, window1, 'asked');
    await noNote(lab);
  });

  test('of the next window is not taken by the removal of the last one', async () => {
    const lab = await host();
    const { room } = await frozen(lab);
    const removal = lab.world.inject('setNote', { hold: 'before' });
    await room.thaw(web1, window1, 'asked');
    await removal.hit;
    await prepare(lab, room, { window: window2 });
    const calls = lab.calls();
    const freezing = freeze(room, { window: window2 });
    await until(() => calls.includes('guestFileSystems'), 'the guest is asked for the last time');
    expect(calls).not.toContain('setNote');
    removal.release();
    await freezing;
    expect(noteOf(lab)).toContain(window2);
    expect(lab.isFrozen()).toBe(true);
  });

  test('is removed before a host agent that is told to stop has stopped', async () => {
    const lab = await host();
    const { room } = await frozen(lab);
    const removal = lab.world.inject('setNote', { hold: 'before' });
    let stopped = false;
    const stopping = room.shutdown().then(() => {
      stopped = true;
    });
    await removal.hit;
    await until(() => room.verdict(web1, window1) !== undefined, 'the verdict is on disk');
    // More turns than all the rest of a shutdown takes.
    for (let turn = 0; turn < 200; turn++) await readFile(join(lab.folder, 'journal.jsonl'));
    expect(stopped).toBe(false);
    removal.release();
    await stopping;
    expect(noteOf(lab)).toBeUndefined();
  });

  test('of a lease that the journal knows is removed by the life that pays it', async () => {
    const lab = await host();
    const { room, session } = await lab.doomedLife();
    await frozen(lab, { room });
    session.kill();
    expect(noteOf(lab)).toContain(window1);
    const next = await lab.room();
    await verdictOf(next);
    await noNote(lab);
  });
});

describe('A guest that comes here frozen is thawed, and its note removed', () => {
  test('when it is restored from a file, though its window is closed long since', async () => {
    const lab = await host();
    const { room } = await frozen(lab);
    const file = lab.world.vm(web1).save();
    await verdictOf(room);
    await room.release(web1, operation);
    lab.world.vm(web1).restore(file);
    await until(() => !lab.isFrozen(), 'thawed');
    await noNote(lab);
  });

  test('when it moves here from another host', async () => {
    const [from, to] = [await host(), await host()];
    const web = randomUUID();
    from.world.addVm({ name: 'mover', uuid: web, disks: [{ target: 'vda' }] });
    const there = await to.room();
    await frozen(from, { reserve: { vm: web, setDisks: ['vda'] }, cuts: ['vda'] });
    from.world.vm(web).moveAway(to.world);
    await until(() => !to.world.vm(web).frozen && to.world.vm(web).note === undefined, 'thawed');
    await until(() => there.state(web).freezeState === 'thawed', 'settled');
  });

  test('when the host agent starts', async () => {
    const lab = await host();
    frozenElsewhere(lab);
    await lab.room();
    await until(() => !lab.isFrozen(), 'thawed');
    await noNote(lab);
  });

  test('when libvirt is back, for what it did meanwhile was not told', async () => {
    const lab = await host();
    await lab.room();
    lab.world.connectionDown();
    frozenElsewhere(lab);
    lab.world.connectionUp();
    await until(() => !lab.isFrozen(), 'thawed');
    await noNote(lab);
  });

  test('when libvirt answers only at the third time', async () => {
    const lab = await host();
    frozenElsewhere(lab);
    lab.world.inject('listVms', { reject: 'LIBVIRT_UNREACHABLE' }, { times: 2 });
    await lab.room();
    await until(() => !lab.isFrozen(), 'thawed');
  });

  test('once it has come: on its way it is its old host that thaws it', async () => {
    const lab = await host();
    const vm = lab.world.vm(web1);
    vm.pause();
    vm.migrate();
    frozenElsewhere(lab);
    const calls = lab.calls();
    const starting = lab.room();
    await lookedAt(lab, () => undefined);
    const room = await starting;
    // A thaw would refuse it as unsettled.
    await room.reserveForDelete({ vm: web1, operation: 'delete-1', installation: 'lab' });
    expect(calls).not.toContain('thaw');
    expect(room.warnings()).toEqual([]);
    vm.migrating = false;
    // Nobody resumes it, and no event says that it has come.
    await until(() => room.warnings().some((warning) => warning.includes('Resume the VM')), 'told');
    vm.resume();
    await until(() => !lab.isFrozen(), 'thawed');
  });

  test('as soon as it runs, when it came paused; until then it is told as still frozen', async () => {
    const lab = await host();
    lab.world.vm(web1).pause();
    frozenElsewhere(lab);
    const room = await lab.room();
    await until(() => room.warnings().some((warning) => warning.includes('Resume the VM')), 'told');
    await expect(room.reserve(reserveRequest())).rejects.toMatchObject({ code: 'MAYBE_FROZEN' });
    lab.world.vm(web1).resume();
    await until(() => !lab.isFrozen(), 'thawed');
  });

  test('also when it was saved, restored and saved again before anybody could thaw it', async () => {
    const lab = await host();
    const vm = lab.world.vm(web1);
    await frozen(lab);
    vm.restore(vm.save());
    vm.restore(vm.save());
    await until(() => !lab.isFrozen(), 'thawed');
    await noNote(lab);
  });

  test('also when the debt that it left here gave it up as gone meanwhile', async () => {
    const lab = await host();
    const { room } = await frozen(lab);
    const vm = lab.world.vm(web1);
    // The connection breaks, so nobody is told; then the VM is here again in another life.
    lab.world.connectionDown();
    vm.restore(vm.save());
    lab.world.inject('thaw', { reject: 'AGENT_NOT_CONNECTED' }, { times: 1 });
    lab.world.inject('freezeStatus', { reject: 'AGENT_NOT_CONNECTED' }, { times: 1 });
    lab.world.connectionUp();
    void room.thaw(web1, window1, 'asked').catch(() => undefined);
    await until(() => !lab.isFrozen(), 'thawed');
    await noNote(lab);
  });
});

test('the note of a guest that came back frozen is not taken for the one that could not be removed when it left', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  const vm = lab.world.vm(web1);
  const image = { frozen: true, note: vm.note };
  const busy = lab.world.inject('setNote', { reject: 'HYPERVISOR_BUSY' }, { times: 1_000_000 });
  await room.thaw(web1, window1, 'asked');
  await busy.hit;
  lab.world.connectionDown();
  vm.save();
  vm.restore(image);
  const slow = lab.world.inject('listVms', { hold: 'before' });
  lab.world.connectionUp();
  await slow.hit;
  busy.remove();
  const calls = lab.calls();
  // The removal is tried again before anybody has looked at the VM: it must see that this is another life.
  await until(() => calls.includes('getVm'), 'looked');
  slow.release();
  await until(() => !lab.isFrozen(), 'thawed');
  await noNote(lab);
});

test('a guest that was saved frozen is thawed when it is restored, also under the id that it had', async () => {
  const lab = await host();
  const { room } = await frozen(lab);
  const vm = lab.world.vm(web1);
  const { note, domainId } = vm;
  vm.save();
  expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'VM_SAVED' });
  // As after a restart of libvirtd, which counts on from the highest id that runs.
  lab.world.connectionDown();
  vm.restore({ frozen: true, note });
  vm.domainId = domainId;
  lab.world.connectionUp();
  await until(() => !lab.isFrozen(), 'thawed');
  await noNote(lab);
});

describe('A note that nobody of ours wrote', () => {
  test.each([
    ['no JSON', '<lease/>'],
    ['of a later version', note({ version: 2 })],
    ['with an id that is none', note({ window: '../../etc\n' })],
    ['far too long', note({ host: 'x'.repeat(10_000) })],
    ['empty', ''],
  ])('%s: the guest is thawed, the note removed, and nothing of it believed', async (_, text) => {
    const lab = await host();
    frozenElsewhere(lab, text);
    const room = await lab.room();
    await until(() => !lab.isFrozen(), 'thawed');
    await noNote(lab);
    await room.reserve(reserveRequest());
    expect(await readFile(join(lab.folder, 'journal.jsonl'), 'utf8')).not.toContain('etc');
  });

  test('on a VM that has no guest agent is removed, and nothing is owed to it', async () => {
    const lab = await host({ vm: { guestAgent: 'not-configured' } });
    lab.world.vm(web1).note = note();
    const calls = lab.calls();
    const room = await lab.room();
    await noNote(lab);
    expect(calls).toEqual(['setNote']);
    await room.reserveForDelete({ vm: web1, operation: 'delete-1', installation: 'lab' });
  });

  test('on a guest that is not frozen costs it a thaw, and no more', async () => {
    const lab = await host();
    lab.world.vm(web1).note = note();
    const calls = lab.calls();
    const room = await lab.room();
    await noNote(lab);
    expect(calls.filter((name) => name === 'thaw')).toHaveLength(1);
    await prepare(lab, room);
    await freeze(room);
    expect(lab.isFrozen()).toBe(true);
  });

  test.each([
    ['with the window that is open here', note({ host: 'kvm-1' })],
    ['with another one, which the guest cannot have come with', note({ window: window2 })],
    ['that is none', 'forged'],
  ])('%s leaves the guest frozen in its window', async (_, text) => {
    const lab = await host();
    const { room, holds } = await frozen(lab);
    lab.world.vm(web1).note = text;
    lab.world.vm(web1).pause();
    await lookedAt(lab, () => lab.world.vm(web1).resume());
    expect(lab.isFrozen()).toBe(true);
    for (const hold of holds) hold.end({ done: true });
    expect(await room.thaw(web1, window1, 'asked')).toMatchObject({ held: true });
  });
});

test('A guest that is being thawed for its note is not frozen by a freeze that waited for its cuts meanwhile', async () => {
  const lab = await host();
  const room = await lab.room();
  await prepare(lab, room);
  const calls = lab.calls();
  const refused = expect(room.freeze(freezeRequest())).rejects.toMatchObject({ code: 'MAYBE_FROZEN' });
  lab.world.vm(web1).note = note({ window: window2 });
  const thaw = lab.world.inject('thaw', { hold: 'before' });
  lab.world.vm(web1).pause();
  lab.world.vm(web1).resume();
  await thaw.hit;
  for (const cut of freezeRequest().cuts) room.hold(web1, window1, cut);
  await refused;
  expect(calls).not.toContain('freeze');
  thaw.release();
});

describe('The host that a frozen guest leaves', () => {
  test.each([
    ['moves', 'VM_MOVED', (lab: Host): void => lab.world.vm(web1).moveAway()],
    ['is saved', 'VM_SAVED', (lab: Host): void => void lab.world.vm(web1).save()],
    ['is shut off', 'VM_GONE', (lab: Host): void => lab.world.vm(web1).shutOff()],
  ] as const)('says so, and never that the window held: it %s', async (_, lostReason, leave) => {
    const lab = await host();
    const { room, holds } = await frozen(lab);
    holds[0]?.end({ done: true });
    leave(lab);
    holds[1]?.end({ done: true });
    const verdict = await verdictOf(room);
    expect(verdict).toMatchObject({ held: false, lostReason, thawedUnixMs: 0 });
    const journal = await readFile(join(lab.folder, 'journal.jsonl'), 'utf8');
    expect(journal).toContain(`"end":"${lostReason}"`);
  });

  test('knows it also when it was not told, and when it looks only after its restart', async () => {
    const lab = await host();
    const { room: dead, session } = await lab.doomedLife();
    const { holds } = await frozen(lab, { room: dead });
    for (const hold of holds) hold.end({ done: true });
    session.kill();
    lab.world.vm(web1).moveAway();
    const room = await lab.room();
    expect(await verdictOf(room)).toMatchObject({
      held: false,
      lostReason: 'VM_MOVED',
      detail: expect.stringContaining('moved'),
    });
  });

  test('does not call it shut off where libvirt does not know any more', async () => {
    const lab = await host();
    const { room: dead, session } = await lab.doomedLife();
    await frozen(lab, { room: dead });
    session.kill();
    lab.world.vm(web1).shutOff();
    lab.world.vm(web1).offBecause = 'unknown';
    const room = await lab.room();
    expect(await verdictOf(room)).toMatchObject({ lostReason: 'VM_MOVED', detail: expect.stringContaining('moved') });
  });

  test('is not fooled by a VM that moves between the last cut and the thaw', async () => {
    const lab = await host();
    const session = lab.world.session();
    const room = await lab.roomOver(
      overriding(session, {
        thaw: async (uuid: string) => {
          if (lab.world.vm(uuid).exists) lab.world.vm(uuid).moveAway();
          return session.thaw(uuid);
        },
      }),
    );
    const { holds } = await frozen(lab, { room });
    for (const hold of holds) hold.end({ done: true });
    expect(await verdictOf(room)).toMatchObject({ held: false, lostReason: 'VM_MOVED' });
  });
});

describe('The engine’s thaw of what a window of another host left frozen', () => {
  test('thaws it without any note, and says how much', async () => {
    const lab = await host();
    const room = await lab.room();
    lab.world.vm(web1).freezeByOther();
    expect(await room.thawArrived(web1, window1)).toBe(2);
    expect(lab.isFrozen()).toBe(false);
    expect(await room.thawArrived(web1, window1)).toBe(0);
  });

  test('owes nothing to a VM that nobody can have frozen', async () => {
    const lab = await host({ vm: { guestAgent: 'not-configured' } });
    const room = await lab.room();
    expect(await room.thawArrived(web1, window1)).toBe(0);
    await room.reserveForDelete({ vm: web1, operation: 'delete-1', installation: 'lab' });
  });

  test('joins the thaw that the note has begun', async () => {
    const lab = await host();
    frozenElsewhere(lab);
    const held = lab.world.inject('thaw', { hold: 'before' });
    const calls = lab.calls();
    const room = await lab.room();
    await held.hit;
    const asked = room.thawArrived(web1, window1);
    held.release();
    expect(await asked).toBe(2);
    expect(calls.filter((name) => name === 'thaw')).toHaveLength(1);
  });

  test('leaves a window that is open here alone', async () => {
    const lab = await host();
    const { room, holds } = await frozen(lab);
    expect(await room.thawArrived(web1, window2)).toBe(0);
    expect(lab.isFrozen()).toBe(true);
    for (const hold of holds) hold.end({ done: true });
    expect(await room.thaw(web1, window1, 'asked')).toMatchObject({ held: true });
  });

  test('is not yet answered while it is impossible, and goes on', async () => {
    const lab = await host({ settings: { thawAnswerMs: 50 } });
    const room = await lab.room();
    lab.world.vm(web1).freezeByOther();
    lab.world.vm(web1).pause();
    await expect(room.thawArrived(web1, window1)).rejects.toMatchObject({ code: 'STILL_FROZEN' });
    lab.world.vm(web1).resume();
    await until(() => !lab.isFrozen(), 'thawed');
  });

  test.each([
    ['is not here', 'VM_NOT_FOUND', (lab: Host): void => lab.world.vm(web1).moveAway()],
    ['is off', 'VM_NOT_RUNNING', (lab: Host): void => lab.world.vm(web1).shutOff()],
    [
      'goes while it is thawed',
      'VM_NOT_FOUND',
      (lab: Host): void => {
        lab.world.vm(web1).pause();
        lab.world.onCall(({ name }) => {
          if (name === 'thaw') lab.world.vm(web1).moveAway();
        });
      },
    ],
  ] as const)('says so of a VM that %s: %s', async (_, code, leave) => {
    const lab = await host();
    const room = await lab.room();
    leave(lab);
    await expect(room.thawArrived(web1, window1)).rejects.toMatchObject({ code });
  });
});
