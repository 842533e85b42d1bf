import { randomUUID } from 'node:crypto';
import type { SnapshotRow, SnapshotState } from '@stillpoint/engine/catalogue/catalogue.js';
import type { VolumeSnapshot } from '@stillpoint/engine/cinder/cinder.js';
import { judge, keyOf } from '@stillpoint/engine/doctor/judge.js';
import type { CloudSeen, HostAnswer, HostSeen, Observation } from '@stillpoint/engine/doctor/observation.js';
import type { HostHold, HostVm } from '@stillpoint/engine/hosts/hosts.js';
import type { DiskPart } from '@stillpoint/workflows';
import { describe, expect, it } from 'vitest';

const ours = 'installation-1';
const uuid = randomUUID();
const id = randomUUID();
const window = `${id}.1`;
const overlay = `/images/web-1.sp-${window}.qcow2`;
const volume = randomUUID();
const local: DiskPart = {
  target: 'vda',
  kind: 'local',
  path: '/images/web-1.qcow2',
  format: 'qcow2',
  overlay,
  sizeBytes: 1,
};
const onCeph: DiskPart = { target: 'vdc', kind: 'volume', volume, snapshot: 'cinder-1', sizeBytes: 1 };
const project = 'project-1';

const free: HostHold = {
  operation: '',
  window: '',
  installation: '',
  reservedUnixMs: 0,
  freezeState: 'thawed',
  frozenUnixMs: 0,
  freezeDetail: '',
  windowLimitMs: 0,
};
const vm = (hold: Partial<HostHold> = {}, state: HostVm['state'] = 'running'): HostVm => ({
  uuid,
  name: 'web-1',
  state,
  guestAgent: 'connected',
  disks: [],
  hold: { ...free, ...hold },
});
const used = { path: overlay, window, usedBy: { vm: uuid, target: 'vda' } };
const host = (over: Partial<HostAnswer> = {}): HostAnswer => ({
  name: 'kvm-01',
  installation: ours,
  vms: [vm()],
  overlays: [],
  unreadVms: [],
  ...over,
});
const away: HostSeen = { name: 'kvm-01', away: 'It does not answer.' };
const row = (state: SnapshotState, over: Partial<SnapshotRow> = {}): SnapshotRow => ({
  snapshotId: id,
  vm: uuid,
  vmName: 'web-1',
  host: 'kvm-01',
  name: 'nightly',
  description: undefined,
  quiesce: 'required',
  state,
  workflowId: `vm-${uuid}`,
  runId: 'run-1',
  deletingRunId: undefined,
  createdAt: '2026-11-21T12:00:00.000Z',
  claims: 1,
  endedAt: undefined,
  plan: { volumes: [{ target: 'vdc', volume, project, name: '', sizeBytes: 1 }] },
  result: undefined,
  parts: [],
  error: undefined,
  pending: [],
  windowId: undefined,
  ...over,
});
const inCinder = (over: Partial<VolumeSnapshot> = {}): VolumeSnapshot => ({
  id: 'cinder-1',
  volumeId: volume,
  name: '',
  description: '',
  status: 'available',
  sizeGiB: 1,
  createdAt: '2026-11-21T12:00:00Z',
  metadata: {
    stillpoint_installation: ours,
    stillpoint_snapshot: id,
    stillpoint_vm: uuid,
    stillpoint_vm_name: 'web-1',
  },
  ...over,
});
const cloud = (snapshots: VolumeSnapshot[], parts: [string, string | undefined][] = []): CloudSeen => ({
  project,
  snapshots,
  parts: new Map([...snapshots.map(({ id, status }): [string, string] => [id, status]), ...parts]),
});

interface Seen {
  hosts?: HostSeen[];
  rows?: SnapshotRow[];
  cloud?: CloudSeen;
  /** Of every row's own run; null: Temporal has it no more. */
  status?: string | null;
}

