import { randomUUID } from 'node:crypto';
import type { Cloud } from '@stillpoint/engine/activities/deps.js';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { keepsWriteOrder, type WrittenNumbers } from '@stillpoint/host-agent/simulated/numbers.js';
import type { SimulatedDisk, SimulatedVm } from '@stillpoint/host-agent/simulated/vm.js';
import { type CinderStandIn, startCinderStandIn } from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import type { StandInSnapshot } from '@stillpoint/lab/cinder-stand-in/volumes.js';
import {
  PROGRESS_QUERY,
  type Progress,
  type SnapshotVmInput,
  type SnapshotVmResult,
  TASK_QUEUE,
  workflowIdOf,
} from '@stillpoint/workflows';
import { WorkflowFailedError, type WorkflowHandle } from '@temporalio/client';
import { ApplicationFailure, CancelledFailure } from '@temporalio/common';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type Installation, installation, type SimulatedHost } from './fixtures/installation.js';
import { signalled } from './fixtures/scripted-activities.js';

/** The real activities over the real client of Cinder, the real host agent and the real catalogue; guests and Cinder are stand-ins. */

let all: Installation;
let host: SimulatedHost;
let standIn: CinderStandIn;
let cloud: Cloud;
let vm: SimulatedVm;
let uuid: string;
let calls: string[];
let requests: string[];
let onRequest: (request: string) => void;
let stopListening: () => void;

/** Which volume is which disk of which guest. */
const guests = new Map<string, { vm: SimulatedVm; target: string; cuts: number }>();

beforeAll(async () => {
  standIn = await startCinderStandIn({
    times: { acceptMs: 2, cutMs: 100, availableMs: 120, deleteMs: 5 },
    onCut: (volume) => {
      const disk = guests.get(volume);
      if (disk === undefined) return undefined;
      disk.cuts += 1;
      return host.world.snapshotVolume(disk.vm.uuid, disk.target);
    },
    onRequest: ({ method, path }) => {
      requests.push(`${method} ${path}`);
      onRequest(`${method} ${path}`);
    },
  });
  const settings = readCloud({ env: standIn.environment() });
  if (settings === undefined) throw new Error('no cloud');
  cloud = {
    cinder: new CinderClient(settings),
    pools: ['volumes'],
    checkAttachment: true,
    snapshotsCountGigabytes: true,
    undoWaitMs: 300,
    giveUpCreatingMs: 100,
    windowRequestTimeoutMs: 8_000,
    rpcTimeoutMs: 1_500,
  };
  all = await installation({ cloud, settings: { hostPatienceMs: 500 } });
  host = await all.addHost('kvm-01', []);
});

afterAll(async () => {
  await all.close();
  await cloud.cinder.close();
  await standIn.close();
});

beforeEach(() => {
  uuid = randomUUID();
  calls = [];
  requests = [];
  onRequest = () => {};
  stopListening = host.world.onCall(({ name, uuid: of, phase }) => {
    if (of === uuid) calls.push(`${name} ${phase}`);
  });
});

afterEach(() => {
  standIn.faults.clear();
  stopListening();
});

/** A VM with two disks of the host and these besides. Answers its disks, which a test may change as an administrator does. */
function addVm(...disks: SimulatedDisk[]): SimulatedDisk[] {
  const all: SimulatedDisk[] = [{ target: 'vda' }, { target: 'vdb' }, ...disks];
  vm = host.world.addVm({ name: `web-${uuid.slice(0, 8)}`, uuid, disks: all });
  for (const { target, serial } of disks) if (serial !== undefined) guests.set(serial, { vm, target, cuts: 0 });
  return all;
}

/** The same with so many Ceph volumes, attached to it: vdc, vdd, … Answers their ids. */
function addVmOnCeph(count = 2): string[] {
  const disks = Array.from({ length: count }, (_, index): SimulatedDisk & { serial: string } => ({
    target: `vd${'cdefgh'[index]}`,
    kind: 'rbd',
    serial: standIn.addVolume({ instance: uuid }),
  }));
  addVm(...disks);
  return disks.map(({ serial }) => serial);
}

function start(asked: Partial<SnapshotVmInput> = {}, workflowType = 'snapshotVm'): Promise<WorkflowHandle> {
  return all.temporal.client.workflow.start(workflowType, {
    taskQueue: TASK_QUEUE,
    workflowId: workflowIdOf(uuid),
    args: [{ vm: uuid, ...asked }],
  });
}

