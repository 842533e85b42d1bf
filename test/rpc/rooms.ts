import { HostAgentError } from '@stillpoint/host-agent/errors.js';
import type { Hypervisor, Vm } from '@stillpoint/host-agent/hypervisor.js';
import type {
  FreezeRoom,
  Hold,
  HoldState,
  Overlay,
  Pinned,
  ReserveRequest,
  SnapshotRoom,
  Verdict,
} from '@stillpoint/host-agent/window.js';

export const vmUuid = '6ba7b810-9dad-41d1-80b4-00c04fd430c8';
export const operation = '11111111-1111-4111-8111-111111111111';
export const window1 = `${operation}.1`;

export const vm: Vm = {
  uuid: vmUuid,
  name: 'web-1',
  domainId: 7,
  state: 'running',
  offBecause: undefined,
  note: undefined,
  persistent: true,
  hasManagedSave: false,
  guestAgent: 'connected',
  migrating: false,
  disks: [
    {
      target: 'vda',
      device: 'disk',
      kind: 'file',
      path: '/images/web-1.qcow2',
      image: undefined,
      format: 'qcow2',
      serial: undefined,
      readOnly: false,
      shareable: false,
      transient: false,
      blockJob: false,
      chain: [{ path: '/images/web-1.qcow2', format: 'qcow2', kind: 'file' }],
    },
    {
      target: 'vdb',
      device: 'disk',
      kind: 'network',
      path: undefined,
      image: 'nbd:export',
      format: 'raw',
      serial: 'abc',
      readOnly: false,
      shareable: false,
      transient: false,
      blockJob: false,
      chain: [],
    },
  ],
};

export const overlay: Overlay = {
  target: 'vda',
  overlayPath: `/images/web-1.sp-${window1}.qcow2`,
  basePath: '/images/web-1.qcow2',
  baseFormat: 'qcow2',
  sizeBytes: 1_073_741_824,
};

export const pinned: Pinned = {
  domainId: 7,
  disks: [{ target: 'vda', source: '/images/web-1.qcow2', sizeBytes: 1_073_741_824 }],
  fileSystems: undefined,
  osId: 'debian',
};

export const heldVerdict: Verdict = {
  window: window1,
  held: true,
  lostReason: undefined,
  detail: '',
  neverAsked: false,
  frozenFileSystems: 2,
  thawedFileSystems: 2,
  windowMs: 41.5,
  frozenUnixMs: 1_700_000_000_000.4,
  thawedUnixMs: 1_700_000_000_042,
  thawedBy: 'all cuts done',
  cuts: [{ cut: 'vda', heldMs: 1, endedMs: 40, outcome: 'done', reason: '' }],
  gaps: [],
};

const thawed: HoldState = {
  reservation: undefined,
  freezeState: 'thawed',
  frozenUnixMs: 0,
  detail: '',
  windowLimitMs: 0,
};

/** Something that happens once; the test waits for it. */
export function happening<T>() {
  let happens: (value: T) => void = () => {};
  let fails: (reason: unknown) => void = () => {};
  const happened = new Promise<T>((resolve, reject) => {
    happens = resolve;
    fails = reject;
  });
  happened.catch(() => {});
  return { happened, happens, fails };
}

/** A hold that tells how it ended. */
export class FakeHold implements Hold {
  readonly #lost = new AbortController();
  readonly #ended = happening<Parameters<Hold['end']>[0]>();
  readonly #held = happening<void>();
  readonly held = this.#held.happened;
  readonly ended = this.#ended.happened;
  #answer: { inTime: boolean; reason: string } | undefined;

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  end(outcome: Parameters<Hold['end']>[0]): { inTime: boolean; reason: string } {
    this.#answer ??= 'done' in outcome ? { inTime: true, reason: '' } : { inTime: false, reason: 'the window is lost' };
    this.#ended.happens(outcome);
    // As the freeze room does when this was the last cut.
    this.#lost.abort(new HostAgentError('WINDOW_CLOSED', 'thawed'));
    return this.#answer;
  }

  /** The freeze is answered. */
  go(): void {
    this.#held.happens();
  }

  lose(message: string): void {
    this.#answer ??= { inTime: false, reason: message };
    const reason = new HostAgentError('WINDOW_CLOSED', message);
    this.#held.fails(reason);
    this.#lost.abort(reason);
  }
}

/** A freeze room that records what it is asked and answers what the test says. */
export class FakeFreezeRoom implements FreezeRoom {
  readonly calls: string[] = [];
  readonly holds: FakeHold[] = [];
  readonly #begun = happening<FakeHold>();
  /** The first hold. */
  readonly begun = this.#begun.happened;
  kept: { pinned: Pinned; overlays: Overlay[] } | undefined;
  verdictNow: Verdict | undefined;
  hold_: HoldState = thawed;
  onReserve: (request: ReserveRequest) => Awaited<ReturnType<FreezeRoom['reserve']>> = () => ({
    gaps: [],
    expectedFileSystems: 2,
    guestOs: 'debian',
    windowLimitMs: 30_000,
  });
  onFreeze: FreezeRoom['freeze'] = async () => ({
    frozenFileSystems: 2,
    frozenUnixMs: 1_700_000_000_000.4,
    freezeCallMs: 12.5,
    gaps: [],
  });
  onHold: () => void = () => {};
  /** Holds wait for a freeze, or for the test's word. */
  freezesLater = false;
  onThaw: () => Promise<Verdict> = async () => heldVerdict;
  onReserveForDelete: () => Awaited<ReturnType<FreezeRoom['reserveForDelete']>> = () => undefined;

