import { randomUUID } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync, renameSync, writeFileSync, writeSync } from 'node:fs';
import { chmod, mkdir, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { type Acceleration, chooseAcceleration } from './acceleration.js';
import { LabError } from './errors.js';
import type { Guest } from './guest.js';
import { copyImage, ensureGuestImage, type GuestImage, recipeHash } from './guest-image.js';
import { LibvirtLog } from './libvirt-log.js';
import { Libvirtd, type QemuUser } from './libvirtd.js';
import { ensurePackages, VM_REQUIREMENTS } from './packages.js';
import { endProcess, identifyProcess, isRunning, type ProcessIdentity, ProcessTable } from './processes.js';
import type { Progress } from './programs.js';
import { SavedBoots } from './saved-boot.js';
import type { Storage } from './storage/storage.js';
import { type CephDisks, findQemus, Vm, type VmDisk } from './vm.js';

export interface LabOptions {
  /** Holds all that one run makes, under `run/`; default `${XDG_CACHE_HOME:-~/.cache}/stillpoint/lab`. */
  readonly stateFolder?: string;
  /** Holds what can be used again by any run: downloads, built guests; default `${XDG_CACHE_HOME:-~/.cache}/stillpoint/lab/cache`. */
  readonly cacheFolder?: string;
  /** Default `root`. With `libvirt-qemu` every folder above the state folder must be open to other users (o+x). */
  readonly qemuUser?: QemuUser;
  /** True: the lab outlives this process, until `down`; false (default): it is this process's and nobody else may use it. */
  readonly keep?: boolean;
  /** The first VM has volumes on Ceph, from vdc on, and no network disk; default none. */
  readonly ceph?: CephVolumes;
  readonly progress?: Progress;
}

/** Volumes of a Cinder that a VM has as disks, attached and each with an ext4 at /mnt/<target>. */
export interface CephVolumes {
  readonly storage: Storage;
  /** How many, of 1 GiB. */
  readonly volumes: number;
  /** Whose they are; default the storage's own project. */
  readonly projectId?: string;
}

/** What a further VM differs in from the lab's first. */
export interface ExtraVm {
  /** Lower-case letters, digits and hyphens. */
  readonly name: string;
  /** Default `vda` and `vdb`; `vdc` is the network disk. A raw `vdb` is a raw file. */
  readonly disks?: readonly ('vda' | 'vdb' | 'vdc' | 'vdb-raw')[];
  /** Further disks, behind those; default none. */
  readonly ceph?: CephVolumes;
  /** Default true; false: the domain has no guest agent channel. */
  readonly agentChannel?: boolean;
  /** False: it is defined, and not started. Default true. */
  readonly start?: boolean;
}

interface Owner {
  /** The process whose lab this is; of a kept lab the process that brought it up. */
  readonly process: ProcessIdentity;
  readonly kept: boolean;
  readonly setup: string;
  readonly acceleration: Acceleration;
  readonly cacheFolder: string;
}

const FIRST_VM = { name: 'web-1', uuid: '57111900-0000-4000-8000-000000000001' };
/** sockaddr_un has room for 107 bytes; the longest name below the run folder takes 30 of them. */
const RUN_FOLDER_LIMIT = 77;

/** The folder that holds the lab where nobody says otherwise. */
export function defaultStateFolder(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'stillpoint', 'lab');
}

/**
 * The real thing on one machine: a libvirtd of its own and a QEMU guest with its agent. Ceph and Cinder are a {@link Storage}, which
 * any number of labs may use.
 *
 * @example
 * const lab = await Lab.up({ stateFolder, progress: console.log });
 * await lab.vm.guest.run('cat /writer/number');
 * await lab.down();
 */
export class Lab {
  readonly libvirtd: Libvirtd;
  readonly acceleration: Acceleration;
  readonly stateFolder: string;
  readonly #image: GuestImage;
  readonly #qemuUser: QemuUser;
  readonly #processes: ProcessTable;
  readonly #savedBoots: SavedBoots;
  readonly #extraVms: Vm[] = [];
  /** The VM that is always there: vda (ESP and root) and vdb (/data) in qcow2 files; vdc (/net) over NBD, or volumes from vdc on. */
  readonly vm: Vm;

