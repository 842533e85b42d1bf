/** What snapshots of the mixed VM are, and how it is seen from outside. */
import { describe, expect, it } from 'vitest';
import { LOCAL, VOLUMES } from './mixed-system.js';
import { mixed } from './the-system.js';

describe('A VM with local disks and volumes on Ceph', () => {
  it('gets one snapshot of all of them: graded filesystem, clean, in the order of the writes, seen in Cinder, and deleted whole', async () => {
    const { lab, storage, system } = mixed;
    const log = lab.log();
    const snapshot = await mixed.snapshot({ name: 'before the upgrade' });
    expect(snapshot).toMatchObject({
      state: 'complete',
      grade: 'filesystem',
      partial: false,
      error: null,
      pending: [],
    });
    expect(snapshot.disks.map(({ target, kind }) => `${target} ${kind}`)).toEqual([
      ...LOCAL.map((target) => `${target} local`),
      ...VOLUMES.map((target) => `${target} volume`),
    ]);
    await mixed.expectConsistent(snapshot);

    // One freeze, and one transaction of libvirt's that leaves the volumes alone.
    expect(log.frozenTimes()).toHaveLength(1);
    expect(log.snapshots()).toHaveLength(1);
    expect(snapshot.window?.frozenFileSystems).toBe(6);

    const inCeph = await mixed.snapshotsInCeph();
    for (const part of snapshot.disks) {
      if (part.kind !== 'volume') continue;
      expect(part.volume).toBe(mixed.volume(part.target));
      expect(inCeph[`volume-${part.volume}`]).toEqual([`snapshot-${part.snapshot}`]);
    }
    const list = await storage.cinderCommand(['snapshot-list'], 'member');
    expect(list.exitCode).toBe(0);
    for (const target of VOLUMES) expect(list.stdout).toContain(`before the upgrade (web-1 ${target})`);
    expect(list.stdout.match(/ available /g)).toHaveLength(VOLUMES.length);
    const [part] = snapshot.disks.filter(({ target }) => target === 'vdc');
    if (part?.kind !== 'volume') throw new Error('vdc is a volume');
    const shown = await storage.cinderCommand(['snapshot-show', part.snapshot], 'member');
    for (const text of [`Stillpoint: vdc of VM web-1 (${lab.vm.uuid})`, 'Grade filesystem.', snapshot.id]) {
      expect(shown.stdout).toContain(text);
    }
    expect((await mixed.snapshotsInCinder()).find(({ id }) => id === part.snapshot)?.metadata).toEqual({
      stillpoint_installation: expect.stringMatching(/^[0-9a-f-]{36}$/),
      stillpoint_snapshot: snapshot.id,
      stillpoint_window: snapshot.window?.id,
      stillpoint_vm: lab.vm.uuid,
      stillpoint_vm_name: 'web-1',
      stillpoint_disk: 'vdc',
      stillpoint_set: [...LOCAL, ...VOLUMES].join(','),
      stillpoint_grade: 'filesystem',
    });

    await system.deleteSnapshot(snapshot.id);
    await mixed.expectNothingLeft();
    expect((await storage.cinderCommand(['snapshot-list'], 'member')).stdout).not.toContain('before the upgrade');
  });
});
