import { HostAgentError, isHostAgentError } from '../errors.js';
import type { GuestFileSystem, GuestOs } from '../hypervisor.js';
import { JobLock } from './job-lock.js';

/** What the guest's fsfreeze-hook does before a freeze. */
export type FreezeHook = { does: 'nothing' } | { does: 'fail'; status: number } | { does: 'hang' };

/** libvirt's guest-sync limit where no response timeout is set, in seconds (QEMU_AGENT_WAIT_TIME). */
const syncTimeoutS = 5;
/** How long libvirt waits for a lock that another call holds, in seconds. */
export const jobWaitS = 30;

/**
 * A guest's agent as libvirt sees it through the channel: it works its commands off in order, and a command that its caller has given up
 * stays queued. It outlives its own restarts: whether file systems are frozen is the guest's state.
 */
export class SimulatedGuestAgent {
  frozen = false;
  hook: FreezeHook = { does: 'nothing' };
  fileSystems: GuestFileSystem[];
  os: GuestOs;

  /** What libvirt waits for an answer; the domain's, whoever set it. */
  timeoutS: number | 'default' = 'default';

  readonly #secondMs: number;
  readonly #lock: JobLock;
  readonly #waiters = new Set<{ holds: () => boolean; wake: () => void }>();
  #connected: boolean;
  #stopped = false;
  #inHook = false;
  #guestRuns = true;
  /** libvirt leaves out guest-sync while the last command of the connection went well: a freeze then waits in the channel. */
  #lastWentWell = false;
  /** Counts connections: a command of an earlier one is gone. */
  #connection = 0;
  #tail: Promise<void> = Promise.resolve();

  constructor(settings: { secondMs: number; connected: boolean; fileSystems: GuestFileSystem[]; os: GuestOs }) {
    this.#secondMs = settings.secondMs;
    this.#connected = settings.connected;
    this.fileSystems = settings.fileSystems;
    this.os = settings.os;
    this.#lock = new JobLock('held by another agent call', jobWaitS * settings.secondMs);
  }

  get connected(): boolean {
    return this.#connected;
  }

  /** Whether it works commands off: connected, not stopped, in a guest that runs. */
  get works(): boolean {
    return this.#connected && !this.#stopped && this.#guestRuns;
  }

  /** Resolves once a freeze waits in a hook that hangs. */
  get hookBegan(): Promise<void> {
    return this.#until(() => this.#inHook).promise;
  }

  connect(): void {
    this.#connected = true;
    this.#notify();
  }

  /** Killed or stopped in the guest: commands under way are gone. */
  disconnect(): void {
    this.#connected = false;
    this.#connection++;
    this.#tail = Promise.resolve();
    this.#lastWentWell = false;
    this.#notify();
  }

  /** SIGSTOP: connected, and silent. */
  stop(): void {
    this.#stopped = true;
  }

  /** SIGCONT: works off what is queued. */
  continue(): void {
    this.#stopped = false;
    this.#notify();
  }

  setHook(hook: FreezeHook): void {
    this.hook = hook;
    this.#notify();
  }

  guestPaused(): void {
    this.#guestRuns = false;
  }

  guestResumed(): void {
    this.#guestRuns = true;
    this.#notify();
  }

  /** Power off: nothing stays frozen. */
  guestGone(): void {
    this.frozen = false;
    this.disconnect();
    this.#guestRuns = true;
    this.#stopped = false;
  }

