import type { CallName } from '@stillpoint/host-agent/simulated/faults.js';
import type { SimulatedDisk } from '@stillpoint/host-agent/simulated/vm.js';
import type { Quiesce } from '@stillpoint/workflows';
import { Chance } from './chance.js';

/** What a seed stands for: who is there, what is asked for, and what goes wrong when. Plain data, so that a failure can print it. */
export interface Scenario {
  seed: number;
  hosts: number;
  vms: ScenarioVm[];
  faults: ScenarioFault[];
}

export interface ScenarioVm {
  uuid: string;
  name: string;
  host: number;
  disks: ScenarioDisk[];
  /** What is asked for this VM, one after another; beside the other VMs. */
  asks: Ask[];
}

export interface ScenarioDisk {
  target: string;
  /** `foreign-volume`: a volume that Cinder has attached to another VM. `elsewhere`: outside the folders that the host agent may use. */
  is: 'local' | 'volume' | 'foreign-volume' | 'elsewhere';
  /** The guest has no file system on it: say swap. */
  isBare: boolean;
  serial?: string;
}

export type Ask =
  | {
      do: 'snapshot';
      snapshotId: string;
      afterMs: number;
      quiesce: Quiesce;
      windowLimitMs: number;
      /** Absent: all. */
      disks?: string[];
      unquiesced: string[];
      /** Under an id that is not the VM's. */
      astray: boolean;
      onlyVolumes: boolean;
    }
  /** Of the newest snapshot of the VM that is complete, if there is one. */
  | { do: 'delete'; afterMs: number }
  /** Another installation takes the VM on its host, and gives it back. */
  | { do: 'stranger'; afterMs: number; operation: string; forMs: number };

/** When a fault strikes: at an event, so that a replay meets the same step; only where nothing happens of itself, after a time. */
export type When =
  /** The n-th call of this name that the host's hypervisor gets for the VM. */
  | { at: 'call'; call: CallName; skip: number }
  | { at: 'cinder'; request: CinderRequest; skip: number }
  /** The n-th call of the catalogue's method, whoever's VM it is for. */
  | { at: 'catalogue'; method: CatalogueMethod; skip: number }
  | { at: 'time'; ms: number };

export const cinderRequests = ['create', 'show', 'list', 'delete', 'volume', 'limits', 'token'] as const;
export type CinderRequest = (typeof cinderRequests)[number];

export const catalogueMethods = [
  'takeOver',
  'takeSlot',
  'giveBackSlot',
  'beginRecording',
  'record',
  'beginUndoing',
  'close',
  'beginDeleting',
  'finishDeleting',
] as const;
export type CatalogueMethod = (typeof catalogueMethods)[number];

/** `vm` is the one that the fault is for, or whose host or step it is about; `ms`: how long it lasts. */
export interface ScenarioFault {
  vm: number;
  when: When;
  what: What;
}

export type What =
  // The guest and its VM.
  | { does: 'power off' | 'pause' | 'kill guest agent' | 'stop guest agent'; ms: number }
  | { does: 'reboot' | 'restart guest agent' }
  | { does: 'save'; ms: number }
  | { does: 'freeze hook'; how: 'fail' | 'hang'; ms: number }
  | { does: 'migrate'; ms: number }
  // Others at work on it.
  | { does: 'freeze by other'; ms: number }
  | { does: 'thaw by other' | 'snapshot by other' | 'thaw by administrator' }
  | { does: 'block job by other'; target: number; ms: number }
  // A call of the hypervisor's goes wrong; it is its own trigger.
  | { does: 'refuse call'; code: string; times: number }
  | { does: 'lose reply'; code: string }
  | { does: 'late call'; ms: number }
  | { does: 'hold call'; where: 'before' | 'after'; ms: number }
  // The host's programs.
  | { does: 'libvirt down'; ms: number }
  | { does: 'host agent killed' | 'host agent restarted'; ms: number }
  // Between engine and host agent; `engine` 2: both.
  | { does: 'cut connections'; engine: 0 | 1 | 2 }
  | { does: 'hang connections'; engine: 0 | 1 | 2; ms: number }
  // Engines. The killed or stopped one is followed by another after `ms`.
  | { does: 'engine killed' | 'engine stopped' | 'engine cut off from Temporal'; engine: 0 | 1; ms: number }
  // What engines need.
  | { does: 'catalogue down'; ms: number }
  | { does: 'cinder down'; ms: number }
  | { does: 'cinder answers'; request: CinderRequest; status: number; after: boolean; times: number }
  | { does: 'cinder slow'; request: CinderRequest; where: 'before' | 'after'; ms: number }
  | { does: 'cinder loses'; request: CinderRequest; what: 'request' | 'answer' }
  | { does: 'cinder snapshot sticks' | 'cinder snapshot fails' }
  | { does: 'quota used up'; ms: number }
  | { does: 'tokens revoked' }
  // People, in Temporal.
  | { does: 'cancel' | 'terminate' }
  | { does: 'reset'; to: number };

