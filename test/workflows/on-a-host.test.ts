import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { promisify } from 'node:util';
import type { Catalogue } from '@stillpoint/engine/catalogue/catalogue.js';
import { CatalogueError } from '@stillpoint/engine/catalogue/errors.js';
import type { SimulatedVm } from '@stillpoint/host-agent/simulated/vm.js';
import {
  type DeleteSnapshotResult,
  type SnapshotVmInput,
  type SnapshotVmResult,
  TASK_QUEUE,
  workflowIdOf,
} from '@stillpoint/workflows';
import { WorkflowFailedError, type WorkflowHandle } from '@temporalio/client';
import { ApplicationFailure, CancelledFailure } from '@temporalio/common';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';
import { type Installation, installation, type SimulatedHost } from './fixtures/installation.js';
import { localParts } from './fixtures/local-parts.js';

/** The real activities, the real host agent and the real catalogue; the guests are simulated. */

let all: Installation;
let host: SimulatedHost;
let other: SimulatedHost;
let vm: SimulatedVm;
let uuid: string;
let catalogueIsDown = false;

beforeAll(async () => {
  all = await installation({ seenAs: thatCanGoDown, settings: { windowSlots: 4 } });
  [host, other] = [await all.addHost('kvm-01', []), await all.addHost('kvm-02', [])];
});

afterAll(() => all.close());

// A VM of its own for every test: what one leaves is nobody else's trouble.
beforeEach(() => {
  uuid = randomUUID();
  vm = host.world.addVm({
    name: `web-${uuid.slice(0, 8)}`,
    uuid,
    disks: [{ target: 'vda' }, { target: 'vdb' }, { target: 'vdc', kind: 'network', image: 'nbd:other' }],
  });
});

/** The catalogue as the activities see it: every call fails while it is down. */
function thatCanGoDown(catalogue: Catalogue): Catalogue {
  return new Proxy(catalogue, {
    get(target, name) {
      const method: unknown = Reflect.get(target, name);
      if (typeof method !== 'function') return method;
      return (...args: unknown[]) => {
        if (catalogueIsDown) return Promise.reject(new CatalogueError('CATALOGUE_UNAVAILABLE', 'It is down.'));
        return method.apply(target, args);
      };
    },
  });
}

function start(asked: Partial<SnapshotVmInput> = {}, workflowId = workflowIdOf(uuid)): Promise<WorkflowHandle> {
  return all.temporal.client.workflow.start('snapshotVm', {
    taskQueue: TASK_QUEUE,
    workflowId,
    args: [{ vm: uuid, ...asked }],
  });
}

async function snapshot(asked: Partial<SnapshotVmInput> = {}): Promise<SnapshotVmResult> {
  const handle = await start(asked);
  return (await handle.result()) as SnapshotVmResult;
}

async function failureOf(run: Promise<unknown>): Promise<ApplicationFailure> {
  const error = await run.then(
    () => {
      throw new Error('it succeeded');
    },
    (thrown: unknown) => thrown,
  );
  const cause = error instanceof WorkflowFailedError ? error.cause : error;
  if (!(cause instanceof ApplicationFailure)) throw cause;
  return cause;
}

/** Overlays of ours that exist on the host for this VM. */
async function overlays(): Promise<string[]> {
  const files = await host.world.images.listOverlays('/var/lib/libvirt/images');
  return files.filter((file) => file.includes(vm.name));
}

/** Chain that the first disk has right after this snapshot: the overlay, and the image below it. */
function imagesOf({ disks }: SnapshotVmResult): (string | undefined)[] {
  const [part] = localParts(disks);
  return [part?.overlay, part?.path];
}

async function chainOf(target: string): Promise<string[]> {
  const seen = await host.world.getVm(uuid);
  return seen.disks.find((disk) => disk.target === target)?.chain.map((image) => image.path) ?? [];
}

/** As the guest itself knows it. */
async function isFrozen(): Promise<boolean> {
  return vm.frozen;
}

/** Operation that holds the VM, as its host agent says. */
async function holder(): Promise<string> {
  return (await all.hosts.host('kvm-01').getVm(uuid)).hold.operation;
}

