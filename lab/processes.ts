import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { LabError } from './errors.js';

/**
 * One process and no other: a pid is given out again after its process has died, so the time of its start (clock ticks
 * since boot, proc(5) field 22) and the boot itself belong to it.
 */
export interface ProcessIdentity {
  readonly pid: number;
  readonly startTicks: number;
  readonly bootId: string;
}

const bootId = () => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

/** Says which process has the pid now, or undefined where none has or only a zombie is left of it. */
export function identifyProcess(pid: number): ProcessIdentity | undefined {
  if (!Number.isSafeInteger(pid) || pid <= 1) return undefined;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name in parentheses may itself hold spaces and parentheses: the fields are counted from its end.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const state = fields[0];
    const startTicks = Number(fields[19]);
    if (state === 'Z' || state === 'X' || !Number.isFinite(startTicks)) return undefined;
    return { pid, startTicks, bootId: bootId() };
  } catch {
    return undefined;
  }
}

/** True while this very process runs (a stopped one runs too; a zombie does not). */
export function isRunning(identity: ProcessIdentity): boolean {
  const now = identifyProcess(identity.pid);
  return now !== undefined && now.startTicks === identity.startTicks && now.bootId === identity.bootId;
}

/** Sends the signal if this very process still runs, and says whether it did; never reaches a stranger with the same pid. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isRunning(identity)) return false;
  try {
    process.kill(identity.pid, signal);
    return true;
  } catch {
    return false;
  }
}

/** Waits until the process is gone and says whether it went within `timeoutMs`. */
export async function waitForExit(identity: ProcessIdentity, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  // Not always our child (it may stem from an earlier run), so there is no exit event to wait for.
  while (isRunning(identity)) {
    if (performance.now() > deadline) return false;
    await delay(20);
  }
  return true;
}

/**
 * Ends the process: SIGTERM, and SIGKILL where it has not gone after `graceMs`.
 *
 * @throws LabError PROGRAM_FAILED when even SIGKILL does not end it within 10 s (it hangs in the kernel).
 */
export async function endProcess(identity: ProcessIdentity, graceMs = 5_000): Promise<void> {
  if (graceMs > 0 && signalProcess(identity, 'SIGTERM')) {
    // A stopped process takes SIGTERM only when it goes on.
    signalProcess(identity, 'SIGCONT');
    if (await waitForExit(identity, graceMs)) return;
  }
  signalProcess(identity, 'SIGKILL');
  if (!(await waitForExit(identity, 10_000))) {
    throw new LabError(
      'PROGRAM_FAILED',
      `process ${identity.pid} does not end after SIGKILL; see /proc/${identity.pid}`,
    );
  }
}

/** A process that the lab started, with the name under which it is known. */
export interface LabProcess extends ProcessIdentity {
  readonly name: string;
}

/** Parses a record of processes; anything else than what this module writes counts as no process. */
export function parseProcesses(text: string): LabProcess[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return [];
  }
  if (!Array.isArray(value)) return [];
  return value.filter(isLabProcess);
}

function isLabProcess(value: unknown): value is LabProcess {
  if (typeof value !== 'object' || value === null) return false;
  const { name, pid, startTicks, bootId: boot } = value as Record<string, unknown>;
  return (
    typeof name === 'string' && Number.isSafeInteger(pid) && typeof startTicks === 'number' && typeof boot === 'string'
  );
}

/**
 * The processes of one lab, written to a file at every change, so that the next run can end what a crashed one left.
 *
 * A process is recorded before anything is awaited, in the same tick in which it is started.
 */
export class ProcessTable {
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  /** All recorded processes, whether they still run or not. */
  list(): LabProcess[] {
    return existsSync(this.#file) ? parseProcesses(readFileSync(this.#file, 'utf8')) : [];
  }

  /** The recorded process of that name, if it runs. */
  find(name: string): LabProcess | undefined {
    return this.list().find((entry) => entry.name === name && isRunning(entry));
  }

  /**
   * Starts a program that outlives this process, its output going to `logFile`, and records it.
   *
   * @throws LabError PROGRAM_FAILED when it cannot be started.
   */
  start(name: string, program: string, args: readonly string[], logFile: string): LabProcess {
    const log = openSync(logFile, 'a');
    try {
      const child = spawn(program, args, {
        detached: true,
        stdio: ['ignore', log, log],
        env: { ...process.env, LC_ALL: 'C.UTF-8' },
      });
      let failure: unknown;
      child.once('error', (error) => {
        failure = error;
      });
      child.unref();
      const identity = child.pid === undefined ? undefined : identifyProcess(child.pid);
      if (identity === undefined) {
        throw new LabError('PROGRAM_FAILED', `${program} could not be started; is it installed? See ${logFile}`, {
          cause: failure,
        });
      }
      return this.record(name, identity);
    } finally {
      closeSync(log);
    }
  }

  /** Records a process that something else has started. */
  record(name: string, identity: ProcessIdentity): LabProcess {
    const entry = { name, ...identity };
    this.#write([...this.list().filter((other) => other.name !== name), entry]);
    return entry;
  }

  /** Ends the process of that name and forgets it; nothing happens where none runs. */
  async end(name: string, graceMs?: number): Promise<void> {
    for (const entry of this.list().filter((other) => other.name === name)) await endProcess(entry, graceMs);
    this.#write(this.list().filter((other) => other.name !== name));
  }

  #write(entries: readonly LabProcess[]): void {
    writeFileSync(`${this.#file}.new`, `${JSON.stringify(entries, null, 2)}\n`);
    renameSync(`${this.#file}.new`, this.#file);
  }
}
