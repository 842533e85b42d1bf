import { randomUUID } from 'node:crypto';
import {
  PROGRESS_QUERY,
  type Progress,
  type SnapshotVmInput,
  type SnapshotVmResult,
  TASK_QUEUE,
  type Undone,
  type WindowVerdict,
  workflowIdOf,
} from '@stillpoint/workflows';
import { windowOwner } from '@stillpoint/workflows/window-owner.js';
import { Context } from '@temporalio/activity';
import { WorkflowFailedError, type WorkflowHandle } from '@temporalio/client';
import { ApplicationFailure, CancelledFailure } from '@temporalio/common';
import { Worker } from '@temporalio/worker';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  type Call,
  fails,
  heldVerdict,
  localOnly,
  lostVerdict,
  noSignOfLife,
  planOf,
  type Script,
  ScriptedActivities,
  signalled,
  untilToldToStop,
  volumesOf,
  volumesOnly,
} from './fixtures/scripted-activities.js';
import { type TemporalWorld, temporalWorld } from './fixtures/temporal.js';

let world: TemporalWorld;
let worker: Worker;
let running: Promise<void>;
const scripted = new ScriptedActivities();

beforeAll(async () => {
  world = await temporalWorld();
  worker = await Worker.create({
    connection: world.connection,
    namespace: 'default',
    taskQueue: TASK_QUEUE,
    workflowBundle: { codePath: world.bundlePath },
    activities: scripted.activities(),
    maxHeartbeatThrottleInterval: 100,
    defaultHeartbeatThrottleInterval: 100,
  });
  running = worker.run();
});

afterAll(async () => {
  worker.shutdown();
  await running;
  await world.close();
});

interface Run {
  handle: WorkflowHandle;
  calls: Call[];
  names(): string[];
  input: SnapshotVmInput;
}

async function start(
  script: Script = {},
  asked: Partial<SnapshotVmInput> = {},
  workflowType = 'snapshotVm',
): Promise<Run> {
  const input = { vm: randomUUID(), snapshotId: randomUUID(), ...asked };
  const workflowId = workflowIdOf(input.vm);
  const calls = scripted.script(workflowId, script);
  const handle = await world.client.workflow.start(workflowType, { taskQueue: TASK_QUEUE, workflowId, args: [input] });
  return { handle, calls, names: () => calls.map((call) => call.name), input };
}

async function recorded(run: Run): Promise<SnapshotVmResult> {
  const result = (await run.handle.result()) as SnapshotVmResult;
  endsAsItMust(run);
  return result;
}

async function failed(run: Run): Promise<ApplicationFailure> {
  const cause = await causeOf(run);
  if (!(cause instanceof ApplicationFailure)) throw new Error(`ended by ${String(cause)}`);
  endsAsItMust(run);
  return cause;
}

async function cancelled(run: Run): Promise<string[]> {
  expect(await causeOf(run)).toBeInstanceOf(CancelledFailure);
  expect((await run.handle.describe()).status.name).toBe('CANCELLED');
  endsAsItMust(run);
  return run.names();
}

async function causeOf(run: Run): Promise<unknown> {
  const error = await run.handle.result().then(
    (result) => {
      throw new Error(`it was recorded: ${JSON.stringify(result)}`);
    },
    (thrown: unknown) => thrown,
  );
  return error instanceof WorkflowFailedError ? error.cause : error;
}

function requestsOf(run: Run, name: Call['name']): Call['request'][] {
  return run.calls.filter((call) => call.name === name).map((call) => call.request);
}

/** True of every run, however it ended. */
function endsAsItMust({ names, calls }: Run): void {
  const of = (name: string) => names().filter((called) => called === name).length;
  if (of('prepare') > 0) expect(names().at(-1)).toBe('release');
  else expect(names()).not.toContain('release');
  expect(of('takeWindowSlot')).toBe(of('giveBackWindowSlot'));
  const windows = (name: string) =>
    new Set(calls.filter((call) => call.name === name).map((call) => call.request.window));
  expect([...windows('freezeFileSystems')].filter((window) => !windows('thawFileSystems').has(window))).toEqual([]);
  // Whatever was prepared is recorded or undone.
  const settled = new Set([...windows('recordSnapshot'), ...windows('undoWindow')]);
  expect([...windows('prepare')].filter((window) => !settled.has(window))).toEqual([]);
}

