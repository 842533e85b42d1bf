/** The snapshot room over a real libvirt, QEMU and qemu-img, with a guest that writes all the time. */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { createSnapshotRoom } from '@stillpoint/host-agent/snapshot/room.js';
import type { Overlay, SnapshotRoom } from '@stillpoint/host-agent/window.js';
import { Lab } from '@stillpoint/lab/lab.js';
import pino from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { testStateFolder } from './state-folder.js';

const windows = [1, 2, 3].map((attempt) => `00000000-0000-4000-8000-00000000000a.${attempt}`);

let lab: Lab;
let hypervisor: ReturnType<typeof createLibvirtHypervisor>;
let notes: string;
let room: SnapshotRoom;

beforeAll(async () => {
  lab = await Lab.up({ stateFolder: testStateFolder('snapshot'), progress: console.log });
  hypervisor = createLibvirtHypervisor({ socketPath: lab.libvirtd.socket });
  await hypervisor.start(AbortSignal.timeout(30_000));
  notes = await mkdtemp(join(tmpdir(), 'stillpoint-notes-'));
  room = await createSnapshotRoom({
    hypervisor,
    folder: notes,
    locations: [lab.imagesFolder],
    settings: { headroomBytes: 1 << 20 },
    log: pino({ level: 'silent' }),
  });
}, 600_000);

afterAll(async () => {
  await hypervisor?.close();
  await lab?.down();
  if (notes !== undefined) await rm(notes, { recursive: true });
});

async function prepareAndCut(window: string): Promise<Overlay[]> {
  const vm = lab.vm.uuid;
  const localDisks = ['vda', 'vdb'];
  const prepared = await room.prepare({ vm, window, localDisks, setDisks: localDisks, alreadyPrepared: undefined });
  const pinned = { ...prepared.pinned, fileSystems: undefined, osId: undefined };
  await room.cut({ vm, window, pinned, overlays: prepared.overlays });
  return prepared.overlays;
}

const merge = (what: 'undo' | 'delete', window: string, overlays: Overlay[]) =>
  room[what]({ vm: lab.vm.uuid, window, overlays, onProgress: () => {}, signal: AbortSignal.timeout(60_000) });

/** Ours that lie beside the disks. */
async function overlayFiles(): Promise<string[]> {
  const names = (await readdir(dirname(lab.vm.diskPath('vda')))).filter((name) => name.includes('.sp-'));
  return names.sort();
}

async function chainLengths(): Promise<number[]> {
  const { vm, inactive } = await hypervisor.getVmBehindJob(lab.vm.uuid);
  const live = vm.disks.filter((disk) => disk.kind === 'file').map((disk) => disk.chain.length);
  expect(inactive?.map((disk) => disk.path)).toEqual(vm.disks.map((disk) => disk.path));
  return live;
}

describe('the snapshot room over libvirt', () => {
  it('leaves the network disk out', async () => {
    const why = await room.leftOut(await hypervisor.getVm(lab.vm.uuid));
    expect(Object.fromEntries(why)).toEqual({ vda: undefined, vdb: undefined, vdc: 'network' });
  });

  it('cuts, and takes back what it cut, under a guest that writes', async () => {
    const [window = ''] = windows;
    const overlays = await prepareAndCut(window);
    expect(await chainLengths()).toEqual([2, 2]);
    const usedBy = (target: string) => ({ vm: lab.vm.uuid, target });
    const asListed = overlays.map(({ overlayPath, target }) => ({ path: overlayPath, window, usedBy: usedBy(target) }));
    expect(await room.overlayFiles()).toEqual({
      overlays: asListed.sort((a, b) => (a.path < b.path ? -1 : 1)),
      unreadVms: [],
    });
    const written = await lab.guest.writerNumber();
    expect((await merge('undo', window, overlays)).map((disk) => disk.outcome)).toEqual(['committed', 'committed']);
    expect(await chainLengths()).toEqual([1, 1]);
    expect(await overlayFiles()).toEqual([]);
    expect(await lab.guest.writerNumber()).toBeGreaterThanOrEqual(written);
  });

  it('deletes the middle one live, the oldest and the newest while the VM is off, and the VM starts on what is left', async () => {
    const sets: Overlay[][] = [];
    for (const window of windows) sets.push(await prepareAndCut(window));
    expect(await chainLengths()).toEqual([4, 4]);
    const outcomes = async (at: number) =>
      (await merge('delete', windows[at] ?? '', sets[at] ?? [])).map((disk) => `${disk.outcome} ${disk.reason}`.trim());
    expect(await outcomes(1)).toEqual(['committed', 'committed']);
    expect(await chainLengths()).toEqual([3, 3]);
    expect(await outcomes(1)).toEqual(['not-found', 'not-found']);
    await lab.vm.stop();
    expect(await outcomes(0)).toEqual(['committed', 'committed']);
    expect(await outcomes(2)).toEqual(['committed', 'committed']);
    expect(await overlayFiles()).toEqual([]);
    await lab.vm.start();
    expect(await chainLengths()).toEqual([1, 1]);
    expect(await lab.guest.run('dmesg | grep -ci "ext4.*error" || true')).toBe('0');
  }, 180_000);
});
