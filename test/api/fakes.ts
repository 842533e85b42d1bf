import { randomUUID } from 'node:crypto';

import type { Doctor } from '@stillpoint/engine/api/doctor-routes.js';
import type { Run, RunFacts, Runs, Started } from '@stillpoint/engine/api/runs.js';
import { HostError } from '@stillpoint/engine/hosts/errors.js';
import type { HostClient, HostFacts, Hosts, HostVm } from '@stillpoint/engine/hosts/hosts.js';
import type { DoctorRunFacts } from '@stillpoint/engine/temporal/doctor.js';
import { type Progress, type ReconcileInput, type SnapshotVmInput, workflowIdOf } from '@stillpoint/workflows';

interface FakeRun extends RunFacts {
  progress: Progress | undefined;
  failure: { code: string; text: string } | undefined;
  over: PromiseWithResolvers<void>;
}

/** Reports in memory: a test says what the next look comes to. */
export class FakeDoctor implements Doctor {
  readonly inputs: unknown[] = [];
  readonly runs = new Map<string, DoctorRunFacts>();
  lastOfSchedule: DoctorRunFacts | undefined;
  unavailable: Error | undefined;

  async start(id: string, input: ReconcileInput): Promise<DoctorRunFacts> {
    if (this.unavailable !== undefined) throw this.unavailable;
    this.inputs.push(input);
    const run = { id, state: 'running', startedAt: '2026-11-21T12:00:00.000Z', error: null, report: null } as const;
    this.runs.set(id, run);
    return run;
  }

  async run(id: string): Promise<DoctorRunFacts | undefined> {
    return this.runs.get(id);
  }

  async last(): Promise<DoctorRunFacts | undefined> {
    return this.lastOfSchedule;
  }
}

/** Temporal in memory: one open run a workflow id. */
export class FakeRuns implements Runs {
  readonly runs: FakeRun[] = [];
  readonly inputs: unknown[] = [];
  /** What the next start answers instead of starting. */
  nextStart: (() => Promise<Started>) | undefined;
  unavailable: Error | undefined;
  cancelled: string[] = [];

  startSnapshot(input: SnapshotVmInput & { snapshotId: string }): Promise<Started> {
    return this.#start('snapshotVm', input);
  }

  startDelete(input: { vm: string; snapshotId: string }): Promise<Started> {
    return this.#start('deleteSnapshot', input);
  }

  async latest(vm: string): Promise<RunFacts | undefined> {
    this.#check();
    return this.runs.findLast((run) => run.workflowId === workflowIdOf(vm));
  }

  async describe(run: Run): Promise<RunFacts | undefined> {
    this.#check();
    return this.#find(run);
  }

  async progress(run: Run): Promise<Progress | undefined> {
    return this.#find(run)?.progress;
  }

  async ended(run: Run, signal: AbortSignal): Promise<void> {
    const aborted = new Promise<void>((_, reject) => {
      if (signal.aborted) reject(signal.reason);
      signal.addEventListener('abort', () => reject(signal.reason));
    });
    await Promise.race([this.#find(run)?.over.promise, aborted]);
  }

  async failure(run: Run): Promise<{ code: string; text: string } | undefined> {
    return this.#find(run)?.failure;
  }

  async cancel(run: Run): Promise<boolean> {
    if (this.#find(run)?.isOpen !== true) return false;
    this.cancelled.push(run.runId);
    return true;
  }

  async ping(): Promise<void> {
    this.#check();
  }

  /** The run of a snapshot, for what only a worker does. */
  of(snapshotId: string): FakeRun {
    const run = this.runs.findLast((each) => each.snapshotId === snapshotId);
    if (run === undefined) throw new Error(`No run of ${snapshotId}`);
    return run;
  }

  end(snapshotId: string, status: string, failure?: { code: string; text: string }): void {
    const run = this.of(snapshotId);
    Object.assign(run, { isOpen: false, status, failure });
    run.over.resolve();
  }

  #check(): void {
    if (this.unavailable) throw this.unavailable;
  }

  #find(run: Run): FakeRun | undefined {
    return this.runs.find((each) => each.workflowId === run.workflowId && each.runId === run.runId);
  }

  async #start(workflowType: string, input: { vm: string; snapshotId: string }): Promise<Started> {
    const instead = this.nextStart;
    this.nextStart = undefined;
    if (instead) return instead();
    const workflowId = workflowIdOf(input.vm);
    const open = this.runs.find((run) => run.workflowId === workflowId && run.isOpen);
    if (open) {
      return open.workflowType === workflowType && open.snapshotId === input.snapshotId
        ? { started: { workflowId, runId: open.runId } }
        : { busy: open };
    }
    this.inputs.push(input);
    const run: FakeRun = {
      workflowId,
      runId: randomUUID(),
      workflowType,
      snapshotId: input.snapshotId,
      isOpen: true,
      waiting: undefined,
      status: 'RUNNING',
      startedAt: new Date().toISOString(),
      progress: undefined,
      failure: undefined,
      over: withResolvers(),
    };
    this.runs.push(run);
    return { started: { workflowId, runId: run.runId } };
  }
}

