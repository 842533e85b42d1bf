import { randomUUID } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { installRuntime } from '@stillpoint/engine/temporal/runtime.js';
import { TASK_QUEUE, workflowIdOf } from '@stillpoint/workflows';
import { CancelledFailure } from '@temporalio/common';
import { temporal } from '@temporalio/proto';
import { type History, Worker } from '@temporalio/worker';
import { DeterminismViolationError } from '@temporalio/workflow';
import { pino } from 'pino';
import { beforeAll, describe, expect, inject, it } from 'vitest';
import {
  fails,
  heldVerdict,
  localOnly,
  lostVerdict,
  type Script,
  ScriptedActivities,
  signalled,
  untilToldToStop,
  volumesOnly,
} from './fixtures/scripted-activities.js';
import { temporalWorld } from './fixtures/temporal.js';

/** Stored histories: see histories/README.md. */
const folder = fileURLToPath(new URL('histories/', import.meta.url));

interface Recorded {
  workflowType?: 'deleteSnapshot' | 'snapshotDisks' | 'reconcile' | 'removeLeftover';
  input?: Record<string, unknown>;
  /** `reached` is for the step in which the run is then cancelled. */
  script: (reached: () => void) => Script;
  cancelled?: true;
}

/** What the reconciler's child deletes. */
const cleanedUp = { vm: '57111900-0000-4000-8000-000000000001', snapshotId: '57111900-0000-4000-8000-000000000002' };

const branches: Record<string, Recorded> = {
  recorded: { script: () => ({}) },
  'second-window': {
    script: () => ({
      thawFileSystems: async ({ window }) =>
        window.endsWith('.1') ? lostVerdict(window, 'HOLD_BROKEN') : heldVerdict(window),
    }),
  },
  'best-effort-unfrozen': {
    input: { quiesce: 'best-effort' },
    script: () => ({
      freezeFileSystems: async () => {
        throw fails('AGENT_NOT_CONNECTED');
      },
      thawFileSystems: async ({ window }) => lostVerdict(window, 'NEVER_FROZEN'),
    }),
  },
  'consistency-lost': { script: () => ({ thawFileSystems: async ({ window }) => lostVerdict(window, 'LIMIT') }) },
  'cancelled-in-the-cut': {
    script: (reached) => ({
      snapshotLocalDisks: async () => {
        reached();
        await untilToldToStop();
        throw new CancelledFailure('stopped');
      },
      thawFileSystems: async ({ window }) => lostVerdict(window, 'THAWED_EARLY'),
    }),
    cancelled: true,
  },
  'prepare-refused': {
    script: () => ({
      prepare: async () => {
        throw fails('NO_SPACE');
      },
    }),
  },
  'recorded-by-the-host': { script: () => localOnly },
  'recorded-disks': { workflowType: 'snapshotDisks', script: () => volumesOnly },
  'volume-failed': {
    script: () => ({
      snapshotVolume: async () => {
        throw fails('VOLUME_SNAPSHOT_FAILED', 'Its status is error.', { outcome: 'none' });
      },
      thawFileSystems: async ({ window }) => lostVerdict(window, 'CUT_FAILED'),
    }),
  },
  deleted: { workflowType: 'deleteSnapshot', script: () => ({}) },
  'leftover-removed': {
    workflowType: 'removeLeftover',
    input: { kind: 'reservation', host: 'kvm-01', operation: cleanedUp.snapshotId, window: '' },
    script: () => ({}),
  },
  reconciled: {
    workflowType: 'reconcile',
    input: { repair: true },
    script: () => ({
      examine: async () => ({
        at: '2026-11-21T12:00:00.000Z',
        looked: { hosts: 1, snapshots: 1, overlays: 0, volumeSnapshots: 0 },
        findings: [
          {
            code: 'RUN_GONE',
            about: { snapshotId: cleanedUp.snapshotId },
            text: 'Its run is gone.',
            advice: 'What it made is taken back.',
            repair: { kind: 'clean-up', ...cleanedUp },
          },
          { code: 'HOST_AWAY', about: { host: 'kvm-02' }, text: 'It is away.', advice: 'See.' },
        ],
        omitted: 0,
      }),
    }),
  },
};

let code: string;

beforeAll(async () => {
  installRuntime(pino({ level: 'silent' }));
  if (process.env.STILLPOINT_RECORD_HISTORIES === '1') await record();
  code = await readFile(inject('workflowBundle'), 'utf8');
});

describe("today's workflows", () => {
  it.each(Object.keys(branches))('go on from a stored run: %s', async (branch) => {
    const history = await stored(branch);
    await expect(Worker.runReplayHistory({ workflowBundle: { code } }, history)).resolves.toBeUndefined();
  });

  it('have a stored history for each branch, and no other', async () => {
    const files = (await readdir(folder)).filter((name) => name.endsWith('.json'));
    expect(files.sort()).toEqual(
      Object.keys(branches)
        .map((branch) => `${branch}.json`)
        .sort(),
    );
  });

  it('are seen to differ when they do: a history whose freeze has another name is refused', async () => {
    const changed = await stored('recorded', (text) => text.replaceAll('"freezeFileSystems"', '"freeze"'));
    await expect(Worker.runReplayHistory({ workflowBundle: { code } }, changed)).rejects.toThrow(
      DeterminismViolationError,
    );
  });
});

/** protobufjs' own JSON: the SDK's reader of the other kind does not survive three copies of protobufjs in one tree. */
async function stored(branch: string, change = (text: string) => text): Promise<History> {
  const text = await readFile(`${folder}${branch}.json`, 'utf8');
  return temporal.api.history.v1.History.fromObject(JSON.parse(change(text)));
}

async function record(): Promise<void> {
  const world = await temporalWorld();
  const scripted = new ScriptedActivities();
  const worker = await Worker.create({
    connection: world.connection,
    taskQueue: TASK_QUEUE,
    workflowBundle: { codePath: world.bundlePath },
    activities: scripted.activities(),
    maxHeartbeatThrottleInterval: 100,
  });
  scripted.script(workflowIdOf(cleanedUp.vm));
  await worker.runUntil(async () => {
    for (const [branch, { workflowType = 'snapshotVm', input, script, cancelled }] of Object.entries(branches)) {
      const vm = randomUUID();
      const workflowId = workflowIdOf(vm);
      const reached = signalled();
      scripted.script(workflowId, script(reached.now));
      const handle = await world.client.workflow.start(workflowType, {
        taskQueue: TASK_QUEUE,
        workflowId,
        args: [{ vm, snapshotId: randomUUID(), ...input }],
      });
      if (cancelled) await reached.promise.then(() => handle.cancel());
      await handle.result().catch(() => {});
      const history = withoutMachine(JSON.parse(JSON.stringify(await handle.fetchHistory())));
      await writeFile(`${folder}${branch}.json`, `${JSON.stringify(history, null, 1)}\n`);
    }
  });
  await world.close();
}

/** Identities have the host's name, stack traces its paths. */
function withoutMachine(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutMachine);
  if (typeof value !== 'object' || value === null) return value;
  const named = Object.entries(value).filter(([name]) => name !== 'stackTrace' && name !== 'identity');
  return Object.fromEntries(named.map(([name, inner]) => [name, withoutMachine(inner)]));
}
