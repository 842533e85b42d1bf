import { randomUUID } from 'node:crypto';
import { type Api, buildApi } from '@stillpoint/engine/api/server.js';
import { TemporalRuns } from '@stillpoint/engine/api/temporal-runs.js';
import { TemporalDoctor } from '@stillpoint/engine/temporal/doctor.js';
import type { SimulatedVm } from '@stillpoint/host-agent/simulated/vm.js';
import { type Finding, searchAttributes, workflowIdOf } from '@stillpoint/workflows';
import { defineSearchAttributeKey } from '@temporalio/common';
import { pino } from 'pino';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type Installation, installation, type SimulatedHost } from '../workflows/fixtures/installation.js';

/** The REST API over a real Temporal server, the real worker and host agent; the guests are simulated. */

let all: Installation;
let host: SimulatedHost;
let vm: SimulatedVm;
let uuid: string;
let name: string;
let api: Api;

beforeAll(async () => {
  all = await installation();
  host = await all.addHost('kvm-01', []);
  api = await apiOn(all);
});

afterAll(async () => {
  await api.close();
  await all.close();
});

beforeEach(() => {
  uuid = randomUUID();
  name = `web-${uuid.slice(0, 8)}`;
  vm = host.world.addVm({ name, uuid, disks: [{ target: 'vda' }, { target: 'vdb' }] });
});

async function apiOn({ catalogue, hosts, temporal }: Installation): Promise<Api> {
  const runs = new TemporalRuns(temporal.client);
  const doctor = new TemporalDoctor(temporal.client, await catalogue.installationId());
  return buildApi(
    { catalogue, hosts, runs, doctor, cloud: undefined, log: pino({ level: 'silent' }) },
    { vmsKeptMs: 0 },
  );
}

async function ask(method: 'GET' | 'POST' | 'DELETE', url: string, body?: object, on = api) {
  const answer = await on.inject({
    method,
    url,
    headers: { host: 'localhost:8700' },
    ...(body === undefined ? {} : { payload: body }),
  });
  return { status: answer.statusCode, body: answer.body === '' ? undefined : answer.json() };
}

async function take(body: object = {}): Promise<string> {
  const taken = await ask('POST', `/v1/vms/${name}/snapshots`, body);
  expect(taken.status).toBe(202);
  return taken.body.id;
}

const atEnd = async (id: string, on = api) => (await ask('GET', `/v1/snapshots/${id}?wait=30`, undefined, on)).body;

