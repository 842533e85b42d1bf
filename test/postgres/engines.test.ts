import { randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ConnectedClient, connectClient } from '@stillpoint/engine/temporal/connection.js';
import { type DevServer, startDevServer } from '@stillpoint/engine/temporal/dev-server.js';
import { makeCa, makeEngineCertificate, makeHostCertificate } from '@stillpoint/host-agent/certs.js';
import type { SimulatedVm } from '@stillpoint/host-agent/simulated/vm.js';
import { type CinderStandIn, startCinderStandIn } from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import type { PostgresServer } from '@stillpoint/lab/postgres.js';
import { workflowIdOf } from '@stillpoint/workflows';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { EngineProgram } from '../system/fixtures/engine-program.js';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';
import { type SimulatedHost, simulatedHost } from '../workflows/fixtures/installation.js';
import { postgresServer } from './server.js';

/**
 * Engines as programs, each with a certificate of its own, on one PostgreSQL and one Temporal server; the host agent's rooms and its gRPC are the real ones, guests
 * and Cinder stand-ins.
 */

let folder: string;
let server: PostgresServer;
let passwordFile: string;
let database: string;
let temporal: DevServer;
let connected: ConnectedClient;
let standIn: CinderStandIn;
let host: SimulatedHost;
const engines = new Set<EngineProgram>();

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-engines-'));
  ({ server, passwordFile } = await postgresServer());
  database = await server.createDatabase('installation');
  temporal = await startDevServer({ command: await installedTemporal(), stateFolder: join(folder, 'temporal') });
  connected = await connectClient(temporal.settings);
  standIn = await startCinderStandIn({ times: { acceptMs: 2, cutMs: 50, availableMs: 60, deleteMs: 5 } });
  await makeCa(folder);
  host = await hostAgent('kvm-01');
});

afterAll(async () => {
  for (const engine of engines) engine.process.kill('SIGKILL');
  await host?.stop();
  await standIn?.close();
  await connected?.connection.close();
  await temporal?.stop();
  await server?.end();
  await rm(folder, { recursive: true, force: true });
});

async function hostAgent(name: string): Promise<SimulatedHost> {
  await makeHostCertificate(folder, name);
  const [ca, certificate, key] = await Promise.all(
    ['ca', name, `${name}-key`].map((file) => readFile(join(folder, `${file}.pem`))),
  );
  if (!ca || !certificate || !key) throw new Error('no certificate');
  return simulatedHost(name, [], folder, { ca, certificate, key });
}

/** An engine on the installation's database. Ready when it says so. */
async function engineOf(
  config: Record<string, unknown> = {},
  env: Record<string, string> = {},
): Promise<EngineProgram> {
  const name = `engine-${engines.size}`;
  await makeEngineCertificate(folder);
  for (const file of ['', '-key']) {
    await rename(join(folder, `engine${file}.pem`), join(folder, `${name}${file}.pem`));
  }
  const [ca, certificate, key] = ['ca', name, `${name}-key`].map((file) => join(folder, `${file}.pem`));
  const engine = await EngineProgram.start(
    folder,
    {
      database: { url: database, passwordFile },
      hosts: { tls: { ca, certificate, key } },
      windowSlots: 1,
      // So long an undo looks for what a create without an answer may still make.
      openstack: { rpcTimeoutMs: 1_000 },
      ...config,
    },
    { TEMPORAL_ADDRESS: temporal.address, ...standIn.environment(), ...env },
  );
  engines.add(engine);
  return engine;
}

async function ask(engine: EngineProgram, method: string, path: string, body?: object, headers = {}) {
  const answer = await fetch(`${await engine.api()}${path}`, {
    method,
    headers: { ...headers, ...(body && { 'content-type': 'application/json' }) },
    ...(body && { body: JSON.stringify(body) }),
  });
  const text = await answer.text();
  return { status: answer.status, body: text === '' ? undefined : JSON.parse(text) };
}