describe('snapshotVm', () => {
  it('prepares, freezes, cuts, thaws, records and gives the VM back', async () => {
    const run = await start();
    const result = await recorded(run);
    expect(run.names()).toEqual([
      'acceptSnapshot',
      'takeWindowSlot',
      'prepare',
      'freezeFileSystems',
      'snapshotLocalDisks',
      'snapshotVolume',
      'thawFileSystems',
      'giveBackWindowSlot',
      'recordSnapshot',
      'release',
    ]);
    expect(result).toMatchObject({ grade: 'filesystem', partial: true, window: { ms: 54 } });
    expect(result.why).toContain('simulated');
  });

  it('says of freeze and cuts how long they took themselves, and not when Temporal heard of it', async () => {
    const run = await start();
    await recorded(run);
    const { steps } = (await run.handle.query(PROGRESS_QUERY)) as Progress;
    const timed = steps.filter(({ name }) => /^(freeze|cut)/.test(name)).map(({ ms }) => ms);
    expect(timed).toEqual([12, 20, 400]);
  });

  it('writes nothing to the history between the freeze and the thaw but the steps themselves', async () => {
    const run = await start();
    await recorded(run);
    const { events } = await run.handle.fetchHistory();
    const scheduled = (events ?? []).map((event) => event.activityTaskScheduledEventAttributes?.activityType?.name);
    const begin = scheduled.indexOf('freezeFileSystems');
    const end = scheduled.indexOf('thawFileSystems');
    const inside = (events ?? [])
      .slice(begin, end + 1)
      .filter((event) => !event.workflowTaskScheduledEventAttributes && !event.workflowTaskStartedEventAttributes)
      .filter((event) => !event.workflowTaskCompletedEventAttributes && !event.activityTaskStartedEventAttributes)
      .map(
        (event) =>
          event.activityTaskScheduledEventAttributes?.activityType?.name ??
          (event.activityTaskCompletedEventAttributes ? 'answered' : `event ${event.eventType}`),
      );
    expect(inside).toEqual([
      'freezeFileSystems',
      'snapshotLocalDisks',
      'snapshotVolume',
      'answered',
      'answered',
      'answered',
      'thawFileSystems',
    ]);
  });

  it.each([
    ['an instant of their own to disks on several storages', {}, 'per-disk'],
    ['what one transaction is worth to the disks of the host', localOnly, 'crash'],
  ])('never freezes under skip, closes the window and records %s', async (_, script, grade) => {
    const run = await start(
      { ...script, thawFileSystems: async ({ window }) => lostVerdict(window, 'NEVER_FROZEN') },
      { quiesce: 'skip' },
    );
    expect(await recorded(run)).toMatchObject({ grade, quiesce: 'skip' });
    expect(run.names()).not.toContain('freezeFileSystems');
    expect(requestsOf(run, 'snapshotLocalDisks')).toMatchObject([{ frozen: false, quiesce: 'skip' }]);
    expect(run.names().indexOf('thawFileSystems')).toBeGreaterThan(run.names().indexOf('snapshotLocalDisks'));
  });

  it('touches nothing when the request is refused', async () => {
    const run = await start({
      acceptSnapshot: async () => {
        throw fails('VM_NOT_RUNNING', 'web-1 does not run on kvm-01.');
      },
    });
    const failure = await failed(run);
    expect(failure.type).toBe('VM_NOT_RUNNING');
    expect(failure.message).toBe(
      'No snapshot was begun: web-1 does not run on kvm-01. The guest was not touched. Advice for VM_NOT_RUNNING.',
    );
    expect(run.names()).toEqual(['acceptSnapshot']);
  });

  it('undoes what prepare may have made when prepare fails, and freezes nothing', async () => {
    const run = await start({
      prepare: async () => {
        throw fails('NO_SPACE');
      },
    });
    expect((await failed(run)).type).toBe('NO_SPACE');
    expect(run.names().slice(2)).toEqual(['prepare', 'giveBackWindowSlot', 'undoWindow', 'closeSnapshot', 'release']);
  });
});

