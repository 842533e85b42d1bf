import { HostAgentError } from '../errors.js';
import type { ChainImage, Disk, GuestFileSystem, GuestOs, Vm } from '../hypervisor.js';
import type { SimulatedFiles } from './files.js';
import { type FreezeHook, jobWaitS, SimulatedGuestAgent } from './guest-agent.js';
import { JobLock } from './job-lock.js';
import { WrittenNumbers } from './numbers.js';

/** A disk of a simulated VM. Defaults: a qcow2 file of 1 GiB, `/var/lib/libvirt/images/<vm>-<target>.qcow2`, which the guest writes to. */
export interface SimulatedDisk {
  target: string;
  device?: Disk['device'];
  kind?: Disk['kind'];
  path?: string;
  /** rbd: "pool/image"; network: "protocol:name". Default: `volumes/volume-<serial or target>`. */
  image?: string;
  format?: string;
  sizeBytes?: number;
  serial?: string;
  readOnly?: boolean;
  shareable?: boolean;
  transient?: boolean;
}

export interface SimulatedVmSettings {
  name: string;
  /** Default: made of the name's place among the VMs. */
  uuid?: string;
  disks: SimulatedDisk[];
  /** Default running. */
  state?: 'running' | 'shut-off';
  /** Default true. */
  persistent?: boolean;
  guestAgent?: 'connected' | 'disconnected' | 'not-configured';
  /** As the guest agent says. Default Debian. */
  os?: GuestOs;
  /** As the domain's metadata says, asked when the guest agent does not tell. */
  metadataOs?: GuestOs;
  /** Default: an ext4 file system on each writable disk, the first at /, the others at /<target>. */
  fileSystems?: GuestFileSystem[];
}

/** One disk in one definition: the source that a snapshot or a merge changes. */
export interface DefinedDisk {
  source: string | undefined;
  format: string;
  /** Images below it that the persistent definition names: libvirt takes them down at a snapshot, and the VM does not start without them. */
  recorded?: ChainImage[];
}

type Definition = Map<string, DefinedDisk>;

/** A block job on a disk: ours (of an overlay) or another program's. */
export interface BlockJob {
  target: string;
  overlay: string | undefined;
  ended: Promise<void>;
  doneBytes: number;
  totalBytes: number;
}

/** What goes where a VM goes when it is saved to a file or moves to another host: its guest's memory, and its live definition. */
export interface GuestLife {
  frozen: boolean;
  note: string | undefined;
}

/** A simulated VM: definitions, guest, guest agent. Tests and the demo drive it by its methods, which happen at once. */
export class SimulatedVm {
  readonly uuid: string;
  readonly name: string;
  readonly agent: SimulatedGuestAgent;
  readonly hasAgentChannel: boolean;
  readonly metadataOs: GuestOs | undefined;
  readonly domainJob: JobLock;
  readonly blockJobs = new Map<string, BlockJob>();
  readonly #disks: SimulatedDisk[];
  readonly #files: SimulatedFiles;
  /** Content of disks that are no files of this host: Ceph's, and others' over the network. */
  readonly #volumes = new Map<string, WrittenNumbers>();
  readonly #emit: (event: SimulatedVmEvent) => void;
  readonly #agentAtStart: boolean;
  readonly #settings: SimulatedVmSettings & { uuid: string };
  #saved: GuestLife | undefined;

  persistent: boolean;
  migrating = false;
  /** How its last life ended. */
  offBecause: 'moved' | 'saved' | 'ended' | 'unknown' = 'unknown';
  /** In its live definition. */
  note: string | undefined;
  /** Undefined: it is gone (undefined and off, or moved). */
  exists = true;
  domainId: number | undefined;
  paused = false;
  live: Definition | undefined;
  inactive: Definition | undefined;
  #nextNumber = 1;
  #nextDisk = 0;
  static #lastDomainId = 0;