  async freeze(): Promise<number> {
    return await this.#command(undefined, async (isAlive) => {
      if (this.frozen) {
        throw new HostAgentError(
          'ALREADY_FROZEN',
          'Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state',
        );
      }
      const status = await this.#runHook(isAlive);
      if (status !== 0) {
        throw new HostAgentError('FREEZE_HOOK_FAILED', `fsfreeze hook has failed with status ${status}`);
      }
      this.frozen = true;
      return this.#freezable;
    });
  }

  async thaw(): Promise<number> {
    return await this.#command(undefined, async () => {
      const thawed = this.frozen ? this.#freezable : 0;
      this.frozen = false;
      return thawed;
    });
  }

  async status(timeoutS: number): Promise<'frozen' | 'thawed'> {
    return await this.#command(timeoutS, async () => (this.frozen ? 'frozen' : 'thawed'));
  }

  async getFileSystems(): Promise<GuestFileSystem[]> {
    return await this.#command(undefined, async () => {
      this.#refuseWhileFrozen('guest-get-fsinfo');
      return structuredClone(this.fileSystems);
    });
  }

  async getOs(timeoutS: number): Promise<GuestOs> {
    return await this.#command(timeoutS, async () => {
      this.#refuseWhileFrozen('guest-get-osinfo');
      return { ...this.os };
    });
  }

  get #freezable(): number {
    return new Set(this.fileSystems.map((fileSystem) => fileSystem.device)).size;
  }

  #refuseWhileFrozen(command: string): void {
    if (this.frozen) {
      throw new HostAgentError('ALREADY_FROZEN', `Command ${command} has been disabled: the agent is in frozen state`);
    }
  }

  async #runHook(isAlive: () => boolean): Promise<number> {
    this.#inHook = true;
    this.#notify();
    await this.#until(() => this.hook.does !== 'hang' || !isAlive()).promise;
    this.#inHook = false;
    if (!isAlive()) throw gone();
    return this.hook.does === 'fail' ? this.hook.status : 0;
  }

  /** One command through the channel: the lock, the sync, the queue, the caller's patience. */
  async #command<T>(timeoutS: number | undefined, run: (isAlive: () => boolean) => Promise<T>): Promise<T> {
    return await this.#lock.run(async () => {
      if (!this.#connected) throw new HostAgentError('AGENT_NOT_CONNECTED', 'QEMU guest agent is not connected');
      const limitS = timeoutS ?? (this.timeoutS === 'default' ? undefined : this.timeoutS);
      const connection = this.#connection;
      const isAlive = (): boolean => connection === this.#connection;
      if (!this.#lastWentWell)
        await this.#inTime(
          limitS ?? syncTimeoutS,
          isAlive,
          this.#until(() => this.works),
        );
      const done = this.#tail.then(async () => {
        await this.#until(() => this.works || !isAlive()).promise;
        if (!isAlive()) throw gone();
        return await run(isAlive);
      });
      this.#tail = done.then(
        () => undefined,
        () => undefined,
      );
      try {
        const answer = await this.#inTime(limitS, isAlive, { promise: done, cancel: () => {} });
        this.#lastWentWell = true;
        return answer;
      } catch (error) {
        this.#lastWentWell = !isHostAgentError(error, 'AGENT_NOT_RESPONDING');
        throw error;
      }
    });
  }

  /** `answer` within `limitS` (undefined: without limit); AGENT_NOT_RESPONDING then, or as soon as the agent's connection is gone. */
  async #inTime<T>(
    limitS: number | undefined,
    isAlive: () => boolean,
    answer: { promise: Promise<T>; cancel: () => void },
  ): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const expired = new Promise<never>((_, reject) => {
      if (limitS === undefined) return;
      timer = setTimeout(() => {
        reject(new HostAgentError('AGENT_NOT_RESPONDING', 'Guest agent not available for now'));
      }, limitS * this.#secondMs);
    });
    const disconnected = this.#until(() => !isAlive());
    try {
      return await Promise.race([
        answer.promise,
        expired,
        disconnected.promise.then(() => {
          throw gone();
        }),
      ]);
    } finally {
      clearTimeout(timer);
      disconnected.cancel();
      answer.cancel();
    }
  }

  /** Resolves when `holds` does. */
  #until(holds: () => boolean): { promise: Promise<void>; cancel: () => void } {
    if (holds()) return { promise: Promise.resolve(), cancel: () => {} };
    let wake = (): void => {};
    const promise = new Promise<void>((resolve) => {
      wake = resolve;
    });
    const waiter = { holds, wake };
    this.#waiters.add(waiter);
    return { promise, cancel: () => void this.#waiters.delete(waiter) };
  }

  #notify(): void {
    for (const waiter of [...this.#waiters]) {
      if (!waiter.holds()) continue;
      this.#waiters.delete(waiter);
      waiter.wake();
    }
  }
}

function gone(): HostAgentError {
  return new HostAgentError('AGENT_NOT_RESPONDING', 'Guest agent disappeared while executing command');
}
