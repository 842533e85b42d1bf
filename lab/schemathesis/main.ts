import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { VmView } from '@stillpoint/engine/api/schemas.js';
import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import { startCinderStandIn } from '../cinder-stand-in/stand-in.js';
import { LabError } from '../errors.js';
import { runProgram } from '../programs.js';
import { endSystem, System } from '../system.js';

/**
 * `npm run schemathesis`: Schemathesis (https://schemathesis.io) over the OpenAPI document of a running engine, as a user would run it, with all its phases
 * and all its checks but one. The engine, the host agent with simulated guests, a Cinder stand-in and Temporal's development server are started for it, as in
 * `npm run demo -- --simulated`: accepted requests start real workflows. Further arguments go to `schemathesis run` (say `--max-examples 500 --seed 7`).
 *
 * Afterwards: neither process has died or was restarted, no guest is held or frozen, and neither has grown beyond its limit.
 * Exit codes: schemathesis's own; 3: it was content, and one of ours was not.
 */
const version = '4.32.5';
const vms = ['web-1', 'web-2', 'db-1', 'db-2'];
/** Resident memory at the end, bytes. An engine at work has about 300 MB, of which the Temporal worker takes half. */
const memoryLimits = { engine: 800e6, 'host agent': 400e6 };
/** ms in which the runs that go on at the end must give their VMs back. */
const settleMs = 90_000;

const started = Date.now();
const say = (line: string) => {
  process.stdout.write(`${`${((Date.now() - started) / 1000).toFixed(1)} s`.padStart(8)}  ${line}\n`);
};

const caches = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'stillpoint');
const folder = join(caches, 'schemathesis');
const child = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.abort());

let standIn: Awaited<ReturnType<typeof startCinderStandIn>> | undefined;
let system: System | undefined;
let code = 1;
try {
  code = await run();
} catch (error) {
  if (!child.signal.aborted) process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
} finally {
  await system?.stop({ keepLogs: code !== 0 });
  await standIn?.close();
  if (code !== 0 && system !== undefined) say(`logs: ${join(system.folder, 'logs')}`);
}
process.exit(code);

async function run(): Promise<number> {
  const program = await installed();
  await endSystem(join(folder, 'system'));
  const temporal = await findTemporal({ progress: (line) => say(`Temporal: ${line}`) });
  if (temporal.kind === 'cluster') {
    throw new LabError('PROGRAM_FAILED', 'TEMPORAL_ADDRESS names a cluster: these requests are not for it. Unset it.');
  }
  standIn = await startCinderStandIn();
  system = await System.start({
    folder: join(folder, 'system'),
    hypervisor: { kind: 'simulated', vms: vms.map((name) => vmOf(name, standIn)) },
    engineEnvironment: standIn.environment(),
    temporalCommand: temporal.path,
    progress: say,
  });
  const before = processesOf(system);
  say(`schemathesis ${version} over ${system.api}/openapi.json`);
  const theirs = await schemathesis(program, system);
  if (child.signal.aborted) return 130;
  const ours = await judge(system, before);
  for (const fault of ours) process.stderr.write(`${fault}\n`);
  return theirs === 0 && ours.length > 0 ? 3 : theirs;
}

/** Schemathesis of the pinned version in a Python environment of its own; pip reaches its index as it is configured on this machine. */
async function installed(): Promise<string> {
  const environment = join(folder, `python-${version}`);
  const program = join(environment, 'bin', 'schemathesis');
  if (existsSync(program)) return program;
  say(`installing schemathesis ${version} (a Python environment in ${environment})`);
  await mkdir(folder, { recursive: true });
  try {
    await runProgram('python3', ['-m', 'venv', '--clear', environment]);
    await runProgram(join(environment, 'bin', 'pip'), ['install', '--quiet', `schemathesis==${version}`], {
      timeoutMs: 600_000,
    });
  } catch (cause) {
    await rm(environment, { recursive: true, force: true });
    throw new LabError('PROGRAM_FAILED', `schemathesis cannot be installed. It needs Python 3.10 or newer with venv.`, {
      cause,
    });
  }
  return program;
}

function vmOf(name: string, cinder: typeof standIn) {
  const uuid = randomUUID();
  const device = '/dev/vdb';
  const serial = cinder?.addVolume({ name: `${name}-vdb`, sizeGiB: 1, instance: uuid, device });
  return { name, uuid, disks: [{ target: 'vda' }, { target: 'vdb', kind: 'rbd', ...(serial && { serial }) }] };
}

function schemathesis(program: string, { api, hostName }: System): Promise<number> {
  // This file runs as it is built, below dist/; the hooks are beside its source.
  const hooks = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'schemathesis');
  const args = [
    'run',
    `${api}/openapi.json`,
    ...['--checks', 'all'],
    // A deletion is accepted and then carried out, and a deleted snapshot stays on record, as that: both are meant.
    ...['--exclude-checks', 'use_after_free'],
    // Few texts are host names.
    ...['--suppress-health-check', 'filter_too_much'],
    ...['--request-timeout', '70', '--no-color', '--generation-database', 'none'],
  ];
  const running = spawn(program, [...args, ...process.argv.slice(2)], {
    cwd: folder,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: {
      ...process.env,
      PYTHONPATH: [hooks, process.env.PYTHONPATH].filter(Boolean).join(delimiter),
      SCHEMATHESIS_HOOKS: 'stillpoint_hooks',
      STILLPOINT_SCHEMATHESIS_VMS: vms.join(','),
      STILLPOINT_SCHEMATHESIS_HOST: hostName,
    },
  });
  child.signal.addEventListener('abort', () => running.kill('SIGINT'), { once: true });
  return new Promise((resolve, reject) => {
    running.once('error', reject);
    running.once('exit', (code, signal) => resolve(code ?? (signal ? 1 : 0)));
  });
}

function processesOf(system: System) {
  return { engine: system.engine, supervisor: system.hostAgent, worker: system.hostAgentWorker };
}

/** What is wrong with the system that all this was done to. */
async function judge(system: System, before: ReturnType<typeof processesOf>): Promise<string[]> {
  const faults: string[] = [];
  const after = processesOf(system);
  for (const name of ['engine', 'supervisor', 'worker'] as const) {
    if (before[name]?.pid !== after[name]?.pid) faults.push(`${name}: it died during the run`);
  }
  for (const [name, process] of [
    ['engine', after.engine],
    ['host agent', after.supervisor],
  ] as const) {
    if (process === undefined) continue;
    const bytes = system.residentBytes(process);
    say(`${name}: ${Math.round(bytes / 1e6)} MB resident`);
    if (bytes > memoryLimits[name]) faults.push(`${name}: ${Math.round(bytes / 1e6)} MB resident at the end`);
  }
  const held = await heldVms(system);
  say(held.length === 0 ? 'no VM is held, no guest frozen' : `held: ${held.join(', ')}`);
  if (held.length > 0) faults.push(`still held or frozen: ${held.join(', ')}`);
  return faults;
}

/** VMs that somebody still holds when the runs have had time to end. */
async function heldVms(system: System): Promise<string[]> {
  const deadline = performance.now() + settleMs;
  for (;;) {
    const { body } = await system.request<{ vms: VmView[] }>('GET', '/v1/vms');
    const missing = vms.filter((name) => !body.vms.some((vm) => vm.name === name));
    const held = body.vms.filter((vm) => vm.stale || vm.hold !== null).map((vm) => vm.name);
    if ((held.length === 0 && missing.length === 0) || performance.now() > deadline) return [...held, ...missing];
    await delay(500);
  }
}
