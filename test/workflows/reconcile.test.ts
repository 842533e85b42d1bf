import { randomUUID } from 'node:crypto';
import type { Cloud } from '@stillpoint/engine/activities/deps.js';
import type { Catalogue } from '@stillpoint/engine/catalogue/catalogue.js';
import { CatalogueError } from '@stillpoint/engine/catalogue/errors.js';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { keepSchedule, scheduleIdOf, TemporalDoctor } from '@stillpoint/engine/temporal/doctor.js';
import type { SimulatedVm } from '@stillpoint/host-agent/simulated/vm.js';
import { type CinderStandIn, startCinderStandIn } from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import type { StandInSnapshot } from '@stillpoint/lab/cinder-stand-in/volumes.js';
import {
  type DoctorReport,
  type Finding,
  type SnapshotVmInput,
  type SnapshotVmResult,
  TASK_QUEUE,
  workflowIdOf,
} from '@stillpoint/workflows';
import { WorkflowFailedError, type WorkflowHandle } from '@temporalio/client';
import { ApplicationFailure } from '@temporalio/common';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type Installation, installation, type SimulatedHost } from './fixtures/installation.js';
import { signalled } from './fixtures/scripted-activities.js';

/** The reconciler over a real Temporal server, catalogue and host agent; guests and Cinder are stand-ins. */

let all: Installation;
let host: SimulatedHost;
let standIn: CinderStandIn;
let cloud: Cloud;
let vm: SimulatedVm;
let uuid: string;
let volumes: string[];
let installationId: string;
/** Rows that the catalogue has lost. */
const lost = new Set<string>();
/** Writes that it has lost, and yet had answered: a standby that lacked them took over, or it was restored from a backup made before. */
const lostWrites = new Set<keyof Catalogue>();
/** What happens as soon as a deletion has the row. */
let onceDeleting: (() => Promise<unknown>) | undefined;

beforeAll(async () => {
  standIn = await startCinderStandIn({ times: { acceptMs: 2, cutMs: 20, availableMs: 30, deleteMs: 5 } });
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
    rpcTimeoutMs: 300,
  };
  all = await installation({ cloud, settings: { hostPatienceMs: 500 }, seenAs: forgetful });
  installationId = await all.catalogue.installationId();
  host = await all.addHost('kvm-01', []);
});

afterAll(async () => {
  await all.close();
  await cloud.cinder.close();
  await standIn.close();
});

beforeEach(() => {
  uuid = randomUUID();
  addVm(host);
});

afterEach(() => {
  standIn.faults.clear();
  lostWrites.clear();
  onceDeleting = undefined;
});

function addVm(on: SimulatedHost): void {
  volumes = [standIn.addVolume({ instance: uuid }), standIn.addVolume({ instance: uuid })];
  vm = on.world.addVm({
    name: `web-${uuid.slice(0, 8)}`,
    uuid,
    disks: [
      { target: 'vda' },
      { target: 'vdb' },
      ...volumes.map((serial, at) => ({ target: `vd${'cd'[at]}`, kind: 'rbd' as const, serial })),
    ],
  });
}

