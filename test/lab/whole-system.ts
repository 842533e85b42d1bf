import { readdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { SnapshotView, VmView } from '@stillpoint/engine/api/schemas.js';
import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import { type CephVolumes, Lab } from '@stillpoint/lab/lab.js';
import { LibvirtProxy } from '@stillpoint/lab/libvirt-proxy.js';
import type { QemuUser } from '@stillpoint/lab/libvirtd.js';
import { verifySnapshot } from '@stillpoint/lab/snapshot-check.js';
import { System } from '@stillpoint/lab/system.js';
import { expect } from 'vitest';
import { localParts } from '../workflows/fixtures/local-parts.js';
import { testStateFolder } from './state-folder.js';

export const VM = 'web-1';

/** The lab, the whole system over it, and the proxy between its host agent and libvirt. */
export class WholeSystem {
  readonly lab: Lab;
  readonly proxy: LibvirtProxy;
  readonly system: System;
  /** Temporal's command-line program. */
  readonly temporalCommand: string;

  private constructor(lab: Lab, proxy: LibvirtProxy, system: System, temporalCommand: string) {
    this.lab = lab;
    this.proxy = proxy;
    this.system = system;
    this.temporalCommand = temporalCommand;
  }

  static async start(
    name: string,
    options: {
      readonly qemuUser?: QemuUser;
      readonly ceph?: CephVolumes;
      readonly engineConfig?: Record<string, unknown>;
      readonly engineEnvironment?: Readonly<Record<string, string>>;
    } = {},
  ): Promise<WholeSystem> {
    const { qemuUser, ceph, ...systemOptions } = options;
    const labOptions = { ...(qemuUser === undefined ? {} : { qemuUser }), ...(ceph === undefined ? {} : { ceph }) };
    const stateFolder = testStateFolder(name);
    const temporal = await findTemporal({ env: withoutCluster(), progress: console.log });
    if (temporal.kind !== 'command') throw new Error('A server of our own is started, whatever cluster there is');
    const lab = await Lab.up({ stateFolder, progress: console.log, ...labOptions });
    const proxy = await LibvirtProxy.start({ socket: join(stateFolder, 'run/proxy'), upstream: lab.libvirtSocket });
    try {
      const system = await System.start({
        folder: join(stateFolder, 'system'),
        hypervisor: { kind: 'libvirt', socket: proxy.socket, imageFolders: [lab.imagesFolder] },
        temporalCommand: temporal.path,
        progress: console.log,
        // The proxy forwards nothing late, so nobody need wait as long as libvirt might.
        hostAgentConfig: { snapshot: { lateSwitchMs: 3_000 } },
        ...systemOptions,
      });
      return new WholeSystem(lab, proxy, system, temporal.path);
    } catch (error) {
      await proxy.close();
      await lab.down();
      throw error;
    }
  }

  async stop(): Promise<void> {
    this.proxy.clearFaults();
    await this.system.stop();
    await this.proxy.close();
    await this.lab.down();
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

  /** Nothing is left of any snapshot: no overlay in the live or the inactive chain, no file, no reservation, no frozen guest. */
  async expectNothingLeft(): Promise<void> {
    await this.waitUntilNobodyHolds();
    const { disks } = this.lab;
    expect(await this.lab.vm.chains()).toEqual({ vda: [disks.vda], vdb: [disks.vdb] });
    expect(await this.lab.vm.xml('inactive')).not.toContain('.sp-');
    expect(await this.overlays()).toEqual([]);
    expect(await this.lab.guest.isFrozen()).toBe(false);
  }

  /** The images of a snapshot pass fsck with nothing to replay, and hold the writes to vda and vdb in the order in which the guest made them. */
  async expectConsistent(snapshot: SnapshotView): Promise<void> {
    const images = await verifySnapshot(localParts(snapshot.disks).map(({ path }) => path));
    expect(images.map(({ clean }) => clean)).toEqual([true, true]);
    const [root = Number.NaN, data = Number.NaN] = images.flatMap(({ fileSystems }) =>
      fileSystems.flatMap(({ writerNumber }) => writerNumber ?? []),
    );
    expect(data).toBeGreaterThan(0);
    expect([data, data + 1]).toContain(root);
  }
}

/** A development server is started here whatever cluster the caller's environment names. */
function withoutCluster(): NodeJS.ProcessEnv {
  const { TEMPORAL_ADDRESS: _address, TEMPORAL_PROFILE: _profile, ...env } = process.env;
  return env;
}
