import { isHostAgentError } from '../errors.js';
import type { Disk, Images } from '../hypervisor.js';
import type { LeftOut } from '../window.js';
import { hostilePath, type Locations } from './locations.js';

/** A local disk that can be snapshotted. */
export interface LocalDisk {
  disk: Disk;
  /** Active image: a file's resolved path; a device's as the definition names it, for what `/dev/dm-3` is may change with the next boot. */
  basePath: string;
  kind: 'file' | 'block';
}

/** Judges a disk: why it is left out; or where its active image is; or `elsewhere`: Ceph's, which the engine cuts. */
export async function judgeDisk(
  disk: Disk,
  { images, locations }: { images: Images; locations: Locations },
): Promise<{ leftOut: LeftOut } | { local: LocalDisk } | 'elsewhere'> {
  if (disk.device === 'cdrom' || disk.device === 'floppy') return { leftOut: 'removable' };
  if (disk.device !== 'disk') return { leftOut: 'lun' };
  if (disk.readOnly) return { leftOut: 'read-only' };
  if (disk.shareable) return { leftOut: 'shareable' };
  if (disk.transient) return { leftOut: 'transient' };
  if (disk.kind === 'rbd') return 'elsewhere';
  if (disk.kind === 'network') return { leftOut: 'network' };
  if (disk.kind === 'other' || disk.path === undefined) return { leftOut: 'no-source' };
  if (disk.format !== 'qcow2' && disk.format !== 'raw') return { leftOut: 'format' };
  if (hostilePath(disk.path) !== undefined) return { leftOut: 'location' };
  try {
    const { path: real, kind } = await images.resolve(disk.path);
    const inside = kind === 'block' ? locations.holdDevice(disk.path, real) : await locations.holdFile(real);
    if (!inside || hostilePath(real) !== undefined || kind !== disk.kind) return { leftOut: 'location' };
    return { local: { disk, basePath: kind === 'block' ? disk.path : real, kind } };
  } catch (error) {
    if (isHostAgentError(error, 'DISK_NOT_FOUND') || isHostAgentError(error, 'IMAGE_INVALID'))
      return { leftOut: 'no-source' };
    throw error;
  }
}