describe('a freeze that fails', () => {
  const closes = async () => {
    throw fails('WINDOW_CLOSED', 'It is closed.', { outcome: 'none' });
  };
  const noAgentVerdict = (window: string): WindowVerdict => ({
    ...lostVerdict(window, 'FREEZE_FAILED'),
    window: { id: window, ms: 0, frozenFileSystems: 0 },
  });
  const noAgent: Script = {
    freezeFileSystems: async () => {
      throw fails('AGENT_NOT_CONNECTED', 'The guest agent of web-1 is not connected.');
    },
    thawFileSystems: async ({ window }) => noAgentVerdict(window),
  };

  it('fails the run under required: thawed, undone, and saying what happened, how the guest is and what to do', async () => {
    const run = await start({ ...noAgent, snapshotLocalDisks: closes, snapshotVolume: closes });
    const failure = await failed(run);
    expect(failure.type).toBe('AGENT_NOT_CONNECTED');
    expect(failure.message).toBe(
      'Snapshot nightly of web-1 failed: The guest agent of web-1 is not connected. The guest is not frozen. ' +
        'Nothing is left of the snapshot. Advice for AGENT_NOT_CONNECTED.',
    );
    expect(run.names().slice(3).sort()).toEqual(
      [
        'freezeFileSystems',
        'snapshotLocalDisks',
        'snapshotVolume',
        'thawFileSystems',
        'giveBackWindowSlot',
        'undoWindow',
        'closeSnapshot',
        'release',
      ].sort(),
    );
    // The cuts were told that their window is closed, which is no cause of anything.
    expect(requestsOf(run, 'undoWindow')).toMatchObject([{ mayBeThere: [], mayAppear: [] }]);
  });

  it('does not say that the guest is not frozen where the freeze may still happen', async () => {
    const run = await start({
      ...noAgent,
      freezeFileSystems: async () => {
        throw fails('FREEZE_FAILED', 'The guest agent gave an unknown answer.');
      },
    });
    const { message } = await failed(run);
    expect(message).toContain('Whether the guest is frozen is not proven');
    expect(message).not.toContain('is not frozen.');
  });

  it.each<[string, string, Partial<WindowVerdict>]>([
    ['was never asked for', 'Nothing was frozen', { lostReason: 'HOLD_BROKEN', neverAsked: true }],
    ['left with its VM', 'the host agent that meets it, or starts it, thaws it', { lostReason: 'VM_MOVED' }],
    ['was found elsewhere', 'runs on kvm-02 now', { lostReason: 'VM_MOVED', thawedOn: 'kvm-02' }],
    ['was found after its host was lost', 'runs on kvm-02 now', { lostReason: 'HOST_LOST', thawedOn: 'kvm-02' }],
    ['lies in a file', 'thawed when it is restored', { lostReason: 'VM_SAVED' }],
  ])('says where the guest is whose freeze %s', async (_, sentence, changes) => {
    const run = await start({
      freezeFileSystems: async () => {
        throw fails('WINDOW_CLOSED', 'It is closed.');
      },
      thawFileSystems: async ({ window }) => ({ ...noAgentVerdict(window), ...changes }),
    });
    const { message } = await failed(run);
    expect(message).toContain(sentence);
    expect(message).not.toContain('not proven');
    expect(message).not.toContain('The guest is thawed');
    expect(run.names().filter((name) => name === 'prepare')).toHaveLength(changes.neverAsked ? 2 : 1);
  });

  it('goes on in an unfrozen window under best-effort, once the first is taken back', async () => {
    const run = await start(noAgent, { quiesce: 'best-effort' });
    const result = await recorded(run);
    expect(result).toMatchObject({ grade: 'per-disk', quiesce: 'best-effort' });
    expect(result.why).toContain('The guest agent of web-1 is not connected');
    const prepared = run.calls.filter((call) => call.name === 'prepare').map((call) => call.request);
    expect(prepared.map(({ window, quiesce }) => [window, quiesce])).toEqual([
      [`${run.input.snapshotId}.1`, 'best-effort'],
      [`${run.input.snapshotId}.2`, 'skip'],
    ]);
    expect(run.names().indexOf('undoWindow')).toBeLessThan(run.names().lastIndexOf('prepare'));
  });

  it('does not go on for a paused VM under best-effort: that allows only skip', async () => {
    const run = await start(
      {
        ...noAgent,
        freezeFileSystems: async () => {
          throw fails('VM_PAUSED');
        },
      },
      { quiesce: 'best-effort' },
    );
    expect((await failed(run)).type).toBe('VM_PAUSED');
    expect(run.names().filter((name) => name === 'prepare')).toHaveLength(1);
  });
});

