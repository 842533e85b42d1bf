import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { SnapshotView, VmView } from '@stillpoint/engine/api/schemas.js';
import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import { startCinderStandIn } from '../cinder-stand-in/stand-in.js';
import { LabError } from '../errors.js';
import { Lab } from '../lab.js';
import { ensurePackages, STORAGE_REQUIREMENTS, VM_REQUIREMENTS } from '../packages.js';
import type { Progress } from '../programs.js';
import { verifySet } from '../snapshot-check.js';
import { endStorage, prepareStorage, type Storage, startStorage } from '../storage/storage.js';
import { endSystem, System, type SystemHypervisor } from '../system.js';

/** `ceph`: a real guest with disks on the host and on a real Ceph behind Cinder; `local`: the host's alone; `simulated`: nothing real. */
export type DemoKind = 'ceph' | 'local' | 'simulated';

export interface DemoOptions {
  /** Caches and the state of this run lie below it. */
  readonly stateFolder: string;
  readonly kind: DemoKind;
  /** Why that kind, where a person may have expected another. */
  readonly because: string | undefined;
  readonly say: Progress;
}

const VM = 'web-1';
const volumes = 2;

const introductions: Record<DemoKind, string> = {
  ceph: 'the real lab: Ceph, Cinder and Keystone, a libvirtd of its own and a small guest under QEMU with disks on both',
  local: 'the real lab, local disks only: a libvirtd of its own and a small guest under QEMU',
  simulated: 'hypervisor and Cinder are simulated: no real guest, no file systems to check',
};

/** One machine, everything on it, one snapshot. */
export class Demo {
  readonly #options: DemoOptions;
  readonly #folder: string;
  readonly #storageFolder: string;
  #lab: Lab | undefined;
  #storage: Storage | undefined;
  #standIn: { close(): Promise<void> } | undefined;
  #system: System | undefined;
  #snapshotId: string | undefined;
  isUp = false;

  constructor(options: DemoOptions) {
    this.#options = options;
    this.#folder = join(options.stateFolder, 'demo');
    this.#storageFolder = join(options.stateFolder, 'demo-storage');
  }

