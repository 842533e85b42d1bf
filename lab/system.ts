import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { SnapshotView, VmView } from '@stillpoint/engine/api/schemas.js';
import { type DevServer, startDevServer } from '@stillpoint/engine/temporal/dev-server.js';
import { makeCa, makeEngineCertificate, makeHostCertificate } from '@stillpoint/host-agent/certs.js';
import { LabError } from './errors.js';
import {
  endProcess,
  identifyProcess,
  isRunning,
  type LabProcess,
  type ProcessIdentity,
  ProcessTable,
  signalProcess,
} from './processes.js';
import { type ProgramResult, type Progress, runProgram } from './programs.js';

/** What the host agent drives: a libvirt, or guests in its own memory. */
export type SystemHypervisor =
  | {
      readonly kind: 'libvirt';
      readonly socket: string;
      /** Folders in which disks may lie. */
      readonly imageFolders: readonly string[];
    }
  | {
      readonly kind: 'simulated';
      readonly vms: readonly { name: string; uuid?: string; disks: { target: string; kind?: string }[] }[];
    };

export interface SystemOptions {
  /** Holds all that this system makes; emptied at the start and removed at the end. */
  readonly folder: string;
  readonly hypervisor: SystemHypervisor;
  /** Temporal's command-line program. */
  readonly temporalCommand: string;
  readonly progress?: Progress;
  /** Further keys of host-agent.yaml and engine.yaml, over those that the lab sets. */
  readonly hostAgentConfig?: Record<string, unknown>;
  readonly engineConfig?: Record<string, unknown>;
  /** Further variables of the engine's environment: the cloud, in the OS_* that every OpenStack tool reads. */
  readonly engineEnvironment?: Readonly<Record<string, string>>;
  /** Puts something between the engine and the host agent, which serves at this address, and answers where the engine is to look for it. */
  readonly hostLink?: (hostAgentAddress: string) => Promise<string>;
}

/** `Body` is the route's answer as the caller knows it; the API's own tests hold it against the OpenAPI document. */
export interface ApiAnswer<Body> {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Body;
}

const HOST = 'lab-host';

/**
 * The whole system on one machine, as processes of their own: Temporal's development server, a host agent (supervisor and worker) and an engine, talking
 * gRPC over mutual TLS. The demo, the bench and the tests that kill processes use it.
 */
export class System {
  readonly folder: string;
  readonly hostName = HOST;
  readonly api: string;
  readonly hostAgentAddress: string;
  temporal: DevServer;
  readonly #options: SystemOptions;
  readonly #processes: ProcessTable;
  readonly #ports: Ports;

  private constructor(options: SystemOptions, ports: Ports, temporal: DevServer, processes: ProcessTable) {
    this.folder = options.folder;
    this.api = `http://127.0.0.1:${ports.api}`;
    this.hostAgentAddress = `127.0.0.1:${ports.hostAgent}`;
    this.temporal = temporal;
    this.#options = options;
    this.#ports = ports;
    this.#processes = processes;
  }

  /** Starts everything and returns when the engine is ready and knows the host. Throws LabError; nothing is left running then. */
  static async start(options: SystemOptions): Promise<System> {
    const progress = options.progress ?? (() => undefined);
    await endSystem(options.folder);
    await mkdir(join(options.folder, 'logs'), { recursive: true, mode: 0o700 });
    const [api, hostAgent] = await freePorts();
    const processes = new ProcessTable(processFile(options.folder));
    const tls = join(options.folder, 'tls');
    await makeCa(tls);
    await makeEngineCertificate(tls);
    await makeHostCertificate(tls, HOST);

    progress('Temporal: starting its development server');
    const temporal = await startDevServer({
      command: options.temporalCommand,
      stateFolder: join(options.folder, 'temporal'),
    });
    const system = new System(options, { api, hostAgent }, temporal, processes);
    try {
      await system.#writeConfigurations();
      progress('host agent and engine: starting');
      system.startHostAgent();
      system.startEngine();
      await system.waitUntilReady();
      const address = (await options.hostLink?.(system.hostAgentAddress)) ?? system.hostAgentAddress;
      const added = await system.request('POST', '/v1/hosts', { name: HOST, address });
      if (added.status !== 201)
        throw new LabError('PROGRAM_FAILED', `The host was not added: ${JSON.stringify(added.body)}`);
      await system.waitForHost();
      return system;
    } catch (error) {
      await system.stop({ keepLogs: true });
      throw error;
    }
  }