describe('the verdict', () => {
  it('records a held window though the answer of its cut was lost', async () => {
    const run = await start({
      snapshotLocalDisks: () => noSignOfLife(),
    });
    expect(await recorded(run)).toMatchObject({ grade: 'filesystem' });
    expect(run.names()).not.toContain('undoWindow');
  });

  it('fails the run under required when the freeze was lost though every cut was made', async () => {
    const run = await start({ thawFileSystems: async ({ window }) => lostVerdict(window, 'LIMIT') });
    const failure = await failed(run);
    expect(failure.type).toBe('CONSISTENCY_LOST');
    expect(failure.message).toContain('The guest is thawed; it was frozen for 54 ms. Nothing is left of the snapshot.');
    expect(run.names()).not.toContain('recordSnapshot');
    expect(run.calls.find((call) => call.name === 'undoWindow')?.request.isLast).toBe(true);
  });

  it('records a lost freeze under best-effort with the grade that is left, when every cut was made', async () => {
    const run = await start(
      { thawFileSystems: async ({ window }) => lostVerdict(window, 'LIMIT') },
      { quiesce: 'best-effort' },
    );
    expect(await recorded(run)).toMatchObject({ grade: 'per-disk' });
  });

  it('undoes a lost freeze under best-effort when a cut is missing', async () => {
    const run = await start(
      {
        snapshotLocalDisks: async () => {
          throw fails('SNAPSHOT_FAILED');
        },
        thawFileSystems: async ({ window }) => lostVerdict(window, 'CUT_FAILED'),
      },
      { quiesce: 'best-effort' },
    );
    expect((await failed(run)).type).toBe('SNAPSHOT_FAILED');
    expect(run.names()).not.toContain('recordSnapshot');
  });

  it('says why the window was closed, not that a late cut found it closed', async () => {
    const run = await start({
      snapshotLocalDisks: async () => {
        throw fails('WINDOW_CLOSED');
      },
      thawFileSystems: async ({ window }) => lostVerdict(window, 'ADMINISTRATOR'),
    });
    const failure = await failed(run);
    expect(failure.type).toBe('CONSISTENCY_LOST');
    expect(failure.message).toContain('ADMINISTRATOR');
  });

  it('fails under required when the freeze held but did not cover a disk', async () => {
    const gap = { target: 'vdb', mountpoint: '', reason: 'no file system reported', accepted: false };
    const run = await start({ thawFileSystems: async ({ window }) => ({ ...heldVerdict(window), gaps: [gap] }) });
    expect((await failed(run)).type).toBe('QUIESCE_INCOMPLETE');
  });

  it('undoes everything when a part that should be there is not', async () => {
    const run = await start({ recordSnapshot: async () => ({ recorded: false, missing: 'vdb of web-1 was not cut' }) });
    const failure = await failed(run);
    expect(failure.type).toBe('CUT_MISSING');
    expect(failure.message).toContain('vdb of web-1 was not cut');
    expect(run.names().slice(-3)).toEqual(['undoWindow', 'closeSnapshot', 'release']);
  });

  it('leaves alone what somebody else decided over, and says so', async () => {
    const refuse = async (): Promise<never> => {
      throw fails('CATALOGUE_REFUSED', 'Somebody else has decided over the snapshot first.');
    };
    const run = await start({ recordSnapshot: refuse, undoWindow: refuse });
    const failure = await failed(run);
    expect(failure.type).toBe('CLEANUP_PENDING');
    expect(failure.message).toContain('Somebody else has decided');
  });

  it('says what happened to the guest also when the catalogue takes no word of it', async () => {
    const refuse = async (): Promise<never> => {
      throw fails('CATALOGUE_REFUSED', 'Somebody else has decided over the snapshot first.');
    };
    const run = await start({ recordSnapshot: refuse, undoWindow: refuse, closeSnapshot: refuse });
    const failure = await failed(run);
    expect(failure.message).toMatch(/^Snapshot nightly of web-1 failed: Somebody else has decided/);
    expect(failure.message).toContain('The guest is thawed; it was frozen for 54 ms.');
  });
});

describe('a second window', () => {
  it.each(['HOLD_BROKEN', 'HOST_AGENT_RESTARTED', 'CALLER_GONE', 'SHUTDOWN', 'NOT_HELD_IN_TIME'])(
    'follows a window lost to %s, under the same slot and only when the first is gone',
    async (reason) => {
      const run = await start({
        thawFileSystems: async ({ window }) =>
          window.endsWith('.1') ? lostVerdict(window, reason) : heldVerdict(window),
      });
      expect(await recorded(run)).toMatchObject({ grade: 'filesystem', window: { id: `${run.input.snapshotId}.2` } });
      expect(run.calls.find((call) => call.name === 'undoWindow')?.request).toMatchObject({
        window: `${run.input.snapshotId}.1`,
        isLast: false,
      });
      expect(run.names().filter((name) => name === 'takeWindowSlot')).toHaveLength(1);
    },
  );

  it('follows a worker that died in the middle of a cut', async () => {
    const run = await start({
      snapshotLocalDisks: ({ window }) =>
        window.endsWith('.1') ? noSignOfLife() : Promise.resolve({ parts: [], transactionMs: 1 }),
      thawFileSystems: async ({ window }) =>
        window.endsWith('.1') ? lostVerdict(window, 'THAWED_EARLY') : heldVerdict(window),
    });
    expect(await recorded(run)).toMatchObject({ window: { id: `${run.input.snapshotId}.2` } });
  });

  it('is never followed by a third', async () => {
    const run = await start({ thawFileSystems: async ({ window }) => lostVerdict(window, 'HOLD_BROKEN') });
    expect((await failed(run)).type).toBe('CONSISTENCY_LOST');
    expect(run.names().filter((name) => name === 'prepare')).toHaveLength(2);
  });

  it('does not follow while anything of the first is left', async () => {
    const undone: Undone = { complete: false, left: [], pending: ['vda: the VM is shut off.'] };
    const run = await start({
      thawFileSystems: async ({ window }) => lostVerdict(window, 'HOLD_BROKEN'),
      undoWindow: async () => undone,
    });
    const failure = await failed(run);
    expect(failure.type).toBe('CLEANUP_PENDING');
    expect(failure.message).toContain('Not taken back yet: vda: the VM is shut off.');
    expect(run.names().filter((name) => name === 'prepare')).toHaveLength(1);
    expect(run.calls.find((call) => call.name === 'closeSnapshot')?.request).toMatchObject({
      state: 'cleanup-pending',
    });
  });

  it.each(['LIMIT', 'STATUS_NOT_FROZEN', 'ADMINISTRATOR', 'COUNT_MISMATCH'])(
    'does not follow a window lost to %s: the next would be no better',
    async (reason) => {
      const run = await start({ thawFileSystems: async ({ window }) => lostVerdict(window, reason) });
      await failed(run);
      expect(run.names().filter((name) => name === 'prepare')).toHaveLength(1);
    },
  );

  it('may still go unfrozen under best-effort, which is not counted as a try', async () => {
    const run = await start(
      {
        freezeFileSystems: async ({ window }) => {
          if (window.endsWith('.1')) throw fails('HOST_UNREACHABLE');
          throw fails('AGENT_NOT_RESPONDING');
        },
        thawFileSystems: async ({ window }) => lostVerdict(window, 'NEVER_FROZEN'),
      },
      { quiesce: 'best-effort' },
    );
    expect(await recorded(run)).toMatchObject({ grade: 'per-disk', window: { id: `${run.input.snapshotId}.3` } });
  });
});

