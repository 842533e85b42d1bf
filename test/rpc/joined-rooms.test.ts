import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials, status } from '@grpc/grpc-js';
import { createFreezeRoom } from '@stillpoint/host-agent/freeze/room.js';
import { type Listening, serveEngine } from '@stillpoint/host-agent/rpc/server.js';
import { createServices } from '@stillpoint/host-agent/rpc/service.js';
import { noLatencies } from '@stillpoint/host-agent/simulated/faults.js';
import { createSimulatedHypervisor, type SimulatedHypervisor } from '@stillpoint/host-agent/simulated/hypervisor.js';
import { keepsWriteOrder } from '@stillpoint/host-agent/simulated/numbers.js';
import { createSnapshotRoom } from '@stillpoint/host-agent/snapshot/room.js';
import {
  FreezeState,
  HostAgentClient,
  HostAgentService,
  MergeOutcome,
  type MergeResult,
  type PrepareRequest,
  Quiesce,
  type SnapshotVmRequest,
  type UndoResponse,
} from '@stillpoint/proto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { happening, operation, vmUuid, window1 } from './rooms.js';
import { ask, failure, silent } from './served.js';

/** The real rooms over the simulated hypervisor: what SnapshotVm(frozen = false) does to a guest. */

let folder: string;
let world: SimulatedHypervisor;
let listening: Listening;
let client: HostAgentClient;
let shutdown: () => Promise<void>;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-rpc-'));
  world = createSimulatedHypervisor({
    vms: [
      { name: 'web-1', uuid: vmUuid, disks: [{ target: 'vda' }, { target: 'vdb' }] },
      { name: 'quiet', uuid: other, disks: [{ target: 'vda' }], guestAgent: 'disconnected' },
    ],
    latencies: noLatencies,
    writeEveryMs: 0,
  });
  await world.start();
  const freeze = createFreezeRoom({ hypervisor: world, folder, log: silent });
  await freeze.start();
  const snapshot = await createSnapshotRoom({ hypervisor: world, folder: join(folder, 'snapshots'), log: silent });
  const { hostAgent } = createServices({
    hostName: 'kvm-01',
    hypervisor: world,
    freeze,
    snapshot,
    recovering: Promise.resolve(),
    stopping: new AbortController().signal,
    log: silent,
  });
  listening = await serveEngine({ listen: '127.0.0.1:0', transport: 'insecure', hostAgent, log: silent });
  client = new HostAgentClient(listening.address, credentials.createInsecure());
  shutdown = () => freeze.shutdown();
});

afterEach(async () => {
  client.close();
  await shutdown();
  await listening.stop(0);
  await world.close();
  await rm(folder, { recursive: true });
});

const other = '22222222-2222-4222-8222-222222222222';

function prepare(change: Partial<PrepareRequest> = {}) {
  return ask(client, HostAgentService.prepare, {
    vmUuid,
    operationId: operation,
    windowId: window1,
    installationId: 'site-a',
    localDisks: ['vda', 'vdb'],
    setDisks: ['vda', 'vdb'],
    unquiescedDisks: [],
    quiesce: Quiesce.REQUIRED,
    windowLimitMs: 0,
    ...change,
  });
}

const cutRequest: SnapshotVmRequest = {
  vmUuid,
  windowId: window1,
  disks: ['vda', 'vdb'],
  frozen: false,
  quiesce: Quiesce.REQUIRED,
  cut: '',
  freezeTimeoutMs: 0,
};

const cut = (change: Partial<SnapshotVmRequest> = {}) =>
  ask(client, HostAgentService.snapshotVm, { ...cutRequest, ...change });

function undo(): Promise<MergeResult> {
  return new Promise((resolve, reject) => {
    const call = client.undo({ vmUuid, windowId: window1 });
    call.on('error', reject);
    call.on('data', ({ message }: UndoResponse) => {
      if (message?.$case === 'result') resolve(message.value);
    });
  });
}

const web = () => world.vm('web-1');
const activeImages = () => [...(web().live?.values() ?? [])].map(({ source }) => source ?? '');

