/** As Debian and Ubuntu set libvirt up: QEMU is a user of its own, and libvirt gives it the files it may use (dynamic_ownership). */
import { stat } from 'node:fs/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { localParts } from '../workflows/fixtures/local-parts.js';
import { WholeSystem } from './whole-system.js';

let world: WholeSystem;

beforeAll(async () => {
  world = await WholeSystem.start('qemu-user', { qemuUser: 'libvirt-qemu' });
});
afterAll(async () => {
  await world?.stop();
});

/** Who owns a file, and what others may do with it. */
async function ownership(path: string): Promise<{ uid: number; gid: number; mode: number }> {
  const { uid, gid, mode } = await stat(path);
  return { uid, gid, mode: mode & 0o7777 };
}

it('snapshots a VM whose QEMU is no root: it may write to the overlays, nobody else gets to read them, and deleting gives the bases back to it', async () => {
  const { lab, system } = world;
  const qemu = await stat(`/proc/${lab.vm.qemu?.pid}`);
  expect(qemu.uid).not.toBe(0);
  const before = await Promise.all([lab.disks.vda, lab.disks.vdb].map(ownership));
  expect(before.map(({ uid }) => uid)).toEqual([qemu.uid, qemu.uid]);

  const snapshot = await world.snapshot();
  expect(snapshot).toMatchObject({ state: 'complete', grade: 'filesystem' });
  await world.expectConsistent(snapshot);
  for (const [index, { overlay, path }] of localParts(snapshot.disks).entries()) {
    expect(await ownership(overlay)).toEqual(before[index]);
    expect((await ownership(path)).mode).toBe(before[index]?.mode);
  }
  await lab.guest.run('echo kept >/data/kept; echo kept >/kept; sync');

  await system.deleteSnapshot(snapshot.id);
  await world.expectNothingLeft();
  expect(await Promise.all([lab.disks.vda, lab.disks.vdb].map(ownership))).toEqual(before);

  await lab.vm.stop();
  await lab.vm.start();
  expect(await lab.guest.run('cat /data/kept /kept')).toBe('kept\nkept');
});
