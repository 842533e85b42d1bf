import { countGap, judgeCoverage } from '@stillpoint/host-agent/freeze/coverage.js';
import { expect, test } from 'vitest';
import { fileSystem } from './fixture.js';

const judge = (fileSystems: ReturnType<typeof fileSystem>[], setDisks: string[], unquiescedDisks: string[] = []) => {
  const { gaps, expectedFileSystems } = judgeCoverage({ fileSystems, setDisks, unquiescedDisks });
  return {
    expected: expectedFileSystems,
    gaps: gaps.map(({ target, mountpoint, accepted }) => `${target}:${mountpoint}${accepted ? ' accepted' : ''}`),
  };
};

test('file systems that can be frozen and lie inside the set leave no gap, and a device counts once', () => {
  const mounts = [
    fileSystem('/', 'ext4', ['vda'], 'vda1'),
    fileSystem('/var/lib/docker', 'ext4', ['vda'], 'vda1'),
    fileSystem('/data', 'xfs', ['vdb', 'vdc'], 'dm-0'),
    fileSystem('C:\\', 'NTFS', ['vdd']),
  ];
  expect(judge(mounts, ['vda', 'vdb', 'vdc', 'vdd'])).toEqual({ expected: 3, gaps: [] });
});

test('the whole guest is frozen, so file systems outside of the set count and leave no gap', () => {
  const mounts = [fileSystem('/', 'ext4', ['vda']), fileSystem('/mnt', 'btrfs', ['vdz'])];
  expect(judge(mounts, ['vda'])).toEqual({ expected: 2, gaps: [] });
});

test.each(['/boot/efi', '/efi', '/boot'])('a vfat at %s may stay unfrozen', (mountpoint) => {
  const mounts = [fileSystem('/', 'ext4', ['vda']), fileSystem(mountpoint, 'vfat', ['vda'])];
  expect(judge(mounts, ['vda'])).toEqual({ expected: 1, gaps: [`vda:${mountpoint} accepted`] });
});

test.each([
  ['vfat', '/mnt/stick'],
  ['exfat', '/boot/efi'],
  ['zfs', '/tank'],
])('a %s at %s is a gap', (type, mountpoint) => {
  const mounts = [fileSystem('/', 'ext4', ['vda']), fileSystem(mountpoint, type, ['vda'])];
  expect(judge(mounts, ['vda'])).toEqual({ expected: 1, gaps: [`vda:${mountpoint}`] });
});

test('a vfat that is mounted at /boot/efi and elsewhere too is a gap', () => {
  const mounts = [fileSystem('/boot/efi', 'vfat', ['vda'], 'vda1'), fileSystem('/mnt', 'vfat', ['vda'], 'vda1')];
  expect(judge(mounts, ['vda']).gaps).toEqual(['vda:/boot/efi']);
});

test('read-only types are no gap and count nothing', () => {
  const mounts = [fileSystem('/', 'ext4', ['vda']), fileSystem('/snap/core', 'squashfs', ['vda'])];
  expect(judge([...mounts, fileSystem('/cdrom', 'iso9660', ['sda'])], ['vda'])).toEqual({ expected: 1, gaps: [] });
});

test('a file system that lies partly outside of the set is a gap', () => {
  const mounts = [fileSystem('/data', 'xfs', ['vda', 'vdb'])];
  expect(judge(mounts, ['vda']).gaps).toEqual(['vda:/data']);
  expect(judge(mounts, ['vda'], ['vda']).gaps).toEqual(['vda:/data accepted']);
});

test('a disk without a file system is a gap, unless the request accepts it by name', () => {
  const mounts = [fileSystem('/', 'ext4', ['vda'])];
  expect(judge(mounts, ['vda', 'vdb', 'vdc'], ['vdc']).gaps).toEqual(['vdb:', 'vdc: accepted']);
});

test('a file system of which the guest agent cannot tell the disks is a gap', () => {
  const mounts = [fileSystem('/', 'ext4', []), fileSystem('/data', 'ext4', ['vdb'])];
  expect(judge(mounts, ['vda', 'vdb'], ['vda', 'vdb'])).toEqual({ expected: 2, gaps: [':/', 'vda: accepted'] });
});

test('another count than expected is a gap that nothing accepts', () => {
  expect(countGap(2, 2)).toEqual([]);
  expect(countGap(1, 2)).toMatchObject([{ target: '', accepted: false }]);
  expect(countGap(3, 2)).toMatchObject([{ target: '', accepted: false }]);
});
