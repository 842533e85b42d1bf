/** The port over a real libvirt, QEMU and guest agent: what it reads, what it does, and every error that must be told apart. */
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { HypervisorEvent } from '@stillpoint/host-agent/hypervisor.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { Lab } from '@stillpoint/lab/lab.js';
import { LibvirtLog, QUIESCE } from '@stillpoint/lab/libvirt-log.js';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { testStateFolder } from './state-folder.js';

let lab: Lab;
let uuid: string;
let hypervisor: ReturnType<typeof createLibvirtHypervisor>;

beforeAll(async () => {
  lab = await Lab.up({ stateFolder: testStateFolder('port'), progress: console.log });
  uuid = lab.vm.uuid;
  hypervisor = createLibvirtHypervisor({ socketPath: lab.libvirtd.socket });
  await hypervisor.start(AbortSignal.timeout(30_000));
});

afterAll(async () => {
  await hypervisor?.close();
  await lab?.down();
});

afterEach(async () => {
  if ((await lab.vm.state()) === 'paused') await lab.vm.resume();
  if ((await lab.vm.state()) === 'shut off') await lab.vm.start();
  await lab.guest.setHook({});
  await lab.guest.startAgent();
  await lab.guest.contAgent().catch(() => undefined);
  await lab.guest.waitForAgent();
  await hypervisor.setAgentTimeout(uuid, 'default');
  await hypervisor.thaw(uuid);
  await lab.guest.waitUntilThawed(30_000);
});

/** Resolves at the first event that fits. */
function event(fits: (event: HypervisorEvent) => boolean): Promise<HypervisorEvent> {
  return new Promise((resolve) => {
    const end = hypervisor.onEvent((told) => {
      if (!fits(told)) return;
      end();
      resolve(told);
    });
  });
}

async function prepareOverlay(target: 'vda' | 'vdb', name: string) {
  const { disks } = await hypervisor.getVm(uuid);
  const base = disks.find((disk) => disk.target === target)?.chain[0];
  if (base === undefined) throw new Error(`no ${target}`);
  const path = join(dirname(base.path), `${target}.${name}.qcow2`);
  const info = await hypervisor.images.info(base.path, base.format);
  await hypervisor.images.createOverlay({
    path,
    base: base.path,
    baseFormat: base.format,
    sizeBytes: info.virtualSizeBytes,
    likeFile: base.path,
  });
  return { target, path, base: base.path };
}

async function chainOf(target: string): Promise<string[]> {
  const { vm } = await hypervisor.getVmBehindJob(uuid);
  return vm.disks.find((disk) => disk.target === target)?.chain.map(({ path }) => path) ?? [];
}