function judged(
  { hosts = [host()], rows = [], cloud: seen = cloud([]), status = 'TERMINATED' }: Seen,
  busy: string[] = [],
) {
  const observation: Observation = {
    installation: ours,
    hosts,
    cloud: seen,
    rows: new Map(rows.map((each) => [each.snapshotId, each])),
  };
  return judge(observation, new Set(busy), new Map(rows.map((each) => [each.snapshotId, status ?? undefined])));
}

/** Code and repair of each finding. */
function told(seen: Seen, busy: string[] = []): string[] {
  return judged(seen, busy).map(({ code, repair }) => `${code} ${repair?.kind ?? 'a person'}`);
}

const whole: Seen = {
  hosts: [host({ overlays: [used] })],
  rows: [row('complete', { parts: [local, onCeph] })],
  cloud: cloud([inCinder()]),
};

describe('what fits', () => {
  it('is no finding: a recorded snapshot, whole, and a VM that nobody holds', () => {
    expect(told(whole)).toEqual([]);
  });

  it('is no finding: a row that no run has taken over, or that ended with nothing left', () => {
    const rows = (['accepted', 'failed', 'cancelled', 'deleted'] as const).map((state) =>
      row(state, { snapshotId: randomUUID() }),
    );
    expect(told({ rows })).toEqual([]);
  });
});

describe('a row whose end is not written', () => {
  it.each(['running', 'recording', 'undoing', 'deleting'] as const)(
    'is cleaned up where its run was terminated: %s',
    (state) => {
      expect(told({ rows: [row(state)] })).toEqual(['RUN_GONE clean-up']);
      expect(judged({ rows: [row(state)] })[0]?.repair).toEqual({ kind: 'clean-up', vm: uuid, snapshotId: id });
    },
  );

  it.each<[SnapshotState, string | null, string]>([
    ['running', 'FAILED', 'clean-up'],
    ['running', 'TIMED_OUT', 'clean-up'],
    ['running', 'CANCELLED', 'clean-up'],
    ['running', 'COMPLETED', 'a person'],
    ['recording', 'COMPLETED', 'a person'],
    ['undoing', 'COMPLETED', 'a person'],
    ['running', 'CONTINUED_AS_NEW', 'a person'],
    ['running', 'RUNNING', 'a person'],
    ['running', null, 'a person'],
    ['recording', null, 'a person'],
    ['deleting', 'TIMED_OUT', 'clean-up'],
    ['deleting', 'CANCELLED', 'a person'],
    ['deleting', 'FAILED', 'a person'],
    ['deleting', 'COMPLETED', 'a person'],
    ['deleting', null, 'a person'],
  ])('that is %s, whose run ended as %s, is for: %s', (state, status, whom) => {
    const [finding, ...others] = judged({ rows: [row(state)], status });
    expect(others).toEqual([]);
    expect(finding).toMatchObject({
      code: 'RUN_GONE',
      text: expect.stringContaining(status ?? 'does not have its run'),
    });
    expect(finding?.repair?.kind ?? 'a person').toBe(whom);
    if (whom === 'clean-up') return;
    expect(finding?.advice).toContain('nothing is to be done');
    expect(finding?.advice).toContain(`stillpoint snapshot cleanup ${id}`);
    expect(finding?.advice).toContain(`stillpoint snapshot delete ${id}`);
  });

  it.each(['running', 'deleting'] as const)('is for a person where Cinder has its grade: %s', (state) => {
    const graded = inCinder({ metadata: { ...inCinder().metadata, stillpoint_grade: 'filesystem' } });
    const [finding, ...others] = judged({ rows: [row(state)], cloud: cloud([graded]) });
    expect(others).toEqual([]);
    expect(finding).toMatchObject({ code: 'RUN_GONE', text: expect.stringContaining('cinder-1 carries its grade') });
    expect(finding?.repair).toBeUndefined();
  });

  it('of a snapshot with volumes waits for a Cinder that does not answer', () => {
    for (const seen of ['none', { away: 'Keystone does not answer.' }] as const) {
      const of = { rows: [row('running')], cloud: seen };
      expect(told(of)).toEqual(['CLOUD_AWAY a person', 'RUN_GONE a person']);
      expect(judged(of)[1]?.advice).toContain('Cinder does not answer');
    }
    expect(told({ rows: [row('running', { plan: {} })], cloud: 'none' })).toEqual(['RUN_GONE clean-up']);
  });

  it.each<[string, SnapshotRow]>([
    ['running', row('running')],
    ['cleanup-pending', row('cleanup-pending')],
  ])('is left alone while a run of its VM is open: %s', (_, of) => {
    expect(told({ rows: [of] }, [uuid])).toEqual([]);
    expect(told({ rows: [of] }, [randomUUID()])).toHaveLength(1);
  });

  it('is cleaned up where it is pending, and its text has what ends it', () => {
    const [finding] = judged({ rows: [row('cleanup-pending', { pending: ['vda: the VM is off.'] })] });
    expect(finding).toMatchObject({ code: 'CLEANUP_PENDING', repair: { kind: 'clean-up' } });
    expect(finding?.text).toContain('vda: the VM is off.');
  });

  it('waits for a host that does not answer, and is left to a person where that is lost', () => {
    const [, waits] = judged({ hosts: [away], rows: [row('running')] });
    expect(waits).toMatchObject({ code: 'RUN_GONE', advice: expect.stringContaining('does not answer') });
    expect(waits?.repair).toBeUndefined();
    const [lost] = judged({ hosts: [], rows: [row('running')] });
    expect(lost).toMatchObject({ code: 'RUN_GONE', advice: expect.stringContaining('removed as lost') });
    expect(lost?.repair).toBeUndefined();
  });
});

