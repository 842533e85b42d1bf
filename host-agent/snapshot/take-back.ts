import { setTimeout as wait } from 'node:timers/promises';
import type { Logger } from 'pino';
import { isHostAgentError } from '../errors.js';
import type { Hypervisor } from '../hypervisor.js';
import type { MergedDisk, MergeProgress, Overlay } from '../window.js';
import {
  type Chain,
  type Definitions,
  findImage,
  type NamedImage,
  readChains,
  readDefinitions,
  realPath,
  unreadChain,
} from './chain.js';
import { hostilePath, type Locations } from './locations.js';
import type { Notes } from './notes.js';
import { isOverlayOf, stemOf } from './overlay-name.js';

export interface TakeBackSettings {
  /** How long a switch may still happen after libvirt was asked, in ms: libvirt waits 30 s for a domain's job. */
  lateSwitchMs: number;
  /** How long to wait between two looks for a late switch, in ms. */
  lookAgainMs: number;
  /** How long QEMU may take to close an image that left the chain, in ms. */
  closeWaitMs: number;
}

/** One overlay to take back. */
export interface TakeBackJob {
  vm: string;
  window: string;
  overlay: Overlay;
  /** monotonic ms; until then a switch whose outcome is unknown may still happen. Undefined: the outcome is known. */
  lateSwitchUntil: number | undefined;
  onProgress: (progress: MergeProgress) => void;
}

/** What one look at the VM led to: a result; or the VM is to be looked at again, for the step is done or the VM changed. */
type Step = MergedDisk | 'look again';

/** Looks that may find something else than the one before, e.g. a VM that starts and stops, before the overlay is left for later. */
const mostLooks = 8;

/**
 * Merges one overlay into its base and deletes it: undo and delete of a snapshot alike. Each step begins with a look at both definitions, behind libvirt's
 * domain job, and does one thing; so a crash between any two steps is only a further look. What no look can prove is left `pending`, untouched.
 */
export class TakeBack {
  readonly #hypervisor: Hypervisor;
  readonly #notes: Notes;
  readonly #locations: Locations;
  readonly #settings: TakeBackSettings;
  readonly #log: Logger;

  constructor(parts: {
    hypervisor: Hypervisor;
    notes: Notes;
    locations: Locations;
    settings: TakeBackSettings;
    log: Logger;
  }) {
    this.#hypervisor = parts.hypervisor;
    this.#notes = parts.notes;
    this.#locations = parts.locations;
    this.#settings = parts.settings;
    this.#log = parts.log;
  }

  /** Never rejects: what cannot be done now is `pending`, with a stable reason. */
  async run(job: TakeBackJob): Promise<MergedDisk> {
    const ended = await this.#run(job);
    const result = ended.outcome === 'pending' ? { ...ended, untouched: await this.#isUntouched(job) } : ended;
    this.#log.info({ window: job.window, ...result }, 'overlay taken back, or left');
    return result;
  }

  /** By the notes: no merge of the overlay has ever begun. */
  async #isUntouched({ vm, window, overlay }: TakeBackJob): Promise<boolean> {
    const notes = await this.#notes.read(window, vm).catch(() => undefined);
    // Where they do not know the overlay they are not all there.
    const isKnown = notes?.overlays.some(({ overlayPath }) => overlayPath === overlay.overlayPath) ?? false;
    return isKnown && notes?.merges.has(overlay.overlayPath) === false;
  }

