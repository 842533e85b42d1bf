import type { PlannedVolume } from '@stillpoint/workflows';
import type { Cinder, CinderVolume } from '../cinder/cinder.js';
import { CinderError, isCinderError } from '../cinder/errors.js';
import type { HostDisk, HostVm } from '../hosts/hosts.js';
import type { Cloud } from './deps.js';
import { ActivityError } from './failure.js';

/** Cinder's word on a disk: its volume, or why the disk is left out. */
export type DiskVerdict = { volume: PlannedVolume } | { leftOut: string };

const uuid = /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/;
const volumeImage = /^(?:.*\/)?volume-[0-9a-f-]{36}$/;

const GiB = 1024 ** 3;

/**
 * Whose volume each disk is (invariant 10). A disk of the host without a word here is the host's. Serial, image and attachment must agree that a volume is
 * this VM's: a volume that is cut for somebody else is a snapshot of other people's data.
 *
 * @throws ActivityError VOLUME_MISMATCH; CinderError where Cinder cannot be asked
 */
export async function whoseDisks(
  cloud: Cloud | undefined,
  vm: HostVm,
  disks: readonly HostDisk[],
  signal: AbortSignal,
): Promise<Map<string, DiskVerdict>> {
  const verdicts = await Promise.all(
    disks.map(async (disk): Promise<[string, DiskVerdict] | undefined> => {
      const verdict =
        disk.kind === 'rbd' ? await whoseImage(cloud, vm, disk, signal) : await whoseHostDisk(cloud, disk, signal);
      return verdict && [disk.target, verdict];
    }),
  );
  return new Map(verdicts.filter((verdict) => verdict !== undefined));
}

async function whoseImage(
  cloud: Cloud | undefined,
  vm: HostVm,
  disk: HostDisk,
  signal: AbortSignal,
): Promise<DiskVerdict> {
  if (cloud === undefined) return { leftOut: 'a Ceph image, and this engine knows no cloud' };
  const serial = disk.serial.toLowerCase();
  const looksLikeCinders = volumeImage.test(disk.image);
  if (!uuid.test(serial)) {
    if (!looksLikeCinders) return { leftOut: 'a Ceph image of no known volume' };
    throw mismatch(vm, disk, `its image is ${disk.image}, but it has no volume's id as its serial`);
  }
  const volume = await volumeOf(cloud.cinder, serial, signal);
  if (volume === undefined) {
    if (!looksLikeCinders) return { leftOut: 'a Ceph image of no known volume' };
    throw mismatch(vm, disk, `the engine's project has no volume ${serial}`);
  }
  requireSameVolume(cloud, vm, disk, volume);
  const project = await cloud.cinder.project({ signal });
  return {
    volume: { target: disk.target, volume: volume.id, project, name: volume.name, sizeBytes: volume.sizeGiB * GiB },
  };
}

/** NFS, iSCSI, LVM and FC back ends attach volumes as files and block devices: only Cinder may snapshot them. */
async function whoseHostDisk(
  cloud: Cloud | undefined,
  disk: HostDisk,
  signal: AbortSignal,
): Promise<DiskVerdict | undefined> {
  const serial = disk.serial.toLowerCase();
  if (cloud === undefined || !uuid.test(serial)) return undefined;
  const volume = await volumeOf(cloud.cinder, serial, signal).catch((error: unknown) => {
    throw isCinderError(error) ? askedFor(disk, error) : error;
  });
  if (volume === undefined) return undefined;
  return {
    leftOut: 'a Cinder volume that the host sees as a file or block device, which Stillpoint does not snapshot',
  };
}

/** Somebody whose disks are all the host's would not know why Cinder was asked: oVirt gives every disk such a serial. */
function askedFor({ target, serial }: HostDisk, error: CinderError): CinderError {
  const { code, message, advice } = error;
  const why = `The serial of ${target}, ${serial}, looks like a volume's id, so Cinder was asked whose it is.`;
  return new CinderError(code, `${why} ${message}`, { advice, cause: error });
}

async function volumeOf(cinder: Cinder, id: string, signal: AbortSignal): Promise<CinderVolume | undefined> {
  try {
    return await cinder.volume(id, { signal });
  } catch (error) {
    if (isCinderError(error, 'VOLUME_NOT_FOUND')) return undefined;
    throw error;
  }
}

function requireSameVolume(cloud: Cloud, vm: HostVm, disk: HostDisk, volume: CinderVolume): void {
  const names = [volume.id, ...(volume.nameId === undefined ? [] : [volume.nameId])].map((id) => `volume-${id}`);
  const expected = cloud.pools.flatMap((pool) => names.map((name) => `${pool}/${name}`));
  if (!expected.includes(disk.image)) {
    throw mismatch(vm, disk, `its serial is volume ${volume.id}, but its image is ${disk.image}`);
  }
  requireAttached(cloud, vm, disk.target, volume);
}

/** @throws ActivityError VOLUME_MISMATCH where Cinder does not say that the volume is attached to this VM. */
export function requireAttached(
  cloud: Cloud,
  vm: { uuid: string; name: string },
  target: string,
  volume: CinderVolume,
): void {
  if (!cloud.checkAttachment) return;
  const instances = volume.attachments.map(({ instance }) => instance.toLowerCase());
  if (instances.includes(vm.uuid.toLowerCase())) return;
  const where = instances.filter((instance) => instance !== '').join(', ');
  throw mismatch(
    vm,
    { target },
    where === ''
      ? `Cinder names no VM that volume ${volume.id} is attached to`
      : `Cinder has volume ${volume.id} attached to ${where}`,
  );
}

function mismatch(vm: { name: string }, disk: { target: string }, what: string): ActivityError {
  return new ActivityError(
    'VOLUME_MISMATCH',
    `Disk ${disk.target} of ${vm.name} is not surely this VM's volume: ${what}.`,
    {
      advice:
        "Compare the domain's XML with the volume in Cinder; leave the disk out by naming the others (disks), or correct the engine's cloud, pools or checkAttachment.",
      metadata: { disk: disk.target },
    },
  );
}