describe('a VM that is held', () => {
  const held = (hold: Partial<HostHold> = {}) => [
    host({ vms: [vm({ operation: id, window, installation: ours, ...hold })] }),
  ];

  it.each<[string, Seen, string[]]>([
    ['by a snapshot that was recorded', { hosts: held(), rows: [row('complete')] }, ['VM_HELD reservation']],
    ['by one that failed', { hosts: held(), rows: [row('failed')] }, ['VM_HELD reservation']],
    ['by a deletion, which has no window and no row', { hosts: held({ window: '' }) }, ['VM_HELD reservation']],
    ['by one that the catalogue has lost', { hosts: held() }, ['VM_HELD a person']],
    ['by a run that is gone: its clean-up frees it', { hosts: held(), rows: [row('running')] }, ['RUN_GONE clean-up']],
    [
      'by another installation',
      { hosts: held({ installation: 'other' }), rows: [row('complete')] },
      ['VM_HELD_ELSEWHERE a person'],
    ],
  ])('%s', (_, seen, expected) => {
    expect(told(seen)).toEqual(expected);
    expect(told(seen, [uuid])).toEqual([]);
  });

  it.each([
    ['still-frozen', 'still frozen: the VM is paused'],
    ['maybe-frozen', 'perhaps frozen: the VM is paused'],
  ] as const)('and %s is told, also while a run is open', (freezeState, text) => {
    const hosts = [host({ vms: [vm({ freezeState, freezeDetail: 'the VM is paused' })] })];
    expect(told({ hosts }, [uuid])).toEqual(['GUEST_FROZEN a person']);
    expect(judged({ hosts })[0]?.text).toContain(text);
  });

  it('frozen in a window that is open is no finding: it ends by itself', () => {
    expect(told({ hosts: held({ freezeState: 'frozen' }), rows: [row('running')] }, [uuid])).toEqual([]);
  });
});

