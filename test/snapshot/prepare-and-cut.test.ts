import { isHostAgentError } from '@stillpoint/host-agent/errors.js';
import { keepsWriteOrder } from '@stillpoint/host-agent/simulated/numbers.js';
import { describe, expect, it } from 'vitest';
import { Lab, outcomes, window1, window2 } from './lab.js';

async function codeOf(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return 'no error';
  } catch (error) {
    return isHostAgentError(error) ? error.code : String(error);
  }
}

describe('prepare', () => {
  it('makes an empty overlay beside each base and pins what it saw', async () => {
    const lab = new Lab();
    const { overlays, pinned } = await (await lab.life()).prepare();
    expect(overlays).toEqual([
      {
        target: 'vda',
        overlayPath: `/images/web-1.qcow2.sp-${window1}.qcow2`,
        basePath: '/images/web-1.qcow2',
        baseFormat: 'qcow2',
        sizeBytes: 2 ** 30,
      },
      {
        target: 'vdb',
        overlayPath: `/images/data.img.sp-${window1}.qcow2`,
        basePath: '/images/data.img',
        baseFormat: 'raw',
        sizeBytes: 2 ** 30,
      },
    ]);
    expect(pinned.disks.map((disk) => disk.source)).toEqual([
      '/images/web-1.qcow2',
      '/images/data.img',
      'volumes/volume-volume-1',
    ]);
    expect(lab.simulated.files.info(overlays[1]?.overlayPath ?? '', 'qcow2')).toMatchObject({
      backing: '/images/data.img',
      backingFormat: 'raw',
    });
  });

  it('names the overlay of an overlay after the first base', async () => {
    const lab = new Lab();
    const life = await lab.life();
    await life.prepareAndCut(window1);
    const { overlays } = await life.prepare(window2);
    expect(overlays[0]).toMatchObject({
      overlayPath: `/images/web-1.qcow2.sp-${window2}.qcow2`,
      basePath: `/images/web-1.qcow2.sp-${window1}.qcow2`,
    });
  });

  it("puts a block device's overlay into the configured folder, and its base is the name that the definition gives", async () => {
    const lab = new Lab({
      vm: { disks: [{ target: 'vda', kind: 'block', path: '/dev/vg0/web' }] },
      room: { locations: ['/dev/vg0/', '/images'] },
    });
    lab.simulated.files.delete('/dev/vg0/web');
    lab.simulated.files.add({ path: '/dev/dm-3', kind: 'block', format: 'raw' });
    lab.simulated.files.link('/dev/vg0/web', '/dev/dm-3');
    const life = await lab.life();
    const { overlays } = await life.room.prepare({
      vm: lab.vm.uuid,
      window: window1,
      localDisks: ['vda'],
      setDisks: ['vda'],
      alreadyPrepared: undefined,
    });
    expect(overlays[0]).toMatchObject({
      overlayPath: `/images/vg0-web.sp-${window1}.qcow2`,
      basePath: '/dev/vg0/web',
      baseFormat: 'raw',
    });
    await life.cut({ pinned: { domainId: lab.vm.domainId, disks: [] }, overlays });
    expect(outcomes(await life.undo())).toEqual(['committed']);
    expect(lab.vm.content('vda').isGapless).toBe(true);
  });

  it('answers the same when it is repeated, in this life or the next', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const first = await life.prepare();
    expect((await life.prepare(window1, ['vda', 'vdb'], first.overlays)).overlays).toEqual(first.overlays);
    life.kill();
    expect((await (await lab.life()).prepare()).overlays).toEqual(first.overlays);
  });

  it("never takes somebody's file for its overlay", async () => {
    const lab = new Lab();
    const foreign = lab.simulated.files.add({ path: `/images/data.img.sp-${window1}.qcow2` });
    foreign.numbers.add(7);
    expect(await codeOf((await lab.life()).prepare())).toBe('OVERLAY_EXISTS');
    expect(lab.overlays()).toEqual([foreign.path]);
  });

  it("does not adopt a file that took an overlay's name since an earlier life prepared it", async () => {
    const lab = new Lab();
    const life = await lab.life();
    const { overlays } = await life.prepare();
    life.kill();
    lab.simulated.files.need(overlays[1]?.overlayPath ?? '').numbers.add(7);
    expect(await codeOf((await lab.life()).prepare())).toBe('OVERLAY_EXISTS');
  });

  it('leaves nothing behind when space runs out, before or between the files', async () => {
    const lab = new Lab({ room: { settings: { headroomBytes: 1_000_000 } } });
    const life = await lab.life();
    lab.simulated.files.setFreeBytes('/images', 1_999_999);
    expect(await codeOf(life.prepare())).toBe('NO_SPACE');
    lab.simulated.files.setFreeBytes('/images', 2_000_000);
    lab.simulated.inject('createOverlay', { reject: 'NO_SPACE' }, { skip: 1 });
    expect(await codeOf(life.prepare())).toBe('NO_SPACE');
    expect(lab.overlays()).toEqual([]);
    expect(await life.undo()).toEqual([]);
  });

  it('allows a chain of 30 images and no more', async () => {
    const lab = new Lab();
    const { files } = lab.simulated;
    let top = '/images/web-1.qcow2';
    for (let depth = 2; depth <= 29; depth++) {
      const path = `/images/layer-${depth}.qcow2`;
      files.add({ path, backing: top, backingFormat: 'qcow2' });
      top = path;
    }
    lab.vm.setSource('live', 'vda', top, 'qcow2');
    const life = await lab.life();
    await life.prepareAndCut(window1);
    expect((await lab.simulated.getVm(lab.vm.uuid)).disks[0]?.chain).toHaveLength(30);
    expect(await codeOf(life.prepare(window2))).toBe('CHAIN_TOO_DEEP');
    expect(lab.overlays()).toHaveLength(2);
  });

  it.each<[string, (lab: Lab) => void]>([
    ['VM_NOT_FOUND', (lab: Lab) => lab.vm.moveAway()],
    ['VM_NOT_RUNNING', (lab: Lab) => lab.vm.shutOff()],
    ['BLOCK_JOB_ACTIVE', (lab: Lab) => void lab.vm.startForeignBlockJob('vdb')],
    ['MIGRATION_ACTIVE', (lab: Lab) => lab.vm.migrate()],
    ['DISK_NOT_SNAPSHOTTABLE', (lab: Lab) => lab.vm.setSource('live', 'vda', '/elsewhere/web-1.qcow2', 'qcow2')],
    ['DISK_NOT_SNAPSHOTTABLE', (lab: Lab) => lab.vm.setSource('live', 'vda', '/images/../etc/shadow', 'raw')],
    ['DISK_NOT_SNAPSHOTTABLE', (lab: Lab) => lab.vm.setSource('live', 'vda', '/images/a,b.qcow2', 'qcow2')],
    ['DISK_NOT_SNAPSHOTTABLE', (lab: Lab) => lab.vm.setSource('live', 'vda', '/images/a\n.qcow2', 'qcow2')],
    ['DISK_NOT_SNAPSHOTTABLE', (lab: Lab) => lab.vm.setSource('live', 'vda', '/images/web-1.vmdk', 'vmdk')],
  ])('refuses with %s and makes nothing (%#)', async (code, change) => {
    const lab = new Lab();
    for (const path of ['/elsewhere/web-1.qcow2', '/etc/shadow']) lab.simulated.files.add({ path });
    // Even where what they lead to is harmless.
    for (const path of ['/images/a,b.qcow2', '/images/a\n.qcow2', '/images/../etc/shadow']) {
      lab.simulated.files.link(path, '/images/web-1.qcow2');
    }
    change(lab);
    expect(await codeOf((await lab.life()).prepare())).toBe(code);
    expect(lab.overlays()).toEqual([]);
  });

  it('refuses a chain that an undo could not read, and makes nothing', async () => {
    const lab = new Lab();
    const base = lab.simulated.files.need('/images/web-1.qcow2');
    lab.simulated.files.add({ path: '/images/damaged.qcow2', format: 'damaged' });
    [base.backing, base.backingFormat] = ['/images/damaged.qcow2', 'qcow2'];
    const refused = (await lab.life()).prepare();
    await expect(refused).rejects.toMatchObject({
      code: 'DISK_NOT_SNAPSHOTTABLE',
      metadata: { disk: 'vda', reason: 'chain' },
    });
    expect(lab.overlays()).toEqual([]);
  });

  it('refuses disks that it does not know or that are not local', async () => {
    const life = await new Lab().life();
    expect(await codeOf(life.prepare(window1, ['vdz']))).toBe('DISK_NOT_FOUND');
    expect(await codeOf(life.prepare(window1, ['vdc']))).toBe('DISK_NOT_SNAPSHOTTABLE');
    expect(await codeOf(life.prepare('../../etc/x.1'))).toBe('INVALID_ARGUMENT');
  });

  it('follows a link out of the folders, and refuses what it leads to', async () => {
    const lab = new Lab();
    lab.simulated.files.add({ path: '/secret/disk.qcow2' });
    lab.simulated.files.link('/images/link.qcow2', '/secret/disk.qcow2');
    lab.vm.setSource('live', 'vda', '/images/link.qcow2', 'qcow2');
    const life = await lab.life();
    expect((await life.room.leftOut(lab.vm.describe())).get('vda')).toBe('location');
    expect(await codeOf(life.prepare())).toBe('DISK_NOT_SNAPSHOTTABLE');
  });

  it('says of every disk why it is left out', async () => {
    const lab = new Lab({
      vm: {
        disks: [
          { target: 'vda', path: '/images/a.qcow2' },
          { target: 'vdb', path: '/images/b.qcow2', readOnly: true },
          { target: 'vdc', path: '/images/c.qcow2', shareable: true },
          { target: 'vdd', path: '/images/d.qcow2', transient: true },
          { target: 'vde', path: '/images/e.vmdk', format: 'vmdk' },
          { target: 'vdf', path: '/tmp/f.qcow2' },
          { target: 'vdg', kind: 'network', image: 'iscsi:x' },
          { target: 'vdh', kind: 'rbd' },
          { target: 'vdi', kind: 'other' },
          { target: 'sda', device: 'cdrom' },
          { target: 'sdb', device: 'lun', kind: 'block', path: '/dev/sdb' },
          { target: 'vdj', kind: 'block', path: '/dev/sdc' },
        ],
      },
    });
    const why = await (await lab.life()).room.leftOut(lab.vm.describe());
    expect(Object.fromEntries(why)).toEqual({
      vda: undefined,
      vdb: 'read-only',
      vdc: 'shareable',
      vdd: 'transient',
      vde: 'format',
      vdf: 'location',
      vdg: 'network',
      vdh: undefined,
      vdi: 'no-source',
      sda: 'removable',
      sdb: 'lun',
      vdj: 'location',
    });
  });
});