async function take(engine: EngineProgram, of: string, headers = {}): Promise<string> {
  const taken = await ask(engine, 'POST', `/v1/vms/${of}/snapshots`, {}, headers);
  expect(taken, JSON.stringify(taken.body)).toMatchObject({ status: 202 });
  return taken.body.id;
}

const see = async (engine: EngineProgram, id: string) => (await ask(engine, 'GET', `/v1/snapshots/${id}`)).body;

const atEnd = async (engine: EngineProgram, id: string) =>
  (await ask(engine, 'GET', `/v1/snapshots/${id}?wait=30`)).body;

/** The engine that works on a step of the VM's run, by the word of Temporal. */
async function whoWorksOn(step: string): Promise<EngineProgram> {
  const { raw } = await connected.client.workflow.getHandle(workflowIdOf(uuid)).describe();
  const pending = raw.pendingActivities?.find(({ activityType }) => activityType?.name === step);
  const pid = Number(pending?.lastWorkerIdentity?.split('@')[0]);
  const engine = [...engines].find(({ process }) => process.pid === pid);
  if (engine === undefined) throw new Error(`Nobody works on ${step}: ${JSON.stringify(raw.pendingActivities)}`);
  return engine;
}

let uuid: string;
let vm: SimulatedVm;
let volume: string;
const isFrozen = () => vm.frozen;

function addVm(on = host): void {
  uuid = randomUUID();
  volume = standIn.addVolume({ instance: uuid });
  const disks = [{ target: 'vda' }, { target: 'vdb', kind: 'rbd' as const, serial: volume }];
  vm = on.world.addVm({ name: `web-${uuid.slice(0, 8)}`, uuid, disks });
}

/** A VM whose windows are its host's own. */
function addLocalVm(): void {
  uuid = randomUUID();
  vm = host.world.addVm({ name: `web-${uuid.slice(0, 8)}`, uuid, disks: [{ target: 'vda' }] });
}

const inCinder = () => standIn.volumes.snapshots().filter(({ volumeId }) => volumeId === volume);

