import { createHash } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync, writeSync } from 'node:fs';
import { chmod, copyFile, mkdir, readdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { LabError } from './errors.js';
import { INITRAMFS_INIT, ROOT_FOLDERS, ROOT_SCRIPTS } from './guest-files.js';
import { dependenciesMatching, dependencyClosure, downloadPackages, updatePackageLists } from './packages.js';
import { identifyProcess } from './processes.js';
import { type Progress, runProgram } from './programs.js';

/** The files of a built guest; they are never written to again, a VM gets copies. */
export interface GuestImage {
  readonly kernel: string;
  readonly initrd: string;
  /** qcow2: MBR, vfat for /boot/efi, ext4 root. */
  readonly vda: string;
  /** qcow2: ext4 without partitions, for /data. */
  readonly vdb: string;
  /** raw: ext4 without partitions, for the network disk. */
  readonly vdc: string;
}

const MIB = 1024 * 1024;
const SECTOR = 512;
const LAYOUT = { efiStartMib: 1, efiMib: 16, rootStartMib: 17, rootMib: 111, dataMib: 64, networkMib: 64 } as const;
const MODULES = [
  'virtio_pci',
  'virtio_blk',
  'virtio_console',
  'vfat',
  'nls_cp437',
  'nls_ascii',
  'nls_utf8',
  'nls_iso8859_1',
];
/** Smallest first; the last resort of Debian, then Ubuntu's. */
const KERNEL_PACKAGES = ['linux-image-cloud-amd64', 'linux-image-virtual', 'linux-image-kvm', 'linux-image-amd64'];
const GUEST_PACKAGES = ['busybox-static', 'qemu-guest-agent'];

/** Changes whenever a guest built now would differ from one built before. */
export function recipeHash(): string {
  return hash([2, packagesHash(), LAYOUT, MODULES, ROOT_FOLDERS, ROOT_SCRIPTS, INITRAMFS_INIT]);
}

const packagesHash = () => hash([KERNEL_PACKAGES, GUEST_PACKAGES, distribution()]);

function hash(recipe: readonly unknown[]): string {
  return createHash('sha256').update(JSON.stringify(recipe)).digest('hex').slice(0, 16);
}

function distribution(): string {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : '';
  const field = (name: string) => text.match(new RegExp(`^${name}="?([^"\n]*)`, 'm'))?.[1] ?? '';
  return `${field('ID')}-${field('VERSION_ID')}`;
}

/**
 * Builds the guest from the distribution's packages, without installing them and without loop mounts; or finds it built.
 *
 * @throws LabError PACKAGES_MISSING, BUILD_FAILED, PROGRAM_FAILED.
 */
export async function ensureGuestImage(cacheFolder: string, progress: Progress): Promise<GuestImage> {
  const name = `guest-${recipeHash()}`;
  const folder = join(cacheFolder, name);
  const image = imageIn(folder);
  if (existsSync(folder)) {
    progress(`guest image: ${name} from the cache`);
    return image;
  }
  await mkdir(cacheFolder, { recursive: true });
  await removeAbandonedBuilds(cacheFolder);
  const work = join(cacheFolder, `building-${process.pid}`);
  const startedAt = performance.now();
  try {
    await build(work, cacheFolder, progress);
    await rename(join(work, 'image'), folder).catch((error: unknown) => {
      // Somebody else has built the same one meanwhile, which is as good.
      if (!existsSync(folder)) throw error;
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  progress(`guest image: ${name} built in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  return image;
}

/** Removes what killed builds have left; a build that runs has a living process in its name. */
async function removeAbandonedBuilds(cacheFolder: string): Promise<void> {
  for (const entry of await readdir(cacheFolder)) {
    const pid = Number(entry.match(/^building-(\d+)$/)?.[1]);
    if (pid === process.pid || (pid > 0 && identifyProcess(pid) === undefined)) {
      await rm(join(cacheFolder, entry), { recursive: true, force: true });
    }
  }
}

function imageIn(folder: string): GuestImage {
  return {
    kernel: join(folder, 'vmlinuz'),
    initrd: join(folder, 'initrd.gz'),
    vda: join(folder, 'vda.qcow2'),
    vdb: join(folder, 'vdb.qcow2'),
    vdc: join(folder, 'vdc.raw'),
  };
}

async function build(work: string, cacheFolder: string, progress: Progress): Promise<void> {
  const image = imageIn(join(work, 'image'));
  const unpacked = join(work, 'unpacked');
  await mkdir(dirname(image.kernel), { recursive: true });
  await mkdir(unpacked);
  const debs = await packageFiles(cacheFolder, progress);
  progress('guest image: unpacking');
  for (const deb of debs) await runProgram('dpkg-deb', ['-x', deb, unpacked]);
  const release = await kernelRelease(unpacked);
  await copyFile(join(unpacked, 'boot', `vmlinuz-${release}`), image.kernel);
  progress(`guest image: initramfs for kernel ${release}`);
  await buildInitramfs(join(work, 'initramfs'), unpacked, release, image.initrd);
  progress('guest image: file systems');
  await buildRoot(join(work, 'root'), unpacked);
  await buildDisks(work, join(work, 'root'), image);
}

/** The .deb files of the guest, downloaded once for each list of packages. */
async function packageFiles(cacheFolder: string, progress: Progress): Promise<string[]> {
  const folder = join(cacheFolder, `debs-${packagesHash()}`);
  if (!existsSync(folder)) {
    const work = `${folder}.${process.pid}`;
    await rm(work, { recursive: true, force: true });
    await mkdir(work, { recursive: true });
    const kernel = await kernelPackages().catch(async () => {
      await updatePackageLists(progress);
      return kernelPackages();
    });
    // Only libraries: the agent's maintainer scripts and their tools never run here.
    const isLibrary = (name: string) => /^(lib(?!perl)|zlib1g)/.test(name);
    const packages = await dependencyClosure(GUEST_PACKAGES, isLibrary);
    await downloadPackages([...kernel, ...packages], work, progress);
    await rename(work, folder).catch((error: unknown) => {
      if (!existsSync(folder)) throw error;
    });
    await rm(work, { recursive: true, force: true });
  }
  return (await readdir(folder)).filter((file) => file.endsWith('.deb')).map((file) => join(folder, file));
}

/** The packages of the distribution's smallest kernel; Ubuntu keeps its modules in a package of their own. */
async function kernelPackages(): Promise<string[]> {
  for (const name of KERNEL_PACKAGES) {
    const [kernel] = await dependenciesMatching(name, /^linux-image-[0-9]/);
    if (kernel !== undefined) return [kernel, ...(await dependenciesMatching(kernel, /^linux-modules-[0-9]/))];
  }
  throw new LabError('PACKAGES_MISSING', `None of ${KERNEL_PACKAGES.join(', ')} is known to apt; run apt-get update`);
}

async function kernelRelease(unpacked: string): Promise<string> {
  const kernel = (await readdir(join(unpacked, 'boot'))).find((file) => file.startsWith('vmlinuz-'));
  if (kernel === undefined) throw new LabError('BUILD_FAILED', 'The kernel package holds no /boot/vmlinuz-*');
  return kernel.slice('vmlinuz-'.length);
}

async function findFiles(folder: string, matches: (path: string) => boolean): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries.map((entry) => join(entry.parentPath, entry.name)).filter(matches);
}

async function buildInitramfs(folder: string, unpacked: string, release: string, target: string): Promise<void> {
  for (const name of ['bin', 'dev', 'proc', 'sys', 'newroot', 'modules'])
    await mkdir(join(folder, name), { recursive: true });
  const [busybox] = await findFiles(unpacked, (path) => path.endsWith('/bin/busybox'));
  if (busybox === undefined) throw new LabError('BUILD_FAILED', 'busybox-static holds no busybox');
  await copyFile(busybox, join(folder, 'bin/busybox'));
  await symlink('busybox', join(folder, 'bin/sh'));
  const order = await copyModules(unpacked, release, join(folder, 'modules'));
  await writeFile(join(folder, 'modules/order'), order.map((name) => `${name}\n`).join(''));
  await writeFile(join(folder, 'init'), INITRAMFS_INIT);
  await chmod(join(folder, 'init'), 0o755);
  await runProgram('sh', [
    '-c',
    'cd "$1" && find . | "$2" cpio -o -H newc | gzip -1 >"$3"',
    'sh',
    folder,
    busybox,
    target,
  ]);
}

/** Copies the modules the guest needs and all that they need, and returns their files in an order in which they load. */
async function copyModules(unpacked: string, release: string, target: string): Promise<string[]> {
  const [folder] = ['lib/modules', 'usr/lib/modules'].map((path) => join(unpacked, path, release)).filter(existsSync);
  if (folder === undefined) throw new LabError('BUILD_FAILED', `The packages hold no modules of kernel ${release}`);
  const files = new Map(
    (await findFiles(folder, (path) => /\.ko(\.xz|\.zst)?$/.test(path))).map((file) => [moduleName(file), file]),
  );
  const builtin = new Set(readFileSync(join(folder, 'modules.builtin'), 'utf8').split('\n').map(moduleName));
  const order: string[] = [];
  const load = async (name: string): Promise<void> => {
    if (builtin.has(name) || order.includes(`${name}.ko`)) return;
    const file = files.get(name);
    if (file === undefined) {
      // Which NLS tables there are differs; vfat needs only those it was built to start with.
      if (name.startsWith('nls_')) return;
      throw new LabError('BUILD_FAILED', `Kernel ${release} has neither a module nor a built-in ${name}`);
    }
    const copy = join(target, `${name}.ko`);
    await copyModule(file, copy);
    for (const dependency of dependenciesOf(readFileSync(copy))) await load(moduleName(dependency));
    order.push(`${name}.ko`);
  };
  for (const name of MODULES) await load(name);
  return order;
}

const moduleName = (file: string) =>
  basename(file)
    .replace(/\.ko(\.xz|\.zst)?$/, '')
    .replaceAll('-', '_');

async function copyModule(file: string, copy: string): Promise<void> {
  if (file.endsWith('.ko')) return copyFile(file, copy);
  const unpack = file.endsWith('.xz') ? 'xz' : 'zstd';
  await runProgram('sh', ['-c', `${unpack} -dc "$1" >"$2"`, 'sh', file, copy]);
}

/** The modules a module names in its own .modinfo section, which depmod would read too. */
function dependenciesOf(module: Buffer): string[] {
  const key = Buffer.from('\0depends=');
  const start = module.indexOf(key);
  if (start < 0) return [];
  const end = module.indexOf(0, start + key.length);
  return module
    .toString('latin1', start + key.length, end)
    .split(',')
    .filter(Boolean);
}

async function buildRoot(root: string, unpacked: string): Promise<void> {
  for (const folder of ROOT_FOLDERS) await mkdir(join(root, folder), { recursive: true });
  const [busybox] = await findFiles(unpacked, (path) => path.endsWith('/bin/busybox'));
  const [agent] = await findFiles(unpacked, (path) => path.endsWith('/sbin/qemu-ga') || path.endsWith('/bin/qemu-ga'));
  if (busybox === undefined || agent === undefined) throw new LabError('BUILD_FAILED', 'busybox or qemu-ga is missing');
  await copyFile(busybox, join(root, 'bin/busybox'));
  const { stdout } = await runProgram(busybox, ['--list']);
  for (const applet of stdout.trim().split('\n')) {
    if (applet !== 'busybox') await symlink('/bin/busybox', join(root, 'bin', applet));
  }
  await copyFile(agent, join(root, 'usr/sbin/qemu-ga'));
  await copyLibraries(agent, unpacked, root);
  for (const [path, text] of Object.entries(ROOT_SCRIPTS)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), text);
    await chmod(join(root, path), 0o755);
  }
  await writeFile(join(root, 'writer/number'), `${'0'.repeat(10)}\n`);
}

/** Copies the shared libraries of a program, found by the guest's own loader among the unpacked packages. */
async function copyLibraries(binary: string, unpacked: string, root: string): Promise<void> {
  const [loader] = await findFiles(unpacked, (path) => path.endsWith('/ld-linux-x86-64.so.2'));
  if (loader === undefined) throw new LabError('BUILD_FAILED', 'libc6 holds no ld-linux-x86-64.so.2');
  const folders = ['lib', 'usr/lib'].flatMap((base) => [
    join(unpacked, base, 'x86_64-linux-gnu'),
    join(unpacked, base),
  ]);
  const { stdout } = await runProgram(loader, ['--library-path', folders.join(':'), '--list', binary]);
  if (stdout.includes('not found')) throw new LabError('BUILD_FAILED', `qemu-ga lacks libraries:\n${stdout}`);
  for (const [, name, path] of stdout.matchAll(/^\s*(\S+) => (\S+) \(0x/gm)) {
    if (name === undefined || path === undefined || name.includes('/')) continue;
    await copyFile(path, join(root, 'lib/x86_64-linux-gnu', name));
  }
  // Symlinks of the package may be absolute: the content is taken, from where the loader itself was found.
  await copyFile(loader, join(root, 'lib64/ld-linux-x86-64.so.2'));
}

async function buildDisks(work: string, root: string, image: GuestImage): Promise<void> {
  const efi = join(work, 'efi.raw');
  const rootDisk = join(work, 'root.raw');
  const vda = join(work, 'vda.raw');
  const vdb = join(work, 'vdb.raw');
  await runProgram('mkfs.vfat', ['-n', 'EFI', '-C', efi, String(LAYOUT.efiMib * 1024)]);
  const ext4 = (label: string, file: string, mib: number, ...more: string[]) =>
    runProgram('mke2fs', ['-q', '-F', '-t', 'ext4', '-L', label, ...more, file, `${mib}M`]);
  await ext4('root', rootDisk, LAYOUT.rootMib, '-d', root);
  const writerFolder = join(work, 'data');
  await mkdir(join(writerFolder, 'writer'), { recursive: true });
  await writeFile(join(writerFolder, 'writer/number'), `${'0'.repeat(10)}\n`);
  await ext4('data', vdb, LAYOUT.dataMib, '-d', writerFolder);
  await ext4('net', image.vdc, LAYOUT.networkMib);
  // Every write to it is synced, without a process that asks for it: the attribute S, beside the one of all ext4 files (extents).
  for (const file of [rootDisk, vdb]) {
    await runProgram('debugfs', ['-w', '-R', 'set_inode_field /writer/number flags 0x80008', file]);
  }
  writePartitionTable(vda, [
    { type: 0xef, startMib: LAYOUT.efiStartMib, sizeMib: LAYOUT.efiMib },
    { type: 0x83, startMib: LAYOUT.rootStartMib, sizeMib: LAYOUT.rootMib },
  ]);
  const place = (file: string, startMib: number) =>
    runProgram('dd', [`if=${file}`, `of=${vda}`, 'bs=1M', `seek=${startMib}`, 'conv=notrunc,sparse', 'status=none']);
  await place(efi, LAYOUT.efiStartMib);
  await place(rootDisk, LAYOUT.rootStartMib);
  await runProgram('truncate', ['-s', `${LAYOUT.rootStartMib + LAYOUT.rootMib}M`, vda]);
  await runProgram('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', vda, image.vda]);
  await runProgram('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', vdb, image.vdb]);
}

interface Partition {
  readonly type: number;
  readonly startMib: number;
  readonly sizeMib: number;
}

/** Writes a master boot record with up to four primary partitions, addressed by sector number alone. */
function writePartitionTable(file: string, partitions: readonly Partition[]): void {
  const record = Buffer.alloc(SECTOR);
  partitions.forEach(({ type, startMib, sizeMib }, index) => {
    const entry = 446 + index * 16;
    record.writeUInt8(type, entry + 4);
    record.writeUInt32LE((startMib * MIB) / SECTOR, entry + 8);
    record.writeUInt32LE((sizeMib * MIB) / SECTOR, entry + 12);
  });
  record.writeUInt16LE(0xaa55, 510);
  const handle = openSync(file, 'w');
  writeSync(handle, record);
  closeSync(handle);
}

/** Copies an image file, sharing its blocks where the file system can. */
export async function copyImage(source: string, target: string): Promise<void> {
  await runProgram('cp', ['--sparse=always', '--reflink=auto', source, target]);
}