describe('the freeze and the cuts', () => {
  it.each(['freezeFileSystems', 'snapshotLocalDisks'] as const)(
    '%s is tried once, whatever its failure',
    async (step) => {
      const run = await start({
        [step]: async () => {
          throw ApplicationFailure.create({ type: 'HYPERVISOR_BUSY', message: 'busy', nonRetryable: false });
        },
        thawFileSystems: async ({ window }: { window: string }) => lostVerdict(window, 'CUT_FAILED'),
      } as Script);
      expect((await failed(run)).type).toBe('HYPERVISOR_BUSY');
      expect(run.names().filter((name) => name === step)).toHaveLength(1);
    },
  );
});

describe('the cuts of a set on the host and on Ceph', () => {
  const twoVolumes: Script = {
    acceptSnapshot: async (input) => ({
      ...planOf(input),
      setDisks: ['vda', 'vdb', 'vdc', 'vdd'],
      volumes: volumesOf('vdc', 'vdd'),
    }),
  };
  const closed = (window: string) => lostVerdict(window, 'CUT_FAILED');

  it.each([
    ['of the host and volumes', twoVolumes, ['local-disks', 'vdc', 'vdd']],
    ['that are all volumes', volumesOnly, ['vdc', 'vdd']],
  ])('are all named to the freeze: disks %s', async (_, script, cuts) => {
    const run = await start(script);
    await recorded(run);
    expect(requestsOf(run, 'freezeFileSystems').map((request) => request.cuts)).toEqual([cuts]);
    const held = run.calls.flatMap(({ request }) => (request.cut === undefined ? [] : [request.cut]));
    expect(held.sort()).toEqual(cuts);
  });

  it('are begun side by side', async () => {
    const begun = new Map(['local-disks', 'vdc', 'vdd'].map((cut) => [cut, signalled()]));
    const everyCut = async (cut: string) => {
      begun.get(cut)?.now();
      for (const { promise } of begun.values()) await promise;
    };
    const run = await start({
      ...twoVolumes,
      snapshotLocalDisks: async ({ cut }) => {
        await everyCut(cut);
        return { parts: [], transactionMs: 1 };
      },
      snapshotVolume: async ({ cut, disk }) => {
        await everyCut(cut);
        return { part: { ...disk, kind: 'volume', snapshot: 'made' }, cutMs: 1 };
      },
    });
    await recorded(run);
  });

  it('do not hold up the thaw when one of them has failed', async () => {
    const thawed = signalled();
    const run = await start({
      ...twoVolumes,
      snapshotLocalDisks: async () => {
        await thawed.promise;
        return { parts: [], transactionMs: 1 };
      },
      snapshotVolume: async ({ cut }) => {
        if (cut === 'vdc') throw fails('VOLUME_BUSY', 'It is busy.', { outcome: 'none' });
        await thawed.promise;
        throw fails('WINDOW_CLOSED', 'It is closed.', { outcome: 'none' });
      },
      thawFileSystems: async ({ window }) => {
        thawed.now();
        return closed(window);
      },
    });
    expect((await failed(run)).type).toBe('VOLUME_BUSY');
    expect(requestsOf(run, 'thawFileSystems')).toMatchObject([{ reason: 'It is busy' }]);
  });

  it('tell why the first has failed, also when another is the first to find its window closed', async () => {
    const otherHasFailed = signalled();
    const run = await start({
      ...twoVolumes,
      snapshotVolume: async ({ cut }) => {
        if (cut === 'vdd') throw fails('WINDOW_CLOSED', 'It is closed.', { outcome: 'none' });
        await otherHasFailed.promise;
        throw fails('VOLUME_SNAPSHOT_FAILED', 'Its status is error.', { outcome: 'none' });
      },
      thawFileSystems: async ({ window }) => {
        otherHasFailed.now();
        return closed(window);
      },
    });
    const failure = await failed(run);
    expect(failure.type).toBe('VOLUME_SNAPSHOT_FAILED');
    expect(failure.message).toContain('Its status is error');
  });

  it.each([
    ['none', { outcome: 'none' }, [], []],
    ['made', { outcome: 'made' }, ['vdc'], []],
    ['unknown', {}, ['vdc'], ['vdc']],
  ])('are undone as their failure says: outcome %s', async (_, metadata, mayBeThere, mayAppear) => {
    const run = await start({
      snapshotVolume: async () => {
        throw fails('CINDER_FAILED', 'It failed.', metadata);
      },
      thawFileSystems: async ({ window }) => closed(window),
    });
    await failed(run);
    expect(requestsOf(run, 'undoWindow')).toMatchObject([{ mayBeThere, mayAppear }]);
  });

  it('are undone as ones that may still appear when their worker died, and those that were made as such', async () => {
    const run = await start({
      ...twoVolumes,
      snapshotVolume: async ({ cut, disk }) =>
        cut === 'vdc' ? await noSignOfLife() : { part: { ...disk, kind: 'volume', snapshot: 'made' }, cutMs: 1 },
      thawFileSystems: async ({ window }) => lostVerdict(window, 'LIMIT'),
    });
    await failed(run);
    const [first] = requestsOf(run, 'undoWindow');
    expect(first?.mayBeThere).toEqual(['vdc', 'vdd']);
    expect(first?.mayAppear).toEqual(['vdc']);
  });

  it('have a second window, and no third, when Cinder could not be reached', async () => {
    const run = await start({
      snapshotVolume: async () => {
        throw fails('CINDER_UNREACHABLE', 'It does not answer.', { outcome: 'none' });
      },
      thawFileSystems: async ({ window }) => closed(window),
    });
    expect((await failed(run)).type).toBe('CINDER_UNREACHABLE');
    expect(requestsOf(run, 'prepare').map(({ window }) => window)).toEqual([
      `${run.input.snapshotId}.1`,
      `${run.input.snapshotId}.2`,
    ]);
  });

  it('are recorded when the window held, though the answer of one of them was lost', async () => {
    const run = await start({ snapshotVolume: () => noSignOfLife() });
    expect(await recorded(run)).toMatchObject({ grade: 'filesystem' });
    expect(run.names()).not.toContain('undoWindow');
  });

  it('are the same in a run of the type snapshotDisks', async () => {
    const run = await start(volumesOnly, {}, 'snapshotDisks');
    expect(await recorded(run)).toMatchObject({ grade: 'filesystem', partial: false });
    expect(run.names()).toEqual([
      'acceptSnapshot',
      'takeWindowSlot',
      'prepare',
      'freezeFileSystems',
      'snapshotVolume',
      'snapshotVolume',
      'thawFileSystems',
      'giveBackWindowSlot',
      'recordSnapshot',
      'release',
    ]);
  });
});