  async #run(job: TakeBackJob): Promise<MergedDisk> {
    try {
      const notOurs = await this.#notOurs(job);
      if (notOurs !== undefined) return pending(job, 'NOT_OURS', notOurs);
    } catch (error) {
      return pendingFor(job, error);
    }
    for (let looks = 0; looks < mostLooks; looks++) {
      try {
        const step = await this.#step(job);
        if (step !== 'look again') return step;
      } catch (error) {
        const changed =
          isHostAgentError(error, 'VM_NOT_RUNNING') ||
          isHostAgentError(error, 'VM_CHANGED') ||
          isHostAgentError(error, 'DISK_NOT_FOUND');
        if (!changed) return pendingFor(job, error);
        this.#log.info({ window: job.window, err: error }, 'the VM changed during a merge; looking again');
      }
    }
    return pending(job, 'VM_CHANGED', 'The VM keeps changing; it is tried again later.');
  }

  async #step(job: TakeBackJob): Promise<Step> {
    const definitions = await readDefinitions(this.#hypervisor, job.vm);
    const { vm, live, inactive } = definitions;
    if (vm.hasManagedSave) {
      return pending(
        job,
        'MANAGED_SAVE',
        'The VM has a managed-save image, which would bring old block state back. Start it first.',
      );
    }
    if (vm.migrating) return pending(job, 'MIGRATION_ACTIVE', 'The VM is migrating.');
    if (vm.state === 'other') return pending(job, 'VM_STATE', 'The VM is neither running, paused nor shut off.');
    const unread = unreadChain(definitions);
    if (unread !== undefined) {
      return pending(
        job,
        'CHAIN_UNREADABLE',
        `The chain of ${unread.target} cannot be read to its end, so it is not known what it uses.`,
      );
    }
    const real = await realPath(this.#hypervisor.images, job.overlay.overlayPath);
    const inLive = findImage(live, real);
    const inInactive = findImage(inactive, real);
    if (inLive !== undefined) return await this.#mergeLive(job, definitions, inLive);
    if (live !== undefined && inInactive !== undefined) return await this.#leftInInactive(job, definitions, real);
    if (inInactive !== undefined) return await this.#mergeOffline(job, definitions, inInactive);
    return await this.#outsideChains(job, definitions, real);
  }

  /** The VM runs on it: block commit, and pivot where it is the active image. */
  async #mergeLive(job: TakeBackJob, definitions: Definitions, found: { chain: Chain; at: number }): Promise<Step> {
    const place = await this.#place(job, definitions, found);
    if ('outcome' in place) return place;
    const { vm, window, overlay, onProgress } = job;
    const hadBegun = (await this.#notes.read(window, vm)).merges.has(overlay.overlayPath);
    await this.#notes.merging(window, overlay.overlayPath, definitions.vm.domainId);
    try {
      await this.#hypervisor.mergeOverlay(vm, overlay.target, place.image.named, {
        onProgress: (progress) => onProgress({ target: overlay.target, ...progress }),
      });
    } catch (error) {
      // Another program's job, a backup's say, keeps ours from beginning.
      if (isHostAgentError(error, 'BLOCK_JOB_ACTIVE') && !hadBegun) {
        await this.#notes.notBegun(window, overlay.overlayPath);
      }
      if (!isHostAgentError(error, 'MERGE_FAILED')) throw error;
      const now = await this.#hypervisor.getVm(vm);
      if (now.domainId === definitions.vm.domainId) throw error;
      return 'look again';
    }
    await this.#notes.merged(window, overlay.overlayPath);
    return 'look again';
  }

  /**
   * The running VM no longer uses it, the persistent definition does: committing it once the VM is off would put old data over new. libvirt changes both
   * definitions at the pivot, so a person has to say which one is right.
   */
  async #leftInInactive(job: TakeBackJob, definitions: Definitions, real: string): Promise<Step> {
    if (await this.#mergedInThisLife(job, definitions, real)) {
      await this.#notes.merged(job.window, job.overlay.overlayPath);
    }
    return pending(job, 'INACTIVE_NAMES_OVERLAY', `${inactiveAdvice(job)} (virsh edit), then repeat this.`);
  }

  /** Defined and shut off: qemu-img commits under QEMU's image lock, then the definition or the image above is changed. */
  async #mergeOffline(job: TakeBackJob, definitions: Definitions, found: { chain: Chain; at: number }): Promise<Step> {
    const { vm, window, overlay } = job;
    const { images } = this.#hypervisor;
    const notes = await this.#notes.read(window, vm);
    if (notes.merges.get(overlay.overlayPath)?.note === 'merged') {
      return pending(job, 'INACTIVE_NAMES_OVERLAY', `${inactiveAdvice(job)} (virsh edit), then repeat this.`);
    }
    const place = await this.#place(job, definitions, found);
    if ('outcome' in place) return place;
    const { image, below, above } = place;
    for (const path of [image.real, below.real, ...(above === undefined ? [] : [above.real])]) {
      if (await images.isOpen(path))
        return pending(job, 'IMAGE_LOCKED', `The VM is off, but a process has ${path} open.`);
    }
    await this.#notes.merging(window, overlay.overlayPath, undefined);
    job.onProgress({ target: overlay.target, doneBytes: 0, totalBytes: 0 });
    await images.commitOffline(image.real);
    await this.#notes.committed(window, overlay.overlayPath);
    const active = found.chain.images[0];
    if (above !== undefined) {
      await images.rebase(above.real, { backing: below.real, backingFormat: below.format });
    }
    // Also below the active image: the definition may name the whole chain, and the VM would not start without this file.
    const [from, to] = above === undefined ? [image, below] : [active, active];
    if (from !== undefined && to !== undefined) {
      await this.#hypervisor.replaceImage(vm, overlay.target, { from: from.named, to: to.named, toFormat: to.format });
    }
    return 'look again';
  }

  /** No definition names it. It is deleted where its data is seen committed, or where it never held any. */
  async #outsideChains(job: TakeBackJob, definitions: Definitions, real: string): Promise<Step> {
    const { vm, window, overlay } = job;
    const { images } = this.#hypervisor;
    if (!(await images.exists(overlay.overlayPath))) {
      return { ...named(job), outcome: 'not-found', detail: 'Nothing was there.', reason: '' };
    }
    const user = await this.#otherUser(vm, [real]);
    if (user !== undefined) return pending(job, 'IN_USE_BY_OTHER_VM', `${user} uses this overlay.`);
    const notes = await this.#notes.read(window, vm);
    const merge = notes.merges.get(overlay.overlayPath);
    if (merge?.note === 'merged' || merge?.note === 'committed')
      return await this.#deleteClosed(job, real, 'committed');
    if (await this.#mergedInThisLife(job, definitions, real)) {
      await this.#notes.merged(window, overlay.overlayPath);
      return await this.#deleteClosed(job, real, 'committed');
    }
    if (!notes.asked) return await this.#deleteClosed(job, real, 'unused-deleted');
    if (job.lateSwitchUntil !== undefined && performance.now() < job.lateSwitchUntil) {
      await this.#lookLater(job.lateSwitchUntil);
      return await this.#step(job);
    }
    if (await images.isOpen(real))
      return pending(job, 'OPEN', 'A process has the overlay open, although no definition names it.');
    if (!(await images.isEmptyOverlay(real))) {
      return pending(
        job,
        'NOT_SEEN_COMMITTED',
        'No definition names the overlay, but it holds data that was not seen committed. Compare it with its base (qemu-img compare) before you delete it.',
      );
    }
    return await this.#deleteClosed(job, real, 'unused-deleted');
  }

  /**
   * Whether our merge of it was completed by this very QEMU: it was in the live chain when the merge began, and within one life a chain only loses an image
   * to a completed job.
   */
  async #mergedInThisLife(job: TakeBackJob, definitions: Definitions, real: string): Promise<boolean> {
    const merge = (await this.#notes.read(job.window, job.vm)).merges.get(job.overlay.overlayPath);
    if (merge?.note !== 'merging' || merge.domainId === undefined || merge.domainId !== definitions.vm.domainId)
      return false;
    const { backing } = await this.#hypervisor.images.info(real, 'qcow2');
    if (backing === undefined) return false;
    const base = findImage(definitions.live, await realPath(this.#hypervisor.images, backing));
    return base?.chain.target === job.overlay.target;
  }

  async #deleteClosed(job: TakeBackJob, real: string, outcome: 'committed' | 'unused-deleted'): Promise<Step> {
    const { images } = this.#hypervisor;
    const until = performance.now() + this.#settings.closeWaitMs;
    while (await images.isOpen(real)) {
      if (performance.now() >= until) return pending(job, 'OPEN', 'A process still has the overlay open.');
      await wait(this.#settings.closeWaitMs / 10);
    }
    await images.delete(real);
    const detail =
      outcome === 'committed'
        ? 'Its data is in its base, no definition names it, and the file is deleted.'
        : 'It never held data, and the file is deleted.';
    return { ...named(job), outcome, detail, reason: '' };
  }

  /** Where the overlay lies in its chain, or why it is not merged there. */
  async #place(
    job: TakeBackJob,
    definitions: Definitions,
    { chain, at }: { chain: Chain; at: number },
  ): Promise<MergedDisk | { image: NamedImage; below: NamedImage; above: NamedImage | undefined }> {
    const { images } = this.#hypervisor;
    const { overlay } = job;
    const [image, below, above] = [chain.images[at], chain.images[at + 1], chain.images[at - 1]];
    if (chain.target !== overlay.target) return pending(job, 'DISK_CHANGED', `It belongs to ${chain.target} now.`);
    if (image === undefined || below === undefined) return pending(job, 'BASE_CHANGED', 'There is no image below it.');
    const header = await images.info(image.real, 'qcow2');
    const headerBase = header.backing === undefined ? undefined : await realPath(images, header.backing);
    if (headerBase !== below.real) {
      return pending(
        job,
        'BASE_CHANGED',
        `Its header names ${header.backing ?? 'nothing'} below it, libvirt ${below.named}.`,
      );
    }
    const recorded = await realPath(images, overlay.basePath);
    // A snapshot below that was deleted since was merged into what is below now.
    const mergedSince = !(await images.exists(recorded)) && stemOf(recorded) === stemOf(below.real);
    if (below.real !== recorded && !mergedSince) {
      return pending(job, 'BASE_CHANGED', `${below.named} lies below it, not ${overlay.basePath} as recorded.`);
    }
    const { kind } = await images.resolve(below.real);
    const inside =
      kind === 'block'
        ? this.#locations.holdDevice(below.named, below.real) ||
          this.#locations.holdDevice(overlay.basePath, below.real)
        : await this.#locations.holdFile(below.real);
    if (!inside)
      return pending(job, 'LOCATION', `${below.real} lies outside the folders and devices of host-agent.yaml.`);
    const shared = [...(definitions.live ?? []), ...(definitions.inactive ?? [])].some(
      (other) => other.target !== chain.target && other.images.some((used) => used.real === below.real),
    );
    const user = shared ? 'Another disk of this VM' : await this.#otherUser(job.vm, [below.real, image.real]);
    if (user !== undefined) {
      return pending(job, 'IN_USE_BY_OTHER_VM', `${user} uses ${below.real} too: a merge would change it there.`);
    }
    return { image, below, above };
  }

  /** Why the record cannot be one of ours: it came over the network. */
  async #notOurs({ window, overlay }: TakeBackJob): Promise<string | undefined> {
    const hostile = hostilePath(overlay.overlayPath) ?? hostilePath(overlay.basePath);
    if (hostile !== undefined) return `The path is refused: ${hostile}.`;
    const real = await realPath(this.#hypervisor.images, overlay.overlayPath);
    if (!isOverlayOf(overlay.overlayPath, window) || !isOverlayOf(real, window)) {
      return `${overlay.overlayPath} is not named as an overlay of this window.`;
    }
    if (!(await this.#locations.holdFile(real)) || !(await this.#locations.holdName(overlay.overlayPath)))
      return `${real} lies outside the folders of host-agent.yaml.`;
    return undefined;
  }

  /** Name of another VM of this host that uses one of the images. */
  async #otherUser(uuid: string, reals: readonly string[]): Promise<string | undefined> {
    const { images } = this.#hypervisor;
    for (const other of await this.#hypervisor.listVms()) {
      if (other.uuid === uuid) continue;
      // One that is off may have the image below what its definition names.
      const chains = await readChains(images, other);
      if (chains.some((chain) => chain.images.some((image) => reals.includes(image.real)))) return `VM ${other.name}`;
    }
    return undefined;
  }

  async #lookLater(until: number): Promise<void> {
    await wait(Math.max(1, Math.min(this.#settings.lookAgainMs, until - performance.now())));
  }
}

function named({ overlay }: TakeBackJob): { target: string; overlayPath: string; basePath: string } {
  return { target: overlay.target, overlayPath: overlay.overlayPath, basePath: overlay.basePath };
}

function pending(job: TakeBackJob, reason: string, detail: string): MergedDisk {
  return { ...named(job), outcome: 'pending', detail, reason };
}

function pendingFor(job: TakeBackJob, error: unknown): MergedDisk {
  if (!isHostAgentError(error)) return pending(job, 'INTERNAL', String(error));
  const { reason } = error.metadata;
  return pending(job, reason ?? error.code, error.message);
}

function inactiveAdvice({ overlay }: TakeBackJob): string {
  return `The data of ${overlay.overlayPath} is in ${overlay.basePath}, but the persistent definition still names the overlay. Make ${overlay.target} name the base there`;
}
