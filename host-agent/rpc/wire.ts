import * as wire from '@stillpoint/proto';
import type { Disk, Vm } from '../hypervisor.js';
import type { FreezeState, HoldState, LeftOut, MergedDisk, MergeOutcome, OverlayFile, Verdict } from '../window.js';

/** The host agent's own types as the wire has them. Generated types go no further than this folder. */

export function vmToWire(
  vm: Vm,
  seen: { leftOut: Map<string, LeftOut | undefined>; sizes: Map<string, number>; hold: HoldState },
): wire.Vm {
  return {
    uuid: vm.uuid,
    name: vm.name,
    domainId: vm.domainId ?? -1,
    state: vmStates[vm.state],
    guestAgent: guestAgentStates[vm.guestAgent],
    disks: vm.disks.map((disk) => diskToWire(disk, seen.leftOut.get(disk.target), seen.sizes.get(disk.target) ?? 0)),
    hold: holdToWire(seen.hold),
    persistent: vm.persistent,
  };
}

export function holdToWire(hold: HoldState): wire.Hold {
  return {
    operationId: hold.reservation?.operation ?? '',
    windowId: hold.reservation?.window ?? '',
    installationId: hold.reservation?.installation ?? '',
    reservedUnixMs: hold.reservation === undefined ? 0 : wholeMs(hold.reservation.reservedUnixMs),
    freezeState: freezeStates[hold.freezeState],
    frozenUnixMs: wholeMs(hold.frozenUnixMs),
    freezeDetail: hold.detail,
    windowLimitMs: wholeMs(hold.windowLimitMs),
  };
}

export function verdictToWire(verdict: Verdict): wire.Verdict {
  return {
    windowId: verdict.window,
    held: verdict.held,
    lostReason: verdict.lostReason ?? '',
    detail: verdict.detail,
    neverAsked: verdict.neverAsked ?? false,
    frozenFileSystems: verdict.frozenFileSystems,
    thawedFileSystems: verdict.thawedFileSystems ?? -1,
    windowMs: verdict.windowMs,
    frozenUnixMs: wholeMs(verdict.frozenUnixMs),
    thawedUnixMs: wholeMs(verdict.thawedUnixMs),
    thawedBy: verdict.thawedBy,
    cuts: verdict.cuts.map((cut) => ({
      cut: cut.cut,
      heldMs: cut.heldMs ?? -1,
      endedMs: cut.endedMs ?? -1,
      outcome: cut.outcome,
      reason: cut.reason,
    })),
    gaps: verdict.gaps,
  };
}

export function overlayFilesToWire(found: { overlays: OverlayFile[]; unreadVms: string[] }): wire.ListOverlaysResponse {
  return {
    overlays: found.overlays.map(({ path, window, usedBy }) => ({
      path,
      windowId: window,
      vmUuid: usedBy?.vm ?? '',
      target: usedBy?.target ?? '',
    })),
    unreadVmUuids: found.unreadVms,
  };
}

export function mergeResultToWire(disks: MergedDisk[]): wire.MergeResult {
  return {
    disks: disks.map(({ untouched = false, ...disk }) => ({
      ...disk,
      untouched,
      outcome: mergeOutcomes[disk.outcome],
    })),
    complete: disks.every((disk) => disk.outcome !== 'pending'),
  };
}

/** int64 fields take whole numbers only. */
export function wholeMs(ms: number): number {
  return Math.round(ms);
}

function diskToWire(disk: Disk, leftOut: LeftOut | undefined, sizeBytes: number): wire.Disk {
  return {
    target: disk.target,
    kind: diskKinds[disk.kind],
    path: disk.kind === 'file' || disk.kind === 'block' ? (disk.path ?? '') : '',
    image: disk.image ?? '',
    format: disk.format,
    sizeBytes,
    serial: disk.serial ?? '',
    leftOut: leftOut === undefined ? wire.LeftOutReason.UNSPECIFIED : leftOutReasons[leftOut],
    writable: !disk.readOnly && disk.device !== 'cdrom',
    chainDepth: disk.chain.length,
  };
}

const vmStates = {
  running: wire.VmState.RUNNING,
  paused: wire.VmState.PAUSED,
  'shut-off': wire.VmState.SHUT_OFF,
  other: wire.VmState.OTHER,
} as const satisfies Record<Vm['state'], wire.VmState>;

const guestAgentStates = {
  connected: wire.GuestAgentState.CONNECTED,
  disconnected: wire.GuestAgentState.DISCONNECTED,
  'not-configured': wire.GuestAgentState.NOT_CONFIGURED,
  unknown: wire.GuestAgentState.UNSPECIFIED,
} as const satisfies Record<Vm['guestAgent'], wire.GuestAgentState>;

const diskKinds = {
  file: wire.DiskKind.FILE,
  block: wire.DiskKind.BLOCK,
  rbd: wire.DiskKind.RBD,
  network: wire.DiskKind.NETWORK,
  other: wire.DiskKind.UNSPECIFIED,
} as const satisfies Record<Disk['kind'], wire.DiskKind>;

const leftOutReasons = {
  'read-only': wire.LeftOutReason.READ_ONLY,
  shareable: wire.LeftOutReason.SHAREABLE,
  lun: wire.LeftOutReason.LUN,
  removable: wire.LeftOutReason.REMOVABLE,
  network: wire.LeftOutReason.NETWORK,
  location: wire.LeftOutReason.LOCATION,
  format: wire.LeftOutReason.FORMAT,
  transient: wire.LeftOutReason.TRANSIENT,
  'no-source': wire.LeftOutReason.NO_SOURCE,
} as const satisfies Record<LeftOut, wire.LeftOutReason>;

const freezeStates = {
  thawed: wire.FreezeState.THAWED,
  freezing: wire.FreezeState.FREEZING,
  frozen: wire.FreezeState.FROZEN,
  thawing: wire.FreezeState.THAWING,
  'maybe-frozen': wire.FreezeState.MAYBE_FROZEN,
  'still-frozen': wire.FreezeState.STILL_FROZEN,
} as const satisfies Record<FreezeState, wire.FreezeState>;

const mergeOutcomes = {
  'unused-deleted': wire.MergeOutcome.UNUSED_DELETED,
  committed: wire.MergeOutcome.COMMITTED,
  'not-found': wire.MergeOutcome.NOT_FOUND,
  pending: wire.MergeOutcome.PENDING,
} as const satisfies Record<MergeOutcome, wire.MergeOutcome>;
