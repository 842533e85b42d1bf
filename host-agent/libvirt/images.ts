import { execFile } from 'node:child_process';
import { type BigIntStats, constants } from 'node:fs';
import {
  type FileHandle,
  lstat,
  open,
  readdir,
  readFile,
  readlink,
  realpath,
  rm,
  stat,
  statfs,
  unlink,
} from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import { HostAgentError, isHostAgentError } from '../errors.js';
import type { ImageInfo, Images } from '../hypervisor.js';

export interface QemuImagesSettings {
  /** Default `qemu-img`, found on the PATH. */
  qemuImg?: string;
  /** How long qemu-img may take for anything but a commit, in ms; default 30 000. A commit copies data and has no limit: killed, it would begin anew. */
  timeoutMs?: number;
  /** Where the kernel shows processes; default `/proc`. */
  procFolder?: string;
}

const run = promisify(execFile);

const infoAnswer = z.object({
  format: z.string(),
  'virtual-size': z.number(),
  'backing-filename': z.string().optional(),
  'backing-filename-format': z.string().optional(),
});

/** QEMU's own limit of a qcow2's first table, in bytes (QCOW_MAX_L1_SIZE). */
const largestTable = 32 * 1024 * 1024;

/** A backing file that another program of the network serves: QEMU names it `protocol:…`. */
const remoteImage = /^(rbd|nbd|nbd\+unix|https?|ftps?|ssh|iscsi|nfs|gluster(\+[a-z]+)?):/;
/** QEMU takes what stands before the first colon for a protocol, unless a slash comes first. */
const namesProtocol = /^[^/]*:/;

/**
 * The port's images on a Linux host: qemu-img and the file system.
 *
 * Formats are always named: a guest can write a qcow2 header onto its raw disk, and a tool that probes would then follow the guest's choice of
 * backing file. qemu-img's texts are read only for the two conditions that have no other sign: a locked image and a full disk.
 */
