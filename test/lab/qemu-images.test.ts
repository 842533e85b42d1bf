import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, open, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createQemuImages } from '@stillpoint/host-agent/libvirt/images.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const run = promisify(execFile);
const sizeBytes = 4 * 1024 * 1024;
const images = createQemuImages();
let folder: string;
let base: string;
let overlay: string;
let holder: ChildProcess | undefined;

const writePattern = (path: string, pattern: string, offset = '0') =>
  run('qemu-io', ['-f', 'qcow2', '-c', `write -P ${pattern} ${offset} 64k`, path]);
const hasPattern = async (path: string, pattern: string, offset = '0') =>
  !(await run('qemu-io', ['-r', '-f', 'qcow2', '-c', `read -P ${pattern} ${offset} 64k`, path])).stdout.includes(
    'failed',
  );

/** A process that opens the image as a running QEMU does: locked for writing. */
async function lockInQemu(path: string): Promise<void> {
  holder = spawn('qemu-io', ['-f', 'qcow2', path], { stdio: ['pipe', 'pipe', 'inherit'] });
  holder.stdin?.write('length\n');
  if (holder.stdout !== null) await once(holder.stdout, 'data');
}

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-images-'));
  base = join(folder, 'base.qcow2');
  overlay = join(folder, 'base.sp-w.1.qcow2');
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', base, String(sizeBytes)]);
});

afterEach(async () => {
  if (holder !== undefined && holder.exitCode === null) {
    const exited = once(holder, 'exit');
    holder.kill('SIGKILL');
    await exited;
  }
  holder = undefined;
  await rm(folder, { recursive: true });
});

const create = (path = overlay) => images.createOverlay({ path, base, baseFormat: 'qcow2', sizeBytes, likeFile: base });