/** A run whose VM is on the other host by the time at which it is to be cut, as frozen as it was. */
async function movedWhileFrozen(): Promise<{ failure: ApplicationFailure; moved: SimulatedVm }> {
  const cut = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
  const run = await start();
  await cut.hit;
  expect(vm.frozen).toBe(true);
  // As a migration leaves it that was given another definition: nothing tells the other host's agent that it is frozen.
  vm.note = undefined;
  vm.moveAway(other.world);
  cut.release();
  return { failure: await failureOf(run.result()), moved: other.world.vm(uuid) };
}

async function leavesNothing(): Promise<void> {
  expect(await overlays()).toEqual([]);
  expect(await chainOf('vda')).toHaveLength(1);
  expect(await isFrozen()).toBe(false);
  expect(await holder()).toBe('');
}

describe('a VM that moves to another host while it is frozen', () => {
  it('is thawed there by the engine that froze it, and its snapshot fails', async () => {
    const { failure, moved } = await movedWhileFrozen();
    expect(moved.frozen).toBe(false);
    expect(failure.message).toContain('The VM runs on kvm-02 now, and its guest is thawed there.');
    const [row] = await all.catalogue.listSnapshots({ vm: uuid, limit: 1 });
    expect(row).toMatchObject({ state: 'cleanup-pending' });
    expect(row).not.toHaveProperty('grade');
  });
});

