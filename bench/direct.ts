import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cinder } from '@stillpoint/engine/cinder/cinder.js';
import { isCinderError } from '@stillpoint/engine/cinder/errors.js';
import type { Hypervisor } from '@stillpoint/host-agent/hypervisor.js';
import type { Vm } from '@stillpoint/lab/vm.js';

/** What every overlay and every volume snapshot is called that is made here, and nothing that Stillpoint makes. */
export const MADE_HERE = 'bench-';

const localTargets = ['vda', 'vdb'] as const;

/** An overlay that does not exist yet, and what it will lie on. */
export interface NewOverlay {
  readonly target: string;
  readonly path: string;
  readonly base: string;
  readonly format: string;
  readonly sizeBytes: number;
}

/** The active images of the local disks, and a new overlay's name for each. */
export async function newOverlays(hypervisor: Hypervisor, vm: Vm, name: string): Promise<NewOverlay[]> {
  const { disks } = await hypervisor.getVm(vm.uuid);
  return Promise.all(
    localTargets.map(async (target) => {
      const disk = disks.find((candidate) => candidate.target === target);
      if (disk?.path === undefined) throw new Error(`${target} has no file`);
      const sizeBytes = await hypervisor.images.sizeBytes(disk.path, disk.format);
      const path = join(dirname(disk.path), `${target}.${MADE_HERE}${name}.qcow2`);
      return { target, path, base: disk.path, format: disk.format, sizeBytes };
    }),
  );
}

/** Makes the overlays' files, as Stillpoint does before the freeze. */
export async function prepareOverlays(hypervisor: Hypervisor, overlays: readonly NewOverlay[]): Promise<void> {
  for (const { path, base, format, sizeBytes } of overlays) {
    await hypervisor.images.createOverlay({ path, base, baseFormat: format, sizeBytes, likeFile: base });
  }
}

/** Freezes, does the work, thaws whatever comes of it, and answers freeze answered -> thaw asked for, ms. */
export async function inWindow(hypervisor: Hypervisor, vm: Vm, work: () => Promise<unknown>): Promise<number> {
  const { repliedAt } = await hypervisor.freeze(vm.uuid);
  let requestedAt: number;
  try {
    await work();
  } finally {
    ({ requestedAt } = await hypervisor.thaw(vm.uuid));
  }
  return requestedAt - repliedAt;
}

/** Takes back what was made here on the host: the guest thawed, every overlay merged and deleted. */
export async function restoreHost(hypervisor: Hypervisor, vm: Vm): Promise<void> {
  if ((await hypervisor.freezeStatus(vm.uuid, 5)) === 'frozen') await hypervisor.thaw(vm.uuid);
  const { disks } = (await hypervisor.getVmBehindJob(vm.uuid)).vm;
  for (const { target, chain } of disks) {
    for (const { path } of chain.filter((image) => image.path.includes(`.${MADE_HERE}`))) {
      await hypervisor.mergeOverlay(vm.uuid, target, path);
    }
  }
  const folder = dirname(vm.diskPath('vda'));
  const files = (await readdir(folder)).filter((file) => file.includes(`.${MADE_HERE}`));
  await Promise.all(files.map((file) => hypervisor.images.delete(join(folder, file))));
}

/** Deletes the volume snapshots that were made here, and waits until they are gone. */
export async function restoreVolumes(cinder: Cinder, volumes: readonly string[]): Promise<void> {
  await Promise.all(
    volumes.map(async (volumeId) => {
      for (const { id, name } of await cinder.findSnapshots({ metadata: {}, volumeId })) {
        if (name.startsWith(MADE_HERE)) await deleteSnapshot(cinder, id);
      }
    }),
  );
}

async function deleteSnapshot(cinder: Cinder, id: string, timeoutMs = 60_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  try {
    for (;;) {
      const { status } = await cinder.snapshot(id);
      // In `creating` it cannot be deleted.
      if (status === 'available' || status === 'error') await cinder.deleteSnapshot(id);
      if (performance.now() > deadline) throw new Error(`Snapshot ${id} is ${status} after ${timeoutMs / 1000} s`);
      await delay(100);
    }
  } catch (error) {
    if (!isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND')) throw error;
  }
}
