import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runProgram } from './programs.js';

/** What fsck said of one file system in an image. */
export interface FileSystemReport {
  /** Partition number, or 0 where the file system fills the disk. */
  readonly partition: number;
  readonly type: 'ext4' | 'vfat';
  /** True: fsck, without changing anything and without replaying a journal, found nothing to repair. */
  readonly clean: boolean;
  /**
   * ext4: its journal must be replayed first, so it was not frozen (nor unmounted) when the cut was made. vfat: it was mounted;
   * Linux cannot freeze vfat, so every live snapshot has that mark, and alone it is nothing to repair.
   */
  readonly needsRecovery: boolean;
  /** The number the guest's writer had put there last; undefined where it does not write. */
  readonly writerNumber: number | undefined;
  /** What fsck printed. */
  readonly output: string;
}

/** The file systems of one image. */
export interface ImageReport {
  readonly path: string;
  readonly clean: boolean;
  readonly fileSystems: readonly FileSystemReport[];
}

/** One disk of a snapshot. */
export interface SnapshotPart {
  /** The disk as the guest has it: vda, vdb, ... */
  readonly target: string;
  /** A file, or what QEMU reads as one: `rbd:...` of a volume's snapshot. */
  readonly image: string;
}

/** What a snapshot of a VM of the lab is worth, by its content alone. */
export interface SetReport {
  readonly images: readonly ImageReport[];
  /** True: fsck found nothing to repair and nothing to replay on any disk. */
  readonly clean: boolean;
  /** What the guest's writer had written last to each file system, in the order in which it goes round them. */
  readonly numbers: readonly number[];
  /** True: the numbers are those of one instant: none is higher than the one before it, and the last is at most one less than the first. */
  readonly ordered: boolean;
}

const MIB = 1024 * 1024;
const SECTOR = 512;
const TYPE_ESP = 0xef;

/**
 * Checks the file systems inside disk images, as they stand in these files and their backing files: e2fsck and fsck.vfat on
 * a copy. The images may be in use as backing files of a running VM; they are only read.
 *
 * @throws LabError PROGRAM_FAILED when an image cannot be read.
 */
export async function verifySnapshot(paths: readonly string[]): Promise<ImageReport[]> {
  return eachImage(paths, verifyImage);
}

