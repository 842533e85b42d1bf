import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { mkdir, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { Connection } from '@temporalio/client';

import { isAlive } from './cache.js';
import { runToEnd } from './child.js';
import { plainSettings, type TemporalSettings } from './connection.js';
import { TemporalError } from './errors.js';

export interface DevServerOptions {
  /** Temporal's command, as found by `findTemporal`. */
  readonly command: string;
  /** Its database and log are kept here, over restarts. One server at a time. */
  readonly stateFolder: string;
  /** Port of the gRPC service on 127.0.0.1. Default: a free one. */
  readonly port?: number;
  /** Port of the web UI on 127.0.0.1. Default: a free one. */
  readonly uiPort?: number;
  /** How long it may take to answer, ms. Default 60 000: the first start on a slow disk takes seconds. */
  readonly startTimeoutMs?: number;
  /** How long it may take to end by itself before it is killed, and how long a dead owner's server is waited for, ms. Default 10 000. */
  readonly stopTimeoutMs?: number;
}

/** A development server that answers. */
export interface DevServer {
  readonly pid: number;
  /** host:port of the gRPC service. */
  readonly address: string;
  readonly uiUrl: string;
  readonly logFile: string;
  readonly settings: TemporalSettings;
  /** Resolves with a sentence when the server's process has ended, for whatever reason. */
  readonly ended: Promise<string>;
  /** Ends it by its process id and waits until it is gone. Its state stays. */
  stop(): Promise<void>;
}

/**
 * Settings without which start-dev is slow: with its single history shard the default of 20 polls/s makes every
 * dispatch of a task wait 50 ms, and SQLite's own defaults cost half of the throughput. WAL with `normal` is still
 * safe against a killed process.
 */
const quickSettings = [
  ['--dynamic-config-value', 'history.transferProcessorMaxPollRPS=2000'],
  ['--dynamic-config-value', 'history.timerProcessorMaxPollRPS=2000'],
  ['--dynamic-config-value', 'system.enableActivityEagerExecution=true'],
  ['--sqlite-pragma', 'journal_mode=wal'],
  ['--sqlite-pragma', 'synchronous=normal'],
].flat();

/**
 * Starts Temporal's development server and waits until it answers.
 *
 * It runs in a process group of its own, so that Ctrl-C in a terminal leaves its end to us, and it ends when this
 * process does, even by kill -9.
 * @throws TemporalError TEMPORAL_STATE_IN_USE, TEMPORAL_PORT_IN_USE, TEMPORAL_DEV_SERVER_FAILED with the end of its log
 */
export async function startDevServer(options: DevServerOptions): Promise<DevServer> {
  await mkdir(options.stateFolder, { recursive: true });
  await claimState(options);
  const portsAreGiven = options.port !== undefined && options.uiPort !== undefined;
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await startOnce(options);
    } catch (error) {
      // A free port can be taken by someone else between our look and the server's start.
      const portLost = error instanceof TemporalError && error.code === 'TEMPORAL_PORT_IN_USE';
      if (!portLost || portsAreGiven || attempt === 3) throw error;
    }
  }
}

async function startOnce(options: DevServerOptions): Promise<DevServer> {
  const [freePort, freeUiPort] = await freePorts();
  const port = options.port ?? freePort;
  const uiPort = options.uiPort ?? freeUiPort;
  const database = databaseFile(options);
  const logFile = join(options.stateFolder, 'temporal-server.log');
  const logStart = await sizeOf(logFile);

  const child = spawnLogged(options.command, logFile, [
    ...['server', 'start-dev', '--ip', '127.0.0.1', '--port', `${port}`, '--ui-port', `${uiPort}`],
    ...['--db-filename', database, '--log-level', 'warn', '--log-format', 'json'],
    ...quickSettings,
  ]);
  const ended = endOf(child);
  if (child.pid === undefined) {
    throw new TemporalError('TEMPORAL_DEV_SERVER_FAILED', `${options.command} did not start: ${await ended}`);
  }
  const pid = child.pid;
  const guard = endWithUs(pid);
  void ended.then(() => guard.kill('SIGKILL'));
  await writeFile(pidFile(options), `${pid}\n`);

  const address = `127.0.0.1:${port}`;
  const stop = (): Promise<void> => stopChild(child, ended, options);
  const startTimeoutMs = options.startTimeoutMs ?? 60_000;
  const given = new AbortController();
  try {
    const answer = untilAnswering(address, given.signal).then(() => 'answers' as const);
    const first = await Promise.race([
      answer,
      ended.then((how) => ({ how })),
      delay(startTimeoutMs, 'late' as const, { signal: given.signal }),
    ]);
    if (first === 'late') {
      throw await failure(`it did not answer on ${address} within ${startTimeoutMs / 1000} s`, logFile, logStart);
    }
    if (first !== 'answers') throw await failure(first.how, logFile, logStart);
  } catch (error) {
    await stop();
    throw error;
  } finally {
    given.abort();
  }
  return { pid, address, uiUrl: `http://127.0.0.1:${uiPort}`, logFile, settings: plainSettings(address), ended, stop };
}

function spawnLogged(command: string, logFile: string, args: readonly string[]): ChildProcess {
  const log = openSync(logFile, 'a');
  try {
    return spawn(command, args, { detached: true, stdio: ['ignore', log, log] });
  } finally {
    closeSync(log);
  }
}