interface PromiseWithResolvers<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
}

/** Promise.withResolvers of Node 22. */
function withResolvers(): PromiseWithResolvers<void> {
  let resolve: () => void = () => {};
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

export interface FakeHost {
  vms: HostVm[];
  /** Thrown by every call. */
  down: HostError | undefined;
  /** Thrown by what needs libvirt; the rest is answered. */
  libvirtAway: HostError | undefined;
  thaw: () => Promise<{ thawedFileSystems: number; lostWindow: string }>;
  listed: number;
}

/** Hosts in memory. */
export class FakeHosts implements Hosts {
  readonly all = new Map<string, FakeHost>();

  add(name: string, ...vms: HostVm[]): FakeHost {
    const host: FakeHost = {
      vms,
      down: undefined,
      libvirtAway: undefined,
      listed: 0,
      thaw: async () => ({ thawedFileSystems: 2, lostWindow: '' }),
    };
    this.all.set(name, host);
    return host;
  }

  async names(): Promise<string[]> {
    return [...this.all.keys()];
  }

  async close(): Promise<void> {}

  host(name: string): HostClient {
    const asked =
      <T>(answer: (host: FakeHost) => T | Promise<T>) =>
      async (): Promise<T> => {
        const host = this.all.get(name);
        if (host === undefined) throw new HostError(name, 'HOST_NOT_FOUND', `No host ${name} is registered.`);
        if (host.down) throw host.down;
        return answer(host);
      };
    const client: Pick<HostClient, 'name' | 'facts' | 'listVms' | 'thawVm'> = {
      name,
      facts: asked((host) => ({ ...facts(name), holds: host.vms.map(({ uuid, hold }) => ({ vm: uuid, hold })) })),
      listVms: asked((host) => {
        host.listed += 1;
        if (host.libvirtAway) throw host.libvirtAway;
        return host.vms;
      }),
      thawVm: asked((host) => host.thaw()),
    };
    // The API asks a host nothing else.
    return client as HostClient;
  }
}

export function unreachable(host: string): HostError {
  return new HostError(host, 'HOST_UNREACHABLE', `The host agent of ${host} cannot be reached.`);
}

export function someVm(change: Partial<HostVm> = {}): HostVm {
  return {
    uuid: randomUUID(),
    name: 'web-1',
    state: 'running',
    guestAgent: 'connected',
    disks: [
      {
        target: 'vda',
        kind: 'file',
        path: '/images/a.qcow2',
        image: '',
        format: 'qcow2',
        sizeBytes: 1 << 30,
        serial: '',
        leftOut: '',
        writable: true,
        chainDepth: 1,
      },
    ],
    hold: {
      operation: '',
      window: '',
      installation: '',
      reservedUnixMs: 0,
      freezeState: 'thawed',
      frozenUnixMs: 0,
      freezeDetail: '',
      windowLimitMs: 0,
    },
    ...change,
  };
}

function facts(hostName: string): HostFacts {
  return {
    hostName,
    installation: '',
    version: '0.1.0',
    hypervisor: 'simulated',
    libvirtVersion: '',
    qemuVersion: '',
    hypervisorReachable: true,
    canQuiesce: true,
    diskLocations: [],
    warnings: [],
    startedUnixMs: 0,
    holds: [],
  };
}