describe('a window of disks of the host alone', () => {
  it("is the host's: one call freezes, cuts and thaws, and its verdict is fetched", async () => {
    const run = await start(localOnly);
    expect(await recorded(run)).toMatchObject({ grade: 'filesystem' });
    expect(run.names().slice(2, 5)).toEqual(['prepare', 'snapshotLocalDisks', 'thawFileSystems']);
    expect(run.names()).not.toContain('freezeFileSystems');
    expect(requestsOf(run, 'snapshotLocalDisks')).toMatchObject([
      { frozen: false, quiesce: 'required', disks: ['vda', 'vdb'], freezeTimeoutMs: 30_000 },
    ]);
  });

  it('is recorded when it held, though the answer of its call was lost', async () => {
    const run = await start({ ...localOnly, snapshotLocalDisks: () => noSignOfLife() });
    expect(await recorded(run)).toMatchObject({ grade: 'filesystem' });
  });

  it('goes on without a freeze under best-effort where there is no guest agent, and is one transaction', async () => {
    const run = await start(
      {
        ...localOnly,
        snapshotLocalDisks: async ({ quiesce }) => {
          if (quiesce === 'required') throw fails('AGENT_NOT_CONNECTED', 'The guest agent is not connected.');
          return { parts: [], transactionMs: 1 };
        },
        thawFileSystems: async ({ window }) => lostVerdict(window, 'NEVER_FROZEN'),
      },
      { quiesce: 'best-effort' },
    );
    const result = await recorded(run);
    expect(result).toMatchObject({ grade: 'crash', quiesce: 'best-effort' });
    expect(result.why).toContain('The guest agent is not connected');
    expect(requestsOf(run, 'snapshotLocalDisks')).toMatchObject([
      { window: `${run.input.snapshotId}.1`, frozen: false, quiesce: 'required' },
      { window: `${run.input.snapshotId}.2`, frozen: false, quiesce: 'skip' },
    ]);
  });

  it('is closed and thawed when the run is cancelled in it', async () => {
    const reached = signalled();
    const run = await start({
      ...localOnly,
      snapshotLocalDisks: async () => {
        reached.now();
        await untilToldToStop();
        throw new CancelledFailure('stopped');
      },
      thawFileSystems: async ({ window }) => lostVerdict(window, 'THAWED_EARLY'),
    });
    await reached.promise;
    await run.handle.cancel();
    expect(await cancelled(run)).toContain('thawFileSystems');
  });

  it("is the workflow's as soon as one disk is a volume", () => {
    expect(windowOwner({ volumes: [] })).toBe('host');
    expect(windowOwner({ volumes: volumesOf('vdc') })).toBe('workflow');
  });
});

