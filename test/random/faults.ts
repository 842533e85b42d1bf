import { randomUUID } from 'node:crypto';
import type { HostAgentErrorCode } from '@stillpoint/host-agent/errors.js';
import type { Fault as CallFault } from '@stillpoint/host-agent/simulated/faults.js';
import type { Fault as CinderFault, FaultRule, SeenRequest } from '@stillpoint/lab/cinder-stand-in/faults.js';
import { workflowIdOf } from '@stillpoint/workflows';
import type { RandomEngine } from './engine.js';
import type { Guest } from './guest.js';
import type { RandomHost } from './host.js';
import type { Lane } from './lane.js';
import type { CinderRequest, Scenario, ScenarioFault, What } from './scenario.js';

/** Who a scenario's faults strike. */
export interface Stage {
  lane: Lane;
  hosts: readonly RandomHost[];
  guests: readonly Guest[];
}

/** A scenario's faults: armed, struck when their moment comes, and ended. */
export class ScenarioFaults {
  /** Those that have struck, as they did. */
  readonly struck: ScenarioFault[] = [];
  readonly #stage: Stage;
  readonly #stopListening: (() => void)[] = [];
  /** What ends those that last. */
  readonly #ends = new Set<() => void>();
  readonly #underWay = new Set<Promise<unknown>>();
  /** Engines that were killed and still have to end in this process. */
  readonly #graveyard: RandomEngine[] = [];
  readonly #changing = new Set<number>();
  #isOver = false;

  constructor(stage: Stage, scenario: Scenario) {
    this.#stage = stage;
    for (const fault of scenario.faults) this.#arm(fault);
  }

  /** Ends every fault, and puts everything right that people would: VMs run, guest agents answer, everybody is up. */
  async heal(): Promise<void> {
    this.#isOver = true;
    for (const stop of this.#stopListening) stop();
    for (const end of this.#ends) end();
    const { lane, hosts, guests } = this.#stage;
    lane.standIn.faults.clear();
    lane.standIn.volumes.quota = { snapshots: -1, gigabytes: -1 };
    for (const { spec, vm } of guests) {
      for (const { serial } of spec.disks)
        if (serial !== undefined) lane.standIn.volumes.nextSnapshot(serial, undefined);
      vm.setFreezeHook({ does: 'nothing' });
      vm.migrating = false;
      vm.agent.continue();
      vm.resume();
      vm.start();
      if (!vm.agent.connected) vm.connectAgent();
    }
    for (let tasks = -1; tasks !== this.#underWay.size; ) {
      tasks = this.#underWay.size;
      await Promise.all(this.#underWay);
    }
    for (const host of hosts) await host.settled();
  }

  /** The killed engines' remains. */
  async bury(): Promise<void> {
    await Promise.all(this.#graveyard.splice(0).map((engine) => engine.close()));
  }

  #arm(fault: ScenarioFault): void {
    if (this.#injected(fault)) return;
    const { when } = fault;
    if (when.at === 'time') {
      this.#later(when.ms, () => this.#strike(fault));
      return;
    }
    let skip = when.skip;
    const met = () => {
      if (skip < 0 || this.#isOver) return;
      skip -= 1;
      if (skip < 0) this.#strike(fault);
    };
    const guest = this.#guest(fault);
    if (when.at === 'call') {
      const stop = guest.host.world.onCall(({ name, uuid, phase }) => {
        if (phase === 'begins' && name === when.call && uuid === guest.vm.uuid) met();
      });
      this.#stopListening.push(stop);
      return;
    }
    const { lane } = this.#stage;
    if (when.at === 'cinder') {
      const before = lane.onCinderRequest;
      lane.onCinderRequest = (request) => {
        before(request);
        if (requestOf(request) === when.request) met();
      };
      return;
    }
    const before = lane.onCatalogueCall;
    lane.onCatalogueCall = (method, args) => {
      before(method, args);
      if (method === when.method) met();
    };
  }

  /** Faults of a call lie in wait for it by themselves. */
  #injected(fault: ScenarioFault): boolean {
    const { when, what } = fault;
    if (when.at !== 'call') return false;
    const how = callFaultOf(what);
    if (how === undefined) return false;
    const guest = this.#guest(fault);
    const times = what.does === 'refuse call' ? what.times : 1;
    const injected = guest.host.world.inject(when.call, how, { vm: guest.vm.uuid, skip: when.skip, times });
    this.#ends.add(() => {
      injected.remove();
      injected.release();
    });
    void injected.hit.then(async () => {
      this.struck.push(fault);
      if (what.does === 'late call') {
        this.#lasts(what.ms, () => this.#do(injected.happen().catch(() => {})));
      } else if (what.does === 'hold call') {
        if (when.call === 'thaw' || when.call === 'freezeStatus' || when.call === 'setAgentTimeout') {
          guest.thawIsHeld += 1;
          this.#lasts(what.ms, () => {
            guest.thawIsHeld -= 1;
            injected.release();
          });
        } else this.#lasts(what.ms, () => injected.release());
      }
    });
    return true;
  }