async function snapshot(asked: Partial<SnapshotVmInput> = {}, workflowType = 'snapshotVm'): Promise<SnapshotVmResult> {
  return (await (await start(asked, workflowType)).result()) as SnapshotVmResult;
}

async function deletion(snapshotId: string): Promise<unknown> {
  return await (await start({ snapshotId }, 'deleteSnapshot')).result();
}

async function failureOf(run: Promise<unknown>): Promise<ApplicationFailure> {
  const error = await run.then(
    (result) => {
      throw new Error(`it succeeded: ${JSON.stringify(result)}`);
    },
    (thrown: unknown) => thrown,
  );
  const cause = error instanceof WorkflowFailedError ? error.cause : error;
  if (!(cause instanceof ApplicationFailure)) throw cause;
  return cause;
}

/** What Cinder has of this VM's volumes. */
function inCinder(): StandInSnapshot[] {
  return standIn.volumes.snapshots().filter(({ volumeId }) => guests.get(volumeId)?.vm === vm);
}

/** How often Cinder has cut a volume of this guest. */
function cutsOf(guest: SimulatedVm): number {
  return [...guests.values()].filter((disk) => disk.vm === guest).reduce((sum, disk) => sum + disk.cuts, 0);
}

async function overlays(): Promise<string[]> {
  const files = await host.world.images.listOverlays('/var/lib/libvirt/images');
  return files.filter((file) => file.includes(vm.name));
}

async function leavesNothing(): Promise<void> {
  expect(inCinder()).toEqual([]);
  expect(await overlays()).toEqual([]);
  await isThawedAndFree();
}

async function isThawedAndFree(): Promise<void> {
  expect(vm.frozen).toBe(false);
  expect((await all.hosts.host('kvm-01').getVm(uuid)).hold.operation).toBe('');
}

function freezes(): number {
  return calls.filter((call) => call === 'freeze begins').length;
}

function creates(): number {
  return requests.filter((request) => request === 'POST /snapshots').length;
}

/** The last number that each disk of a snapshot has, in the order in which the guest writes to them. */
async function lastNumbers(result: SnapshotVmResult): Promise<number[]> {
  return await Promise.all(
    result.disks.map(async (part) => {
      if (part.kind === 'local') return host.world.files.content(part.path).last;
      const cut = await standIn.volumes.cut(part.snapshot);
      return (cut?.content as WrittenNumbers | undefined)?.last ?? Number.NaN;
    }),
  );
}

describe('a snapshot of disks on the host and on Ceph', () => {
  it('keeps the order of writes over all of them, is graded filesystem, and tells people in Cinder what it is', async () => {
    const volumes = addVmOnCeph();
    const result = await snapshot({ name: 'nightly' });
    expect(result).toMatchObject({
      grade: 'filesystem',
      partial: false,
      leftOut: [],
      window: { frozenFileSystems: 4 },
    });
    expect(result.disks.map(({ target, kind }) => `${target} ${kind}`)).toEqual([
      'vda local',
      'vdb local',
      'vdc volume',
      'vdd volume',
    ]);
    expect(Math.min(...(await lastNumbers(result)))).toBeGreaterThan(0);
    expect(keepsWriteOrder(await lastNumbers(result))).toBe(true);
    expect(
      inCinder()
        .map(({ volumeId }) => volumeId)
        .sort(),
    ).toEqual([...volumes].sort());
    for (const { name, description, metadata, status } of inCinder()) {
      expect(name).toContain('nightly');
      expect(description).toContain(`stillpoint snapshot delete ${result.snapshotId}`);
      expect(description).toContain('Grade filesystem.');
      expect(status).toBe('available');
      expect(metadata).toMatchObject({
        stillpoint_installation: await all.catalogue.installationId(),
        stillpoint_snapshot: result.snapshotId,
        stillpoint_window: result.window.id,
        stillpoint_vm: uuid,
        stillpoint_set: 'vda,vdb,vdc,vdd',
        stillpoint_grade: 'filesystem',
      });
    }
    expect((await all.catalogue.getSnapshot(result.snapshotId))?.result).toEqual(result);
    await isThawedAndFree();

    await deletion(result.snapshotId);
    await leavesNothing();
  });

  it('is graded per-disk without a freeze, and the order of writes is indeed lost', async () => {
    addVmOnCeph();
    const result = await snapshot({ quiesce: 'skip' });
    expect(result.grade).toBe('per-disk');
    expect(keepsWriteOrder(await lastNumbers(result))).toBe(false);
    expect(freezes()).toBe(0);
  });

  it('is the same flow under the name snapshotDisks, which takes volumes alone', async () => {
    addVmOnCeph();
    const refused = await failureOf(snapshot({}, 'snapshotDisks'));
    expect(refused.type).toBe('LOCAL_DISK_IN_SET');
    expect(freezes()).toBe(0);
    const result = await snapshot({ disks: ['vdc', 'vdd'] }, 'snapshotDisks');
    expect(result).toMatchObject({ grade: 'filesystem', partial: true });
    expect(result.disks.map(({ kind }) => kind)).toEqual(['volume', 'volume']);
    expect(keepsWriteOrder(await lastNumbers(result))).toBe(true);
    expect(await overlays()).toEqual([]);
  });

  it('takes names that Cinder would not', async () => {
    addVmOnCeph(1);
    const result = await snapshot({ name: `before the \u{1f680} ${'x'.repeat(150)}` });
    expect(result.grade).toBe('filesystem');
    expect(inCinder()[0]?.name).toMatch(/^before the \ufffd x+/);
  });
});

