import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { LabError } from './errors.js';
import { type Progress, runProgram } from './programs.js';

/** Something the host must have: any of the files, or else the package of Debian and Ubuntu that brings one of them. */
export interface Requirement {
  readonly package: string;
  readonly anyOf: readonly string[];
}

const LIBRARY_FOLDERS = ['/usr/lib/x86_64-linux-gnu', '/usr/lib64', '/usr/lib'];
const PROGRAM_FOLDERS = ['/usr/bin', '/usr/sbin', '/bin', '/sbin', '/usr/local/bin', '/usr/local/sbin'];

const program = (name: string) => PROGRAM_FOLDERS.map((folder) => join(folder, name));

/** What the lab's hypervisor and its guest image need on the host. */
export const VM_REQUIREMENTS: readonly Requirement[] = [
  { package: 'qemu-system-x86', anyOf: program('qemu-system-x86_64') },
  { package: 'qemu-utils', anyOf: program('qemu-nbd') },
  { package: 'libvirt-daemon-system', anyOf: ['/etc/libvirt/qemu.conf'] },
  { package: 'libvirt-daemon', anyOf: program('libvirtd') },
  {
    package: 'libvirt-daemon-driver-qemu',
    anyOf: LIBRARY_FOLDERS.map((folder) => join(folder, 'libvirt/connection-driver/libvirt_driver_qemu.so')),
  },
  { package: 'libvirt-clients', anyOf: program('virsh') },
  { package: 'e2fsprogs', anyOf: program('mke2fs') },
  { package: 'dosfstools', anyOf: program('mkfs.vfat') },
  { package: 'dpkg', anyOf: program('dpkg-deb') },
  { package: 'util-linux', anyOf: program('unshare') },
];

/** What the lab's Ceph, Cinder and Keystone need on the host beside that; ceph-common brings librbd and its Python module. */
export const STORAGE_REQUIREMENTS: readonly Requirement[] = [
  { package: 'ceph-mon', anyOf: program('ceph-mon') },
  { package: 'ceph-mgr', anyOf: program('ceph-mgr') },
  { package: 'ceph-osd', anyOf: program('ceph-osd') },
  { package: 'ceph-common', anyOf: program('rbd') },
  { package: 'qemu-utils', anyOf: program('qemu-img') },
  { package: 'qemu-block-extra', anyOf: LIBRARY_FOLDERS.map((folder) => join(folder, 'qemu/block-rbd.so')) },
  { package: 'mariadb-server-core', anyOf: program('mariadbd') },
  { package: 'mariadb-client-core', anyOf: program('mariadb') },
  { package: 'rabbitmq-server', anyOf: ['/usr/lib/rabbitmq/bin/rabbitmq-server'] },
  // Without `ip` the configuration of cinder-common fails on a machine whose own name does not resolve.
  { package: 'iproute2', anyOf: program('ip') },
  { package: 'cinder-api', anyOf: program('cinder-api') },
  { package: 'cinder-scheduler', anyOf: program('cinder-scheduler') },
  { package: 'cinder-volume', anyOf: program('cinder-volume') },
  { package: 'keystone', anyOf: program('keystone-manage') },
  { package: 'python3-waitress', anyOf: ['/usr/lib/python3/dist-packages/waitress'] },
  { package: 'python3-cinderclient', anyOf: program('cinder') },
  { package: 'e2fsprogs', anyOf: program('mke2fs') },
];

/** The packages of the requirements that the host does not meet. */
export function missingPackages(requirements: readonly Requirement[]): string[] {
  return requirements.filter(({ anyOf }) => !anyOf.some((file) => existsSync(file))).map((entry) => entry.package);
}

// SYSTEMD_OFFLINE: the lab starts its own daemons; the packages' services would take their ports and memory.
const APT_ENVIRONMENT = { DEBIAN_FRONTEND: 'noninteractive', SYSTEMD_OFFLINE: '1' };
// Without limits apt waits minutes for a mirror that does not answer. Another apt may be at work for long, ours among them.
const APT_OPTIONS = ['-o', 'Acquire::Retries=2', '-o', 'Acquire::http::Timeout=20', '-o', 'DPkg::Lock::Timeout=600'];

/**
 * Installs what the host lacks; asks no package source when it lacks nothing.
 *
 * @throws LabError PACKAGES_MISSING when something is missing and this process is not root, there is no apt, or the
 *   installation fails; the text has the command to run.
 */
