import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Acceleration } from './acceleration.js';
import { LabError } from './errors.js';
import { Guest } from './guest.js';
import { SHELL_PORT } from './guest-files.js';
import { copyImage } from './guest-image.js';
import type { Libvirtd } from './libvirtd.js';
import { identifyProcess, type ProcessIdentity, type ProcessTable, signalProcess } from './processes.js';
import { runProgram } from './programs.js';
import { type SavedBoot, type SavedBoots, writeMemoryOf } from './saved-boot.js';
import type { AttachedVolume } from './storage/cinder.js';
import type { Storage } from './storage/storage.js';

const NO_LABEL = "  <seclabel type='none'/>\n";

/** A disk of a lab VM in a file: what lies in `source` is copied to `path` whenever the disk is made pristine. */
export interface VmDisk {
  readonly target: 'vda' | 'vdb' | 'vdc';
  /** `file`: local; `nbd`: the file is served by qemu-nbd, and the VM has a network disk. */
  readonly kind: 'file' | 'nbd';
  readonly format: 'qcow2' | 'raw';
  readonly path: string;
  readonly source: string;
}

/** The disks of a VM that are volumes of a Cinder, on its Ceph. They are made anew whenever the VM's disks are. */
export interface CephDisks {
  readonly storage: Storage;
  /** One volume of 1 GiB for each; they follow the other disks. */
  readonly targets: readonly string[];
  /** Default the storage's own, which is also that of Keystone's user `member`. */
  readonly projectId?: string;
}

/** What a VM is made of. */
export interface VmDefinition {
  readonly name: string;
  readonly uuid: string;
  readonly memoryMib: number;
  readonly disks: readonly VmDisk[];
  readonly ceph?: CephDisks;
  /** False: the VM has no guest agent channel at all. */
  readonly agentChannel: boolean;
}

/** The lab's surroundings of a VM. */
export interface VmHost {
  readonly acceleration: Acceleration;
  readonly kernel: string;
  readonly initrd: string;
  /** The folder of this run, below which all paths of its VMs lie. */
  readonly folder: string;
  /** Booted guests to go on from. */
  readonly savedBoots: SavedBoots;
  readonly socketsFolder: string;
  readonly logsFolder: string;
  /** True: libvirt relabels disk files (dynamic_ownership), so the XML must not forbid it. */
  readonly relabel: boolean;
}

/** One VM of the lab: a libvirt domain, its disk files, the NBD servers of its network disks, and the guest inside. */
export class Vm {
  readonly definition: VmDefinition;
  readonly guest: Guest;
  readonly #host: VmHost;
  readonly #home: Libvirtd;
  /** Under which it is; a migration changes it. */
  #libvirtd: Libvirtd;
  readonly #processes: ProcessTable;
  #volumes: ReadonlyMap<string, AttachedVolume> = new Map();

  constructor(definition: VmDefinition, host: VmHost, libvirtd: Libvirtd, processes: ProcessTable) {
    this.definition = definition;
    this.#host = host;
    this.#home = libvirtd;
    this.#libvirtd = libvirtd;
    this.#processes = processes;
    this.guest = new Guest(
      definition.name,
      () => this.#shellSocket,
      () => this.#libvirtd,
    );
  }

  get name(): string {
    return this.definition.name;
  }

  get uuid(): string {
    return this.definition.uuid;
  }

  /** The path of a disk's base file. */
  diskPath(target: VmDisk['target']): string {
    const disk = this.definition.disks.find((entry) => entry.target === target);
    if (disk === undefined) throw new LabError('VM_FAILED', `${this.name} has no disk ${target}`);
    return disk.path;
  }

