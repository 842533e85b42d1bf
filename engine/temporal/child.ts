import { spawn } from 'node:child_process';

export interface ChildOptions {
  readonly cwd?: string | undefined;
  readonly env?: NodeJS.ProcessEnv | undefined;
  /** Kills the child when aborted. */
  readonly signal?: AbortSignal | undefined;
  /** Kills the child after so long, ms. */
  readonly timeoutMs?: number | undefined;
  /** Gets every full line the child writes to stderr. */
  readonly onErrorLine?: ((line: string) => void) | undefined;
}

/** A child program that could not be started, ended with a code other than 0, or was killed. */
export class ChildFailed extends Error {
  override readonly name = 'ChildFailed';
}

/**
 * Runs a program to its end and returns what it wrote to stdout.
 *
 * @throws ChildFailed with the last lines of stderr; `cause` is the system's error when it could not be started
 */
export async function runToEnd(command: string, args: readonly string[], options: ChildOptions = {}): Promise<string> {
  const child = spawn(command, args, {
    cwd: options.cwd,
    env: options.env,
    signal: options.signal,
    timeout: options.timeoutMs,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const out: string[] = [];
  child.stdout.setEncoding('utf8').on('data', (text: string) => out.push(text));
  const lastLines: string[] = [];
  let unfinished = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    const lines = (unfinished + text).split('\n');
    unfinished = lines.pop() ?? '';
    for (const line of lines) {
      lastLines.push(line);
      if (lastLines.length > 15) lastLines.shift();
      options.onErrorLine?.(line);
    }
  });
  await new Promise<void>((resolve, reject) => {
    child.once('error', (cause) => reject(new ChildFailed(`${command} did not run: ${cause.message}`, { cause })));
    child.once('close', (code, signal) => {
      if (code === 0) return resolve();
      const end = code === null ? `was ended by ${signal}` : `ended with ${code}`;
      reject(new ChildFailed([`${command} ${args[0] ?? ''} ${end}`, ...lastLines, unfinished].join('\n').trimEnd()));
    });
  });
  return out.join('');
}