describe('The port over libvirt', () => {
  it('knows the versions', async () => {
    expect(await hypervisor.facts()).toEqual({
      reachable: true,
      libvirtVersion: expect.stringMatching(/^\d+\.\d+\.\d+$/),
      qemuVersion: expect.stringMatching(/^\d+\.\d+\.\d+$/),
      canSetAgentTimeout: true,
    });
  });

  it('describes the VM and its disks', async () => {
    const vm = await hypervisor.getVm(uuid);
    expect(vm).toMatchObject({
      uuid,
      name: lab.vm.name,
      state: 'running',
      persistent: true,
      hasManagedSave: false,
      guestAgent: 'connected',
      migrating: false,
    });
    expect(vm.domainId).toBeGreaterThan(0);
    expect(vm.disks.map(({ target, kind, format, path }) => ({ target, kind, format, path }))).toEqual([
      { target: 'vda', kind: 'file', format: 'qcow2', path: lab.vm.diskPath('vda') },
      { target: 'vdb', kind: 'file', format: 'qcow2', path: lab.vm.diskPath('vdb') },
      { target: 'vdc', kind: 'network', format: 'raw', path: undefined },
    ]);
    expect(await hypervisor.listVms()).toEqual([vm]);
    expect(await hypervisor.getVmBehindJob(uuid)).toMatchObject({
      vm,
      inactive: vm.disks.map(({ target }) => ({ target })),
    });
  });

  it('reads the guest’s file systems and OS through its agent', async () => {
    const fileSystems = await hypervisor.guestFileSystems(uuid);
    expect(fileSystems).toContainEqual({ mountpoint: '/', type: 'ext4', device: 'vda2', targets: ['vda'] });
    expect(fileSystems).toContainEqual({ mountpoint: '/data', type: 'ext4', device: 'vdb', targets: ['vdb'] });
    expect(await hypervisor.guestOs(uuid, 5)).toMatchObject({ isWindows: false });
  });

  it('freezes and thaws, as the guest’s kernel sees it', async () => {
    await hypervisor.setAgentTimeout(uuid, 30);
    expect(await hypervisor.freezeStatus(uuid, 2)).toBe('thawed');
    const frozen = await hypervisor.freeze(uuid);
    expect(await hypervisor.freezeStatus(uuid, 2)).toBe('frozen');
    expect(await lab.guest.isFrozen()).toBe(true);
    const thawed = await hypervisor.thaw(uuid);
    expect(thawed.fileSystems).toBe(frozen.fileSystems);
    expect(frozen.repliedAt).toBeLessThan(thawed.requestedAt);
    expect(thawed.requestedAt).toBeLessThan(thawed.repliedAt);
    expect(await hypervisor.freezeStatus(uuid, 2)).toBe('thawed');
    expect(await lab.guest.isFrozen()).toBe(false);
    expect(await hypervisor.thaw(uuid)).toMatchObject({ fileSystems: 0 });
  });

  it('switches named disks in one transaction without QUIESCE, leaves the others alone, and merges them back', async () => {
    const log = new LibvirtLog(lab.libvirtd.logFile);
    const vda = await prepareOverlay('vda', 'one');
    const vdb = await prepareOverlay('vdb', 'one');
    const { vdc } = Object.fromEntries((await hypervisor.getVm(uuid)).disks.map((disk) => [disk.target, disk]));
    const { requestedAt, repliedAt } = await hypervisor.snapshotDisks(uuid, [vda, vdb]);
    expect(requestedAt).toBeLessThan(repliedAt);
    expect(await chainOf('vda')).toEqual([vda.path, vda.base]);
    expect(await chainOf('vdb')).toEqual([vdb.path, vdb.base]);
    expect(log.snapshots().map(({ flags }) => flags & QUIESCE)).toEqual([0]);
    const { vm, inactive } = await hypervisor.getVmBehindJob(uuid);
    expect(vm.disks.find(({ target }) => target === 'vdc')).toEqual(vdc);
    expect(inactive?.map(({ path }) => path)).toEqual([vda.path, vdb.path, undefined]);

    const progress: number[] = [];
    const completed = event((told) => told.type === 'block-job' && told.target === 'vda' && told.what === 'completed');
    await Promise.all([
      hypervisor.mergeOverlay(uuid, 'vda', vda.path, { onProgress: ({ doneBytes }) => progress.push(doneBytes) }),
      hypervisor.mergeOverlay(uuid, 'vda', vda.path),
      hypervisor.mergeOverlay(uuid, 'vdb', vdb.path),
    ]);
    await completed;
    expect(progress.length).toBeGreaterThan(0);
    expect(await chainOf('vda')).toEqual([vda.base]);
    expect(await chainOf('vdb')).toEqual([vdb.base]);
    const after = await hypervisor.getVmBehindJob(uuid);
    expect(after.inactive?.map(({ path }) => path)).toEqual([vda.base, vdb.base, undefined]);
    for (const { path } of [vda, vdb]) {
      expect(await hypervisor.images.isOpen(path)).toBe(false);
      await hypervisor.images.delete(path);
    }
  });

  it('merges an overlay out of the middle of a chain', async () => {
    const lower = await prepareOverlay('vdb', 'lower');
    await hypervisor.snapshotDisks(uuid, [lower]);
    const upper = await prepareOverlay('vdb', 'upper');
    await hypervisor.snapshotDisks(uuid, [upper]);
    expect(await chainOf('vdb')).toEqual([upper.path, lower.path, lower.base]);
    await hypervisor.mergeOverlay(uuid, 'vdb', lower.path);
    expect(await chainOf('vdb')).toEqual([upper.path, lower.base]);
    await hypervisor.mergeOverlay(uuid, 'vdb', upper.path);
    expect(await chainOf('vdb')).toEqual([lower.base]);
    await expect(hypervisor.mergeOverlay(uuid, 'vdb', upper.path)).rejects.toMatchObject({ code: 'DISK_NOT_FOUND' });
    for (const { path } of [lower, upper]) await rm(path);
  });

  it('says that a snapshot was refused, and leaves every disk as it was', async () => {
    const vda = await prepareOverlay('vda', 'refused');
    const missing = { target: 'vdb', path: join(dirname(vda.path), 'missing.qcow2') };
    await expect(hypervisor.snapshotDisks(uuid, [vda, missing])).rejects.toMatchObject({ code: 'SNAPSHOT_FAILED' });
    await expect(hypervisor.snapshotDisks(uuid, [{ target: 'vdz', path: vda.path }])).rejects.toMatchObject({
      code: 'SNAPSHOT_FAILED',
    });
    await expect(hypervisor.snapshotDisks(uuid, [])).rejects.toMatchObject({ code: 'SNAPSHOT_FAILED' });
    expect(await chainOf('vda')).toEqual([vda.base]);
    expect(await hypervisor.images.isOpen(vda.path)).toBe(false);
    await rm(vda.path);
  });

  it('reads behind the domain’s job: while a snapshot hangs in QEMU it waits', async () => {
    const log = new LibvirtLog(lab.libvirtd.logFile);
    const vdb = await prepareOverlay('vdb', 'slow');
    lab.vm.signalQemu('SIGSTOP');
    const order: string[] = [];
    const snapshot = hypervisor.snapshotDisks(uuid, [vdb]).then(() => order.push('snapshot'));
    await vi.waitFor(() => expect(log.snapshots()).toHaveLength(1), 10_000);
    // The XML of now is still the old one: libvirt does not wait for it.
    const before = await hypervisor.getVm(uuid);
    expect(before.disks.find(({ target }) => target === 'vdb')?.path).toBe(vdb.base);
    const behind = hypervisor.getVmBehindJob(uuid).then(({ vm }) => {
      order.push('read');
      return vm.disks.find(({ target }) => target === 'vdb')?.path;
    });
    lab.vm.signalQemu('SIGCONT');
    await snapshot;
    expect(await behind).toBe(vdb.path);
    expect(order).toEqual(['snapshot', 'read']);
    await hypervisor.mergeOverlay(uuid, 'vdb', vdb.path);
    await rm(vdb.path);
  });
});

