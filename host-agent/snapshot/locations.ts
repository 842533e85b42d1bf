import { realpath } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join, normalize } from 'node:path';

/** Where local disks and overlays may lie unless host-agent.yaml says otherwise. */
export const defaultLocations = ['/var/lib/libvirt/images', '/var/lib/nova/instances'];

/**
 * Whether a path may be handed to libvirt and qemu-img at all: absolute, and without what separates or ends an argument somewhere on its way
 * (control characters; the comma of QEMU's options). The reason why not, or undefined.
 */
export function hostilePath(path: string): string | undefined {
  if (!isAbsolute(path)) return 'it is not absolute';
  if (path.length > 4096) return 'it is too long';
  if ([...path].some((character) => character < ' ' || character === '\u007f')) return 'it holds control characters';
  if (path.includes(',')) return 'it holds a comma';
  if (normalize(path) !== path || path.endsWith('/')) return 'it is not in its shortest form';
  return undefined;
}

/** The folders and device prefixes in which disks and overlays may lie (invariant 10). */
export class Locations {
  readonly listed: readonly string[];

  constructor(listed: readonly string[]) {
    this.listed = listed.map((location) => location.replace(/\/+$/, ''));
  }

  /** Whether a file's resolved path lies in a listed folder. */
  async holdFile(resolvedPath: string): Promise<boolean> {
    for (const folder of this.listed) {
      if (resolvedPath.startsWith(`${folder}/`) || resolvedPath.startsWith(`${await realpathOrSame(folder)}/`))
        return true;
    }
    return false;
  }

  /** Whether a name lies in a listed folder, whatever is there: it is the name that a deletion takes away, and a link before it may lead elsewhere. */
  async holdName(path: string): Promise<boolean> {
    return await this.holdFile(join(await realpathOrSame(dirname(path)), basename(path)));
  }

  /**
   * Whether a block device lies under a listed prefix, by the name that the definition gives it or by its resolved one: `/dev/vg0/web` is a link to
   * `/dev/dm-3`, a name that says nothing and may be another device's tomorrow.
   */
  holdDevice(namedPath: string, resolvedPath: string): boolean {
    return this.listed.some(
      (prefix) =>
        prefix.startsWith('/dev/') &&
        [namedPath, resolvedPath].some((path) => path === prefix || path.startsWith(`${prefix}/`)),
    );
  }
}

async function realpathOrSame(folder: string): Promise<string> {
  return await realpath(folder).catch(() => folder);
}