describe('the REST API on a real Temporal server', () => {
  it('takes a snapshot, shows it to its end, and deletes it', async () => {
    const id = await take({ name: 'nightly', description: 'before *the* upgrade' });
    const taken = await atEnd(id);
    expect(taken).toMatchObject({
      state: 'complete',
      grade: 'filesystem',
      name: 'nightly',
      host: 'kvm-01',
      error: null,
      progress: { state: 'done' },
      run: { workflowId: workflowIdOf(uuid) },
    });
    expect(taken.disks.map((disk: { target: string }) => disk.target)).toEqual(['vda', 'vdb']);

    const run = await all.temporal.client.workflow.getHandle(workflowIdOf(uuid), taken.run.runId).describe();
    const vmKey = defineSearchAttributeKey(searchAttributes.vm.name, searchAttributes.vm.type);
    expect(run.typedSearchAttributes.get(vmKey)).toBe(name);
    expect(await run.staticSummary()).toBe(`Snapshot of ${name}`);
    expect(await run.staticDetails()).toContain('before \\*the\\* upgrade');

    expect((await ask('DELETE', `/v1/snapshots/${id}`)).status).toBe(202);
    expect(await atEnd(id)).toMatchObject({ state: 'deleted', error: null, disks: [] });
  });

  it('shows the steps while the guest is frozen, names the holder to others, and cancels to a clean end', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const id = await take();
    await held.hit;
    const shown = (await ask('GET', `/v1/snapshots/${id}`)).body;
    expect(shown).toMatchObject({ state: 'running', progress: { state: 'frozen' } });
    expect(shown.progress.steps.at(-1)).toMatchObject({ ms: null, error: null });

    const { body: shownVm } = await ask('GET', `/v1/vms/${uuid}`);
    expect(shownVm.hold).toMatchObject({ snapshotId: id, freezeState: 'frozen', frozenSince: expect.any(String) });
    expect(await ask('POST', `/v1/vms/${uuid}/snapshots`)).toMatchObject({
      status: 409,
      body: { code: 'VM_BUSY', holder: { snapshotId: id, workflowType: 'snapshotVm', runId: shown.run.runId } },
    });

    expect((await ask('POST', `/v1/snapshots/${id}/cancel`)).status).toBe(202);
    held.release();
    expect(await atEnd(id)).toMatchObject({ state: 'cancelled', disks: [], pending: [] });
    expect(await ask('POST', `/v1/snapshots/${id}/cancel`)).toMatchObject({ status: 409 });
    expect((await ask('GET', `/v1/vms/${uuid}`)).body.hold).toBeNull();
  });

  it('shows a terminated run as what is to be cleaned up, alone and in the list, and cleans it up', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const id = await take();
    await held.hit;
    const { run } = (await ask('GET', `/v1/snapshots/${id}`)).body;
    await all.temporal.client.workflow.getHandle(run.workflowId, run.runId).terminate('an administrator lost patience');
    held.release();
    const left = await atEnd(id);
    expect(left).toMatchObject({ state: 'cleanup-pending', error: { code: 'RUN_ENDED' } });
    const listed = (await ask('GET', `/v1/snapshots?vm=${uuid}&state=cleanup-pending`)).body.snapshots;
    expect(listed).toMatchObject([{ id, state: 'cleanup-pending', pending: left.pending }]);

    expect((await ask('POST', `/v1/snapshots/${id}/cleanup`)).status).toBe(202);
    expect(await atEnd(id)).toMatchObject({ state: 'deleted', pending: [] });
    expect(await ask('POST', `/v1/snapshots/${id}/cleanup`)).toMatchObject({
      status: 409,
      body: { code: 'SNAPSHOT_STATE', state: 'deleted' },
    });
    expect((await ask('GET', `/v1/vms/${uuid}`)).body.hold).toBeNull();
  });

  it('finds what a terminated run has left, and repairs it when told to', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'after' }, { vm: uuid });
    const id = await take();
    await held.hit;
    const { run } = (await ask('GET', `/v1/snapshots/${id}`)).body;
    await all.temporal.client.workflow.getHandle(run.workflowId, run.runId).terminate('an administrator lost patience');
    held.release();
    for (const [repair, outcome] of [
      [false, 'repairable'],
      [true, 'repaired'],
    ]) {
      const begun = await ask('POST', '/v1/doctor', { repair });
      expect(begun.status).toBe(202);
      const { state, report } = (await ask('GET', `/v1/doctor/${begun.body.id}?wait=30`)).body;
      expect(state).toBe('done');
      const about = report.findings.filter((finding: Finding) => finding.about.snapshotId === id);
      expect(about).toMatchObject([{ code: 'RUN_GONE', outcome }]);
    }
    expect(await atEnd(id)).toMatchObject({ state: 'deleted', pending: [] });
    expect((await ask('GET', `/v1/vms/${uuid}`)).body.hold).toBeNull();
  });

  it('tells why a request was refused by the run’s first step', async () => {
    const id = await take({ disks: ['vdz'] });
    const refused = await atEnd(id);
    expect(refused).toMatchObject({ state: 'failed', error: { code: 'DISK_NOT_FOUND' }, progress: { state: 'done' } });
    expect(refused.error.text).toContain('vdz');
    expect(await ask('DELETE', `/v1/snapshots/${id}`)).toMatchObject({ status: 409, body: { code: 'SNAPSHOT_STATE' } });
  });

  it('is followed through an API that was started later', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const id = await take();
    await held.hit;
    const later = await apiOn(all);
    expect((await ask('GET', `/v1/snapshots/${id}`, undefined, later)).body).toMatchObject({
      state: 'running',
      host: 'kvm-01',
      progress: { state: 'frozen' },
    });
    const ended = atEnd(id, later);
    held.release();
    expect(await ended).toMatchObject({ state: 'complete' });
    await later.close();
  });

  it('thaws a guest by an administrator’s word, and the window is lost', async () => {
    const held = host.world.inject('snapshotDisks', { hold: 'before' }, { vm: uuid });
    const id = await take();
    await held.hit;
    expect(await ask('POST', `/v1/vms/${name}/thaw`)).toMatchObject({ status: 200, body: { lostWindow: `${id}.1` } });
    expect(vm.frozen).toBe(false);
    held.release();
    expect(await atEnd(id)).toMatchObject({ state: 'failed', disks: [], pending: [] });
  });

  it('says that it is ready', async () => {
    expect((await ask('GET', '/readyz')).status).toBe(200);
  });
});
