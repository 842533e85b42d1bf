import { CancellationScope } from '@temporalio/workflow';
import type {
  Frozen,
  LocalCut,
  Plan,
  PlannedVolume,
  Prepared,
  SnapshotRecord,
  Undone,
  VolumeCut,
  WindowRequest,
  WindowVerdict,
} from './activities.js';
import type { LocalPart, Progress, Quiesce, SnapshotVmResult } from './contract.js';
import { type Failure, failureOf } from './failure.js';
import type { RunReport } from './run-report.js';
import { steps } from './steps.js';
import { windowOwner } from './window-owner.js';

/** The name under which the local disks are cut; a volume's cut has its disk's. */
const localCut = 'local-disks';

/**
 * The steps of one window. Each runs at most once, rejects at once when the run is cancelled, and is still waited for by `everyStepToSettle`; only the
 * thaw and what follows it do not care whether the run is cancelled.
 */
export class Window {
  readonly #plan: Plan;
  readonly #request: WindowRequest;
  readonly #report: RunReport;
  readonly quiesce: Quiesce;
  readonly #begun: Promise<unknown>[] = [];
  /** Volumes of which Cinder may have something: their cut was begun, and did not surely end without a trace. */
  readonly #mayBeThere = new Set<string>();
  /** Those whose create was begun, and of which it is not known how it ended. */
  readonly #mayAppear = new Set<string>();
  #parts: LocalPart[] = [];
  #firstTrouble: string | undefined;

  constructor(plan: Plan, window: string, quiesce: Quiesce, report: RunReport) {
    this.#plan = plan;
    this.#request = { host: plan.host, vm: plan.vm.uuid, operation: plan.snapshotId, window };
    this.#report = report;
    this.quiesce = quiesce;
  }

  get id(): string {
    return this.#request.window;
  }

  get isFrozen(): boolean {
    return this.quiesce !== 'skip';
  }

  /** Whether this run freezes; else the host agent does, in the cut, or nobody. */
  get isOursToFreeze(): boolean {
    return this.isFrozen && windowOwner(this.#plan) === 'workflow';
  }

  prepare(): Promise<Prepared> {
    const summary = `Checks ${this.#plan.vm.name} and prepares every cut; nothing is frozen yet`;
    const request = { ...this.#request, plan: this.#plan, quiesce: this.quiesce };
    return this.#untilCancelled('preparing', 'prepare', async () => {
      const prepared = await steps.prepare.executeWithOptions({ summary }, [request]);
      this.#parts = prepared.parts;
      return prepared;
    });
  }