describe('two engines on one database', () => {
  let a: EngineProgram;
  let b: EngineProgram;
  const other = (engine: EngineProgram) => (engine === a ? b : a);

  beforeAll(async () => {
    [a, b] = [await engineOf(), await engineOf()];
    await Promise.all([a.said(/^ready$/), b.said(/^ready$/)]);
    const added = await ask(a, 'POST', '/v1/hosts', { name: host.name, address: host.address });
    expect(added, JSON.stringify(added.body)).toMatchObject({ status: 201, body: { reachable: true } });
  });

  // A test may have killed one, and the other has seen that through.
  beforeEach(async () => {
    addVm();
    if (a.process.signalCode !== null) a = await engineOf();
    if (b.process.signalCode !== null) b = await engineOf();
    await Promise.all([a.said(/^ready$/), b.said(/^ready$/)]);
  });

  afterAll(async () => {
    await Promise.all([a?.stop(), b?.stop()]);
  });

  it('are one to their users: what is asked of one is shown, refused, cancelled and deleted by the other', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const id = await take(a, uuid);
    await held.hit;
    // Temporal, which is asked for it, hears of the freeze a second later.
    const seen = { state: 'running', host: 'kvm-01', progress: { state: 'frozen' } };
    await expect.poll(() => see(b, id), { timeout: 10_000 }).toMatchObject(seen);
    expect((await ask(b, 'GET', `/v1/vms/${uuid}`)).body.hold).toMatchObject({ snapshotId: id, freezeState: 'frozen' });
    expect(await ask(b, 'POST', `/v1/vms/${uuid}/snapshots`)).toMatchObject({
      status: 409,
      body: { code: 'VM_BUSY', holder: { snapshotId: id } },
    });
    held.release();
    expect(await atEnd(b, id)).toMatchObject({ state: 'complete', grade: 'filesystem' });

    const merging = host.world.inject('mergeOverlay', { hold: 'before' }, { vm: uuid });
    expect((await ask(b, 'DELETE', `/v1/snapshots/${id}`)).status).toBe(202);
    await merging.hit;
    expect(await see(a, id)).toMatchObject({ state: 'deleting' });
    merging.release();
    expect(await atEnd(a, id)).toMatchObject({ state: 'deleted', error: null, pending: [] });

    const cut = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const cancelled = await take(b, uuid);
    await cut.hit;
    expect((await ask(a, 'POST', `/v1/snapshots/${cancelled}/cancel`)).status).toBe(202);
    await expect.poll(isFrozen, { timeout: 10_000 }).toBe(false);
    cut.release();
    expect(await atEnd(b, cancelled)).toMatchObject({ state: 'cancelled', pending: [] });
    expect(inCinder()).toEqual([]);
  });

  it('make one snapshot of one Idempotency-Key, though both are asked at once', async () => {
    let freezes = 0;
    const stop = host.world.onCall(({ name, uuid: of, phase }) => {
      if (name === 'freeze' && of === uuid && phase === 'begins') freezes += 1;
    });
    const key = { 'idempotency-key': randomUUID() };
    const ids = await Promise.all([take(a, uuid, key), take(b, uuid, key), take(a, uuid, key), take(b, uuid, key)]);
    expect(new Set(ids).size).toBe(1);
    expect(await atEnd(b, ids[0] ?? '')).toMatchObject({ state: 'complete' });
    expect(await take(b, uuid, key)).toBe(ids[0]);
    expect(await ask(b, 'POST', `/v1/vms/${uuid}/snapshots`, { name: 'another' }, key)).toMatchObject({
      status: 422,
      body: { code: 'IDEMPOTENCY_CONFLICT' },
    });
    stop();
    expect(freezes).toBe(1);
  });

  it('count their windows together', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const first = await take(a, uuid);
    await held.hit;
    addVm();
    const second = await take(b, uuid);
    addVm();
    const third = await take(a, uuid);
    for (const engine of [a, b]) {
      for (const id of [second, third]) {
        await expect.poll(() => see(engine, id)).toMatchObject({ progress: { state: 'queued' } });
      }
    }
    expect(await server.query('select count(*) from window_slots where taken', 'installation')).toBe('1');
    held.release();
    for (const id of [first, second, third]) expect(await atEnd(a, id)).toMatchObject({ state: 'complete' });
    expect(await server.query('select count(*) from window_slots', 'installation')).toBe('0');
  });

  it('know the same hosts', async () => {
    const second = await hostAgent('kvm-02');
    try {
      addVm(second);
      expect((await ask(b, 'POST', '/v1/hosts', { name: 'kvm-02', address: second.address })).status).toBe(201);
      const id = await take(a, uuid);
      expect(await atEnd(a, id)).toMatchObject({ state: 'complete', host: 'kvm-02' });
      expect(await ask(a, 'DELETE', '/v1/hosts/kvm-02')).toMatchObject({ status: 409, body: { code: 'HOST_IN_USE' } });
      expect((await ask(a, 'DELETE', '/v1/hosts/kvm-02?lost=true')).status).toBe(200);
      const { hosts } = (await ask(b, 'GET', '/v1/hosts')).body;
      expect(hosts).toContainEqual(expect.objectContaining({ name: 'kvm-02', state: 'lost' }));
    } finally {
      await second.stop();
    }
  });

  it('end each other’s windows: one dies in a window of its host’s own', async () => {
    addLocalVm();
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const id = await take(a, uuid);
    await held.hit;
    expect(vm.frozen).toBe(true);
    const dead = await whoWorksOn('snapshotLocalDisks');
    dead.process.kill('SIGKILL');
    await expect.poll(isFrozen, { timeout: 5_000 }).toBe(false);
    held.release();
    const ended = await atEnd(other(dead), id);
    expect(ended).toMatchObject({ state: 'complete', grade: 'filesystem', window: { id: `${id}.2` }, pending: [] });
    expect((await ask(other(dead), 'GET', `/v1/vms/${uuid}`)).body.hold).toBeNull();
  });

  it('end each other’s windows: one dies while Cinder makes its cut', async () => {
    let goOn: (value?: unknown) => void = () => {};
    const until = new Promise((resolve) => {
      goOn = resolve;
    });
    const made = standIn.faults.set({ method: 'POST', path: /^\/snapshots$/ }, { does: 'hold-answer', until });
    const id = await take(b, uuid);
    await made;
    expect(vm.frozen).toBe(true);
    const dead = await whoWorksOn('snapshotVolume');
    dead.process.kill('SIGKILL');
    await expect.poll(isFrozen, { timeout: 5_000 }).toBe(false);
    goOn();
    const ended = await atEnd(other(dead), id);
    expect(ended).toMatchObject({ state: 'complete', grade: 'filesystem', window: { id: `${id}.2` }, pending: [] });
    expect(inCinder().map(({ metadata }) => metadata.stillpoint_window)).toEqual([`${id}.2`]);
    expect((await ask(other(dead), 'GET', `/v1/vms/${uuid}`)).body.hold).toBeNull();
  });

  it('thaw without a database that is down, and record when it is back', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const id = await take(a, uuid);
    await held.hit;
    await server.stop('immediate');
    try {
      held.release();
      await expect.poll(isFrozen, { timeout: 5_000 }).toBe(false);
      for (const engine of [a, b]) {
        expect(await ask(engine, 'GET', '/readyz')).toMatchObject({ status: 503, body: { notReady: ['catalogue'] } });
        // The other engine's list may be some seconds old, and the VM younger.
        await expect
          .poll(async () => (await ask(engine, 'GET', '/v1/vms')).body.vms, { timeout: 20_000 })
          .toContainEqual(expect.objectContaining({ uuid }));
      }
      expect(await ask(b, 'POST', `/v1/vms/${uuid}/snapshots`)).toMatchObject({
        status: 503,
        body: { code: 'CATALOGUE_UNAVAILABLE' },
      });
      await expect
        .poll(async () => (await see(a, id)).progress?.waiting, { timeout: 20_000 })
        .toMatch(/The catalogue failed: .*ECONNREFUSED/);
    } finally {
      await server.start();
    }
    expect(await atEnd(b, id)).toMatchObject({ state: 'complete', grade: 'filesystem' });
  });
});

