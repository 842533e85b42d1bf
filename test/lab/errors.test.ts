/**
 * Every error that must be told apart, as the caller of the API sees it, and what becomes of the guest, as the guest itself says. The table is libvirt's
 * own behaviour, measured: the same text or number may mean that nothing happened, or that the guest freezes later.
 */

import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import type { VmView } from '@stillpoint/engine/api/schemas.js';
import type { HeldFrame } from '@stillpoint/lab/libvirt-proxy.js';
import { workflowIdOf } from '@stillpoint/workflows';
import { Client, Connection } from '@temporalio/client';
import { describe, expect, it } from 'vitest';
import { VM } from './whole-system.js';
import { oneWorld, world } from './world.js';

oneWorld('errors');

const failedWith = (code: string) => ({
  state: 'failed',
  grade: null,
  pending: [],
  error: { code, text: expect.stringContaining('guest') },
});

/** A snapshot whose cut (the call, or libvirt's reply to it) the proxy holds, its guest frozen. */
async function snapshotInItsWindow(what: 'call' | 'reply' = 'call'): Promise<{ id: string; cut: HeldFrame }> {
  const cut = world.proxy.hold({ procedure: 'SNAPSHOT_CREATE_XML', what });
  const id = await world.system.createSnapshot(VM);
  await cut.reached;
  expect(await world.lab.guest.isFrozen()).toBe(true);
  return { id, cut };
}

/** The state in which the API says the guest is. */
async function freezeState(): Promise<string> {
  const { body } = await world.system.request<VmView>('GET', `/v1/vms/${VM}`);
  return body.hold?.freezeState ?? 'thawed';
}

const untilFreezeState = (state: string) =>
  world.until(`the API says ${state}`, async () => ((await freezeState()) === state ? true : undefined));

const hookPhases = async () => (await world.lab.guest.hookCalls()).map(({ call, phase }) => `${call} ${phase}`);

/** The guest froze after all, and was thawed again: by its own hook's word. */
const untilFrozenAndThawed = () =>
  world.until('the guest froze and was thawed', async () => {
    const phases = await hookPhases();
    const froze = phases.lastIndexOf('freeze end');
    return froze >= 0 && phases.indexOf('thaw end', froze) > froze ? true : undefined;
  });

describe('A VM that cannot be frozen', () => {
  it('is AGENT_NOT_CONFIGURED without a guest agent channel, and VM_NOT_RUNNING when it is off', async () => {
    const { lab } = world;
    const mute = await lab.addVm({ name: 'mute', disks: ['vda'], agentChannel: false, start: false });
    await mute.powerOn();
    expect(await world.snapshot({}, mute.uuid)).toMatchObject(failedWith('AGENT_NOT_CONFIGURED'));
    expect((await mute.chains()).vda).toEqual([mute.diskPath('vda')]);
    await mute.destroy();
    expect(await world.snapshot({}, mute.uuid)).toMatchObject(failedWith('VM_NOT_RUNNING'));
    expect(await world.snapshot({ quiesce: 'skip' }, mute.uuid)).toMatchObject(failedWith('VM_NOT_RUNNING'));
    await mute.remove();
  });

  it('is VM_NOT_FOUND when no host knows it', async () => {
    const answer = await world.system.request<{ code: string }>('POST', `/v1/vms/${randomUUID()}/snapshots`, {});
    expect([answer.status, answer.body.code]).toEqual([404, 'VM_NOT_FOUND']);
  });

  it('is VM_PAUSED while it is paused, and may be snapshotted without a freeze then', async () => {
    const { lab, system } = world;
    await lab.vm.pause();
    expect(await world.snapshot()).toMatchObject(failedWith('VM_PAUSED'));
    const skipped = await world.snapshot({ quiesce: 'skip' });
    expect(skipped).toMatchObject({ state: 'complete', grade: 'crash' });
    expect(await lab.vm.state()).toBe('paused');
    await lab.vm.resume();
    await system.deleteSnapshot(skipped.id);
    await world.expectNothingLeft();
  });

  it('is AGENT_NOT_CONNECTED while the guest agent is dead', async () => {
    await world.lab.guest.killAgent({ respawn: false });
    expect(await world.snapshot()).toMatchObject(failedWith('AGENT_NOT_CONNECTED'));
    await world.expectNothingLeft();
  });

  it('is AGENT_NOT_RESPONDING while the guest agent is stopped', async () => {
    await world.lab.guest.stopAgent();
    expect(await world.snapshot()).toMatchObject(failedWith('AGENT_NOT_RESPONDING'));
    await world.expectNothingLeft();
  });
});

