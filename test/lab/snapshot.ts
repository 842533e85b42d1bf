/** The whole product on a real guest that writes all the time: asked for over the REST API, judged by fsck, by the guest and by libvirt's log. */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { QUIESCE } from '@stillpoint/lab/libvirt-log.js';
import { verifySnapshot } from '@stillpoint/lab/snapshot-check.js';
import { describe, expect, it } from 'vitest';
import { localParts } from '../workflows/fixtures/local-parts.js';
import { VM } from './whole-system.js';
import { world } from './world.js';

/** Writes a file to both local disks; its name is told by `fingerprints` from then on. */
const write = (name: string) =>
  world.lab.guest.run(
    `for d in /root /data; do dd if=/dev/urandom of=$d/${name} bs=64k count=16 2>/dev/null; done; sync`,
    60_000,
  );
const fingerprints = () => world.lab.guest.run('md5sum /root/kept-* /data/kept-*', 60_000);

describe('A snapshot of a VM under write load', () => {
  it('is graded filesystem, is consistent across its disks, and leaves the network disk alone', async () => {
    const { lab, proxy, system } = world;
    const log = lab.log();
    proxy.clearRecords();

    const snapshot = await world.snapshot({ name: 'before the upgrade', description: 'a test' });

    expect(snapshot).toMatchObject({ state: 'complete', grade: 'filesystem', partial: true, error: null, pending: [] });
    expect(snapshot.leftOut).toEqual([
      expect.objectContaining({ target: 'vdc', writable: true, reason: expect.stringMatching(/network disk/) }),
    ]);
    expect(snapshot.unfrozen.map(({ mountpoint, accepted }) => [mountpoint, accepted])).toEqual([['/boot/efi', true]]);
    await world.expectConsistent(snapshot);

    // Live and inactive chain are what was recorded.
    expect(localParts(snapshot.disks).map(({ target, path }) => [target, path])).toEqual([
      ['vda', lab.disks.vda],
      ['vdb', lab.disks.vdb],
    ]);
    const inactive = await lab.vm.xml('inactive');
    const chains = await lab.vm.chains();
    for (const { target, overlay, path } of localParts(snapshot.disks)) {
      expect(chains[target]).toEqual([overlay, path]);
      expect(inactive).toContain(`<source file='${overlay}'/>`);
    }

    // One transaction, without QUIESCE; every disk that is not to be cut is named in it.
    expect(log.snapshots().map(({ flags }) => flags & QUIESCE)).toEqual([0]);
    const [call, ...more] = proxy.calls('SNAPSHOT_CREATE_XML');
    expect(more).toEqual([]);
    expect(call?.payload.toString('latin1')).toMatch(/<disk name=['"]vdc['"] snapshot=['"]no['"]\/>/);
    expect(await lab.vm.xml()).toMatch(/<source protocol='nbd' name='vdc'/);

    // libvirt's log saw one freeze, and the guest was frozen for no shorter than the window that was recorded.
    const [frozen, ...again] = log.frozenTimes();
    expect(again).toEqual([]);
    expect((frozen?.untilMs ?? 0) - (frozen?.fromMs ?? 0)).toBeGreaterThanOrEqual((snapshot.window?.ms ?? 0) - 2);
    expect(snapshot.window?.frozenFileSystems).toBe(3);

    await system.deleteSnapshot(snapshot.id);
    await world.expectNothingLeft();
  });

  it('merges back from the middle of the chain and from its end, with all data intact', async () => {
    const { lab, system } = world;
    await write('kept-1');
    const first = await world.snapshot({ name: 'first' });
    await write('kept-2');
    const second = await world.snapshot({ name: 'second' });
    await write('kept-3');
    expect([first.grade, second.grade]).toEqual(['filesystem', 'filesystem']);
    expect(localParts(second.disks).map(({ path }) => path)).toEqual(
      localParts(first.disks).map(({ overlay }) => overlay),
    );
    await world.expectConsistent(first);
    await world.expectConsistent(second);
    const written = await fingerprints();

    await system.deleteSnapshot(first.id);
    const after = (await system.request<SnapshotView>('GET', `/v1/snapshots/${second.id}`)).body;
    for (const { target, overlay, path } of localParts(after.disks)) {
      expect((await lab.vm.chains())[target]).toEqual([overlay, path]);
    }
    expect(localParts(after.disks).map(({ path }) => path)).toEqual([lab.disks.vda, lab.disks.vdb]);
    await world.expectConsistent(after);

    await system.deleteSnapshot(second.id);
    await world.expectNothingLeft();
    expect(await fingerprints()).toBe(written);

    await lab.vm.stop();
    const images = await verifySnapshot([lab.disks.vda, lab.disks.vdb]);
    expect(images.map(({ clean }) => clean)).toEqual([true, true]);
    await lab.vm.start();
    expect(await fingerprints()).toBe(written);
  });

  it('is thawed at once and taken back when it is cancelled in the window, though libvirt makes the cut later', async () => {
    const { lab, proxy, system } = world;
    const cut = proxy.hold({ procedure: 'SNAPSHOT_CREATE_XML', what: 'call' });
    const id = await system.createSnapshot(VM);
    await cut.reached;
    expect(await lab.guest.isFrozen()).toBe(true);

    expect((await system.request('POST', `/v1/snapshots/${id}/cancel`)).status).toBe(202);
    await lab.guest.waitUntilThawed(30_000);
    cut.release();

    const snapshot = await system.waitForSnapshot(id);
    expect(snapshot).toMatchObject({ state: 'cancelled', grade: null, pending: [] });
    await world.expectNothingLeft();
    const next = await world.snapshot();
    expect(next.grade).toBe('filesystem');
    await system.deleteSnapshot(next.id);
  });

  it('is refused while another one of the same VM runs, and names that', async () => {
    const { proxy, system } = world;
    const cut = proxy.hold({ procedure: 'SNAPSHOT_CREATE_XML', what: 'call' });
    const id = await system.createSnapshot(VM);
    await cut.reached;
    const refused = await system.request<{ code: string }>('POST', `/v1/vms/${VM}/snapshots`, {});
    expect(refused.status).toBe(409);
    expect(refused.body.code).toBe('VM_BUSY');
    expect(JSON.stringify(refused.body)).toContain(id);
    cut.release();
    expect(await system.waitForSnapshot(id)).toMatchObject({ state: 'complete', grade: 'filesystem' });
    await system.deleteSnapshot(id);
    await world.expectNothingLeft();
  });
});

describe('The command stillpoint', () => {
  it('takes, lists, shows and deletes a snapshot of the real guest', async () => {
    const { system } = world;
    const created = await system.stillpoint('--json', 'snapshot', 'create', VM, '--name', 'by hand', '--wait');
    expect(created.exitCode).toBe(0);
    const { id, grade } = JSON.parse(created.stdout);
    expect(grade).toBe('filesystem');
    const listed = await system.stillpoint('snapshot', 'list', '--vm', VM, '--state', 'complete');
    expect(listed.stdout).toContain('by hand');
    const shown = await system.stillpoint('snapshot', 'show', id);
    expect(shown.stdout).toMatch(/filesystem/);
    expect(shown.stdout).toMatch(/vdc/);
    expect(await system.stillpoint('snapshot', 'delete', id, '--wait')).toMatchObject({ exitCode: 0 });
    await world.expectNothingLeft();
  });
});

describe('A snapshot without a freeze', () => {
  it('is graded crash when it was asked for so: one transaction, and no freeze was ever sent', async () => {
    const log = world.lab.log();
    const snapshot = await world.snapshot({ quiesce: 'skip' });
    expect(snapshot).toMatchObject({ state: 'complete', grade: 'crash', why: expect.stringContaining('quiesce=skip') });
    expect(log.agent().map(({ command }) => command)).not.toContain('guest-fsfreeze-freeze');
    expect(log.snapshots().map(({ flags }) => flags & QUIESCE)).toEqual([0]);
    await world.system.deleteSnapshot(snapshot.id);
    await world.expectNothingLeft();
  });

  it('is taken of the named disks only', async () => {
    const { lab, system } = world;
    const snapshot = await world.snapshot({ quiesce: 'skip', disks: ['vdb'] });
    expect(snapshot).toMatchObject({ state: 'complete', grade: 'crash', partial: true });
    expect(snapshot.disks.map(({ target }) => target)).toEqual(['vdb']);
    expect(snapshot.leftOut.map(({ target }) => target)).toEqual(['vda', 'vdc']);
    expect((await lab.vm.chains()).vda).toEqual([lab.disks.vda]);
    await system.deleteSnapshot(snapshot.id);
    await world.expectNothingLeft();
  });

  it('is what best-effort ends with where the guest agent is dead, and the reason stands beside the grade', async () => {
    await world.lab.guest.killAgent({ respawn: false });
    const snapshot = await world.snapshot({ quiesce: 'best-effort' });
    expect(snapshot).toMatchObject({ state: 'complete', grade: 'crash', quiesce: 'best-effort' });
    expect(snapshot.why).toMatch(/guest agent/i);
    await world.system.deleteSnapshot(snapshot.id);
    await world.expectNothingLeft();
  });
});