describe('the thaw', () => {
  it('is repeated until the host agent answers', async () => {
    let asked = 0;
    const run = await start({
      thawFileSystems: async ({ window }) => {
        asked += 1;
        if (asked < 4)
          throw ApplicationFailure.create({ type: 'STILL_FROZEN', message: 'frozen', nonRetryable: false });
        return heldVerdict(window);
      },
    });
    await recorded(run);
    expect(asked).toBe(4);
  });

  it('does not wait for a cut that ignores the cancel, and the undo waits for both', async () => {
    const begun = signalled();
    const goOn = signalled();
    const order: string[] = [];
    const run = await start({
      snapshotLocalDisks: async () => {
        const beating = setInterval(() => Context.current().heartbeat(), 100);
        begun.now();
        await goOn.promise;
        clearInterval(beating);
        order.push('cut settled');
        return { parts: [], transactionMs: 1 };
      },
      thawFileSystems: async ({ window }) => {
        order.push('thawed');
        return lostVerdict(window, 'THAWED_EARLY');
      },
      undoWindow: async () => {
        order.push('undone');
        return { complete: true, left: [], pending: [] };
      },
    });
    await begun.promise;
    await run.handle.cancel();
    // Only once the workflow has the thaw's answer may the cut go on: were either to wait for the other wrongly, it would show in the order or never end.
    await expect
      .poll(async () => {
        const { steps } = (await run.handle.query(PROGRESS_QUERY)) as Progress;
        return steps.find((step) => step.name === 'thaw file systems')?.ms;
      })
      .toBeDefined();
    await expect(run.handle.query(PROGRESS_QUERY)).resolves.not.toMatchObject({ state: 'undoing' });
    goOn.now();
    await cancelled(run);
    expect(order).toEqual(['thawed', 'cut settled', 'undone']);
  });
});

