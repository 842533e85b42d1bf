import { type FileHandle, mkdir, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { HostAgentError } from '../errors.js';
import type { Overlay } from '../window.js';

const overlay = z.object({
  target: z.string(),
  overlayPath: z.string(),
  basePath: z.string(),
  baseFormat: z.string(),
  sizeBytes: z.number(),
});

const note = z.discriminatedUnion('note', [
  z.object({ note: z.literal('prepared'), vm: z.string(), boot: z.string(), overlays: z.array(overlay) }),
  /** libvirt is about to be asked to switch. */
  z.object({ note: z.literal('asked') }),
  /** What libvirt answered; missing after `asked`, the outcome is unknown and the switch may still happen. */
  z.object({ note: z.literal('answered'), switched: z.boolean() }),
  /** The overlay was in a chain, and its merge is about to begin. */
  z.object({ note: z.literal('merging'), overlayPath: z.string(), boot: z.string(), domainId: z.number().optional() }),
  /** It did not begin after all: the hypervisor refused it. */
  z.object({ note: z.literal('not-begun'), overlayPath: z.string() }),
  /** Merged by libvirt while the VM ran: the base is newer than the overlay from here on. */
  z.object({ note: z.literal('merged'), overlayPath: z.string() }),
  /** Committed while the VM was off; the definition may still name the overlay, and a VM started on it makes it the newer one. */
  z.object({ note: z.literal('committed'), overlayPath: z.string() }),
]);
type Note = z.infer<typeof note>;

export type MergeNote = { note: 'merging'; domainId: number | undefined } | { note: 'merged' } | { note: 'committed' };

/** What is known of a window's overlays. */
export interface WindowNotes {
  overlays: Overlay[];
  /** Whether libvirt may have been asked to switch to them. Without notes, or after a reboot (they are not fsynced in the window): yes. */
  asked: boolean;
  /** What libvirt answered; undefined: not asked, or unknown. */
  switched: boolean | undefined;
  /** The last note on each overlay's merge. */
  merges: Map<string, MergeNote>;
}

/**
 * The snapshot room's notes: one file a window, one JSON object a line. `prepared` and those on merges are fsynced; `asked` and `answered` lie in
 * the window and are only written, which outlives this process, and a changed boot id tells when it may not have been enough.
 */
export class Notes {
  readonly #folder: string;
  readonly #boot: string;

  private constructor(folder: string, boot: string) {
    this.#folder = folder;
    this.#boot = boot;
  }

  /** Errors: JOURNAL_UNWRITABLE. */
  static async open(folder: string): Promise<Notes> {
    const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => '');
    await mkdir(folder, { recursive: true, mode: 0o700 }).catch((cause: unknown) => {
      throw unwritable(folder, cause);
    });
    return new Notes(folder, boot.trim());
  }

  /** Takes down which overlays will be made, before the first is. Errors: JOURNAL_UNWRITABLE. */
  async prepared(window: string, vm: string, overlays: Overlay[]): Promise<void> {
    await this.#append(window, { note: 'prepared', vm, boot: this.#boot, overlays }, true);
    await this.#syncFolder();
  }

  async asked(window: string): Promise<void> {
    await this.#append(window, { note: 'asked' }, false);
  }

  async answered(window: string, switched: boolean): Promise<void> {
    await this.#append(window, { note: 'answered', switched }, false);
  }

  async merging(window: string, overlayPath: string, domainId: number | undefined): Promise<void> {
    const life = { boot: this.#boot, ...(domainId === undefined ? {} : { domainId }) };
    await this.#append(window, { note: 'merging', overlayPath, ...life }, true);
    await this.#syncFolder();
  }

  async notBegun(window: string, overlayPath: string): Promise<void> {
    await this.#append(window, { note: 'not-begun', overlayPath }, true);
  }

  async merged(window: string, overlayPath: string): Promise<void> {
    await this.#append(window, { note: 'merged', overlayPath }, true);
  }

  async committed(window: string, overlayPath: string): Promise<void> {
    await this.#append(window, { note: 'committed', overlayPath }, true);
  }

  /** Nothing of the window is left. */
  async drop(window: string): Promise<void> {
    await rm(this.#path(window), { force: true }).catch((cause: unknown) => {
      throw unwritable(this.#folder, cause);
    });
  }

  /** What is known of a window of VM `vm`. Errors: INVALID_ARGUMENT (another VM's), JOURNAL_UNWRITABLE. */
  async read(window: string, vm: string): Promise<WindowNotes> {
    const notes: WindowNotes = { overlays: [], asked: true, switched: undefined, merges: new Map() };
    let text: string;
    try {
      text = await readFile(this.#path(window), 'utf8');
    } catch (cause) {
      if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return notes;
      throw unwritable(this.#folder, cause);
    }
    for (const line of text.split('\n')) {
      const read = parseLine(line);
      if (read === undefined) {
        // A torn line is the last one of a crash, or damage: what it said is not known, so the worst is assumed.
        if (line !== '') notes.asked = true;
        continue;
      }
      if (read.note === 'prepared') {
        if (read.vm !== vm) {
          throw new HostAgentError('INVALID_ARGUMENT', `Window ${window} belongs to another VM.`, {
            metadata: { field: 'window_id' },
          });
        }
        notes.overlays = read.overlays;
        notes.asked = !this.#sinceBoot(read.boot);
      } else if (read.note === 'asked') {
        notes.asked = true;
        notes.switched = undefined;
      } else if (read.note === 'answered') {
        notes.switched = read.switched;
      } else if (read.note === 'merging') {
        // libvirt counts its ids from 1 again after a reboot.
        const domainId = this.#sinceBoot(read.boot) ? read.domainId : undefined;
        notes.merges.set(read.overlayPath, { note: 'merging', domainId });
      } else if (read.note === 'not-begun') {
        notes.merges.delete(read.overlayPath);
      } else {
        notes.merges.set(read.overlayPath, { note: read.note });
      }
    }
    return notes;
  }

  #sinceBoot(boot: string): boolean {
    return boot === this.#boot && boot !== '';
  }

  #path(window: string): string {
    return join(this.#folder, `${window}.jsonl`);
  }

  async #append(window: string, entry: Note, durable: boolean): Promise<void> {
    let file: FileHandle | undefined;
    try {
      file = await open(this.#path(window), 'a', 0o600);
      // A line of its own, also behind one that a full disk cut short.
      await file.appendFile(`\n${JSON.stringify(entry)}\n`);
      if (durable) await file.sync();
    } catch (cause) {
      throw unwritable(this.#folder, cause);
    } finally {
      await file?.close();
    }
  }

  async #syncFolder(): Promise<void> {
    const folder = await open(this.#folder, 'r');
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  }
}

function parseLine(line: string): Note | undefined {
  try {
    return note.parse(JSON.parse(line));
  } catch {
    return undefined;
  }
}

function unwritable(folder: string, cause: unknown): HostAgentError {
  return new HostAgentError('JOURNAL_UNWRITABLE', `The notes in ${folder} cannot be read or written.`, { cause });
}