  constructor(
    settings: SimulatedVmSettings & { uuid: string },
    world: { files: SimulatedFiles; secondMs: number; emit: (event: SimulatedVmEvent) => void },
  ) {
    this.#settings = settings;
    this.uuid = settings.uuid;
    this.name = settings.name;
    this.persistent = settings.persistent ?? true;
    this.metadataOs = settings.metadataOs;
    this.hasAgentChannel = settings.guestAgent !== 'not-configured';
    this.#agentAtStart = (settings.guestAgent ?? 'connected') === 'connected';
    this.#files = world.files;
    this.#emit = world.emit;
    this.#disks = settings.disks;
    this.domainJob = new JobLock('held by another modifying call', jobWaitS * world.secondMs);
    const definition: Definition = new Map();
    for (const disk of settings.disks) definition.set(disk.target, this.#define(disk));
    this.inactive = definition;
    this.agent = new SimulatedGuestAgent({
      secondMs: world.secondMs,
      connected: false,
      fileSystems: settings.fileSystems ?? this.#defaultFileSystems(),
      os: settings.os ?? { id: 'debian', isWindows: false },
    });
    if (settings.state !== 'shut-off') this.start();
    if (!this.persistent) this.inactive = undefined;
  }

  get running(): boolean {
    return this.live !== undefined;
  }

  get hasManagedSave(): boolean {
    return this.#saved !== undefined;
  }

  /** Whether the guest's file systems are frozen: the truth that tests ask. */
  get frozen(): boolean {
    return this.agent.frozen;
  }

  /** The number that the guest writes next. */
  get nextNumber(): number {
    return this.#nextNumber;
  }

  /** Targets that the guest writes to, in the order of its writes. */
  get writtenDisks(): string[] {
    return this.#disks
      .filter((disk) => (disk.device ?? 'disk') === 'disk' && disk.readOnly !== true)
      .map((disk) => disk.target);
  }

  /** The guest writes: the next number goes to each of its disks in turn. Nothing while it is frozen, paused or off. */
  write(writes: number): void {
    const targets = this.writtenDisks;
    for (let i = 0; i < writes; i++) {
      if (!this.running || this.paused || this.frozen || targets.length === 0) return;
      this.#contentToWrite(targets[this.#nextDisk] ?? '')?.add(this.#nextNumber);
      this.#nextDisk = (this.#nextDisk + 1) % targets.length;
      if (this.#nextDisk === 0) this.#nextNumber++;
    }
  }

  /** What a reader of the disk sees now: all that the guest ever wrote there, unless something was lost. */
  content(target: string): WrittenNumbers {
    const volume = this.#volumes.get(target);
    if (volume !== undefined) return volume.clone();
    const source = (this.live ?? this.inactive)?.get(target)?.source;
    return source === undefined ? new WrittenNumbers() : this.#files.content(source);
  }

  /** A snapshot of a disk that is no local file, as its storage would cut it now. Errors: DISK_NOT_FOUND. */
  cutVolume(target: string): WrittenNumbers {
    const volume = this.#volumes.get(target);
    if (volume === undefined) throw new HostAgentError('DISK_NOT_FOUND', `${this.name} has no volume ${target}.`);
    return volume.clone();
  }

  start(): void {
    if (this.running || this.inactive === undefined) return;
    for (const { recorded = [] } of this.inactive.values()) {
      for (const { path } of recorded) this.#files.need(path);
    }
    this.live = copy(this.inactive);
    this.domainId = ++SimulatedVm.#lastDomainId;
    const saved = this.#saved;
    this.#saved = undefined;
    this.agent.frozen = saved?.frozen ?? false;
    this.note = saved?.note;
    this.#emit({ type: 'lifecycle', uuid: this.uuid, what: 'started' });
    if (saved !== undefined) this.#emit({ type: 'lifecycle', uuid: this.uuid, what: 'resumed' });
    if (this.#agentAtStart && this.hasAgentChannel) this.connectAgent();
  }

  /** Powers off; a transient VM is gone with it. Block jobs end without a merge. */
  shutOff(): void {
    this.#end('ended');
  }

  /** Off and on again: another domain id. */
  restart(): void {
    this.shutOff();
    this.start();
  }

  /** A migration begins; it ends with shutOff() or moveAway(). */
  migrate(): void {
    this.migrating = true;
  }

  pause(): void {
    if (!this.running) return;
    this.paused = true;
    this.agent.guestPaused();
    this.#emit({ type: 'lifecycle', uuid: this.uuid, what: 'paused' });
  }

  resume(): void {
    if (!this.running) return;
    this.paused = false;
    this.agent.guestResumed();
    this.#emit({ type: 'lifecycle', uuid: this.uuid, what: 'resumed' });
  }

  /** Drops the persistent definition; a VM that is off is gone. */
  undefine(): void {
    this.persistent = false;
    this.inactive = undefined;
    if (!this.running) this.exists = false;
    this.#emit({ type: 'lifecycle', uuid: this.uuid, what: 'undefined' });
  }

  /** Shuts off with a managed-save image, from which the next start goes on. */
  managedSave(): void {
    this.#saved = this.save();
  }

  /** Shuts off, its life in the file that is returned. */
  save(): GuestLife {
    const life = { frozen: this.frozen, note: this.note };
    this.#end('saved');
    return life;
  }

  /** Goes on from a file. */
  restore(life: GuestLife): void {
    if (this.running) return;
    this.#saved = life;
    this.start();
  }

  /** Migrates to another host, if one is given, and runs on there; this host knows it no more. */
  moveAway(to?: { addVm(settings: SimulatedVmSettings): SimulatedVm }): void {
    const life = { frozen: this.frozen, note: this.note };
    const there = to?.addVm({ ...this.#settings, state: 'shut-off' });
    this.persistent = false;
    this.#end('moved');
    there?.restore(life);
  }

  connectAgent(): void {
    this.agent.connect();
    this.#emit({ type: 'agent', uuid: this.uuid, connected: true });
  }

  /** The guest agent ends (killed, or stopped in the guest); what it froze stays frozen. */
  disconnectAgent(): void {
    this.agent.disconnect();
    this.#emit({ type: 'agent', uuid: this.uuid, connected: false });
  }

  setFreezeHook(hook: FreezeHook): void {
    this.agent.setHook(hook);
  }

  /** Another tool freezes the guest. */
  freezeByOther(): void {
    this.agent.frozen = true;
  }

  /** Another tool thaws the guest. */
  thawByOther(): void {
    this.agent.frozen = false;
  }

  /** Another program's block job on a disk, until the returned function ends it. */
  startForeignBlockJob(target: string): () => void {
    let end = (): void => {};
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    this.blockJobs.set(target, { target, overlay: undefined, ended, doneBytes: 0, totalBytes: 1 });
    return () => {
      this.blockJobs.delete(target);
      end();
    };
  }

  /** Makes a definition name another image, as an administrator's `virsh edit` does. */
  setSource(
    definition: 'live' | 'inactive',
    target: string,
    source: string,
    format: string,
    recorded?: ChainImage[],
  ): void {
    this[definition]?.set(target, { source, format, ...(recorded === undefined ? {} : { recorded }) });
  }

  /** @param behindJob only there is every block job told; libvirt's XML shows active commits alone. */
  describe(behindJob = false): Vm {
    const definition = this.live ?? this.inactive ?? new Map();
    return {
      uuid: this.uuid,
      name: this.name,
      domainId: this.domainId,
      state: !this.running ? 'shut-off' : this.paused ? 'paused' : 'running',
      offBecause: this.running ? undefined : this.offBecause,
      note: this.note,
      persistent: this.persistent,
      hasManagedSave: this.hasManagedSave,
      guestAgent: !this.hasAgentChannel
        ? 'not-configured'
        : !this.running
          ? 'unknown'
          : this.agent.connected
            ? 'connected'
            : 'disconnected',
      migrating: this.migrating,
      disks: this.#describeDisks(definition, { wholeChain: this.running, behindJob }),
    };
  }

  describeInactive(): Disk[] | undefined {
    return this.inactive === undefined
      ? undefined
      : this.#describeDisks(this.inactive, { wholeChain: false, behindJob: false });
  }

  /** Paths that its QEMU has open: every image of every live chain. */
  openPaths(): string[] {
    if (this.live === undefined) return [];
    return [...this.live.values()].flatMap(({ source }) =>
      source === undefined ? [] : this.#files.chain(source).map((image) => image.path),
    );
  }

  #end(how: 'moved' | 'saved' | 'ended'): void {
    if (!this.running) return;
    this.live = undefined;
    this.note = undefined;
    this.offBecause = how;
    this.domainId = undefined;
    this.paused = false;
    this.migrating = false;
    this.agent.guestGone();
    if (!this.persistent) this.exists = false;
    const why = how === 'ended' ? {} : { why: how };
    this.#emit({ type: 'lifecycle', uuid: this.uuid, what: 'stopped', ...why });
  }

  /** libvirt tells the whole chain of a running domain; of the persistent definition only what that names. */
  #describeDisks(definition: Definition, told: { wholeChain: boolean; behindJob: boolean }): Disk[] {
    return this.#disks.map((disk): Disk => {
      const kind = disk.kind ?? 'file';
      const defined = definition.get(disk.target);
      const source = defined?.source;
      const chain = source === undefined ? [] : this.#files.chain(source);
      const job = this.running ? this.blockJobs.get(disk.target) : undefined;
      return {
        target: disk.target,
        device: disk.device ?? 'disk',
        kind,
        path: source,
        image: kind === 'rbd' || kind === 'network' ? imageName(disk) : undefined,
        format: defined?.format ?? disk.format ?? 'raw',
        serial: disk.serial,
        readOnly: disk.readOnly ?? false,
        shareable: disk.shareable ?? false,
        transient: disk.transient ?? false,
        blockJob: job !== undefined && (told.behindJob || job.overlay === source),
        chain: (told.wholeChain ? chain : [...chain.slice(0, 1), ...(defined?.recorded ?? [])]).map((image, i) => ({
          path: i === 0 ? (source ?? image.path) : image.path,
          format: image.format,
          kind: image.kind,
        })),
      };
    });
  }

  #define(disk: SimulatedDisk): DefinedDisk {
    const kind = disk.kind ?? 'file';
    if (kind === 'rbd' || kind === 'network') {
      this.#volumes.set(disk.target, new WrittenNumbers());
      return { source: undefined, format: disk.format ?? 'raw' };
    }
    if (kind === 'other' || (disk.path === undefined && disk.device !== undefined && disk.device !== 'disk')) {
      return { source: undefined, format: disk.format ?? 'raw' };
    }
    const path = disk.path ?? `/var/lib/libvirt/images/${this.name}-${disk.target}.qcow2`;
    const format = disk.format ?? (kind === 'block' ? 'raw' : 'qcow2');
    if (this.#files.get(path) === undefined) {
      this.#files.add({ path, kind, format, virtualSizeBytes: disk.sizeBytes ?? 1 << 30 });
    }
    return { source: path, format };
  }

  #contentToWrite(target: string): WrittenNumbers | undefined {
    const volume = this.#volumes.get(target);
    if (volume !== undefined) return volume;
    const source = this.live?.get(target)?.source;
    return source === undefined ? undefined : this.#files.get(source)?.numbers;
  }

  #defaultFileSystems(): GuestFileSystem[] {
    return this.writtenDisks.map((target, i) => ({
      mountpoint: i === 0 ? '/' : `/${target}`,
      type: 'ext4',
      device: target,
      targets: [target],
    }));
  }
}

/** What a VM tells of itself. */
export type SimulatedVmEvent =
  | {
      type: 'lifecycle';
      uuid: string;
      what: 'started' | 'stopped' | 'paused' | 'resumed' | 'undefined';
      why?: 'moved' | 'saved';
    }
  | { type: 'agent'; uuid: string; connected: boolean };

function copy(definition: Definition): Definition {
  return new Map([...definition].map(([target, disk]) => [target, { ...disk }]));
}

function imageName(disk: SimulatedDisk): string {
  return disk.image ?? `volumes/volume-${disk.serial ?? disk.target}`;
}