describe('a disk that is not surely a volume of this VM', () => {
  const volumeOf = (instance: string) => standIn.addVolume({ instance });

  it.each<[string, () => SimulatedDisk, RegExp]>([
    ['attached to another VM', () => ({ target: 'vdc', kind: 'rbd', serial: volumeOf(randomUUID()) }), /attached to/],
    ['attached to none', () => ({ target: 'vdc', kind: 'rbd', serial: standIn.addVolume() }), /names no VM/],
    [
      "another project's",
      () => ({
        target: 'vdc',
        kind: 'rbd',
        serial: standIn.volumes.add({ projectId: randomUUID().replaceAll('-', ''), attachments: [] }).id,
      }),
      /project has no volume/,
    ],
    [
      'whose image is that of another volume',
      () => ({ target: 'vdc', kind: 'rbd', serial: volumeOf(uuid), image: `volumes/volume-${randomUUID()}` }),
      /its image is/,
    ],
    [
      'whose image lies in another pool',
      () => {
        const serial = volumeOf(uuid);
        return { target: 'vdc', kind: 'rbd', serial, image: `backups/volume-${serial}` };
      },
      /its image is backups/,
    ],
    [
      'without a serial',
      () => ({ target: 'vdc', kind: 'rbd', image: `volumes/volume-${volumeOf(uuid)}` }),
      /no volume's id as its serial/,
    ],
  ])('%s ends the run before anything is touched', async (_, disk, told) => {
    addVm(disk());
    const failure = await failureOf(snapshot());
    expect(failure.type).toBe('VOLUME_MISMATCH');
    expect(failure.message).toMatch(told);
    expect([freezes(), creates()]).toEqual([0, 0]);
    await leavesNothing();
  });

  it('is left alone where it is a file with the serial of a volume, and the snapshot is partial', async () => {
    addVm({ target: 'vdc', serial: volumeOf(uuid) });
    const result = await snapshot();
    expect(result).toMatchObject({ partial: true, leftOut: [{ target: 'vdc', writable: true }] });
    expect(result.leftOut[0]?.reason).toContain('a Cinder volume');
    expect(await overlays()).toHaveLength(2);
    expect(creates()).toBe(0);
  });

  it('is left alone where it is a Ceph image that no volume has', async () => {
    addVm({ target: 'vdc', kind: 'rbd', image: 'volumes/kept-by-hand' });
    const result = await snapshot();
    expect(result).toMatchObject({ partial: true, leftOut: [{ target: 'vdc', writable: true }] });
    const named = await failureOf(snapshot({ disks: ['vdc'] }));
    expect(named.type).toBe('DISK_NOT_SNAPSHOTTABLE');
  });

  it('may be attached to nobody where the administrator has switched that check off', async () => {
    addVm({ target: 'vdc', kind: 'rbd', serial: standIn.addVolume() });
    cloud.checkAttachment = false;
    try {
      expect(await snapshot()).toMatchObject({ grade: 'filesystem', partial: false });
    } finally {
      cloud.checkAttachment = true;
    }
  });
});