describe('an overlay', () => {
  const unused = { path: overlay, window, usedBy: undefined };

  it.each<[string, Seen, string | undefined]>([
    ['of no row, in a chain', { hosts: [host({ overlays: [used] })] }, 'Never delete it'],
    ['of no row, in no chain', { hosts: [host({ overlays: [unused] })] }, 'never deleted by Stillpoint'],
    [
      'of a deleted row',
      { hosts: [host({ overlays: [unused] })], rows: [row('deleted')] },
      'never deleted by Stillpoint',
    ],
    [
      'of a failed row',
      { hosts: [host({ overlays: [unused] })], rows: [row('failed')] },
      'never deleted by Stillpoint',
    ],
    [
      'of an earlier window of a recorded row',
      {
        hosts: [host({ overlays: [used, { ...unused, path: '/images/web-1.sp-other.2.qcow2', window: `${id}.2` }] })],
        rows: [row('complete', { parts: [local] })],
      },
      'never deleted by Stillpoint',
    ],
  ])('is told and left to a person: %s', (_, seen, advice) => {
    const [finding, ...others] = judged(seen);
    expect(others).toEqual([]);
    expect(finding).toMatchObject({ code: 'OVERLAY_UNCLAIMED', advice: expect.stringContaining(advice ?? '') });
    expect(finding?.repair).toBeUndefined();
  });

  it('of a host whose journal is of another installation says so', () => {
    const [finding] = judged({ hosts: [host({ installation: 'before the loss', overlays: [used] })] });
    expect(finding?.text).toContain('before the loss');
  });

  it.each(['running', 'cleanup-pending'] as const)('is its row’s business while that is %s', (state) => {
    expect(judged({ hosts: [host({ overlays: [used] })], rows: [row(state)] }).map(({ code }) => code)).not.toContain(
      'OVERLAY_UNCLAIMED',
    );
  });

  it('is known by its name where its folder is recorded under another one', () => {
    const elsewhere = { ...used, path: overlay.replace('/images', '/mnt/images') };
    expect(told({ ...whole, hosts: [host({ overlays: [elsewhere] })] })).toEqual([]);
  });
});

describe("a snapshot in Cinder with our installation's id", () => {
  it.each<[string, SnapshotRow, VolumeSnapshot, string[]]>([
    ['of a deleted row', row('deleted'), inCinder(), ['VOLUME_SNAPSHOT_LEFT volume-snapshot']],
    ['of a failed row', row('failed'), inCinder(), ['VOLUME_SNAPSHOT_LEFT volume-snapshot']],
    ['of a cancelled row', row('cancelled'), inCinder(), ['VOLUME_SNAPSHOT_LEFT volume-snapshot']],
    ['that is being deleted', row('deleted'), inCinder({ status: 'deleting' }), []],
    [
      'of a row that is pending: its clean-up finds it',
      row('cleanup-pending'),
      inCinder(),
      ['CLEANUP_PENDING clean-up'],
    ],
    ['of a run that is gone: its clean-up finds it', row('running'), inCinder(), ['RUN_GONE clean-up']],
  ])('%s', (_, of, snapshot, expected) => {
    expect(told({ rows: [of], cloud: cloud([snapshot]) })).toEqual(expected);
    expect(told({ rows: [of], cloud: cloud([snapshot]) }, [uuid])).toEqual([]);
  });

  it('beside the recorded one of its volume is deleted, and the recorded one is not', () => {
    const late = inCinder({ id: 'cinder-2' });
    const findings = judged({ ...whole, cloud: cloud([inCinder(), late]) });
    expect(findings.map(({ repair }) => repair)).toEqual([
      { kind: 'volume-snapshot', vm: uuid, snapshotId: id, volumeSnapshot: 'cinder-2' },
    ]);
  });

  it('of no row is left to a person, graded or not: the catalogue may have lost what somebody relies on', () => {
    const graded = inCinder({ id: 'cinder-2', metadata: { ...inCinder().metadata, stillpoint_grade: 'filesystem' } });
    expect(told({ cloud: cloud([inCinder(), graded]) })).toEqual([
      'VOLUME_SNAPSHOT_UNKNOWN a person',
      'VOLUME_SNAPSHOT_UNKNOWN a person',
    ]);
  });
});