  /** One request to the REST API, JSON in and out. */
  async request<Body = unknown>(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<ApiAnswer<Body>> {
    const answer = await fetch(`${this.api}${path}`, {
      method,
      headers: { ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(60_000),
    });
    const text = await answer.text();
    return {
      status: answer.status,
      headers: answer.headers,
      body: (text === '' ? undefined : JSON.parse(text)) as Body,
    };
  }

  /** Waits until the engine answers /readyz, or throws with the end of its log. */
  async waitUntilReady(timeoutMs = 60_000): Promise<void> {
    await this.#until(`the engine is not ready`, timeoutMs, async () => {
      const engine = this.engine;
      if (engine === undefined) throw new LabError('PROGRAM_FAILED', `The engine ended:\n${this.logTail('engine')}`);
      return (await this.request('GET', '/readyz')).status === 200;
    });
  }

  /** Waits until the host agent answers the engine. */
  async waitForHost(timeoutMs = 30_000): Promise<void> {
    await this.#until('the host agent does not answer the engine', timeoutMs, async () => {
      const { status, body } = await this.request<{ vms: VmView[] }>('GET', '/v1/vms');
      return status === 200 && body.vms[0]?.stale === false;
    });
  }

  /** Waits until a snapshot's run has ended and answers what the API says of it. */
  async waitForSnapshot(id: string, timeoutMs = 120_000): Promise<SnapshotView> {
    let seen: SnapshotView | undefined;
    await this.#until(`snapshot ${id} has not ended`, timeoutMs, async () => {
      const { status, body } = await this.request<SnapshotView>('GET', `/v1/snapshots/${id}?wait=20`);
      if (status !== 200 || !ended.has(body.state)) return false;
      seen = body;
      return true;
    });
    if (seen === undefined) throw new LabError('PROGRAM_FAILED', `snapshot ${id} has no end`);
    return seen;
  }

  /** Asks for a snapshot and answers its id. */
  async createSnapshot(vm: string, body: Record<string, unknown> = {}): Promise<string> {
    const answer = await this.request<{ id: string }>('POST', `/v1/vms/${vm}/snapshots`, body, {
      'idempotency-key': randomUUID(),
    });
    if (answer.status !== 202)
      throw new LabError('PROGRAM_FAILED', `No snapshot was begun: ${JSON.stringify(answer.body)}`);
    return answer.body.id;
  }

  /** Deletes a snapshot and waits for it. */
  async deleteSnapshot(id: string): Promise<void> {
    const answer = await this.request('DELETE', `/v1/snapshots/${id}`);
    if (answer.status !== 202)
      throw new LabError('PROGRAM_FAILED', `No deletion was begun: ${JSON.stringify(answer.body)}`);
    await this.#until(`snapshot ${id} is not deleted`, 120_000, async () => {
      const { status, body } = await this.request<SnapshotView>('GET', `/v1/snapshots/${id}?wait=20`);
      if (status === 200 && body.state !== 'deleting' && body.state !== 'deleted') {
        throw new LabError('PROGRAM_FAILED', `Snapshot ${id} was not deleted: ${JSON.stringify(body)}`);
      }
      return status === 404 || body.state === 'deleted';
    });
  }

  get engine(): LabProcess | undefined {
    return this.#processes.find('engine');
  }

  /** The supervisor of the host agent. */
  get hostAgent(): LabProcess | undefined {
    return this.#processes.find('host agent');
  }

  /** The worker under the supervisor, where it runs. */
  get hostAgentWorker(): ProcessIdentity | undefined {
    const supervisor = this.hostAgent;
    return supervisor === undefined ? undefined : children(supervisor.pid)[0];
  }

  startEngine(): LabProcess {
    return this.#start('engine', 'engine', 'engine.yaml', {
      TEMPORAL_ADDRESS: this.temporal.address,
      TEMPORAL_NAMESPACE: 'default',
      ...this.#options.engineEnvironment,
    });
  }

  startHostAgent(): LabProcess {
    return this.#start('host agent', 'host-agent', 'host-agent.yaml', {});
  }

  /** kill -9 of the engine. */
  async killEngine(): Promise<void> {
    await this.#processes.end('engine', 0);
  }

  /** kill -9 of the host agent, supervisor first: nothing restarts it but `startHostAgent`. */
  async killHostAgent(): Promise<void> {
    const supervisor = this.hostAgent;
    const worker = this.hostAgentWorker;
    if (supervisor !== undefined) signalProcess(supervisor, 'SIGKILL');
    if (worker !== undefined) await endProcess(worker, 0);
    await this.#processes.end('host agent', 0);
  }

  /** kill -9 of the host agent's worker: its supervisor restarts it. */
  killHostAgentWorker(): ProcessIdentity {
    const worker = this.hostAgentWorker;
    if (worker === undefined) throw new LabError('PROGRAM_FAILED', 'The host agent has no worker now');
    signalProcess(worker, 'SIGKILL');
    return worker;
  }

  /** kill -9 of Temporal's server; its database stays. */
  async killTemporal(): Promise<void> {
    const { pid, ended } = this.temporal;
    process.kill(pid, 'SIGKILL');
    await ended;
  }

  /** Starts Temporal's server again after {@link killTemporal}, where everybody looks for it. */
  async startTemporal(): Promise<void> {
    const port = (url: string) => Number(url.slice(url.lastIndexOf(':') + 1));
    this.temporal = await startDevServer({
      command: this.#options.temporalCommand,
      stateFolder: join(this.folder, 'temporal'),
      port: port(this.temporal.address),
      uiPort: port(this.temporal.uiUrl),
    });
  }

  logFile(name: 'engine' | 'host agent'): string {
    return join(this.folder, 'logs', `${name.replace(' ', '-')}.log`);
  }

  /** The end of a program's log, for errors. */
  logTail(name: 'engine' | 'host agent', lines = 15): string {
    const file = this.logFile(name);
    return existsSync(file) ? readFileSync(file, 'utf8').trimEnd().split('\n').slice(-lines).join('\n') : '(no log)';
  }

  /** Resident memory of a process and its children, bytes. */
  residentBytes(process: ProcessIdentity): number {
    return [process, ...children(process.pid)].reduce((sum, { pid }) => sum + residentBytes(pid), 0);
  }

  /** Runs the command `stillpoint` against this engine to its end, whatever its exit code. */
  async stillpoint(...args: string[]): Promise<ProgramResult> {
    const program = join(repositoryRoot(), 'engine', 'dist', 'cli', 'main.js');
    const anyExitCode = Array.from({ length: 256 }, (_, code) => code);
    return runProgram(process.execPath, [program, ...args], { env: this.cliEnvironment, accept: anyExitCode });
  }

  /** What `stillpoint` needs in its environment to reach this engine. */
  get cliEnvironment(): Record<string, string> {
    return { STILLPOINT_API: this.api };
  }

  /** Ends every process; SIGTERM first, so that each ends as in production. Removes the folder. */
  async stop({ keepLogs = false } = {}): Promise<void> {
    await this.#processes.end('engine', 20_000);
    await this.#processes.end('host agent', 20_000);
    await this.temporal.stop();
    if (!keepLogs) await rm(this.folder, { recursive: true, force: true });
  }

  #start(
    name: 'engine' | 'host agent',
    workspace: 'engine' | 'host-agent',
    config: string,
    env: Record<string, string>,
  ): LabProcess {
    const path = join(repositoryRoot(), workspace, 'dist', 'main.js');
    // Nothing of the caller's own Stillpoint, Temporal or cloud may leak into this one.
    const environment = Object.entries({ ...withoutOurs(process.env), ...env }).map(
      ([key, value]) => `${key}=${value}`,
    );
    const args = ['-i', ...environment, process.execPath, path, '--config', join(this.folder, config)];
    return this.#processes.start(name, 'env', args, this.logFile(name));
  }

  async #writeConfigurations(): Promise<void> {
    const { folder } = this.#options;
    const at = (...names: string[]) => join(folder, ...names);
    const hostAgent = {
      hostName: HOST,
      listen: this.hostAgentAddress,
      stateFolder: at('host-agent'),
      tls: { ca: at('tls', 'ca.pem'), certificate: at('tls', `${HOST}.pem`), key: at('tls', `${HOST}-key.pem`) },
      ...hypervisorKeys(this.#options.hypervisor),
      ...this.#options.hostAgentConfig,
    };
    const engine = {
      listen: `127.0.0.1:${this.#ports.api}`,
      stateFolder: at('engine'),
      hosts: {
        tls: { ca: at('tls', 'ca.pem'), certificate: at('tls', 'engine.pem'), key: at('tls', 'engine-key.pem') },
      },
      ...this.#options.engineConfig,
    };
    // JSON is YAML.
    await writeFile(at('host-agent.yaml'), JSON.stringify(hostAgent, null, 2));
    await writeFile(at('engine.yaml'), JSON.stringify(engine, null, 2));
  }

  async #until(what: string, timeoutMs: number, done: () => Promise<boolean>): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    let last: unknown;
    for (;;) {
      try {
        if (await done()) return;
        last = undefined;
      } catch (error) {
        if (error instanceof LabError) throw error;
        last = error;
      }
      if (performance.now() > deadline) {
        const tails = `engine:\n${this.logTail('engine')}\nhost agent:\n${this.logTail('host agent')}`;
        throw new LabError('PROGRAM_FAILED', `${what} after ${timeoutMs / 1000} s.\n${tails}`, { cause: last });
      }
      await delay(50);
    }
  }
}