describe('images by qemu-img', () => {
  it('makes an overlay that names its base and format and has the mode of the base', async () => {
    await chmod(base, 0o640);
    await create();
    expect(await images.info(overlay, 'qcow2')).toEqual({
      format: 'qcow2',
      virtualSizeBytes: sizeBytes,
      backing: base,
      backingFormat: 'qcow2',
    });
    expect((await stat(overlay)).mode & 0o777).toBe(0o640);
  });

  it('makes an overlay of a base that QEMU holds locked', async () => {
    await lockInQemu(base);
    await create();
    expect(await images.isEmptyOverlay(overlay)).toBe(true);
  });

  it('never replaces what is there', async () => {
    await writeFile(overlay, 'somebody else');
    await expect(create()).rejects.toMatchObject({ code: 'OVERLAY_EXISTS' });
    expect(await readFile(overlay, 'utf8')).toBe('somebody else');
  });

  it('leaves no file behind when qemu-img fails', async () => {
    await expect(
      images.createOverlay({ path: overlay, base, baseFormat: 'no-such-format', sizeBytes, likeFile: base }),
    ).rejects.toMatchObject({ code: 'IMAGE_INVALID' });
    expect(await images.exists(overlay)).toBe(false);
  });

  it('an overlay is empty until something is written to it', async () => {
    await writePattern(base, '0x11');
    await create();
    expect(await images.isEmptyOverlay(overlay)).toBe(true);
    await writePattern(overlay, '0x22');
    expect(await images.isEmptyOverlay(overlay)).toBe(false);
  });

  it('an overlay that hides its base with zeros is not empty', async () => {
    await writePattern(base, '0x11');
    await create();
    await run('qemu-io', ['-f', 'qcow2', '-c', 'write -z 0 64k', overlay]);
    expect(await images.isEmptyOverlay(overlay)).toBe(false);
  });

  it('whether an overlay is empty is seen without a child program, which would tell of its whole chain', async () => {
    await create();
    expect(await createQemuImages({ qemuImg: '/nowhere/qemu-img' }).isEmptyOverlay(overlay)).toBe(true);
  });

  it('does not take a backing file that is no path for a missing one', async () => {
    for (const backing of [`json:{"driver":"qcow2","file":{"driver":"file","filename":"${base}"}}`, `file:${base}`]) {
      const top = join(folder, 'top.qcow2');
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-u', '-F', 'qcow2', '-b', backing, top, '4M']);
      await expect(images.info(top, 'qcow2')).rejects.toMatchObject({ code: 'IMAGE_INVALID' });
    }
  });

  it('ends at an image that another program of the network serves', async () => {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-u', '-F', 'raw', '-b', 'nbd://gold/1', overlay, '4M']);
    expect(await images.info(overlay, 'qcow2')).toMatchObject({ backing: undefined });
  });

  it('does not wait at a FIFO, and believes no impossible size', async () => {
    const fifo = join(folder, 'fifo');
    await run('mkfifo', [fifo]);
    for (const format of ['qcow2', 'raw'])
      await expect(images.sizeBytes(fifo, format)).rejects.toMatchObject({ code: 'IMAGE_INVALID' });
    const file = await open(base, 'r+');
    await file.write(Buffer.alloc(8, 0xff), 0, 8, 24);
    await file.close();
    await expect(images.sizeBytes(base, 'qcow2')).rejects.toMatchObject({ code: 'IMAGE_INVALID' });
  });

  it('commits an overlay into its base and leaves the overlay as it is', async () => {
    await writePattern(base, '0x11', '128k');
    await create();
    await writePattern(overlay, '0x22');
    await images.commitOffline(overlay);
    expect(await hasPattern(base, '0x22')).toBe(true);
    expect(await hasPattern(base, '0x11', '128k')).toBe(true);
    expect(await images.isEmptyOverlay(overlay)).toBe(false);
  });

  it('commits nothing that QEMU has open', async () => {
    await create();
    await writePattern(overlay, '0x22');
    await lockInQemu(overlay);
    await expect(images.commitOffline(overlay)).rejects.toMatchObject({
      code: 'MERGE_FAILED',
      metadata: { reason: 'IMAGE_LOCKED' },
    });
  });

  it('knows which files a process has open, by inode and not by name', async () => {
    const alias = join(folder, 'alias.qcow2');
    await symlink(base, alias);
    expect(await images.isOpen(alias)).toBe(false);
    await lockInQemu(base);
    expect(await images.isOpen(alias)).toBe(true);
    expect(await images.isOpen(join(folder, 'missing'))).toBe(false);
  });

  it('rebases an overlay without touching its data', async () => {
    await create();
    const upper = join(folder, 'base.sp-w2.1.qcow2');
    await images.createOverlay({ path: upper, base: overlay, baseFormat: 'qcow2', sizeBytes, likeFile: base });
    await writePattern(overlay, '0x22', '64k');
    await writePattern(upper, '0x33');
    await images.commitOffline(overlay);
    await images.rebase(upper, { backing: base, backingFormat: 'qcow2' });
    await images.delete(overlay);
    expect((await images.info(upper, 'qcow2')).backing).toBe(base);
    expect(await hasPattern(upper, '0x33')).toBe(true);
    expect(await hasPattern(upper, '0x22', '64k')).toBe(true);
  });

  it('does not follow a header that a guest wrote onto its raw disk', async () => {
    const raw = join(folder, 'raw.img');
    await create(raw);
    const info = await images.info(raw, 'raw');
    expect(info).toMatchObject({ format: 'raw', backing: undefined });
  });

  it('resolves symlinks, and says what is missing or no image', async () => {
    const alias = join(folder, 'alias.qcow2');
    await symlink(base, alias);
    expect(await images.resolve(alias)).toEqual({ path: base, kind: 'file' });
    await expect(images.resolve(join(folder, 'missing'))).rejects.toMatchObject({ code: 'DISK_NOT_FOUND' });
    await expect(images.resolve(folder)).rejects.toMatchObject({ code: 'IMAGE_INVALID' });
    await expect(images.resolve('json:{}')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const file = await open(join(folder, 'text'), 'w');
    await file.close();
    await expect(images.info(join(folder, 'text'), 'qcow2')).rejects.toMatchObject({ code: 'IMAGE_INVALID' });
  });

  it('deletes a file once and lists what is ours', async () => {
    await create();
    expect(await images.listOverlays(folder)).toEqual([overlay]);
    await images.delete(overlay);
    await images.delete(overlay);
    expect(await images.listOverlays(folder)).toEqual([]);
    expect(await images.freeBytes(folder)).toBeGreaterThan(0);
  });
});