  #strike(fault: ScenarioFault): void {
    if (this.#isOver) return;
    this.struck.push(fault);
    const guest = this.#guest(fault);
    const { what } = fault;
    switch (what.does) {
      case 'power off':
        guest.vm.shutOff();
        this.#lasts(what.ms, () => guest.vm.start());
        break;
      case 'reboot':
        guest.vm.restart();
        break;
      case 'save':
        if (guest.vm.running) guest.vm.managedSave();
        this.#lasts(what.ms, () => guest.vm.start());
        break;
      case 'pause':
        guest.vm.pause();
        this.#lasts(what.ms, () => guest.vm.resume());
        break;
      case 'kill guest agent':
        guest.vm.disconnectAgent();
        this.#lasts(what.ms, () => connectAgent(guest));
        break;
      case 'restart guest agent':
        guest.vm.disconnectAgent();
        connectAgent(guest);
        break;
      case 'stop guest agent':
        guest.vm.agent.stop();
        this.#lasts(what.ms, () => guest.vm.agent.continue());
        break;
      case 'freeze hook':
        guest.vm.setFreezeHook(what.how === 'hang' ? { does: 'hang' } : { does: 'fail', status: 1 });
        this.#lasts(what.ms, () => guest.vm.setFreezeHook({ does: 'nothing' }));
        break;
      case 'migrate':
        guest.vm.migrate();
        this.#lasts(what.ms, () => {
          guest.vm.migrating = false;
        });
        break;
      case 'freeze by other':
        if (guest.vm.frozen || !guest.vm.running) break;
        guest.vm.freezeByOther();
        guest.isFrozenByOther = true;
        this.#lasts(what.ms, () => {
          if (guest.isFrozenByOther) guest.vm.thawByOther();
        });
        break;
      case 'thaw by other':
        guest.vm.thawByOther();
        break;
      case 'snapshot by other':
        snapshotByOther(guest);
        break;
      case 'block job by other': {
        const target = guest.spec.disks.filter(({ is }) => is === 'local')[what.target]?.target;
        if (target === undefined || guest.vm.blockJobs.has(target)) break;
        const end = guest.vm.startForeignBlockJob(target);
        this.#lasts(what.ms, end);
        break;
      }
      default:
        this.#strikeOthers(fault, guest);
    }
  }

  #strikeOthers({ what }: ScenarioFault, guest: Guest): void {
    const { lane } = this.#stage;
    const { host } = guest;
    switch (what.does) {
      case 'thaw by administrator':
        this.#do(this.#thawByAdministrator(guest));
        break;
      case 'libvirt down':
        for (const other of this.#onHost(host)) other.thawIsHeld += 1;
        host.world.connectionDown();
        this.#lasts(what.ms, () => {
          for (const other of this.#onHost(host)) other.thawIsHeld -= 1;
          host.world.connectionUp();
        });
        break;
      case 'host agent killed':
        this.#do(host.kill(what.ms));
        break;
      case 'host agent restarted':
        this.#do(host.restart(what.ms));
        break;
      case 'cut connections':
        for (const engine of this.#engines(what.engine)) {
          this.#do(engine.tunnelTo(host.address).then((tunnel) => tunnel.cut()));
        }
        break;
      case 'hang connections':
        for (const engine of this.#engines(what.engine)) {
          this.#do(
            engine.tunnelTo(host.address).then((tunnel) => {
              tunnel.silence();
              this.#lasts(what.ms, () => {
                if (!engine.isDead) tunnel.open();
              });
            }),
          );
        }
        break;
      case 'engine killed':
        this.#replaceEngine(what.engine, what.ms, async (engine) => {
          engine.kill();
          this.#graveyard.push(engine);
        });
        break;
      case 'engine stopped':
        this.#replaceEngine(what.engine, what.ms, (engine) => engine.close());
        break;
      case 'engine cut off from Temporal': {
        const end = lane.engines[what.engine].cutOffFromTemporal();
        this.#lasts(what.ms, end);
        break;
      }
      case 'catalogue down':
        lane.catalogueIsDown = true;
        this.#lasts(what.ms, () => {
          lane.catalogueIsDown = false;
        });
        break;
      case 'cinder down':
        this.#do(this.#cinderDown(what.ms));
        break;
      case 'quota used up':
        lane.standIn.volumes.quota = { snapshots: 0, gigabytes: 0 };
        this.#lasts(what.ms, () => {
          lane.standIn.volumes.quota = { snapshots: -1, gigabytes: -1 };
        });
        break;
      case 'tokens revoked':
        lane.standIn.keystone.revokeAll();
        break;
      case 'cinder snapshot sticks':
      case 'cinder snapshot fails':
        for (const { serial } of guest.spec.disks) {
          if (serial !== undefined) {
            lane.standIn.volumes.nextSnapshot(serial, what.does === 'cinder snapshot sticks' ? 'sticks' : 'fails');
          }
        }
        break;
      case 'cinder answers':
      case 'cinder slow':
      case 'cinder loses':
        this.#setCinderFault(what);
        break;
      case 'cancel':
      case 'terminate':
      case 'reset':
        this.#do(this.#byTemporal(what, guest));
        break;
      default:
        throw new Error(`nobody knows how to do: ${what.does}`);
    }
  }

  async #thawByAdministrator({ host, vm }: Guest): Promise<void> {
    const engine = this.#stage.lane.engines[0];
    await engine.hosts
      .host(host.name)
      .thawVm({ vm: vm.uuid, askedBy: 'an administrator' })
      .catch(() => {});
  }

  #replaceEngine(at: 0 | 1, ms: number, end: (engine: RandomEngine) => Promise<void>): void {
    if (this.#changing.has(at)) return;
    this.#changing.add(at);
    const { lane } = this.#stage;
    const replaced = async () => {
      await end(lane.engines[at]);
      await this.#pause(ms);
      lane.engines[at] = await lane.startEngine();
      this.#changing.delete(at);
    };
    this.#do(replaced());
  }

  async #cinderDown(ms: number): Promise<void> {
    const { standIn } = this.#stage.lane;
    if (!standIn.isUp) return;
    await standIn.down();
    await this.#pause(ms);
    await standIn.up();
  }

  #setCinderFault(what: Extract<What, { does: 'cinder answers' | 'cinder slow' | 'cinder loses' }>): void {
    const { faults } = this.#stage.lane.standIn;
    const rule = { ...ruleOf(what.request), times: what.does === 'cinder answers' ? what.times : 1 };
    if (what.does === 'cinder answers') {
      const { status } = what;
      const body = { computeFault: { code: status, message: 'Simulated.' } };
      void faults.set(rule, { does: what.after ? 'answer-after' : 'answer', status, body });
    } else if (what.does === 'cinder loses') {
      void faults.set(rule, { does: what.what === 'request' ? 'lose-request' : 'lose-answer' });
    } else {
      let release = (): void => {};
      const until = new Promise<void>((resolve) => {
        release = resolve;
      });
      const fault: CinderFault = { does: what.where === 'before' ? 'hold-request' : 'hold-answer', until };
      void faults.set(rule, fault).then(() => this.#lasts(what.ms, release));
    }
  }

  async #byTemporal(what: Extract<What, { does: 'cancel' | 'terminate' | 'reset' }>, { vm }: Guest): Promise<void> {
    const { client } = this.#stage.lane.settings;
    const handle = client.workflow.getHandle(workflowIdOf(vm.uuid));
    try {
      if (what.does === 'reset') await this.#reset(workflowIdOf(vm.uuid), what.to);
      else if (what.does === 'cancel') await handle.cancel();
      else await handle.terminate('an administrator lost patience');
    } catch {
      // No run is open, or it has just ended.
    }
  }

  async #reset(workflowId: string, to: number): Promise<void> {
    const { client } = this.#stage.lane.settings;
    const { runId, status } = await client.workflow.getHandle(workflowId).describe();
    if (status.name !== 'RUNNING') return;
    const { events } = await client.workflow.getHandle(workflowId, runId).fetchHistory();
    const tasks = (events ?? []).filter((event) => event.workflowTaskCompletedEventAttributes);
    const event = tasks[Math.min(to, tasks.length - 1)];
    if (event?.eventId === undefined) return;
    await client.workflowService.resetWorkflowExecution({
      namespace: 'default',
      workflowExecution: { workflowId, runId },
      reason: 'an administrator tries again',
      workflowTaskFinishEventId: event.eventId,
      requestId: randomUUID(),
    });
  }

  #engines(which: 0 | 1 | 2): RandomEngine[] {
    const { engines } = this.#stage.lane;
    return which === 2 ? [...engines] : [engines[which]];
  }

  #guest({ vm }: ScenarioFault): Guest {
    const guest = this.#stage.guests[vm];
    if (guest === undefined) throw new Error(`no VM ${vm}`);
    return guest;
  }

  #onHost(host: RandomHost): Guest[] {
    return this.#stage.guests.filter((guest) => guest.host === host);
  }

  /** Calls `end` once: after `ms`, or when the faults are healed. */
  #lasts(ms: number, end: () => void): void {
    const once = () => {
      if (!this.#ends.delete(once)) return;
      clearTimeout(timer);
      end();
    };
    const timer = setTimeout(once, ms);
    this.#ends.add(once);
    if (this.#isOver) once();
  }

  #later(ms: number, then: () => void): void {
    const timer = setTimeout(then, ms);
    this.#stopListening.push(() => clearTimeout(timer));
  }

  /** For so long, or until the faults are healed. */
  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.#lasts(ms, resolve));
  }

  #do(task: Promise<unknown>): void {
    this.#underWay.add(task);
    void task.finally(() => this.#underWay.delete(task));
  }
}

