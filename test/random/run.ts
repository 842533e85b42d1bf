import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type SnapshotVmInput, type SnapshotVmResult, workflowIdOf } from '@stillpoint/workflows';
import { WorkflowExecutionAlreadyStartedError, WorkflowFailedError, type WorkflowHandle } from '@temporalio/client';
import { ApplicationFailure, CancelledFailure } from '@temporalio/common';
import { checkEnd, checkResult } from './checks.js';
import { unexplained } from './explained.js';
import { ScenarioFaults } from './faults.js';
import { Guest } from './guest.js';
import { RandomHost } from './host.js';
import type { Lane } from './lane.js';
import { type Ask, diskSettings, type Scenario } from './scenario.js';

/** How a seed ended. */
export interface Outcome {
  seed: number;
  /** Broken invariants; none: it is well. */
  findings: string[];
  ms: number;
  /** Workflow runs that were asked for, by how they ended. */
  ends: Record<string, number>;
  /** Faults that struck, of those of the scenario. */
  struck: string[];
  longestFreezeMs: number;
}

/** A run that nobody ends is given up after so long, ms: the longest step that may have to time out has 30 s. */
const endsWithinMs = 120_000;
const tickMs = 20;

/** Runs a scenario in a lane, and judges it. */
export async function runScenario(lane: Lane, scenario: Scenario): Promise<Outcome> {
  const started = performance.now();
  const run = new ScenarioRun(lane, scenario);
  await run.begin();
  try {
    await run.play();
  } catch (error) {
    run.findings.push(
      `the net itself failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
    );
  } finally {
    await run.end();
  }
  return {
    seed: scenario.seed,
    findings: run.findings,
    ms: performance.now() - started,
    ends: run.ends,
    struck: run.struck,
    longestFreezeMs: Math.max(0, ...run.guests.map((guest) => guest.longestFreezeMs)),
  };
}

/** How a workflow run ended. */
export type End = { code: 'ok'; result: unknown } | { code: string; message: string };

export class ScenarioRun {
  readonly lane: Lane;
  readonly scenario: Scenario;
  readonly hosts: RandomHost[] = [];
  readonly guests: Guest[] = [];
  readonly findings: string[] = [];
  readonly ends: Record<string, number> = {};
  #faults: ScenarioFaults | undefined;
  #ticker: NodeJS.Timeout | undefined;
  #side: Promise<void>[] = [];
  /** Whose snapshot it is. */
  readonly #owners = new Map<string, Guest>();

  constructor(lane: Lane, scenario: Scenario) {
    this.lane = lane;
    this.scenario = scenario;
  }

  get struck(): string[] {
    return this.#faults?.struck.map(({ what }) => what.does) ?? [];
  }

  async begin(): Promise<void> {
    const { lane, scenario } = this;
    for (let i = 0; i < scenario.hosts; i += 1) {
      const name = `${lane.settings.name}-${scenario.seed}-${'ab'[i]}`;
      const host = await RandomHost.start(name, join(lane.settings.folder, 'hosts'), lane.log);
      this.hosts.push(host);
      await lane.catalogue.addHost({ name, address: host.address });
    }
    for (const spec of scenario.vms) {
      const host = this.hosts[spec.host];
      if (host === undefined) throw new Error(`no host ${spec.host}`);
      for (const { is, serial } of spec.disks) {
        if (serial === undefined) continue;
        lane.standIn.addVolume({
          id: serial,
          instance: is === 'volume' ? spec.uuid : '00000000-0000-4000-8000-00000000dead',
        });
      }
      const fileSystems = spec.disks
        .filter(({ isBare }) => !isBare)
        .map(({ target }, i) => ({
          mountpoint: i === 0 ? '/' : `/${target}`,
          type: 'ext4',
          device: target,
          targets: [target],
        }));
      const vm = host.world.addVm({ name: spec.name, uuid: spec.uuid, disks: diskSettings(spec), fileSystems });
      this.guests.push(new Guest(spec, host, vm));
    }
    lane.onVolumeCut = (volume, snapshot) => this.#seeVolumeCut(volume, snapshot);
    lane.onCatalogueCall = (method, args) => this.#seeCatalogueCall(method, args);
    lane.onCinderRequest = () => {};
    let last = performance.now();
    this.#ticker = setInterval(() => {
      const now = performance.now();
      for (const guest of this.guests) guest.tick(now - last);
      last = now;
    }, tickMs);
  }

  async play(): Promise<void> {
    const faults = new ScenarioFaults({ lane: this.lane, hosts: this.hosts, guests: this.guests }, this.scenario);
    this.#faults = faults;
    await Promise.all(this.guests.map((guest, at) => this.#track(guest, at)));
    await faults.heal();
    await Promise.all(this.#side);
    await checkEnd(this);
    for (const guest of this.guests) for (const what of guest.broken) this.findings.push(`${guest.vm.name}: ${what}`);
  }

  async end(): Promise<void> {
    const { lane } = this;
    clearInterval(this.#ticker);
    await this.#faults?.heal();
    await this.#faults?.bury();
    lane.onVolumeCut = () => {};
    lane.onCatalogueCall = () => {};
    lane.onCinderRequest = () => {};
    for (const host of this.hosts) {
      await lane.catalogue.markHostLost(host.name);
      await host.close();
      for (const engine of lane.engines) await engine.forget(host.address);
    }
  }

  /** Starts a workflow as the one open run of the VM, and resolves with how it ended. */
  async execute(type: string, guest: Guest, input: object, workflowId = workflowIdOf(guest.vm.uuid)): Promise<End> {
    const { client } = this.lane.settings;
    let handle: WorkflowHandle | undefined;
    for (const until = performance.now() + endsWithinMs; handle === undefined; ) {
      try {
        handle = await client.workflow.start(type, {
          taskQueue: this.lane.taskQueue,
          workflowId,
          args: [input],
        });
      } catch (error) {
        if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
        // What was reset goes on under the same id.
        await this.#ended(workflowId, until);
      }
    }
    const end = await this.#endOf(handle);
    this.ends[end.code] = (this.ends[end.code] ?? 0) + 1;
    await this.#ended(workflowId, performance.now() + endsWithinMs);
    return end;
  }

  async #endOf(handle: WorkflowHandle): Promise<End> {
    const tooLong = new AbortController();
    const given = delay(endsWithinMs, { code: 'never', message: '' }, { signal: tooLong.signal }).catch(
      () => undefined,
    );
    const ended = handle.result().then(
      (result: unknown): End => ({ code: 'ok', result }),
      (error: unknown): End => failureOf(error),
    );
    const end = await Promise.race([ended, given]);
    tooLong.abort();
    if (end !== undefined && end.code !== 'never') return end;
    const { raw } = await handle.describe();
    const pending = raw.pendingActivities?.map(
      (activity) =>
        `${activity.activityType?.name} (attempt ${activity.attempt}: ${activity.lastFailure?.message ?? 'no failure yet'})`,
    );
    await handle.terminate('it does not end');
    throw new Error(
      `run ${handle.workflowId} has not ended after ${endsWithinMs} ms; it waits for ${pending?.join(', ') || 'nothing'}`,
    );
  }

  /** Until no run is open under the id: one that was reset has a successor. */
  async #ended(workflowId: string, until: number): Promise<void> {
    const handle = this.lane.settings.client.workflow.getHandle(workflowId);
    for (;;) {
      const { status } = await handle.describe();
      if (status.name !== 'RUNNING') return;
      if (performance.now() > until) throw new Error(`run ${workflowId} has not ended after ${endsWithinMs} ms`);
      await delay(50);
    }
  }

  /** What is asked for one VM, one after another. */
  async #track(guest: Guest, at: number): Promise<void> {
    for (const ask of guest.spec.asks) {
      await delay(ask.afterMs);
      if (ask.do === 'snapshot') await this.#snapshot(guest, at, ask);
      else if (ask.do === 'delete') await this.#deleteNewest(guest, at);
      else await this.#letAStrangerIn(guest, ask);
    }
  }

  async #snapshot(guest: Guest, at: number, ask: Extract<Ask, { do: 'snapshot' }>): Promise<void> {
    const { snapshotId, quiesce, windowLimitMs, disks, unquiesced, astray, onlyVolumes } = ask;
    const input: SnapshotVmInput = {
      vm: guest.vm.uuid,
      snapshotId,
      quiesce,
      windowLimitMs,
      freezeTimeoutMs: 1_000,
      unquiesced,
      ...(disks === undefined ? {} : { disks }),
    };
    guest.windowLimitMs = Math.max(guest.windowLimitMs, windowLimitMs);
    this.#owners.set(snapshotId, guest);
    const before = guest.lastRound();
    const id = astray ? `astray-${guest.vm.uuid}` : workflowIdOf(guest.vm.uuid);
    const end = await this.execute(onlyVolumes ? 'snapshotDisks' : 'snapshotVm', guest, input, id);
    if (astray && end.code === 'ok') this.findings.push(`${guest.vm.name}: a run under the id ${id} was not refused`);
    if (end.code === 'ok') {
      const result = (end as { result: unknown }).result as SnapshotVmResult;
      this.findings.push(
        ...checkResult(guest, input, result, before).map((text) => `${guest.vm.name}, ${snapshotId}: ${text}`),
      );
    } else this.#explain(guest, at, end, astray);
  }

  async #deleteNewest(guest: Guest, at: number): Promise<void> {
    const [row] = (await this.lane.catalogue.listSnapshots({ vm: guest.vm.uuid, limit: 20 })).filter(
      ({ state }) => state === 'complete',
    );
    if (row === undefined) return;
    const end = await this.execute('deleteSnapshot', guest, { vm: guest.vm.uuid, snapshotId: row.snapshotId });
    if (end.code !== 'ok') this.#explain(guest, at, end, false);
  }

  #explain(guest: Guest, at: number, end: End, astray: boolean): void {
    const why = unexplained(this.scenario, at, end.code, astray);
    if (why !== undefined) this.findings.push(`${guest.vm.name}: ${why}: ${'message' in end ? end.message : ''}`);
  }

  /** It holds the VM while the track goes on, and must still hold it when it gives it back. */
  async #letAStrangerIn(guest: Guest, { operation, forMs }: Extract<Ask, { do: 'stranger' }>): Promise<void> {
    const host = () => this.lane.engines[0].hosts.host(guest.host.name);
    const [target] = guest.spec.disks;
    const taken = await host()
      .prepare({
        vm: guest.vm.uuid,
        operation,
        window: `${operation}.1`,
        installation: 'another-installation',
        localDisks: [],
        setDisks: [target?.target ?? ''],
        unquiescedDisks: [],
        quiesce: 'skip',
        windowLimitMs: 0,
      })
      .then(
        () => true,
        () => false,
      );
    if (!taken) return;
    const holding = async () => {
      await delay(forMs);
      for (let tries = 0; ; tries += 1) {
        try {
          if (!(await host().release({ vm: guest.vm.uuid, operation }))) {
            this.findings.push(
              `${guest.vm.name}: the reservation of another installation, ${operation}, was taken from it`,
            );
          }
          return;
        } catch (error) {
          if (tries === 50) throw error;
          await delay(200);
        }
      }
    };
    this.#side.push(holding());
  }

  #seeVolumeCut(volume: string, snapshot: string): Promise<unknown> | undefined {
    for (const guest of this.guests) {
      const disk = guest.spec.disks.find(({ serial }) => serial === volume);
      if (disk === undefined) continue;
      if (disk.is === 'foreign-volume') guest.broken.push(`volume ${volume} of another VM was snapshotted`);
      guest.host.world.vm(guest.vm.uuid).write(2 * guest.vm.writtenDisks.length + 1);
      const content = guest.vm.cutVolume(disk.target);
      guest.volumeCuts.set(snapshot, guest.cutNow(disk.target, content.last));
      guest.vm.write(2 * guest.vm.writtenDisks.length + 1);
      return Promise.resolve(content);
    }
    return undefined;
  }

  /** Nothing slow in the window (invariant 6): a run does not ask the catalogue for its snapshot while its guest is frozen. */
  #seeCatalogueCall(method: string, [first]: readonly unknown[]): void {
    const snapshotId =
      typeof first === 'string' ? first : (first as { snapshotId?: string } | null | undefined)?.snapshotId;
    const guest = snapshotId === undefined ? undefined : this.#owners.get(snapshotId);
    if (guest === undefined || !guest.isFrozen || !this.#isUndisturbed) return;
    guest.broken.push(`the catalogue was asked (${method}) inside the window of ${snapshotId}`);
  }

  /** Of a run that was given up or handed on another step may be under way beside its window. */
  get #isUndisturbed(): boolean {
    return !this.scenario.faults.some(({ what }) => disturbing.has(what.does));
  }
}

const disturbing: ReadonlySet<string> = new Set([
  'terminate',
  'reset',
  'engine killed',
  'engine stopped',
  'engine cut off from Temporal',
  'hang connections',
  'host agent killed',
]);

function failureOf(error: unknown): { code: string; message: string } {
  const cause = error instanceof WorkflowFailedError ? error.cause : error;
  if (cause instanceof ApplicationFailure) return { code: cause.type ?? 'no type', message: cause.message };
  if (cause instanceof CancelledFailure) return { code: 'CANCELLED', message: cause.message };
  return { code: cause instanceof Error ? cause.name : 'unknown', message: String(cause) };
}
