import type { SimulatedVm } from '@stillpoint/host-agent/simulated/vm.js';
import type { RandomHost } from './host.js';
import type { ScenarioVm } from './scenario.js';

/** A cut of one disk, as the guest and the storage know it; our own journal is not asked. */
export interface SeenCut {
  target: string;
  /** Which of the guest's freezes it lies in; undefined: the guest was not frozen. */
  freeze: number | undefined;
  /** The last number that was on the disk. */
  last: number;
}

/** A frozen guest is to be thawed within its window's limit and this, ms: what the death of an engine or of a host agent may add (invariant 1). */
const graceMs = 5_000;
/** Longer pauses between two looks are this process's own, and no time in which anybody could have thawed, ms. */
const longestTickMs = 60;

/** A guest, with eyes on what is done to it. */
export class Guest {
  readonly spec: ScenarioVm;
  readonly host: RandomHost;
  readonly vm: SimulatedVm;
  /** Cuts of local disks, by the image that has the disk's data of then. */
  readonly localCuts = new Map<string, SeenCut>();
  /** Cuts of volumes, by Cinder's id of the snapshot. */
  readonly volumeCuts = new Map<string, SeenCut>();
  /** What nobody may do. */
  readonly broken: string[] = [];
  /** Images that other tools have put on top. */
  foreignImages = 0;
  /** > 0: a fault keeps the hypervisor from answering a thaw. */
  thawIsHeld = 0;
  /** Somebody else has frozen it, and thaws it. */
  isFrozenByOther = false;
  longestFreezeMs = 0;
  /** The longest limit of the windows that were asked for. */
  windowLimitMs = 0;
  #freezes = 0;
  #frozen = false;
  #frozenMs = 0;

  constructor(spec: ScenarioVm, host: RandomHost, vm: SimulatedVm) {
    this.spec = spec;
    this.host = host;
    this.vm = vm;
    this.#watchFreezes();
    this.#watchSwitches();
  }

  /** Frozen by us. */
  get isFrozen(): boolean {
    return this.vm.frozen && !this.isFrozenByOther;
  }

  /** How often it was frozen. */
  get freezes(): number {
    return this.#freezes;
  }

  /** The number that every disk has by now. */
  lastRound(): number {
    return this.vm.nextNumber - 1;
  }

  cutNow(target: string, last: number): SeenCut {
    return { target, freeze: this.vm.frozen ? this.#freezes : undefined, last };
  }

  /** Called often: counts for how long it is frozen while a thaw is possible. */
  tick(sinceLastMs: number): void {
    if (!this.isFrozen || !this.#canBeThawed) {
      this.#frozenMs = 0;
      return;
    }
    this.#frozenMs += Math.min(sinceLastMs, longestTickMs);
    this.longestFreezeMs = Math.max(this.longestFreezeMs, this.#frozenMs);
    const limitMs = this.windowLimitMs + graceMs;
    if (this.#frozenMs <= limitMs || this.broken.some((text) => text.startsWith('frozen'))) return;
    this.broken.push(
      `frozen for more than ${limitMs} ms, its window's limit and ${graceMs} ms, while a thaw was possible`,
    );
  }

  get #canBeThawed(): boolean {
    const { vm, host, thawIsHeld } = this;
    return vm.running && !vm.paused && vm.agent.works && host.isUp && thawIsHeld === 0;
  }

  #watchFreezes(): void {
    const { agent } = this.vm;
    this.#frozen = agent.frozen;
    Object.defineProperty(agent, 'frozen', {
      get: () => this.#frozen,
      set: (frozen: boolean) => {
        if (frozen && !this.#frozen) this.#freezes += 1;
        if (!frozen) this.isFrozenByOther = false;
        this.#frozen = frozen;
      },
    });
  }

  /** A switch to an overlay is the cut of what lies below it. */
  #watchSwitches(): void {
    const { vm, host } = this;
    const setSource = vm.setSource.bind(vm);
    vm.setSource = (definition, target, source, format, recorded) => {
      const before = vm[definition]?.get(target)?.source;
      setSource(definition, target, source, format, recorded);
      if (definition !== 'live' || before === undefined || host.world.files.get(source)?.backing !== before) return;
      this.localCuts.set(source, this.cutNow(target, host.world.files.content(before).last));
    };
  }
}
