import { posix } from 'node:path';
import type { Logger } from 'pino';
import { HostAgentError, type HostAgentErrorCode, isHostAgentError } from '../errors.js';
import type { Disk, Hypervisor, Vm } from '../hypervisor.js';
import type {
  LeftOut,
  MergedDisk,
  MergeProgress,
  Overlay,
  OverlayFile,
  OverlayFiles,
  Pinned,
  SnapshotRoom,
} from '../window.js';
import { type Definitions, readChains, readDefinitions, realPath, unreadChain } from './chain.js';
import { judgeDisk, type LocalDisk } from './disks.js';
import { defaultLocations, hostilePath, Locations } from './locations.js';
import { Notes } from './notes.js';
import { checkWindow, overlayName, windowOf } from './overlay-name.js';
import { TakeBack } from './take-back.js';
import { VmQueue } from './vm-queue.js';

export interface SnapshotRoomOptions {
  hypervisor: Hypervisor;
  /** Folder of the room's notes; made when missing. */
  folder: string;
  /** Folders, and device prefixes below /dev, in which disks and overlays may lie. Default: defaultLocations. */
  locations?: readonly string[];
  /** Where overlays of block devices go; must lie in a location. Default: the first folder of the locations. */
  overlayFolder?: string;
  settings?: Partial<SnapshotSettings>;
  log: Logger;
}

export interface SnapshotSettings {
  /** Images in a chain, the new overlay counted. Default 30. */
  mostImages: number;
  /** Bytes that must be free for each new overlay, or the disk's size where that is less. Default 1 GiB. */
  headroomBytes: number;
  /** How long a switch of unknown outcome may still happen, in ms. Default 35 000: libvirt waits 30 s for a domain's job. */
  lateSwitchMs: number;
  /** ms between two looks for such a switch. Default 1 000. */
  lookAgainMs: number;
  /** How long QEMU may take to close an image that left the chain, in ms. Default 2 000. */
  closeWaitMs: number;
}

const defaults: SnapshotSettings = {
  mostImages: 30,
  headroomBytes: 2 ** 30,
  lateSwitchMs: 35_000,
  lookAgainMs: 1_000,
  closeWaitMs: 2_000,
};

/** After these libvirt has certainly not switched, and will not. */
const certainRefusals: readonly HostAgentErrorCode[] = [
  'SNAPSHOT_FAILED',
  'VM_NOT_RUNNING',
  'VM_NOT_FOUND',
  'HYPERVISOR_BUSY',
];

/** The room that owns local overlays. Errors: JOURNAL_UNWRITABLE, INVALID_ARGUMENT (overlayFolder outside the locations). */
export async function createSnapshotRoom(options: SnapshotRoomOptions): Promise<SnapshotRoom> {
  const locations = new Locations(options.locations ?? defaultLocations);
  const overlayFolder = options.overlayFolder ?? locations.listed.find((location) => !location.startsWith('/dev/'));
  if (options.overlayFolder !== undefined && !(await locations.holdFile(`${options.overlayFolder}/overlay`))) {
    throw new HostAgentError(
      'INVALID_ARGUMENT',
      `overlayFolder ${options.overlayFolder} lies in none of the locations.`,
    );
  }
  const notes = await Notes.open(options.folder);
  return new Room({ ...options, settings: { ...defaults, ...options.settings }, locations, overlayFolder, notes });
}

type MergeRequest = {
  vm: string;
  window: string;
  overlays: Overlay[];
  onProgress: (progress: MergeProgress) => void;
  signal: AbortSignal;
};

class Room implements SnapshotRoom {
  readonly diskLocations: string[];
  readonly #hypervisor: Hypervisor;
  readonly #locations: Locations;
  readonly #overlayFolder: string | undefined;
  readonly #settings: SnapshotSettings;
  readonly #notes: Notes;
  readonly #takeBack: TakeBack;
  readonly #log: Logger;
  readonly #queue = new VmQueue();
  readonly #merges = new Map<
    string,
    { result: Promise<MergedDisk[]>; listeners: Set<(progress: MergeProgress) => void> }
  >();
  /** Under way: an engine whose deadline has passed asks again, and a second one would only make both slower. */
  #walk: Promise<OverlayFiles> | undefined;
  /** Monotonic ms at which libvirt was asked at the latest, in this life. */
  readonly #askedAt = new Map<string, number>();
  /** A switch that an earlier life asked for was asked before this. */
  readonly #bornAt = performance.now();

