import type * as wire from '@stillpoint/proto';
import type { Logger } from 'pino';
import type { Hypervisor, Vm } from '../hypervisor.js';
import type { FreezeRoom, LeftOut, SnapshotRoom } from '../window.js';
import { vmToWire } from './wire.js';

// Each asks qemu-img or the file system about every disk: more at once would only make them wait for one another.
const vmsAtOnce = 4;

/** VMs as ListVms and GetVm tell them: libvirt's view, each disk judged and measured, and the holder. */
export class Inventory {
  readonly #rooms: { hypervisor: Hypervisor; freeze: FreezeRoom; snapshot: SnapshotRoom };
  readonly #log: Logger;

  constructor(rooms: { hypervisor: Hypervisor; freeze: FreezeRoom; snapshot: SnapshotRoom }, log: Logger) {
    this.#rooms = rooms;
    this.#log = log;
  }

  /** In order of name, then UUID. */
  async list(): Promise<wire.Vm[]> {
    const vms = await this.#rooms.hypervisor.listVms();
    vms.sort((a, b) => compare(a.name, b.name) || compare(a.uuid, b.uuid));
    const described: wire.Vm[] = new Array(vms.length);
    let next = 0;
    const worker = async () => {
      for (let index = next++; index < vms.length; index = next++) {
        described[index] = await this.describe(vms[index] as Vm);
      }
    };
    await Promise.all(Array.from({ length: vmsAtOnce }, worker));
    return described;
  }

  async get(uuid: string): Promise<wire.Vm> {
    return this.describe(await this.#rooms.hypervisor.getVm(uuid));
  }

  /** One unreadable disk hides neither its VM nor the others: it is told as one that cannot be snapshotted. */
  async describe(vm: Vm): Promise<wire.Vm> {
    const [leftOut, sizes] = await Promise.all([this.#leftOut(vm), this.#sizes(vm)]);
    return vmToWire(vm, { leftOut, sizes, hold: this.#rooms.freeze.state(vm.uuid) });
  }

  async #leftOut(vm: Vm): Promise<Map<string, LeftOut | undefined>> {
    try {
      return await this.#rooms.snapshot.leftOut(vm);
    } catch (error) {
      this.#log.warn({ vm: vm.uuid, err: error }, 'the disks of this VM could not be judged');
      return new Map(vm.disks.map((disk) => [disk.target, 'no-source']));
    }
  }

  async #sizes(vm: Vm): Promise<Map<string, number>> {
    const sizes = await Promise.all(
      vm.disks.map(async (disk): Promise<[string, number]> => {
        try {
          return [disk.target, await this.#rooms.snapshot.sizeBytes(disk)];
        } catch (error) {
          this.#log.debug({ vm: vm.uuid, disk: disk.target, err: error }, 'size unknown');
          return [disk.target, 0];
        }
      }),
    );
    return new Map(sizes);
  }
}

function compare(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}