/** Ends what an earlier run of a system has left in this folder, and removes it. */
export async function endSystem(folder: string): Promise<void> {
  const processes = new ProcessTable(processFile(folder));
  for (const entry of processes.list()) {
    if (isRunning(entry)) for (const child of children(entry.pid)) await endProcess(child, 0);
    await processes.end(entry.name, 0);
  }
  await rm(folder, { recursive: true, force: true });
}

/** The states in which a snapshot's run is over. */
const ended: ReadonlySet<string> = new Set(['complete', 'failed', 'cancelled', 'cleanup-pending', 'deleted']);

interface Ports {
  readonly api: number;
  readonly hostAgent: number;
}

const processFile = (folder: string) => join(folder, 'processes.json');

function hypervisorKeys(hypervisor: SystemHypervisor): Record<string, unknown> {
  if (hypervisor.kind === 'simulated') return { hypervisor: 'simulated', simulated: { vms: hypervisor.vms } };
  return {
    hypervisor: 'libvirt',
    libvirt: { socket: hypervisor.socket },
    disks: { locations: hypervisor.imageFolders, overlayFolder: hypervisor.imageFolders[0] },
  };
}

function withoutOurs(env: NodeJS.ProcessEnv): Record<string, string> {
  const kept: Record<string, string> = {};
  for (const [key, value] of Object.entries(env)) {
    if (value !== undefined && !/^(STILLPOINT_|TEMPORAL_|OS_)/.test(key)) kept[key] = value;
  }
  return kept;
}

/** The programs run as they are built, also where this file runs from its source (vitest). */
function repositoryRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package-lock.json'))) folder = dirname(folder);
  return folder;
}

function children(pid: number): ProcessIdentity[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
      .split(' ')
      .map((text) => identifyProcess(Number(text)))
      .filter((identity) => identity !== undefined);
  } catch {
    return [];
  }
}

function residentBytes(pid: number): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(match?.[1] ?? 0) * 1024;
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
  return [ports[0] as number, ports[1] as number];
}
