import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, readFile, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { HostAgentError } from '../errors.js';
import type { Clock } from './clock.js';
import { History, type JournalEntry } from './history.js';
import type { FreezeSettings } from './settings.js';

const fileName = 'journal.jsonl';

interface Queued {
  entries: JournalEntry[];
  /** Set where the writer waits for the disk. */
  done: { resolve(): void; reject(error: unknown): void } | undefined;
}

/**
 * The one journal: append-only JSON lines, each with a sequence number, both clocks and a checksum.
 *
 * All writing is asynchronous and in one queue, so a slow or dead disk never keeps the event loop from thawing a guest. `note` is for what
 * happens inside a window: no fsync, and nobody waits. `commit` is for what must outlive the host: it resolves after the fsync.
 */
export class Journal {
  readonly history = new History();
  /** What was wrong with the journal that was found at start, for people; undefined: nothing. */
  readonly trouble: string | undefined;

  readonly #folder: string;
  readonly #path: string;
  readonly #settings: FreezeSettings;
  readonly #clock: Clock;
  readonly #log: Logger;
  #file: { handle: FileHandle; inode: number; size: number } | undefined;
  #tornAt: number | undefined;
  /** The file does not say what the history says: it is written anew before anything is added. */
  #mustRewrite = false;
  #seq = 0;
  #records = 0;
  /** Of them, those that the last rewriting left: what it cannot shorten must not make the next one due. */
  #recordsKept = 0;
  #queue: Queued[] = [];
  #writing: Promise<void> | undefined;
  #closed = false;

  private constructor(options: JournalOptions, found: FoundJournal) {
    this.#folder = options.folder;
    this.#path = join(options.folder, fileName);
    this.#settings = options.settings;
    this.#clock = options.clock;
    this.#log = options.log;
    this.trouble = found.trouble;
    for (const record of found.records) {
      this.#seq = Math.max(this.#seq, record.seq);
      this.history.apply(record.entry, record.unixMs);
    }
    if (found.trouble !== undefined) {
      this.history.unsure = true;
      this.#mustRewrite = true;
    }
    this.#records = found.records.length;
    this.#tornAt = found.tornAt;
  }

  /** Reads what is there. Never rejects: what cannot be read is moved aside as `journal.unreadable-<n>` and told in `trouble`. */
  static async open(options: JournalOptions): Promise<Journal> {
    const found = await readJournal(options.folder);
    if (found.trouble !== undefined) options.log.error({ folder: options.folder }, found.trouble);
    const journal = new Journal(options, found);
    // What is readable around a corrupt record goes into the new file, and with it that guests must be asked.
    if (found.trouble !== undefined) {
      await journal.#rewrite().catch((error) => options.log.error({ err: error }, 'The journal cannot be written.'));
    }
    return journal;
  }

  /** Writes soon, without fsync; what a crash of the host loses of it only lowers a grade. Never throws. */
  note(entry: JournalEntry): void {
    this.#enqueue({ entries: [entry], done: undefined });
  }

  /** Resolves when the entries are on disk (fsync). Errors: JOURNAL_UNWRITABLE. */
  commit(...entries: JournalEntry[]): Promise<void> {
    return new Promise((resolve, reject) => this.#enqueue({ entries, done: { resolve, reject } }));
  }

  /** Writes what is queued and closes the file. What is still written afterwards opens it for itself. */
  async close(): Promise<void> {
    this.#closed = true;
    while (this.#writing !== undefined) await this.#writing;
    await this.#closeFile();
  }

  async #closeFile(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    await file?.handle.close().catch(() => undefined);
  }

  #enqueue(queued: Queued): void {
    this.#queue.push(queued);
    this.#writing ??= this.#write();
  }

