import { HostAgentError, type HostAgentErrorCode } from '../errors.js';
import type { Hypervisor, HypervisorEvent, HypervisorFacts, Images, OverlayFile } from '../hypervisor.js';
import { type CallName, type Fault, Faults, type InjectedFault, type Latencies, labLatencies } from './faults.js';
import { SimulatedFiles } from './files.js';
import type { WrittenNumbers } from './numbers.js';
import { type BlockJob, SimulatedVm, type SimulatedVmSettings } from './vm.js';

export interface SimulatedHypervisorSettings {
  vms: SimulatedVmSettings[];
  /** ms; default: as measured on the lab. */
  latencies?: Partial<Latencies>;
  /** The guests write by themselves every so many ms, as long as a session is started; 0: only when the port is called. Default 100. */
  writeEveryMs?: number;
  /** Length of a second for libvirt's and the guest agent's timeouts, in ms. Default 1000. */
  secondMs?: number;
  facts?: Partial<Omit<HypervisorFacts, 'reachable'>>;
}

/** One host agent's life with the simulated hypervisor: the port, until the host agent is killed. */
export interface SimulatedSession extends Hypervisor {
  /** kill -9 of the host agent: no call of it happens or is answered any more. What libvirt was asked already goes on. */
  kill(): void;
}

/** The port in memory, and what tests and the demo do to it. As a port it is its own first session. */
export interface SimulatedHypervisor extends Hypervisor {
  readonly files: SimulatedFiles;
  /** A VM by name or UUID; throws when there is none. */
  vm(nameOrUuid: string): SimulatedVm;
  addVm(settings: SimulatedVmSettings): SimulatedVm;
  /** A further session: the host agent after a restart. */
  session(): SimulatedSession;
  /** Makes a call of the port go wrong. */
  inject(call: CallName | '*', fault: Fault, where?: { vm?: string; skip?: number; times?: number }): InjectedFault;
  /** Tells every call of the port when it begins, and when it is answered; ends with the returned function. */
  onCall(
    listener: (call: { name: CallName; uuid: string | undefined; phase: 'begins' | 'answered' }) => void,
  ): () => void;
  /** What the storage of a disk that is no local file would cut now; the guest writes before and after. */
  snapshotVolume(nameOrUuid: string, target: string): Promise<WrittenNumbers>;
  /** libvirtd dies: calls under way lose their answers, others are refused until connectionUp. Guests live on. */
  connectionDown(): void;
  connectionUp(): void;
}

/** A hypervisor in memory whose guests write all the time; it behaves as the lab's libvirt was measured to (its tests name each case). */
export function createSimulatedHypervisor(settings: SimulatedHypervisorSettings): SimulatedHypervisor {
  return new World(settings);
}

type CallListener = (call: { name: CallName; uuid: string | undefined; phase: 'begins' | 'answered' }) => void;

/** Everything that outlives a session. */
class World implements SimulatedHypervisor {
  readonly kind = 'simulated';
  readonly files = new SimulatedFiles();
  readonly latencies: Latencies;
  readonly versions: Omit<HypervisorFacts, 'reachable'>;
  readonly #vms = new Map<string, SimulatedVm>();
  readonly #faults = new Faults();
  readonly #callListeners = new Set<CallListener>();
  readonly #eventListeners = new Set<(event: HypervisorEvent) => void>();
  readonly #secondMs: number;
  readonly #writeEveryMs: number;
  readonly #first: Session;
  readonly #started = new Set<Session>();
  #writer: NodeJS.Timeout | undefined;
  #up = true;
  #connection = new AbortController();
  #connectionBegin = openEnd();

