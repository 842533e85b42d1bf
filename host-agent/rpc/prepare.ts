import type { Logger } from 'pino';
import type { Vm } from '../hypervisor.js';
import type { CoverageGap, FreezeRoom, Overlay, SnapshotRoom, StaleOperation } from '../window.js';
import type { CheckedPrepare } from './validate.js';

export type Prepared =
  | { stale: StaleOperation }
  | {
      vm: Vm;
      overlays: Overlay[];
      gaps: CoverageGap[];
      expectedFileSystems: number;
      guestOs: string;
      windowLimitMs: number;
    };

/**
 * Prepare: the VM is reserved, the overlays are made, and both are kept durably. All or nothing: after a failure no file is left, the window is closed
 * for good, and the VM is given back if this call took it.
 */
export class Preparing {
  readonly #freeze: FreezeRoom;
  readonly #snapshot: SnapshotRoom;
  /** A repeated call (its first answer was lost) joins the one under way. */
  readonly #underWay = new Map<string, Promise<Prepared>>();

  constructor(rooms: { freeze: FreezeRoom; snapshot: SnapshotRoom }) {
    this.#freeze = rooms.freeze;
    this.#snapshot = rooms.snapshot;
  }

  prepare(request: CheckedPrepare, log: Logger): Promise<Prepared> {
    const joined = this.#underWay.get(request.window);
    if (joined !== undefined) return joined;
    const run = this.#run(request, log).finally(() => this.#underWay.delete(request.window));
    this.#underWay.set(request.window, run);
    return run;
  }

  async #run(request: CheckedPrepare, log: Logger): Promise<Prepared> {
    const { vm, window } = request;
    const heldBefore = this.#freeze.state(vm).reservation?.operation === request.operation;
    const reserved = await this.#freeze.reserve(request);
    if ('stale' in reserved) return reserved;
    const already = this.#freeze.prepared(window);
    try {
      const made = await this.#snapshot.prepare({
        vm,
        window,
        localDisks: request.localDisks,
        setDisks: request.setDisks,
        alreadyPrepared: already?.overlays,
      });
      if (already === undefined) {
        const pinned = { ...made.pinned, fileSystems: undefined, osId: reserved.guestOs || undefined };
        await this.#freeze.keepPrepared(window, { pinned, overlays: made.overlays });
      }
      return { ...reserved, vm: made.vm, overlays: made.overlays };
    } catch (error) {
      // What an earlier call prepared is not this one's to take back.
      if (already === undefined) await this.#takeBack(request, heldBefore, log);
      throw error;
    }
  }

  /** Never throws: the caller's error is the one to tell, and Undo and Release of the same window find what is left. */
  async #takeBack(request: CheckedPrepare, heldBefore: boolean, log: Logger): Promise<void> {
    const { vm, window, operation } = request;
    try {
      await this.#freeze.closeForUndo(vm, window);
      const parts = await this.#snapshot.undo({
        vm,
        window,
        overlays: [],
        onProgress: () => {},
        signal: new AbortController().signal,
      });
      const left = parts.filter((part) => part.outcome === 'pending');
      if (left.length > 0) log.warn({ left }, 'a failed Prepare left overlays, which Undo will take back');
      else if (!heldBefore) await this.#freeze.release(vm, operation);
    } catch (error) {
      log.warn({ err: error }, 'a failed Prepare could not be taken back whole; Undo and Release will');
    }
  }
}