describe('a cancel', () => {
  it('while it waits for its turn leaves the queue; nothing was taken on the host', async () => {
    const waiting = signalled();
    const run = await start({
      takeWindowSlot: async () => {
        waiting.now();
        await untilToldToStop();
        throw new CancelledFailure('stopped');
      },
    });
    await waiting.promise;
    const progress = (await run.handle.query(PROGRESS_QUERY)) as Progress;
    expect(progress).toMatchObject({ state: 'queued', snapshotId: run.input.snapshotId });
    expect(progress.waiting).toContain('takes its turn');
    await run.handle.cancel();
    expect(await cancelled(run)).toEqual(['acceptSnapshot', 'takeWindowSlot', 'giveBackWindowSlot', 'closeSnapshot']);
    expect(run.calls.at(-1)?.request).toMatchObject({ state: 'cancelled' });
  });

  const steps = ['prepare', 'freezeFileSystems', 'snapshotLocalDisks'] as const;
  it.each(steps)('during %s ends thawed and clean', async (step) => {
    const reached = signalled();
    const run = await start({
      [step]: async () => {
        reached.now();
        await untilToldToStop();
        throw new CancelledFailure('stopped');
      },
      thawFileSystems: async ({ window }: { window: string }) => lostVerdict(window, 'THAWED_EARLY'),
    } as Script);
    await reached.promise;
    await run.handle.cancel();
    const names = await cancelled(run);
    expect(names).not.toContain('recordSnapshot');
    expect(names.slice(-3)).toEqual(['undoWindow', 'closeSnapshot', 'release']);
    expect(names.includes('thawFileSystems')).toBe(step !== 'prepare');
  });

  it('during the thaw lets it end, and undoes though the freeze held', async () => {
    const reached = signalled();
    const goOn = signalled();
    const run = await start({
      thawFileSystems: async ({ window }) => {
        reached.now();
        await goOn.promise;
        return heldVerdict(window);
      },
    });
    await reached.promise;
    await run.handle.cancel();
    goOn.now();
    const names = await cancelled(run);
    expect(names.filter((name) => name === 'thawFileSystems')).toHaveLength(1);
    expect(names).not.toContain('recordSnapshot');
  });

  it('during the record comes too late', async () => {
    const reached = signalled();
    const goOn = signalled();
    const run = await start({
      recordSnapshot: async ({ plan, record }) => {
        reached.now();
        await goOn.promise;
        return {
          recorded: true,
          result: { ...plan, ...record, partial: true, disks: record.parts, quiesce: plan.quiesce },
        };
      },
    });
    await reached.promise;
    await run.handle.cancel();
    goOn.now();
    expect(await recorded(run)).toMatchObject({ grade: 'filesystem' });
  });

  it('during the undo does not stop it', async () => {
    const reached = signalled();
    const goOn = signalled();
    const run = await start({
      thawFileSystems: async ({ window }) => lostVerdict(window, 'LIMIT'),
      undoWindow: async () => {
        reached.now();
        await goOn.promise;
        return { complete: true, left: [], pending: [] };
      },
    });
    await reached.promise;
    await run.handle.cancel();
    goOn.now();
    expect((await failed(run)).type).toBe('CONSISTENCY_LOST');
  });

  it('that leaves something behind does not end as cancelled', async () => {
    const reached = signalled();
    const run = await start({
      snapshotLocalDisks: async () => {
        reached.now();
        await untilToldToStop();
        throw new CancelledFailure('stopped');
      },
      thawFileSystems: async ({ window }) => lostVerdict(window, 'THAWED_EARLY'),
      undoWindow: async () => ({ complete: false, left: [], pending: ['vda: libvirtd is down.'] }),
    });
    await reached.promise;
    await run.handle.cancel();
    const failure = await failed(run);
    expect(failure.type).toBe('CLEANUP_PENDING');
    expect(failure.message).toContain('was cancelled');
  });
});

describe('the reader of the Temporal UI', () => {
  it('finds all snapshots of a VM of one grade in one query', async () => {
    const vmName = `web-${randomUUID()}`;
    const run = await start({
      acceptSnapshot: async (input) => ({ ...planOf(input), vm: { uuid: input.vm, name: vmName } }),
    });
    await recorded(run);
    const query = `StillpointVm = '${vmName}' AND StillpointGrade = 'filesystem' AND StillpointHost = 'kvm-01' AND StillpointWindowMs > 50`;
    await expect
      .poll(
        async () => {
          const found: string[] = [];
          for await (const { runId } of world.client.workflow.list({ query })) found.push(runId);
          return found;
        },
        { timeout: 20_000 },
      )
      .toEqual([(await run.handle.describe()).runId]);
  });

  it('sees a summary on every step, and a table of disks and steps with the grade', async () => {
    const run = await start();
    await recorded(run);
    const { events } = await run.handle.fetchHistory();
    const scheduled = (events ?? []).filter((event) => event.activityTaskScheduledEventAttributes);
    expect(scheduled).toHaveLength(10);
    expect(scheduled.filter((event) => !event.userMetadata?.summary)).toEqual([]);
    const metadata = (await run.handle.query('__temporal_workflow_metadata')) as { currentDetails: string };
    expect(metadata.currentDetails).toContain('| vda | on the host |');
    expect(metadata.currentDetails).toContain('| vdc | Cinder volume 5f0d9a1e-7c3b-4e0a-9b57-0b7d9c1e2a33 |');
    expect(metadata.currentDetails).toContain('| vdd | left out: a network disk |');
    expect(metadata.currentDetails).toMatch(/\| thaw file systems \| \d\d:\d\d:\d\d\.\d{3} \| \d+(\.\d)? ms \|/);
    expect(metadata.currentDetails).toContain('**Grade: filesystem** (partial). 3 file systems stayed frozen');
  });

  it('reads progress while a step runs', async () => {
    const reached = signalled();
    const goOn = signalled();
    const run = await start({
      recordSnapshot: async () => {
        reached.now();
        await goOn.promise;
        return { recorded: false, missing: 'a part' };
      },
    });
    await reached.promise;
    const progress = (await run.handle.query(PROGRESS_QUERY)) as Progress;
    expect(progress.state).toBe('recording');
    expect(progress.steps.at(-1)).toMatchObject({ name: 'record' });
    expect(progress.steps.at(-1)?.ms).toBeUndefined();
    expect(progress.steps.find((step) => step.name === 'freeze file systems')?.ms).toBeGreaterThanOrEqual(0);
    goOn.now();
    await failed(run);
  });
});
