import { expect, it } from 'vitest';
import { Lab, window1, window2 } from './lab.js';

const overlayOf = (window: string, name = 'web-1.qcow2') => `/images/${name}.sp-${window}.qcow2`;

it('tells every overlay file: which disk uses it, or that no chain has it', async () => {
  const lab = new Lab();
  const life = await lab.life();
  await life.prepareAndCut(window1);
  await life.prepareAndCut(window2);
  lab.simulated.files.add({ path: overlayOf('00000000-0000-4000-8000-0000000000ff.3') });
  const { overlays, unreadVms } = await life.room.overlayFiles();
  expect(unreadVms).toEqual([]);
  expect(overlays.map(({ path, window, usedBy }) => [path, window, usedBy?.target])).toEqual(
    [
      [overlayOf(window1), window1, 'vda'],
      [overlayOf(window1, 'data.img'), window1, 'vdb'],
      [overlayOf(window2), window2, 'vda'],
      [overlayOf(window2, 'data.img'), window2, 'vdb'],
      [overlayOf('00000000-0000-4000-8000-0000000000ff.3'), '00000000-0000-4000-8000-0000000000ff.3', undefined],
    ].sort(([a = ''], [b = '']) => (a < b ? -1 : 1)),
  );
  expect(overlays.every(({ usedBy }) => usedBy === undefined || usedBy.vm === lab.vm.uuid)).toBe(true);
});

it('tells those of a VM that is off, and of folders that only a VM names', async () => {
  const lab = new Lab({ vm: { disks: [{ target: 'vda', path: '/elsewhere/web-1.qcow2' }] } });
  lab.simulated.files.add({ path: `/elsewhere/lost.sp-${window1}.qcow2` });
  lab.vm.shutOff();
  const { overlays } = await (await lab.life()).room.overlayFiles();
  expect(overlays).toEqual([{ path: `/elsewhere/lost.sp-${window1}.qcow2`, window: window1, usedBy: undefined }]);
});

it('leaves out what is not named as an overlay of a window', async () => {
  const lab = new Lab();
  for (const name of ['notes.sp-draft', 'web-1.sp-x.qcow2', `web-1.sp-${window1}.qcow2.bak`]) {
    lab.simulated.files.add({ path: `/images/${name}` });
  }
  expect((await (await lab.life()).room.overlayFiles()).overlays).toEqual([]);
});

it('names the VMs with a chain that it cannot read to its end', async () => {
  const lab = new Lab();
  const life = await lab.life();
  await life.prepareAndCut(window1);
  lab.vm.shutOff();
  lab.simulated.inject('info', { reject: 'IMAGE_INVALID' }, { times: 1 });
  expect((await life.room.overlayFiles()).unreadVms).toEqual([lab.vm.uuid]);
});

it('joins the reading that is under way, and reads anew after it, also after one that failed', async () => {
  const lab = new Lab();
  const { room } = await lab.life();
  let readings = 0;
  lab.simulated.onCall(({ name, phase }) => {
    if (name === 'listVms' && phase === 'begins') readings += 1;
  });
  const held = lab.simulated.inject('listVms', { hold: 'before' }, { times: 1 });
  const both = [room.overlayFiles(), room.overlayFiles()];
  await held.hit;
  held.release();
  const [one, other] = await Promise.all(both);
  expect(one).toEqual(other);
  expect(readings).toBe(1);

  lab.simulated.inject('listVms', { reject: 'LIBVIRT_UNREACHABLE' }, { times: 1 });
  await expect(Promise.all([room.overlayFiles(), room.overlayFiles()])).rejects.toMatchObject({
    code: 'LIBVIRT_UNREACHABLE',
  });
  lab.simulated.files.add({ path: overlayOf(window1) });
  expect((await room.overlayFiles()).overlays).toHaveLength(1);
  expect(readings).toBe(3);
});