export function createQemuImages(settings: QemuImagesSettings = {}): Images {
  const qemuImg = settings.qemuImg ?? 'qemu-img';
  const timeoutMs = settings.timeoutMs ?? 30_000;
  const procFolder = settings.procFolder ?? '/proc';

  async function qemu(args: string[], limitMs = timeoutMs): Promise<string> {
    try {
      const { stdout } = await run(qemuImg, args, {
        timeout: limitMs,
        killSignal: 'SIGKILL',
        env: { ...process.env, LC_ALL: 'C' },
      });
      return stdout;
    } catch (cause) {
      const stderr = isExecFailure(cause) ? cause.stderr.trim() : '';
      throw new HostAgentError('IMAGE_INVALID', `qemu-img ${args[0]} failed: ${stderr || String(cause)}`, {
        cause,
      });
    }
  }

  async function info(path: string, format: string): Promise<ImageInfo> {
    await imageAt(path);
    const text = await qemu(['info', '-U', '-f', format, '--output=json', absolute(path)]);
    const answer = parse(infoAnswer, text, path);
    const backing = answer['backing-filename'];
    return {
      format: answer.format,
      virtualSizeBytes: answer['virtual-size'],
      backing: await backingPath(path, backing),
      backingFormat: answer['backing-filename-format'],
    };
  }

  async function backingPath(path: string, named: string | undefined): Promise<string | undefined> {
    if (named === undefined || remoteImage.test(named)) return undefined;
    // `json:…` and `file:…` may well lead to a file of this host: one of ours, and it would be seen as unused.
    if (namesProtocol.test(named))
      throw new HostAgentError('IMAGE_INVALID', `${path} names ${named} below it, which is no path.`);
    return resolve(dirname(await realpath(path)), named);
  }

  return {
    async resolve(path) {
      const real = await realpath(absolute(path)).catch((cause: unknown) => {
        throw notFound(path, cause);
      });
      return { path: real, kind: (await imageAt(real)).isFile() ? 'file' : 'block' };
    },

    info,

    async sizeBytes(path, format) {
      const found = await imageAt(path);
      if (format === 'qcow2') return await qcow2SizeBytes(path);
      if (format !== 'raw')
        throw new HostAgentError('IMAGE_INVALID', `The size of a ${format} image is not read: ${path}`);
      return found.isBlockDevice() ? await blockDeviceSizeBytes(path, found.rdev) : Number(found.size);
    },

    async freeBytes(folder) {
      const { bavail, bsize } = await statfs(folder).catch((cause: unknown) => {
        throw notFound(folder, cause);
      });
      return bavail * bsize;
    },

    async createOverlay({ path, base, baseFormat, sizeBytes, likeFile }) {
      const like = await statOf(likeFile);
      await statOf(base);
      // Made exclusively first: qemu-img would overwrite whatever is there.
      const file = await open(absolute(path), constants.O_CREAT | constants.O_EXCL | constants.O_RDWR, 0o600).catch(
        (cause: unknown) => {
          throw isErrno(cause, 'EEXIST')
            ? new HostAgentError('OVERLAY_EXISTS', `${path} exists already.`, { cause })
            : isErrno(cause, 'ENOSPC')
              ? new HostAgentError('NO_SPACE', `No space left for ${path}.`, { cause })
              : notFound(dirname(path), cause);
        },
      );
      try {
        // -u: the base is not opened; a running QEMU holds it.
        await qemu([
          'create',
          '-q',
          '-u',
          '-f',
          'qcow2',
          '-F',
          baseFormat,
          '-b',
          absolute(base),
          path,
          String(sizeBytes),
        ]);
        await file.chown(Number(like.uid), Number(like.gid));
        await file.chmod(Number(like.mode & 0o777n));
        await file.sync();
        await syncFolder(dirname(path));
      } catch (error) {
        // qemu-img may have deleted it itself.
        await rm(path, { force: true });
        const full = isErrno(error, 'ENOSPC') || stderrOf(error).includes('No space left on device');
        throw full ? new HostAgentError('NO_SPACE', `No space left for ${path}.`, { cause: error }) : error;
      } finally {
        await file.close();
      }
    },

    async isOpen(path) {
      const wanted = await stat(path, { bigint: true }).catch(() => undefined);
      if (wanted === undefined) return false;
      for (const process of await readdir(procFolder)) {
        if (/^\d+$/.test(process) && (await hasOpen(join(procFolder, process, 'fd'), wanted))) return true;
      }
      return false;
    },

    async isEmptyOverlay(path) {
      await imageAt(path);
      return await hasEmptyTable(path);
    },

    async commitOffline(overlay) {
      const { backing, backingFormat } = await info(overlay, 'qcow2');
      if (backing === undefined || backingFormat === undefined) {
        throw new HostAgentError('IMAGE_INVALID', `${overlay} does not name an image below it and its format.`);
      }
      // -d: the overlay keeps its data; it is deleted when everybody is seen to use the base.
      await qemu(['commit', '-q', '-d', '-f', 'qcow2', overlay], 0).catch(asMergeFailure(overlay));
    },

    async rebase(path, to) {
      const args = ['rebase', '-q', '-u', '-f', 'qcow2', '-F', to.backingFormat, '-b', absolute(to.backing), path];
      await qemu(args).catch(asMergeFailure(path));
      await syncFile(path);
    },

    async delete(path) {
      try {
        await unlink(absolute(path));
      } catch (cause) {
        if (isErrno(cause, 'ENOENT')) return;
        throw new HostAgentError('INTERNAL', `${path} cannot be deleted.`, { cause });
      }
      await syncFolder(dirname(path));
    },

    async exists(path) {
      try {
        await lstat(path);
        return true;
      } catch (cause) {
        if (isErrno(cause, 'ENOENT') || isErrno(cause, 'ENOTDIR')) return false;
        throw new HostAgentError('INTERNAL', `${path} cannot be looked at.`, { cause });
      }
    },

    async listOverlays(folder) {
      const names = await readdir(folder).catch((cause: unknown) => {
        if (isErrno(cause, 'ENOENT')) return [];
        throw new HostAgentError('INTERNAL', `${folder} cannot be read.`, { cause });
      });
      return names
        .filter((name) => name.includes('.sp-'))
        .sort()
        .map((name) => join(folder, name));
    },
  };
}

/** From the header: size at byte 24. */
async function qcow2SizeBytes(path: string): Promise<number> {
  const file = await open(path, 'r');
  try {
    const size = (await qcow2Header(file, path)).readBigUInt64BE(24);
    if (size > BigInt(Number.MAX_SAFE_INTEGER))
      throw new HostAgentError('IMAGE_INVALID', `${path} tells an impossible size.`);
    return Number(size);
  } finally {
    await file.close();
  }
}

/**
 * Whether a qcow2's first table leads nowhere, so that no cluster is its own: table's entries at byte 36, its offset at 40, internal snapshots at 60.
 * One whose clusters were all given back may keep tables, and counts as not empty. qemu-img would say more, but of the whole chain: its answer about
 * one large image takes seconds to read.
 */
async function hasEmptyTable(path: string): Promise<boolean> {
  const file = await open(path, 'r');
  try {
    const header = await qcow2Header(file, path);
    const bytes = header.readUInt32BE(36) * 8;
    const at = header.readBigUInt64BE(40);
    if (bytes > largestTable || at > BigInt(Number.MAX_SAFE_INTEGER))
      throw new HostAgentError('IMAGE_INVALID', `${path} has an impossible table.`);
    const table = Buffer.alloc(bytes);
    // What lies beyond the file's end stays zero, as it is for QEMU.
    await file.read(table, 0, bytes, Number(at));
    return header.readUInt32BE(60) === 0 && table.equals(Buffer.alloc(bytes));
  } finally {
    await file.close();
  }
}