describe('A freeze that fails', () => {
  it('is ALREADY_FROZEN where somebody else froze the guest, which is thawed only when an administrator says so', async () => {
    const { lab, system } = world;
    await lab.libvirtd.virsh(['domfsfreeze', VM]);
    expect(await world.snapshot()).toMatchObject(failedWith('ALREADY_FROZEN'));
    expect(await lab.guest.isFrozen()).toBe(true);
    const thawed = await system.request('POST', `/v1/vms/${VM}/thaw`);
    expect(thawed).toMatchObject({ status: 200, body: { thawedFileSystems: 3, lostWindow: null } });
    await world.expectNothingLeft();
  });

  it('is told by the command stillpoint with its code and its own exit code, and thawed by it when asked', async () => {
    const { lab, system } = world;
    await lab.libvirtd.virsh(['domfsfreeze', VM]);
    const created = await system.stillpoint('snapshot', 'create', VM, '--wait');
    expect(created.exitCode).toBe(6);
    expect(created.stderr).toContain('ALREADY_FROZEN');
    expect(created.stderr).toContain('stillpoint thaw');
    expect(await system.stillpoint('thaw', VM)).toMatchObject({ exitCode: 0 });
    await world.expectNothingLeft();
  });

  it('is FREEZE_HOOK_FAILED where the hook in the guest refuses, and the guest is thawed', async () => {
    await world.lab.guest.setHook({ failFreeze: true });
    expect(await world.snapshot()).toMatchObject(failedWith('FREEZE_HOOK_FAILED'));
    await world.expectNothingLeft();
  });

  it('is FREEZE_TIMEOUT where the hook is slower than allowed, and the freeze that follows is thawed', async () => {
    await world.lab.guest.setHook({ freezeSleepS: 3 });
    const log = world.lab.log();
    expect(await world.snapshot({ freezeTimeoutMs: 1_000 })).toMatchObject(failedWith('FREEZE_TIMEOUT'));
    await untilFrozenAndThawed();
    await world.expectNothingLeft();
    expect(log.agent().map(({ command }) => command)).toContain('guest-fsfreeze-thaw');
  });

  it('is FREEZE_TIMEOUT where the guest agent stops under it; the guest is watched, MAYBE_FROZEN, and thawed when it freezes', async () => {
    const { lab, proxy, system } = world;
    await lab.guest.run('rm -f /run/hook/log');
    const freeze = proxy.hold({ procedure: 'FSFREEZE', what: 'call' });
    const id = await system.createSnapshot(VM, { freezeTimeoutMs: 1_000 });
    await freeze.reached;
    await lab.guest.stopAgent();
    freeze.release();
    expect(await system.waitForSnapshot(id)).toMatchObject(failedWith('FREEZE_TIMEOUT'));
    await untilFreezeState('maybe-frozen');
    expect(await world.snapshot()).toMatchObject(failedWith('MAYBE_FROZEN'));

    await lab.guest.contAgent();
    await untilFrozenAndThawed();
    await untilFreezeState('thawed');
    await world.expectNothingLeft();
  });

  it('is FREEZE_TIMEOUT where the guest agent dies during the hook, and the next snapshot is well', async () => {
    const { lab, system } = world;
    await lab.guest.run('rm -f /run/hook/log');
    await lab.guest.setHook({ freezeSleepS: 30 });
    const id = await system.createSnapshot(VM);
    await world.until('the hook runs', async () => ((await hookPhases()).includes('freeze begin') ? true : undefined));
    await lab.guest.killAgent();
    expect(await system.waitForSnapshot(id)).toMatchObject(failedWith('FREEZE_TIMEOUT'));
    await world.expectNothingLeft();

    await lab.guest.setHook({});
    await untilFreezeState('thawed');
    const next = await world.snapshot();
    expect(next.grade).toBe('filesystem');
    await system.deleteSnapshot(next.id);
  });
});

