/** What every cell of the matrix, and every test on the real thing, happens in: the lab, the whole system over it, and proxies where faults are to hit. */
import { readFileSync } from 'node:fs';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { SnapshotView, VmView } from '@stillpoint/engine/api/schemas.js';
import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import { type CephVolumes, Lab } from '@stillpoint/lab/lab.js';
import { LibvirtProxy } from '@stillpoint/lab/libvirt-proxy.js';
import type { QemuUser } from '@stillpoint/lab/libvirtd.js';
import { isRunning, signalProcess } from '@stillpoint/lab/processes.js';
import { type Progress, runProgram } from '@stillpoint/lab/programs.js';
import { type SnapshotPart, verifySet } from '@stillpoint/lab/snapshot-check.js';
import { System } from '@stillpoint/lab/system.js';
import { TcpProxy } from '@stillpoint/lab/tcp-proxy.js';

export const VM = 'web-1';

export interface WorldOptions {
  /** Holds the lab and the system; short enough for Unix sockets. */
  readonly stateFolder: string;
  readonly progress: Progress;
  readonly qemuUser?: QemuUser;
  readonly ceph?: CephVolumes;
  /** The host agent's state folder is a file system of its own, so that it can be full. Default false. */
  readonly journalApart?: boolean;
  readonly engineConfig?: Record<string, unknown>;
  readonly engineEnvironment?: Readonly<Record<string, string>>;
}

/** What a world is made of. */
export interface WorldParts {
  readonly lab: Lab;
  /** Between the host agent and libvirt. */
  readonly proxy: LibvirtProxy;
  /** Between the engine and the host agent. */
  readonly link: TcpProxy;
  readonly system: System;
  /** The host agent's state folder. */
  readonly journal: string;
  /** Temporal's command-line program. */
  readonly temporalCommand: string;
}

/** What a journal needs many times over. */
const JOURNAL_MIB = 8;

/** Brings all of it up; nothing is left running where that fails. */
export async function bringUp(options: WorldOptions): Promise<WorldParts> {
  const { qemuUser, ceph, stateFolder, journalApart = false, progress, ...systemOptions } = options;
  const labOptions = { ...(qemuUser === undefined ? {} : { qemuUser }), ...(ceph === undefined ? {} : { ceph }) };
  const temporal = await findTemporal({ env: withoutCluster(), progress });
  if (temporal.kind !== 'command') throw new Error('A server of our own is started, whatever cluster there is');
  const journal = join(stateFolder, 'journal');
  await unmount(journal);
  const lab = await Lab.up({ stateFolder, progress, ...labOptions });
  const proxy = await LibvirtProxy.start({ socket: join(stateFolder, 'run/proxy'), upstream: lab.libvirtSocket });
  let link: TcpProxy | undefined;
  try {
    await rm(journal, { recursive: true, force: true });
    await mkdir(journal, { mode: 0o700 });
    if (journalApart)
      await runProgram('mount', ['-t', 'tmpfs', '-o', `size=${JOURNAL_MIB}m,mode=700`, 'tmpfs', journal]);
    const system = await System.start({
      folder: join(stateFolder, 'system'),
      hypervisor: { kind: 'libvirt', socket: proxy.socket, imageFolders: [lab.imagesFolder] },
      temporalCommand: temporal.path,
      progress,
      // The proxy forwards nothing late, so nobody need wait as long as libvirt might.
      hostAgentConfig: { snapshot: { lateSwitchMs: 3_000 }, stateFolder: journal },
      hostLink: async (hostAgent) => {
        link = await TcpProxy.start(hostAgent);
        return link.address;
      },
      ...systemOptions,
    });
    if (link === undefined) throw new Error('the system was started without its link');
    // Beside other guests and the tests themselves; where the order of its writes is what is tested it is made quick again.
    await lab.guest.setWriterPause(0.5);
    return { lab, proxy, link, system, journal, temporalCommand: temporal.path };
  } catch (error) {
    await link?.close();
    await proxy.close();
    await lab.down();
    await unmount(journal);
    throw error;
  }
}

/** The lab, the whole system over it, and the proxies between its programs. */
export class World implements WorldParts {
  readonly lab: Lab;
  readonly proxy: LibvirtProxy;
  readonly link: TcpProxy;
  readonly system: System;
  readonly journal: string;
  readonly temporalCommand: string;

  constructor({ lab, proxy, link, system, journal, temporalCommand }: WorldParts) {
    this.lab = lab;
    this.proxy = proxy;
    this.link = link;
    this.system = system;
    this.journal = journal;
    this.temporalCommand = temporalCommand;
  }

  async stop(): Promise<void> {
    this.proxy.clearFaults();
    this.link.heal();
    await this.system.stop();
    await this.link.close();
    await this.proxy.close();
    await this.lab.down();
    await unmount(this.journal);
    await rm(this.lab.stateFolder, { recursive: true, force: true });
  }

  /** Asks for a snapshot through the API and waits for the end of its run. */
  async snapshot(request: Record<string, unknown> = {}, vm: string = VM): Promise<SnapshotView> {
    return this.system.waitForSnapshot(await this.system.createSnapshot(vm, request));
  }

