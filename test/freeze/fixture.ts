import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createFreezeRoom } from '@stillpoint/host-agent/freeze/room.js';
import type { FreezeSettings } from '@stillpoint/host-agent/freeze/settings.js';
import type { GuestFileSystem, Hypervisor } from '@stillpoint/host-agent/hypervisor.js';
import { noLatencies } from '@stillpoint/host-agent/simulated/faults.js';
import {
  createSimulatedHypervisor,
  type SimulatedHypervisor,
  type SimulatedSession,
} from '@stillpoint/host-agent/simulated/hypervisor.js';
import type { SimulatedVmSettings } from '@stillpoint/host-agent/simulated/vm.js';
import type { FreezeRoom, Hold, ReserveRequest } from '@stillpoint/host-agent/window.js';
import { pino } from 'pino';
import { onTestFinished, vi } from 'vitest';

/** One second of libvirt's and the guest agent's timeouts, in ms. */
const secondMs = 50;

/** Short times, so that no test waits for a production value; those that a test is about it sets itself. */
const shortTimes: Partial<FreezeSettings> = {
  retryFirstMs: 5,
  retryMaxMs: 20,
  stillFrozenAfterMs: 30,
  // Long enough for a busy machine: only a test that waits for such an answer shortens it.
  thawAnswerMs: 10_000,
  callGuardMs: 2_000,
};

export const web1 = '00000000-0000-4000-8000-000000000001';
export const db1 = '00000000-0000-4000-8000-000000000002';
export const operation = '6f8f1b9e-9d35-4f2c-8b3e-2f5f6a1d7c01';
export const window1 = `${operation}.1`;
export const window2 = `${operation}.2`;

/** A simulated host with two VMs, and a room over it. Everything ends with the test. */
export async function host(
  options: { settings?: Partial<FreezeSettings>; vm?: Partial<SimulatedVmSettings>; canSetAgentTimeout?: boolean } = {},
) {
  const world = createSimulatedHypervisor({
    vms: [
      { name: 'web-1', uuid: web1, disks: [{ target: 'vda' }, { target: 'vdb' }], ...options.vm },
      { name: 'db-1', uuid: db1, disks: [{ target: 'vda' }] },
    ],
    latencies: noLatencies,
    writeEveryMs: 0,
    secondMs,
    ...(options.canSetAgentTimeout === false
      ? { facts: { libvirtVersion: '5.9.0', canSetAgentTimeout: false } }
      : undefined),
  });
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-freeze-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return new Host(world, folder, { ...shortTimes, ...options.settings });
}

export class Host {
  readonly world: SimulatedHypervisor;
  readonly folder: string;
  readonly settings: Partial<FreezeSettings>;

  constructor(world: SimulatedHypervisor, folder: string, settings: Partial<FreezeSettings>) {
    this.world = world;
    this.folder = folder;
    this.settings = settings;
  }

  /** A life of the host agent: its room, started. */
  async life(settings: Partial<FreezeSettings> = {}): Promise<{ room: FreezeRoom; session: SimulatedSession }> {
    const session = this.world.session();
    const room = await this.roomOver(session, settings);
    return { room, session };
  }

  /** A life that the test kills: its calls are never answered then, and it ends soon all the same. */
  async doomedLife(settings: Partial<FreezeSettings> = {}): Promise<{ room: FreezeRoom; session: SimulatedSession }> {
    return this.life({ callGuardMs: 300, thawAnswerMs: 100, ...settings });
  }

  async room(settings: Partial<FreezeSettings> = {}): Promise<FreezeRoom> {
    return (await this.life(settings)).room;
  }

  async roomOver(hypervisor: Hypervisor, settings: Partial<FreezeSettings> = {}): Promise<FreezeRoom> {
    const room = createFreezeRoom({
      hypervisor,
      folder: this.folder,
      hostName: 'kvm-1',
      settings: { ...this.settings, ...settings },
      log: pino({ level: 'silent' }),
    });
    onTestFinished(async () => {
      this.thawEverything();
      await room.shutdown();
    });
    await room.start();
    return room;
  }

  /** What the guest itself says. */
  isFrozen(vm = web1): boolean {
    return this.world.vm(vm).agent.frozen;
  }