describe('what Cinder would refuse in the window', () => {
  it.each([
    ['snapshots', () => ({ snapshots: standIn.volumes.used(standIn.project.id).snapshots + 1, gigabytes: -1 })],
    ['gigabytes', () => ({ snapshots: -1, gigabytes: standIn.volumes.used(standIn.project.id).gigabytes + 1 })],
  ])('ends the run before the freeze: the quota of %s, for all volumes together', async (what, quota) => {
    addVmOnCeph(2);
    standIn.volumes.quota = quota();
    try {
      const failure = await failureOf(snapshot());
      expect(failure.type).toBe('CINDER_QUOTA');
      expect(failure.message).toContain(`quota for ${what} leaves 1`);
    } finally {
      standIn.volumes.quota = { snapshots: -1, gigabytes: -1 };
    }
    expect([freezes(), creates()]).toEqual([0, 0]);
    await leavesNothing();
  });

  it('ends the run before the freeze: a volume that is busy', async () => {
    const [volume = ''] = addVmOnCeph(1);
    standIn.volumes.volume(volume).status = 'maintenance';
    expect((await failureOf(snapshot())).type).toBe('VOLUME_BUSY');
    expect([freezes(), creates()]).toEqual([0, 0]);
    await leavesNothing();
  });
});

describe('a VM whose disks change while its run waits', () => {
  const volumeOfVm = () => standIn.addVolume({ instance: uuid });

  it.each<[string, string, (disks: SimulatedDisk[]) => void]>([
    [
      'another volume in the place of the planned one',
      'VOLUME_MISMATCH',
      ([, , vdc]) => {
        if (vdc !== undefined) vdc.serial = volumeOfVm();
      },
    ],
    ['a disk more', 'VM_CHANGED', (disks) => void disks.push({ target: 'vdd', kind: 'rbd', serial: volumeOfVm() })],
  ])('gets no snapshot: %s', async (_, code, change) => {
    const disks = addVm({ target: 'vdc', kind: 'rbd', serial: volumeOfVm() });
    // The first question about the volume: the run has read the VM's disks, and plans.
    onRequest = (request) => {
      if (!request.startsWith('GET /volumes/')) return;
      onRequest = () => {};
      change(disks);
    };
    expect((await failureOf(snapshot())).type).toBe(code);
    expect([freezes(), creates()]).toEqual([0, 0]);
    await leavesNothing();
  });
});

describe('Cinder away', () => {
  it('before the window ends the run with nothing pending: nothing was asked of it', async () => {
    addVmOnCeph(1);
    standIn.faults.set({ path: /^\/limits$/, times: 1_000 }, { does: 'lose-request' });
    standIn.faults.set({ path: /^\/snapshots/, times: 1_000 }, { does: 'lose-request' });
    const failure = await failureOf(snapshot());
    expect(failure.type).toBe('CINDER_UNREACHABLE');
    expect(failure.message).toContain('Nothing is left of the snapshot.');
    expect(freezes()).toBe(0);
    expect(requests.filter((request) => request.includes('/snapshots'))).toEqual([]);
    await leavesNothing();
  });

  it('in the window thaws the guest, and a second window follows once it is back', async () => {
    addVmOnCeph(2);
    const downs: Promise<void>[] = [];
    const stop = host.world.onCall(({ name, uuid: of, phase }) => {
      if (of !== uuid || downs.length > 1) return;
      if (name === 'freeze' && phase === 'begins') downs.push(standIn.down());
      if (name === 'thaw' && phase === 'answered') downs.push(standIn.up());
    });
    try {
      const result = await snapshot();
      expect(result).toMatchObject({ grade: 'filesystem', window: { id: `${result.snapshotId}.2` } });
      expect(inCinder()).toHaveLength(2);
      expect(freezes()).toBe(2);
    } finally {
      stop();
      await Promise.all(downs);
    }
  });
});

