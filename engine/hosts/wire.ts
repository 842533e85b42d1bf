import * as wire from '@stillpoint/proto';
import type { Quiesce } from '@stillpoint/workflows';
import type {
  HostDisk,
  HostFacts,
  HostHold,
  HostMergeProgress,
  HostMergeResult,
  HostOverlay,
  HostOverlayFiles,
  HostVerdict,
  HostVm,
} from './hosts.js';

/** What the wire says, as the engine's own types. What is missing or unknown becomes the careful answer, never a hopeful one. */

export function factsFromWire(facts: wire.GetHostResponse): HostFacts {
  const { installationId, holds, ...rest } = facts;
  const known = holds.map(({ vmUuid, hold }) => ({ vm: vmUuid, hold: holdFromWire(hold) }));
  return { ...rest, installation: installationId, holds: known };
}

export function vmFromWire(vm: wire.Vm | undefined): HostVm {
  if (vm === undefined) throw new TypeError('the host agent answered without a VM');
  return {
    uuid: vm.uuid,
    name: vm.name,
    state: vmStates[vm.state] ?? 'other',
    guestAgent: guestAgentStates[vm.guestAgent] ?? 'unknown',
    disks: vm.disks.map(diskFromWire),
    hold: holdFromWire(vm.hold),
  };
}

function diskFromWire(disk: wire.Disk): HostDisk {
  const { leftOut, kind, ...rest } = disk;
  return { ...rest, kind: diskKinds[kind] ?? 'other', leftOut: leftOutReasons[leftOut] ?? 'unknown reason' };
}

function holdFromWire(hold: wire.Hold | undefined): HostHold {
  return {
    operation: hold?.operationId ?? '',
    window: hold?.windowId ?? '',
    installation: hold?.installationId ?? '',
    reservedUnixMs: hold?.reservedUnixMs ?? 0,
    freezeState: hold === undefined ? 'unknown' : (freezeStates[hold.freezeState] ?? 'unknown'),
    frozenUnixMs: hold?.frozenUnixMs ?? 0,
    freezeDetail: hold?.freezeDetail ?? '',
    windowLimitMs: hold?.windowLimitMs ?? 0,
  };
}

export function verdictFromWire(verdict: wire.Verdict): HostVerdict {
  const { windowId, ...rest } = verdict;
  return { ...rest, window: windowId };
}

export function mergeProgressFromWire(progress: wire.MergeProgress): HostMergeProgress {
  return progress;
}

export function mergeResultFromWire(result: wire.MergeResult): HostMergeResult {
  const disks = result.disks.map((disk) => ({ ...disk, outcome: mergeOutcomes[disk.outcome] ?? 'pending' }));
  return { complete: result.complete && disks.every((disk) => disk.outcome !== 'pending'), disks };
}

export function overlaysFromWire({ overlays, unreadVmUuids }: wire.ListOverlaysResponse): HostOverlayFiles {
  return {
    overlays: overlays.map(({ path, windowId, vmUuid, target }) => ({
      path,
      window: windowId,
      usedBy: vmUuid === '' ? undefined : { vm: vmUuid, target },
    })),
    unreadVms: unreadVmUuids,
  };
}

export function overlayToWire(overlay: HostOverlay): wire.Overlay {
  return overlay;
}

export const quiesceToWire: Record<Quiesce, wire.Quiesce> = {
  required: wire.Quiesce.REQUIRED,
  'best-effort': wire.Quiesce.BEST_EFFORT,
  skip: wire.Quiesce.SKIP,
};

const vmStates: Partial<Record<number, HostVm['state']>> = {
  [wire.VmState.RUNNING]: 'running',
  [wire.VmState.PAUSED]: 'paused',
  [wire.VmState.SHUT_OFF]: 'shut-off',
};

const guestAgentStates: Partial<Record<number, HostVm['guestAgent']>> = {
  [wire.GuestAgentState.CONNECTED]: 'connected',
  [wire.GuestAgentState.DISCONNECTED]: 'disconnected',
  [wire.GuestAgentState.NOT_CONFIGURED]: 'not-configured',
};

const freezeStates: Partial<Record<number, HostHold['freezeState']>> = {
  [wire.FreezeState.THAWED]: 'thawed',
  [wire.FreezeState.FREEZING]: 'freezing',
  [wire.FreezeState.FROZEN]: 'frozen',
  [wire.FreezeState.THAWING]: 'thawing',
  [wire.FreezeState.MAYBE_FROZEN]: 'maybe-frozen',
  [wire.FreezeState.STILL_FROZEN]: 'still-frozen',
};

const diskKinds: Partial<Record<number, HostDisk['kind']>> = {
  [wire.DiskKind.FILE]: 'file',
  [wire.DiskKind.BLOCK]: 'block',
  [wire.DiskKind.RBD]: 'rbd',
  [wire.DiskKind.NETWORK]: 'network',
};

const leftOutReasons: Partial<Record<number, string>> = {
  [wire.LeftOutReason.UNSPECIFIED]: '',
  [wire.LeftOutReason.READ_ONLY]: 'read-only',
  [wire.LeftOutReason.SHAREABLE]: 'shared with other VMs',
  [wire.LeftOutReason.LUN]: 'a LUN passed through',
  [wire.LeftOutReason.REMOVABLE]: 'CD-ROM or floppy',
  [wire.LeftOutReason.NETWORK]: 'a network disk that is no volume Stillpoint knows',
  [wire.LeftOutReason.LOCATION]: "outside the folders and devices of the host agent's configuration",
  [wire.LeftOutReason.FORMAT]: 'of a format that takes no overlay',
  [wire.LeftOutReason.TRANSIENT]: 'transient: its changes are thrown away at shutdown',
  [wire.LeftOutReason.NO_SOURCE]: 'without a source',
};

const mergeOutcomes: Partial<Record<number, HostMergeResult['disks'][number]['outcome']>> = {
  [wire.MergeOutcome.UNUSED_DELETED]: 'unused-deleted',
  [wire.MergeOutcome.COMMITTED]: 'committed',
  [wire.MergeOutcome.NOT_FOUND]: 'not-found',
  [wire.MergeOutcome.PENDING]: 'pending',
};

/** So long may a reason be that the host agent writes into its journal, characters. */
const longestReason = 500;

/** What went wrong elsewhere, as the host agent takes it: other people's text must not be why a thaw is refused. */
export function reasonToWire(reason: string): string {
  return reason.slice(0, longestReason).replace(/[\p{Cc}\p{Cs}]+/gu, ' ');
}
