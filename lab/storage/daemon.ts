import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { LabError } from '../errors.js';
import {
  identifyProcess,
  isRunning,
  type ProcessIdentity,
  ProcessTable,
  parseProcesses,
  signalProcess,
} from '../processes.js';

/** What a daemon is: how it is started, and by what one sees that it does its work. */
export interface DaemonDefinition {
  readonly program: string;
  readonly args: readonly string[];
  /** Further variables; nothing of the caller's own environment is passed on. */
  readonly env?: Readonly<Record<string, string>>;
  /** Taken before each start; what it says is handed to `ready`. */
  readonly before?: () => Promise<string>;
  /** Asked again and again after a start; an error counts as false. */
  readonly ready: (before: string) => Promise<boolean>;
}

const READY_LIMIT_MS = 120_000;
/** What a service manager of these programs would wait before it kills. */
const STOP_LIMIT_MS = 15_000;

/**
 * One daemon of a storage, with its children: it has a session of its own, and every signal goes to all of it, so that a
 * server which forks its workers is stopped, frozen and killed as a whole.
 */
export class Daemon {
  readonly name: string;
  readonly logFile: string;
  readonly #folder: string;
  readonly #definition: DaemonDefinition;
  readonly #processes: ProcessTable;

  constructor(name: string, folder: string, definition: DaemonDefinition) {
    this.name = name;
    this.#folder = folder;
    this.#definition = definition;
    this.logFile = join(folder, 'logs', `${name}.out`);
    // A file for each, since tests in several processes may restart different ones at the same time.
    this.#processes = new ProcessTable(join(folder, 'processes', `${name}.json`));
  }

  /** The pids of the daemon and its children that run now (frozen ones too). */
  get pids(): number[] {
    return this.#session().map(({ pid }) => pid);
  }

  get isFrozen(): boolean {
    return this.#session().some(({ state }) => state === 'T');
  }

  /**
   * Starts it and waits until it does its work; does not start it where it runs.
   *
   * @throws LabError STORAGE_FAILED with the end of its log when it ends or is not ready within 120 s.
   */
  async start(signal?: AbortSignal): Promise<void> {
    if (this.pids.length > 0) return;
    const before = (await this.#definition.before?.()) ?? '';
    this.#spawn();
    await this.#waitUntilReady(before, signal);
  }

  /** Ends it as a service manager would: SIGTERM, and SIGKILL where it has not gone after 15 s. */
  async stop(): Promise<void> {
    const [leader] = this.#processes.list();
    if (leader !== undefined) signalProcess(leader, 'SIGTERM');
    // A frozen process takes SIGTERM only when it goes on.
    this.#signal('SIGCONT');
    const deadline = performance.now() + STOP_LIMIT_MS;
    while (this.pids.length > 0 && performance.now() < deadline) await delay(20);
    await this.kill();
  }

  /** Kills it and its children (SIGKILL), and waits until they are gone. */
  async kill(): Promise<void> {
    for (const leader of this.#processes.list()) await killSession(leader);
  }

  /** Stops it in its tracks (SIGSTOP), and returns when all of it stands still: its sockets stay, and nothing answers. */
  async freeze(): Promise<void> {
    if (this.pids.length === 0) throw new LabError('STORAGE_FAILED', `${this.name} does not run`);
    while (this.#session().some(({ state }) => state !== 'T')) {
      this.#signal('SIGSTOP');
      await delay(5);
    }
  }

  /** Lets it go on after {@link freeze}, and waits until it does its work. */
  async thaw(): Promise<void> {
    const before = (await this.#definition.before?.()) ?? '';
    this.#signal('SIGCONT');
    await this.#waitUntilReady(before);
  }

  /** Stops it if it runs, and starts it; waits until it does its work. */
  async restart(): Promise<void> {
    await this.stop();
    await this.start();
  }

  #spawn(): void {
    const environment = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: this.#folder, ...this.#definition.env };
    const variables = Object.entries(environment).map(([key, value]) => `${key}=${value}`);
    const { program, args } = this.#definition;
    // env(1) replaces itself by the program: the pid is the daemon's own.
    this.#processes.start(
      this.name,
      'env',
      ['-i', '-C', this.#folder, 'LC_ALL=C.UTF-8', ...variables, program, ...args],
      this.logFile,
    );
  }

  async #waitUntilReady(before: string, signal?: AbortSignal): Promise<void> {
    const deadline = performance.now() + READY_LIMIT_MS;
    for (;;) {
      signal?.throwIfAborted();
      // Both are looked at: a program that ended and left its port to a stranger is not ready.
      const running = this.#processes.list().some(isRunning);
      if (running && (await this.#definition.ready(before).catch(() => false))) return;
      if (!running || performance.now() > deadline) {
        const what = running ? `is not ready after ${READY_LIMIT_MS / 1000} s` : 'has ended';
        throw new LabError('STORAGE_FAILED', `${this.name} ${what}; the end of ${this.logFile}:\n${this.#logTail()}`);
      }
      await delay(30);
    }
  }

  #logTail(): string {
    return existsSync(this.logFile) ? readFileSync(this.logFile, 'utf8').trimEnd().slice(-2000) : '(no log)';
  }

  #signal(signal: NodeJS.Signals): void {
    for (const member of this.#session()) signalProcess(member, signal);
  }

  #session(): Member[] {
    const [leader] = this.#processes.list();
    return leader === undefined ? [] : sessionOf(leader);
  }
}

/** Kills every daemon that was ever started in a storage's folder, whoever started it, and says how many processes that were. */
export async function killDaemons(folder: string): Promise<number> {
  const files = await readdir(join(folder, 'processes')).catch(() => []);
  const killed = files.map(async (file) => {
    const text = readFileSync(join(folder, 'processes', file), 'utf8');
    const counts = parseProcesses(text).map(killSession);
    return (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
  });
  return (await Promise.all(killed)).reduce((sum, count) => sum + count, 0);
}

async function killSession(leader: ProcessIdentity): Promise<number> {
  const deadline = performance.now() + 10_000;
  let members = sessionOf(leader);
  const count = members.length;
  while (members.length > 0) {
    // Asked anew each time: a child may have been born meanwhile.
    for (const member of members) signalProcess(member, 'SIGKILL');
    await delay(10);
    members = sessionOf(leader);
    if (performance.now() > deadline) {
      throw new LabError('STORAGE_FAILED', `process ${members[0]?.pid} does not end after SIGKILL; see /proc`);
    }
  }
  return count;
}

interface Member extends ProcessIdentity {
  readonly state: string;
}

/** All processes of the session that `leader` began. The kernel gives a pid to no stranger while it names a session. */
function sessionOf(leader: ProcessIdentity): Member[] {
  const now = identifyProcess(leader.pid);
  if (now !== undefined && now.startTicks !== leader.startTicks) return [];
  return readdirSync('/proc').flatMap((entry) => {
    if (!/^\d+$/.test(entry)) return [];
    const [state, session] = stateAndSession(entry);
    if (session !== leader.pid || state === undefined) return [];
    const identity = identifyProcess(Number(entry));
    return identity === undefined || identity.bootId !== leader.bootId ? [] : [{ ...identity, state }];
  });
}

function stateAndSession(pid: string): [string | undefined, number] {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return [fields[0], Number(fields[3])];
  } catch {
    // It has ended meanwhile.
    return [undefined, 0];
  }
}