describe('An error of libvirt is told apart:', () => {
  it('an unknown VM', async () => {
    const nobody = '00000000-0000-4000-8000-00000000dead';
    for (const call of [
      () => hypervisor.getVm(nobody),
      () => hypervisor.getVmBehindJob(nobody),
      () => hypervisor.freeze(nobody),
      () => hypervisor.thaw(nobody),
      () => hypervisor.freezeStatus(nobody, 1),
      () => hypervisor.guestFileSystems(nobody),
      () => hypervisor.setAgentTimeout(nobody, 5),
      () => hypervisor.snapshotDisks(nobody, [{ target: 'vda', path: '/x' }]),
      () => hypervisor.mergeOverlay(nobody, 'vda', '/x'),
    ]) {
      await expect(call()).rejects.toMatchObject({ code: 'VM_NOT_FOUND' });
    }
  });

  it('a guest that is frozen already', async () => {
    await hypervisor.freeze(uuid);
    await expect(hypervisor.freeze(uuid)).rejects.toMatchObject({ code: 'ALREADY_FROZEN' });
    await expect(hypervisor.guestFileSystems(uuid)).rejects.toMatchObject({ code: 'ALREADY_FROZEN' });
    expect(await hypervisor.freezeStatus(uuid, 2)).toBe('frozen');
  });

  it('a freeze hook that refuses, after which the guest is thawed', async () => {
    await lab.guest.setHook({ failFreeze: true });
    await expect(hypervisor.freeze(uuid)).rejects.toMatchObject({ code: 'FREEZE_HOOK_FAILED' });
    expect(await lab.guest.isFrozen()).toBe(false);
  });

  it('a guest agent that is not connected', async () => {
    const gone = event((told) => told.type === 'agent' && !told.connected);
    await lab.guest.killAgent({ respawn: false });
    expect(await gone).toEqual({ type: 'agent', uuid, connected: false });
    expect(await hypervisor.getVm(uuid)).toMatchObject({ guestAgent: 'disconnected' });
    await expect(hypervisor.freeze(uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_CONNECTED' });
    await expect(hypervisor.thaw(uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_CONNECTED' });
    await expect(hypervisor.freezeStatus(uuid, 1)).rejects.toMatchObject({ code: 'AGENT_NOT_CONNECTED' });
    await expect(hypervisor.guestFileSystems(uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_CONNECTED' });
    expect(await hypervisor.guestOs(uuid, 1)).toBeUndefined();
    const back = event((told) => told.type === 'agent' && told.connected);
    await lab.guest.startAgent();
    expect(await back).toEqual({ type: 'agent', uuid, connected: true });
  });

  it('a guest agent that does not answer', async () => {
    await hypervisor.setAgentTimeout(uuid, 1);
    await lab.guest.stopAgent();
    await expect(hypervisor.freezeStatus(uuid, 1)).rejects.toMatchObject({ code: 'AGENT_NOT_RESPONDING' });
    await expect(hypervisor.freeze(uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_RESPONDING' });
    await expect(hypervisor.guestFileSystems(uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_RESPONDING' });
  });

  it('a guest agent killed during its freeze hook', async () => {
    await lab.guest.setHook({ freezeSleepS: 20 });
    const frozen = expect(hypervisor.freeze(uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_RESPONDING' });
    await lab.guest.run("while ! grep -q 'freeze begin' /run/hook/log; do usleep 10000; done");
    await lab.guest.killAgent();
    await frozen;
  });

  it('a paused VM', async () => {
    const paused = event((told) => told.type === 'lifecycle' && told.what === 'paused');
    await lab.vm.pause();
    await paused;
    expect(await hypervisor.getVm(uuid)).toMatchObject({ state: 'paused' });
    await expect(hypervisor.freeze(uuid)).rejects.toMatchObject({ code: 'VM_PAUSED' });
    await expect(hypervisor.thaw(uuid)).rejects.toMatchObject({ code: 'VM_PAUSED' });
    await expect(hypervisor.freezeStatus(uuid, 1)).rejects.toMatchObject({ code: 'VM_PAUSED' });
    const resumed = event((told) => told.type === 'lifecycle' && told.what === 'resumed');
    await lab.vm.resume();
    await resumed;
  });

  it('no guest agent channel', async () => {
    const vm = await lab.addVm({ name: 'no-agent', disks: ['vda'], agentChannel: false, start: false });
    expect(await hypervisor.getVm(vm.uuid)).toMatchObject({ guestAgent: 'not-configured', state: 'shut-off' });
    await vm.start();
    await expect(hypervisor.freeze(vm.uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_CONFIGURED' });
    await expect(hypervisor.thaw(vm.uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_CONFIGURED' });
    await expect(hypervisor.guestFileSystems(vm.uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_CONFIGURED' });
    await expect(hypervisor.freezeStatus(vm.uuid, 1)).rejects.toMatchObject({ code: 'AGENT_NOT_CONFIGURED' });
    await vm.remove();
  });
});

describe('A VM that is shut off', () => {
  it('refuses what needs a running one, and lets its image be replaced', async () => {
    const vm = await lab.addVm({ name: 'shut-off', disks: ['vda', 'vdb'], start: false });
    const overlay = { target: 'vdb', path: join(dirname(vm.diskPath('vdb')), 'vdb.off.qcow2') };
    expect(await hypervisor.getVm(vm.uuid)).toMatchObject({ state: 'shut-off', domainId: undefined, migrating: false });
    await expect(hypervisor.freeze(vm.uuid)).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    await expect(hypervisor.thaw(vm.uuid)).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    await expect(hypervisor.freezeStatus(vm.uuid, 1)).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    await expect(hypervisor.snapshotDisks(vm.uuid, [overlay])).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    await expect(hypervisor.mergeOverlay(vm.uuid, 'vdb', overlay.path)).rejects.toMatchObject({
      code: 'VM_NOT_RUNNING',
    });

    const base = vm.diskPath('vdb');
    await hypervisor.images.createOverlay({
      path: overlay.path,
      base,
      baseFormat: 'qcow2',
      sizeBytes: 1 << 28,
      likeFile: base,
    });
    const before = await vm.xml('inactive');
    await hypervisor.replaceImage(vm.uuid, 'vdb', { from: base, to: overlay.path, toFormat: 'qcow2' });
    const path = async () => (await hypervisor.getVm(vm.uuid)).disks.find(({ target }) => target === 'vdb')?.path;
    expect(await path()).toBe(overlay.path);
    expect(await vm.xml('inactive')).toBe(before.replace(base, overlay.path));
    await expect(
      hypervisor.replaceImage(vm.uuid, 'vdb', { from: base, to: overlay.path, toFormat: 'qcow2' }),
    ).rejects.toMatchObject({ code: 'VM_CHANGED' });
    await hypervisor.replaceImage(vm.uuid, 'vdb', { from: overlay.path, to: base, toFormat: 'qcow2' });
    expect(await vm.xml('inactive')).toBe(before);
    await vm.remove();
  });

  it('is not changed while it runs', async () => {
    const base = lab.vm.diskPath('vdb');
    await expect(
      hypervisor.replaceImage(uuid, 'vdb', { from: base, to: base, toFormat: 'qcow2' }),
    ).rejects.toMatchObject({ code: 'VM_CHANGED' });
  });
});

describe('libvirtd', () => {
  it('killed while a guest is frozen leaves it frozen; it is thawed when libvirtd is back', async () => {
    await hypervisor.freeze(uuid);
    const down = event((told) => told.type === 'connection' && !told.up);
    await lab.libvirtd.kill();
    await down;
    expect(await hypervisor.facts()).toMatchObject({ reachable: false });
    await expect(hypervisor.thaw(uuid)).rejects.toMatchObject({
      code: 'LIBVIRT_UNREACHABLE',
      metadata: { outcome: 'not-sent' },
    });
    expect(await lab.guest.isFrozen()).toBe(true);
    const up = event((told) => told.type === 'connection' && told.up);
    await lab.libvirtd.start();
    await up;
    await hypervisor.thaw(uuid);
    expect(await lab.guest.isFrozen()).toBe(false);
  });
});
