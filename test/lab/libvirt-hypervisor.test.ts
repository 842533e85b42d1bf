/** What is special to libvirt in the port; the contract that it shares with the simulated hypervisor is asked in hypervisor-libvirt.test.ts. */
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { HypervisorEvent } from '@stillpoint/host-agent/hypervisor.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { Lab } from '@stillpoint/lab/lab.js';
import { LibvirtLog, QUIESCE } from '@stillpoint/lab/libvirt-log.js';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { frozenMoves } from './frozen-moves.js';
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
  await hypervisor.thaw(uuid);
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
  await hypervisor.images.createOverlay({
    path,
    base: base.path,
    baseFormat: base.format,
    sizeBytes: await hypervisor.images.sizeBytes(base.path, base.format),
    likeFile: base.path,
  });
  return { target, path, base: base.path };
}

describe('The port over libvirt', () => {
  it('asks for one snapshot of all disks, never with QUIESCE, as libvirt’s own log has it', async () => {
    const log = new LibvirtLog(lab.libvirtd.logFile);
    const overlays = [await prepareOverlay('vda', 'one'), await prepareOverlay('vdb', 'one')];
    await hypervisor.snapshotDisks(uuid, overlays);
    expect(log.snapshots().map(({ flags }) => flags & QUIESCE)).toEqual([0]);
    for (const { target, path } of overlays) {
      await hypervisor.mergeOverlay(uuid, target, path);
      await rm(path);
    }
  });

  it('reads behind the domain’s job: while a snapshot hangs in QEMU it waits', async () => {
    const log = new LibvirtLog(lab.libvirtd.logFile);
    const vdb = await prepareOverlay('vdb', 'slow');
    lab.vm.signalQemu('SIGSTOP');
    const snapshot = hypervisor.snapshotDisks(uuid, [vdb]);
    await vi.waitFor(() => expect(log.snapshots()).toHaveLength(1), 10_000);
    // The XML of now is still the old one: libvirt does not wait for it.
    const before = await hypervisor.getVm(uuid);
    expect(before.disks.find(({ target }) => target === 'vdb')?.path).toBe(vdb.base);
    const behind = hypervisor.getVmBehindJob(uuid);
    lab.vm.signalQemu('SIGCONT');
    await snapshot;
    expect((await behind).vm.disks.find(({ target }) => target === 'vdb')?.path).toBe(vdb.path);
    await hypervisor.mergeOverlay(uuid, 'vdb', vdb.path);
    await rm(vdb.path);
  });
});

describe('A VM that is shut off', () => {
  it('has its image replaced, and everything else in its definition stays as it was', async () => {
    const vm = await lab.addVm({ name: 'shut-off', disks: ['vda', 'vdb'], start: false });
    const overlay = { target: 'vdb', path: join(dirname(vm.diskPath('vdb')), 'vdb.off.qcow2') };
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
    await hypervisor.replaceImage(vm.uuid, 'vdb', { from: overlay.path, to: base, toFormat: 'qcow2' });
    expect(await vm.xml('inactive')).toBe(before);
    await vm.remove();
  });
});

frozenMoves(() => lab);

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
    // For a moment libvirt has not found the guest agents of its VMs again, and says AGENT_NOT_CONNECTED.
    await vi.waitFor(() => hypervisor.thaw(uuid), { timeout: 30_000, interval: 50 });
    expect(await lab.guest.isFrozen()).toBe(false);
  });
});