  private constructor(
    stateFolder: string,
    image: GuestImage,
    acceleration: Acceleration,
    qemuUser: QemuUser,
    savedBoots: SavedBoots,
    ceph?: CephVolumes,
  ) {
    const run = runFolder(stateFolder);
    this.stateFolder = stateFolder;
    this.acceleration = acceleration;
    this.#image = image;
    this.#qemuUser = qemuUser;
    this.#savedBoots = savedBoots;
    this.#processes = new ProcessTable(join(run, 'processes.json'));
    this.libvirtd = new Libvirtd('libvirtd', join(run, 'host'), qemuUser, acceleration, this.#processes);
    this.vm = this.#vm(FIRST_VM.name, FIRST_VM.uuid, {
      disks: ceph === undefined ? ['vda', 'vdb', 'vdc'] : ['vda', 'vdb'],
      ...(ceph === undefined ? {} : { ceph }),
    });
  }

  /**
   * Does once what every lab on this machine needs: packages, the guest's image, whether KVM works. Labs that are brought up side by side
   * afterwards do not meet in it.
   *
   * @throws LabError UNSUPPORTED_PLATFORM, PACKAGES_MISSING.
   */
  static async prepare(options: Pick<LabOptions, 'cacheFolder' | 'progress'> = {}): Promise<void> {
    const progress = options.progress ?? (() => undefined);
    const cacheFolder = resolve(options.cacheFolder ?? join(defaultStateFolder(), 'cache'));
    checkPlatform();
    await ensurePackages(VM_REQUIREMENTS, progress);
    await chooseAcceleration(await ensureGuestImage(cacheFolder, progress), cacheFolder, progress);
  }

  /**
   * Boots the guest once and keeps it as it is then: every later lab of this cache goes on from there. Nothing happens where that has been done, or where KVM
   * makes a boot quick. Where libvirt or QEMU cannot go on from what it saved, that is said, and every lab boots its guests.
   */
  static async saveBoot(options: Pick<LabOptions, 'stateFolder' | 'cacheFolder' | 'progress'> = {}): Promise<void> {
    const progress = options.progress ?? (() => undefined);
    const stateFolder = resolve(options.stateFolder ?? defaultStateFolder());
    const cacheFolder = resolve(options.cacheFolder ?? join(defaultStateFolder(), 'cache'));
    const image = await ensureGuestImage(cacheFolder, progress);
    if ((await chooseAcceleration(image, cacheFolder, progress)) === 'kvm') return;
    const down = new Lab(stateFolder, runImage(runFolder(stateFolder)), 'tcg', 'root', new SavedBoots(cacheFolder));
    if (await down.vm.isBootSaved()) return;
    const lab = await Lab.up(options);
    try {
      progress(`VM ${lab.vm.name}: saving it as it has booted`);
      await lab.vm.saveBoot();
      await lab.vm.reset().catch(async (error: unknown) => {
        await lab.vm.dropSavedBoot();
        progress(`VM ${lab.vm.name}: cannot go on from there, guests boot here (${error})`);
      });
    } finally {
      await lab.down();
    }
  }

  /**
   * Brings the lab up, or finds it up: installs what is missing, builds the guest, starts libvirtd and the VM, and returns
   * when the guest agent answers. What an earlier run has left (crashed, killed) is ended and removed first.
   *
   * @throws LabError UNSUPPORTED_PLATFORM, PACKAGES_MISSING, STATE_FOLDER_UNUSABLE; LAB_IN_USE when another living process has
   *   its lab in this folder.
   */
  static async up(options: LabOptions = {}): Promise<Lab> {
    const progress = options.progress ?? (() => undefined);
    const stateFolder = resolve(options.stateFolder ?? defaultStateFolder());
    const cacheFolder = resolve(options.cacheFolder ?? join(defaultStateFolder(), 'cache'));
    const qemuUser = options.qemuUser ?? 'root';
    checkPlatform();
    checkPath(stateFolder);
    await ensurePackages(VM_REQUIREMENTS, progress);
    if (qemuUser !== 'root') await checkReachable(stateFolder);
    const { ceph } = options;
    const network = ceph === undefined ? 'nbd' : `${ceph.storage.fsid}/${ceph.volumes}`;
    const setup = `${recipeHash()} ${network} ${qemuUser}`;
    const kept = await findKept(stateFolder, setup);
    if (kept !== undefined) {
      progress('lab: is up already');
      return kept;
    }
    await endLeftovers(stateFolder, progress);
    const run = runFolder(stateFolder);
    await mkdir(join(run, 'sockets'), { recursive: true });
    await mkdir(join(run, 'logs'), { recursive: true });
    claim(stateFolder, { process: self(), kept: false, setup, acceleration: 'tcg', cacheFolder });
    try {
      const built = await ensureGuestImage(cacheFolder, progress);
      const acceleration = await chooseAcceleration(built, cacheFolder, progress);
      // A VM may run as a user who cannot reach the cache, and an image in use must not depend on it.
      const image = await copyToRun(built, run);
      const lab = new Lab(stateFolder, image, acceleration, qemuUser, new SavedBoots(cacheFolder), options.ceph);
      progress('libvirtd: starting');
      await lab.libvirtd.start();
      const startedAt = performance.now();
      const how = (await lab.vm.isBootSaved()) ? 'going on from a saved boot' : 'booting';
      progress(`VM ${lab.vm.name}: ${how} (${acceleration.toUpperCase()})`);
      await lab.vm.create();
      progress(`VM ${lab.vm.name}: guest agent answers after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
      reclaim(stateFolder, { process: self(), kept: options.keep === true, setup, acceleration, cacheFolder });
      return lab;
    } catch (error) {
      await endRun(stateFolder, { keepLogs: true });
      throw error;
    }
  }

  /**
   * Finds a lab that was brought up with `keep` in an earlier process.
   *
   * @throws LabError LAB_NOT_UP.
   */
  static async attach(stateFolder: string = defaultStateFolder()): Promise<Lab> {
    const lab = await findKept(resolve(stateFolder));
    if (lab === undefined) throw new LabError('LAB_NOT_UP', `No lab is up in ${stateFolder}; bring it up first`);
    return lab;
  }

  /** Ends whatever lab was brought up in the folder, by whom ever it was, and removes it; the cache stays. */
  static async down(stateFolder: string = defaultStateFolder(), progress: Progress = () => undefined): Promise<void> {
    const folder = resolve(stateFolder);
    const owner = readOwner(folder);
    if (owner !== undefined && !owner.kept && owner.process.pid !== process.pid && isRunning(owner.process)) {
      throw new LabError('LAB_IN_USE', `The lab in ${folder} belongs to process ${owner.process.pid}: end that one`);
    }
    const ended = await endRun(folder, { keepLogs: false });
    progress(ended === 0 ? 'lab: nothing ran' : `lab: down (${ended} processes ended)`);
  }

  /** libvirt's socket itself, with nothing before it. */
  get libvirtSocket(): string {
    return this.libvirtd.socket;
  }

  /** The first VM as libvirt knows it. */
  get domain(): { readonly name: string; readonly uuid: string } {
    return { name: this.vm.name, uuid: this.vm.uuid };
  }

  /** The inside of the first VM. */
  get guest(): Guest {
    return this.vm.guest;
  }

  /** The folder under which every VM has its folder of disks: what the host agent is to be allowed. */
  get imagesFolder(): string {
    return join(runFolder(this.stateFolder), 'images');
  }

  /** The base files of the first VM's local disks. */
  get disks(): { readonly vda: string; readonly vdb: string } {
    return { vda: this.vm.diskPath('vda'), vdb: this.vm.diskPath('vdb') };
  }

  /** Libvirt's log from now on. */
  log(): LibvirtLog {
    return new LibvirtLog(this.libvirtd.logFile);
  }

  /** Starts a second libvirtd that shares nothing with the first but the file system: VMs can migrate from one to the other. It ends with the lab. */
  async secondLibvirtd(): Promise<Libvirtd> {
    const folder = join(runFolder(this.stateFolder), 'other');
    const second = new Libvirtd('second libvirtd', folder, this.#qemuUser, this.acceleration, this.#processes);
    await second.start();
    return second;
  }

  /** Makes one more VM from the same image and waits until its guest agent answers; it is removed with the lab at the latest. */
  async addVm(extra: ExtraVm): Promise<Vm> {
    if (!/^[a-z][a-z0-9-]{0,15}$/.test(extra.name)) {
      throw new LabError('VM_FAILED', `'${extra.name}' is no name for a lab VM: a-z, 0-9 and -, at most 16 characters`);
    }
    const vm = this.#vm(extra.name, randomUUID(), extra);
    await vm.remove();
    this.#extraVms.push(vm);
    if (extra.start === false) await vm.define();
    else await vm.create();
    return vm;
  }

  /** Removes all further VMs and gives the first one pristine disks and a new boot; libvirtd runs again if it did not. */
  async reset(): Promise<void> {
    if (this.libvirtd.process !== undefined) this.libvirtd.cont();
    await this.libvirtd.start();
    for (const vm of this.#extraVms.splice(0)) await vm.remove();
    await this.vm.reset();
  }

  /** Ends every process of the lab and removes its state; the cache stays. */
  async down(progress: Progress = () => undefined): Promise<void> {
    for (const vm of [this.vm, ...this.#extraVms]) {
      vm.guest.disconnect();
      // Others may go on to use the storage. One that does not answer any more has no use for its volumes.
      if (vm.definition.ceph !== undefined) await vm.remove().catch(() => undefined);
    }
    await Lab.down(this.stateFolder, progress);
  }

  /** The lab's processes that run now. */
  processes(): { readonly name: string; readonly pid: number }[] {
    const qemus = [this.vm, ...this.#extraVms].flatMap(({ name, qemu }) =>
      qemu === undefined ? [] : [{ name: `qemu ${name}`, pid: qemu.pid }],
    );
    return [...this.#processes.list().filter(isRunning), ...qemus];
  }

  #vm(name: string, uuid: string, made: Omit<ExtraVm, 'name' | 'start'>): Vm {
    const { disks = ['vda', 'vdb'], agentChannel = true } = made;
    const run = runFolder(this.stateFolder);
    const host = {
      acceleration: this.acceleration,
      kernel: this.#image.kernel,
      initrd: this.#image.initrd,
      folder: run,
      savedBoots: this.#savedBoots,
      socketsFolder: join(run, 'sockets'),
      logsFolder: join(run, 'logs'),
      relabel: this.#qemuUser !== 'root',
    };
    // The network disk's file lies apart: it stands for a storage that is none of the host agent's business.
    const disk = (kind: (typeof disks)[number]): VmDisk => {
      if (kind === 'vdc') {
        const path = join(run, 'network', name, 'vdc.raw');
        return { target: 'vdc', kind: 'nbd', format: 'raw', path, source: this.#image.vdc };
      }
      const folder = join(run, 'images', name);
      if (kind === 'vdb-raw') {
        return { target: 'vdb', kind: 'file', format: 'raw', path: join(folder, 'vdb.raw'), source: this.#image.vdb };
      }
      return {
        target: kind,
        kind: 'file',
        format: 'qcow2',
        path: join(folder, `${kind}.qcow2`),
        source: this.#image[kind],
      };
    };
    const definition = { name, uuid, memoryMib: 256, disks: disks.map(disk), agentChannel, ...cephDisks(made) };
    return new Vm(definition, host, this.libvirtd, this.#processes);
  }

  static restore(stateFolder: string, owner: Owner): Lab {
    const run = runFolder(stateFolder);
    return new Lab(
      stateFolder,
      runImage(run),
      owner.acceleration,
      owner.setup.endsWith('libvirt-qemu') ? 'libvirt-qemu' : 'root',
      new SavedBoots(owner.cacheFolder),
    );
  }
}

/** The volumes follow the other disks, and never take vdb's place. */
function cephDisks({ disks = [], ceph }: Pick<ExtraVm, 'disks' | 'ceph'>): { ceph?: CephDisks } {
  if (ceph === undefined) return {};
  const { storage, volumes, projectId } = ceph;
  const letters = disks.includes('vdc') ? 'defghijklmnopqrstuvwxyz' : 'cdefghijklmnopqrstuvwxyz';
  const targets = [...letters.slice(0, volumes)].map((letter) => `vd${letter}`);
  return { ceph: { storage, targets, ...(projectId === undefined ? {} : { projectId }) } };
}

const runFolder = (stateFolder: string) => join(stateFolder, 'run');
const ownerFile = (stateFolder: string) => join(runFolder(stateFolder), 'owner.json');

function self(): ProcessIdentity {
  const identity = identifyProcess(process.pid);
  if (identity === undefined) throw new LabError('UNSUPPORTED_PLATFORM', '/proc is not mounted; the lab needs it');
  return identity;
}

function checkPlatform(): void {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new LabError(
      'UNSUPPORTED_PLATFORM',
      `The lab needs Linux on x86-64, this is ${process.platform} on ${process.arch}`,
    );
  }
  if (process.getuid?.() !== 0)
    throw new LabError('UNSUPPORTED_PLATFORM', 'The lab needs root: libvirtd gets its own mounts');
}

function checkPath(stateFolder: string): void {
  if (!/^\/[\w.+@/-]+$/.test(stateFolder)) {
    throw new LabError(
      'STATE_FOLDER_UNUSABLE',
      `'${stateFolder}' has characters that would need quoting in XML and shell`,
    );
  }
  if (Buffer.byteLength(runFolder(stateFolder)) > RUN_FOLDER_LIMIT) {
    throw new LabError(
      'STATE_FOLDER_UNUSABLE',
      `'${stateFolder}' is too long for Unix sockets below it; take a shorter one`,
    );
  }
}

/** QEMU under its own user must get through every folder above its disks. */
async function checkReachable(stateFolder: string): Promise<void> {
  await mkdir(stateFolder, { recursive: true });
  await chmod(stateFolder, 0o755);
  for (let folder = dirname(stateFolder); folder !== '/'; folder = dirname(folder)) {
    if (((await stat(folder)).mode & 0o001) === 0) {
      throw new LabError(
        'STATE_FOLDER_UNUSABLE',
        `QEMU runs as libvirt-qemu and cannot pass ${folder}; take another folder`,
      );
    }
  }
}

/** Makes the folder this process's. The file is created exclusively: of two at once, one is refused. */
function claim(stateFolder: string, owner: Owner): void {
  let handle: number;
  try {
    handle = openSync(ownerFile(stateFolder), 'wx');
  } catch (error) {
    throw new LabError('LAB_IN_USE', `Another process brings a lab up in ${stateFolder}`, { cause: error });
  }
  writeSync(handle, JSON.stringify(owner));
  closeSync(handle);
}

/** Changes the record of a folder that is this process's already; at no time is it without one. */
function reclaim(stateFolder: string, owner: Owner): void {
  writeFileSync(`${ownerFile(stateFolder)}.new`, JSON.stringify(owner));
  renameSync(`${ownerFile(stateFolder)}.new`, ownerFile(stateFolder));
}

function readOwner(stateFolder: string): Owner | undefined {
  const file = ownerFile(stateFolder);
  if (!existsSync(file)) return undefined;
  try {
    const owner = JSON.parse(readFileSync(file, 'utf8')) as Owner;
    return typeof owner.process?.pid === 'number' && typeof owner.setup === 'string' ? owner : undefined;
  } catch {
    return undefined;
  }
}

/** A kept lab of the wanted setup whose libvirtd and VM run; undefined where there is none. */
async function findKept(stateFolder: string, setup?: string): Promise<Lab | undefined> {
  const owner = readOwner(stateFolder);
  if (owner === undefined || !owner.kept || (setup !== undefined && owner.setup !== setup)) return undefined;
  const lab = Lab.restore(stateFolder, owner);
  if (lab.libvirtd.process === undefined || lab.vm.qemu === undefined) return undefined;
  try {
    await lab.guest.waitForAgent(30_000);
    return lab;
  } catch {
    return undefined;
  }
}

async function endLeftovers(stateFolder: string, progress: Progress): Promise<void> {
  const owner = readOwner(stateFolder);
  if (owner !== undefined && !owner.kept && isRunning(owner.process)) {
    throw new LabError('LAB_IN_USE', `The lab in ${stateFolder} belongs to process ${owner.process.pid}, which runs`);
  }
  const ended = await endRun(stateFolder, { keepLogs: false });
  if (ended > 0) progress(`lab: ended ${ended} processes that an earlier run left`);
}

/** Ends all processes of a run and removes its folder (or all but its logs), and says how many there were. */
async function endRun(stateFolder: string, { keepLogs }: { readonly keepLogs: boolean }): Promise<number> {
  const run = runFolder(stateFolder);
  const processes = new ProcessTable(join(run, 'processes.json'));
  let ended = 0;
  // libvirtd first: it would see its VMs die and write about it.
  for (const entry of processes.list().filter(isRunning)) {
    await endProcess(entry, 5_000);
    ended += 1;
  }
  for (const qemu of findQemus(run)) {
    await endProcess(qemu, 0);
    ended += 1;
  }
  for (const entry of ['images', 'network', 'sockets', 'image', 'owner.json', 'processes.json']) {
    await rm(join(run, entry), { recursive: true, force: true });
  }
  if (!keepLogs) await rm(run, { recursive: true, force: true });
  return ended;
}

function runImage(run: string): GuestImage {
  const at = (name: string) => join(run, 'image', name);
  return {
    kernel: at('vmlinuz'),
    initrd: at('initrd.gz'),
    vda: at('vda.qcow2'),
    vdb: at('vdb.qcow2'),
    vdc: at('vdc.raw'),
  };
}

async function copyToRun(image: GuestImage, run: string): Promise<GuestImage> {
  await mkdir(join(run, 'image'), { recursive: true });
  const copies = runImage(run);
  for (const part of ['kernel', 'initrd', 'vda', 'vdb', 'vdc'] as const) await copyImage(image[part], copies[part]);
  return copies;
}