  constructor(settings: SimulatedHypervisorSettings) {
    this.latencies = { ...labLatencies, ...settings.latencies };
    this.#secondMs = settings.secondMs ?? 1000;
    this.#writeEveryMs = settings.writeEveryMs ?? 100;
    this.versions = { libvirtVersion: '9.0.0', qemuVersion: '7.2.0', canSetAgentTimeout: true, ...settings.facts };
    this.files.openInQemu = (path) => [...this.#vms.values()].some((vm) => vm.openPaths().includes(path));
    for (const vm of settings.vms) this.addVm(vm);
    this.#first = new Session(this);
  }

  vm(nameOrUuid: string): SimulatedVm {
    const vm = this.#vms.get(nameOrUuid) ?? [...this.#vms.values()].find((other) => other.name === nameOrUuid);
    if (vm === undefined) throw new Error(`The simulated hypervisor has no VM ${nameOrUuid}.`);
    return vm;
  }

  addVm(settings: SimulatedVmSettings): SimulatedVm {
    const place = String(this.#vms.size + 1).padStart(12, '0');
    const uuid = settings.uuid ?? `00000000-0000-4000-8000-${place}`;
    const vm = new SimulatedVm(
      { ...settings, uuid },
      { files: this.files, secondMs: this.#secondMs, emit: (event) => this.emit(event) },
    );
    this.#vms.set(uuid, vm);
    return vm;
  }

  session(): SimulatedSession {
    return new Session(this);
  }

  inject(call: CallName | '*', fault: Fault, where?: { vm?: string; skip?: number; times?: number }): InjectedFault {
    return this.#faults.inject(call, fault, where);
  }

  meetFault(call: CallName, uuid: string | undefined) {
    return this.#faults.meet(call, uuid);
  }

  onCall(listener: CallListener): () => void {
    this.#callListeners.add(listener);
    return () => void this.#callListeners.delete(listener);
  }

  tellCall(name: CallName, uuid: string | undefined, phase: 'begins' | 'answered'): void {
    for (const listener of this.#callListeners) listener({ name, uuid, phase });
  }

  async snapshotVolume(nameOrUuid: string, target: string): Promise<WrittenNumbers> {
    const vm = this.vm(nameOrUuid);
    this.guestsWrite();
    const cut = vm.cutVolume(target);
    await Promise.resolve();
    this.guestsWrite();
    return cut;
  }

  get up(): boolean {
    return this.#up;
  }

  /** Aborts, with the error for its callers, when the connection of now is lost. */
  get connectionLost(): AbortSignal {
    return this.#connection.signal;
  }

  get connectionBack(): Promise<void> {
    return this.#connectionBegin.promise;
  }

  connectionDown(): void {
    if (!this.#up) return;
    this.#up = false;
    this.#connectionBegin = openEnd();
    this.#connection.abort(unreachable());
    this.emit({ type: 'connection', up: false });
  }

  connectionUp(): void {
    if (this.#up) return;
    this.#up = true;
    this.#connection = new AbortController();
    this.#connectionBegin.end();
    this.emit({ type: 'connection', up: true });
  }

  emit(event: HypervisorEvent): void {
    if (event.type !== 'connection' && !this.#up) return;
    for (const listener of [...this.#eventListeners]) listener(event);
  }

  listen(listener: (event: HypervisorEvent) => void): () => void {
    this.#eventListeners.add(listener);
    return () => void this.#eventListeners.delete(listener);
  }

  existing(): SimulatedVm[] {
    return [...this.#vms.values()].filter((vm) => vm.exists);
  }

  existingVm(uuid: string): SimulatedVm {
    const vm = this.#vms.get(uuid);
    if (vm?.exists !== true)
      throw new HostAgentError('VM_NOT_FOUND', `Domain not found: no domain with matching uuid '${uuid}'`);
    return vm;
  }

  /** Each running guest writes more than once round its disks, and never whole rounds: cuts at different instants differ. */
  guestsWrite(): void {
    for (const vm of this.#vms.values()) vm.write(2 * vm.writtenDisks.length + 1);
  }

  sessionStarted(session: Session): void {
    this.#started.add(session);
    if (this.#writeEveryMs === 0 || this.#writer !== undefined) return;
    this.#writer = setInterval(() => this.guestsWrite(), this.#writeEveryMs);
    this.#writer.unref();
  }

  sessionEnded(session: Session): void {
    this.#started.delete(session);
    if (this.#started.size > 0) return;
    clearInterval(this.#writer);
    this.#writer = undefined;
  }

  get images(): Images {
    return this.#first.images;
  }
  facts = () => this.#first.facts();
  listVms = () => this.#first.listVms();
  getVm = (uuid: string) => this.#first.getVm(uuid);
  getVmBehindJob = (uuid: string) => this.#first.getVmBehindJob(uuid);
  setNote = (uuid: string, note: string | undefined) => this.#first.setNote(uuid, note);
  setAgentTimeout = (uuid: string, seconds: number | 'default') => this.#first.setAgentTimeout(uuid, seconds);
  guestOs = (uuid: string, timeoutS: number) => this.#first.guestOs(uuid, timeoutS);
  guestFileSystems = (uuid: string) => this.#first.guestFileSystems(uuid);
  freezeStatus = (uuid: string, timeoutS: number) => this.#first.freezeStatus(uuid, timeoutS);
  freeze = (uuid: string) => this.#first.freeze(uuid);
  thaw = (uuid: string) => this.#first.thaw(uuid);
  snapshotDisks = (uuid: string, overlays: readonly OverlayFile[]) => this.#first.snapshotDisks(uuid, overlays);
  mergeOverlay: Hypervisor['mergeOverlay'] = (uuid, target, overlay, options) =>
    this.#first.mergeOverlay(uuid, target, overlay, options);
  replaceImage: Hypervisor['replaceImage'] = (uuid, target, change) => this.#first.replaceImage(uuid, target, change);
  onEvent = (listener: (event: HypervisorEvent) => void) => this.#first.onEvent(listener);
  start = (signal?: AbortSignal) => this.#first.start(signal);
  close = () => this.#first.close();
}

class Session implements SimulatedSession {
  readonly kind = 'simulated';
  readonly images: Images;
  readonly #world: World;
  readonly #unsubscribes = new Set<() => void>();
  #dead = false;
  #closed = false;

  constructor(world: World) {
    this.#world = world;
    const file = <T>(name: CallName, effect: () => T): Promise<T> =>
      this.#call({ name, latencyMs: world.latencies.state, overLibvirt: false }, effect);
    const { files } = world;
    this.images = {
      resolve: (path) => file('resolve', () => files.resolve(path)),
      info: (path, format) => file('info', () => files.info(path, format)),
      sizeBytes: (path, format) => file('sizeBytes', () => files.info(path, format).virtualSizeBytes),
      freeBytes: (folder) => file('freeBytes', () => files.freeBytes(folder)),
      createOverlay: (overlay) => file('createOverlay', () => files.createOverlay(overlay)),
      isOpen: (path) => file('isOpen', () => files.isOpen(path)),
      isEmptyOverlay: (path) => file('isEmptyOverlay', () => files.need(path).numbers.isEmpty),
      commitOffline: (overlay) =>
        this.#call({ name: 'commitOffline', latencyMs: world.latencies.merge, overLibvirt: false }, () =>
          files.commitOffline(overlay),
        ),
      rebase: (path, to) => file('rebase', () => files.rebase(path, to)),
      delete: (path) => file('delete', () => files.delete(path)),
      exists: (path) => file('exists', () => files.get(path) !== undefined),
      listOverlays: (folder) => file('listOverlays', () => files.listOverlays(folder)),
    };
  }

  async facts(): Promise<HypervisorFacts> {
    if (!this.#world.up) return { reachable: false, libvirtVersion: '', qemuVersion: '', canSetAgentTimeout: false };
    return await this.#ask('facts', undefined, () => ({ reachable: true, ...this.#world.versions }));
  }

  async listVms() {
    return await this.#ask('listVms', undefined, () => this.#world.existing().map((vm) => vm.describe()));
  }

  async getVm(uuid: string) {
    return await this.#ask('getVm', uuid, () => this.#world.existingVm(uuid).describe());
  }

  async getVmBehindJob(uuid: string) {
    return await this.#ask('getVmBehindJob', uuid, async () => {
      await this.#world.existingVm(uuid).domainJob.run(async () => undefined);
      const vm = this.#world.existingVm(uuid);
      const inactive = vm.describeInactive();
      return { vm: vm.describe(true), ...(inactive === undefined ? {} : { inactive }) };
    });
  }

  async setNote(uuid: string, note: string | undefined) {
    await this.#ask('setNote', uuid, async () => {
      const vm = this.#world.existingVm(uuid);
      await vm.domainJob.run(async () => {
        if (!vm.running) {
          throw new HostAgentError('VM_NOT_RUNNING', 'Requested operation is not valid: domain is not running');
        }
        vm.note = note;
      });
    });
  }

  async setAgentTimeout(uuid: string, seconds: number | 'default') {
    if (seconds !== 'default' && (!Number.isInteger(seconds) || seconds < 1)) {
      throw new HostAgentError('INVALID_ARGUMENT', `The agent timeout is whole seconds, at least 1, not ${seconds}.`);
    }
    await this.#ask('setAgentTimeout', uuid, () => {
      this.#world.existingVm(uuid).agent.timeoutS = seconds;
    });
  }

  async guestOs(uuid: string, timeoutS: number) {
    return await this.#ask('guestOs', uuid, async () => {
      const vm = this.#world.existingVm(uuid);
      const agent = vm.running && !vm.paused && vm.hasAgentChannel ? vm.agent : undefined;
      return (await agent?.getOs(timeoutS).catch(() => undefined)) ?? vm.metadataOs;
    });
  }

  async guestFileSystems(uuid: string) {
    return await this.#ask('guestFileSystems', uuid, async () => await this.#agentOf(uuid).getFileSystems());
  }

  async freezeStatus(uuid: string, timeoutS: number) {
    return await this.#ask('freezeStatus', uuid, async () => await this.#agentOf(uuid).status(timeoutS));
  }

  async freeze(uuid: string) {
    const call = { name: 'freeze', uuid, latencyMs: this.#world.latencies.freeze } as const;
    const fileSystems = await this.#call(call, async () => await this.#agentOf(uuid).freeze());
    return { fileSystems, repliedAt: performance.now() };
  }

  async thaw(uuid: string) {
    const requestedAt = performance.now();
    const call = { name: 'thaw', uuid, latencyMs: this.#world.latencies.thaw } as const;
    const fileSystems = await this.#call(call, async () => await this.#agentOf(uuid).thaw());
    return { fileSystems, requestedAt, repliedAt: performance.now() };
  }

  async snapshotDisks(uuid: string, overlays: readonly OverlayFile[]) {
    const requestedAt = performance.now();
    const call = { name: 'snapshotDisks', uuid, latencyMs: this.#world.latencies.snapshot } as const;
    await this.#call(call, async () => {
      const vm = this.#world.existingVm(uuid);
      await vm.domainJob.run(async () => switchToOverlays(vm, this.#world.files, overlays));
    });
    return { requestedAt, repliedAt: performance.now() };
  }

  async mergeOverlay(
    uuid: string,
    target: string,
    overlay: string,
    options: { onProgress?: (progress: { doneBytes: number; totalBytes: number }) => void; signal?: AbortSignal } = {},
  ): Promise<void> {
    const world = this.#world;
    await this.#call({ name: 'mergeOverlay', uuid, latencyMs: 0 }, async () => {
      const vm = world.existingVm(uuid);
      const running = vm.blockJobs.get(target);
      if (running !== undefined && running.overlay !== overlay) {
        throw new HostAgentError('BLOCK_JOB_ACTIVE', `Disk ${target} of ${vm.name} has another block job.`);
      }
      const job = running ?? startMerge(vm, world, target, overlay);
      const tell = (): void => options.onProgress?.({ doneBytes: job.doneBytes, totalBytes: job.totalBytes });
      tell();
      await orAborted(job.ended, options.signal);
      tell();
    });
  }

  async replaceImage(uuid: string, target: string, change: { from: string; to: string; toFormat: string }) {
    await this.#ask('replaceImage', uuid, () => {
      const vm = this.#world.existingVm(uuid);
      const defined = vm.inactive?.get(target);
      const refusal = vm.running
        ? 'it runs'
        : vm.hasManagedSave
          ? 'it has a managed-save image'
          : defined?.source !== change.from
            ? `${target} uses ${defined?.source ?? 'nothing'}, not ${change.from}`
            : undefined;
      if (refusal !== undefined)
        throw new HostAgentError('VM_CHANGED', `The definition of ${vm.name} is not changed: ${refusal}.`);
      vm.setSource('inactive', target, change.to, change.toFormat);
    });
  }

  onEvent(listener: (event: HypervisorEvent) => void): () => void {
    const end = this.#world.listen((event) => {
      if (!this.#dead) listener(event);
    });
    this.#unsubscribes.add(end);
    return () => {
      this.#unsubscribes.delete(end);
      end();
    };
  }

  async start(signal?: AbortSignal): Promise<void> {
    const refused = new HostAgentError('LIBVIRT_UNREACHABLE', 'The simulated libvirt does not answer.');
    if (!this.#world.up) {
      await orAborted(this.#world.connectionBack, signal).catch(() => {
        throw refused;
      });
    }
    this.#world.sessionStarted(this);
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#end();
  }

  kill(): void {
    this.#dead = true;
    this.#end();
  }

  #end(): void {
    for (const end of this.#unsubscribes) end();
    this.#unsubscribes.clear();
    this.#world.sessionEnded(this);
  }

  #agentOf(uuid: string) {
    const vm = this.#world.existingVm(uuid);
    if (!vm.running)
      throw new HostAgentError('VM_NOT_RUNNING', 'Requested operation is not valid: domain is not running');
    if (vm.paused) throw new HostAgentError('VM_PAUSED', 'Requested operation is not valid: domain is not running');
    if (!vm.hasAgentChannel) throw new HostAgentError('AGENT_NOT_CONFIGURED', 'QEMU guest agent is not configured');
    return vm.agent;
  }

  async #ask<T>(name: CallName, uuid: string | undefined, effect: () => T | Promise<T>): Promise<T> {
    return await this.#call({ name, uuid, latencyMs: this.#world.latencies.state }, effect);
  }

  /** A call: connection, latency, faults, the guests' writes on both sides of the effect. The effect goes on when its caller is gone. */
  async #call<T>(
    call: { name: CallName; uuid?: string | undefined; latencyMs: number; overLibvirt?: boolean },
    effect: () => T | Promise<T>,
  ): Promise<T> {
    const world = this.#world;
    if (this.#dead) return await never();
    const overLibvirt = call.overLibvirt ?? true;
    if (overLibvirt && (this.#closed || !world.up)) throw unreachable();
    world.tellCall(call.name, call.uuid, 'begins');
    const met = world.meetFault(call.name, call.uuid);
    const carryOut = async (): Promise<T> => {
      if (call.latencyMs > 0) await new Promise((resolve) => setTimeout(resolve, call.latencyMs));
      else await Promise.resolve();
      world.guestsWrite();
      try {
        return await effect();
      } finally {
        world.guestsWrite();
      }
    };
    const faulty = async (): Promise<T> => {
      if (met === undefined) return await carryOut();
      const { fault } = met;
      const happensFirst =
        'loseReply' in fault ||
        ('hold' in fault && fault.hold === 'after') ||
        ('die' in fault && fault.die === 'after');
      const answer = happensFirst ? carryOut() : undefined;
      await answer?.catch(() => undefined);
      met.strike();
      if ('reject' in fault) throw failure(fault.reject, fault.message);
      if ('loseReply' in fault) throw failure(fault.loseReply, undefined);
      if ('late' in fault) {
        met.keep(carryOut);
        throw failure(fault.late, undefined);
      }
      if ('hold' in fault) {
        await met.released;
        return await (answer ?? carryOut());
      }
      this.kill();
      return await never();
    };
    const lost = overLibvirt ? world.connectionLost : undefined;
    try {
      const answer = await orAborted(faulty(), lost);
      if (this.#dead) return await never();
      world.tellCall(call.name, call.uuid, 'answered');
      return answer;
    } catch (error) {
      if (this.#dead) return await never();
      world.tellCall(call.name, call.uuid, 'answered');
      throw error;
    }
  }
}

/** virDomainSnapshotCreateXML with DISK_ONLY, ATOMIC, REUSE_EXT and NO_METADATA: all disks or none. */
function switchToOverlays(vm: SimulatedVm, files: SimulatedFiles, overlays: readonly OverlayFile[]): void {
  const { live } = vm;
  if (live === undefined)
    throw new HostAgentError('VM_NOT_RUNNING', 'Requested operation is not valid: domain is not running');
  if (overlays.length === 0)
    throw failure('SNAPSHOT_FAILED', 'unsupported configuration: nothing selected for snapshot');
  for (const { target, path } of overlays) {
    if (live.get(target)?.source === undefined) throw failure('SNAPSHOT_FAILED', `no disk '${target}'`);
    if (vm.blockJobs.has(target)) throw failure('SNAPSHOT_FAILED', `disk ${target} has an active block job`);
    const image = files.get(path);
    if (image === undefined)
      throw failure('SNAPSHOT_FAILED', `failed to stat for reuse: ${path}: No such file or directory`);
    if (files.isOpen(path)) throw failure('SNAPSHOT_FAILED', `Failed to get "write" lock on ${path}`);
  }
  for (const { target, path } of overlays) {
    const before = live.get(target)?.source;
    if (before !== undefined && vm.inactive?.get(target)?.source === before) {
      const recorded = files
        .chain(before)
        .map((image) => ({ path: image.path, format: image.format, kind: image.kind }));
      vm.setSource('inactive', target, path, 'qcow2', recorded);
    }
    vm.setSource('live', target, path, 'qcow2');
  }
}

/** virDomainBlockCommit of one overlay into the image below it, and the pivot where it is the active one; it goes on without its caller. */
function startMerge(vm: SimulatedVm, world: World, target: string, overlay: string): BlockJob {
  const { files } = world;
  const source = vm.live?.get(target)?.source;
  if (vm.live === undefined)
    throw new HostAgentError('VM_NOT_RUNNING', 'Requested operation is not valid: domain is not running');
  if (source === undefined) throw new HostAgentError('DISK_NOT_FOUND', `${vm.name} has no local disk ${target}.`);
  const chain = files.chain(source);
  const at = chain.findIndex((image) => image.path === files.get(overlay)?.path);
  const [top, base] = [chain[at], chain[at + 1]];
  if (top === undefined) throw new HostAgentError('DISK_NOT_FOUND', `The chain of ${target} does not hold ${overlay}.`);
  if (base === undefined) throw failure('MERGE_FAILED', `${overlay} has no image below it.`);
  const domainId = vm.domainId;
  const totalBytes = Math.max(1, top.numbers.last) * 65_536;
  const job: BlockJob = { target, overlay, ended: Promise.resolve(), doneBytes: 0, totalBytes };
  vm.blockJobs.set(target, job);
  const run = async (): Promise<void> => {
    if (world.latencies.merge > 0) await new Promise((resolve) => setTimeout(resolve, world.latencies.merge));
    else await Promise.resolve();
    vm.blockJobs.delete(target);
    if (vm.domainId !== domainId) {
      world.emit({ type: 'block-job', uuid: vm.uuid, target, what: 'failed' });
      throw failure('MERGE_FAILED', `${vm.name} stopped during the block commit of ${target}.`);
    }
    files.commit(top);
    const persistent = vm.inactive?.get(target);
    job.doneBytes = totalBytes;
    if (at === 0) {
      world.emit({ type: 'block-job', uuid: vm.uuid, target, what: 'ready' });
      if (persistent?.source === source) {
        const recorded = persistent.recorded?.filter((image) => image.path !== base.path);
        vm.setSource('inactive', target, base.path, base.format, recorded);
      }
      vm.setSource('live', target, base.path, base.format);
    } else {
      const above = chain[at - 1];
      if (above !== undefined) {
        above.backing = base.path;
        above.backingFormat = base.format;
      }
      if (persistent?.recorded !== undefined) {
        persistent.recorded = persistent.recorded.filter((image) => image.path !== top.path);
      }
    }
    world.emit({ type: 'block-job', uuid: vm.uuid, target, what: 'completed' });
  };
  job.ended = run();
  job.ended.catch(() => undefined);
  return job;
}

function failure(code: HostAgentErrorCode, message: string | undefined): HostAgentError {
  return new HostAgentError(code, message ?? `Simulated: ${code}.`);
}

function unreachable(): HostAgentError {
  return new HostAgentError('LIBVIRT_UNREACHABLE', 'The connection to the simulated libvirt is down.');
}

async function orAborted<T>(answer: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await answer;
  answer.catch(() => undefined);
  signal.throwIfAborted();
  const ended = openEnd();
  signal.addEventListener('abort', ended.end, { once: true });
  try {
    return await Promise.race([
      answer,
      ended.promise.then(() => {
        throw signal.reason;
      }),
    ]);
  } finally {
    signal.removeEventListener('abort', ended.end);
  }
}

function openEnd(): { promise: Promise<void>; end: () => void } {
  let end = (): void => {};
  const promise = new Promise<void>((resolve) => {
    end = resolve;
  });
  return { promise, end };
}

function never(): Promise<never> {
  return new Promise(() => {});
}