describe('the cut', () => {
  it('switches all local disks at one instant, and leaves the volume alone', async () => {
    const lab = new Lab();
    const overlays = await (await lab.life()).prepareAndCut();
    const cut = overlays.map((overlay) => lab.simulated.files.lastNumber(overlay.basePath));
    expect(Math.min(...cut)).toBeGreaterThan(0);
    expect(keepsWriteOrder(cut)).toBe(true);
    expect((await lab.simulated.getVm(lab.vm.uuid)).disks.map((disk) => disk.path)).toEqual([
      overlays[0]?.overlayPath,
      overlays[1]?.overlayPath,
      undefined,
    ]);
    expect(lab.nothingLost()).toBe(true);
  });

  it.each([
    ['frozen', true],
    ['not frozen', false],
  ] as const)(
    'together with a volume it keeps the order of writes only if the guest is frozen: %s',
    async (_, frozen) => {
      const lab = new Lab();
      const life = await lab.life();
      const prepared = await life.prepare();
      if (frozen) await lab.simulated.freeze(lab.vm.uuid);
      const volume = await lab.simulated.snapshotVolume('web-1', 'vdc');
      await life.cut(prepared);
      if (frozen) await lab.simulated.thaw(lab.vm.uuid);
      const local = prepared.overlays.map((overlay) => lab.simulated.files.lastNumber(overlay.basePath));
      expect(keepsWriteOrder([...local, volume.last])).toBe(frozen);
    },
  );

  it.each([
    ['was restarted', (lab: Lab) => lab.vm.restart()],
    ['uses another image', (lab: Lab) => lab.vm.setSource('live', 'vda', '/images/other.qcow2', 'qcow2')],
  ] as const)('is refused when the VM %s since it was prepared', async (_, change) => {
    const lab = new Lab();
    lab.simulated.files.add({ path: '/images/other.qcow2' });
    const life = await lab.life();
    const prepared = await life.prepare();
    change(lab);
    expect(await codeOf(life.cut(prepared))).toBe('VM_CHANGED');
    expect(outcomes(await life.undo(window1, prepared.overlays))).toEqual(['unused-deleted', 'unused-deleted']);
  });

  it('is refused when a disk was resized since it was prepared: the overlay would cut it off', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const prepared = await life.prepare();
    const grown = { path: '/images/data.img', format: 'raw', virtualSizeBytes: 2 ** 31 };
    lab.simulated.files.add({ ...grown, numbers: lab.simulated.files.content('/images/data.img') });
    expect(await codeOf(life.cut(prepared))).toBe('VM_CHANGED');
  });

  it('asks libvirt once per window, and never after an undo', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const prepared = await life.prepare();
    lab.simulated.inject('snapshotDisks', { reject: 'SNAPSHOT_FAILED' });
    expect(await codeOf(life.cut(prepared))).toBe('SNAPSHOT_FAILED');
    expect(await codeOf(life.cut(prepared))).toBe('WINDOW_CLOSED');
    expect(outcomes(await life.undo())).toEqual(['unused-deleted', 'unused-deleted']);
    expect(await codeOf(life.cut(prepared))).toBe('WINDOW_CLOSED');
    expect(lab.overlays()).toEqual([]);
  });
});
