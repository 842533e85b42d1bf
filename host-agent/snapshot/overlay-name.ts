import { posix } from 'node:path';
import { HostAgentError } from '../errors.js';

const windowId = /^[0-9A-Za-z-]{1,64}\.[0-9]{1,3}$/;

/** Refuses a window id that is not `<operation id>.<attempt>`: it becomes part of file names. */
export function checkWindow(window: string): void {
  if (!windowId.test(window)) {
    throw new HostAgentError('INVALID_ARGUMENT', 'The window id is not <operation id>.<attempt>.', {
      metadata: { field: 'window_id' },
    });
  }
}

/** `<base name>.sp-<window>.qcow2`; the base name of a base that is our overlay is its own base's, so that names do not grow. */
export function overlayName(basePath: string, window: string): string {
  return `${stemOf(basePath)}.sp-${window}.qcow2`;
}

/** Name of the image at the bottom of our overlays, which all of them carry; a device's is its whole path, for vg0/data and vg1/data share a folder. */
export function stemOf(path: string): string {
  if (path.startsWith('/dev/')) return path.slice('/dev/'.length).replaceAll('/', '-');
  const name = posix.basename(path);
  return /^(.+)\.sp-[0-9A-Za-z-]{1,64}\.[0-9]{1,3}\.qcow2$/.exec(name)?.[1] ?? name;
}

/** Whether a path is named as an overlay of this window. */
export function isOverlayOf(path: string, window: string): boolean {
  return posix.basename(path).endsWith(`.sp-${window}.qcow2`);
}

/** The window that a path's name carries; undefined: it is not named as an overlay of ours. */
export function windowOf(path: string): string | undefined {
  return /\.sp-([0-9A-Za-z-]{1,64}\.[0-9]{1,3})\.qcow2$/.exec(posix.basename(path))?.[1];
}