describe('A guest that is frozen', () => {
  it('whose agent dies is told as still frozen, and thawed when the agent is back', async () => {
    const { lab, system } = world;
    const { id, cut } = await snapshotInItsWindow();
    await lab.guest.killAgent({ respawn: false });
    cut.release();
    await untilFreezeState('still-frozen');
    expect(await lab.guest.isFrozen()).toBe(true);

    await lab.guest.startAgent();
    await lab.guest.waitUntilThawed(30_000);
    expect(await system.waitForSnapshot(id)).toMatchObject(failedWith('CONSISTENCY_LOST'));
    await world.expectNothingLeft();
  });

  it('that is paused is told as still frozen, and thawed when it is resumed', async () => {
    const { lab, system } = world;
    const { id, cut } = await snapshotInItsWindow();
    await lab.vm.pause();
    cut.release();
    await untilFreezeState('still-frozen');

    await lab.vm.resume();
    await lab.guest.waitUntilThawed(30_000);
    expect(await system.waitForSnapshot(id)).toMatchObject(failedWith('CONSISTENCY_LOST'));
    await world.expectNothingLeft();
  });

  it('is thawed when libvirtd is back after it was killed', async () => {
    const { lab, system } = world;
    // Its reply: of a cut that was only asked for, the end is known no sooner than libvirt's own timeout has passed.
    const { id } = await snapshotInItsWindow('reply');
    await lab.libvirtd.kill();
    expect(await lab.guest.isFrozen()).toBe(true);
    await lab.libvirtd.start();
    await lab.guest.waitUntilThawed(30_000);
    expect((await system.waitForSnapshot(id)).state).toBe('failed');
    await world.expectNothingLeft();
  });

  it('and whose VM is destroyed leaves nothing: the overlays of a VM that is off are taken back too', async () => {
    const { lab, system } = world;
    const { id, cut } = await snapshotInItsWindow();
    await lab.vm.destroy();
    cut.release();
    const snapshot = await system.waitForSnapshot(id);
    expect(snapshot).toMatchObject({ state: 'failed', grade: null, pending: [] });
    expect(await world.overlays()).toEqual([]);
    expect(await lab.vm.xml('inactive')).not.toContain('.sp-');
    await lab.vm.start();
    await world.expectNothingLeft();
  });
});

describe('The host', () => {
  it('never overwrites a file that has an overlay’s name: OVERLAY_EXISTS', async () => {
    const { lab, system } = world;
    const snapshotId = randomUUID();
    const strangers = `${lab.disks.vda}.sp-${snapshotId}.1.qcow2`;
    writeFileSync(strangers, 'not ours');
    const connection = await Connection.connect({ address: system.temporal.address });
    try {
      const run = new Client({ connection }).workflow.execute('snapshotVm', {
        taskQueue: 'stillpoint',
        workflowId: workflowIdOf(lab.vm.uuid),
        args: [{ vm: lab.vm.uuid, snapshotId }],
      });
      await expect(run).rejects.toMatchObject({ cause: { type: 'OVERLAY_EXISTS' } });
    } finally {
      await connection.close();
    }
    expect(existsSync(strangers) && readFileSync(strangers, 'utf8')).toBe('not ours');
    await rm(strangers);
    await world.expectNothingLeft();
  });

  it('says LIBVIRT_UNREACHABLE while libvirtd is down, and works when it is back', async () => {
    const { lab, system } = world;
    await lab.libvirtd.kill();
    const thaw = await system.request<{ code: string }>('POST', `/v1/vms/${lab.vm.uuid}/thaw`);
    expect([thaw.status, thaw.body.code]).toEqual([503, 'LIBVIRT_UNREACHABLE']);
    await world.until('the API says why the host has no answer', async () => {
      const { body } = await system.request<{ hosts: unknown[] }>('GET', '/v1/vms');
      return JSON.stringify(body.hosts).includes('LIBVIRT_UNREACHABLE') ? true : undefined;
    });

    await lab.libvirtd.start();
    await world.waitUntilNobodyHolds();
    await lab.guest.waitForAgent();
    const next = await world.snapshot();
    expect(next.grade).toBe('filesystem');
    await system.deleteSnapshot(next.id);
  });
});