  /** The ids of the Cinder volumes that it has, by target; none while it is removed. */
  get volumes(): Readonly<Record<string, string>> {
    return Object.fromEntries([...this.#volumes].map(([target, { id }]) => [target, id]));
  }

  /** Makes the disks anew, defines the domain and starts it, from a saved boot where there is one; returns when the guest's shell and its agent answer. */
  async create(): Promise<void> {
    // Volumes are made anew and never saved: their guest boots.
    const { ceph } = this.definition;
    const saved = ceph === undefined ? await this.#host.savedBoots.find(this.#machine()) : undefined;
    await this.#define(saved);
    if (saved === undefined) await this.start();
    else await this.#goOnFrom(saved);
  }

  /** Makes the disks anew and defines the domain, shut off. */
  async define(): Promise<void> {
    await this.#define(undefined);
  }

  /** Starts the domain as it is defined, and waits for the guest's shell and (if it has a channel) its agent. */
  async start(): Promise<void> {
    await this.powerOn();
    await this.#waitForGuest();
  }

  /** Starts the domain as it is defined, and leaves the guest to its boot: for who asks libvirt and not the guest. */
  async powerOn(): Promise<void> {
    await this.#run(['start', this.name]);
  }

  /** Writes the running guest to a file, as `virsh save` does; the domain is shut off then. */
  async save(file: string): Promise<void> {
    await this.#libvirtd.virsh(['save', this.name, file]);
    this.guest.disconnect();
  }

  /** Shuts the domain off with a file of libvirt's own, from which its next start goes on. */
  async managedSave(): Promise<void> {
    await this.#libvirtd.virsh(['managedsave', this.name]);
    this.guest.disconnect();
  }

  /** Goes on from such a file, and returns as soon as the guest runs. */
  async restore(file: string): Promise<void> {
    await this.#run(['restore', file]);
  }

  /** Migrates the running guest to another libvirtd of this machine, or back: it has its disks under the same paths; the definition stays behind. */
  async migrate(to: Libvirtd): Promise<void> {
    const from = this.#libvirtd;
    const here = this.#shellSocket;
    const xml = await from.virsh(['dumpxml', '--migratable', this.name]);
    this.#libvirtd = to;
    const file = join(this.#host.logsFolder, `${this.name}-migrated.xml`);
    // The old QEMU removes its socket when it ends, by whose hand ever that was made.
    await writeFile(file, xml.replace(here, this.#shellSocket));
    // Unsafe by libvirt's book, which knows no disks that both sides open through the same page cache.
    const how = ['--live', '--unsafe', '--migrateuri', 'tcp://127.0.0.1', '--listen-address', '127.0.0.1'];
    await from.virsh(['migrate', ...how, '--xml', file, this.name, to.uri], 60_000);
    this.guest.disconnect();
  }

  /** Keeps the guest as it has just booted, for every VM like this one. The VM is off then. */
  async saveBoot(): Promise<void> {
    // What the boot has left in free memory would make the file three times as large.
    await this.guest.run(
      'mkdir /run/zero && mount -t tmpfs -o size=75% tmpfs /run/zero && dd if=/dev/zero of=/run/zero/file bs=1M 2>/dev/null; umount /run/zero; rmdir /run/zero',
      60_000,
    );
    const disks = new Map(this.definition.disks.map(({ target, path }) => [target, path]));
    await this.#host.savedBoots.keep(this.#machine(), disks, (memory) => this.save(memory));
  }

  /** True when the guest need not boot: one like it has been saved. */
  async isBootSaved(): Promise<boolean> {
    return (await this.#host.savedBoots.find(this.#machine())) !== undefined;
  }

  async dropSavedBoot(): Promise<void> {
    await this.#host.savedBoots.drop(this.#machine());
  }

  /** Lets the guest power itself off, its file systems unmounted, and waits until the domain is shut off. */
  async stop(timeoutMs = 30_000): Promise<void> {
    // The answer may be lost with the console.
    await this.guest.run('setsid shutdown >/dev/null 2>&1 &', 5_000).catch(() => undefined);
    await this.waitForState('shut off', timeoutMs);
    this.guest.disconnect();
  }

  /** Pulls the plug; nothing happens where the domain is shut off. */
  async destroy(): Promise<void> {
    this.guest.disconnect();
    if ((await this.state()) !== 'shut off') await this.#libvirtd.virsh(['destroy', this.name]);
    await this.waitForState('shut off', 10_000);
  }

  /** Pulls the plug, makes the disks pristine, drops everything libvirt knew of the VM, and starts it anew. */
  async reset(): Promise<void> {
    await this.remove();
    await this.create();
  }

  /** Removes the VM: domain, disks, overlays beside them, NBD servers, volumes with all their snapshots. */
  async remove(): Promise<void> {
    if (await this.isDefined()) {
      await this.destroy();
      await this.#libvirtd.virsh(['undefine', '--snapshots-metadata', '--managed-save', this.name]);
    }
    for (const disk of this.definition.disks) {
      if (disk.kind === 'nbd') await this.#processes.end(this.#nbdName(disk));
    }
    await this.#removeDisks();
    await this.#removeVolumes();
  }

  async isDefined(): Promise<boolean> {
    return (await this.#libvirtd.virsh(['list', '--all', '--name'])).split('\n').includes(this.name);
  }

  /** The domain's state in virsh's words: `running`, `paused`, `shut off`. */
  async state(): Promise<string> {
    return this.#libvirtd.virsh(['domstate', this.name]);
  }

  /** Waits for a state of the domain. @throws LabError VM_FAILED after `timeoutMs`. */
  async waitForState(state: string, timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const now = await this.state();
      if (now === state) return;
      if (performance.now() > deadline) {
        throw new LabError('VM_FAILED', `${this.name} is '${now}' and not '${state}' after ${timeoutMs} ms`);
      }
      await delay(50);
    }
  }

  async pause(): Promise<void> {
    await this.#libvirtd.virsh(['suspend', this.name]);
  }

  async resume(): Promise<void> {
    await this.#libvirtd.virsh(['resume', this.name]);
  }

  /** The QEMU process, if it runs. */
  get qemu(): ProcessIdentity | undefined {
    return findQemus(this.#host.socketsFolder).find(({ pid }) => commandLine(pid).includes(` guest=${this.name},`));
  }

  /** Sends a signal to QEMU itself: SIGSTOP for a VM that hangs as a whole, SIGKILL for one that crashes. */
  signalQemu(signal: NodeJS.Signals): void {
    const { qemu } = this;
    if (qemu === undefined || !signalProcess(qemu, signal))
      throw new LabError('VM_FAILED', `${this.name} does not run`);
  }

  /** The domain's XML, live or as it will be at its next start. */
  async xml(which: 'live' | 'inactive' = 'live'): Promise<string> {
    return this.#libvirtd.virsh(['dumpxml', this.name, ...(which === 'inactive' ? ['--inactive'] : [])]);
  }

  /** The files of each disk's backing chain as QEMU uses it now, the active one first, by target. */
  async chains(): Promise<Record<string, string[]>> {
    const xml = await this.xml();
    const chains: Record<string, string[]> = {};
    for (const [, disk] of xml.matchAll(/<disk [^>]*type='file'[^>]*>([\s\S]*?)<\/disk>/g)) {
      if (disk === undefined) continue;
      const target = disk.match(/<target dev='([^']+)'/)?.[1];
      if (target === undefined) continue;
      chains[target] = [...disk.matchAll(/<source file='([^']+)'/g)].flatMap(([, file]) =>
        file === undefined ? [] : [file],
      );
    }
    return chains;
  }

  get #shellSocket(): string {
    const away = this.#libvirtd === this.#home ? '' : '-away';
    return join(this.#host.socketsFolder, `${this.definition.name}${away}.shell`);
  }

  #nbdName(disk: VmDisk): string {
    return `nbd ${this.name} ${disk.target}`;
  }

  #nbdSocket(disk: VmDisk): string {
    return join(this.#host.socketsFolder, `${this.name}-${disk.target}.nbd`);
  }

  async #run(command: readonly string[]): Promise<void> {
    for (const disk of this.definition.disks) if (disk.kind === 'nbd') await this.#startNbd(disk);
    await rm(this.#shellSocket, { force: true });
    await this.#libvirtd.virsh(command);
  }

  async #waitForGuest(): Promise<void> {
    await this.guest.waitForShell();
    if (this.definition.agentChannel) await this.guest.waitForAgent();
  }

  async #define(saved: SavedBoot | undefined): Promise<void> {
    await Promise.all([this.#makeDisks(saved), this.#makeVolumes()]);
    const file = join(this.#host.logsFolder, `${this.name}.xml`);
    await writeFile(file, this.#xml());
    await this.#libvirtd.virsh(['define', file]);
  }

  async #goOnFrom(saved: SavedBoot): Promise<void> {
    const memory = join(dirname(this.#shellSocket), `${this.name}.memory`);
    try {
      await writeMemoryOf(saved, await this.xml('inactive'), memory);
      await this.restore(memory);
    } finally {
      await rm(memory, { force: true });
    }
    await this.#waitForGuest();
  }

  /** The XML without what may differ from one VM to a like one. */
  #machine(): string {
    const { name, uuid } = this.definition;
    return this.#xml()
      .replaceAll(this.#host.folder, '')
      .replaceAll(uuid, '')
      .replaceAll(name, '')
      .replace(NO_LABEL, '');
  }

  async #makeDisks(saved: SavedBoot | undefined): Promise<void> {
    for (const disk of this.definition.disks) {
      await mkdir(dirname(disk.path), { recursive: true });
      if (saved !== undefined) await copyImage(saved.disk(disk.target), disk.path);
      else if (disk.format === 'raw' && disk.source.endsWith('.qcow2')) {
        await runProgram('qemu-img', ['convert', '-O', 'raw', disk.source, disk.path]);
      } else await copyImage(disk.source, disk.path);
    }
  }

  async #removeDisks(): Promise<void> {
    const folders = new Set(this.definition.disks.map((disk) => dirname(disk.path)));
    for (const folder of folders) {
      // Overlays lie beside their base, and a VM has its folder to itself.
      for (const file of await readdir(folder).catch(() => [])) await rm(join(folder, file), { recursive: true });
    }
  }

  async #makeVolumes(): Promise<void> {
    const { ceph } = this.definition;
    if (ceph === undefined) return;
    const { storage, projectId } = ceph;
    await this.#libvirtd.defineCephSecret({ fsid: storage.fsid, user: storage.cephUser, key: storage.secretKey });
    const made = ceph.targets.map(async (target): Promise<[string, AttachedVolume]> => {
      const id = await storage.createVolume(`${this.name}-${target}`, projectId);
      return [target, await storage.attachVolume(id, this.uuid, `/dev/${target}`, projectId)];
    });
    this.#volumes = new Map(await Promise.all(made));
  }

  async #removeVolumes(): Promise<void> {
    const volumes = [...this.#volumes.values()];
    this.#volumes = new Map();
    await Promise.all(volumes.map((volume) => this.definition.ceph?.storage.removeVolume(volume)));
  }

  async #startNbd(disk: VmDisk): Promise<void> {
    if (this.#processes.find(this.#nbdName(disk)) !== undefined) return;
    const socket = this.#nbdSocket(disk);
    await rm(socket, { force: true });
    const args = [
      '--persistent',
      '--shared=8',
      `--format=${disk.format}`,
      '--discard=unmap',
      '-k',
      socket,
      '-x',
      disk.target,
    ];
    const log = join(this.#host.logsFolder, `${this.name}-${disk.target}-nbd.log`);
    const server = this.#processes.start(this.#nbdName(disk), 'qemu-nbd', [...args, disk.path], log);
    const deadline = performance.now() + 10_000;
    while (!(await serves(socket, disk.target))) {
      if (performance.now() > deadline || identifyProcess(server.pid) === undefined) {
        throw new LabError('VM_FAILED', `qemu-nbd did not start, see ${log}`);
      }
      await delay(20);
    }
    // QEMU may run as another user.
    await runProgram('chmod', ['0666', socket]);
  }

  #xml(): string {
    const { definition: vm } = this;
    const { acceleration, kernel, initrd, relabel, logsFolder } = this.#host;
    const cpu =
      acceleration === 'kvm'
        ? "<cpu mode='host-passthrough'/>"
        : "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>";
    return `<domain type='${acceleration === 'kvm' ? 'kvm' : 'qemu'}'>
  <name>${vm.name}</name>
  <uuid>${vm.uuid}</uuid>
  <memory unit='MiB'>${vm.memoryMib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>${kernel}</kernel>
    <initrd>${initrd}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1</cmdline>
  </os>
  <features><acpi/><apic/></features>
  ${cpu}
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
${[...vm.disks.map((disk) => this.#diskXml(disk)), ...this.#volumesXml()].join('\n')}
    <controller type='virtio-serial' index='0'/>
    <controller type='usb' model='none'/>
${vm.agentChannel ? "    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n" : ''}\
    <serial type='file'><source path='${join(logsFolder, `${vm.name}-console.log`)}' append='on'/><target port='0'/></serial>
    <channel type='unix'><source mode='bind' path='${this.#shellSocket}'/><target type='virtio' name='${SHELL_PORT}'/></channel>
    <memballoon model='none'/>
  </devices>
${relabel ? '' : NO_LABEL}</domain>
`;
  }

  #diskXml(disk: VmDisk): string {
    const serial = `<serial>LAB${disk.target.toUpperCase()}</serial>`;
    const target = `<target dev='${disk.target}' bus='virtio'/>${serial}`;
    if (disk.kind === 'file') {
      return `    <disk type='file' device='disk'><driver name='qemu' type='${disk.format}' discard='unmap'/><source file='${disk.path}'/>${target}</disk>`;
    }
    const source = `<source protocol='nbd' name='${disk.target}'><host transport='unix' socket='${this.#nbdSocket(disk)}'/></source>`;
    return `    <disk type='network' device='disk'><driver name='qemu' type='raw'/>${source}${target}</disk>`;
  }

  /** As Nova and oVirt write them: the serial is the volume's id. */
  #volumesXml(): string[] {
    const { ceph } = this.definition;
    if (ceph === undefined) return [];
    const { storage } = ceph;
    const hosts = storage.monitors.map(({ host, port }) => `<host name='${host}' port='${port}'/>`).join('');
    const auth = `<auth username='${storage.cephUser}'><secret type='ceph' uuid='${storage.fsid}'/></auth>`;
    return [...this.#volumes].map(([target, { id }]) => {
      const source = `<source protocol='rbd' name='${storage.pool}/volume-${id}'>${hosts}</source>${auth}`;
      const place = `<target dev='${target}' bus='virtio'/><serial>${id}</serial>`;
      return `    <disk type='network' device='disk'><driver name='qemu' type='raw' cache='writeback' discard='unmap'/>${source}${place}</disk>`;
    });
  }
}

async function serves(socket: string, name: string): Promise<boolean> {
  const url = `nbd+unix:///${name}?socket=${socket}`;
  return (await runProgram('qemu-img', ['info', url], { accept: [0, 1] })).exitCode === 0;
}

/**
 * All QEMU processes whose command line names a file below `folder`: libvirt starts them, and after a crash of it or of us
 * the process list alone is sure to know them.
 */
export function findQemus(folder: string): ProcessIdentity[] {
  const isOurs = (line: string) => /^\S*\/?qemu-(system-|nbd)/.test(line) && line.includes(`${folder}/`);
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry) && isOurs(commandLine(Number(entry))))
    .flatMap((entry) => identifyProcess(Number(entry)) ?? []);
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    // It has ended meanwhile.
    return '';
  }
}