describe('snapshotVm on a host', () => {
  it('takes a consistent snapshot of the local disks and leaves the network disk alone', async () => {
    const result = await snapshot({ name: 'nightly' });
    expect(result).toMatchObject({
      name: 'nightly',
      grade: 'filesystem',
      partial: true,
      hypervisor: 'simulated',
      host: 'kvm-01',
    });
    expect(result.leftOut.map((disk) => disk.target)).toEqual(['vdc']);
    expect(result.window.ms).toBeGreaterThan(0);
    expect(await chainOf('vda')).toEqual(imagesOf(result));
    expect(await isFrozen()).toBe(false);
    expect(await holder()).toBe('');
    const row = await all.catalogue.getSnapshot(result.snapshotId);
    expect(row).toMatchObject({ state: 'complete', vmName: vm.name, windowId: `${result.snapshotId}.1` });
    expect(row?.result).toEqual(result);
  });

  it('is the same for a run that the temporal command started, with an id of its own', async () => {
    const args = ['workflow', 'execute', '--address', all.temporal.address, '--task-queue', TASK_QUEUE];
    const { stdout } = await promisify(execFile)(await installedTemporal(), [
      ...args,
      ...[
        '--type',
        'snapshotVm',
        '--workflow-id',
        workflowIdOf(uuid),
        '--input',
        JSON.stringify({ vm: uuid }),
        '--output',
        'json',
      ],
    ]);
    const { result } = JSON.parse(stdout) as { result: SnapshotVmResult };
    expect(result).toMatchObject({ grade: 'filesystem', vm: { uuid } });
    const row = await all.catalogue.getSnapshot(result.snapshotId);
    expect(row?.result).toMatchObject({ grade: 'filesystem', window: result.window, disks: result.disks });
  });

  it('refuses a run under another id and prints the right one', async () => {
    const handle = await start({}, `mine-${uuid}`);
    const failure = await failureOf(handle.result());
    expect(failure.type).toBe('WORKFLOW_ID_WRONG');
    expect(failure.message).toContain(workflowIdOf(uuid));
    await leavesNothing();
  });

  it('refuses input that is not valid, naming the field', async () => {
    const failure = await failureOf(snapshot({ quiesce: 'maybe' as never, disks: ['../x'] }));
    expect(failure.type).toBe('INPUT_INVALID');
    expect(failure.message).toContain('quiesce');
    expect(failure.message).toContain('disks[0]');
  });

  it.each([
    [{ disks: ['vdz'] }, 'DISK_NOT_FOUND'],
    [{ disks: ['vda', 'vdc'] }, 'DISK_NOT_SNAPSHOTTABLE'],
    [{ unquiesced: ['vdz'] }, 'DISK_NOT_FOUND'],
  ])('refuses %j with %s', async (asked, code) => {
    expect((await failureOf(snapshot(asked))).type).toBe(code);
  });

  it('refuses an id that another run has used', async () => {
    const { snapshotId } = await snapshot();
    expect((await failureOf(snapshot({ snapshotId }))).type).toBe('SNAPSHOT_ID_USED');
    expect((await all.catalogue.getSnapshot(snapshotId))?.state).toBe('complete');
  });

  it('refuses a VM that nobody knows, one that is off, and one that is paused unless it is skip', async () => {
    const unknown = randomUUID();
    const handle = await all.temporal.client.workflow.start('snapshotVm', {
      taskQueue: TASK_QUEUE,
      workflowId: workflowIdOf(unknown),
      args: [{ vm: unknown }],
    });
    expect((await failureOf(handle.result())).type).toBe('VM_NOT_FOUND');
    vm.pause();
    expect((await failureOf(snapshot({ quiesce: 'best-effort' }))).type).toBe('VM_PAUSED');
    expect(await snapshot({ quiesce: 'skip' })).toMatchObject({ grade: 'crash' });
    vm.shutOff();
    expect((await failureOf(snapshot())).type).toBe('VM_NOT_RUNNING');
  });

  it('gives up when the host that may have the VM stays away, and says which', async () => {
    await all.catalogue.addHost({ name: 'kvm-away', address: '127.0.0.1:1' });
    try {
      const stranger = randomUUID();
      const failure = await failureOf((await start({ vm: stranger }, workflowIdOf(stranger))).result());
      expect(failure.type).toBe('HOST_UNREACHABLE');
      expect(failure.message).toContain('kvm-away');
    } finally {
      await all.catalogue.removeHost('kvm-away');
    }
  });

  it('fails under required without a guest agent, leaving nothing, and goes on under best-effort', async () => {
    vm.disconnectAgent();
    const failure = await failureOf(snapshot());
    expect(failure.type).toBe('AGENT_NOT_CONNECTED');
    expect(failure.message).toContain('Nothing is left of the snapshot.');
    await leavesNothing();
    const result = await snapshot({ quiesce: 'best-effort' });
    expect(result).toMatchObject({ grade: 'crash', quiesce: 'best-effort' });
    expect(result.why).toContain('Not frozen');
  });

  it('cancelled in the middle of the cut ends thawed and clean', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const handle = await start();
    await held.hit;
    expect(await isFrozen()).toBe(true);
    await handle.cancel();
    await expect.poll(isFrozen, { timeout: 10_000 }).toBe(false);
    held.release();
    await expect(handle.result()).rejects.toMatchObject({ cause: expect.any(CancelledFailure) });
    await leavesNothing();
  });

  it('opens a second window when the connection is lost in the first', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const handle = await start();
    await held.hit;
    await host.cutConnections();
    await expect.poll(isFrozen, { timeout: 10_000 }).toBe(false);
    held.release();
    const result = (await handle.result()) as SnapshotVmResult;
    expect(result).toMatchObject({ grade: 'filesystem', window: { id: `${result.snapshotId}.2` } });
    expect(await chainOf('vda')).toHaveLength(2);
  });

  it('undoes what a dead run left before it takes the VM', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const handle = await start();
    await held.hit;
    await handle.terminate('its history was lost');
    held.release();
    const result = await snapshot();
    expect(result).toMatchObject({ grade: 'filesystem' });
    expect(await chainOf('vda')).toEqual(imagesOf(result));
    expect(await overlays()).toHaveLength(2);
    const [, dead] = await all.catalogue.listSnapshots({ vm: uuid, limit: 10 });
    expect(dead).toMatchObject({ state: 'failed' });
  });

  it('thaws without waiting for a catalogue that is down, and records when it is back', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const handle = await start();
    await held.hit;
    catalogueIsDown = true;
    try {
      held.release();
      await expect.poll(isFrozen, { timeout: 10_000 }).toBe(false);
      await expect
        .poll(
          async () => {
            const { raw } = await handle.describe();
            const pending = raw.pendingActivities?.find(({ activityType }) => activityType?.name === 'recordSnapshot');
            return pending?.lastFailure?.applicationFailureInfo?.type;
          },
          { timeout: 20_000 },
        )
        .toBe('CATALOGUE_UNAVAILABLE');
    } finally {
      catalogueIsDown = false;
    }
    expect(await handle.result()).toMatchObject({ grade: 'filesystem' });
  });
});

