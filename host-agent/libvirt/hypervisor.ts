import { z } from 'zod';
import { HostAgentError, isHostAgentError } from '../errors.js';
import type {
  Disk,
  GuestFileSystem,
  GuestOs,
  Hypervisor,
  HypervisorEvent,
  HypervisorFacts,
  Images,
  OverlayFile,
  Vm,
  VmState,
} from '../hypervisor.js';
import { type CommitOptions, commitImage } from './block-commit.js';
import {
  DomainState,
  DomainXmlFlag,
  LibvirtClient,
  type LibvirtClientOptions,
  LifecycleStopped,
  ShutoffReason,
  SnapshotFlag,
  StoppedDetail,
} from './client.js';
import { type DomainDefinition, noteNamespace, noteXml, readDomainXml, snapshotXml, withImage } from './domain-xml.js';
import { ErrorNumber, isJobLockTimeout, isOperationInvalid, LibvirtConnectionError, LibvirtError } from './errors.js';
import { type Look, needsLook, type Task, toHostAgentError } from './failures.js';
import { createQemuImages } from './images.js';
import type { BlockJobEvent, Domain, LifecycleEvent } from './procedures.js';
import type { CallOptions } from './rpc.js';

/** virDomainAgentSetResponseTimeout came with it. */
const AGENT_TIMEOUT_SINCE = 5_010_000;
/** virDomainAgentResponseTimeoutValues: libvirt's own way, which may wait without limit. */
const AGENT_TIMEOUT_DEFAULT = -1;
/** libvirt itself waits 30 s for a domain's job; an answer of its own is worth more than a timeout of ours. In ms. */
const JOB_CALL_MS = 40_000;
/** Calls that the guest agent's response timeout bounds: above its highest value, 10 min. In ms. */
const AGENT_CALL_MS = 660_000;
/** A snapshot or a block commit's start waits for the job, and then for storage. In ms. */
const STORAGE_CALL_MS = 120_000;

/** As long is a migration asked for where the caller does not insist, in ms. */
const BRIEF_JOB_WAIT_MS = 1_000;

/** virDomainJobType, and virDomainJobOperation of a job that runs. */
const JOB_NONE = 0;
const MIGRATION_IN = 4;
const MIGRATION_OUT = 5;

/** The guest's own word, which goes into the journal and into answers: libvirt lets up to 4 MiB of it through. */
const osAnswer = z.object({ id: z.string().max(64).optional() });
/** The same of its file systems: PATH_MAX, and far more than a name of a kernel's takes. */
const fileSystemsAnswer = z.array(
  z.object({
    mountpoint: z.string().max(4_096),
    type: z.string().max(64),
    name: z.string().max(256),
    disks: z.array(z.string().max(64)),
  }),
);

export interface LibvirtHypervisorOptions extends LibvirtClientOptions {
  /** Images of this host; default: qemu-img and the file system. */
  images?: Images;
}

/** The port over libvirt's RPC socket. */
export function createLibvirtHypervisor(options: LibvirtHypervisorOptions = {}): Hypervisor {
  return new LibvirtHypervisor(options);
}

class LibvirtHypervisor implements Hypervisor {
  readonly kind = 'libvirt';
  readonly images: Images;
  readonly #client: LibvirtClient;
  readonly #listeners = new Set<(event: HypervisorEvent) => void>();
  /** Merges that this process started, by VM, disk and overlay: a second caller waits for the first one's. */
  readonly #merges = new Map<string, Promise<void>>();

