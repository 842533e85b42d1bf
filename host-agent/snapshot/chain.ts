import { isHostAgentError } from '../errors.js';
import type { Disk, Hypervisor, Images, Vm } from '../hypervisor.js';

/** An image in a chain: as it is named there, and resolved. */
export interface NamedImage {
  named: string;
  real: string;
  format: string;
}

/** A disk's chain, active image first. */
export interface Chain {
  target: string;
  images: NamedImage[];
  /** A header in it could not be read: what lies below is not known. */
  readToTheEnd: boolean;
}

/** The definitions of a VM with their whole chains, read behind libvirt's domain job. */
export interface Definitions {
  vm: Vm;
  /** Of the running domain; undefined: it does not run. */
  live: Chain[] | undefined;
  /** Of the persistent definition; undefined: transient. */
  inactive: Chain[] | undefined;
}

const deepestChain = 200;

/** Reads both definitions. Errors: VM_NOT_FOUND and those of the connection. */
export async function readDefinitions(hypervisor: Hypervisor, uuid: string): Promise<Definitions> {
  const { vm, inactive } = await hypervisor.getVmBehindJob(uuid);
  const runs = vm.state !== 'shut-off';
  return {
    vm,
    live: runs ? await chains(hypervisor.images, vm.disks) : undefined,
    inactive:
      inactive !== undefined
        ? await chains(hypervisor.images, inactive)
        : runs
          ? undefined
          : await chains(hypervisor.images, vm.disks),
  };
}

/** The chains that a VM's definition means, also where it is off and libvirt knows only what its definition names. */
export async function readChains(images: Images, vm: Vm): Promise<Chain[]> {
  return await chains(images, vm.disks);
}

/** A chain of which it is not known what it uses: nothing of this VM can be taken back while there is one. */
export function unreadChain({ live, inactive }: Definitions): Chain | undefined {
  return [...(live ?? []), ...(inactive ?? [])].find((chain) => !chain.readToTheEnd);
}

/** Where an image is in a definition's chains. */
export function findImage(chains: Chain[] | undefined, real: string): { chain: Chain; at: number } | undefined {
  for (const chain of chains ?? []) {
    const at = chain.images.findIndex((image) => image.real === real);
    if (at >= 0) return { chain, at };
  }
  return undefined;
}

async function chains(images: Images, disks: Disk[]): Promise<Chain[]> {
  const local = disks.filter((disk) => (disk.kind === 'file' || disk.kind === 'block') && disk.path !== undefined);
  return await Promise.all(local.map((disk) => chainOf(images, disk)));
}

/** What libvirt tells, and below its last image what the headers say: of a domain that is off it knows only what the definition names. */
async function chainOf(images: Images, disk: Disk): Promise<Chain> {
  const told = disk.chain.length > 0 ? disk.chain : [{ path: disk.path ?? '', format: disk.format }];
  const chain: Chain = { target: disk.target, images: [], readToTheEnd: true };
  for (const { path, format } of told) chain.images.push({ named: path, real: await realPath(images, path), format });
  while (chain.images.length < deepestChain) {
    const last = chain.images.at(-1);
    if (last === undefined || last.format === 'raw') return chain;
    try {
      const { backing, backingFormat } = await images.info(last.real, last.format);
      if (backing === undefined) return chain;
      // As libvirt does: a backing file whose format the header does not tell is never probed.
      chain.images.push({ named: backing, real: await realPath(images, backing), format: backingFormat ?? 'raw' });
    } catch (error) {
      // A missing file has nothing below it.
      if (!isHostAgentError(error, 'DISK_NOT_FOUND')) chain.readToTheEnd = false;
      return chain;
    }
  }
  chain.readToTheEnd = false;
  return chain;
}

/** Resolved, or as it is where nothing is there. */
export async function realPath(images: Images, path: string): Promise<string> {
  try {
    return (await images.resolve(path)).path;
  } catch (error) {
    if (isHostAgentError(error)) return path;
    throw error;
  }
}
