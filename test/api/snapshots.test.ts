import { randomUUID } from 'node:crypto';

import { RunsUnavailable } from '@stillpoint/engine/api/runs.js';
import type { HostVm } from '@stillpoint/engine/hosts/hosts.js';
import type { Progress } from '@stillpoint/workflows';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';

import { someVm, unreachable } from './fakes.js';
import { ServedApi } from './served.js';

describe('snapshots over the REST API', () => {
  let served: ServedApi;
  let vm: HostVm;

  beforeAll(async () => {
    served = await ServedApi.start({ vmsKeptMs: 0, acceptedLimitMs: 60_000 });
    await served.catalogue.addHost({ name: 'host-a', address: 'host-a:8701' });
  });
  afterAll(() => served.stop());

  beforeEach(() => {
    vm = someVm({ name: `vm-of-${randomUUID()}` });
    served.hosts.all.clear();
    served.hosts.add('host-a', vm);
    served.runs.unavailable = undefined;
  });

  const post = (body?: unknown, headers?: Record<string, string>) =>
    served.ask('POST', `/v1/vms/${vm.uuid}/snapshots`, body, headers);

  /** What the run's activities do in the catalogue. */
  async function takeOver(snapshotId: string) {
    const { workflowId, runId } = served.runs.of(snapshotId);
    const by = { workflowId, runId, vm: vm.uuid, vmName: vm.name, host: 'host-a', plan: {} };
    await served.catalogue.takeOver({
      ...by,
      snapshotId,
      name: 'nightly',
      description: undefined,
      quiesce: 'required',
      startedAt: new Date().toISOString(),
    });
    return runId;
  }

  async function complete(snapshotId: string) {
    const runId = await takeOver(snapshotId);
    await served.catalogue.beginRecording(snapshotId, runId);
    await served.catalogue.record(snapshotId, runId, {
      snapshotId,
      name: 'nightly',
      vm: { uuid: vm.uuid, name: vm.name },
      host: 'host-a',
      grade: 'filesystem',
      why: 'the freeze held',
      quiesce: 'required',
      partial: true,
      leftOut: [{ target: 'vdc', reason: 'network', writable: true }],
      unfrozen: [{ target: 'vda', mountpoint: '/boot/efi', reason: 'vfat', accepted: true }],
      disks: [{ target: 'vda', kind: 'local', path: '/i/a', format: 'qcow2', overlay: '/i/a.1', sizeBytes: 1 }],
      window: { id: `${snapshotId}.1`, ms: 25, frozenAt: '2026-11-21T12:00:00.000Z', frozenFileSystems: 2 },
      hypervisor: 'simulated',
    });
    served.runs.end(snapshotId, 'COMPLETED');
  }

  const progress = (change: Partial<Progress> = {}): Progress => ({
    state: 'frozen',
    snapshotId: undefined,
    waiting: undefined,
    steps: [
      { name: 'freeze file systems', startedAt: '2026-11-21T12:00:00.000Z', ms: 12 },
      { name: 'snapshot vda', startedAt: '2026-11-21T12:00:00.012Z' },
    ],
    ...change,
  });

  describe('taking', () => {
    it('answers 202 with the place where the snapshot is followed, from then on', async () => {
      const taken = await post({ name: 'nightly', quiesce: 'best-effort', disks: ['vda'] });
      expect(taken).toMatchObject({ status: 202, body: { vm: { uuid: vm.uuid, name: vm.name } } });
      expect(taken.headers.location).toBe(`/v1/snapshots/${taken.body.id}`);
      expect(served.runs.inputs.at(-1)).toEqual({
        vm: vm.uuid,
        snapshotId: taken.body.id,
        name: 'nightly',
        quiesce: 'best-effort',
        disks: ['vda'],
      });
      const followed = await served.ask('GET', String(taken.headers.location));
      expect(followed).toMatchObject({ status: 200, body: { state: 'accepted', name: 'nightly', grade: null } });
    });

    it('needs no body, and takes the VM by its name', async () => {
      const taken = await served.ask('POST', `/v1/vms/${vm.name}/snapshots`);
      expect(taken).toMatchObject({ status: 202, body: { vm: { uuid: vm.uuid } } });
    });

    it('answers 409 naming the holder while another operation runs, and leaves no row', async () => {
      const first = await post({});
      const key = randomUUID();
      const second = await post({ name: 'second' }, { 'idempotency-key': key });
      expect(second).toMatchObject({
        status: 409,
        body: { code: 'VM_BUSY', holder: { snapshotId: first.body.id, workflowId: `vm-${vm.uuid}` } },
      });
      const listed = await served.ask('GET', `/v1/snapshots?vm=${vm.uuid}`);
      expect(listed.body.snapshots.map((each: { id: string }) => each.id)).toEqual([first.body.id]);

      // The key is free again: the refusal is not kept as its answer.
      await complete(first.body.id);
      expect((await post({ name: 'second' }, { 'idempotency-key': key })).status).toBe(202);
    });

    it('gives the same answer to the same Idempotency-Key and body, whatever has become of the snapshot', async () => {
      const headers = { 'idempotency-key': randomUUID() };
      const first = await post({ name: 'once', quiesce: 'skip' }, headers);
      const starts = served.runs.runs.length;
      expect(await post({ quiesce: 'skip', name: 'once' }, headers)).toMatchObject({ status: 202, body: first.body });
      await complete(first.body.id);
      const third = await post({ name: 'once', quiesce: 'skip' }, headers);
      expect(third).toMatchObject({ status: 202, body: first.body });
      expect(third.headers.location).toBe(first.headers.location);
      expect(served.runs.runs.length).toBe(starts);
    });

    it('starts no second run for a key whose run was refused at its first step', async () => {
      const headers = { 'idempotency-key': randomUUID() };
      const first = await post({}, headers);
      served.runs.end(first.body.id, 'FAILED', { code: 'VM_NOT_RUNNING', text: 'The VM is off.' });
      await served.ask('GET', `/v1/snapshots/${first.body.id}`);
      const starts = served.runs.runs.length;
      expect(await post({}, headers)).toMatchObject({ status: 202, body: first.body });
      expect(served.runs.runs.length).toBe(starts);
    });

    it('leaves the row to an engine that was asked the same and could start what this one could not', async () => {
      const headers = { 'idempotency-key': randomUUID() };
      const other = await served.anotherEngine();
      other.hosts.add('host-a', vm);
      let byOther: Awaited<ReturnType<typeof post>> | undefined;
      // The VM was busy when this one asked, and is free when the other one does.
      served.runs.nextStart = async () => {
        byOther = await other.ask('POST', `/v1/vms/${vm.uuid}/snapshots`, {}, headers);
        return { busy: undefined };
      };
      expect(await post({}, headers)).toMatchObject({ status: 409, body: { code: 'VM_BUSY' } });
      expect(byOther).toMatchObject({ status: 202 });
      expect(await served.catalogue.getSnapshot(byOther?.body.id)).toMatchObject({ state: 'accepted' });
    });

    it('answers 422 to the same Idempotency-Key with another body or VM', async () => {
      const headers = { 'idempotency-key': randomUUID() };
      await post({ name: 'one' }, headers);
      expect(await post({ name: 'other' }, headers)).toMatchObject({
        status: 422,
        body: { code: 'IDEMPOTENCY_CONFLICT' },
      });
      const other = someVm({ name: 'db-1' });
      served.hosts.add('host-b', other);
      const elsewhere = await served.ask('POST', `/v1/vms/${other.uuid}/snapshots`, { name: 'one' }, headers);
      expect(elsewhere.status).toBe(422);
    });

    it('keeps the row when it is not known whether the run was started, and finds out by the same key', async () => {
      const headers = { 'idempotency-key': randomUUID() };
      served.runs.nextStart = async () => ({ unknown: new Error('deadline') });
      const unknown = await post({ name: 'maybe' }, headers);
      expect(unknown).toMatchObject({
        status: 503,
        body: { code: 'TEMPORAL_UNAVAILABLE', snapshotId: expect.any(String) },
      });
      expect((await served.ask('GET', `/v1/snapshots/${unknown.body.snapshotId}`)).body.state).toBe('accepted');
      expect(await post({ name: 'maybe' }, headers)).toMatchObject({
        status: 202,
        body: { id: unknown.body.snapshotId },
      });
    });

    it('withdraws the row when Temporal refuses the start', async () => {
      served.runs.nextStart = async () => Promise.reject(new RunsUnavailable('Temporal does not answer: refused.'));
      expect(await post({})).toMatchObject({ status: 503, body: { code: 'TEMPORAL_UNAVAILABLE' } });
      expect((await served.ask('GET', `/v1/snapshots?vm=${vm.uuid}`)).body.snapshots).toEqual([]);
    });

    it.each([
      [{ quiesce: 'maybe' }, 'quiesce'],
      [{ vm: 'x' }, 'vm'],
      [{ disks: [] }, 'disks'],
      [{ disks: ['vda', 'vda'] }, 'disks'],
      [{ freezeTimeoutMs: 1 }, 'freezeTimeoutMs'],
      [{ windowLimitMs: '500' }, 'windowLimitMs'],
      [{ name: 'a\u0000b' }, 'name'],
      [[], ''],
    ])('answers 400 to the body %j and names the field', async (body, field) => {
      expect(await post(body)).toMatchObject({ status: 400, body: { code: 'INPUT_INVALID', field, in: 'body' } });
    });

    it.each(['with space', 'ümlaut', 'x'.repeat(256), ''])('answers 400 to the Idempotency-Key %j', async (key) => {
      expect(await post({}, { 'idempotency-key': key })).toMatchObject({
        status: 400,
        body: { field: 'idempotency-key' },
      });
    });
  });

  describe('following', () => {
    it('shows the run’s own words while it goes on, without asking the catalogue', async () => {
      const { body } = await post({});
      served.runs.of(body.id).progress = progress({ waiting: 'still frozen: the guest agent does not answer' });
      const reads = vi.spyOn(served.catalogue, 'getSnapshot');
      const seen = await served.ask('GET', `/v1/snapshots/${body.id}`);
      expect(seen.body).toMatchObject({
        state: 'running',
        progress: {
          state: 'frozen',
          waiting: 'still frozen: the guest agent does not answer',
          steps: [
            { name: 'freeze file systems', ms: 12, error: null },
            { name: 'snapshot vda', ms: null },
          ],
        },
      });
      expect(reads).not.toHaveBeenCalled();
      reads.mockRestore();
    });

    it('shows what was recorded once the run is over', async () => {
      const { body } = await post({});
      served.runs.of(body.id).progress = progress({ state: 'done' });
      await complete(body.id);
      const seen = await served.ask('GET', `/v1/snapshots/${body.id}`);
      expect(seen.body).toMatchObject({
        state: 'complete',
        grade: 'filesystem',
        partial: true,
        window: { ms: 25 },
        progress: { state: 'done', steps: [{ name: 'freeze file systems', ms: 12 }, {}] },
        run: { workflowId: `vm-${vm.uuid}` },
      });
    });

    it('waits for the end of the run when asked to', async () => {
      const { body } = await post({});
      served.runs.of(body.id).progress = progress();
      const waiting = served.ask('GET', `/v1/snapshots/${body.id}?wait=30`);
      served.runs.of(body.id).progress = progress({ state: 'done' });
      await complete(body.id);
      expect((await waiting).body.state).toBe('complete');
    });

    it('stops waiting after the time that was asked for', async () => {
      const { body } = await post({});
      served.runs.of(body.id).progress = progress();
      expect((await served.ask('GET', `/v1/snapshots/${body.id}?wait=0.0123`)).body.state).toBe('running');
    });

    it('follows runs that others have started', async () => {
      const snapshotId = randomUUID();
      await served.runs.startSnapshot({ vm: vm.uuid, snapshotId });
      await takeOver(snapshotId);
      served.runs.of(snapshotId).progress = progress({ state: 'undoing' });
      expect((await served.ask('GET', `/v1/snapshots/${snapshotId}`)).body).toMatchObject({
        state: 'undoing',
        host: 'host-a',
      });
    });

    it('tells why a run failed whose first step was refused', async () => {
      const { body } = await post({});
      served.runs.end(body.id, 'FAILED', { code: 'VM_NOT_RUNNING', text: 'No snapshot was begun: the VM is off.' });
      const seen = await served.ask('GET', `/v1/snapshots/${body.id}`);
      expect(seen.body).toMatchObject({ state: 'failed', error: { code: 'VM_NOT_RUNNING' } });
      expect(await served.catalogue.getSnapshot(body.id)).toMatchObject({ state: 'failed' });
    });

    it('says so when a run ended without writing its outcome', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      served.runs.end(body.id, 'TERMINATED');
      const seen = await served.ask('GET', `/v1/snapshots/${body.id}`);
      // No state in which somebody would wait for its end.
      expect(seen.body).toMatchObject({ state: 'cleanup-pending', error: { code: 'RUN_ENDED' } });
      expect(seen.body.pending).toEqual([expect.stringContaining('taken back')]);
    });

    it('ends the wait for a run that is terminated meanwhile, however fresh its last words are', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      const steps = [{ name: 'cut vda', startedAt: new Date().toISOString() }];
      served.runs.of(body.id).progress = progress({ steps });
      const waiting = served.ask('GET', `/v1/snapshots/${body.id}?wait=30`);
      served.runs.end(body.id, 'TERMINATED');
      expect((await waiting).body).toMatchObject({ state: 'cleanup-pending', error: { code: 'RUN_ENDED' } });
    });

    it('does not take a terminated run’s last words for what goes on', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      served.runs.of(body.id).progress = progress();
      served.runs.end(body.id, 'TERMINATED');
      const seen = await served.ask('GET', `/v1/snapshots/${body.id}`);
      expect(seen.body).toMatchObject({ state: 'cleanup-pending', progress: { steps: [{ ms: 12 }, { ms: null }] } });
    });

    it('says so also when Temporal does not know the run any more', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      const other = await served.anotherEngine();
      const seen = await other.ask('GET', `/v1/snapshots/${body.id}`);
      expect(seen.body).toMatchObject({ state: 'cleanup-pending', error: { code: 'RUN_ENDED' } });
    });

    it('says why a step is repeated, once it takes long', async () => {
      const { body } = await post({});
      const run = Object.assign(served.runs.of(body.id), { waiting: 'web-1 is still frozen (try 4)' });
      run.progress = progress({ state: 'thawing' });
      expect((await served.ask('GET', `/v1/snapshots/${body.id}`)).body.progress.waiting).toBe(run.waiting);
      run.progress = progress({ steps: [{ name: 'thaw file systems', startedAt: new Date().toISOString() }] });
      expect((await served.ask('GET', `/v1/snapshots/${body.id}`)).body.progress.waiting).toBeNull();
    });

    it('answers 404 to an unknown id and 400 to what is none', async () => {
      expect(await served.ask('GET', `/v1/snapshots/${randomUUID()}`)).toMatchObject({
        status: 404,
        body: { code: 'SNAPSHOT_NOT_FOUND' },
      });
      expect(await served.ask('GET', '/v1/snapshots/nightly')).toMatchObject({
        status: 400,
        body: { field: 'id', in: 'params' },
      });
    });

    it('finds nothing by a name that no VM can have', async () => {
      expect(await served.ask('GET', '/v1/snapshots?vm=%00')).toMatchObject({ status: 200, body: { snapshots: [] } });
    });

    it.each(['wait=-1', 'wait=61', 'wait=x', 'wiat=1'])('answers 400 to ?%s', async (query) => {
      expect((await served.ask('GET', `/v1/snapshots/${randomUUID()}?${query}`)).status).toBe(400);
    });
  });

  describe('listing', () => {
    it('pages through a VM’s snapshots by cursor', async () => {
      const ids: string[] = [];
      for (let number = 1; number <= 3; number += 1) {
        const { body } = await post({});
        await complete(body.id);
        ids.unshift(body.id);
      }
      const first = await served.ask('GET', `/v1/snapshots?vm=${vm.uuid.toUpperCase()}&limit=2&grade=filesystem`);
      expect(first.body.snapshots.map((each: { id: string }) => each.id)).toEqual(ids.slice(0, 2));
      const second = await served.ask('GET', `/v1/snapshots?vm=${vm.uuid}&limit=2&cursor=${first.body.next}`);
      expect(second.body).toMatchObject({ next: null, snapshots: [{ id: ids[2] }] });
    });

    it('shows a run that ended without a word as the single view does, also by state', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      served.runs.end(body.id, 'TERMINATED');
      const [one] = (await served.ask('GET', `/v1/snapshots?vm=${vm.uuid}`)).body.snapshots;
      const single = (await served.ask('GET', `/v1/snapshots/${body.id}`)).body;
      expect(one).toEqual(single);
      expect(one).toMatchObject({ state: 'cleanup-pending', error: { code: 'RUN_ENDED' } });

      const { body: open } = await post({});
      await takeOver(open.id);
      const ids = async (state: string) =>
        (await served.ask('GET', `/v1/snapshots?vm=${vm.uuid}&state=${state}`)).body.snapshots.map(
          (each: { id: string }) => each.id,
        );
      expect(await ids('cleanup-pending')).toEqual([body.id]);
      expect(await ids('running')).toEqual([open.id]);
    });

    it('goes on behind a page that has none of the state', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      served.runs.end(body.id, 'TERMINATED');
      await post({});
      await takeOver(served.runs.runs.at(-1)?.snapshotId ?? '');
      const first = await served.ask('GET', `/v1/snapshots?vm=${vm.uuid}&state=cleanup-pending&limit=1`);
      expect(first.body).toMatchObject({ snapshots: [], next: expect.any(String) });
      const second = await served.ask(
        'GET',
        `/v1/snapshots?vm=${vm.uuid}&state=cleanup-pending&limit=1&cursor=${first.body.next}`,
      );
      expect(second.body).toMatchObject({ snapshots: [{ id: body.id }], next: null });
    });

    it('takes no run for dead that wrote its end while the list was made', async () => {
      const { body } = await post({});
      const runId = await takeOver(body.id);
      const describe = vi.spyOn(served.runs, 'describe').mockImplementationOnce(async () => {
        await served.catalogue.close(body.id, runId, { state: 'failed', error: undefined, pending: [] });
        served.runs.end(body.id, 'FAILED');
        return served.runs.of(body.id);
      });
      const { snapshots } = (await served.ask('GET', `/v1/snapshots?vm=${vm.uuid}`)).body;
      describe.mockRestore();
      expect(snapshots).toMatchObject([{ id: body.id, state: 'failed' }]);
    });

    it.each([
      ['refuses', async () => Promise.reject(new RunsUnavailable('Temporal does not answer: refused.'))],
      ['is silent', () => new Promise<never>(() => {})],
    ])('says what is written while Temporal %s', async (_how, answer) => {
      const { body } = await post({});
      await takeOver(body.id);
      const other = await served.anotherEngine({ vmsKeptMs: 0, progressTimeoutMs: 10 });
      other.runs.describe = answer;
      const { snapshots } = (await other.ask('GET', `/v1/snapshots?vm=${vm.uuid}`)).body;
      expect(snapshots).toMatchObject([{ id: body.id, state: 'running' }]);
    });

    it.each([
      'grade=best',
      'state=nice',
      'limit=0',
      'limit=201',
      'cursor=%00',
      'cursor=abc',
      'foo=1',
      'vm=',
      'vm=a&vm=b',
    ])('answers 400 to ?%s', async (query) => {
      expect(await served.ask('GET', `/v1/snapshots?${query}`)).toMatchObject({
        status: 400,
        body: { code: 'INPUT_INVALID' },
      });
    });
  });

  describe('deleting', () => {
    it('is shown, and can be cancelled, where another engine has begun it', async () => {
      const { body } = await post({});
      const address = `/v1/snapshots/${body.id}`;
      await complete(body.id);
      const began = await served.runs.startDelete({ vm: vm.uuid, snapshotId: body.id });
      if (!('started' in began)) throw new Error('it was not started');
      await served.catalogue.beginDeleting(body.id, began.started);
      served.runs.of(body.id).progress = progress({ state: 'deleting' });
      expect((await served.ask('POST', `${address}/cancel`)).status).toBe(202);
      expect(served.runs.cancelled.at(-1)).toBe(began.started.runId);
      expect((await served.ask('GET', address)).body).toMatchObject({ state: 'deleting', run: began.started });
    });

    it('starts the deletion, and is the same when asked again', async () => {
      const { body } = await post({});
      await complete(body.id);
      const deleted = await served.ask('DELETE', `/v1/snapshots/${body.id}`);
      expect(deleted).toMatchObject({ status: 202, headers: { location: `/v1/snapshots/${body.id}` } });
      expect(served.runs.inputs.at(-1)).toEqual({ vm: vm.uuid, snapshotId: body.id });
      served.runs.of(body.id).progress = progress({ state: 'deleting' });
      expect((await served.ask('GET', `/v1/snapshots/${body.id}`)).body.state).toBe('deleting');

      const by = served.runs.of(body.id);
      await served.catalogue.beginDeleting(body.id, by);
      const starts = served.runs.runs.length;
      expect((await served.ask('DELETE', `/v1/snapshots/${body.id}`)).status).toBe(202);
      expect(served.runs.runs.length).toBe(starts);

      await served.catalogue.finishDeleting(body.id, by.runId, []);
      served.runs.of(body.id).progress = progress({ state: 'done' });
      served.runs.end(body.id, 'COMPLETED');
      expect((await served.ask('GET', `/v1/snapshots/${body.id}`)).body.state).toBe('deleted');
      expect(await served.ask('DELETE', `/v1/snapshots/${body.id}`)).toMatchObject({
        status: 409,
        body: { code: 'SNAPSHOT_STATE', state: 'deleted' },
      });
    });

    it('deletes what a terminated run has left', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      served.runs.end(body.id, 'TERMINATED');
      expect((await served.ask('DELETE', `/v1/snapshots/${body.id}`)).status).toBe(202);
      expect(served.runs.inputs.at(-1)).toEqual({ vm: vm.uuid, snapshotId: body.id });
    });

    it('answers 409 while the snapshot is being made, or its VM is busy, and 404 to an unknown one', async () => {
      const done = await post({});
      await complete(done.body.id);
      const { body } = await post({});
      expect(await served.ask('DELETE', `/v1/snapshots/${body.id}`)).toMatchObject({
        status: 409,
        body: { code: 'SNAPSHOT_STATE' },
      });
      expect(await served.ask('DELETE', `/v1/snapshots/${done.body.id}`)).toMatchObject({
        status: 409,
        body: { code: 'VM_BUSY', holder: { snapshotId: body.id } },
      });
      expect((await served.ask('DELETE', `/v1/snapshots/${randomUUID()}`)).status).toBe(404);
    });
  });

  describe('cleaning up', () => {
    const stuck =
      "vdc: Cinder's snapshot s-1 is still creating, and cannot be deleted so. If Cinder has given it up, an OpenStack administrator ends it: openstack volume snapshot set --state error s-1, then openstack volume snapshot delete s-1.";

    async function pending() {
      const { body } = await post({});
      const runId = await takeOver(body.id);
      await served.catalogue.beginUndoing(body.id, runId);
      await served.catalogue.close(body.id, runId, {
        state: 'cleanup-pending',
        error: { code: 'VOLUME_SNAPSHOT_FAILED', text: 'Cinder could not snapshot volume v-1.' },
        pending: [stuck],
        left: {
          window: `${body.id}.1`,
          parts: [{ target: 'vdc', kind: 'volume', volume: 'v-1', snapshot: 's-1', sizeBytes: 1 }],
        },
      });
      served.runs.end(body.id, 'FAILED');
      return body.id as string;
    }
    const cleanUp = (id: string) => served.ask('POST', `/v1/snapshots/${id}/cleanup`);

    it('shows whole what is pending, with the command that may have to be given', async () => {
      const id = await pending();
      expect((await served.ask('GET', `/v1/snapshots/${id}`)).body).toMatchObject({
        state: 'cleanup-pending',
        pending: [stuck],
        disks: [{ target: 'vdc', kind: 'volume', volume: 'v-1', snapshot: 's-1' }],
      });
    });

    it('starts the snapshot’s deletion, and says what is left when it has not ended it', async () => {
      const id = await pending();
      const begun = await cleanUp(id);
      expect(begun).toMatchObject({ status: 202, body: { id, vm: { uuid: vm.uuid, name: vm.name } } });
      expect(begun.headers.location).toBe(`/v1/snapshots/${id}`);
      expect(served.runs.of(id).workflowType).toBe('deleteSnapshot');
      // Should it be recorded meanwhile, it must not be deleted.
      expect(served.runs.inputs.at(-1)).toEqual({ vm: vm.uuid, snapshotId: id, leftoversOnly: true });
      expect((await served.ask('GET', `/v1/snapshots/${id}`)).body.state).toBe('deleting');

      const { workflowId, runId } = served.runs.of(id);
      await served.catalogue.beginDeleting(id, { workflowId, runId });
      expect(await cleanUp(id)).toMatchObject({ status: 409, body: { code: 'SNAPSHOT_STATE', state: 'deleting' } });
      await served.catalogue.abandonDeleting(id, runId, {
        error: { code: 'CLEANUP_PENDING', text: 'vdc' },
        merged: [
          {
            target: 'vdc',
            kind: 'volume',
            volume: 'v-1',
            snapshot: 's-1',
            outcome: 'pending',
            detail: 'still creating',
          },
        ],
      });
      served.runs.end(id, 'FAILED', { code: 'CLEANUP_PENDING', text: 'vdc' });
      expect((await served.ask('GET', `/v1/snapshots/${id}`)).body).toMatchObject({
        state: 'cleanup-pending',
        pending: ['vdc: still creating'],
        error: { code: 'CLEANUP_PENDING' },
      });

      expect((await cleanUp(id)).status).toBe(202);
      const again = served.runs.of(id);
      await served.catalogue.beginDeleting(id, again);
      await served.catalogue.finishDeleting(id, again.runId, []);
      served.runs.end(id, 'COMPLETED');
      expect((await served.ask('GET', `/v1/snapshots/${id}`)).body.state).toBe('deleted');
      expect(await cleanUp(id)).toMatchObject({ status: 409, body: { state: 'deleted' } });
    });

    it('takes what a terminated run has left', async () => {
      const { body } = await post({});
      await takeOver(body.id);
      served.runs.end(body.id, 'TERMINATED');
      expect((await cleanUp(body.id)).status).toBe(202);
      expect(served.runs.of(body.id)).toMatchObject({ workflowType: 'deleteSnapshot', isOpen: true });
    });

    it('answers 409 where nothing is pending, or the VM is busy, and 404 to an unknown one', async () => {
      const done = await post({});
      expect(await cleanUp(done.body.id)).toMatchObject({
        status: 409,
        body: { code: 'SNAPSHOT_STATE', state: 'accepted' },
      });
      await complete(done.body.id);
      expect(await cleanUp(done.body.id)).toMatchObject({
        status: 409,
        body: { code: 'SNAPSHOT_STATE', state: 'complete', detail: expect.stringContaining('snapshot delete') },
      });
      const id = await pending();
      const { body } = await post({});
      await takeOver(body.id);
      expect(await cleanUp(body.id)).toMatchObject({ status: 409, body: { state: 'running' } });
      expect(await cleanUp(id)).toMatchObject({
        status: 409,
        body: { code: 'VM_BUSY', holder: { snapshotId: body.id } },
      });
      expect(await cleanUp(randomUUID())).toMatchObject({ status: 404, body: { code: 'SNAPSHOT_NOT_FOUND' } });
      expect((await cleanUp('nightly')).status).toBe(400);
    });
  });

  describe('cancelling', () => {
    it('cancels the snapshot’s own run', async () => {
      const { body } = await post({});
      expect((await served.ask('POST', `/v1/snapshots/${body.id}/cancel`)).status).toBe(202);
      expect(served.runs.cancelled.at(-1)).toBe(served.runs.of(body.id).runId);
    });

    it('answers 409 when nothing goes on, also while a later run of the VM does', async () => {
      const { body } = await post({});
      await complete(body.id);
      await post({});
      const cancelled = served.runs.cancelled.length;
      expect(await served.ask('POST', `/v1/snapshots/${body.id}/cancel`)).toMatchObject({
        status: 409,
        body: { code: 'SNAPSHOT_STATE', state: 'complete' },
      });
      expect(served.runs.cancelled.length).toBe(cancelled);
      expect((await served.ask('POST', `/v1/snapshots/${randomUUID()}/cancel`)).status).toBe(404);
    });
  });

  it('takes a snapshot of a VM whose host was silent just now: the run itself asks the host', async () => {
    await served.ask('GET', '/v1/vms');
    const host = served.hosts.all.get('host-a');
    if (host) host.down = unreachable('host-a');
    expect((await post({})).status).toBe(202);
  });
});

