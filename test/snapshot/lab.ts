import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { noLatencies } from '@stillpoint/host-agent/simulated/faults.js';
import { createSimulatedHypervisor, type SimulatedHypervisor } from '@stillpoint/host-agent/simulated/hypervisor.js';
import type { SimulatedVm, SimulatedVmSettings } from '@stillpoint/host-agent/simulated/vm.js';
import { createSnapshotRoom, type SnapshotRoomOptions } from '@stillpoint/host-agent/snapshot/room.js';
import type { MergedDisk, MergeProgress, Overlay, Pinned, SnapshotRoom } from '@stillpoint/host-agent/window.js';
import pino from 'pino';
import { onTestFinished } from 'vitest';

export const window1 = '00000000-0000-4000-8000-00000000000a.1';
export const window2 = '00000000-0000-4000-8000-00000000000b.1';
export const window3 = '00000000-0000-4000-8000-00000000000c.1';

/** A host with one VM of two local disks and a Ceph volume, and snapshot rooms over one folder: each room is a host agent's life. */
export class Lab {
  readonly simulated: SimulatedHypervisor;
  readonly vm: SimulatedVm;
  /** Where the rooms keep their notes. */
  readonly notesFolder: string;
  readonly #options: Partial<SnapshotRoomOptions>;

  constructor(settings: { vm?: Partial<SimulatedVmSettings>; room?: Partial<SnapshotRoomOptions> } = {}) {
    this.notesFolder = mkdtempSync(join(tmpdir(), 'stillpoint-snapshot-'));
    onTestFinished(() => rmSync(this.notesFolder, { recursive: true, force: true }));
    this.#options = settings.room ?? {};
    this.simulated = createSimulatedHypervisor({
      vms: [
        {
          name: 'web-1',
          disks: [
            { target: 'vda', path: '/images/web-1.qcow2' },
            { target: 'vdb', path: '/images/data.img', format: 'raw' },
            { target: 'vdc', kind: 'rbd', serial: 'volume-1' },
          ],
          ...settings.vm,
        },
      ],
      latencies: noLatencies,
      writeEveryMs: 0,
      secondMs: 20,
    });
    this.vm = this.simulated.vm('web-1');
  }

  /** A host agent's life; kill() of its session is kill -9. */
  async life(): Promise<Life> {
    const session = this.simulated.session();
    const room = await createSnapshotRoom({
      hypervisor: session,
      folder: this.notesFolder,
      locations: ['/images'],
      log: pino({ level: 'silent' }),
      ...this.#options,
      settings: { lateSwitchMs: 60, lookAgainMs: 5, closeWaitMs: 20, ...this.#options.settings },
    });
    return new Life(room, this.vm.uuid, () => session.kill());
  }

  /** Files that are ours. */
  overlays(): string[] {
    return this.simulated.files.paths().filter((path) => path.includes('.sp-'));
  }

  /** Whether a reader of each local disk sees every number that the guest ever wrote to it. */
  nothingLost(): boolean {
    const next = this.vm.nextNumber;
    return this.vm.writtenDisks.every((target) => {
      const content = this.vm.content(target);
      return content.isGapless && content.last >= next - 1;
    });
  }
}

/** One room, with the window's request at hand. */
export class Life {
  readonly room: SnapshotRoom;
  readonly kill: () => void;
  readonly #uuid: string;

  constructor(room: SnapshotRoom, uuid: string, kill: () => void) {
    this.room = room;
    this.#uuid = uuid;
    this.kill = kill;
  }

  async prepare(window = window1, localDisks = ['vda', 'vdb'], alreadyPrepared?: Overlay[]) {
    const setDisks = [...localDisks, 'vdc'];
    return await this.room.prepare({ vm: this.#uuid, window, localDisks, setDisks, alreadyPrepared });
  }

  async cut(prepared: { pinned: Omit<Pinned, 'fileSystems' | 'osId'>; overlays: Overlay[] }, window = window1) {
    const pinned = { ...prepared.pinned, fileSystems: undefined, osId: undefined };
    return await this.room.cut({ vm: this.#uuid, window, pinned, overlays: prepared.overlays });
  }

  async prepareAndCut(window = window1): Promise<Overlay[]> {
    const prepared = await this.prepare(window);
    await this.cut(prepared, window);
    return prepared.overlays;
  }

  async undo(window = window1, overlays: Overlay[] = [], onProgress: (progress: MergeProgress) => void = () => {}) {
    return await this.room.undo({ vm: this.#uuid, window, overlays, onProgress, signal: new AbortController().signal });
  }

  async delete(overlays: Overlay[], window = window1): Promise<MergedDisk[]> {
    const signal = new AbortController().signal;
    return await this.room.delete({ vm: this.#uuid, window, overlays, onProgress: () => {}, signal });
  }
}

export function outcomes(disks: MergedDisk[]): string[] {
  return disks.map((disk) => (disk.outcome === 'pending' ? `pending ${disk.reason}` : disk.outcome));
}
