import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { LabError } from './errors.js';
import type { Libvirtd } from './libvirtd.js';

/** One line of the guest's fsfreeze hook: what was called, and at which uptime of the guest. */
export interface HookCall {
  readonly uptimeMs: number;
  readonly call: 'freeze' | 'thaw';
  readonly phase: 'begin' | 'end' | 'fail';
}

/** What the guest's fsfreeze hook is to do; what is left out is switched off. */
export interface HookSettings {
  readonly failFreeze?: boolean;
  /** Seconds the hook takes before the file systems are frozen. */
  readonly freezeSleepS?: number;
  /** Seconds the hook takes after the file systems are thawed. */
  readonly thawSleepS?: number;
}

// The guest's shell reads a command character by character.
const COMMAND_LIMIT = 96 * 1024;

interface Waiting {
  /** Base64 of what it has printed, as far as it has come. */
  output: string;
  readonly resolve: (result: { exitCode: number; output: string }) => void;
  readonly reject: (error: Error) => void;
}

/**
 * The inside of a guest, reached over a virtio port: no network, no guest agent, no libvirt. Commands run side by
 * side; one that hangs (on a frozen file system, say) holds up no other.
 */
export class Guest {
  readonly #name: string;
  readonly #shellSocket: () => string;
  readonly #libvirtd: () => Libvirtd;
  readonly #waiting = new Map<string, Waiting>();
  #socket: Socket | undefined;
  #counter = 0;

  /** @param shellSocket, libvirtd those of the QEMU in which the guest runs now: a migration changes both */
  constructor(name: string, shellSocket: () => string, libvirtd: () => Libvirtd) {
    this.#name = name;
    this.#shellSocket = shellSocket;
    this.#libvirtd = libvirtd;
  }

  /**
   * Runs a command with the guest's shell, its output (both streams) trimmed at the end.
   *
   * @throws LabError GUEST_COMMAND_FAILED when it ends with another code than 0 (text: its output);
   *   GUEST_UNREACHABLE when there is no answer within `timeoutMs`: it runs on in the guest.
   */
  async run(command: string, timeoutMs = 10_000): Promise<string> {
    const { exitCode, output } = await this.#execute(command, timeoutMs);
    if (exitCode !== 0) {
      throw new LabError('GUEST_COMMAND_FAILED', `In the guest '${command}' ended with ${exitCode}: ${output}`);
    }
    return output.trimEnd();
  }

  /**
   * Waits until the guest's shell answers.
   *
   * @throws LabError GUEST_UNREACHABLE.
   */
  async waitForShell(timeoutMs = 90_000): Promise<void> {
    // QEMU keeps the question until the guest has booted and reads it.
    await this.#execute(':', timeoutMs);
  }

