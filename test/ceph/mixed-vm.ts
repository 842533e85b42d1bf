/** What snapshots of the mixed VM are, and how it is seen from outside. */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { type SnapshotVmInput, type SnapshotVmResult, TASK_QUEUE, workflowIdOf } from '@stillpoint/workflows';
import { Client, Connection } from '@temporalio/client';
import { describe, expect, it } from 'vitest';
import { LOCAL, VOLUMES } from './mixed-system.js';
import { leavingNothing, log, mixed } from './the-system.js';

describe('A VM with local disks and volumes on Ceph', () => {
  leavingNothing();

  it('gets one snapshot of all of them: graded filesystem, clean, in the order of the writes, seen in Cinder, and deleted whole', async () => {
    const { lab, storage, system } = mixed;
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
  });
});

/** As a management engine of another make would start it. */
async function snapshotDisks(disks: string[]): Promise<SnapshotVmResult> {
  const connection = await Connection.connect({ address: mixed.system.temporal.address });
  const vm = mixed.lab.vm.uuid;
  try {
    return await new Client({ connection }).workflow.execute('snapshotDisks', {
      taskQueue: TASK_QUEUE,
      workflowId: workflowIdOf(vm),
      args: [{ vm, disks } satisfies SnapshotVmInput],
    });
  } finally {
    await connection.close();
  }
}

describe('The disks on Ceph alone', () => {
  leavingNothing();

  it('are a snapshot graded filesystem, and the local disks are left out of it and alone', async () => {
    const snapshot = await mixed.snapshot({ disks: VOLUMES });
    expect(snapshot).toMatchObject({ state: 'complete', grade: 'filesystem', partial: true });
    expect(snapshot.leftOut.map(({ target }) => target)).toEqual(LOCAL);
    expect(await mixed.overlays()).toEqual([]);
    await mixed.expectConsistent(snapshot);
    await mixed.system.deleteSnapshot(snapshot.id);
  });

  it('are what snapshotDisks takes, started by any Temporal client', async () => {
    const result = await snapshotDisks(VOLUMES);
    expect(result).toMatchObject({ grade: 'filesystem', partial: true });
    const { body: snapshot } = await mixed.system.request<SnapshotView>('GET', `/v1/snapshots/${result.snapshotId}`);
    expect(snapshot).toMatchObject({ state: 'complete', grade: 'filesystem', disks: result.disks });
    await mixed.expectConsistent(snapshot);
    await mixed.system.deleteSnapshot(result.snapshotId);
  });

  it('are all that snapshotDisks takes: a disk of the host among them is refused before the freeze', async () => {
    await expect(snapshotDisks(['vdb', ...VOLUMES])).rejects.toMatchObject({
      cause: { type: 'LOCAL_DISK_IN_SET', message: expect.stringContaining('vdb') },
    });
    expect(log.agent().map(({ command }) => command)).not.toContain('guest-fsfreeze-freeze');
  });
});