  /** Polls until `done` answers something else than undefined. */
  async until<T>(what: string, done: () => Promise<T | undefined>, timeoutMs = 60_000): Promise<T> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const found = await done();
      if (found !== undefined) return found;
      if (performance.now() > deadline) {
        throw new Error(`Not within ${timeoutMs / 1000} s: ${what}\n${this.system.logTail('host agent')}`);
      }
      await delay(50);
    }
  }

  /** Brings whatever a test broke back to a running VM with a thawed guest and an agent that answers. The VM is not booted anew unless it is off. */
  async mend(): Promise<void> {
    const { lab, proxy } = this;
    proxy.clearFaults();
    proxy.accept();
    this.link.heal();
    if (lab.libvirtd.process !== undefined) lab.libvirtd.cont();
    await lab.libvirtd.start();
    if ((await lab.vm.state()) === 'paused') await lab.vm.resume();
    if ((await lab.vm.state()) === 'shut off') await lab.vm.start();
    await lab.guest.contAgent().catch(() => undefined);
    await lab.guest.startAgent();
    await lab.guest.setHook({});
    await lab.guest.waitForAgent();
    await lab.libvirtd.virsh(['domfsthaw', lab.vm.name]);
    await lab.guest.waitUntilThawed(30_000);
  }

  /** Lets the system's own programs run again, whichever of them a fault has stopped or ended. */
  async mendSystem(): Promise<void> {
    const { system } = this;
    if (!isAlive(system.temporal.pid)) await system.startTemporal();
    else process.kill(system.temporal.pid, 'SIGCONT');
    for (const one of [system.hostAgentWorker, system.hostAgent, system.engine]) {
      if (one !== undefined) signalProcess(one, 'SIGCONT');
    }
    if (system.hostAgent === undefined || !isRunning(system.hostAgent)) system.startHostAgent();
    if (system.engine === undefined || !isRunning(system.engine)) system.startEngine();
    await system.waitUntilReady();
    await system.waitForHost();
  }

  /** Overlay files of the first VM on its host. */
  async overlays(): Promise<string[]> {
    const folder = dirname(this.lab.disks.vda);
    return (await readdir(folder)).filter((file) => file.includes('.sp-')).map((file) => join(folder, file));
  }

  /** Who holds the first VM by the API's word, asked until that is `nobody` or the time is over. */
  async waitUntilNobodyHolds(): Promise<void> {
    await this.until('nobody holds the VM', async () => {
      const { body } = await this.system.request<VmView>('GET', `/v1/vms/${VM}`);
      return body.hold === null && body.stale === false ? true : undefined;
    });
  }

  /** What is left of any snapshot on the host and in the guest: a reservation, a lease's note, an overlay in the live or the inactive chain, a file, a freeze. */
  async leftOnHost(): Promise<string[]> {
    const { vm, guest, disks } = this.lab;
    const left: string[] = [];
    await this.waitUntilNobodyHolds().catch((error: unknown) => left.push(firstLine(error)));
    await this.until('no lease is noted in the domain', async () =>
      (await vm.xml()).includes('urn:stillpoint:lease') ? undefined : true,
    ).catch((error: unknown) => left.push(firstLine(error)));
    const chains = JSON.stringify(await vm.chains());
    if (chains !== JSON.stringify({ vda: [disks.vda], vdb: [disks.vdb] })) left.push(`disk chains: ${chains}`);
    if ((await vm.xml('inactive')).includes('.sp-')) left.push('the inactive definition names an overlay');
    const files = await this.overlays();
    if (files.length > 0) left.push(`overlay files: ${files.join(', ')}`);
    if (await guest.isFrozen()) left.push('the guest is frozen');
    return left;
  }

  /** What is left of any snapshot, wherever. */
  async leftovers(): Promise<string[]> {
    return this.leftOnHost();
  }

  /** The disks of a snapshot as QEMU's programs read them. */
  images(snapshot: SnapshotView): SnapshotPart[] {
    return snapshot.disks.map((part) => {
      if (part.kind !== 'local') throw new Error(`${part.target} is a ${part.kind} part`);
      return { target: part.target, image: part.path };
    });
  }

  /**
   * What speaks against the grade `filesystem`, by the content of the disks alone: one that fsck would repair or replay, a number of the guest's writer that is
   * missing, or numbers that are not of one instant. Empty where it is true.
   */
  async inconsistencies(snapshot: SnapshotView): Promise<string[]> {
    const { images, numbers, ordered } = await verifySet(this.images(snapshot));
    const found = images.filter(({ clean }) => !clean).map(({ path }) => `fsck has something to repair on ${path}`);
    if (numbers.length !== snapshot.disks.length || !((numbers.at(-1) ?? 0) > 0)) {
      found.push(`the writer's number is not on each of ${snapshot.disks.length} disks: ${numbers.join(', ')}`);
    }
    if (!ordered) found.push(`the order of writes is broken: ${numbers.join(', ')}`);
    return found;
  }
}

/** Ends a file system of its own at a folder, also one that an earlier run has left; nothing happens where there is none. */
async function unmount(folder: string): Promise<void> {
  const mounts = readFileSync('/proc/mounts', 'utf8').split('\n');
  if (mounts.some((line) => line.split(' ')[1] === folder)) await runProgram('umount', [folder]);
}

const firstLine = (error: unknown) => (error instanceof Error ? error.message : String(error)).split('\n')[0] ?? '';

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** A development server is started here whatever cluster the caller's environment names. */
function withoutCluster(): NodeJS.ProcessEnv {
  const { TEMPORAL_ADDRESS: _address, TEMPORAL_PROFILE: _profile, ...env } = process.env;
  return env;
}
