import type {
  CoverageGap,
  CutRecord,
  LostReason,
  Overlay,
  Pinned,
  QuiescePolicy,
  Reservation,
  Verdict,
  WhereGone,
} from '../window.js';

/** On what terms a window was reserved. */
export interface WindowTerms {
  quiesce: QuiescePolicy;
  windowLimitMs: number;
  setDisks: string[];
  unquiescedDisks: string[];
  guestOs: string;
  expectedFileSystems: number;
  gaps: CoverageGap[];
  /** The file systems as one text, to be compared just before the freeze; undefined: not asked (skip). */
  fileSystems: string | undefined;
}

export interface Prepared {
  pinned: Pinned;
  overlays: Overlay[];
}

/** What the journal says, one record each. Names are part of the file format: never rename one. */
export type JournalEntry =
  | { type: 'reserved'; vm: string; window: string; reservation: Reservation; terms: WindowTerms }
  | { type: 'reserved-for-delete'; vm: string; reservation: Reservation }
  | { type: 'prepared'; vm: string; window: string; prepared: Prepared }
  /** A thaw is owed from here to `settled`, whatever is known of the freeze. */
  | { type: 'lease'; vm: string; window: string; cuts: string[]; domainId: number | undefined }
  | { type: 'frozen'; vm: string; window: string; fileSystems: number; frozenUnixMs: number; gaps: CoverageGap[] }
  | { type: 'held'; vm: string; window: string; cut: string; afterMs: number }
  | {
      type: 'ended';
      vm: string;
      window: string;
      cut: string;
      afterMs: number;
      outcome: CutRecord['outcome'];
      reason: string;
    }
  | { type: 'thaw-due'; vm: string; window: string; by: string; lost: LostReason | undefined }
  /** `end`: what it was that settled it; older journals lack it. */
  | { type: 'settled'; vm: string; window: string; end?: 'thawed' | 'not-frozen' | WhereGone }
  | { type: 'verdict'; vm: string; window: string; verdict: Verdict }
  | { type: 'closed'; vm: string; window: string; closedUnixMs: number }
  | { type: 'released'; vm: string; operation: string; by: string }
  /** The journal before this one could not be read: every guest must be asked. */
  | { type: 'unsure' }
  /** Every guest was asked. */
  | { type: 'sure' }
  | { type: 'installation'; installation: string };

/** An entry as it stands in the file. */
export type JournalRecord = JournalEntry & {
  seq: number;
  /** ms of the monotonic clock of the process that wrote it. */
  at: number;
  unixMs: number;
};

/** What all records together say: read at start, and written out again when the journal is rewritten. */
export class History {
  readonly reservations = new Map<string, Reservation>();
  /** Records of every window whose operation still holds its VM, in their order. */
  readonly windows = new Map<string, { vm: string; operation: string; entries: JournalEntry[] }>();
  /** Closed for good. */
  readonly closed = new Map<string, { vm: string; unixMs: number }>();
  /** Leases under which a thaw is still owed. */
  readonly owed = new Map<string, JournalEntry & { type: 'lease' }>();
  /** Windows among `owed` whose freeze was answered. */
  readonly frozen = new Set<string>();
  unsure = false;
  installation = '';

  apply(entry: JournalEntry, unixMs: number): void {
    switch (entry.type) {
      case 'reserved':
        this.reservations.set(entry.vm, entry.reservation);
        this.installation = entry.reservation.installation;
        this.windows.set(entry.window, { vm: entry.vm, operation: entry.reservation.operation, entries: [entry] });
        return;
      case 'reserved-for-delete':
        this.reservations.set(entry.vm, entry.reservation);
        this.installation = entry.reservation.installation;
        return;
      case 'lease':
        this.owed.set(entry.window, entry);
        break;
      case 'frozen':
        this.frozen.add(entry.window);
        break;
      case 'settled':
        this.owed.delete(entry.window);
        this.frozen.delete(entry.window);
        break;
      case 'verdict':
        this.#close(entry.window, entry.vm, unixMs);
        break;
      case 'closed':
        this.#close(entry.window, entry.vm, entry.closedUnixMs);
        return;
      case 'released':
        this.#release(entry.vm, entry.operation, unixMs);
        return;
      case 'unsure':
        this.unsure = true;
        return;
      case 'sure':
        this.unsure = false;
        return;
      case 'installation':
        this.installation = entry.installation;
        return;
    }
    if ('window' in entry) this.windows.get(entry.window)?.entries.push(entry);
  }

  /** Forgets the oldest closed windows: only those that are both beyond `kept` in number and older than `keptMs`. */
  trim(kept: number, keptMs: number, unixMs: number): void {
    let surplus = this.closed.size - kept;
    for (const [window, { unixMs: closedUnixMs }] of this.closed) {
      if (surplus <= 0 || closedUnixMs > unixMs - keptMs) return;
      if (this.windows.has(window)) continue;
      this.closed.delete(window);
      surplus--;
    }
  }

  /** Entries from which `apply` makes this history again. */
  *entries(): Generator<JournalEntry> {
    if (this.installation !== '') yield { type: 'installation', installation: this.installation };
    if (this.unsure) yield { type: 'unsure' };
    for (const [window, { vm, unixMs }] of this.closed) yield { type: 'closed', vm, window, closedUnixMs: unixMs };
    for (const [window, lease] of this.owed) {
      // A window of a released operation that still owes a thaw has no other record left.
      if (this.windows.has(window)) continue;
      yield lease;
      if (this.frozen.has(window))
        yield { type: 'frozen', vm: lease.vm, window, fileSystems: 0, frozenUnixMs: 0, gaps: [] };
    }
    for (const { entries } of this.windows.values()) yield* entries;
    for (const [vm, reservation] of this.reservations) {
      if (!this.windows.has(reservation.window)) yield { type: 'reserved-for-delete', vm, reservation };
    }
  }

  #close(window: string, vm: string, unixMs: number): void {
    if (!this.closed.has(window)) this.closed.set(window, { vm, unixMs });
  }

  #release(vm: string, operation: string, unixMs: number): void {
    if (this.reservations.get(vm)?.operation === operation) this.reservations.delete(vm);
    for (const [window, known] of this.windows) {
      if (known.vm !== vm || known.operation !== operation) continue;
      // Closed even where its verdict could not be written: a released operation's window never opens again.
      this.#close(window, vm, unixMs);
      this.windows.delete(window);
    }
  }
}