  /**
   * Waits until the guest agent answers a ping through libvirt.
   *
   * @throws LabError GUEST_UNREACHABLE.
   */
  async waitForAgent(timeoutMs = 90_000): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      try {
        await this.agentCommand({ execute: 'guest-ping' }, 5);
        return;
      } catch (error) {
        if (performance.now() > deadline) {
          throw new LabError(
            'GUEST_UNREACHABLE',
            `The guest agent of ${this.#name} did not answer in ${timeoutMs} ms`,
            {
              cause: error,
            },
          );
        }
        await delay(100);
      }
    }
  }

  /** Sends one command to the guest agent with virsh and returns its answer; `timeoutS` is libvirt's, in seconds. */
  async agentCommand(command: Readonly<Record<string, unknown>>, timeoutS = 5): Promise<unknown> {
    const args = ['qemu-agent-command', this.#name, '--timeout', String(timeoutS), JSON.stringify(command)];
    const answer: unknown = JSON.parse(await this.#libvirtd().virsh(args, (timeoutS + 40) * 1000));
    return (answer as Record<string, unknown>).return;
  }

  /** The mount points whose file systems the guest's kernel holds frozen now; neither agent nor libvirt is asked. */
  async frozenFileSystems(): Promise<string[]> {
    return (await this.run('lab-frozen')).split('\n').filter(Boolean);
  }

  /** True while the guest's kernel holds any file system frozen. */
  async isFrozen(): Promise<boolean> {
    return (await this.frozenFileSystems()).length > 0;
  }

  /**
   * Waits until writes to all file systems go through: at once, or when the guest is thawed. It is the guest that waits.
   *
   * @throws LabError GUEST_UNREACHABLE when they do not within `timeoutMs`.
   */
  async waitUntilThawed(timeoutMs: number): Promise<void> {
    await this.run(
      'while read -r d m r; do case $m in /|/data|/net|/mnt/*) echo >$m/.lab-thawed;; esac; done </proc/mounts',
      timeoutMs,
    );
  }

  /** Waits until the guest's kernel holds a file system frozen. @throws LabError GUEST_UNREACHABLE after `timeoutMs`. */
  async waitUntilFrozen(timeoutMs: number): Promise<void> {
    await this.run('while [ -z "$(lab-frozen)" ]; do usleep 10000; done', timeoutMs);
  }

  /** The number the writer has reached, read from a tmpfs: it stands still while the guest is frozen. */
  async writerNumber(): Promise<number> {
    return Number(await this.run('cat /run/writer/number'));
  }

  /** Switches the fsfreeze hook; until the next boot. */
  async setHook(settings: HookSettings): Promise<void> {
    const lines = ['rm -f /run/hook/freeze-fail /run/hook/freeze-sleep /run/hook/thaw-sleep'];
    if (settings.failFreeze === true) lines.push('touch /run/hook/freeze-fail');
    if (settings.freezeSleepS !== undefined) lines.push(`echo ${settings.freezeSleepS} >/run/hook/freeze-sleep`);
    if (settings.thawSleepS !== undefined) lines.push(`echo ${settings.thawSleepS} >/run/hook/thaw-sleep`);
    await this.run(lines.join('; '));
  }

  /** The writer rests that long after each round, s: 0.1 after every boot, which takes an emulating host a tenth of a processor. */
  async setWriterPause(seconds: number): Promise<void> {
    await this.run(`echo ${seconds} >/run/writer/pause`);
  }

  /** All calls of the fsfreeze hook since the boot. */
  async hookCalls(): Promise<HookCall[]> {
    const text = await this.run('cat /run/hook/log 2>/dev/null || :');
    return [...text.matchAll(/^([\d.]+) (freeze|thaw) (begin|end|fail)$/gm)].map(([, uptime, call, phase]) => ({
      uptimeMs: Math.round(Number(uptime) * 1000),
      call: call as HookCall['call'],
      phase: phase as HookCall['phase'],
    }));
  }

  /** Kills the guest agent (SIGKILL). It comes back by itself, unless `respawn` is false: then after {@link startAgent}. */
  async killAgent(options: { readonly respawn?: boolean } = {}): Promise<void> {
    const inhibit = options.respawn === false ? 'touch /run/no-ga' : ':';
    await this.run(
      `${inhibit}; pid=$(pidof qemu-ga); kill -9 $pid; while [ -d /proc/\${pid%% *} ]; do usleep 10000; done`,
    );
  }

  /** Lets the guest agent start (again) after `killAgent({ respawn: false })`. */
  async startAgent(): Promise<void> {
    await this.run('rm -f /run/no-ga');
  }

  /** Stops the guest agent in its tracks (SIGSTOP): the channel stays open, and nothing answers. */
  async stopAgent(): Promise<void> {
    await this.run('kill -STOP $(pidof qemu-ga)');
  }

  /** Lets the guest agent go on after {@link stopAgent}. */
  async contAgent(): Promise<void> {
    await this.run('kill -CONT $(pidof qemu-ga)');
  }

  /** Closes the connection; the next command opens it again. */
  disconnect(): void {
    this.#socket?.destroy();
    this.#socket = undefined;
  }

  async #execute(command: string, timeoutMs: number): Promise<{ exitCode: number; output: string }> {
    const body = escaped(command);
    if (body.length > COMMAND_LIMIT) throw new LabError('GUEST_COMMAND_FAILED', 'The command is too long');
    const socket = await this.#connection();
    this.#counter += 1;
    const id = `${process.pid}-${Date.now()}-${this.#counter}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(
          new LabError(
            'GUEST_UNREACHABLE',
            `No answer from ${this.#name} to '${command}' in ${timeoutMs} ms (it goes on)`,
          ),
        );
      }, timeoutMs);
      this.#waiting.set(id, {
        output: '',
        resolve: (result) => {
          clearTimeout(timer);
          resolve(result);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      socket.write(`run ${id} ${body}\n`);
    });
  }

  async #connection(): Promise<Socket> {
    if (this.#socket !== undefined && !this.#socket.destroyed) return this.#socket;
    const socket = connect(this.#shellSocket());
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', (error) =>
        reject(new LabError('GUEST_UNREACHABLE', `${this.#name} has no shell: does the VM run?`, { cause: error })),
      );
    });
    this.#socket = socket;
    let rest = '';
    socket.on('data', (bytes: Buffer) => {
      const lines = (rest + bytes.toString('latin1')).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) this.#hear(line);
    });
    socket.on('error', () => socket.destroy());
    socket.once('close', () => {
      const error = new LabError('GUEST_UNREACHABLE', `The shell of ${this.#name} was closed: the VM has ended`);
      for (const waiting of this.#waiting.values()) waiting.reject(error);
      this.#waiting.clear();
    });
    return socket;
  }

  #hear(line: string): void {
    const [, kind, id = '', rest = ''] = line.match(/([+@])(\S+) ([A-Za-z0-9+/=]+)$/) ?? [];
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return;
    if (kind === '+') {
      waiting.output += rest;
      return;
    }
    this.#waiting.delete(id);
    waiting.resolve({ exitCode: Number(rest), output: Buffer.from(waiting.output, 'base64').toString('utf8') });
  }
}

/** The text as printf's %b takes it, without blanks and line ends. */
function escaped(text: string): string {
  return [...Buffer.from(text)]
    .map((byte) => {
      const character = String.fromCharCode(byte);
      return /[A-Za-z0-9./_-]/.test(character) ? character : `\\0${byte.toString(8).padStart(3, '0')}`;
    })
    .join('');
}
