import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { SnapshotView, VmView } from '@stillpoint/engine/api/schemas.js';
import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import { LabError } from '../errors.js';
import { Lab } from '../lab.js';
import type { Progress } from '../programs.js';
import { verifySnapshot } from '../snapshot-check.js';
import { endSystem, System } from '../system.js';

export interface DemoOptions {
  /** Caches and the state of this run lie below it. */
  readonly stateFolder: string;
  /** Why the hypervisor is simulated; undefined: the real lab. */
  readonly simulatedBecause: string | undefined;
  readonly say: Progress;
}

const VM = 'web-1';

/** One machine, everything on it, one snapshot. */
export class Demo {
  readonly #options: DemoOptions;
  readonly #folder: string;
  #lab: Lab | undefined;
  #system: System | undefined;
  #snapshotId: string | undefined;
  isUp = false;

  constructor(options: DemoOptions) {
    this.#options = options;
    this.#folder = join(options.stateFolder, 'demo');
  }

  async run(): Promise<void> {
    const { say, simulatedBecause } = this.#options;
    if (simulatedBecause === undefined) say('the real lab: a libvirtd of its own and a small guest under QEMU');
    else say(`the hypervisor is simulated (${simulatedBecause}): no real guest, no file systems to check`);
    // An earlier demo that was killed has left its processes.
    await endSystem(this.#folder);

    // Side by side: on a fresh machine both take long. The guest boots only then: it would take a processor from the build.
    const [temporal] = await Promise.all([
      findTemporal({ progress: (line) => say(`Temporal: ${line}`) }),
      simulatedBecause === undefined ? Lab.prepare({ progress: say }) : undefined,
    ]);
    if (temporal.kind === 'cluster') {
      throw new LabError(
        'PROGRAM_FAILED',
        'TEMPORAL_ADDRESS names a cluster: the demo starts a server of its own. Unset it.',
      );
    }
    say(`Temporal: ${temporal.path} (${temporal.source})`);
    if (simulatedBecause === undefined) await this.#bringLabUp();
    const system = await System.start({
      folder: this.#folder,
      hypervisor: this.#hypervisor(),
      temporalCommand: temporal.path,
      progress: say,
    });
    this.#system = system;
    this.isUp = true;
    await this.#showVms(system);
    const result = await this.#takeSnapshot(system);
    if (this.#lab !== undefined) await this.#verify(this.#lab, result);
    say('');
    say(`grade    ${result.grade}${simulatedBecause === undefined ? '' : ' (simulated hypervisor)'}`);
    say(`why      ${result.why}`);
    say(`window   ${result.window?.ms.toFixed(1)} ms, ${result.window?.frozenFileSystems} file systems frozen`);
    for (const disk of result.leftOut) say(`left out ${disk.target}: ${disk.reason}`);
    say(`Temporal ${system.temporal.uiUrl}/namespaces/default/workflows?query=StillpointVm%3D%22${VM}%22`);
    say(`API      ${system.api}/v1/snapshots/${result.id} (all of it: ${system.api}/openapi.json)`);
  }

  /** Deletes the snapshot again: its overlays are merged back while the guest runs. */
  async takeBack(): Promise<void> {
    const { say } = this.#options;
    if (this.#system === undefined || this.#snapshotId === undefined) return;
    say('');
    say('deleting the snapshot: its overlays are merged back');
    await this.#system.deleteSnapshot(this.#snapshotId);
    for (const [target, chain] of Object.entries((await this.#lab?.vm.chains()) ?? {})) {
      if (chain.some((path) => path.includes('.sp-'))) {
        throw new LabError('PROGRAM_FAILED', `${target} still has an overlay: ${chain.join(' <- ')}`);
      }
    }
    say('no overlay is left');
  }

  tellWhatNext(): void {
    const { say } = this.#options;
    const api = this.#system?.api ?? '';
    say('');
    say('Try next, in another terminal:');
    say(`  npx stillpoint --api ${api} vms`);
    say(`  npx stillpoint --api ${api} snapshot create ${VM} --wait`);
    say(`  npx stillpoint --api ${api} snapshot list`);
    say('It stays up until Ctrl-C.');
  }

  /** Ends every process and removes all but the caches. */
  async end(): Promise<void> {
    await this.#system?.stop();
    await this.#lab?.down();
    await endSystem(this.#folder);
  }

  async #bringLabUp(): Promise<void> {
    this.#lab = await Lab.up({
      stateFolder: join(this.#options.stateFolder, 'lab'),
      progress: this.#options.say,
    });
  }

  #hypervisor() {
    if (this.#lab !== undefined) {
      return { kind: 'libvirt', socket: this.#lab.libvirtSocket, imageFolders: [this.#lab.imagesFolder] } as const;
    }
    const disks = [{ target: 'vda' }, { target: 'vdb' }, { target: 'vdc', kind: 'network' }];
    return { kind: 'simulated', vms: [{ name: VM, disks }] } as const;
  }

  async #showVms(system: System): Promise<void> {
    const { say } = this.#options;
    const { body } = await system.request<VmView>('GET', `/v1/vms/${VM}`);
    say('');
    say(`${body.name} on ${body.host}: ${body.state}, guest agent ${body.guestAgent}`);
    for (const disk of body.disks) {
      say(
        `  ${disk.target}  ${disk.format.padEnd(6)} ${disk.leftOut ? `left out: ${disk.leftOut}` : disk.path || disk.image}`,
      );
    }
    say('');
  }

  async #takeSnapshot(system: System): Promise<SnapshotView> {
    const { say } = this.#options;
    say(`stillpoint snapshot create ${VM}`);
    const id = await system.createSnapshot(VM, { name: 'demo' });
    this.#snapshotId = id;
    let told = 0;
    for (;;) {
      const { body } = await system.request<SnapshotView>('GET', `/v1/snapshots/${id}`);
      const done = (body.progress?.steps ?? []).flatMap(({ ms, ...step }) => (ms === null ? [] : [{ ...step, ms }]));
      for (const step of done.slice(told)) {
        say(
          `  ${step.name.padEnd(26)} ${`${Math.round(step.ms)} ms`.padStart(8)}${step.error ? `  ${step.error}` : ''}`,
        );
      }
      told = Math.max(told, done.length);
      if (body.state === 'complete') return body;
      if (['failed', 'cancelled', 'cleanup-pending'].includes(body.state)) {
        throw new LabError('PROGRAM_FAILED', `The snapshot ended as ${body.state}: ${body.error?.text}`);
      }
      await delay(100);
    }
  }

  /** What the snapshot is worth, judged from outside: its file systems, and the order of writes across its disks. */
  async #verify(lab: Lab, result: SnapshotView): Promise<void> {
    const { say } = this.#options;
    const chains = await lab.vm.chains();
    say('');
    const parts = result.disks.filter((disk) => disk.kind === 'local');
    for (const disk of parts) {
      const chain = chains[disk.target] ?? [];
      if (chain[0] !== disk.overlay || chain[1] !== disk.path) {
        throw new LabError(
          'PROGRAM_FAILED',
          `${disk.target}: the chain is not what was recorded: ${chain.join(' <- ')}`,
        );
      }
      say(`chain    ${disk.target}: ${chain.map((path) => path.split('/').at(-1)).join(' <- ')}`);
    }
    const numbers: number[] = [];
    for (const image of await verifySnapshot(parts.map((disk) => disk.path))) {
      for (const fileSystem of image.fileSystems) {
        if (!fileSystem.clean) throw new LabError('PROGRAM_FAILED', `fsck of ${image.path}: ${fileSystem.output}`);
        if (fileSystem.writerNumber !== undefined) numbers.push(fileSystem.writerNumber);
        say(
          `fsck     ${image.path.split('/').at(-1)}${fileSystem.partition ? ` partition ${fileSystem.partition}` : ''} (${fileSystem.type}): clean`,
        );
      }
    }
    // The guest writes each number to one disk, then to the other: in a consistent snapshot they are equal or one apart.
    const [root, data] = numbers;
    if (root === undefined || data === undefined || root - data < 0 || root - data > 1) {
      throw new LabError('PROGRAM_FAILED', `The order of writes across the disks is broken: ${numbers.join(', ')}`);
    }
    say(`order    kept across the disks: the guest's writer had written ${root} and ${data}`);
  }
}
