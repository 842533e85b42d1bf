import { spawn } from 'node:child_process';
import { LabError } from './errors.js';

/** Takes one line of progress, to be shown to the person who waits. */
export type Progress = (line: string) => void;

export interface ProgramOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Milliseconds after which the program is killed and the call fails; default 120 000. */
  readonly timeoutMs?: number;
  /** Exit codes that are answers and not failures; default only 0. */
  readonly accept?: readonly number[];
  /** Called with every line the program prints, while it runs. */
  readonly onLine?: Progress;
}

export interface ProgramResult {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

const OUTPUT_LIMIT = 16 * 1024 * 1024;

/**
 * Runs a host program to its end, without a shell.
 *
 * @throws LabError PROGRAM_FAILED when it cannot be started, runs too long, or ends with an exit code that is not accepted;
 *   the text quotes the end of what it printed.
 */
export async function runProgram(
  program: string,
  args: readonly string[],
  options: ProgramOptions = {},
): Promise<ProgramResult> {
  const timeoutMs = options.timeoutMs ?? 120_000;
  const child = spawn(program, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    // Its messages are parsed and quoted: one language, whatever the caller's is.
    env: { ...process.env, LC_ALL: 'C.UTF-8', ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  let stdout = '';
  let stderr = '';
  let rest = '';
  const feedLines = (text: string) => {
    if (options.onLine === undefined) return;
    const lines = (rest + text).split(/[\r\n]+/);
    rest = lines.pop() ?? '';
    for (const line of lines) if (line.trim() !== '') options.onLine(line);
  };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    if (stdout.length < OUTPUT_LIMIT) stdout += text;
    feedLines(text);
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    if (stderr.length < OUTPUT_LIMIT) stderr += text;
    feedLines(text);
  });
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  try {
    const exitCode = await new Promise<number | string>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) => resolve(code ?? signal ?? 'unknown'));
    });
    if (typeof exitCode === 'number' && (options.accept ?? [0]).includes(exitCode)) return { exitCode, stdout, stderr };
    const why = timedOut ? `did not end within ${timeoutMs} ms` : `ended with ${exitCode}`;
    const said = `${stderr}\n${stdout}`.trim().slice(-2000);
    throw new LabError('PROGRAM_FAILED', `${program} ${args.join(' ')} ${why}${said === '' ? '' : `:\n${said}`}`);
  } catch (error) {
    if (error instanceof LabError) throw error;
    throw new LabError('PROGRAM_FAILED', `${program} could not be started; is it installed and on the PATH?`, {
      cause: error,
    });
  } finally {
    clearTimeout(timer);
  }
}
