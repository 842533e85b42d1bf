import type { GuestFileSystem } from '../hypervisor.js';
import type { CoverageGap } from '../window.js';

/**
 * What a freeze reaches. The kernel's FIFREEZE works where the file system implements it; the guest agent skips the others without
 * a word (EOPNOTSUPP), so their absence shows nowhere but here and in the count. NTFS and ReFS: Windows, through VSS.
 */
const freezable = new Set('ext2 ext3 ext4 xfs btrfs f2fs jfs nilfs2 reiserfs gfs2 ocfs2 bcachefs ntfs refs'.split(' '));
/** Never written, so there is nothing to freeze. */
const readOnly = new Set('iso9660 udf squashfs erofs cramfs romfs cdfs'.split(' '));
/** Where a vfat may stay unfrozen: written by boot loader updates only. */
const bootMountpoints = new Set(['/boot/efi', '/efi', '/boot']);

export interface Coverage {
  gaps: CoverageGap[];
  /** File systems that a freeze of the whole guest is expected to freeze. */
  expectedFileSystems: number;
}

/** Where a freeze does not cover the set (invariant 3), and how many file systems it should report. */
export function judgeCoverage(request: {
  fileSystems: readonly GuestFileSystem[];
  setDisks: readonly string[];
  unquiescedDisks: readonly string[];
}): Coverage {
  const set = new Set(request.setDisks);
  const acceptedByName = new Set(request.unquiescedDisks);
  const gaps: CoverageGap[] = [];
  let expectedFileSystems = 0;

  for (const { type, mountpoints, targets } of byDevice(request.fileSystems)) {
    if (freezable.has(type)) expectedFileSystems++;
    if (readOnly.has(type)) continue;

    const mountpoint = shown(mountpoints[0] ?? '');
    if (targets.length === 0) {
      const reason = `The guest agent cannot tell on which disks ${mountpoint} (${shown(type)}) lies.`;
      gaps.push({ target: '', mountpoint, reason, accepted: false });
      continue;
    }
    const inside = targets.filter((target) => set.has(target));
    const outside = targets.filter((target) => !set.has(target));
    const byName = inside.every((target) => acceptedByName.has(target));
    for (const target of inside) {
      if (!freezable.has(type)) {
        const boot = type === 'vfat' && mountpoints.every((path) => bootMountpoints.has(path));
        const reason = `${mountpoint} is ${shown(type)}, which cannot be frozen.`;
        gaps.push({ target, mountpoint, reason, accepted: boot || byName });
      }
      if (outside.length > 0) {
        const reason = `${mountpoint} lies partly on ${outside.join(', ')}, outside of the set.`;
        gaps.push({ target, mountpoint, reason, accepted: byName });
      }
    }
  }

  const seen = new Set(request.fileSystems.flatMap((fileSystem) => fileSystem.targets));
  for (const target of request.setDisks) {
    if (seen.has(target)) continue;
    const reason = `The guest reports no file system on ${target}.`;
    gaps.push({ target, mountpoint: '', reason, accepted: acceptedByName.has(target) });
  }
  return { gaps, expectedFileSystems };
}

/** The guest's own words go into the journal, into answers and onto terminals: for every disk of the set once. */
function shown(text: string): string {
  const line = text.replace(/\p{Cc}|\p{Cf}|\p{Zl}|\p{Zp}/gu, '?');
  return line.length > 200 ? `${line.slice(0, 200)}…` : line;
}

/** The gap that the count reveals: another number of file systems froze than the guest reported. */
export function countGap(frozen: number, expected: number): CoverageGap[] {
  if (frozen === expected) return [];
  const reason = `${frozen} file systems were frozen where the guest reported ${expected} that can be.`;
  return [{ target: '', mountpoint: '', reason, accepted: false }];
}

/** The file systems as one comparable text, in an order of its own. */
export function fileSystemsText(fileSystems: readonly GuestFileSystem[]): string {
  return fileSystems
    .map(({ device, type, mountpoint, targets }) => JSON.stringify([device, type, mountpoint, [...targets].sort()]))
    .sort()
    .join('\n');
}

/** One entry per file system: several mounts share a device, and the guest agent freezes and counts it once. */
function byDevice(fileSystems: readonly GuestFileSystem[]) {
  const found = new Map<string, { type: string; mountpoints: string[]; targets: string[] }>();
  for (const { device, type, mountpoint, targets } of fileSystems) {
    const known = found.get(device) ?? { type: type.toLowerCase(), mountpoints: [], targets: [] };
    known.mountpoints.push(mountpoint);
    known.targets.push(...targets.filter((target) => !known.targets.includes(target)));
    found.set(device, known);
  }
  return found.values();
}