  constructor(parts: {
    hypervisor: Hypervisor;
    locations: Locations;
    overlayFolder: string | undefined;
    settings: SnapshotSettings;
    notes: Notes;
    log: Logger;
  }) {
    this.#hypervisor = parts.hypervisor;
    this.#locations = parts.locations;
    this.#overlayFolder = parts.overlayFolder;
    this.#settings = parts.settings;
    this.#notes = parts.notes;
    this.#log = parts.log;
    this.#takeBack = new TakeBack(parts);
    this.diskLocations = [...parts.locations.listed];
  }

  async leftOut(vm: Vm): Promise<Map<string, LeftOut | undefined>> {
    const judged = await Promise.all(
      vm.disks.map(async (disk): Promise<[string, LeftOut | undefined]> => {
        const judgement = await this.#judge(disk);
        return [disk.target, judgement !== 'elsewhere' && 'leftOut' in judgement ? judgement.leftOut : undefined];
      }),
    );
    return new Map(judged);
  }

  async sizeBytes(disk: Disk): Promise<number> {
    if (disk.path === undefined || (disk.kind !== 'file' && disk.kind !== 'block')) return 0;
    try {
      return await this.#hypervisor.images.sizeBytes(disk.path, disk.format);
    } catch (error) {
      if (isHostAgentError(error)) return 0;
      throw error;
    }
  }

