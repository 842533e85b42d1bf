import type { LeftOutDisk } from '@stillpoint/workflows';
import type { HostDisk, HostVm } from '../hosts/hosts.js';
import { ActivityError } from './failure.js';

/** Which disks a snapshot takes. */
export interface DiskChoice {
  setDisks: string[];
  localDisks: string[];
  unquiesced: string[];
  leftOut: LeftOutDisk[];
}

/**
 * Chooses the disks: those that are named, else all writable ones that can be snapshotted. Every other disk is left out with its reason.
 *
 * @throws ActivityError DISK_NOT_FOUND, DISK_NOT_SNAPSHOTTABLE (of a named disk), NO_DISKS
 */
export function chooseDisks(vm: HostVm, asked: { disks?: string[]; unquiesced?: string[] }): DiskChoice {
  for (const target of [...(asked.disks ?? []), ...(asked.unquiesced ?? [])]) requireDisk(vm, target);
  for (const target of asked.disks ?? []) {
    const problem = whyNot(requireDisk(vm, target));
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
  const leftOut: LeftOutDisk[] = [];
  const setDisks: string[] = [];
  for (const disk of vm.disks) {
    const reason = whyNot(disk) ?? whyNotMeant(disk, asked.disks);
    if (reason === undefined) setDisks.push(disk.target);
    else leftOut.push({ target: disk.target, reason, writable: disk.writable });
  }
  if (setDisks.length === 0) {
    const reasons = leftOut.map((disk) => `${disk.target}: ${disk.reason}`).join('; ');
    throw new ActivityError(
      'NO_DISKS',
      `No disk of ${vm.name} can be snapshotted${reasons === '' ? '' : ` (${reasons})`}.`,
    );
  }
  const unquiesced = (asked.unquiesced ?? []).filter((target) => setDisks.includes(target));
  return { setDisks, localDisks: setDisks, unquiesced, leftOut };
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
function whyNot(disk: HostDisk): string | undefined {
  if (disk.leftOut !== '') return disk.leftOut;
  if (disk.kind === 'rbd') return 'a Ceph volume, which this version does not snapshot';
  if (disk.kind === 'file' || disk.kind === 'block') return undefined;
  return 'neither a file nor a block device of the host';
}

function whyNotMeant(disk: HostDisk, named: string[] | undefined): string | undefined {
  if (named !== undefined) return named.includes(disk.target) ? undefined : 'not asked for';
  return disk.writable ? undefined : 'read-only';
}
