import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { type Client, credentials } from '@grpc/grpc-js';
import { HostAgentClient } from '@stillpoint/proto';

const repository = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const program = join(repository, 'host-agent/dist/main.js');

/** Child processes run the built program: builds what is not built yet. */
export async function buildHostAgent(): Promise<void> {
  await promisify(execFile)(join(repository, 'node_modules/.bin/tsc'), ['-b', 'host-agent'], { cwd: repository });
}

export const webUuid = '6ba7b810-9dad-41d1-80b4-00c04fd430c8';

/** A folder with a configuration of a simulated host, as text for tests to add to. */
export async function hostFolder(
  more = '',
): Promise<{ folder: string; config: string; port: number; remove: () => Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-host-'));
  const config = join(folder, 'host-agent.yaml');
  const port = await freePort();
  await writeFile(
    config,
    `hostName: kvm-01
listen: 127.0.0.1:${port}
insecure: true
stateFolder: ${join(folder, 'state')}
hypervisor: simulated
simulated:
  vms: [{ name: web-1, uuid: ${webUuid}, disks: [{ target: vda }, { target: vdb }] }]
  latencies: { freeze: 0, thaw: 0, snapshot: 0, state: 0, merge: 0 }
${more}`,
  );
  return { folder, config, port, remove: () => rm(folder, { recursive: true, force: true }) };
}

export type LogLine = { msg: string; process: number; [key: string]: unknown };

/** A supervisor that runs, and what it and its worker log. */
export interface Running {
  readonly child: ChildProcess;
  readonly lines: LogLine[];
  /** The first line from number `from` on with this text. */
  logged(msg: string, from?: number): Promise<LogLine>;
  /** Exit code and signal of the supervisor. */
  readonly exited: Promise<{ code: number | null; signal: string | null }>;
}

export function startHostAgent(config: string, env: NodeJS.ProcessEnv = {}): Running {
  const child = spawn(process.execPath, [program, '--config', config], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  });
  const lines: LogLine[] = [];
  const waiting: { msg: string; from: number; resolve: (line: LogLine) => void }[] = [];
  createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (text) => {
    const line = JSON.parse(text) as LogLine;
    lines.push(line);
    for (const { msg, from, resolve } of waiting) if (line.msg === msg && lines.length > from) resolve(line);
  });
  return {
    child,
    lines,
    logged: (msg, from = 0) =>
      new Promise((resolve) => {
        const found = lines.slice(from).find((line) => line.msg === msg);
        if (found === undefined) waiting.push({ msg, from, resolve });
        else resolve(found);
      }),
    exited: new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal }))),
  };
}

/** Runs a command of stillpoint-host-agent to its end. */
export function command(...args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [program, ...args], (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : ((error.code as number | undefined) ?? null), stdout, stderr });
    });
  });
}

export function clientOf(port: number): HostAgentClient {
  return new HostAgentClient(`127.0.0.1:${port}`, credentials.createInsecure());
}

export function ready(client: Client): Promise<void> {
  return new Promise((resolve, reject) => {
    client.waitForReady(Date.now() + 20_000, (error) => (error === undefined ? resolve() : reject(error)));
  });
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });
}