  constructor({ images, ...options }: LibvirtHypervisorOptions) {
    this.images = images ?? createQemuImages();
    this.#client = new LibvirtClient(options);
    // Each caller that waits for a block job listens.
    this.#client.setMaxListeners(0);
    this.#client.on('up', () => this.#emit({ type: 'connection', up: true }));
    this.#client.on('down', () => this.#emit({ type: 'connection', up: false }));
    this.#client.on('lifecycle', (event) => {
      this.#emit({ type: 'lifecycle', uuid: event.domain.uuid, ...lifecycleOf(event) });
    });
    this.#client.on('agent', (event) => {
      this.#emit({ type: 'agent', uuid: event.domain.uuid, connected: event.connected });
    });
    this.#client.on('blockJob', (event) => {
      const what = blockJobOf(event);
      if (what !== undefined) this.#emit({ type: 'block-job', uuid: event.domain.uuid, target: event.disk, what });
    });
  }

  async start(signal?: AbortSignal): Promise<void> {
    await this.#client.start(signal).catch((error: unknown) => {
      throw toHostAgentError(error, 'read');
    });
  }

  close(): Promise<void> {
    return this.#client.close();
  }

  onEvent(listener: (event: HypervisorEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  async facts(): Promise<HypervisorFacts> {
    const { versions } = this.#client;
    if (versions === undefined) {
      return { reachable: false, libvirtVersion: '', qemuVersion: '', canSetAgentTimeout: false };
    }
    return {
      reachable: true,
      libvirtVersion: versionText(versions.libvirt),
      qemuVersion: versionText(versions.hypervisor),
      canSetAgentTimeout: versions.libvirt >= AGENT_TIMEOUT_SINCE,
    };
  }

  async listVms(): Promise<Vm[]> {
    const domains = await this.#client.listAllDomains().catch((error: unknown) => {
      throw toHostAgentError(error, 'read');
    });
    const vms = await Promise.all(
      domains.map((domain) =>
        this.#describe(domain).catch((error: unknown) => {
          // One is gone since the list was made, or its XML makes no sense: the others must still be seen. getVm tells why.
          if (isHostAgentError(error, 'VM_NOT_FOUND') || isHostAgentError(error, 'LIBVIRT_PROTOCOL')) return undefined;
          throw error;
        }),
      ),
    );
    return vms.filter((vm) => vm !== undefined);
  }

  async getVm(uuid: string): Promise<Vm> {
    const domain = await this.#ask(uuid, 'read', () => this.#client.lookupByUuid(uuid));
    return this.#describe(domain);
  }

  async getVmBehindJob(uuid: string): Promise<{ vm: Vm; inactive?: Disk[] }> {
    await this.#waitForJob(uuid);
    const vm = await this.#ask(uuid, 'read', async () => {
      return this.#withBlockJobs(await this.#describe(await this.#client.lookupByUuid(uuid), JOB_CALL_MS));
    });
    if (!vm.persistent) return { vm };
    const inactive = await this.#ask(uuid, 'read', () => this.#definition(domainRef(uuid), DomainXmlFlag.inactive));
    return { vm, inactive: inactive.disks };
  }

  async setNote(uuid: string, note: string | undefined): Promise<void> {
    const { prefix: key, uri } = noteNamespace;
    const xml = note === undefined ? null : noteXml(note);
    const options = { timeoutMs: JOB_CALL_MS };
    await this.#ask(uuid, 'read', () => this.#client.setLiveMetadata(domainRef(uuid), { xml, key, uri }, options));
  }

  async setAgentTimeout(uuid: string, seconds: number | 'default'): Promise<void> {
    if (seconds !== 'default') checkSeconds(seconds);
    const value = seconds === 'default' ? AGENT_TIMEOUT_DEFAULT : seconds;
    const { libvirtVersion, reachable, canSetAgentTimeout } = await this.facts();
    if (reachable && !canSetAgentTimeout) {
      throw new HostAgentError('LIBVIRT_TOO_OLD', `libvirt ${libvirtVersion} cannot bound the guest agent's answer`);
    }
    const options = { timeoutMs: JOB_CALL_MS };
    await this.#ask(uuid, 'agent', () => this.#client.setAgentResponseTimeout(domainRef(uuid), value, options));
  }

  async guestOs(uuid: string, timeoutS: number): Promise<GuestOs | undefined> {
    try {
      const { id } = await this.#agentCommand(uuid, 'guest-get-osinfo', osAnswer, timeoutS);
      // Without /etc/os-release there is no id; on Windows there always is (QEMU's qga/commands-win32.c).
      return { id: id ?? 'unknown', isWindows: id === 'mswindows' };
    } catch (error) {
      // Without its answer (no agent, not running, too old for the command) the definition may know.
      const lasting = [
        'LIBVIRT_UNREACHABLE',
        'LIBVIRT_PROTOCOL',
        'VM_NOT_FOUND',
        'INVALID_ARGUMENT',
        'INTERNAL',
      ] as const;
      if (lasting.some((code) => isHostAgentError(error, code))) throw error;
    }
    return (await this.#ask(uuid, 'read', () => this.#definition(domainRef(uuid), 0))).os;
  }

  async guestFileSystems(uuid: string): Promise<GuestFileSystem[]> {
    const options = { timeoutMs: AGENT_CALL_MS };
    const infos = await this.#ask(uuid, 'agent', () => this.#client.getFsInfo(domainRef(uuid), options));
    const { success, data, error } = fileSystemsAnswer.safeParse(infos);
    if (!success) throw notUnderstood('guest-get-fsinfo', error);
    return data.map(({ mountpoint, type, name, disks }) => ({ mountpoint, type, device: name, targets: disks }));
  }

  async freezeStatus(uuid: string, timeoutS: number): Promise<'frozen' | 'thawed'> {
    return this.#agentCommand(uuid, 'guest-fsfreeze-status', z.enum(['frozen', 'thawed']), timeoutS);
  }

  async freeze(uuid: string): Promise<{ fileSystems: number; repliedAt: number }> {
    const times = new CallTimes(AGENT_CALL_MS);
    const fileSystems = await this.#ask(uuid, 'freeze', () => this.#client.fsFreeze(domainRef(uuid), times.options));
    return { fileSystems, repliedAt: times.repliedAt };
  }

  async thaw(uuid: string): Promise<{ fileSystems: number; requestedAt: number; repliedAt: number }> {
    const times = new CallTimes(AGENT_CALL_MS);
    const fileSystems = await this.#ask(uuid, 'agent', () => this.#client.fsThaw(domainRef(uuid), times.options));
    return { fileSystems, requestedAt: times.requestedAt, repliedAt: times.repliedAt };
  }

  async snapshotDisks(
    uuid: string,
    overlays: readonly OverlayFile[],
  ): Promise<{ requestedAt: number; repliedAt: number }> {
    const times = new CallTimes(STORAGE_CALL_MS);
    await this.#ask(uuid, 'snapshot', async () => {
      const { live, name, disks } = await this.#definition(domainRef(uuid), 0);
      // libvirt would carry it out on the definition of a domain that is off.
      if (!live) throw new HostAgentError('VM_NOT_RUNNING', `${name} is not running`);
      const targets = disks.map((disk) => disk.target);
      const unknown = overlays.find(({ target }) => !targets.includes(target));
      if (unknown !== undefined || overlays.length === 0) {
        throw new HostAgentError(
          'SNAPSHOT_FAILED',
          unknown ? `${name} has no disk ${unknown.target}` : 'No disk was named.',
        );
      }
      const others = targets.filter((target) => !overlays.some((overlay) => overlay.target === target));
      const flags = SnapshotFlag.diskOnly | SnapshotFlag.atomic | SnapshotFlag.reuseExt | SnapshotFlag.noMetadata;
      await this.#client.createSnapshot(domainRef(uuid), snapshotXml(overlays, others), flags, times.options);
    });
    return { requestedAt: times.requestedAt, repliedAt: times.repliedAt };
  }

  async mergeOverlay(uuid: string, target: string, overlay: string, options: CommitOptions = {}): Promise<void> {
    const key = JSON.stringify([uuid, target, overlay]);
    const running = this.#merges.get(key);
    if (running !== undefined) return orAborted(running, options.signal);
    // The job goes on without its caller, and so does whoever pivots: an aborted signal only ends the caller's wait.
    const { signal, ...watched } = options;
    const merge = this.#merge(uuid, target, overlay, watched).finally(() => this.#merges.delete(key));
    this.#merges.set(key, merge);
    return orAborted(merge, signal);
  }

  async replaceImage(
    uuid: string,
    target: string,
    change: { from: string; to: string; toFormat: string },
  ): Promise<void> {
    const { kind } = await this.images.resolve(change.to);
    await this.#ask(uuid, 'read', async () => {
      const domain = domainRef(uuid);
      await this.#refuseUnlessOff(domain, target, change);
      // With its secrets: defined without them the domain would lose its passwords.
      const flags = DomainXmlFlag.inactive | DomainXmlFlag.secure;
      const before = await this.#client.getXml(domain, flags);
      const image = { path: change.to, format: change.toFormat, kind };
      await this.#client.defineXml(withImage(before, target, image), { timeoutMs: JOB_CALL_MS });
      await this.#takeBackIfStarted(domain, target, change, before);
    });
  }

  async #merge(uuid: string, target: string, overlay: string, options: CommitOptions): Promise<void> {
    const readDisk = async (): Promise<Disk> => {
      await this.#waitForJob(uuid);
      const { live, name, disks } = await this.#definition(domainRef(uuid), 0);
      if (!live) throw new HostAgentError('VM_NOT_RUNNING', `${name} is not running`);
      const disk = disks.find((candidate) => candidate.target === target);
      if (disk === undefined) throw new HostAgentError('DISK_NOT_FOUND', `${name} has no disk ${target}`);
      return disk;
    };
    await this.#ask(uuid, 'merge', async () => {
      const disk = await readDisk();
      const image = await this.#namedInChain(disk, overlay);
      await commitImage(this.#client, domainRef(uuid), disk, image, readDisk, options);
    });
  }

  /** The path by which the chain names the image at `path`, which may be another name of the same file. Errors: DISK_NOT_FOUND. */
  async #namedInChain(disk: Disk, path: string): Promise<string> {
    const real = async (name: string) => (await this.images.resolve(name).catch(() => undefined))?.path;
    const wanted = await real(path);
    for (const image of disk.chain) {
      if (image.path === path || (wanted !== undefined && wanted === (await real(image.path)))) return image.path;
    }
    throw new HostAgentError('DISK_NOT_FOUND', `The chain of ${disk.target} does not hold ${path}.`);
  }

  async #refuseUnlessOff(domain: Domain, target: string, change: { from: string }): Promise<void> {
    const { name, disks } = await this.#definition(domain, DomainXmlFlag.inactive);
    const { state } = await this.#client.getState(domain);
    const path = disks.find((disk) => disk.target === target)?.path;
    const refusal =
      state !== DomainState.shutOff
        ? 'it runs'
        : (await this.#client.hasManagedSaveImage(domain))
          ? 'it has a managed-save image'
          : path !== change.from
            ? `${target} uses ${path ?? 'nothing'}, not ${change.from}`
            : undefined;
    if (refusal !== undefined) {
      throw new HostAgentError('VM_CHANGED', `The definition of ${name} is not changed: ${refusal}.`);
    }
  }

  /** libvirt cannot change a definition only while the domain is off: started in between, it runs on the old image. */
  async #takeBackIfStarted(domain: Domain, target: string, change: { from: string }, before: string): Promise<void> {
    const { live, name, disks } = await this.#definition(domain, 0);
    if (!live || disks.find((disk) => disk.target === target)?.path !== change.from) return;
    await this.#client.defineXml(before, { timeoutMs: JOB_CALL_MS });
    throw new HostAgentError('VM_CHANGED', `${name} was started meanwhile and uses ${change.from}.`);
  }

  /**
   * Waits until no job holds the domain. It asks for a disk's size, which takes the job and changes nothing; whether there is such a disk
   * does not matter, since libvirt looks for it only then.
   */
  async #waitForJob(uuid: string): Promise<void> {
    await this.#ask(uuid, 'read', async () => {
      try {
        await this.#client.getBlockInfo(domainRef(uuid), 'no-such-disk', { timeoutMs: JOB_CALL_MS });
      } catch (error) {
        if (!(error instanceof LibvirtError) || error.number !== ErrorNumber.invalidArg) throw error;
      }
    });
  }

  /** @param jobWaitMs how long it may take to learn of a migration, for which libvirt waits for the domain's job. */
  async #describe(domain: Domain, jobWaitMs = BRIEF_JOB_WAIT_MS): Promise<Vm> {
    return this.#ask(domain.uuid, 'read', async () => {
      const [{ state, reason }, definition, hasManagedSave, persistent, migrating] = await Promise.all([
        this.#client.getState(domain),
        this.#definition(domain, 0),
        this.#client.hasManagedSaveImage(domain),
        this.#client.isPersistent(domain),
        this.#isMigrating(domain, jobWaitMs),
      ]);
      return {
        uuid: domain.uuid,
        name: definition.name,
        domainId: domain.id === -1 ? undefined : domain.id,
        state: stateOf(state),
        offBecause: state === DomainState.shutOff ? offBecause(reason) : undefined,
        note: definition.note,
        persistent,
        hasManagedSave,
        guestAgent: definition.guestAgent,
        migrating,
        disks: definition.disks,
      };
    });
  }

  /** Pulls and commits below the active image are not in the XML; to ask for them takes the domain's job. */
  async #withBlockJobs(vm: Vm): Promise<Vm> {
    if (vm.state === 'shut-off') return vm;
    const options = { timeoutMs: JOB_CALL_MS };
    const disks = vm.disks.map(async (disk) => {
      if (disk.blockJob || disk.chain.length === 0) return disk;
      return {
        ...disk,
        blockJob: (await this.#client.getBlockJobInfo(domainRef(vm.uuid), disk.target, options)) !== null,
      };
    });
    return { ...vm, disks: await Promise.all(disks) };
  }

  async #isMigrating(domain: Domain, jobWaitMs: number): Promise<boolean> {
    if (domain.id === -1) return false;
    try {
      const { type, parameters } = await this.#client.getJobStats(domain, { timeoutMs: jobWaitMs });
      const operation = parameters.get('operation');
      return type !== JOB_NONE && (operation === MIGRATION_IN || operation === MIGRATION_OUT);
    } catch (error) {
      if (isOperationInvalid(error)) return false; // it does not run any more
      const isBusy =
        isJobLockTimeout(error) || (error instanceof LibvirtConnectionError && error.code === 'LIBVIRT_CALL_TIMEOUT');
      // A migration lets this question through. What does not is a short job, or a QEMU that hangs: it must not hide its VM from lists.
      if (isBusy && jobWaitMs === BRIEF_JOB_WAIT_MS) return false;
      throw error;
    }
  }

  async #definition(domain: Domain, flags: number): Promise<DomainDefinition> {
    return readDomainXml(await this.#client.getXml(domain, flags));
  }

  async #agentCommand<T>(uuid: string, name: string, schema: z.ZodType<T>, timeoutS: number): Promise<T> {
    checkSeconds(timeoutS);
    const options = { timeoutMs: timeoutS * 1_000 + JOB_CALL_MS };
    const command = JSON.stringify({ execute: name });
    const text = await this.#ask(uuid, 'agent', () =>
      this.#client.agentCommand(domainRef(uuid), command, timeoutS, options),
    );
    try {
      return z.object({ return: schema }).parse(JSON.parse(text ?? '')).return;
    } catch (cause) {
      throw notUnderstood(name, cause);
    }
  }

  /** A call, with its failure told apart. */
  async #ask<T>(uuid: string, task: Task, call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (error) {
      throw toHostAgentError(error, task, needsLook(error) ? await this.#look(domainRef(uuid)) : undefined);
    }
  }

  async #look(domain: Domain): Promise<Look | undefined> {
    const options = { timeoutMs: 2_000 };
    try {
      const [{ state }, xml] = await Promise.all([
        this.#client.getState(domain, options),
        this.#client.getXml(domain, 0, options),
      ]);
      return { state, guestAgent: readDomainXml(xml).guestAgent };
    } catch {
      return undefined; // the error that asked for the look is the one to tell
    }
  }

  #emit(event: HypervisorEvent): void {
    for (const listener of [...this.#listeners]) listener(event);
  }
}