  overlayFiles(): Promise<OverlayFiles> {
    this.#walk ??= this.#walkedOverlays().finally(() => {
      this.#walk = undefined;
    });
    return this.#walk;
  }

  async #walkedOverlays(): Promise<OverlayFiles> {
    const { images } = this.#hypervisor;
    const overlays: OverlayFile[] = [];
    const unreadVms = new Set<string>();
    const folders = new Set(this.diskLocations.filter((location) => !location.startsWith('/dev/')));
    if (this.#overlayFolder !== undefined) folders.add(this.#overlayFolder);
    // One after another: nobody waits for this, and each may start qemu-img.
    for (const vm of await this.#hypervisor.listVms()) {
      for (const { target, images: chain, readToTheEnd } of await readChains(images, vm)) {
        if (!readToTheEnd) unreadVms.add(vm.uuid);
        for (const { real: path } of chain) {
          if (!path.startsWith('/dev/')) folders.add(posix.dirname(path));
          const window = windowOf(path);
          if (window !== undefined) overlays.push({ path, window, usedBy: { vm: vm.uuid, target } });
        }
      }
    }
    const used = new Set(overlays.map(({ path }) => path));
    for (const folder of folders) {
      for (const named of await images.listOverlays(folder)) {
        const path = await realPath(images, named);
        const window = windowOf(path);
        if (window === undefined || used.has(path)) continue;
        used.add(path);
        overlays.push({ path, window, usedBy: undefined });
      }
    }
    return { overlays: overlays.sort((a, b) => (a.path < b.path ? -1 : 1)), unreadVms: [...unreadVms] };
  }

  async prepare(request: {
    vm: string;
    window: string;
    localDisks: string[];
    setDisks: string[];
    alreadyPrepared: Overlay[] | undefined;
  }) {
    checkWindow(request.window);
    return await this.#queue.run(request.vm, async () => {
      // Behind the job: only there are all block jobs seen, which libvirt would refuse the cut for, inside the window.
      const definitions = await readDefinitions(this.#hypervisor, request.vm);
      const { vm } = definitions;
      refuseState(vm);
      const locals = await this.#localDisks(vm, request.localDisks);
      refuseUnreadChain(definitions);
      const pinned = { domainId: vm.domainId, disks: await this.#pin(vm, request.setDisks) };
      const overlays = await this.#planOverlays(request.window, locals);
      const notes = await this.#notes.read(request.window, request.vm);
      const kept = request.alreadyPrepared ?? (notes.overlays.length > 0 ? notes.overlays : undefined);
      if (kept !== undefined && notes.asked) throw closed(request.window);
      if (kept !== undefined) refuseOtherOverlays(kept, overlays);
      await this.#refuseWithoutSpace(overlays);
      if (kept === undefined) await this.#notes.prepared(request.window, request.vm, overlays);
      await this.#makeOverlays(request.window, overlays, kept !== undefined);
      return { vm, pinned, overlays };
    });
  }

  async cut(request: { vm: string; window: string; pinned: Pinned; overlays: Overlay[] }) {
    checkWindow(request.window);
    return await this.#queue.run(request.vm, async () => {
      const { vm: uuid, window, pinned, overlays } = request;
      // The guest is frozen: what can be read side by side is.
      const [notes, vm] = await Promise.all([this.#notes.read(window, uuid), this.#hypervisor.getVm(uuid)]);
      // Undone, or asked before: libvirt is asked once.
      if (notes.asked) throw closed(window);
      await this.#refuseChanges(vm, pinned);
      await this.#notes.asked(window);
      this.#askedAt.set(window, performance.now());
      try {
        const cut = await this.#hypervisor.snapshotDisks(
          uuid,
          overlays.map(({ target, overlayPath }) => ({ target, path: overlayPath })),
        );
        await this.#noteAnswer(window, true);
        return { transactionMs: cut.repliedAt - cut.requestedAt };
      } catch (error) {
        if (isHostAgentError(error) && certainRefusals.includes(error.code)) await this.#noteAnswer(window, false);
        // The request may have waited for its turn, and been sent only now.
        else this.#askedAt.set(window, performance.now());
        throw error;
      }
    });
  }

  async undo(request: MergeRequest): Promise<MergedDisk[]> {
    checkWindow(request.window);
    return await this.#joinMerge(request, async () => {
      const notes = await this.#notes.read(request.window, request.vm);
      const known = new Map([...notes.overlays, ...request.overlays].map((overlay) => [overlay.overlayPath, overlay]));
      const isUnknown = notes.asked && notes.switched === undefined;
      const askedAt = this.#askedAt.get(request.window) ?? this.#bornAt;
      return {
        overlays: [...known.values()],
        lateSwitchUntil: isUnknown ? askedAt + this.#settings.lateSwitchMs : undefined,
      };
    });
  }

  async delete(request: MergeRequest): Promise<MergedDisk[]> {
    checkWindow(request.window);
    // What was recorded had been seen switched.
    return await this.#joinMerge(request, async () => ({ overlays: request.overlays, lateSwitchUntil: undefined }));
  }

  /** Runs, or joins the run of the same window. An aborted signal ends the caller's wait, not the run: libvirt's jobs go on as well. */
  async #joinMerge(
    request: MergeRequest,
    plan: () => Promise<{ overlays: Overlay[]; lateSwitchUntil: number | undefined }>,
  ): Promise<MergedDisk[]> {
    request.signal.throwIfAborted();
    const key = `${request.vm} ${request.window}`;
    const merge = this.#merges.get(key) ?? this.#startMerge(key, request, plan);
    merge.listeners.add(request.onProgress);
    let stopWaiting = (): void => {};
    const aborted = new Promise<never>((_, reject) => {
      stopWaiting = () => reject(request.signal.reason);
    });
    request.signal.addEventListener('abort', stopWaiting, { once: true });
    try {
      return await Promise.race([merge.result, aborted]);
    } finally {
      merge.listeners.delete(request.onProgress);
      request.signal.removeEventListener('abort', stopWaiting);
    }
  }

  #startMerge(
    key: string,
    { vm, window }: MergeRequest,
    plan: () => Promise<{ overlays: Overlay[]; lateSwitchUntil: number | undefined }>,
  ) {
    const listeners = new Set<(progress: MergeProgress) => void>();
    const onProgress = (progress: MergeProgress): void => {
      for (const listener of listeners) listener(progress);
    };
    const run = this.#queue.run(vm, async () => {
      const { overlays, lateSwitchUntil } = await plan();
      const disks: MergedDisk[] = [];
      for (const overlay of overlays) {
        disks.push(await this.#takeBack.run({ vm, window, overlay, lateSwitchUntil, onProgress }));
      }
      if (disks.every((disk) => disk.outcome !== 'pending')) {
        await this.#notes.drop(window);
        this.#askedAt.delete(window);
      }
      return disks;
    });
    const result = run.finally(() => this.#merges.delete(key));
    result.catch((error: unknown) => this.#log.warn({ err: error, window }, 'a merge could not begin'));
    const merge = { result, listeners };
    this.#merges.set(key, merge);
    return merge;
  }

  /** Without this note an undo only waits longer: no reason to fail a cut that was made. */
  async #noteAnswer(window: string, switched: boolean): Promise<void> {
    await this.#notes.answered(window, switched).catch((error: unknown) => {
      this.#log.warn({ err: error, window }, "libvirt's answer could not be noted");
    });
  }

  async #judge(disk: Disk) {
    return await judgeDisk(disk, { images: this.#hypervisor.images, locations: this.#locations });
  }

  /** The local disks to cut, each fit for it. */
  async #localDisks(vm: Vm, targets: string[]): Promise<LocalDisk[]> {
    const locals: LocalDisk[] = [];
    for (const target of targets) {
      const disk = findDisk(vm, target);
      const judgement = await this.#judge(disk);
      if (judgement === 'elsewhere' || 'leftOut' in judgement) {
        const reason = judgement === 'elsewhere' ? 'network' : judgement.leftOut;
        throw new HostAgentError(
          'DISK_NOT_SNAPSHOTTABLE',
          `Disk ${target} of ${vm.name} cannot be snapshotted here: ${reason}.`,
          {
            metadata: { disk: target, reason },
          },
        );
      }
      if (disk.blockJob) {
        throw new HostAgentError('BLOCK_JOB_ACTIVE', `A block job runs on disk ${target} of ${vm.name}.`, {
          metadata: { disk: target },
        });
      }
      if (disk.chain.length + 1 > this.#settings.mostImages) {
        throw new HostAgentError(
          'CHAIN_TOO_DEEP',
          `The chain of disk ${target} of ${vm.name} has ${disk.chain.length} images; ${this.#settings.mostImages} is the limit.`,
          { metadata: { disk: target, images: String(disk.chain.length) } },
        );
      }
      locals.push(judgement.local);
    }
    return locals;
  }

  /** Active source and size of every disk of the set, read in `vm`. */
  async #pin(vm: Vm, targets: string[]): Promise<Pinned['disks']> {
    return await Promise.all(
      targets.map(async (target) => {
        const disk = findDisk(vm, target);
        return { target, source: sourceOf(disk), sizeBytes: await this.sizeBytes(disk) };
      }),
    );
  }

  async #planOverlays(window: string, locals: LocalDisk[]): Promise<Overlay[]> {
    return await Promise.all(
      locals.map(async ({ disk, basePath, kind }) => {
        const isDevice = kind === 'block';
        const folder = isDevice ? this.#overlayFolder : posix.dirname(basePath);
        if (folder === undefined) {
          throw new HostAgentError(
            'DISK_NOT_SNAPSHOTTABLE',
            `No folder is configured for the overlay of ${basePath}.`,
            {
              metadata: { disk: disk.target, reason: 'location' },
            },
          );
        }
        const overlayPath = posix.join(folder, overlayName(basePath, window));
        if (hostilePath(overlayPath) !== undefined)
          throw new HostAgentError('INTERNAL', `Overlay path refused: ${overlayPath}`);
        const sizeBytes = await this.#hypervisor.images.sizeBytes(basePath, disk.format);
        return { target: disk.target, overlayPath, basePath, baseFormat: disk.format, sizeBytes };
      }),
    );
  }

  async #refuseWithoutSpace(overlays: Overlay[]): Promise<void> {
    const needed = new Map<string, number>();
    for (const { overlayPath, sizeBytes } of overlays) {
      const folder = posix.dirname(overlayPath);
      needed.set(folder, (needed.get(folder) ?? 0) + Math.min(sizeBytes, this.#settings.headroomBytes));
    }
    for (const [folder, bytes] of needed) {
      const free = await this.#hypervisor.images.freeBytes(folder);
      if (free < bytes) {
        throw new HostAgentError('NO_SPACE', `${folder} has ${free} bytes free; the overlays need at least ${bytes}.`, {
          metadata: { folder, freeBytes: String(free), neededBytes: String(bytes) },
        });
      }
    }
  }

  /** Makes the files, or none: after a failure those of this call are gone. */
  async #makeOverlays(window: string, overlays: Overlay[], adopt: boolean): Promise<void> {
    const made: string[] = [];
    try {
      for (const overlay of overlays) {
        const { overlayPath: path, basePath: base, baseFormat, sizeBytes } = overlay;
        if (adopt && (await this.#isMade(overlay))) continue;
        await this.#hypervisor.images.createOverlay({ path, base, baseFormat, sizeBytes, likeFile: base });
        made.push(path);
      }
    } catch (error) {
      try {
        for (const path of made) await this.#hypervisor.images.delete(path);
        if (!adopt) await this.#notes.drop(window);
      } catch (left) {
        this.#log.warn({ err: left, window, made }, 'overlays of a failed Prepare could not be deleted; Undo will');
      }
      throw error;
    }
  }

  /** Whether the overlay that our notes name is there, whole and unused. */
  async #isMade({ overlayPath, basePath, baseFormat, sizeBytes }: Overlay): Promise<boolean> {
    const { images } = this.#hypervisor;
    if (!(await images.exists(overlayPath))) return false;
    const unfit = new HostAgentError(
      'OVERLAY_EXISTS',
      `${overlayPath} exists, and is not the empty overlay that was prepared.`,
    );
    try {
      const info = await images.info(overlayPath, 'qcow2');
      const same =
        info.backing === basePath && info.backingFormat === baseFormat && info.virtualSizeBytes === sizeBytes;
      if (same && (await images.isEmptyOverlay(overlayPath)) && !(await images.isOpen(overlayPath))) return true;
    } catch (error) {
      throw isHostAgentError(error, 'IMAGE_INVALID') ? unfit : error;
    }
    throw unfit;
  }

  async #refuseChanges(vm: Vm, pinned: Pinned): Promise<void> {
    refuseState(vm);
    if (vm.domainId !== pinned.domainId)
      throw changed(vm, `its domain id is ${vm.domainId}, not ${pinned.domainId}: it was restarted`);
    const now = await this.#pin(
      vm,
      pinned.disks.map((disk) => disk.target),
    );
    for (const [i, before] of pinned.disks.entries()) {
      const disk = now[i];
      if (disk?.source !== before.source)
        throw changed(vm, `${before.target} uses ${disk?.source}, not ${before.source}`);
      if (disk.sizeBytes !== before.sizeBytes) {
        throw changed(vm, `${before.target} has ${disk.sizeBytes} bytes, not ${before.sizeBytes}`);
      }
    }
  }
}