describe('a cut of a volume', () => {
  it('that fails while three others do well fails the run, and nothing of the four is left', async () => {
    const [, , failing = ''] = addVmOnCeph(4);
    standIn.volumes.nextSnapshot(failing, 'fails');
    const failure = await failureOf(snapshot());
    expect(failure.type).toBe('VOLUME_SNAPSHOT_FAILED');
    expect(failure.message).toContain(failing);
    expect(failure.message).toContain('Nothing is left of the snapshot.');
    expect(creates()).toBe(4);
    await leavesNothing();
  });

  it('whose answer is lost is found again, and nothing is sent twice', async () => {
    addVmOnCeph(2);
    standIn.faults.set({ method: 'POST', path: /^\/snapshots$/ }, { does: 'lose-answer' });
    const result = await snapshot();
    expect(result).toMatchObject({ grade: 'filesystem', window: { id: `${result.snapshotId}.1` } });
    expect(creates()).toBe(2);
    expect(inCinder()).toHaveLength(2);
    expect(keepsWriteOrder(await lastNumbers(result))).toBe(true);
  });

  it('whose request comes late, after the window, is found and taken back before a second one follows', async () => {
    addVmOnCeph(1);
    const late = signalled();
    const held = standIn.faults.set(
      { method: 'POST', path: /^\/snapshots$/ },
      { does: 'hold-request', until: late.promise },
    );
    let looks = 0;
    onRequest = (request) => {
      if (request !== 'GET /snapshots/detail' || !calls.includes('thaw answered')) return;
      looks += 1;
      // Cinder carries it out when the undo has looked and found nothing.
      if (looks === 2) late.now();
    };
    const handle = await start();
    await held;
    standIn.cutConnections();
    const result = (await handle.result()) as SnapshotVmResult;
    expect(result).toMatchObject({ grade: 'filesystem', window: { id: `${result.snapshotId}.2` } });
    expect(cutsOf(vm)).toBe(2);
    expect(inCinder().map(({ metadata }) => metadata.stillpoint_window)).toEqual([result.window.id]);
  });

  it('goes on with a new token where Cinder does not take the old one any more', async () => {
    addVmOnCeph(1);
    standIn.faults.set({ method: 'POST', path: /^\/snapshots$/ }, { does: 'answer', status: 401, body: {} });
    const result = await snapshot();
    expect(result).toMatchObject({ grade: 'filesystem', window: { id: `${result.snapshotId}.1` } });
    expect(requests).toContain('POST /auth/tokens');
  });

  it('has its token renewed before the freeze where it would not outlive the window', async () => {
    addVmOnCeph(1);
    const logins: number[] = [];
    onRequest = (request) => {
      if (request === 'POST /auth/tokens') logins.push(freezes());
    };
    const lifetime = standIn.tokenLifetimeMs;
    standIn.tokenLifetimeMs = 130_000;
    standIn.faults.set({ method: 'GET', path: /^\/volumes\// }, { does: 'answer', status: 401, body: {} });
    try {
      await snapshot({ freezeTimeoutMs: 1_000, windowLimitMs: 1_000 });
      // Asked for once, because the old one was refused, and good for the window.
      expect(logins).toEqual([0]);
    } finally {
      standIn.tokenLifetimeMs = lifetime;
    }
    await snapshot({ freezeTimeoutMs: 60_000, windowLimitMs: 30_000 });
    expect(logins).toEqual([0, 1]);
    expect(freezes()).toBe(2);
  });

  it('under way when the run is cancelled is taken back, and the guest thawed at once', async () => {
    addVmOnCeph(2);
    const goOn = signalled();
    const held = standIn.faults.set(
      { method: 'POST', path: /^\/snapshots$/ },
      { does: 'hold-answer', until: goOn.promise },
    );
    const handle = await start();
    await held;
    expect(vm.frozen).toBe(true);
    await handle.cancel();
    await expect.poll(() => vm.frozen, { timeout: 10_000 }).toBe(false);
    goOn.now();
    await expect(handle.result()).rejects.toMatchObject({ cause: expect.any(CancelledFailure) });
    await leavesNothing();
  });
});

describe('a snapshot stuck in creating', () => {
  it('is pending after the undo, said with what ends it, and given up by the deletion', async () => {
    const [volume = ''] = addVmOnCeph(2);
    standIn.volumes.nextSnapshot(volume, 'sticks');
    const failure = await failureOf(snapshot({ windowLimitMs: 1_000 }));
    expect(failure.type).toBe('CLEANUP_PENDING');
    const [stuck, ...others] = inCinder();
    expect(others).toEqual([]);
    expect(failure.message).toContain(`openstack volume snapshot set --state error ${stuck?.id}`);
    await isThawedAndFree();
    expect(await overlays()).toEqual([]);
    const [row] = await all.catalogue.listSnapshots({ vm: uuid, limit: 1 });
    expect(row).toMatchObject({
      state: 'cleanup-pending',
      error: { code: 'CONSISTENCY_LOST' },
      parts: [{ target: 'vdc', kind: 'volume', volume, snapshot: stuck?.id }],
    });
    await deletion(row?.snapshotId ?? '');
    await leavesNothing();
    expect((await all.catalogue.getSnapshot(row?.snapshotId ?? ''))?.state).toBe('deleted');
  });
});

describe('a run that was terminated', () => {
  async function terminatedWithItsVolumesCut(): Promise<string> {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const handle = await start();
    await held.hit;
    await expect.poll(() => inCinder().map(({ status }) => status)).toEqual(['available', 'available']);
    await handle.terminate('an administrator lost patience');
    held.release();
    const [row] = await all.catalogue.listSnapshots({ vm: uuid, limit: 1 });
    return row?.snapshotId ?? '';
  }

  it('is cleaned up in Cinder, too, by the next run', async () => {
    addVmOnCeph(2);
    const dead = await terminatedWithItsVolumesCut();
    const result = await snapshot();
    expect(result.grade).toBe('filesystem');
    expect(inCinder().map(({ metadata }) => metadata.stillpoint_snapshot)).toEqual([
      result.snapshotId,
      result.snapshotId,
    ]);
    expect(await overlays()).toHaveLength(2);
    expect((await all.catalogue.getSnapshot(dead))?.state).toBe('failed');
  });

  it('is cleaned up by the next run also where what it left fills the quota', async () => {
    addVmOnCeph(2);
    standIn.volumes.quota = { snapshots: standIn.volumes.used(standIn.project.id).snapshots + 2, gigabytes: -1 };
    try {
      await terminatedWithItsVolumesCut();
      expect(await snapshot()).toMatchObject({ grade: 'filesystem' });
    } finally {
      standIn.volumes.quota = { snapshots: -1, gigabytes: -1 };
    }
    expect(inCinder()).toHaveLength(2);
  });

  it('is cleaned up in Cinder, too, by the deletion of its snapshot', async () => {
    addVmOnCeph(2);
    const handle = await start({ snapshotId: await terminatedWithItsVolumesCut() }, 'deleteSnapshot');
    await handle.result();
    await leavesNothing();
    const { steps } = await handle.query<Progress>(PROGRESS_QUERY);
    expect(steps.map(({ name }) => name)).toContain('delete whatever its run left');
  });
});

describe('the deletion of a snapshot', () => {
  it('is pending while a volume that was made of it stands, and ends when that is gone', async () => {
    addVmOnCeph(2);
    const { snapshotId } = await snapshot();
    const [, dependedOn] = inCinder();
    const child = standIn.volumes.depend(dependedOn?.id ?? '');
    const failure = await failureOf(deletion(snapshotId));
    expect(failure.type).toBe('CLEANUP_PENDING');
    expect(failure.message).toContain('a volume was made from it');
    expect(inCinder().map(({ id }) => id)).toEqual([dependedOn?.id]);
    expect((await all.catalogue.getSnapshot(snapshotId))?.state).toBe('cleanup-pending');
    await child.remove();
    await deletion(snapshotId);
    await leavesNothing();
  });

  it('that is cancelled before it has touched anything leaves the snapshot complete, and whole', async () => {
    addVmOnCeph(1);
    const { snapshotId } = await snapshot({ disks: ['vdc'] });
    const goOn = signalled();
    const held = standIn.faults.set(
      { method: 'GET', path: /^\/snapshots\/detail$/ },
      { does: 'hold-request', until: goOn.promise },
    );
    const handle = await start({ snapshotId }, 'deleteSnapshot');
    await held;
    await handle.cancel();
    await expect(handle.result()).rejects.toMatchObject({ cause: expect.any(CancelledFailure) });
    goOn.now();
    expect(await all.catalogue.getSnapshot(snapshotId)).toMatchObject({
      state: 'complete',
      pending: [],
      parts: [{ target: 'vdc' }],
    });
    expect(inCinder()).toHaveLength(1);
    await deletion(snapshotId);
  });

  it("finds its own part without its metadata, and leaves other people's snapshots of the volume alone", async () => {
    const [volume = ''] = addVmOnCeph(1);
    const { snapshotId } = await snapshot();
    const [ours] = inCinder();
    if (ours !== undefined) ours.metadata = {};
    const theirs = standIn.volumes.create({
      projectId: standIn.project.id,
      volumeId: volume,
      name: 'theirs',
      description: '',
      metadata: { stillpoint_installation: 'another', stillpoint_snapshot: snapshotId },
      inUse: true,
    });
    await deletion(snapshotId);
    expect(inCinder().map(({ id }) => id)).toEqual([theirs.id]);
  });
});