describe('a recorded snapshot', () => {
  it.each<[string, Seen, string]>([
    [
      'of which Cinder has a part no more',
      { ...whole, cloud: cloud([], [['cinder-1', undefined]]) },
      'cinder-1 is not there',
    ],
    [
      'of which Cinder calls a part broken',
      { ...whole, cloud: cloud([inCinder({ status: 'error' })]) },
      'cinder-1 is error',
    ],
    ['whose overlay has left the chain', { ...whole, hosts: [host()] }, 'not in its chain any more'],
    [
      "whose overlay is another disk's",
      { ...whole, hosts: [host({ overlays: [{ ...used, usedBy: { vm: uuid, target: 'vdb' } }] })] },
      'not in its chain any more',
    ],
  ])('is not whole, and is not repaired: %s', (_, seen, text) => {
    const [finding, ...others] = judged(seen);
    expect(others).toEqual([]);
    expect(finding).toMatchObject({ code: 'SNAPSHOT_NOT_WHOLE', text: expect.stringContaining(text) });
    expect(finding?.repair).toBeUndefined();
  });

  it.each<[string, Seen]>([
    [
      'its metadata was changed, and Cinder knows it by its id',
      { ...whole, cloud: cloud([], [['cinder-1', 'available']]) },
    ],
    ['a backup of it is made', { ...whole, cloud: cloud([inCinder({ status: 'backing-up' })]) }],
    [
      'its VM runs on a host that has its chain, and is defined on another',
      { ...whole, hosts: [host({ overlays: [used] }), host({ name: 'kvm-02', vms: [vm({}, 'shut-off')] })] },
    ],
    ['a chain of its VM cannot be read', { ...whole, hosts: [host({ unreadVms: [uuid] })] }],
    ['no host knows its VM', { ...whole, hosts: [host({ vms: [] })] }],
  ])('is not called broken where %s', (_, seen) => {
    expect(told(seen)).toEqual([]);
  });

  it("is not called broken by what another project's Cinder does not show", () => {
    const other = { project: 'project-2', snapshots: [], parts: new Map([['cinder-1', undefined]]) };
    expect(told({ ...whole, cloud: other })).toEqual([]);
  });
});

describe('what does not answer', () => {
  it('is told, and nothing is concluded about what it has', () => {
    expect(told({ ...whole, hosts: [away] })).toEqual(['HOST_AWAY a person']);
    expect(told({ ...whole, cloud: { away: 'Keystone does not answer.' } })).toEqual(['CLOUD_AWAY a person']);
    expect(told({ ...whole, cloud: 'none' })).toEqual(['CLOUD_AWAY a person']);
    expect(told({ cloud: 'none' })).toEqual([]);
  });

  it('of overlay files alone is told, and what the host holds is told all the same', () => {
    const held = vm({ operation: id, window, installation: ours, freezeState: 'still-frozen' });
    const hosts = [host({ vms: [held], overlaysAway: 'It took too long.', unreadVms: [uuid] })];
    expect(told({ ...whole, hosts })).toEqual(['HOST_AWAY a person', 'GUEST_FROZEN a person', 'VM_HELD reservation']);
    expect(judged({ hosts })[0]?.text).toContain('its overlay files: It took too long.');
  });

  it('may be where a VM runs that is defined here: its chain here is no proof', () => {
    const off = host({ name: 'kvm-02', vms: [vm({}, 'shut-off')] });
    expect(told({ ...whole, hosts: [away, off] })).toEqual(['HOST_AWAY a person']);
    expect(told({ ...whole, hosts: [off] })).toEqual(['SNAPSHOT_NOT_WHOLE a person']);
  });
});

it('a finding has the same key in every look, and another one where it is about something else', () => {
  const [first] = judged({ rows: [row('running')] });
  const [again] = judged({ rows: [row('running', { name: 'renamed' })] });
  const [other] = judged({ rows: [row('running', { snapshotId: randomUUID() })] });
  if (first === undefined || again === undefined || other === undefined) throw new Error('nothing was found');
  expect(keyOf(again)).toBe(keyOf(first));
  expect(keyOf(other)).not.toBe(keyOf(first));
});