test('a set of local disks is frozen, cut and thawed in one call, and the verdict says that the freeze held', async () => {
  web().write(7);
  const prepared = await prepare();
  const answer = await cut();
  web().write(7);
  expect(web().frozen).toBe(false);
  expect(answer.verdict).toMatchObject({ held: true, frozenFileSystems: 2, thawedFileSystems: 2 });
  expect(answer.overlays).toEqual(prepared.overlays);
  expect(activeImages()).toEqual(prepared.overlays.map(({ overlayPath }) => overlayPath));
  const cuts = prepared.overlays.map(({ basePath }) => world.files.content(basePath).last);
  expect(keepsWriteOrder(cuts)).toBe(true);
});

test('a repeated call is refused for good', async () => {
  await prepare();
  await cut();
  expect(await failure(cut())).toMatchObject({ code: status.FAILED_PRECONDITION, reason: 'WINDOW_CLOSED' });
});

test('a transaction that libvirt refuses leaves the guest thawed, and Undo leaves no overlay', async () => {
  const prepared = await prepare();
  world.inject('snapshotDisks', { reject: 'SNAPSHOT_FAILED' });
  expect(await failure(cut())).toMatchObject({ reason: 'SNAPSHOT_FAILED' });
  expect(web().frozen).toBe(false);
  expect(await undo()).toMatchObject({ complete: true });
  expect(activeImages()).toEqual(prepared.overlays.map(({ basePath }) => basePath));
});

test('a call that is broken off while libvirt cuts thaws the guest at once, and Undo takes the cut back', async () => {
  await prepare();
  const thawed = happening<void>();
  world.onCall(({ name, phase }) => {
    if (name === 'thaw' && phase === 'answered') thawed.happens();
  });
  const held = world.inject('snapshotDisks', { hold: 'before' });
  const call = client.snapshotVm(cutRequest, () => {});
  await held.hit;
  call.cancel();
  await thawed.happened;
  expect(web().frozen).toBe(false);
  held.release();
  const result = await undo();
  expect(result.complete).toBe(true);
});

test('without a guest agent, skip cuts unfrozen and required is refused before anything is made', async () => {
  const ofQuiet = { vmUuid: other, localDisks: ['vda'], setDisks: ['vda'] };
  expect(await failure(prepare(ofQuiet))).toMatchObject({ reason: 'AGENT_NOT_CONNECTED' });
  const second = `${operation}.2`;
  await prepare({ ...ofQuiet, windowId: second, quiesce: Quiesce.SKIP });
  const answer = await cut({ vmUuid: other, windowId: second, disks: ['vda'], quiesce: Quiesce.SKIP });
  expect(answer.verdict).toBeUndefined();
  expect(world.vm('quiet').live?.get('vda')?.source).toBe(answer.overlays[0]?.overlayPath);
});

test('best effort goes on when the guest agent goes away after Prepare, and says so', async () => {
  await prepare({ quiesce: Quiesce.BEST_EFFORT });
  web().disconnectAgent();
  const answer = await cut({ quiesce: Quiesce.BEST_EFFORT });
  expect(answer).toMatchObject({ unfrozenReason: 'AGENT_NOT_CONNECTED', verdict: undefined });
  expect(activeImages()).toEqual(answer.overlays.map(({ overlayPath }) => overlayPath));
});

test('a failed Prepare leaves the VM free and no overlay', async () => {
  expect(
    await failure(prepare({ localDisks: ['vdx'], setDisks: ['vda', 'vdx'], unquiescedDisks: ['vdx', 'vda'] })),
  ).toMatchObject({
    code: status.NOT_FOUND,
    reason: 'DISK_NOT_FOUND',
  });
  const { vm } = await ask(client, HostAgentService.getVm, { vmUuid });
  expect(vm?.hold).toMatchObject({ operationId: '', freezeState: FreezeState.THAWED });
});

test('Undo of a cut merges the overlays back, and Release gives the VM back', async () => {
  await prepare();
  await cut();
  web().write(5);
  const result = await undo();
  expect(result.disks.map(({ outcome }) => outcome)).toEqual([MergeOutcome.COMMITTED, MergeOutcome.COMMITTED]);
  expect(web().content('vda').isGapless).toBe(true);
  const released = await ask(client, HostAgentService.release, { vmUuid, operationId: operation });
  expect(released).toEqual({ released: true });
});