function refuseState(vm: Vm): void {
  if (vm.state !== 'running' && vm.state !== 'paused') {
    throw new HostAgentError('VM_NOT_RUNNING', `${vm.name} does not run.`, { metadata: { vm: vm.uuid } });
  }
  if (vm.migrating)
    throw new HostAgentError('MIGRATION_ACTIVE', `${vm.name} is migrating.`, { metadata: { vm: vm.uuid } });
}

/** What could not be taken back is not begun. */
function refuseUnreadChain(definitions: Definitions): void {
  const unread = unreadChain(definitions);
  if (unread === undefined) return;
  throw new HostAgentError(
    'DISK_NOT_SNAPSHOTTABLE',
    `The chain of disk ${unread.target} of ${definitions.vm.name} cannot be read to its end, so an undo would not know what it uses.`,
    { metadata: { disk: unread.target, reason: 'chain' } },
  );
}

function refuseOtherOverlays(kept: Overlay[], planned: Overlay[]): void {
  const text = (overlays: Overlay[]): string =>
    JSON.stringify(overlays.map((o) => [o.target, o.overlayPath, o.basePath, o.baseFormat, o.sizeBytes]).sort());
  if (text(kept) === text(planned)) return;
  throw new HostAgentError('VM_CHANGED', 'The disks differ from those that this window was prepared for.');
}

function findDisk(vm: Vm, target: string): Disk {
  const disk = vm.disks.find((other) => other.target === target);
  if (disk === undefined) {
    throw new HostAgentError('DISK_NOT_FOUND', `${vm.name} has no disk ${target}.`, { metadata: { disk: target } });
  }
  return disk;
}

/** What the definition names as a disk's active image. */
function sourceOf(disk: Disk): string {
  return disk.path ?? disk.image ?? '';
}

function closed(window: string): HostAgentError {
  return new HostAgentError(
    'WINDOW_CLOSED',
    `libvirt was asked to switch to the overlays of ${window} already, or they were undone.`,
  );
}

function changed(vm: Vm, what: string): HostAgentError {
  return new HostAgentError('VM_CHANGED', `${vm.name} changed since the window was prepared: ${what}.`, {
    metadata: { vm: vm.uuid },
  });
}