function connectAgent({ vm }: Guest): void {
  if (vm.running && !vm.agent.connected) vm.connectAgent();
}

/** As `virsh snapshot-create-as --disk-only --no-metadata` does: another overlay on top of what is active. */
function snapshotByOther(guest: Guest): void {
  const { vm, host, spec } = guest;
  const target = spec.disks.find(({ is }) => is === 'local')?.target;
  const active = target === undefined ? undefined : vm.live?.get(target);
  if (target === undefined || active?.source === undefined || vm.blockJobs.has(target)) return;
  guest.foreignImages += 1;
  const { files } = host.world;
  const path = `/var/lib/libvirt/images/${vm.name}-${target}.other-${guest.foreignImages}`;
  const recorded = files
    .chain(active.source)
    .map((image) => ({ path: image.path, format: image.format, kind: image.kind }));
  files.add({ path, backing: active.source, backingFormat: active.format });
  if (vm.inactive?.get(target)?.source === active.source) vm.setSource('inactive', target, path, 'qcow2', recorded);
  vm.setSource('live', target, path, 'qcow2');
}

function callFaultOf(what: What): CallFault | undefined {
  switch (what.does) {
    case 'refuse call':
      return { reject: what.code as HostAgentErrorCode };
    case 'lose reply':
      return { loseReply: what.code as HostAgentErrorCode };
    case 'late call':
      return { late: 'LIBVIRT_CALL_TIMEOUT' };
    case 'hold call':
      return { hold: what.where };
    default:
      return undefined;
  }
}

const rules: Record<CinderRequest, FaultRule> = {
  create: { service: 'cinder', method: 'POST', path: /^\/snapshots$/ },
  show: { service: 'cinder', method: 'GET', path: /^\/snapshots\/(?!detail)/ },
  list: { service: 'cinder', method: 'GET', path: /^\/snapshots(\/detail)?$/ },
  delete: { service: 'cinder', method: 'DELETE', path: /^\/snapshots\// },
  volume: { service: 'cinder', method: 'GET', path: /^\/volumes\// },
  limits: { service: 'cinder', method: 'GET', path: /^\/limits$/ },
  token: { service: 'keystone', method: 'POST' },
};

function ruleOf(request: CinderRequest): FaultRule {
  return rules[request];
}

function requestOf({ service, method, path }: SeenRequest): CinderRequest | undefined {
  const found = Object.entries(rules).find(
    ([, rule]) => rule.service === service && rule.method === method && (rule.path?.test(path) ?? true),
  );
  return found?.[0] as CinderRequest | undefined;
}