export type Does = What['does'];

/** Folder in which the host agent may have disks, and one in which it may not. */
const folder = '/var/lib/libvirt/images';
export const elsewhere = '/srv/elsewhere';

export function diskSettings(vm: ScenarioVm): SimulatedDisk[] {
  return vm.disks.map(({ target, is, serial }): SimulatedDisk => {
    if (serial !== undefined) return { target, kind: 'rbd', serial };
    return { target, path: `${is === 'elsewhere' ? elsewhere : folder}/${vm.name}-${target}.qcow2` };
  });
}

/** The scenario of a seed. */
export function scenarioOf(seed: number): Scenario {
  const chance = new Chance(seed);
  const hosts = chance.between(1, 2);
  const vms = Array.from({ length: chance.between(2, 4) }, (_, index) => vmOf(chance, seed, index, hosts));
  const faults = Array.from({ length: chance.between(2, 6) }, () => faultOf(chance, vms));
  return { seed, hosts, vms, faults };
}

function vmOf(chance: Chance, seed: number, index: number, hosts: number): ScenarioVm {
  const locals = chance.weighted([
    [1, 0],
    [5, 1],
    [3, 2],
  ]);
  const volumes =
    locals === 0
      ? chance.between(1, 2)
      : chance.weighted([
          [4, 0],
          [4, 1],
          [2, 2],
        ] as const);
  const disks: ScenarioDisk[] = [];
  const add = (is: ScenarioDisk['is']) => {
    const target = `vd${'abcdef'[disks.length]}`;
    const serial = is === 'volume' || is === 'foreign-volume' ? { serial: chance.uuid() } : {};
    disks.push({ target, is, isBare: false, ...serial });
  };
  for (let i = 0; i < locals; i += 1) add('local');
  for (let i = 0; i < volumes; i += 1) add('volume');
  if (chance.is(0.1)) add(chance.one(['foreign-volume', 'elsewhere']));
  const last = disks.at(-1);
  if (disks.length > 1 && last !== undefined && chance.is(0.15)) last.isBare = true;
  const vm = { uuid: chance.uuid(), name: `vm-${seed}-${index}`, host: index % hosts, disks };
  const asks: Ask[] = [snapshotOf(chance, disks)];
  const more = chance.weighted([
    [3, 0],
    [5, 1],
    [2, 2],
  ]);
  for (let i = 0; i < more; i += 1) {
    asks.push(
      chance.weighted<Ask>([
        [6, snapshotOf(chance, disks)],
        [4, { do: 'delete', afterMs: 0 }],
        [1, { do: 'stranger', afterMs: 0, operation: chance.uuid(), forMs: chance.between(100, 1_500) }],
      ]),
    );
  }
  if (chance.is(0.05)) asks.unshift({ do: 'stranger', afterMs: 0, operation: chance.uuid(), forMs: 800 });
  return { ...vm, asks };
}