  async run(): Promise<void> {
    const { say, kind, because } = this.#options;
    say(`${introductions[kind]}${because === undefined ? '' : ` (${because})`}`);
    // An earlier demo that was killed has left its processes.
    await Promise.all([endSystem(this.#folder), endStorage(this.#storageFolder)]);

    // Side by side: on a fresh machine both take long. The guest boots only then: it would take a processor from the build.
    const [temporal] = await Promise.all([
      findTemporal({ progress: (line) => say(`Temporal: ${line}`) }),
      this.#prepareLab(),
    ]);
    if (temporal.kind === 'cluster') {
      throw new LabError(
        'PROGRAM_FAILED',
        'TEMPORAL_ADDRESS names a cluster: the demo starts a server of its own. Unset it.',
      );
    }
    say(`Temporal: ${temporal.path} (${temporal.source})`);
    const { hypervisor, engineEnvironment } = await this.#bringUp();
    const system = await System.start({
      folder: this.#folder,
      hypervisor,
      engineEnvironment,
      temporalCommand: temporal.path,
      progress: say,
    });
    this.#system = system;
    this.isUp = true;
    await this.#showVm(system);
    const result = await this.#takeSnapshot(system);
    if (this.#lab !== undefined) await this.#verify(this.#lab, result);
    await this.#showCinder(result);
    say('');
    say(`grade    ${result.grade}${kind === 'simulated' ? ' (simulated hypervisor and Cinder)' : ''}`);
    say(`why      ${result.why}`);
    say(`window   ${result.window?.ms.toFixed(1)} ms, ${result.window?.frozenFileSystems} file systems frozen`);
    for (const disk of result.leftOut) say(`left out ${disk.target}: ${disk.reason}`);
    say(`Temporal ${system.temporal.uiUrl}/namespaces/default/workflows?query=StillpointVm%3D%22${VM}%22`);
    say(`API      ${system.api}/v1/snapshots/${result.id} (all of it: ${system.api}/openapi.json)`);
  }

  /** Deletes the snapshot again: its overlays are merged back while the guest runs, and Cinder's snapshots go. */
  async takeBack(): Promise<void> {
    const { say } = this.#options;
    if (this.#system === undefined || this.#snapshotId === undefined) return;
    say('');
    say('deleting the snapshot: its overlays are merged back, its volume snapshots deleted');
    await this.#system.deleteSnapshot(this.#snapshotId);
    for (const [target, chain] of Object.entries((await this.#lab?.vm.chains()) ?? {})) {
      if (chain.some((path) => path.includes('.sp-'))) {
        throw new LabError('PROGRAM_FAILED', `${target} still has an overlay: ${chain.join(' <- ')}`);
      }
    }
    for (const { name, snapshots } of (await this.#storage?.rbdSnapshots())?.images ?? []) {
      if (snapshots.length > 0) {
        throw new LabError('PROGRAM_FAILED', `Ceph still has ${name}@${snapshots.join(', ')}`);
      }
    }
    say(`no overlay is left${this.#storage === undefined ? '' : ', and no snapshot in Ceph'}`);
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
    if (this.#lab !== undefined) {
      this.#lab.guest.disconnect();
      // Without giving its volumes back to Cinder: the whole storage goes.
      await Lab.down(this.#lab.stateFolder);
    }
    await Promise.all([endSystem(this.#folder), endStorage(this.#storageFolder), this.#standIn?.close()]);
  }

  async #prepareLab(): Promise<void> {
    const { say, kind } = this.#options;
    if (kind === 'simulated') return;
    // All packages in one go: apt has one lock, and one run is the shortest.
    if (kind === 'ceph') await ensurePackages([...VM_REQUIREMENTS, ...STORAGE_REQUIREMENTS], say);
    await Promise.all([
      Lab.prepare({ progress: say }),
      kind === 'ceph' ? prepareStorage(this.#cacheFolder, say) : undefined,
    ]);
  }

  async #bringUp(): Promise<{ hypervisor: SystemHypervisor; engineEnvironment: Record<string, string> }> {
    const { kind, say, stateFolder } = this.#options;
    if (kind === 'simulated') return await this.#simulate();
    const stateOfLab = join(stateFolder, 'lab');
    if (kind === 'ceph') {
      this.#storage = await startStorage({
        folder: this.#storageFolder,
        cacheFolder: this.#cacheFolder,
        keystone: true,
        monitor: 'fast',
        progress: say,
      });
    }
    const storage = this.#storage;
    this.#lab = await Lab.up({
      stateFolder: stateOfLab,
      progress: say,
      ...(storage === undefined ? {} : { ceph: { storage, volumes } }),
    });
    return {
      hypervisor: { kind: 'libvirt', socket: this.#lab.libvirtSocket, imageFolders: [this.#lab.imagesFolder] },
      engineEnvironment: storage?.environment('member') ?? {},
    };
  }

  async #simulate(): Promise<{ hypervisor: SystemHypervisor; engineEnvironment: Record<string, string> }> {
    const standIn = await startCinderStandIn();
    this.#standIn = standIn;
    const uuid = randomUUID();
    const onCeph = ['vdc', 'vdd'].map((target) => {
      const device = `/dev/${target}`;
      const serial = standIn.addVolume({ name: `${VM}-${target}`, sizeGiB: 1, instance: uuid, device });
      return { target, kind: 'rbd', serial };
    });
    const disks = [{ target: 'vda' }, { target: 'vdb' }, ...onCeph];
    return {
      hypervisor: { kind: 'simulated', vms: [{ name: VM, uuid, disks }] },
      engineEnvironment: standIn.environment(),
    };
  }

  get #cacheFolder(): string {
    return join(this.#options.stateFolder, 'lab', 'cache');
  }

  async #showVm(system: System): Promise<void> {
    const { say } = this.#options;
    const { body } = await system.request<VmView>('GET', `/v1/vms/${VM}`);
    say('');
    say(`${body.name} on ${body.host}: ${body.state}, guest agent ${body.guestAgent}`);
    for (const disk of body.disks) {
      const where = disk.kind === 'rbd' ? `Ceph ${disk.image}` : disk.path || disk.image;
      say(`  ${disk.target}  ${disk.format.padEnd(6)} ${disk.leftOut ? `left out: ${disk.leftOut}` : where}`);
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
      // In the order in which they began: cuts run side by side.
      const steps = body.progress?.steps ?? [];
      const open = steps.findIndex(({ ms }) => ms === null);
      const done = open === -1 ? steps : steps.slice(0, open);
      for (const step of done.slice(told)) {
        say(
          `  ${step.name.padEnd(26)} ${`${Math.round(step.ms ?? 0)} ms`.padStart(8)}${step.error ? `  ${step.error}` : ''}`,
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
    for (const disk of result.disks) {
      if (disk.kind === 'volume') continue;
      const chain = chains[disk.target] ?? [];
      if (chain[0] !== disk.overlay || chain[1] !== disk.path) {
        throw new LabError(
          'PROGRAM_FAILED',
          `${disk.target}: the chain is not what was recorded: ${chain.join(' <- ')}`,
        );
      }
      say(`chain    ${disk.target}: ${chain.map((path) => path.split('/').at(-1)).join(' <- ')}`);
    }
    const parts = result.disks.map((disk) => ({ target: disk.target, image: this.#imageOf(disk) }));
    const { images, numbers, ordered } = await verifySet(parts);
    for (const { target, image } of parts) {
      for (const fileSystem of images.find(({ path }) => path === image)?.fileSystems ?? []) {
        if (!fileSystem.clean) throw new LabError('PROGRAM_FAILED', `fsck of ${target}: ${fileSystem.output}`);
        say(
          `fsck     ${target}${fileSystem.partition ? ` partition ${fileSystem.partition}` : ''} (${fileSystem.type}): clean`,
        );
      }
    }
    // The guest writes each number to every disk in turn: in a consistent snapshot they are of one instant.
    if (!ordered) {
      throw new LabError('PROGRAM_FAILED', `The order of writes across the disks is broken: ${numbers.join(', ')}`);
    }
    say(`order    kept across ${parts.length} disks: the guest's writer had written ${numbers.join(', ')}`);
  }

  #imageOf(disk: SnapshotView['disks'][number]): string {
    if (disk.kind === 'local') return disk.path;
    if (this.#storage === undefined)
      throw new LabError('LAB_NOT_UP', `${disk.target} is a volume, and there is no storage`);
    return this.#storage.snapshotImage(disk.volume, disk.snapshot);
  }

  /** The same snapshots as an OpenStack administrator sees them. */
  async #showCinder(result: SnapshotView): Promise<void> {
    if (this.#storage === undefined) return;
    const { say } = this.#options;
    say('');
    say("cinder snapshot-list, as the project's member");
    const { exitCode, stdout, stderr } = await this.#storage.cinderCommand(['snapshot-list'], 'member');
    if (exitCode !== 0) throw new LabError('PROGRAM_FAILED', `cinder snapshot-list: ${stderr}`);
    for (const line of stdout.trimEnd().split('\n')) say(line);
    for (const disk of result.disks) {
      if (disk.kind === 'volume' && !stdout.includes(disk.snapshot)) {
        throw new LabError('PROGRAM_FAILED', `Cinder does not list the snapshot ${disk.snapshot} of ${disk.target}`);
      }
    }
  }
}
