/**
 * The lab's guest, kept as it was just after it had booted. Under TCG a boot costs ten seconds of a processor, and going on from the memory and the disks of
 * that moment one; each VM gets copies, and differs from the saved one in nothing but its name, its UUID and its paths.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { LabError } from './errors.js';
import { copyImage, recipeHash } from './guest-image.js';
import { runProgram } from './programs.js';

/** A booted guest in the cache. */
export interface SavedBoot {
  /** What libvirt's `save` wrote: its header, the domain's XML, QEMU's migration stream. */
  readonly memory: string;
  /** The disks as they were at that moment, by target. */
  disk(target: string): string;
}

/** The saved boots of one cache folder, by the machine that was saved: its XML without all that may differ from VM to VM. */
export class SavedBoots {
  readonly #cacheFolder: string;
  #versions: Promise<string> | undefined;

  constructor(cacheFolder: string) {
    this.#cacheFolder = cacheFolder;
  }

  /** The saved boot of this machine, if there is one. */
  async find(machine: string): Promise<SavedBoot | undefined> {
    const folder = await this.#folder(machine);
    return existsSync(folder) ? savedIn(folder) : undefined;
  }

  /** Forgets the saved boot of this machine. */
  async drop(machine: string): Promise<void> {
    await rm(await this.#folder(machine), { recursive: true, force: true });
  }

  /**
   * Keeps a machine that has just booted. `save` writes its memory to the file it is given, and leaves the machine off; `disks` are its disks then, by target.
   */
  async keep(
    machine: string,
    disks: ReadonlyMap<string, string>,
    save: (memory: string) => Promise<void>,
  ): Promise<void> {
    const folder = await this.#folder(machine);
    const work = join(this.#cacheFolder, `building-${process.pid}`);
    await mkdir(work, { recursive: true });
    try {
      await save(savedIn(work).memory);
      for (const [target, path] of disks) await copyImage(path, savedIn(work).disk(target));
      await rename(work, folder).catch((error: unknown) => {
        // Somebody else has saved the same one meanwhile, which is as good.
        if (!existsSync(folder)) throw error;
      });
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  }

  async #folder(machine: string): Promise<string> {
    this.#versions ??= versions();
    const hash = createHash('sha256').update(JSON.stringify([recipeHash(), await this.#versions, machine]));
    return join(this.#cacheFolder, `booted-${hash.digest('hex').slice(0, 16)}`);
  }
}

/** Another QEMU may have another machine under the same name, another libvirt may put the devices elsewhere. */
async function versions(): Promise<string> {
  const said = await Promise.all(['qemu-system-x86_64', 'libvirtd'].map((name) => runProgram(name, ['--version'])));
  return said.map(({ stdout }) => stdout).join();
}

function savedIn(folder: string): SavedBoot {
  return { memory: join(folder, 'memory'), disk: (target) => join(folder, target) };
}

// libvirt's header (struct _virQEMUSaveHeader in qemu_saveimage.h), in the byte order of the machine: a magic text, and numbers of 32 bits.
const HEADER_BYTES = 92;
const MAGIC = 'LibvirtQemudSave';
const XML_LENGTH_AT = 20;
const COOKIE_AT = 32;
const COPY_BYTES = 8 << 20;

/**
 * Writes a copy of a saved memory that is the memory of another domain: the one of the XML. `virsh restore --xml` would change paths, but neither name nor UUID.
 */
export async function writeMemoryOf(saved: SavedBoot, xml: string, target: string): Promise<void> {
  const [from, to] = [await open(saved.memory), await open(target, 'w', 0o600)];
  try {
    const header = Buffer.alloc(HEADER_BYTES);
    await from.read(header, 0, HEADER_BYTES, 0);
    if (header.toString('latin1', 0, MAGIC.length) !== MAGIC) {
      throw new LabError('VM_FAILED', `${saved.memory} is not what libvirt saves; remove its folder`);
    }
    let position = HEADER_BYTES + header.readUInt32LE(XML_LENGTH_AT);
    const text = Buffer.from(`${xml}\0`);
    header.writeUInt32LE(text.length, XML_LENGTH_AT);
    // The cookie says what libvirt found out about the processor of the domain that was saved; it does without.
    header.writeUInt32LE(0, COOKIE_AT);
    await to.write(Buffer.concat([header, text]));
    const chunk = Buffer.allocUnsafe(COPY_BYTES);
    for (;;) {
      const { bytesRead } = await from.read(chunk, 0, COPY_BYTES, position);
      if (bytesRead === 0) return;
      await to.write(chunk, 0, bytesRead);
      position += bytesRead;
    }
  } finally {
    await from.close();
    await to.close();
  }
}