/** Magic at byte 0, everything big-endian (QEMU's docs/interop/qcow2.txt). */
async function qcow2Header(file: FileHandle, path: string): Promise<Buffer> {
  const header = Buffer.alloc(72);
  const { bytesRead } = await file.read(header, 0, header.length, 0);
  if (bytesRead === header.length && header.readUInt32BE(0) === 0x514649fb) return header;
  throw new HostAgentError('IMAGE_INVALID', `${path} is no qcow2 image.`);
}

/** The kernel counts a device's size in sectors of 512 bytes, whatever the device's own are. */
async function blockDeviceSizeBytes(path: string, rdev: bigint): Promise<number> {
  const major = (rdev >> 8n) & 0xfffn;
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xfff00n);
  const text = await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8').catch((cause: unknown) => {
    throw new HostAgentError('IMAGE_INVALID', `The kernel does not tell the size of ${path}.`, { cause });
  });
  return Number(text.trim()) * 512;
}

/** Whether a process has the file open. A process that may not be looked at counts as one that has: nothing is deleted on a guess. */
async function hasOpen(fdFolder: string, wanted: BigIntStats): Promise<boolean> {
  let descriptors: string[];
  try {
    descriptors = await readdir(fdFolder);
  } catch (error) {
    return !isErrno(error, 'ENOENT') && !isErrno(error, 'ESRCH');
  }
  for (const descriptor of descriptors) {
    const link = join(fdFolder, descriptor);
    const target = await readlink(link).catch(() => '');
    if (!target.startsWith('/')) continue;
    const opened = await stat(link, { bigint: true }).catch(() => undefined);
    if (opened === undefined) continue;
    const sameFile = opened.dev === wanted.dev && opened.ino === wanted.ino;
    if (sameFile || (wanted.isBlockDevice() && opened.isBlockDevice() && opened.rdev === wanted.rdev)) return true;
  }
  return false;
}

function asMergeFailure(path: string): (error: unknown) => never {
  return (error) => {
    const locked = /Failed to get .*lock|Is another process using the image/.test(stderrOf(error));
    throw new HostAgentError(
      'MERGE_FAILED',
      locked ? `${path} or an image below it is in use.` : `${path} could not be merged.`,
      {
        cause: error,
        metadata: { reason: locked ? 'IMAGE_LOCKED' : 'MERGE_FAILED' },
      },
    );
  };
}

/** What may be opened: whoever opens a FIFO waits for its writer, for ever. Errors: DISK_NOT_FOUND, IMAGE_INVALID. */
async function imageAt(path: string): Promise<BigIntStats> {
  const found = await statOf(path);
  if (found.isFile() || found.isBlockDevice()) return found;
  throw new HostAgentError('IMAGE_INVALID', `${path} is neither a file nor a block device.`);
}

async function statOf(path: string): Promise<BigIntStats> {
  return await stat(absolute(path), { bigint: true }).catch((cause: unknown) => {
    throw notFound(path, cause);
  });
}

/** qemu-img takes `nbd:…` or `json:…` for other things than files; an absolute path never is. */
function absolute(path: string): string {
  if (path.startsWith('/')) return path;
  throw new HostAgentError('INVALID_ARGUMENT', `Not an absolute path: ${path}`);
}

function parse<T>(schema: z.ZodType<T>, text: string, path: string): T {
  try {
    return schema.parse(JSON.parse(text));
  } catch (cause) {
    throw new HostAgentError('IMAGE_INVALID', `qemu-img's answer about ${path} is not what QEMU documents.`, { cause });
  }
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** A new or deleted name is durable once its folder is. */
async function syncFolder(folder: string): Promise<void> {
  await syncFile(folder);
}

function notFound(path: string, cause: unknown): HostAgentError {
  return isErrno(cause, 'ENOENT') || isErrno(cause, 'ENOTDIR') || isErrno(cause, 'ELOOP')
    ? new HostAgentError('DISK_NOT_FOUND', `Nothing is at ${path}.`, { cause })
    : isHostAgentError(cause)
      ? cause
      : new HostAgentError('INTERNAL', `${path} cannot be looked at.`, { cause });
}

function stderrOf(error: unknown): string {
  return isHostAgentError(error) && isExecFailure(error.cause) ? error.cause.stderr : '';
}

function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}

function isExecFailure(error: unknown): error is Error & { stderr: string } {
  return error instanceof Error && 'stderr' in error && typeof error.stderr === 'string';
}