  async #write(): Promise<void> {
    // Once around the event loop: what the same turn still appends is written, and fsynced, together.
    await Promise.resolve();
    do {
      while (this.#queue.length > 0) await this.#writeBatch(this.#queue.splice(0));
      if (this.#rewriteIsDue) {
        await this.#rewrite().catch((error) => this.#log.warn({ err: error }, 'The journal could not be rewritten.'));
      }
      if (this.#closed) await this.#closeFile();
    } while (this.#queue.length > 0);
    // In the same turn as the last look into the queue, or a record that comes in between would wait for the next.
    this.#writing = undefined;
  }

  async #writeBatch(batch: Queued[]): Promise<void> {
    const entries = batch.flatMap((queued) => queued.entries);
    const durable = batch.some((queued) => queued.done !== undefined);
    try {
      await this.#append(entries, durable);
    } catch (error) {
      this.#log.error({ err: error, path: this.#path }, 'The journal cannot be written.');
      const text = `${this.#path} cannot be written: ${messageOf(error)}`;
      for (const { done } of batch) done?.reject(new HostAgentError('JOURNAL_UNWRITABLE', text, { cause: error }));
      return;
    }
    for (const entry of entries) this.history.apply(entry, this.#clock.unixMs());
    for (const { done } of batch) done?.resolve();
  }

  /** Not while a guest is frozen, if that can be: rewriting is an fsync, and none belongs into a window. */
  get #rewriteIsDue(): boolean {
    const patience = this.history.owed.size === 0 ? 1 : 10;
    return this.#records - this.#recordsKept > patience * this.#settings.compactAfterRecords;
  }

  async #append(entries: JournalEntry[], durable: boolean): Promise<void> {
    const file = await this.#openFile(durable);
    const bytes = Buffer.from(entries.map((entry) => this.#line(entry)).join(''));
    try {
      await writeAll(file.handle, bytes);
      if (durable) await file.handle.sync();
    } catch (error) {
      // A half-written record must not stand before a later whole one, nor may a record that was refused be found after a restart.
      await file.handle.truncate(file.size).catch(() => undefined);
      // After an fsync that failed nobody knows what is on disk; only a file written anew does.
      this.#mustRewrite = true;
      this.#file = undefined;
      await file.handle.close().catch(() => undefined);
      throw error;
    }
    file.size += bytes.length;
    this.#records += entries.length;
  }

  /** The open file. Before a durable record it is made sure that the open file is still the one that a restart would read. */
  async #openFile(check: boolean): Promise<{ handle: FileHandle; inode: number; size: number }> {
    const known = this.#file;
    if (known !== undefined) {
      if (!check) return known;
      const found = await stat(this.#path).catch(() => undefined);
      if (found?.ino === known.inode) return known;
      this.#log.error(
        { path: this.#path },
        'The journal was removed under the running host agent; it is written anew.',
      );
      this.#file = undefined;
      this.#mustRewrite = true;
      await known.handle.close().catch(() => undefined);
    }
    if (this.#mustRewrite) await this.#rewrite();
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    const handle = await open(this.#path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT, 0o600);
    try {
      // A crash tore the last record off; the next one must not be glued to its remains.
      if (this.#tornAt !== undefined) await handle.truncate(this.#tornAt);
      this.#tornAt = undefined;
      const { ino, size } = await handle.stat();
      await syncFolder(this.#folder);
      this.#file = { handle, inode: ino, size };
      return this.#file;
    } catch (error) {
      await handle.close().catch(() => undefined);
      throw error;
    }
  }

  /** Writes the history as a new file and puts it in the old one's place: whole or not at all. */
  async #rewrite(): Promise<void> {
    this.history.trim(this.#settings.closedWindowsKept, this.#settings.closedWindowsKeptMs, this.#clock.unixMs());
    const entries = [...this.history.entries()];
    const fresh = `${this.#path}.new`;
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    const handle = await open(fresh, 'w', 0o600);
    try {
      await writeAll(handle, Buffer.from(entries.map((entry) => this.#line(entry)).join('')));
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(fresh, this.#path);
    await syncFolder(this.#folder);
    const old = this.#file;
    this.#file = undefined;
    this.#tornAt = undefined;
    this.#mustRewrite = false;
    this.#records = entries.length;
    this.#recordsKept = entries.length;
    await old?.handle.close().catch(() => undefined);
  }

  #line(entry: JournalEntry): string {
    this.#seq++;
    const record = { seq: this.#seq, at: this.#clock.now(), unixMs: this.#clock.unixMs(), ...entry };
    return `${JSON.stringify({ ...record, sum: checksum(JSON.stringify(record)) })}\n`;
  }
}

export interface JournalOptions {
  folder: string;
  settings: FreezeSettings;
  clock: Clock;
  log: Logger;
}

interface FoundJournal {
  records: { seq: number; unixMs: number; entry: JournalEntry }[];
  trouble: string | undefined;
  /** Byte at which a record begins that a crash cut off; undefined: none. It was never fsynced, so nothing was done on its strength. */
  tornAt: number | undefined;
}

async function readJournal(folder: string): Promise<FoundJournal> {
  const path = join(folder, fileName);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (isMissing(error)) return { records: [], trouble: undefined, tornAt: undefined };
    return {
      records: [],
      trouble: await setAside(folder, `could not be read (${messageOf(error)})`),
      tornAt: undefined,
    };
  }
  const lines = text.split('\n');
  // The text ends with a newline, unless the last record was torn.
  const unfinished = lines.pop() ?? '';
  const tornAt = unfinished === '' ? undefined : Buffer.byteLength(text) - Buffer.byteLength(unfinished);
  const records: FoundJournal['records'] = [];
  let corrupt = 0;
  let seq = 0;
  for (const line of lines) {
    const record = parseRecord(line);
    if (record !== undefined && record.seq > seq) {
      records.push(record);
      seq = record.seq;
    } else {
      corrupt++;
    }
  }
  if (corrupt === 0) return { records, trouble: undefined, tornAt };
  return {
    records,
    trouble: await setAside(folder, `has ${corrupt} corrupt of ${lines.length} records`),
    tornAt: undefined,
  };
}

function parseRecord(line: string): FoundJournal['records'][number] | undefined {
  try {
    const { sum, ...record }: Record<string, unknown> = JSON.parse(line);
    if (sum !== checksum(JSON.stringify(record))) return undefined;
    const { seq, at: _at, unixMs, ...entry } = record;
    if (typeof seq !== 'number' || typeof unixMs !== 'number') return undefined;
    // The checksum says that a host agent wrote this line, so it has the shape of an entry.
    return { seq, unixMs, entry: entry as JournalEntry };
  } catch {
    return undefined;
  }
}

/** Moves the file out of the way and says so in one sentence for people. */
async function setAside(folder: string, what: string): Promise<string> {
  const path = join(folder, fileName);
  try {
    const taken = new Set(await readdir(folder));
    let n = 1;
    while (taken.has(`journal.unreadable-${n}`)) n++;
    await rename(path, join(folder, `journal.unreadable-${n}`));
    return `The journal ${what}. It is kept as ${join(folder, `journal.unreadable-${n}`)}; every running VM is asked whether it is frozen.`;
  } catch (error) {
    return `The journal ${path} ${what} and cannot be moved aside (${messageOf(error)}): nothing will be frozen until ${folder} can be written. Every running VM is asked whether it is frozen.`;
  }
}

function checksum(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 12);
}

async function writeAll(handle: FileHandle, bytes: Buffer): Promise<void> {
  let written = 0;
  while (written < bytes.length) written += (await handle.write(bytes, written)).bytesWritten;
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