function endOf(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (code, signal) =>
      resolve(code === null ? `it was ended by ${signal}` : `it ended with ${code}`),
    );
  });
}

/**
 * Ends the server when this process is gone: the guard's stdin is a pipe that only we hold, and the system closes it
 * however we die.
 */
function endWithUs(pid: number): ChildProcess {
  const guard = spawn('sh', ['-c', 'read -r _; kill "$1"', 'sh', `${pid}`], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  // Neither the guard nor its pipe is a reason for this process to stay.
  guard.unref();
  const pipe = guard.stdin as (typeof guard.stdin & { unref?: () => void }) | null;
  pipe?.unref?.();
  return guard;
}

async function stopChild(child: ChildProcess, ended: Promise<string>, options: DevServerOptions): Promise<void> {
  const over = new AbortController();
  child.kill('SIGTERM');
  const late = delay(options.stopTimeoutMs ?? 10_000, 'late' as const, { signal: over.signal }).catch(
    () => 'over' as const,
  );
  if ((await Promise.race([ended, late])) === 'late') {
    child.kill('SIGKILL');
    await ended;
  }
  over.abort();
  await rm(pidFile(options), { force: true });
}

/** The port accepts, the frontend is healthy and the namespace is there: a client's first call will work. */
async function untilAnswering(address: string, signal: AbortSignal): Promise<void> {
  const connection = Connection.lazy({
    address,
    // gRPC's own second of patience before it tries again is longer than the server takes to start.
    channelArgs: { 'grpc.initial_reconnect_backoff_ms': 50, 'grpc.max_reconnect_backoff_ms': 50 },
  });
  try {
    for (;;) {
      try {
        await connection.withDeadline(Date.now() + 1000, () =>
          connection.workflowService.describeNamespace({ namespace: 'default' }),
        );
        return;
      } catch {
        signal.throwIfAborted();
        await delay(50, undefined, { signal });
      }
    }
  } finally {
    await connection.close();
  }
}

async function failure(how: string, logFile: string, logStart: number): Promise<TemporalError> {
  const log = await readFrom(logFile, logStart);
  if (/address already in use/i.test(log)) {
    return new TemporalError(
      'TEMPORAL_PORT_IN_USE',
      `Temporal's development server found a port of its own in use. Choose other ports, or end what uses them:\n${tail(log)}`,
    );
  }
  return new TemporalError(
    'TEMPORAL_DEV_SERVER_FAILED',
    `Temporal's development server did not start: ${how}. The end of ${logFile}:\n${tail(log)}`,
  );
}

/**
 * Refuses a state folder whose database another server has open: two of them would write over each other.
 *
 * The server of an owner that was just killed is on its way out, so it is waited for.
 */
async function claimState(options: DevServerOptions): Promise<void> {
  const pid = Number.parseInt(await readFile(pidFile(options), 'utf8').catch(() => ''), 10);
  const deadline = performance.now() + (options.stopTimeoutMs ?? 10_000);
  while (await serves(pid, databaseFile(options))) {
    if (performance.now() > deadline) {
      throw new TemporalError(
        'TEMPORAL_STATE_IN_USE',
        `Temporal's development server ${pid} already uses ${options.stateFolder}. ` +
          `Use that one, choose another state folder, or end it: kill ${pid}`,
      );
    }
    await delay(100);
  }
}

/** Whether that process is a server on that database, and not another program that got an old process id. */
async function serves(pid: number, database: string): Promise<boolean> {
  if (!isAlive(pid)) return false;
  const commandLine =
    process.platform === 'linux'
      ? await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
      : await runToEnd('ps', ['-o', 'args=', '-p', `${pid}`]).catch(() => '');
  return commandLine.includes(database);
}

function databaseFile(options: DevServerOptions): string {
  return join(options.stateFolder, 'temporal.db');
}

function pidFile(options: DevServerOptions): string {
  return join(options.stateFolder, 'temporal-server.pid');
}

/** Two different ports of 127.0.0.1 that are free now. */
async function freePorts(): Promise<[number, number]> {
  const probes = [createServer(), createServer()] as const;
  const ports = await Promise.all(
    probes.map(
      (probe) =>
        new Promise<number>((resolve, reject) => {
          probe.once('error', reject);
          probe.listen(0, '127.0.0.1', () => resolve((probe.address() as { port: number }).port));
        }),
    ),
  );
  await Promise.all(probes.map((probe) => new Promise((resolve) => probe.close(resolve))));
  return ports as [number, number];
}

async function sizeOf(file: string): Promise<number> {
  const found = await stat(file).catch(() => undefined);
  return found?.size ?? 0;
}

async function readFrom(file: string, start: number): Promise<string> {
  const handle = await open(file).catch(() => undefined);
  if (!handle) return '';
  try {
    const { size } = await handle.stat();
    // The end is what matters; a server that failed for minutes may have written megabytes.
    const from = Math.max(start, size - 65_536);
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(Math.max(0, size - from)), 0, size - from, from);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await handle.close();
  }
}

function tail(log: string): string {
  return log.trimEnd().split('\n').slice(-10).join('\n');
}
