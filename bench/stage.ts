import { execFileSync } from 'node:child_process';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import { defaultStateFolder, Lab } from '@stillpoint/lab/lab.js';
import type { Progress } from '@stillpoint/lab/programs.js';
import { attachStorage, prepareStorage, type Storage, startStorage } from '@stillpoint/lab/storage/storage.js';
import { System } from '@stillpoint/lab/system.js';

/** The lab's VM and the whole system over it. */
export interface Stage {
  readonly lab: Lab;
  readonly system: System;
  /** What the program `temporal` says of its version. */
  readonly temporalVersion: string;
  end(): Promise<void>;
}

/** A stage whose VM has volumes on Ceph beside its two local disks. */
export interface CephStage extends Stage {
  readonly storage: Storage;
}

export interface StageOptions {
  /** Names its folders: two stages of different names can be up at the same time. */
  readonly name: string;
  /** Ends the bringing up: it throws then, and nothing is left. */
  readonly signal: AbortSignal;
  readonly say: Progress;
}

const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'stillpoint');

/** The VM with local disks, and a network disk that is left out. */
export async function localStage(options: StageOptions): Promise<Stage> {
  return bringUp(options, undefined, 0);
}

/**
 * The VM with two local disks and so many volumes, from vdc on.
 *
 * @param storageFolder of a storage that runs and goes on to run; without it one is started, and ended with the stage.
 */
export async function cephStage(
  options: StageOptions & { readonly volumes: number; readonly storageFolder: string | undefined },
): Promise<CephStage> {
  const { name, storageFolder, volumes, signal, say } = options;
  const cacheFolder = join(defaultStateFolder(), 'cache');
  await prepareStorage(cacheFolder, say);
  const own = { folder: join(cache, `${name}-storage`), cacheFolder, keystone: true, monitor: 'fast' } as const;
  const storage =
    storageFolder === undefined ? await startStorage({ ...own, signal, progress: say }) : attachStorage(storageFolder);
  const pace = (await storage.monitorOption('paxos_propose_interval')) < 1 ? 'fast' : 'stock';
  const giveBack = () => (storageFolder === undefined ? storage.stop() : storage.setMonitor(pace));
  try {
    const stage = await bringUp(options, storage, volumes);
    const end = async () => {
      await stage.end();
      await giveBack();
    };
    return { ...stage, storage, end };
  } catch (error) {
    await giveBack();
    throw error;
  }
}

async function bringUp(options: StageOptions, storage: Storage | undefined, volumes: number): Promise<Stage> {
  const { name, signal, say } = options;
  const { TEMPORAL_ADDRESS: _address, TEMPORAL_PROFILE: _profile, ...env } = process.env;
  const temporal = await findTemporal({ env, progress: say });
  if (temporal.kind !== 'command')
    throw new Error('A Temporal server of its own is started, whatever cluster there is');
  signal.throwIfAborted();
  const stateFolder = join(cache, `${name}-lab`);
  const lab = await Lab.up({
    stateFolder,
    progress: say,
    ...(storage === undefined ? {} : { ceph: { storage, volumes } }),
  });
  try {
    signal.throwIfAborted();
    const system = await System.start({
      folder: join(cache, `${name}-system`),
      hypervisor: { kind: 'libvirt', socket: lab.libvirtSocket, imageFolders: [lab.imagesFolder] },
      temporalCommand: temporal.path,
      engineEnvironment: storage?.environment('member') ?? {},
      progress: say,
    });
    const end = async () => {
      await system.stop();
      await lab.down();
    };
    return { lab, system, temporalVersion: versionOf(temporal.path), end };
  } catch (error) {
    await lab.down();
    throw error;
  }
}

function versionOf(temporal: string): string {
  return execFileSync(temporal, ['--version'], { encoding: 'utf8' }).match(/\d+\.\d+\.\d+\S*/)?.[0] ?? 'unknown';
}

/** A signal that the first Ctrl-C (or SIGTERM, SIGHUP) aborts; more of them change nothing: what is there is being cleaned up. */
export function stopSignal(say: Progress): AbortSignal {
  const stopped = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (!stopped.signal.aborted) say('Stopping: what was made is cleaned up …');
      stopped.abort(new Error('Stopped'));
    });
  }
  return stopped.signal;
}
