import { randomUUID } from 'node:crypto';
import { type DoctorReport, type JudgedFinding, TASK_QUEUE, workflowIdOf } from '@stillpoint/workflows';
import { Worker } from '@temporalio/worker';
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest';
import { type Call, fails, ScriptedActivities, signalled } from './fixtures/scripted-activities.js';
import { type TemporalWorld, temporalWorld } from './fixtures/temporal.js';

/** The flow of `reconcile` alone, over activities that do what a test says. */

let world: TemporalWorld;
let worker: Worker;
let running: Promise<void>;
const scripted = new ScriptedActivities();

let vm: string;
let snapshotId: string;
let doctorId: string;

beforeAll(async () => {
  world = await temporalWorld();
  worker = await Worker.create({
    connection: world.connection,
    taskQueue: TASK_QUEUE,
    workflowBundle: { codePath: world.bundlePath },
    activities: scripted.activities(),
    maxHeartbeatThrottleInterval: 100,
  });
  running = worker.run();
});

afterAll(async () => {
  worker.shutdown();
  await running;
  await world.close();
});

beforeEach(() => {
  vm = randomUUID();
  snapshotId = randomUUID();
  doctorId = `doctor-${randomUUID()}`;
});

function finding(repair?: JudgedFinding['repair']): JudgedFinding {
  const of = {
    code: 'RUN_GONE',
    about: { vm: { uuid: vm, name: 'web-1' }, snapshotId },
    text: 'It is gone.',
    advice: 'Wait.',
  } as const;
  return { ...of, ...(repair && { repair }) };
}

const cleanUp = () => finding({ kind: 'clean-up', vm, snapshotId });
const reservation = () => finding({ kind: 'reservation', vm, host: 'kvm-01', operation: snapshotId, window: '' });

async function start(findings: JudgedFinding[], input?: { repair: boolean }) {
  scripted.script(doctorId, {
    examine: async () => ({
      at: '2026-11-21T12:00:00.000Z',
      looked: { hosts: 1, snapshots: 2, overlays: 3, volumeSnapshots: 4 },
      findings,
      omitted: 0,
    }),
  });
  const args = input === undefined ? [] : [input];
  return await world.client.workflow.start('reconcile', { taskQueue: TASK_QUEUE, workflowId: doctorId, args });
}

async function reconciled(findings: JudgedFinding[], input?: { repair: boolean }): Promise<DoctorReport> {
  return (await (await start(findings, input)).result()) as DoctorReport;
}

const names = (calls: Call[]) => calls.map(({ name }) => name);

it('carries each repair out under the id of its VM, one after another, and tells what is left', async () => {
  const calls = scripted.script(workflowIdOf(vm));
  const { findings, looked } = await reconciled([cleanUp(), reservation(), finding()], { repair: true });
  expect(findings.map(({ outcome }) => outcome)).toEqual(['repaired', 'repaired', 'for-a-person']);
  expect(findings[0]).not.toHaveProperty('repair');
  expect(looked).toEqual({ hosts: 1, snapshots: 2, overlays: 3, volumeSnapshots: 4 });
  expect(names(calls)).toEqual(['acceptDelete', 'deleteParts', 'closeDelete', 'release', 'removeLeftover']);
  expect(calls[0]?.request).toEqual({ vm, snapshotId, leftoversOnly: true, provenDead: true });
  const { typedSearchAttributes } = await world.client.workflow.getHandle(doctorId).describe();
  expect(typedSearchAttributes.getAll().find(({ key }) => key.name === 'StillpointFindings')?.value).toBe(1);
});

it.each([undefined, { repair: false }])('repairs nothing with %j', async (input) => {
  const calls = scripted.script(workflowIdOf(vm));
  const { findings, repair } = await reconciled([cleanUp()], input);
  expect(findings.map(({ outcome }) => outcome)).toEqual(['repairable']);
  expect(repair).toBe(false);
  expect(calls).toEqual([]);
});

it('tells a repair that failed and why, and goes on with the next', async () => {
  scripted.script(workflowIdOf(vm), {
    acceptDelete: async () => {
      throw fails('SNAPSHOT_STATE', 'Nothing of it is left over.');
    },
  });
  const { findings } = await reconciled([cleanUp(), reservation()], { repair: true });
  expect(findings.map(({ outcome }) => outcome)).toEqual(['not-repaired', 'repaired']);
  expect(findings[0]?.detail).toContain('Nothing of it is left over');
});

it.each([
  [],
  [null],
  [7],
  ['x'.repeat(100_000)],
  [{}],
  [{ kind: 'reservation', host: { a: 1 } }],
  [{ kind: 'volume-snapshot', snapshotId: 'x'.repeat(5_000), volumeSnapshot: 'é'.repeat(5_000) }],
])('a repair that somebody starts with any other input ends, refused by its first step: %#', async (...args) => {
  const calls = scripted.script(workflowIdOf(vm), {
    removeLeftover: async () => {
      throw fails('INPUT_INVALID', 'It is not valid.');
    },
  });
  const options = { taskQueue: TASK_QUEUE, workflowId: workflowIdOf(vm), args };
  await expect(world.client.workflow.execute('removeLeftover', options)).rejects.toMatchObject({
    cause: { type: 'INPUT_INVALID' },
  });
  expect(names(calls)).toEqual(['removeLeftover']);
});

it('gives way to a run of the VM that has begun meanwhile', async () => {
  const [reached, goOn] = [signalled(), signalled()];
  const calls = scripted.script(workflowIdOf(vm), {
    takeWindowSlot: async () => {
      reached.now();
      await goOn.promise;
    },
  });
  const snapshot = await world.client.workflow.start('snapshotVm', {
    taskQueue: TASK_QUEUE,
    workflowId: workflowIdOf(vm),
    args: [{ vm, snapshotId: randomUUID() }],
  });
  await reached.promise;
  const { findings } = await reconciled([cleanUp()], { repair: true });
  expect(findings).toMatchObject([
    { outcome: 'not-repaired', detail: expect.stringContaining('Another run of this VM') },
  ]);
  goOn.now();
  await snapshot.result();
  expect(names(calls)).not.toContain('acceptDelete');
});

it('leaves a repair that is under way to its end when it is terminated itself', async () => {
  const [reached, goOn] = [signalled(), signalled()];
  scripted.script(workflowIdOf(vm), {
    removeLeftover: async () => {
      reached.now();
      await goOn.promise;
      return { removed: true };
    },
  });
  const doctor = await start([reservation()], { repair: true });
  await reached.promise;
  await doctor.terminate('an administrator lost patience');
  goOn.now();
  expect(await world.client.workflow.getHandle(workflowIdOf(vm)).result()).toEqual({ removed: true });
});