function snapshotOf(chance: Chance, disks: readonly ScenarioDisk[]): Ask {
  const foreign = disks.some(({ is }) => is === 'foreign-volume');
  const ours = disks.filter(({ is }) => is === 'local' || is === 'volume');
  const namesThem = (foreign && chance.is(0.7)) || chance.is(0.1);
  const named = namesThem ? ours : disks;
  const onlyVolumes = named.every(({ is }) => is === 'volume') && chance.is(0.5);
  const bare = named.filter(({ isBare }) => isBare).map(({ target }) => target);
  return {
    do: 'snapshot',
    snapshotId: chance.uuid(),
    afterMs: chance.between(0, 200),
    quiesce: chance.weighted([
      [6, 'required'],
      [3, 'best-effort'],
      [1, 'skip'],
    ]),
    windowLimitMs: chance.one([1_500, 2_500, 4_000]),
    ...(namesThem ? { disks: named.map(({ target }) => target) } : {}),
    unquiesced: chance.is(0.6) ? bare : [],
    astray: chance.is(0.04),
    onlyVolumes,
  };
}

/** Calls at which something of the flow can be met, the likelier ones oftener. */
const calls: readonly (readonly [number, CallName])[] = [
  [6, 'freeze'],
  [5, 'thaw'],
  [6, 'snapshotDisks'],
  [4, 'mergeOverlay'],
  [3, 'freezeStatus'],
  [2, 'getVm'],
  [2, 'getVmBehindJob'],
  [2, 'guestFileSystems'],
  [1, 'guestOs'],
  [1, 'setAgentTimeout'],
];

/** What such a call may be refused or left unanswered with. */
const refusals: Partial<Record<CallName, readonly [string, ...string[]]>> = {
  freeze: ['FREEZE_HOOK_FAILED', 'AGENT_NOT_RESPONDING', 'LIBVIRT_ERROR'],
  thaw: ['AGENT_NOT_RESPONDING', 'HYPERVISOR_BUSY', 'LIBVIRT_ERROR', 'LIBVIRT_CALL_TIMEOUT'],
  snapshotDisks: ['SNAPSHOT_FAILED', 'HYPERVISOR_BUSY'],
  mergeOverlay: ['MERGE_FAILED', 'HYPERVISOR_BUSY'],
  freezeStatus: ['AGENT_NOT_RESPONDING', 'LIBVIRT_CALL_TIMEOUT'],
  guestFileSystems: ['AGENT_NOT_RESPONDING', 'LIBVIRT_ERROR'],
};
const losses: Partial<Record<CallName, readonly [string, ...string[]]>> = {
  freeze: ['AGENT_NOT_RESPONDING', 'LIBVIRT_CALL_TIMEOUT'],
  thaw: ['AGENT_NOT_RESPONDING', 'LIBVIRT_CALL_TIMEOUT'],
  snapshotDisks: ['LIBVIRT_UNREACHABLE', 'LIBVIRT_CALL_TIMEOUT'],
  mergeOverlay: ['LIBVIRT_UNREACHABLE', 'LIBVIRT_CALL_TIMEOUT'],
};

function whenOf(chance: Chance): When {
  const skip = chance.weighted([
    [5, 0],
    [2, 1],
    [1, 2],
  ] as const);
  return chance.weighted<When>([
    [9, { at: 'call', call: chance.weighted(calls), skip }],
    [
      4,
      {
        at: 'cinder',
        request: chance.weighted([
          [5, 'create'],
          [4, 'show'],
          [1, 'list'],
          [2, 'delete'],
        ] as const),
        skip: chance.between(0, 3),
      },
    ],
    [4, { at: 'catalogue', method: chance.one(catalogueMethods as unknown as [CatalogueMethod]), skip }],
    [2, { at: 'time', ms: chance.between(0, 800) }],
  ]);
}