describe('an accepted snapshot', () => {
  const row = (snapshotId: string, vm: string) => ({
    snapshotId,
    vm,
    vmName: 'web-1',
    name: undefined,
    description: undefined,
    quiesce: 'required' as const,
    idempotencyKey: undefined,
    bodyHash: '',
  });

  let served: ServedApi;
  beforeEach(async () => {
    served = await ServedApi.start({ vmsKeptMs: 0, acceptedLimitMs: 20 });
  });
  afterEach(() => served.stop());

  it('is withdrawn when its engine died before the start of its run, and only then', async () => {
    const [lost, started] = [randomUUID(), randomUUID()];
    const vm = randomUUID();
    await served.runs.startSnapshot({ vm, snapshotId: started });
    await served.catalogue.accept(row(started, vm));
    await served.catalogue.accept(row(lost, randomUUID()));
    await vi.waitFor(async () => expect(await served.catalogue.getSnapshot(lost)).toBeUndefined());
    expect(await served.catalogue.getSnapshot(started)).toMatchObject({ state: 'accepted' });
  });

  it('ends with its run’s words though nobody looked, also when a later run of the VM goes on', async () => {
    const vm = someVm();
    served.hosts.add('host-a', vm);
    const { body } = await served.ask('POST', `/v1/vms/${vm.uuid}/snapshots`);
    served.runs.end(body.id, 'FAILED', { code: 'VM_PAUSED', text: 'The VM is paused.' });
    await served.runs.startSnapshot({ vm: vm.uuid, snapshotId: randomUUID() });
    await vi.waitFor(async () =>
      expect(await served.catalogue.getSnapshot(body.id)).toMatchObject({
        state: 'failed',
        error: { code: 'VM_PAUSED' },
      }),
    );
  });
});