  /** Names of the port's calls for a VM, from now on. */
  calls(vm = web1): string[] {
    const names: string[] = [];
    this.world.onCall(({ name, uuid, phase }) => {
      if (phase === 'begins' && uuid === vm) names.push(name);
    });
    return names;
  }

  private thawEverything(): void {
    for (const vm of [web1, db1]) this.world.vm(vm).agent.frozen = false;
  }
}

export function reserveRequest(changes: Partial<ReserveRequest> = {}): ReserveRequest {
  return {
    vm: web1,
    operation,
    window: window1,
    installation: 'lab',
    quiesce: 'required',
    windowLimitMs: undefined,
    setDisks: ['vda', 'vdb'],
    unquiescedDisks: [],
    ...changes,
  };
}

/** Reserves and keeps what Prepare pins. */
export async function prepare(host: Host, room: FreezeRoom, changes: Partial<ReserveRequest> = {}) {
  const request = reserveRequest(changes);
  const answer = await room.reserve(request);
  await room.keepPrepared(request.window, preparedOf(host, request.vm));
  return answer;
}

/** What Prepare pins and makes, without disks. */
export function preparedOf(host: Host, vm = web1): Parameters<FreezeRoom['keepPrepared']>[1] {
  const { domainId } = host.world.vm(vm).describe();
  return { pinned: { domainId, disks: [], fileSystems: undefined, osId: undefined }, overlays: [] };
}

/** A hypervisor some of whose calls the test answers itself. */
export function overriding(hypervisor: Hypervisor, calls: Partial<Hypervisor>): Hypervisor {
  return new Proxy(hypervisor, {
    get: (target, name) => {
      const own: unknown = Reflect.get(calls, name);
      if (own !== undefined) return own;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

type FreezeRequest = Parameters<FreezeRoom['freeze']>[0];

export function freezeRequest(changes: Partial<FreezeRequest> = {}): FreezeRequest {
  return {
    vm: web1,
    window: window1,
    cuts: ['vda', 'vdb'],
    freezeTimeoutMs: 1_000,
    caller: new AbortController().signal,
    ...changes,
  };
}

/** A room with web-1 frozen in its first window, and the holds of both cuts. */
export async function frozen(
  host: Host,
  options: { room?: FreezeRoom; reserve?: Partial<ReserveRequest>; cuts?: string[] } = {},
): Promise<{ room: FreezeRoom; holds: Hold[] }> {
  const room = options.room ?? (await host.room());
  const reserve = reserveRequest(options.reserve);
  await prepare(host, room, reserve);
  const cuts = options.cuts ?? ['vda', 'vdb'];
  const holds = cuts.map((cut) => room.hold(reserve.vm, reserve.window, cut));
  await room.freeze(freezeRequest({ vm: reserve.vm, window: reserve.window, cuts }));
  await Promise.all(holds.map(({ held }) => held));
  return { room, holds };
}

/** A freeze with somebody ready for each of its cuts. What refuses these refuses the freeze, too, which is what the tests are about. */
export function freeze(room: FreezeRoom, changes: Partial<FreezeRequest> = {}): ReturnType<FreezeRoom['freeze']> {
  const request = freezeRequest(changes);
  for (const cut of request.cuts) {
    try {
      room.hold(request.vm, request.window, cut);
    } catch {}
  }
  return room.freeze(request);
}

/** The window's verdict, as soon as there is one. */
export async function verdictOf(room: FreezeRoom, vm = web1, window = window1) {
  return vi.waitFor(
    () => {
      const verdict = room.verdict(vm, window);
      if (verdict === undefined) throw new Error('no verdict yet');
      return verdict;
    },
    { timeout: 5_000, interval: 2 },
  );
}

/** Resolves when the condition holds. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  await vi.waitFor(
    () => {
      if (!condition()) throw new Error(`not yet: ${what}`);
    },
    { timeout: 5_000, interval: 2 },
  );
}

/** A mounted file system; each has its own device unless one is given. */
export function fileSystem(mountpoint: string, type: string, targets: string[], device = mountpoint): GuestFileSystem {
  return { mountpoint, type, device, targets };
}