function faultOf(chance: Chance, vms: readonly ScenarioVm[]): ScenarioFault {
  const vm = chance.between(0, vms.length - 1);
  const ms = chance.weighted([
    [4, chance.between(20, 300)],
    [3, chance.between(300, 1_500)],
    [1, chance.between(1_500, 4_000)],
  ]);
  const engine = chance.one([0, 1] as const);
  const which = chance.one([0, 1, 2] as const);
  const request = chance.weighted([
    [6, 'create'],
    [3, 'show'],
    [2, 'list'],
    [2, 'delete'],
    [1, 'volume'],
    [1, 'limits'],
    [1, 'token'],
  ] as const);
  const kind = chance.weighted([
    [5, 'guest'],
    [3, 'others'],
    [6, 'call'],
    [4, 'host'],
    [3, 'engine'],
    [1, 'catalogue'],
    [5, 'cinder'],
    [3, 'temporal'],
  ] as const);
  if (kind === 'call') return callFault(chance, vm, ms);
  const when = whenOf(chance);
  const choices: Record<Exclude<typeof kind, 'call'>, readonly (readonly [number, What])[]> = {
    guest: [
      [2, { does: 'power off', ms }],
      [2, { does: 'reboot' }],
      [2, { does: 'pause', ms }],
      [2, { does: 'kill guest agent', ms }],
      [2, { does: 'restart guest agent' }],
      [3, { does: 'stop guest agent', ms }],
      [1, { does: 'save', ms }],
      [2, { does: 'freeze hook', how: chance.one(['fail', 'hang']), ms }],
      [1, { does: 'migrate', ms }],
    ],
    others: [
      [1, { does: 'freeze by other', ms }],
      [2, { does: 'thaw by other' }],
      [2, { does: 'snapshot by other' }],
      [2, { does: 'thaw by administrator' }],
      [2, { does: 'block job by other', target: chance.between(0, 1), ms }],
    ],
    host: [
      [2, { does: 'libvirt down', ms: Math.min(ms, 1_500) }],
      [4, { does: 'host agent killed', ms: Math.min(ms, 1_000) }],
      [2, { does: 'host agent restarted', ms: Math.min(ms, 1_000) }],
      [3, { does: 'cut connections', engine: which }],
      [2, { does: 'hang connections', engine: which, ms: ms + 1_000 }],
    ],
    engine: [
      [4, { does: 'engine killed', engine, ms }],
      [2, { does: 'engine stopped', engine, ms }],
      [2, { does: 'engine cut off from Temporal', engine, ms: ms + 500 }],
    ],
    catalogue: [[1, { does: 'catalogue down', ms }]],
    cinder: [
      [2, { does: 'cinder down', ms: Math.min(ms, 1_500) }],
      [
        3,
        {
          does: 'cinder answers',
          request,
          status: chance.one([500, 503, 429, 502, 504]),
          after: chance.is(0.4),
          times: chance.between(1, 3),
        },
      ],
      [3, { does: 'cinder slow', request, where: chance.one(['before', 'after']), ms: Math.min(ms, 1_300) }],
      [4, { does: 'cinder loses', request, what: chance.one(['request', 'answer']) }],
      [2, { does: 'cinder snapshot sticks' }],
      [2, { does: 'cinder snapshot fails' }],
      [1, { does: 'quota used up', ms }],
      [1, { does: 'tokens revoked' }],
    ],
    temporal: [
      [4, { does: 'cancel' }],
      [4, { does: 'terminate' }],
      [2, { does: 'reset', to: chance.between(0, 6) }],
    ],
  };
  return { vm, when, what: chance.weighted(choices[kind]) };
}

/** A call that goes wrong is chosen with its own trigger: the call. */
function callFault(chance: Chance, vm: number, ms: number): ScenarioFault {
  const call = chance.weighted(calls);
  const when: When = {
    at: 'call',
    call,
    skip: chance.weighted([
      [5, 0],
      [2, 1],
      [1, 2],
    ] as const),
  };
  const hold: What = { does: 'hold call', where: chance.one(['before', 'after']), ms };
  const choices: [number, What][] = [[2, hold]];
  const refusal = refusals[call];
  if (refusal !== undefined) {
    choices.push([2, { does: 'refuse call', code: chance.one(refusal), times: chance.between(1, 3) }]);
  }
  const loss = losses[call];
  if (loss !== undefined) choices.push([3, { does: 'lose reply', code: chance.one(loss) }]);
  // As late as libvirt's own wait for a domain's job, at most.
  if (call === 'snapshotDisks') choices.push([2, { does: 'late call', ms: Math.min(ms, 500) }]);
  return { vm, when, what: chance.weighted(choices) };
}
