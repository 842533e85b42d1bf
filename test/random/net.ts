import { type ChildProcess, fork } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connectClient } from '@stillpoint/engine/temporal/connection.js';
import { startDevServer } from '@stillpoint/engine/temporal/dev-server.js';
import { registerSearchAttributes } from '@stillpoint/engine/temporal/search-attributes.js';
import { searchAttributes } from '@stillpoint/workflows';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';
import type { Outcome } from './run.js';

export interface NetSettings {
  /** Seeds to run, in this order. */
  seeds: readonly number[];
  /** Processes, each with so many installations: most of a scenario's time is waiting. */
  processes: number;
  lanes: number;
  /** The product's log, one file an installation. */
  logFolder?: string;
  /** Begins no more seeds once one has a finding. */
  untilFound?: boolean;
  onOutcome(outcome: Outcome): void;
  onProcessorTime(seconds: number): void;
}

/** What a process of lanes is told, and tells. */
export type ToLanes =
  | { type: 'open'; name: string; lanes: number; folder: string; address: string; logFolder?: string }
  | { type: 'seed'; seed: number | undefined };
export type FromLanes =
  | { type: 'next' }
  | { type: 'outcome'; outcome: Outcome }
  /** All that it used, at its end. */
  | { type: 'processor time'; seconds: number };

/** Where nothing has to outlive this run: in memory, where the system has such a folder. */
export async function scratchFolder(): Promise<string> {
  const memory = '/dev/shm';
  return mkdtemp(join(existsSync(memory) ? memory : tmpdir(), 'stillpoint-random-'));
}

/** Runs every seed on one Temporal server. A process of lanes that dies is a finding of the seeds that it had. */
export async function castNet(settings: NetSettings): Promise<void> {
  const folder = await scratchFolder();
  const server = await startDevServer({ command: await installedTemporal(), stateFolder: join(folder, 'temporal') });
  const { connection } = await connectClient(server.settings);
  const children = new Set<ChildProcess>();
  const endAll = () => {
    for (const child of children) child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  };
  const stopped = () => process.exit(130);
  process.once('exit', endAll).once('SIGINT', stopped).once('SIGTERM', stopped);
  try {
    await registerSearchAttributes(connection, 'default', Object.values(searchAttributes));
    await connection.close();
    const seeds = [...settings.seeds];
    const next = () => seeds.shift();
    const { onProcessorTime } = settings;
    const onOutcome = (outcome: Outcome) => {
      if (settings.untilFound && outcome.findings.length > 0) seeds.length = 0;
      settings.onOutcome(outcome);
    };
    await Promise.all(
      Array.from({ length: settings.processes }, (_, i) => {
        const child = fork(fileURLToPath(new URL('lanes.js', import.meta.url)));
        children.add(child);
        const { lanes, logFolder } = settings;
        const open: ToLanes = {
          type: 'open',
          name: `lanes-${i}`,
          lanes,
          folder,
          address: server.address,
          ...(logFolder === undefined ? {} : { logFolder }),
        };
        return ofChild(child, open, { next, onOutcome, onProcessorTime }).finally(() => children.delete(child));
      }),
    );
  } finally {
    await server.stop();
    process.removeListener('exit', endAll).removeListener('SIGINT', stopped).removeListener('SIGTERM', stopped);
    endAll();
  }
}

function ofChild(
  child: ChildProcess,
  open: ToLanes,
  {
    next,
    onOutcome,
    onProcessorTime,
  }: { next(): number | undefined } & Pick<NetSettings, 'onOutcome' | 'onProcessorTime'>,
): Promise<void> {
  const underWay = new Set<number>();
  return new Promise((resolve, reject) => {
    child.on('message', (message: FromLanes) => {
      if (message.type === 'outcome') {
        underWay.delete(message.outcome.seed);
        onOutcome(message.outcome);
        return;
      }
      if (message.type === 'processor time') {
        onProcessorTime(message.seconds);
        return;
      }
      const seed = next();
      if (seed !== undefined) underWay.add(seed);
      child.send({ type: 'seed', seed } satisfies ToLanes);
    });
    child.once('error', reject);
    child.once('exit', (code, signal) => {
      for (const seed of underWay) {
        const findings = [`its process ended with ${code ?? signal}`];
        onOutcome({ seed, findings, ms: 0, ends: {}, struck: [], longestFreezeMs: 0 });
      }
      if (code === 0 || underWay.size > 0) resolve();
      else reject(new Error(`a process of lanes ended with ${code ?? signal}`));
    });
    child.send(open);
  });
}
