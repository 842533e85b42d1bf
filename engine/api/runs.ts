import type { DeleteSnapshotInput, Progress, SnapshotVmInput } from '@stillpoint/workflows';

/** A workflow run; both ids together, so that a later run of the same VM is never meant by accident. */
export interface Run {
  workflowId: string;
  runId: string;
}

export interface RunFacts extends Run {
  workflowType: string;
  /** Snapshot that the run is about; undefined: it did not say (yet). */
  snapshotId: string | undefined;
  isOpen: boolean;
  /** Why a step of it is repeated, or what that waits for, in plain words. */
  waiting: string | undefined;
  /** Temporal's word: RUNNING, COMPLETED, FAILED, CANCELLED, TERMINATED, TIMED_OUT, … */
  status: string;
  /** ISO 8601. */
  startedAt: string;
}

/** `unknown`: the request may have reached Temporal, and its own look-up failed too. */
export type Started = { started: Run } | { busy: RunFacts | undefined } | { unknown: unknown };

/** What the API needs of Temporal. Methods reject with RunsUnavailable when it does not answer. */
export interface Runs {
  startSnapshot(input: SnapshotVmInput & { snapshotId: string }, about: { vmName: string }): Promise<Started>;
  startDelete(input: DeleteSnapshotInput, about: { vmName: string; snapshotName: string }): Promise<Started>;
  /** The open run of a VM, or its last one. */
  latest(vm: string): Promise<RunFacts | undefined>;
  /** Undefined: Temporal does not know it (any more). */
  describe(run: Run): Promise<RunFacts | undefined>;
  /** Undefined: no worker answers in time. */
  progress(run: Run, timeoutMs: number): Promise<Progress | undefined>;
  /** Resolves when the run is over, however it ended; rejects when `signal` aborts. */
  ended(run: Run, signal: AbortSignal): Promise<void>;
  /** Why a run that is over failed; undefined: it did not, or is open. */
  failure(run: Run): Promise<{ code: string; text: string } | undefined>;
  /** Asks the run to cancel. False: it is over. */
  cancel(run: Run): Promise<boolean>;
  ping(): Promise<void>;
}

/** Temporal does not answer. `cause` is its client's error. */
export class RunsUnavailable extends Error {
  override readonly name = 'RunsUnavailable';
}
