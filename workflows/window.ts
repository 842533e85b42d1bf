import { CancellationScope } from '@temporalio/workflow';
import type {
  Frozen,
  LocalCut,
  Plan,
  Prepared,
  SnapshotRecord,
  Undone,
  WindowRequest,
  WindowVerdict,
} from './activities.js';
import type { Progress, Quiesce, SnapshotVmResult } from './contract.js';
import { failureOf } from './failure.js';
import type { RunReport } from './run-report.js';
import { steps } from './steps.js';

/** The name under which the local disks are cut; volumes' cuts have their own. */
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

  prepare(): Promise<Prepared> {
    const summary = `Checks ${this.#plan.vm.name} and makes the overlays; nothing is frozen yet`;
    const request = { ...this.#request, plan: this.#plan, quiesce: this.quiesce };
    return this.#untilCancelled('preparing', 'prepare', () => steps.prepare.executeWithOptions({ summary }, [request]));
  }

  freezeFileSystems(): Promise<Frozen> {
    const { freezeTimeoutMs, vm } = this.#plan;
    const options = {
      summary: `Freezes the file systems of ${vm.name}`,
      startToCloseTimeout: freezeTimeoutMs + 30_000,
    };
    const request = { ...this.#request, cuts: [localCut], freezeTimeoutMs };
    return this.#untilCancelled('freezing', 'freeze file systems', () =>
      steps.freezeFileSystems.executeWithOptions(options, [request]),
    );
  }

  /** All cuts side by side; rejects at the first that fails. */
  async makeEveryCut(): Promise<void> {
    await Promise.all([this.#cutLocalDisks()]);
  }

  #cutLocalDisks(): Promise<LocalCut> {
    const disks = this.#plan.localDisks;
    const summary = `Snapshots ${disks.join(', ')} in one transaction`;
    const request = { ...this.#request, disks, frozen: this.isFrozen, cut: localCut };
    return this.#untilCancelled(this.isFrozen ? 'frozen' : 'cutting', `cut ${disks.join(', ')}`, () =>
      steps.snapshotLocalDisks.executeWithOptions({ summary }, [request]),
    );
  }

  /** Thaws whatever has happened, and closes the window for good. */
  thawFileSystems(): Promise<WindowVerdict> {
    const reason = this.#firstTrouble ?? 'every cut is made';
    const summary = this.isFrozen
      ? `Thaws ${this.#plan.vm.name}; the host says whether the freeze held`
      : 'Closes the window';
    return this.#whateverHappens('thawing', this.isFrozen ? 'thaw file systems' : 'close the window', () =>
      steps.thawFileSystems.executeWithOptions({ summary }, [{ ...this.#request, reason }]),
    );
  }

  /** Resolves when nothing of this window runs any more. */
  async everyStepToSettle(): Promise<void> {
    await Promise.allSettled(this.#begun);
  }

  record(
    record: SnapshotRecord,
  ): Promise<{ recorded: true; result: SnapshotVmResult } | { recorded: false; missing: string }> {
    const summary = `Verifies every part on ${this.#plan.host} and records the snapshot`;
    return this.#whateverHappens('recording', 'record', () =>
      steps.recordSnapshot.executeWithOptions({ summary }, [{ ...this.#request, plan: this.#plan, record }]),
    );
  }

  /** `isLast`: no window of this run follows. */
  undo(isLast: boolean): Promise<Undone> {
    const summary = 'Takes back what this window made, and verifies that it is gone';
    return this.#whateverHappens('undoing', 'undo', () =>
      steps.undoWindow.executeWithOptions({ summary }, [{ ...this.#request, plan: this.#plan, isLast }]),
    );
  }

  async #untilCancelled<T>(state: Progress['state'], name: string, begin: () => Promise<T>): Promise<T> {
    const step = this.#report.step(state, name, begin);
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
