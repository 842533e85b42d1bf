import { posix } from 'node:path';
import { HostAgentError } from '../errors.js';
import type { ImageInfo } from '../hypervisor.js';
import { WrittenNumbers } from './numbers.js';

/** An image file or block device of the simulated host. */
export interface SimulatedImage {
  readonly path: string;
  readonly kind: 'file' | 'block';
  readonly format: string;
  readonly virtualSizeBytes: number;
  /** As its header names it. */
  backing: string | undefined;
  backingFormat: string | undefined;
  /** What was written into this image itself, not what reads through from below. */
  readonly numbers: WrittenNumbers;
}

/** More images than any chain has: a header that names itself must not loop us. */
const deepestChain = 200;

/** The simulated host's file system: image files, block devices, symlinks, free space and who holds what open. */
export class SimulatedFiles {
  readonly #images = new Map<string, SimulatedImage>();
  readonly #links = new Map<string, string>();
  readonly #freeBytes = new Map<string, number>();
  readonly #held = new Map<string, number>();
  /** Set by the hypervisor: whether a running QEMU has the resolved path open. */
  openInQemu: (path: string) => boolean = () => false;

  /** Adds an image, empty unless `numbers` says what is in it. */
  add(image: {
    path: string;
    kind?: 'file' | 'block';
    format?: string;
    virtualSizeBytes?: number;
    backing?: string;
    backingFormat?: string;
    numbers?: WrittenNumbers;
  }): SimulatedImage {
    const added: SimulatedImage = {
      path: image.path,
      kind: image.kind ?? 'file',
      format: image.format ?? 'qcow2',
      virtualSizeBytes: image.virtualSizeBytes ?? 1 << 30,
      backing: image.backing,
      backingFormat: image.backingFormat,
      numbers: image.numbers ?? new WrittenNumbers(),
    };
    this.#images.set(image.path, added);
    return added;
  }

  /** Makes `path` a symlink to `target`. */
  link(path: string, target: string): void {
    this.#links.set(path, target);
  }

  /** The image at a path, symlinks followed. */
  get(path: string): SimulatedImage | undefined {
    return this.#images.get(this.#follow(path));
  }

  /** As get. Errors: DISK_NOT_FOUND. */
  need(path: string): SimulatedImage {
    const image = this.get(path);
    if (image === undefined) throw new HostAgentError('DISK_NOT_FOUND', `Nothing is at ${path}.`);
    return image;
  }

  /** Paths of all images, sorted. */
  paths(): string[] {
    return [...this.#images.keys()].sort();
  }

  /** Bytes free in `folder` from now on; by default 100 GiB. */
  setFreeBytes(folder: string, bytes: number): void {
    this.#freeBytes.set(folder, bytes);
  }

  freeBytes(folder: string): number {
    return this.#freeBytes.get(folder) ?? 100 * 2 ** 30;
  }

  /** Some other process opens the file; the returned function closes it. */
  holdOpen(path: string): () => void {
    const key = this.#follow(path);
    this.#held.set(key, (this.#held.get(key) ?? 0) + 1);
    return () => void this.#held.set(key, Math.max(0, (this.#held.get(key) ?? 0) - 1));
  }

  isOpen(path: string): boolean {
    const key = this.#follow(path);
    return (this.#held.get(key) ?? 0) > 0 || this.openInQemu(key);
  }

  delete(path: string): void {
    this.#links.delete(path);
    this.#images.delete(path);
  }

  info(path: string, format: string): ImageInfo {
    const image = this.need(path);
    const { virtualSizeBytes } = image;
    if (format === 'raw') return { format, virtualSizeBytes, backing: undefined, backingFormat: undefined };
    if (image.format !== format) throw new HostAgentError('IMAGE_INVALID', `${path} is not ${format}.`);
    return {
      format: image.format,
      virtualSizeBytes: image.virtualSizeBytes,
      backing: image.backing,
      backingFormat: image.backingFormat,
    };
  }

  /** The chain from `path` down, as the headers say; a missing image ends it. */
  chain(path: string): SimulatedImage[] {
    const images: SimulatedImage[] = [];
    for (let at: string | undefined = path; at !== undefined && images.length < deepestChain; ) {
      const image = this.get(at);
      if (image === undefined) break;
      images.push(image);
      at = image.backing;
    }
    return images;
  }

  /** What a reader of the image sees: its own numbers and those of every image below it. */
  content(path: string): WrittenNumbers {
    const content = new WrittenNumbers();
    for (const image of this.chain(path)) content.addAll(image.numbers.ranges);
    return content;
  }

  /** The last number that a reader of the image sees: of a snapshot's image, the instant of the cut. */
  lastNumber(path: string): number {
    return this.content(path).last;
  }

  /** Moves what `overlay` holds into the image below it. */
  commit(overlay: SimulatedImage): void {
    if (overlay.backing === undefined)
      throw new HostAgentError('MERGE_FAILED', `${overlay.path} has no image below it.`);
    this.need(overlay.backing).numbers.addAll(overlay.numbers.ranges);
  }

  resolve(path: string): { path: string; kind: 'file' | 'block' } {
    const image = this.need(path);
    return { path: image.path, kind: image.kind };
  }

  createOverlay(overlay: { path: string; base: string; baseFormat: string; sizeBytes: number }): void {
    if (this.get(overlay.path) !== undefined) throw new HostAgentError('OVERLAY_EXISTS', `${overlay.path} exists.`);
    const base = this.need(overlay.base);
    if (base.format !== overlay.baseFormat) {
      throw new HostAgentError('IMAGE_INVALID', `${overlay.base} is ${base.format}, not ${overlay.baseFormat}.`);
    }
    if (this.freeBytes(posix.dirname(overlay.path)) < 256 * 1024) {
      throw new HostAgentError('NO_SPACE', `No space left for ${overlay.path}.`);
    }
    this.add({
      path: overlay.path,
      virtualSizeBytes: overlay.sizeBytes,
      backing: overlay.base,
      backingFormat: overlay.baseFormat,
    });
  }

  commitOffline(path: string): void {
    const overlay = this.need(path);
    const chain = [path, ...(overlay.backing === undefined ? [] : [overlay.backing])];
    if (chain.some((image) => this.isOpen(image))) {
      throw new HostAgentError('MERGE_FAILED', `${path} is in use.`, { metadata: { reason: 'IMAGE_LOCKED' } });
    }
    this.commit(overlay);
  }

  rebase(path: string, to: { backing: string; backingFormat: string }): void {
    const image = this.need(path);
    if (this.isOpen(path)) {
      throw new HostAgentError('MERGE_FAILED', `${path} is in use.`, { metadata: { reason: 'IMAGE_LOCKED' } });
    }
    image.backing = to.backing;
    image.backingFormat = to.backingFormat;
  }

  listOverlays(folder: string): string[] {
    return this.paths().filter((path) => posix.dirname(path) === folder && posix.basename(path).includes('.sp-'));
  }

  #follow(path: string): string {
    let at = path;
    for (let hops = 0; hops < 40; hops++) {
      const direct = this.#links.get(at);
      if (direct !== undefined) {
        at = posix.resolve(posix.dirname(at), direct);
        continue;
      }
      const folder = [...this.#links.keys()].find((link) => at.startsWith(`${link}/`));
      if (folder === undefined) return at;
      at = posix.join(posix.resolve(posix.dirname(folder), this.#links.get(folder) ?? ''), at.slice(folder.length));
    }
    return at;
  }
}