  async start() {}
  async reserve(request: ReserveRequest) {
    this.calls.push(`reserve ${request.window}`);
    return this.onReserve(request);
  }
  async keepPrepared(window: string, prepared: { pinned: Pinned; overlays: Overlay[] }) {
    this.calls.push(`keepPrepared ${window}`);
    this.kept = prepared;
  }
  prepared() {
    return this.kept;
  }
  async freeze(request: Parameters<FreezeRoom['freeze']>[0]) {
    this.calls.push(`freeze ${request.cuts.join(',')} ${request.freezeTimeoutMs}`);
    const frozen = await this.onFreeze(request);
    for (const hold of this.holds) hold.go();
    return frozen;
  }
  hold(_vm: string, _window: string, cut: string): Hold {
    this.calls.push(`hold ${cut}`);
    this.onHold();
    const hold = new FakeHold();
    if (!this.freezesLater) hold.go();
    this.holds.push(hold);
    this.#begun.happens(hold);
    return hold;
  }
  thaw(_vm: string, _window: string, reason: string) {
    this.calls.push(`thaw: ${reason}`);
    return this.onThaw();
  }
  verdict() {
    return this.verdictNow;
  }
  async closeForUndo(_vm: string, window: string) {
    this.calls.push(`closeForUndo ${window}`);
  }
  async release(_vm: string, released: string) {
    this.calls.push(`release ${released}`);
    return true;
  }
  async reserveForDelete() {
    this.calls.push('reserveForDelete');
    return this.onReserveForDelete();
  }
  async thawVm(_vm: string, askedBy: string) {
    this.calls.push(`thawVm by ${askedBy}`);
    return { thawedFileSystems: 2, lostWindow: window1 };
  }
  async thawArrived(_vm: string, window: string) {
    this.calls.push(`thawArrived ${window}`);
    return 3;
  }
  async releaseVm(_vm: string, askedBy: string) {
    this.calls.push(`releaseVm by ${askedBy}`);
    return { vm: vmUuid, operation, window: window1, installation: 'site-a', reservedUnixMs: 5 };
  }
  state() {
    return this.hold_;
  }
  states() {
    return [{ vm: vmUuid, state: this.hold_ }];
  }
  warnings() {
    return ['guest web-1 is still frozen'];
  }
  installation() {
    return 'site-a';
  }
  async shutdown() {}
}

/** A snapshot room that records what it is asked and answers what the test says. */
export class FakeSnapshotRoom implements SnapshotRoom {
  readonly diskLocations = ['/images'];
  readonly calls: string[] = [];
  onPrepare: () => Promise<{ vm: Vm; pinned: Omit<Pinned, 'fileSystems' | 'osId'>; overlays: Overlay[] }> =
    async () => ({
      vm,
      pinned,
      overlays: [overlay],
    });
  onCut: () => Promise<{ transactionMs: number }> = async () => ({ transactionMs: 17.5 });
  onUndo: SnapshotRoom['undo'] = async ({ overlays }) =>
    overlays.map(({ target, overlayPath, basePath }) => ({
      target,
      overlayPath,
      basePath,
      outcome: 'committed',
      detail: '',
      reason: '',
    }));

  async leftOut() {
    return new Map([
      ['vda', undefined],
      ['vdb', 'network' as const],
    ]);
  }
  async sizeBytes() {
    return 1_073_741_824;
  }
  async overlayFiles() {
    const path = `/images/web-1.sp-${window1}.qcow2`;
    return {
      overlays: [
        { path, window: window1, usedBy: { vm: vmUuid, target: 'vda' } },
        { path: `/images/old.sp-${window1}.qcow2`, window: window1, usedBy: undefined },
      ],
      unreadVms: ['00000000-0000-4000-8000-000000000001'],
    };
  }
  prepare() {
    this.calls.push('prepare');
    return this.onPrepare();
  }
  cut() {
    this.calls.push('cut');
    return this.onCut();
  }
  undo(request: Parameters<SnapshotRoom['undo']>[0]) {
    this.calls.push('undo');
    return this.onUndo(request);
  }
  delete(request: Parameters<SnapshotRoom['delete']>[0]) {
    this.calls.push('delete');
    return this.onUndo(request);
  }
}

/** As much of a hypervisor as rpc/ asks itself. */
export function fakeHypervisor(facts: Hypervisor['facts']): Hypervisor {
  const unused = async () => {
    throw new Error('rpc/ does not ask this');
  };
  return {
    kind: 'simulated',
    facts,
    listVms: async () => [vm, { ...vm, uuid: '00000000-0000-4000-8000-000000000001', name: 'a-first' }],
    getVm: async (uuid) => {
      if (uuid === vmUuid) return vm;
      throw new HostAgentError('VM_NOT_FOUND', `No VM ${uuid}.`, { metadata: { vm: uuid } });
    },
    getVmBehindJob: unused,
    setNote: unused,
    setAgentTimeout: unused,
    guestOs: unused,
    guestFileSystems: unused,
    freezeStatus: unused,
    freeze: unused,
    thaw: unused,
    snapshotDisks: unused,
    mergeOverlay: unused,
    replaceImage: unused,
    images: { resolve: unused, info: unused } as unknown as Hypervisor['images'],
    onEvent: () => () => {},
    start: async () => {},
    close: async () => {},
  };
}