function notUnderstood(command: string, cause: unknown): HostAgentError {
  return new HostAgentError('AGENT_NOT_RESPONDING', `The guest agent answered ${command} with something else.`, {
    cause,
  });
}

/** Takes the two instants of a call that the window's figures need. */
class CallTimes {
  requestedAt = 0;
  repliedAt = 0;
  readonly options: CallOptions;

  constructor(timeoutMs: number) {
    this.options = {
      timeoutMs,
      onWritten: (atMs) => {
        this.requestedAt = atMs;
      },
      onAnswered: (atMs) => {
        this.repliedAt = atMs;
      },
    };
  }
}

/** A domain as it travels in calls that need no more than its UUID: QEMU's driver finds it by that alone. */
function domainRef(uuid: string): Domain {
  return { name: uuid, uuid, id: -1 };
}

function checkSeconds(seconds: number): void {
  if (Number.isInteger(seconds) && seconds >= 1) return;
  throw new HostAgentError(
    'INVALID_ARGUMENT',
    `A timeout of the guest agent is whole seconds, at least 1, not ${seconds}.`,
  );
}

function versionText(version: number): string {
  return `${Math.floor(version / 1_000_000)}.${Math.floor(version / 1_000) % 1_000}.${version % 1_000}`;
}

function stateOf(state: number): VmState {
  switch (state) {
    case DomainState.running:
    case DomainState.blocked:
      return 'running';
    case DomainState.paused:
      return 'paused';
    case DomainState.shutOff:
      return 'shut-off';
    default:
      return 'other';
  }
}

const LIFECYCLE = ['defined', 'undefined', 'started', 'paused', 'resumed', 'stopped'] as const;

function lifecycleOf({ event, detail }: LifecycleEvent) {
  const what = LIFECYCLE[event] ?? 'other';
  if (event === LifecycleStopped && detail === StoppedDetail.migrated) return { what, why: 'moved' } as const;
  if (event === LifecycleStopped && detail === StoppedDetail.saved) return { what, why: 'saved' } as const;
  return { what } as const;
}

function offBecause(reason: number): Vm['offBecause'] {
  switch (reason) {
    case ShutoffReason.unknown:
      return 'unknown';
    case ShutoffReason.migrated:
      return 'moved';
    case ShutoffReason.saved:
      return 'saved';
    default:
      return 'ended';
  }
}

const BLOCK_JOB = ['completed', 'failed', 'cancelled', 'ready'] as const;

function blockJobOf({ status }: BlockJobEvent): (typeof BLOCK_JOB)[number] | undefined {
  return BLOCK_JOB[status];
}

/** The result of `work`, or the signal's reason as soon as it aborts; the work goes on. */
function orAborted(work: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
    if (signal.aborted) onAbort();
  });
}