/** Does the same with every image, side by side; each has a folder for its copies, which is deleted in the end. */
async function eachImage<T>(
  paths: readonly string[],
  work: (path: string, folder: string) => Promise<T>,
): Promise<T[]> {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-check-'));
  try {
    // All of them, also when one fails: nobody may write into a folder that is gone.
    const done = await Promise.allSettled(
      paths.map(async (path, index) => {
        const own = join(folder, String(index));
        await mkdir(own);
        return work(path, own);
      }),
    );
    return done.map((one) => {
      if (one.status === 'rejected') throw one.reason;
      return one.value;
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * Checks all disks of a snapshot, local and on Ceph: each by itself with fsck, and all together by the order in which the guest's writer
 * wrote to them.
 *
 * @throws LabError PROGRAM_FAILED when an image cannot be read.
 */
export async function verifySet(parts: readonly SnapshotPart[]): Promise<SetReport> {
  const images = await verifySnapshot(inWritersOrder(parts));
  const numbers = images.flatMap(({ fileSystems }) => fileSystems.flatMap(({ writerNumber }) => writerNumber ?? []));
  return { images, clean: images.every(({ clean }) => clean), numbers, ordered: isOrdered(numbers) };
}

/**
 * What the guest's writer had written last to each file system of a snapshot, in the order in which it goes round them: without fsck, which takes most of
 * the time.
 *
 * @throws LabError PROGRAM_FAILED when an image cannot be read.
 */
export async function readNumbers(parts: readonly SnapshotPart[]): Promise<number[]> {
  const numbers = await eachImage(inWritersOrder(parts), async (path, folder) => {
    const fileSystems = await fileSystemsIn(path, folder);
    return Promise.all(fileSystems.map(({ type, at }) => (type === 'ext4' ? readWriterNumber(at) : undefined)));
  });
  return numbers.flat().filter((number) => number !== undefined);
}

/** The order of the targets is the one in which the writer goes round. */
function inWritersOrder(parts: readonly SnapshotPart[]): string[] {
  return [...parts].sort((one, other) => (one.target < other.target ? -1 : 1)).map(({ image }) => image);
}

/** True where the writer's numbers can be those of one instant. */
export function isOrdered(numbers: readonly number[]): boolean {
  const [first, last] = [numbers[0] ?? Number.NaN, numbers.at(-1) ?? Number.NaN];
  return first - last <= 1 && numbers.every((number, index) => index === 0 || number <= (numbers[index - 1] ?? 0));
}

async function verifyImage(path: string, folder: string): Promise<ImageReport> {
  const fileSystems: FileSystemReport[] = [];
  for (const { partition, type, at } of await fileSystemsIn(path, folder)) {
    fileSystems.push(type === 'vfat' ? await checkVfat(at, partition) : await checkExt4(at, partition));
  }
  return { path, clean: fileSystems.every((fileSystem) => fileSystem.clean), fileSystems };
}

/** Copies an image into the folder; answers its file systems, and how the tools of each are told where it is. */
async function fileSystemsIn(
  path: string,
  folder: string,
): Promise<(Pick<FileSystemReport, 'partition' | 'type'> & { at: string })[]> {
  const raw = join(folder, 'disk.raw');
  // -U: QEMU has it open; nobody writes to it once an overlay is on top.
  await runProgram('qemu-img', ['convert', '-U', '-O', 'raw', path, raw]);
  const partitions = readPartitions(raw);
  if (partitions.length === 0) return [{ partition: 0, type: 'ext4', at: raw }];
  return Promise.all(
    partitions.map(async ({ number, type, start, size }) => {
      // The tools of ext4 find it inside the disk (libext2fs), fsck.vfat wants a file of its own.
      if (type !== TYPE_ESP) return { partition: number, type: 'ext4' as const, at: `${raw}?offset=${start}` };
      const at = join(folder, `partition-${number}.raw`);
      const blocks = [`skip=${start / MIB}`, `count=${Math.ceil(size / MIB)}`];
      await runProgram('dd', [`if=${raw}`, `of=${at}`, 'bs=1M', ...blocks, 'conv=sparse', 'status=none']);
      return { partition: number, type: 'vfat' as const, at };
    }),
  );
}

interface PartitionEntry {
  readonly number: number;
  readonly type: number;
  /** Bytes. */
  readonly start: number;
  /** Bytes. */
  readonly size: number;
}

/** The primary partitions of a master boot record; none where the disk has no such record. */
function readPartitions(raw: string): PartitionEntry[] {
  const record = Buffer.alloc(SECTOR);
  const handle = openSync(raw, 'r');
  readSync(handle, record, 0, SECTOR, 0);
  closeSync(handle);
  if (record.readUInt16LE(510) !== 0xaa55) return [];
  return [0, 1, 2, 3].flatMap((index) => {
    const entry = 446 + index * 16;
    const type = record.readUInt8(entry + 4);
    if (type === 0) return [];
    const start = record.readUInt32LE(entry + 8) * SECTOR;
    return [{ number: index + 1, type, start, size: record.readUInt32LE(entry + 12) * SECTOR }];
  });
}

async function checkExt4(image: string, partition: number): Promise<FileSystemReport> {
  const check = await runProgram('e2fsck', ['-fn', image], { accept: [0, 1, 2, 4, 8, 12] });
  const header = await runProgram('dumpe2fs', ['-h', image], { accept: [0, 1] });
  const needsRecovery = /^Filesystem features:.*\bneeds_recovery\b/m.test(header.stdout);
  return {
    partition,
    type: 'ext4',
    clean: check.exitCode === 0 && !needsRecovery,
    needsRecovery,
    writerNumber: await readWriterNumber(image),
    output: `${check.stdout}${check.stderr}`.trim(),
  };
}

async function readWriterNumber(image: string): Promise<number | undefined> {
  // debugfs ends with 0 where the file does not exist, and says so on its error stream. -c: read as it is.
  const { stdout } = await runProgram('debugfs', ['-c', '-R', 'cat /writer/number', image], { accept: [0, 1] });
  return /^\d{10}\n$/.test(stdout) ? Number(stdout) : undefined;
}

async function checkVfat(image: string, partition: number): Promise<FileSystemReport> {
  const needsRecovery = clearMountedMark(image);
  const check = await runProgram('fsck.vfat', ['-n', image], { accept: [0, 1, 2] });
  return {
    partition,
    type: 'vfat',
    clean: check.exitCode === 0,
    needsRecovery,
    writerNumber: undefined,
    output: `${check.stdout}${check.stderr}`.trim(),
  };
}

/** Takes the mark of a mounted vfat out of the (copied) image, which fsck would report and nothing else; says if it was there. */
function clearMountedMark(image: string): boolean {
  const handle = openSync(image, 'r+');
  try {
    const boot = Buffer.alloc(SECTOR);
    readSync(handle, boot, 0, SECTOR, 0);
    // FAT32 has no 16-bit count of sectors for its table, and the state byte further behind.
    const at = boot.readUInt16LE(22) === 0 ? 0x41 : 0x25;
    const marked = (boot.readUInt8(at) & 1) !== 0;
    boot.writeUInt8(boot.readUInt8(at) & ~1, at);
    writeSync(handle, boot, 0, SECTOR, 0);
    return marked;
  } finally {
    closeSync(handle);
  }
}