describe('deleteSnapshot on a host', () => {
  function startDelete(snapshotId: string): Promise<WorkflowHandle> {
    return all.temporal.client.workflow.start('deleteSnapshot', {
      taskQueue: TASK_QUEUE,
      workflowId: workflowIdOf(uuid),
      args: [{ vm: uuid, snapshotId }],
    });
  }

  it('merges the overlays of one of several snapshots, and the others stay whole', async () => {
    const first = await snapshot({ name: 'first' });
    const second = await snapshot({ name: 'second' });
    const result = (await (await startDelete(first.snapshotId)).result()) as DeleteSnapshotResult;
    expect(result.disks.map((disk) => disk.outcome)).toEqual(['committed', 'committed']);
    expect(await chainOf('vda')).toEqual([imagesOf(second)[0], imagesOf(first)[1]]);
    expect((await all.catalogue.getSnapshot(first.snapshotId))?.state).toBe('deleted');
    const left = await all.catalogue.getSnapshot(second.snapshotId);
    expect(localParts(left?.parts ?? [])[0]?.path).toBe(imagesOf(first)[1]);
    expect(await holder()).toBe('');
  });

  it('merges what a failed run could not take back', async () => {
    const refusal = host.world.inject('mergeOverlay', { reject: 'MERGE_FAILED' }, { vm: uuid, times: 100 });
    const cut = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const run = await start();
    await cut.hit;
    host.world.inject('freezeStatus', { reject: 'AGENT_NOT_RESPONDING' }, { vm: uuid });
    cut.release();
    const failure = await failureOf(run.result());
    expect(failure.type).toBe('CLEANUP_PENDING');
    const [row] = await all.catalogue.listSnapshots({ vm: uuid, limit: 1 });
    expect(row).toMatchObject({ state: 'cleanup-pending', error: { code: 'CONSISTENCY_LOST' } });
    expect(await chainOf('vda')).toHaveLength(2);
    refusal.remove();
    await (await startDelete(row?.snapshotId ?? '')).result();
    await leavesNothing();
  });

  it('takes back what a terminated run had made when its snapshot is deleted', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const run = await start();
    await held.hit;
    await run.terminate('an administrator lost patience');
    held.release();
    const [row] = await all.catalogue.listSnapshots({ vm: uuid, limit: 1 });
    expect(row?.state).toBe('running');
    await (await startDelete(row?.snapshotId ?? '')).result();
    await leavesNothing();
    expect((await all.catalogue.getSnapshot(row?.snapshotId ?? ''))?.state).toBe('deleted');
  });

  it('deletes a snapshot of a VM that a terminated run still holds, and cleans up after that run', async () => {
    const kept = await snapshot();
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const run = await start();
    await held.hit;
    await run.terminate('an administrator lost patience');
    held.release();
    await (await startDelete(kept.snapshotId)).result();
    await leavesNothing();
  });

  it('takes back what the next run could not take back of a dead one', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const run = await start();
    await held.hit;
    const [dead] = await all.catalogue.listSnapshots({ vm: uuid, limit: 1 });
    await run.terminate('an administrator lost patience');
    held.release();
    const refusal = host.world.inject('mergeOverlay', { reject: 'MERGE_FAILED' }, { vm: uuid, times: 100 });
    const next = await snapshot();
    refusal.remove();
    const deadId = dead?.snapshotId ?? '';
    expect(await all.catalogue.getSnapshot(deadId)).toMatchObject({ state: 'cleanup-pending', parts: [] });
    expect(await overlays()).toHaveLength(4);
    await (await startDelete(deadId)).result();
    expect(await overlays()).toHaveLength(2);
    expect(await chainOf('vda')).toHaveLength(2);
    await (await startDelete(next.snapshotId)).result();
    await leavesNothing();
  });

  it('says that there is no such snapshot', async () => {
    const failure = await failureOf((await startDelete(randomUUID())).result());
    expect(failure.type).toBe('SNAPSHOT_NOT_FOUND');
    expect(failure.message).toContain('Nothing was deleted');
  });

  it.each([
    ['libvirt is away: nothing was touched', 'getVmBehindJob', 'LIBVIRT_UNREACHABLE', 'complete'],
    [
      'a merge has broken off: the image below is not to be relied on',
      'mergeOverlay',
      'MERGE_FAILED',
      'cleanup-pending',
    ],
  ] as const)('does not delete the snapshot when %s', async (_, call, reject, state) => {
    const { snapshotId } = await snapshot();
    host.world.inject(call, { reject }, { vm: uuid, times: 100 });
    const failure = await failureOf((await startDelete(snapshotId)).result());
    expect(failure.type).toBe('CLEANUP_PENDING');
    const row = await all.catalogue.getSnapshot(snapshotId);
    expect(row?.state).toBe(state);
    expect(row?.parts).toHaveLength(2);
  });
});
