import type { LeftOutDisk, PlannedVolume } from '@stillpoint/workflows';
import type { HostDisk, HostVm } from '../hosts/hosts.js';
import { ActivityError } from './failure.js';
import type { DiskVerdict } from './volume-disks.js';

/** Which disks a snapshot takes. */
export interface DiskChoice {
  setDisks: string[];
  localDisks: string[];
  volumes: PlannedVolume[];
  unquiesced: string[];
  leftOut: LeftOutDisk[];
}

type Asked = { disks?: string[]; unquiesced?: string[] };

/**
 * The disks that the request means and the host can tell nothing against: those of which Cinder is then asked.
 *
 * @throws ActivityError DISK_NOT_FOUND
 */
export function candidates(vm: HostVm, asked: Asked): HostDisk[] {
  for (const target of [...(asked.disks ?? []), ...(asked.unquiesced ?? [])]) requireDisk(vm, target);
  return vm.disks.filter((disk) => (whyNot(disk, undefined) ?? whyNotMeant(disk, asked.disks)) === undefined);
}

/**
 * Chooses the disks: those that are named, else all writable ones that can be snapshotted. Every other disk is left out with its reason. `whose`: Cinder's
 * word on the candidates.
 *
 * @throws ActivityError DISK_NOT_FOUND, DISK_NOT_SNAPSHOTTABLE (of a named disk), NO_DISKS
 */
export function chooseDisks(vm: HostVm, asked: Asked, whose: ReadonlyMap<string, DiskVerdict>): DiskChoice {
  for (const target of asked.unquiesced ?? []) requireDisk(vm, target);
  for (const target of asked.disks ?? []) {
    const problem = whyNot(requireDisk(vm, target), whose.get(target));
    if (problem !== undefined) {
      throw new ActivityError(
        'DISK_NOT_SNAPSHOTTABLE',
        `Disk ${target} of ${vm.name} cannot be snapshotted: ${problem}.`,
        {
          advice: 'Leave this disk out.',
          metadata: { disk: target },
        },
      );
    }
  }
  const choice: DiskChoice = { setDisks: [], localDisks: [], volumes: [], unquiesced: [], leftOut: [] };
  for (const disk of vm.disks) {
    const verdict = whose.get(disk.target);
    const volume = verdict !== undefined && 'volume' in verdict ? verdict.volume : undefined;
    const reason = whyNot(disk, verdict) ?? whyNotMeant(disk, asked.disks);
    if (reason !== undefined) {
      choice.leftOut.push({ target: disk.target, reason, writable: disk.writable });
      continue;
    }
    choice.setDisks.push(disk.target);
    if (volume === undefined) choice.localDisks.push(disk.target);
    else choice.volumes.push(volume);
  }
  if (choice.setDisks.length === 0) {
    const reasons = choice.leftOut.map((disk) => `${disk.target}: ${disk.reason}`).join('; ');
    throw new ActivityError(
      'NO_DISKS',
      `No disk of ${vm.name} can be snapshotted${reasons === '' ? '' : ` (${reasons})`}.`,
    );
  }
  choice.unquiesced = (asked.unquiesced ?? []).filter((target) => choice.setDisks.includes(target));
  return choice;
}

function requireDisk(vm: HostVm, target: string): HostDisk {
  const disk = vm.disks.find((candidate) => candidate.target === target);
  if (disk !== undefined) return disk;
  throw new ActivityError('DISK_NOT_FOUND', `${vm.name} has no disk ${target}.`, {
    advice: `Its disks are ${vm.disks.map((candidate) => candidate.target).join(', ') || 'none'}.`,
    metadata: { disk: target },
  });
}

/** Why a disk cannot be part of a snapshot, whoever asks; undefined: it can. */
function whyNot(disk: HostDisk, verdict: DiskVerdict | undefined): string | undefined {
  if (disk.leftOut !== '') return disk.leftOut;
  if (verdict !== undefined && 'leftOut' in verdict) return verdict.leftOut;
  if (disk.kind === 'file' || disk.kind === 'block' || disk.kind === 'rbd') return undefined;
  return 'neither a file nor a block device of the host, nor a Ceph volume';
}

function whyNotMeant(disk: HostDisk, named: string[] | undefined): string | undefined {
  if (named !== undefined) return named.includes(disk.target) ? undefined : 'not asked for';
  return disk.writable ? undefined : 'read-only';
}