  freezeFileSystems(): Promise<Frozen> {
    const { freezeTimeoutMs, vm } = this.#plan;
    const options = {
      summary: `Freezes the file systems of ${vm.name}`,
      startToCloseTimeout: freezeTimeoutMs + 40_000,
    };
    const cuts = this.#plan.volumes.map((disk) => disk.target);
    if (this.#plan.localDisks.length > 0) cuts.unshift(localCut);
    const request = { ...this.#request, cuts, freezeTimeoutMs };
    const freeze = async () => {
      const frozen = await steps.freezeFileSystems.executeWithOptions(options, [request]);
      this.#report.goesOn('freezing', 'frozen');
      return frozen;
    };
    // Temporal hears of it later than it was.
    return this.#untilCancelled('freezing', 'freeze file systems', freeze, ({ freezeCallMs }) => freezeCallMs);
  }

  /** All cuts side by side; rejects at the first that fails. Those of a window that we freeze begin with the freeze, and wait on the host for it. */
  makeEveryCut(): Promise<unknown> {
    const local = this.#plan.localDisks.length > 0 ? [this.#cutLocalDisks()] : [];
    return Promise.all([...local, ...this.#plan.volumes.map((disk) => this.#cutVolume(disk))]);
  }

  #cutLocalDisks(): Promise<LocalCut> {
    const { localDisks: disks, freezeTimeoutMs, vm } = this.#plan;
    const hostFreezes = this.isFrozen && !this.isOursToFreeze;
    const names = disks.join(', ');
    const options = hostFreezes
      ? {
          summary: `Freezes ${vm.name}, snapshots ${names} in one transaction, and thaws`,
          startToCloseTimeout: freezeTimeoutMs + 180_000,
        }
      : { ...this.#cutOptions, summary: `Snapshots ${names} in one transaction${this.#onceFrozen}` };
    const request = {
      ...this.#request,
      disks,
      frozen: this.isOursToFreeze,
      quiesce: hostFreezes ? ('required' as const) : ('skip' as const),
      cut: localCut,
      freezeTimeoutMs,
    };
    const name = hostFreezes ? `freeze, cut ${names}, thaw` : `cut ${names}`;
    const begin = () => steps.snapshotLocalDisks.executeWithOptions(options, [request]);
    return this.#untilCancelled(this.#whileCutting, name, begin, hostFreezes ? undefined : (cut) => cut.transactionMs);
  }

  #cutVolume(disk: PlannedVolume): Promise<VolumeCut> {
    const summary = `Snapshots ${disk.target} through Cinder${this.#onceFrozen} and waits until it is available`;
    const options = { ...this.#cutOptions, summary };
    const request = { ...this.#request, plan: this.#plan, disk, cut: disk.target };
    const begin = async () => {
      this.#mayBeThere.add(disk.target);
      this.#mayAppear.add(disk.target);
      try {
        const cut = await steps.snapshotVolume.executeWithOptions(options, [request]);
        this.#mayAppear.delete(disk.target);
        return cut;
      } catch (error) {
        const outcome = failureOf(error).metadata?.outcome;
        if (outcome !== undefined) this.#mayAppear.delete(disk.target);
        if (outcome === 'none') this.#mayBeThere.delete(disk.target);
        throw error;
      }
    };
    return this.#untilCancelled(this.#whileCutting, `cut ${disk.target}`, begin, (cut) => cut.cutMs);
  }

  /** Undefined where the freeze, which is under way, will say. */
  get #whileCutting(): Progress['state'] | undefined {
    if (this.isOursToFreeze) return undefined;
    return this.isFrozen ? 'frozen' : 'cutting';
  }

  get #onceFrozen(): string {
    return this.isOursToFreeze ? ` as soon as ${this.#plan.vm.name} is frozen` : '';
  }

  /** The window is 60 s at most; libvirt may answer after it, and a volume's cut that lost its window deletes what it made. The freeze comes before. */
  get #cutOptions(): { startToCloseTimeout: number } {
    return { startToCloseTimeout: this.#plan.freezeTimeoutMs + 180_000 };
  }

  /** Thaws whatever has happened, and closes the window for good. */
  thawFileSystems(): Promise<WindowVerdict> {
    const reason = this.#firstTrouble ?? 'every cut is made';
    const summary = this.isFrozen
      ? `Thaws ${this.#plan.vm.name} unless its host has; the host says whether the freeze held`
      : 'Closes the window';
    return this.#whateverHappens('thawing', this.isFrozen ? 'thaw file systems' : 'close the window', () =>
      steps.thawFileSystems.executeWithOptions({ summary }, [{ ...this.#request, frozen: this.isFrozen, reason }]),
    );
  }

  /** Resolves when nothing of this window runs any more, with what has failed in it. */
  async everyStepToSettle(): Promise<Failure[]> {
    const settled = await Promise.allSettled(this.#begun);
    return settled.flatMap((step) => (step.status === 'rejected' ? [failureOf(step.reason)] : []));
  }

  record(
    record: SnapshotRecord,
  ): Promise<{ recorded: true; result: SnapshotVmResult } | { recorded: false; missing: string }> {
    const summary = 'Verifies every part and records the snapshot';
    return this.#whateverHappens('recording', 'record', () =>
      steps.recordSnapshot.executeWithOptions({ summary }, [{ ...this.#request, plan: this.#plan, record }]),
    );
  }

  /** `isLast`: no window of this run follows. */
  undo(isLast: boolean): Promise<Undone> {
    const summary = 'Takes back what this window made, and verifies that it is gone';
    const request = {
      ...this.#request,
      plan: this.#plan,
      isLast,
      parts: this.#parts,
      mayBeThere: [...this.#mayBeThere],
      mayAppear: [...this.#mayAppear],
    };
    return this.#whateverHappens('undoing', 'undo', () => steps.undoWindow.executeWithOptions({ summary }, [request]));
  }

  async #untilCancelled<T>(
    state: Progress['state'] | undefined,
    name: string,
    begin: () => Promise<T>,
    ownMs?: (result: T) => number,
  ): Promise<T> {
    const step = this.#report.step(state, name, begin, { ownMs });
    this.#begun.push(step);
    try {
      return await Promise.race([step, CancellationScope.current().cancelRequested]);
    } catch (error) {
      this.#firstTrouble ??= failureOf(error).text;
      throw error;
    }
  }

  #whateverHappens<T>(state: Progress['state'], name: string, begin: () => Promise<T>): Promise<T> {
    return CancellationScope.nonCancellable(() => this.#report.step(state, name, begin));
  }
}