export async function ensurePackages(requirements: readonly Requirement[], progress: Progress): Promise<void> {
  const missing = [...new Set(missingPackages(requirements))];
  if (missing.length === 0) return;
  const command = `apt-get install --no-install-recommends ${missing.join(' ')}`;
  if (process.getuid?.() !== 0) throw new LabError('PACKAGES_MISSING', `Run as root, or install first: ${command}`);
  if (!existsSync('/usr/bin/apt-get')) {
    throw new LabError(
      'PACKAGES_MISSING',
      `Only Debian and Ubuntu are known here; install ${missing.join(', ')} by hand`,
    );
  }
  progress(`packages: installing ${missing.join(' ')}`);
  const startedAt = performance.now();
  const { onLine, end } = followInstallation(progress);
  const install = () =>
    runProgram('apt-get', [...APT_OPTIONS, 'install', '-y', '--no-install-recommends', ...missing], {
      env: APT_ENVIRONMENT,
      timeoutMs: 1_200_000,
      onLine,
    });
  try {
    // A fresh machine has no lists: apt would know none of the packages.
    if (!(await hasPackageLists())) await updatePackageLists(progress);
    await install().catch(async () => {
      await updatePackageLists(progress);
      await install();
    });
  } catch (error) {
    throw new LabError('PACKAGES_MISSING', `The packages could not be installed; try: apt-get update && ${command}`, {
      cause: error,
    });
  } finally {
    end();
  }
  progress(`packages: installed in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  const left = missingPackages(requirements);
  if (left.length > 0) {
    throw new LabError(
      'PACKAGES_MISSING',
      `Installed, but the files are not where they are expected: ${left.join(', ')}`,
    );
  }
}

async function hasPackageLists(): Promise<boolean> {
  const names = await readdir('/var/lib/apt/lists').catch(() => []);
  return names.some((name) => /_Packages(\.\w+)?$/.test(name));
}

/** Apt says hundreds of lines, and nothing for long: instead every few seconds how far it is. */
function followInstallation(progress: Progress, everyMs = 5000): { onLine: Progress; end: () => void } {
  const done = { fetched: 0, unpacked: 0, configured: 0 };
  let total = '';
  const ticker = setInterval(() => {
    if (total === '') return;
    progress(
      `packages: ${total} to install, ${done.fetched} fetched, ${done.unpacked} unpacked, ${done.configured} configured`,
    );
  }, everyMs);
  const onLine = (line: string) => {
    total = line.match(/ (\d+) newly installed/)?.[1] ?? total;
    if (line.startsWith('Get:')) done.fetched += 1;
    else if (line.startsWith('Unpacking ')) done.unpacked += 1;
    else if (line.startsWith('Setting up ')) done.configured += 1;
  };
  return { onLine, end: () => clearInterval(ticker) };
}

/** Fetches the lists of the package sources; needs root and a network. */
export async function updatePackageLists(progress: Progress): Promise<void> {
  progress('packages: the lists are old or absent, apt-get update');
  await runProgram('apt-get', [...APT_OPTIONS, 'update'], { env: APT_ENVIRONMENT, timeoutMs: 300_000 });
}

/** The packages that `names` depend on, themselves included, as far as `follow` agrees. */
export async function dependencyClosure(
  names: readonly string[],
  follow: (name: string) => boolean,
): Promise<ReadonlySet<string>> {
  const seen = new Set(names);
  let fresh = [...names];
  while (fresh.length > 0) {
    const { stdout } = await runProgram('apt-cache', ['depends', '--important', ...fresh]);
    fresh = [];
    for (const [, name] of stdout.matchAll(/^\s+\|?(?:Pre)?Depends: ([a-z0-9][a-z0-9.+-]*)$/gm)) {
      if (name === undefined || seen.has(name) || !follow(name)) continue;
      seen.add(name);
      fresh.push(name);
    }
  }
  return seen;
}

/** The direct dependencies of a package that match; empty where the package is unknown. */
export async function dependenciesMatching(name: string, pattern: RegExp): Promise<string[]> {
  const { stdout, exitCode } = await runProgram('apt-cache', ['depends', '--important', name], { accept: [0, 100] });
  if (exitCode !== 0) return [];
  return [...stdout.matchAll(/^\s+\|?(?:Pre)?Depends: (\S+)$/gm)].flatMap(([, dependency]) =>
    dependency !== undefined && pattern.test(dependency) ? [dependency] : [],
  );
}

/**
 * Downloads packages into a folder without installing them.
 *
 * @throws LabError PACKAGES_MISSING when the package source cannot be reached or does not know one of them.
 */
export async function downloadPackages(names: readonly string[], folder: string, progress: Progress): Promise<void> {
  progress(`guest image: downloading ${names.length} packages`);
  const download = () =>
    // '_apt' may not write here; as root it is done unsandboxed, which apt would otherwise warn about.
    runProgram('apt-get', [...APT_OPTIONS, '-o', 'APT::Sandbox::User=root', 'download', ...names], {
      cwd: folder,
      timeoutMs: 300_000,
    });
  try {
    await download().catch(async () => {
      if (process.getuid?.() === 0) await updatePackageLists(progress);
      await download();
    });
  } catch (error) {
    throw new LabError(
      'PACKAGES_MISSING',
      'The packages of the guest could not be downloaded: the first time a network is needed, later the cache is enough',
      { cause: error },
    );
  }
}