/** The catalogue as one restored from a backup that is older than some of its rows. */
function forgetful(catalogue: Catalogue): Catalogue {
  return new Proxy(catalogue, {
    get(target, name) {
      if (name === 'getSnapshot') return async (id: string) => (lost.has(id) ? undefined : target.getSnapshot(id));
      if (name === 'listSnapshots') {
        return async (query: Parameters<Catalogue['listSnapshots']>[0]) =>
          (await target.listSnapshots(query)).filter(({ snapshotId }) => !lost.has(snapshotId));
      }
      if (lostWrites.has(name as keyof Catalogue)) return async () => true;
      if (name === 'beginDeleting') {
        return async (...asked: Parameters<Catalogue['beginDeleting']>) => {
          const began = await target.beginDeleting(...asked);
          await onceDeleting?.();
          return began;
        };
      }
      const value: unknown = Reflect.get(target, name);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

function start(asked: Partial<SnapshotVmInput> = {}, workflowType = 'snapshotVm'): Promise<WorkflowHandle> {
  return all.temporal.client.workflow.start(workflowType, {
    taskQueue: TASK_QUEUE,
    workflowId: workflowIdOf(uuid),
    args: [{ vm: uuid, ...asked }],
  });
}

async function snapshot(): Promise<SnapshotVmResult> {
  return (await (await start()).result()) as SnapshotVmResult;
}

async function reconcile(repair: boolean): Promise<DoctorReport> {
  return (await all.temporal.client.workflow.execute('reconcile', {
    taskQueue: TASK_QUEUE,
    workflowId: `doctor-${randomUUID()}`,
    args: [{ repair }],
  })) as DoctorReport;
}

/** What a look finds of this test's VM: each test has its own. */
async function found(repair = false): Promise<Finding[]> {
  return (await reconcile(repair)).findings.filter(({ about }) => about.vm?.uuid === uuid);
}

const told = (findings: Finding[]) => findings.map(({ code, outcome }) => `${code} ${outcome}`);

function inCinder(): StandInSnapshot[] {
  return standIn.volumes.snapshots().filter(({ volumeId }) => volumes.includes(volumeId));
}

async function overlays(on = host): Promise<string[]> {
  const files = await on.world.images.listOverlays('/var/lib/libvirt/images');
  return files.filter((file) => file.includes(vm.name));
}

async function rowOf(snapshotId: string) {
  const row = await all.catalogue.getSnapshot(snapshotId);
  if (row === undefined) throw new Error(`no row ${snapshotId}`);
  return row;
}

async function theRow() {
  const states = ['running', 'recording', 'undoing', 'deleting', 'complete', 'failed', 'deleted'] as const;
  const [row] = await all.catalogue.listSnapshots({ vm: uuid, states, limit: 1 });
  if (row === undefined) throw new Error('no row');
  return row;
}

async function holder(name = 'kvm-01'): Promise<string> {
  return (await all.hosts.host(name).getVm(uuid)).hold.operation;
}

/** All that a repair could change. */
async function everything(): Promise<unknown> {
  return {
    row: await theRow(),
    overlays: await overlays(),
    inCinder: inCinder().map(({ id }) => id),
    holder: await holder(),
  };
}

async function leavesNothing(on = host): Promise<void> {
  expect(inCinder()).toEqual([]);
  expect(await overlays(on)).toEqual([]);
  expect(vm.frozen).toBe(false);
  expect(await holder(on.name)).toBe('');
}

/** Terminated with every disk cut and the guest frozen; its host thaws it. */
async function terminatedInItsWindow(on = host): Promise<string> {
  const before = inCinder().length;
  const held = on.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
  const handle = await start();
  await held.hit;
  await expect.poll(() => inCinder().filter(({ status }) => status === 'available').length).toBe(before + 2);
  await handle.terminate('an administrator lost patience');
  held.release();
  await expect.poll(() => vm.frozen, { timeout: 10_000 }).toBe(false);
  return (await theRow()).snapshotId;
}

describe('a run that was terminated', () => {
  it('in its window is told by a look, which changes nothing, and taken back by a repair, which finds nothing to do when repeated', async () => {
    const snapshotId = await terminatedInItsWindow();
    const before = await everything();
    expect(before).toMatchObject({ row: { state: 'running' }, holder: snapshotId });
    expect(told(await found())).toEqual(['RUN_GONE repairable']);
    expect(await everything()).toEqual(before);

    const [repaired] = await found(true);
    expect(repaired).toMatchObject({ code: 'RUN_GONE', outcome: 'repaired', about: { snapshotId, host: 'kvm-01' } });
    await leavesNothing();
    expect((await rowOf(snapshotId)).state).toBe('deleted');
    expect(await found(true)).toEqual([]);
    expect(await snapshot()).toMatchObject({ grade: 'filesystem' });
  });

  it('is taken back by a repair whose first step is repeated after it has the row', async () => {
    const snapshotId = await terminatedInItsWindow();
    onceDeleting = () => {
      onceDeleting = undefined;
      throw new CatalogueError('CATALOGUE_UNAVAILABLE', 'its answer was lost');
    };
    expect(told(await found(true))).toEqual(['RUN_GONE repaired']);
    expect(onceDeleting).toBeUndefined();
    await leavesNothing();
    expect((await rowOf(snapshotId)).state).toBe('deleted');
  });

  it('after its window, while it recorded, is taken back too', async () => {
    const goOn = signalled();
    const stop = host.world.onCall(({ name, uuid: of, phase }) => {
      if (of !== uuid || name !== 'thaw' || phase !== 'answered') return;
      stop();
      standIn.faults.set({ path: /^\/snapshots\/detail/ }, { does: 'hold-request', until: goOn.promise });
    });
    const handle = await start();
    await expect
      .poll(async () => (await theRow().catch(() => undefined))?.state, { timeout: 20_000 })
      .toBe('recording');
    await handle.terminate('its history was lost');
    expect((await theRow()).state).toBe('recording');
    expect(told(await found(true))).toEqual(['RUN_GONE repaired']);
    // Whatever its worker still meant to do with the answer: it comes second.
    goOn.now();
    await leavesNothing();
    expect((await theRow()).state).toBe('deleted');
  });

  it('on a host that is away is told and left, with all that the host has, and repaired when the host came back', async () => {
    const other = await all.addHost('kvm-02', []);
    uuid = randomUUID();
    addVm(other);
    const whole = await snapshot();
    await terminatedInItsWindow(other);
    const moved = async (address: string) => {
      await all.catalogue.markHostLost('kvm-02');
      await all.catalogue.addHost({ name: 'kvm-02', address });
    };
    await moved('127.0.0.1:1');
    const report = await reconcile(true);
    expect(report.findings.filter(({ code }) => code === 'HOST_AWAY').map(({ about }) => about.host)).toEqual([
      'kvm-02',
    ]);
    expect(told(report.findings.filter(({ about }) => about.vm?.uuid === uuid))).toEqual(['RUN_GONE for-a-person']);
    await moved(other.address);
    expect(told(await found(true))).toEqual(['RUN_GONE repaired']);
    expect(await found()).toEqual([]);
    expect(inCinder().map(({ metadata }) => metadata.stillpoint_snapshot)).toEqual([
      whole.snapshotId,
      whole.snapshotId,
    ]);
    expect(await overlays(other)).toHaveLength(2);
  });

  it('is left alone while a run of its VM is open, and that run is left alone, too', async () => {
    await terminatedInItsWindow();
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const handle = await start();
    await held.hit;
    expect(await found(true)).toEqual([]);
    held.release();
    expect(await handle.result()).toMatchObject({ grade: 'filesystem' });
    expect(await found()).toEqual([]);
  });
});

describe('a catalogue that has lost a row', () => {
  it('is told with all that the snapshot has, of which nothing is touched', async () => {
    const { snapshotId } = await snapshot();
    const [files, snapshots] = [await overlays(), inCinder()];
    lost.add(snapshotId);
    const findings = await found(true);
    expect(told(findings).sort()).toEqual([
      'OVERLAY_UNCLAIMED for-a-person',
      'OVERLAY_UNCLAIMED for-a-person',
      'VOLUME_SNAPSHOT_UNKNOWN for-a-person',
      'VOLUME_SNAPSHOT_UNKNOWN for-a-person',
    ]);
    expect(findings.map(({ about }) => about.thing).sort()).toEqual(
      [...files, ...snapshots.map(({ id }) => id)].sort(),
    );
    expect(await overlays()).toEqual(files);
    expect(inCinder()).toEqual(snapshots);
    lost.delete(snapshotId);
    expect(await found()).toEqual([]);
  });

  it('keeps the VM of a run that died in its window held, until a person has looked', async () => {
    const snapshotId = await terminatedInItsWindow();
    lost.add(snapshotId);
    const heldBy = (await found(true)).filter(({ code }) => code === 'VM_HELD');
    expect(told(heldBy)).toEqual(['VM_HELD for-a-person']);
    expect(heldBy[0]?.advice).toContain(`stillpoint-host-agent release ${vm.name}`);
    expect(await holder()).toBe(snapshotId);
    expect(await overlays()).toHaveLength(2);
    lost.delete(snapshotId);
    await found(true);
    await leavesNothing();
  });
});

describe('a catalogue that is older than the end of a run', () => {
  async function cleanedUp(snapshotId: string, more: { provenDead?: boolean } = {}): Promise<unknown> {
    return (await start({ snapshotId, leftoversOnly: true, ...more } as object, 'deleteSnapshot')).result();
  }

  /** By a report, by a repair, and by a repair that was begun for what is no more so. */
  async function isOnlyTold(snapshotId: string, status: string): Promise<void> {
    const before = await everything();
    const findings = await found(true);
    expect(told(findings)).toEqual(['RUN_GONE for-a-person']);
    expect(findings[0]?.text).toContain(status);
    expect(findings[0]?.advice).toContain(`stillpoint snapshot cleanup ${snapshotId}`);
    const error = await cleanedUp(snapshotId, { provenDead: true }).catch((thrown: unknown) => thrown);
    const cause = error instanceof WorkflowFailedError ? error.cause : undefined;
    expect(cause instanceof ApplicationFailure && cause.type).toBe('SNAPSHOT_STATE');
    expect(await everything()).toEqual(before);
  }

  it.each<['running' | 'recording', (keyof Catalogue)[]]>([
    ['running', ['beginRecording', 'record']],
    ['recording', ['record']],
  ])(
    'tells a snapshot that was recorded and is %s again, touches nothing of it, and cleans it up for who asks for that',
    async (state, writes) => {
      for (const write of writes) lostWrites.add(write);
      const { snapshotId } = await snapshot();
      lostWrites.clear();
      expect((await rowOf(snapshotId)).state).toBe(state);
      expect(await overlays()).toHaveLength(2);
      expect(inCinder()).toHaveLength(2);
      await isOnlyTold(snapshotId, 'COMPLETED');
      await cleanedUp(snapshotId);
      await leavesNothing();
      expect((await rowOf(snapshotId)).state).toBe('deleted');
    },
  );

  it('touches nothing of a snapshot that a cancelled deletion had left whole', async () => {
    const { snapshotId } = await snapshot();
    lostWrites.add('abandonDeleting');
    onceDeleting = () => all.temporal.client.workflow.getHandle(workflowIdOf(uuid)).cancel();
    const deletion = await start({ snapshotId }, 'deleteSnapshot');
    await expect(deletion.result()).rejects.toThrow(WorkflowFailedError);
    expect((await deletion.describe()).status.name).toBe('CANCELLED');
    lostWrites.clear();
    onceDeleting = undefined;
    expect((await rowOf(snapshotId)).state).toBe('deleting');
    await isOnlyTold(snapshotId, 'CANCELLED');
    expect(await overlays()).toHaveLength(2);
    expect(inCinder()).toHaveLength(2);
  });

  it('touches nothing of a snapshot whose grade Cinder has, though its run was terminated', async () => {
    const snapshotId = await terminatedInItsWindow();
    const [part] = inCinder();
    await cloud.cinder.describeSnapshot(part?.id ?? '', { metadata: { stillpoint_grade: 'filesystem' } });
    await isOnlyTold(snapshotId, part?.id ?? 'a part');
    await cleanedUp(snapshotId);
    await leavesNothing();
  });

  it('touches nothing, and waits for nobody, where Cinder does not say whether it has a grade', async () => {
    const snapshotId = await terminatedInItsWindow();
    standIn.faults.set({ path: /^\/snapshots\/detail/, times: 1_000 }, { does: 'answer', status: 503, body: {} });
    const error = await cleanedUp(snapshotId, { provenDead: true }).catch((thrown: unknown) => thrown);
    const cause = error instanceof WorkflowFailedError ? error.cause : undefined;
    expect(cause instanceof ApplicationFailure && cause.type).toBe('SNAPSHOT_STATE');
    expect((await rowOf(snapshotId)).state).toBe('running');
    standIn.faults.clear();
    expect(told(await found(true))).toEqual(['RUN_GONE repaired']);
    await leavesNothing();
  });
});

describe('a snapshot in Cinder that no snapshot has', () => {
  async function failedSnapshot(): Promise<string> {
    standIn.volumes.nextSnapshot(volumes[0] ?? '', 'fails');
    await expect(snapshot()).rejects.toThrow(WorkflowFailedError);
    const row = await theRow();
    expect(row.state).toBe('failed');
    return row.snapshotId;
  }

  function left(metadata: Record<string, string>): string {
    const [volumeId = ''] = volumes;
    const name = `nightly (${vm.name} vdc)`;
    return standIn.volumes.create({
      projectId: standIn.project.id,
      volumeId,
      name,
      description: '',
      metadata,
      inUse: true,
    }).id;
  }

  it("is deleted where it is ours and its row says so; another installation's, and a stranger's, are neither told nor touched", async () => {
    const snapshotId = await failedSnapshot();
    const metadata = { stillpoint_snapshot: snapshotId, stillpoint_window: `${snapshotId}.1`, stillpoint_vm: uuid };
    const ours = left({ ...metadata, stillpoint_installation: installationId });
    const anothers = left({ ...metadata, stillpoint_installation: randomUUID() });
    const strangers = left({});
    await expect.poll(() => inCinder().map(({ status }) => status)).toEqual(['available', 'available', 'available']);

    const findings = await found();
    expect(told(findings)).toEqual(['VOLUME_SNAPSHOT_LEFT repairable']);
    expect(findings[0]?.about.thing).toBe(ours);
    expect(inCinder()).toHaveLength(3);
    expect(told(await found(true))).toEqual(['VOLUME_SNAPSHOT_LEFT repaired']);
    expect(
      inCinder()
        .map(({ id }) => id)
        .sort(),
    ).toEqual([anothers, strangers].sort());
    expect(await found(true)).toEqual([]);
  });

  it('of a deleted snapshot stays where something depends on it, and the report says so', async () => {
    const { snapshotId } = await snapshot();
    await (await start({ snapshotId }, 'deleteSnapshot')).result();
    const ours = left({ stillpoint_installation: installationId, stillpoint_snapshot: snapshotId });
    const child = standIn.volumes.depend(ours);
    const [finding] = await found(true);
    expect(finding).toMatchObject({
      outcome: 'not-repaired',
      detail: expect.stringContaining('a volume was made from it'),
    });
    expect(inCinder()).toHaveLength(1);
    await child.remove();
    expect(told(await found(true))).toEqual(['VOLUME_SNAPSHOT_LEFT repaired']);
    expect(inCinder()).toEqual([]);
  });

  it('is proven again before it is deleted: what a recorded snapshot has, or is not ours, stays', async () => {
    const { snapshotId } = await snapshot();
    const [part] = inCinder();
    const strangers = left({ stillpoint_installation: randomUUID(), stillpoint_snapshot: snapshotId });
    for (const volumeSnapshot of [part?.id, strangers]) {
      const leftover = { kind: 'volume-snapshot', vm: uuid, snapshotId, volumeSnapshot };
      const handle = await all.temporal.client.workflow.start('removeLeftover', {
        taskQueue: TASK_QUEUE,
        workflowId: workflowIdOf(uuid),
        args: [leftover],
      });
      expect(await handle.result()).toEqual({ removed: false });
    }
    expect(inCinder()).toHaveLength(3);
  });
});

describe('a reservation', () => {
  it('of a snapshot that was recorded is given back, and the snapshot stays whole', async () => {
    const { snapshotId } = await snapshot();
    await all.hosts.host('kvm-01').prepare({
      vm: uuid,
      operation: snapshotId,
      window: `${snapshotId}.2`,
      installation: installationId,
      localDisks: [],
      setDisks: ['vda'],
      unquiescedDisks: [],
      quiesce: 'skip',
      windowLimitMs: 0,
    });
    expect(told(await found())).toEqual(['VM_HELD repairable']);
    expect(await holder()).toBe(snapshotId);
    expect(told(await found(true))).toEqual(['VM_HELD repaired']);
    expect(await holder()).toBe('');
    expect(await found(true)).toEqual([]);
    expect((await rowOf(snapshotId)).state).toBe('complete');
    expect(await overlays()).toHaveLength(2);
  });
});

describe('a recorded snapshot', () => {
  it('with a part missing is told, and never touched', async () => {
    const { snapshotId } = await snapshot();
    const [gone, kept] = inCinder();
    standIn.volumes.delete(gone?.id ?? '');
    await expect.poll(() => inCinder().length).toBe(1);
    const [finding, ...others] = await found(true);
    expect(others).toEqual([]);
    expect(finding).toMatchObject({
      code: 'SNAPSHOT_NOT_WHOLE',
      outcome: 'for-a-person',
      text: expect.stringContaining(gone?.id ?? ''),
    });
    expect((await rowOf(snapshotId)).state).toBe('complete');
    expect(inCinder().map(({ id }) => id)).toEqual([kept?.id]);
    expect(await overlays()).toHaveLength(2);
  });

  it('is not deleted by a clean-up that comes too late: only what a run has left is', async () => {
    const { snapshotId } = await snapshot();
    const run = (
      await start({ snapshotId, leftoversOnly: true } as Partial<SnapshotVmInput>, 'deleteSnapshot')
    ).result();
    const error = await run.catch((thrown: unknown) => thrown);
    const cause = error instanceof WorkflowFailedError ? error.cause : undefined;
    expect(cause instanceof ApplicationFailure && cause.type).toBe('SNAPSHOT_STATE');
    expect((await rowOf(snapshotId)).state).toBe('complete');
    expect(inCinder()).toHaveLength(2);
  });
});

describe('the schedule', () => {
  const log = pino({ level: 'silent' });
  const signal = new AbortController().signal;
  const keep = (everyMs: number) => keepSchedule(all.temporal.client, { installationId, everyMs, log, signal });

  it('is one, whoever makes it how often; it follows the setting, and what an administrator has paused stays so', async () => {
    await Promise.all([keep(3_600_000), keep(3_600_000)]);
    const schedule = all.temporal.client.schedule.getHandle(scheduleIdOf(installationId));
    await schedule.pause('not tonight');
    await keep(7_200_000);
    const { spec, state, policies, action } = await schedule.describe();
    expect(spec.intervals?.map(({ every }) => every)).toEqual([7_200_000]);
    expect(state.paused).toBe(true);
    expect(policies.overlap).toBe('SKIP');
    expect(action).toMatchObject({ workflowType: 'reconcile', taskQueue: TASK_QUEUE, args: [{ repair: true }] });
    const ids: string[] = [];
    for await (const { scheduleId } of all.temporal.client.schedule.list()) ids.push(scheduleId);
    expect(ids.filter((id) => id.startsWith('stillpoint-')).length).toBeLessThanOrEqual(1);
    await schedule.delete();
  });

  it('repairs, and its last report is told', async () => {
    const snapshotId = await terminatedInItsWindow();
    const doctor = new TemporalDoctor(all.temporal.client, installationId);
    expect(await doctor.last()).toBeUndefined();
    await keep(3_600_000);
    const schedule = all.temporal.client.schedule.getHandle(scheduleIdOf(installationId));
    await schedule.trigger();
    await expect
      .poll(() => doctor.last(), { timeout: 30_000 })
      .toMatchObject({ state: 'done', report: { repair: true } });
    const report = (await doctor.last())?.report;
    expect(report?.findings.filter(({ about }) => about.snapshotId === snapshotId)).toMatchObject([
      { code: 'RUN_GONE', outcome: 'repaired' },
    ]);
    await leavesNothing();
    await schedule.delete();
  });

  it('is followed as one that a person asks for: running, then done with its report', async () => {
    const doctor = new TemporalDoctor(all.temporal.client, installationId);
    const { id, state } = await doctor.start(randomUUID(), { repair: false });
    expect(state).toBe('running');
    const ended = await doctor.run(id, AbortSignal.timeout(30_000));
    expect(ended).toMatchObject({ id, state: 'done', error: null, report: { repair: false } });
    expect(await doctor.run(workflowIdOf(uuid))).toBeUndefined();
    const refused = await doctor.start(randomUUID(), { repair: 'yes' as never });
    expect(await doctor.run(refused.id, AbortSignal.timeout(30_000))).toMatchObject({
      state: 'failed',
      error: { code: 'INPUT_INVALID' },
      report: null,
    });
  });
});