describe('an API alone and workers alone', () => {
  it('are one engine, and the next worker ends what a dead one began', async () => {
    const [api, worker] = [await engineOf({ role: 'api' }), await engineOf({ role: 'worker' })];
    await Promise.all([api.said(/^ready$/), worker.said(/^ready$/)]);
    addVm();
    const id = await take(api, uuid);
    expect(await atEnd(api, id)).toMatchObject({ state: 'complete', grade: 'filesystem' });

    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const second = await take(api, uuid);
    await held.hit;
    expect(await isFrozen()).toBe(true);
    worker.process.kill('SIGKILL');
    await expect.poll(isFrozen, { timeout: 5_000 }).toBe(false);
    held.release();
    const successor = await engineOf({ role: 'worker' });
    expect(await atEnd(api, second)).toMatchObject({ state: 'complete', window: { id: `${second}.2` } });
    expect((await ask(api, 'DELETE', `/v1/snapshots/${second}`)).status).toBe(202);
    expect(await atEnd(api, second)).toMatchObject({ state: 'deleted', pending: [] });
    expect(await Promise.all([api.stop(), successor.stop()])).toEqual([
      { code: 0, err: '' },
      { code: 0, err: '' },
    ]);
  });
});

describe('another installation on the same database', () => {
  it('is refused, and what it is to do is said', async () => {
    await connected.connection.workflowService.registerNamespace({
      namespace: 'theirs',
      workflowExecutionRetentionPeriod: { seconds: 86_400 as never },
    });
    const ours = await engineOf();
    await ours.said(/^ready$/);
    const theirs = await engineOf({}, { TEMPORAL_NAMESPACE: 'theirs' });
    const { code, err } = await theirs.ended;
    expect(code).toBe(78);
    expect(err).toContain('another Temporal namespace');
    expect(err).toContain('a database of its own');
    expect((await ask(ours, 'GET', '/readyz')).status).toBe(200);
    expect(await ours.stop()).toEqual({ code: 0, err: '' });
  });
});
