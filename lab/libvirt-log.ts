import { readFileSync } from 'node:fs';

/** A command that libvirt sent to a guest agent, or an answer it got, as libvirt's own log has it. */
export interface AgentLogEntry {
  /** Milliseconds since 1970, as libvirt's clock read. */
  readonly atMs: number;
  readonly direction: 'sent' | 'received';
  /** The command's name; an answer has that of the command before it. */
  readonly command: string;
  /** An answer: true where it is an error. */
  readonly failed: boolean;
  readonly text: string;
}

/** A snapshot call as it came into libvirt. */
export interface SnapshotLogEntry {
  readonly atMs: number;
  readonly flags: number;
}

/** A time in which a guest was frozen by its agent's word: freeze answered to thaw answered. */
export interface FrozenTime {
  readonly fromMs: number;
  /** Undefined: not thawed before the end of the log. */
  readonly untilMs: number | undefined;
}

/** VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE of virDomainSnapshotCreateFlags. */
export const QUIESCE = 1 << 6;

const LINE = /^(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d\.\d{3})\+0000: \d+: \w+ : (\w+):\d+ : ([\s\S]*)$/;
/** A message may have several lines (XML); the next one begins with a time. */
const BETWEEN_ENTRIES = /\n(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+0000: )/;

function* entries(text: string): Generator<{ atMs: number; place: string; message: string }> {
  for (const entry of text.trimEnd().split(BETWEEN_ENTRIES)) {
    const [, day, time, place, message] = entry.match(LINE) ?? [];
    if (place !== undefined && message !== undefined) yield { atMs: Date.parse(`${day}T${time}Z`), place, message };
  }
}

/** All guest agent commands and answers of libvirt's log (filter `1:qemu.qemu_agent`), in their order. */
export function parseAgentLog(text: string): AgentLogEntry[] {
  const found: AgentLogEntry[] = [];
  let command = 'unknown';
  for (const { atMs, place, message } of entries(text)) {
    if (place === 'qemuAgentCommandFull' || place === 'qemuAgentCommand') {
      const sent = message.match(/^Send command '(.*)' for write/)?.[1];
      if (sent === undefined) continue;
      command = sent.match(/"execute":"([^"]+)"/)?.[1] ?? 'unknown';
      found.push({ atMs, direction: 'sent', command, failed: false, text: sent });
    } else if (place === 'qemuAgentIOProcessLine') {
      const line = message.match(/^Line \[(.*)\]$/)?.[1];
      if (line !== undefined)
        found.push({ atMs, direction: 'received', command, failed: line.includes('"error"'), text: line });
    }
  }
  return found;
}

/** All snapshot calls of libvirt's log (filter `1:libvirt.domain-snapshot`) with their flags. */
export function parseSnapshotCalls(text: string): SnapshotLogEntry[] {
  const found: SnapshotLogEntry[] = [];
  for (const { atMs, place, message } of entries(text)) {
    if (place !== 'virDomainSnapshotCreateXML') continue;
    const flags = message.match(/flags=0x([0-9a-f]+)\s*$/)?.[1];
    if (flags !== undefined) found.push({ atMs, flags: Number.parseInt(flags, 16) });
  }
  return found;
}

/** The times in which the guest was frozen, from the answers to freeze and thaw; of one VM if the log is of one VM. */
export function frozenTimes(log: readonly AgentLogEntry[]): FrozenTime[] {
  const times: FrozenTime[] = [];
  let fromMs: number | undefined;
  for (const entry of log) {
    if (entry.direction !== 'received' || entry.failed) continue;
    if (entry.command.startsWith('guest-fsfreeze-freeze')) fromMs ??= entry.atMs;
    if (entry.command === 'guest-fsfreeze-thaw' && fromMs !== undefined) {
      times.push({ fromMs, untilMs: entry.atMs });
      fromMs = undefined;
    }
  }
  if (fromMs !== undefined) times.push({ fromMs, untilMs: undefined });
  return times;
}

/** Libvirt's log, read from the place where the reader was made (or last moved on). */
export class LibvirtLog {
  readonly #file: string;
  #from: number;

  constructor(file: string) {
    this.#file = file;
    this.#from = readFileSync(file).length;
  }

  /** Forgets what the log holds so far. */
  skip(): void {
    this.#from = readFileSync(this.#file).length;
  }

  /** What libvirt logged since. */
  text(): string {
    return readFileSync(this.#file).subarray(this.#from).toString('utf8');
  }

  agent(): AgentLogEntry[] {
    return parseAgentLog(this.text());
  }

  snapshots(): SnapshotLogEntry[] {
    return parseSnapshotCalls(this.text());
  }

  frozenTimes(): FrozenTime[] {
    return frozenTimes(this.agent());
  }
}
