import { randomUUID } from 'node:crypto';

import type { AcceptRequest, Catalogue, SnapshotRow } from '@stillpoint/engine/catalogue/catalogue.js';
import type { DiskPart, MergedPart, RemovedPart, SnapshotVmResult } from '@stillpoint/workflows';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

/** Two handles on one catalogue: two engines where the database takes two, the same one twice where it takes one. */
export interface OpenedCatalogue {
  one: Catalogue;
  other: Catalogue;
  close(): Promise<void>;
}

/** What every implementation of the catalogue must do. */
export function catalogueContract(name: string, open: () => Promise<OpenedCatalogue>): void {
  describe(`the catalogue on ${name}`, () => {
    let opened: OpenedCatalogue;
    let one: Catalogue;
    let other: Catalogue;

    beforeAll(async () => {
      opened = await open();
      ({ one, other } = opened);
      await one.addHost({ name: 'host-a', address: 'host-a:8701' });
    });

    afterAll(() => opened.close());

    const accepted = (change: Partial<AcceptRequest> = {}): AcceptRequest => ({
      snapshotId: randomUUID(),
      vm: randomUUID(),
      vmName: 'web-1',
      name: 'before the upgrade',
      description: undefined,
      quiesce: 'required',
      idempotencyKey: undefined,
      bodyHash: 'hash',
      ...change,
    });

    const run = () => ({ workflowId: `vm-${randomUUID()}`, runId: randomUUID() });

    const takeOver = (
      change: { snapshotId: string; runId: string; vm: string; workflowId?: string; host?: string },
      by = one,
    ) =>
      by.takeOver({
        vmName: 'web-1',
        host: 'host-a',
        name: 'before the upgrade',
        description: undefined,
        quiesce: 'required',
        workflowId: `vm-${change.vm}`,
        startedAt: '2026-11-21T12:00:00.000Z',
        plan: { localDisks: ['vda'] },
        ...change,
      });

    const part = (path: string, overlay: string): DiskPart => ({
      target: 'vda',
      kind: 'local',
      path,
      format: 'qcow2',
      overlay,
      sizeBytes: 1024,
    });

    const resultOf = (
      row: SnapshotRow,
      disks: DiskPart[] = [part('/i/a.qcow2', '/i/a.sp.qcow2')],
    ): SnapshotVmResult => ({
      snapshotId: row.snapshotId,
      name: row.name ?? '',
      vm: { uuid: row.vm, name: row.vmName },
      host: 'host-a',
      grade: 'filesystem',
      why: 'the freeze held',
      quiesce: 'required',
      partial: false,
      leftOut: [],
      unfrozen: [],
      disks,
      window: { id: `${row.snapshotId}.1`, ms: 42, frozenFileSystems: 2 },
      hypervisor: 'simulated',
    });

    async function running() {
      const vm = randomUUID();
      const { runId } = run();
      const row = await takeOver({ snapshotId: randomUUID(), runId, vm });
      return { row, runId, snapshotId: row.snapshotId, vm, workflowId: `vm-${vm}` };
    }

    async function complete(vm: string, disks: DiskPart[]) {
      const { runId } = run();
      const row = await takeOver({ snapshotId: randomUUID(), runId, vm });
      await one.beginRecording(row.snapshotId, runId);
      expect(await one.record(row.snapshotId, runId, resultOf(row, disks))).toBe(true);
      return row.snapshotId;
    }

    const stateOf = async (snapshotId: string) => (await other.getSnapshot(snapshotId))?.state;

    describe('installation', () => {
      it('has one id for all its engines', async () => {
        expect(await one.installationId()).toMatch(/^[0-9a-f-]{36}$/);
        expect(await other.installationId()).toBe(await one.installationId());
      });

      it('answers a ping', async () => {
        await expect(one.ping()).resolves.toBeUndefined();
      });
    });

    describe('hosts', () => {
      const hostName = () => `host-${randomUUID()}`;

      it('lists what was added and forgets what was removed', async () => {
        const name = hostName();
        const added = await one.addHost({ name, address: '[::1]:8701' });
        expect(added).toMatchObject({ name, address: '[::1]:8701', state: 'active' });
        expect(await other.listHosts()).toContainEqual(added);
        await other.removeHost(name);
        expect(await one.listHosts()).not.toContainEqual(added);
      });

      it('refuses the second of two that add the same name', async () => {
        const name = hostName();
        const outcomes = await Promise.allSettled([
          one.addHost({ name, address: 'a:1' }),
          other.addHost({ name, address: 'b:1' }),
        ]);
        expect(outcomes.map((outcome) => outcome.status).sort()).toEqual(['fulfilled', 'rejected']);
        expect(outcomes.find((outcome) => outcome.status === 'rejected')?.reason).toMatchObject({
          code: 'HOST_EXISTS',
        });
      });

      it('does not remove a host that a snapshot needs, nor one that is unknown', async () => {
        const name = hostName();
        await one.addHost({ name, address: 'a:1' });
        await takeOver({ snapshotId: randomUUID(), vm: randomUUID(), runId: randomUUID(), host: name });
        await expect(one.removeHost(name)).rejects.toMatchObject({ code: 'HOST_IN_USE' });
        await expect(one.removeHost(hostName())).rejects.toMatchObject({ code: 'HOST_NOT_FOUND' });
      });

      it('keeps a lost host by its name until it is added again', async () => {
        const name = hostName();
        await one.addHost({ name, address: 'a:1' });
        expect(await one.markHostLost(name)).toMatchObject({ state: 'lost' });
        expect(await other.listHosts()).toContainEqual(expect.objectContaining({ name, state: 'lost' }));
        expect(await one.addHost({ name, address: 'b:1' })).toMatchObject({ state: 'active', address: 'b:1' });
        await expect(one.markHostLost(hostName())).rejects.toMatchObject({ code: 'HOST_NOT_FOUND' });
      });

      it('starts no run on a host that was just removed', async () => {
        const name = hostName();
        await one.addHost({ name, address: 'a:1' });
        const [removed, started] = await Promise.allSettled([
          other.removeHost(name),
          takeOver({ snapshotId: randomUUID(), vm: randomUUID(), runId: randomUUID(), host: name }),
        ]);
        expect(removed.status === 'fulfilled').not.toBe(started.status === 'fulfilled');
      });
    });

    describe('accepting', () => {
      it('makes a row that is seen at once', async () => {
        const request = accepted();
        const { row, isNew } = await one.accept(request);
        expect(isNew).toBe(true);
        expect(row).toMatchObject({
          snapshotId: request.snapshotId,
          state: 'accepted',
          vm: request.vm,
          parts: [],
          pending: [],
        });
        expect(await other.getSnapshot(request.snapshotId)).toEqual(row);
      });

      it('answers the first row to the same key and body, also when both come at once', async () => {
        const key = randomUUID();
        const answers = await Promise.all([
          one.accept(accepted({ idempotencyKey: key })),
          other.accept(accepted({ idempotencyKey: key })),
        ]);
        expect(answers.map((answer) => answer.isNew).sort()).toEqual([false, true]);
        expect(answers[0].row.snapshotId).toBe(answers[1].row.snapshotId);
      });

      it('refuses the same key with another body', async () => {
        const key = randomUUID();
        await one.accept(accepted({ idempotencyKey: key }));
        await expect(other.accept(accepted({ idempotencyKey: key, bodyHash: 'other' }))).rejects.toMatchObject({
          code: 'IDEMPOTENCY_CONFLICT',
        });
      });

      it('frees the key of a row that is withdrawn', async () => {
        const request = accepted({ idempotencyKey: randomUUID() });
        await one.accept(request);
        await one.withdraw({ ...request, claims: 1 });
        expect(await other.getSnapshot(request.snapshotId)).toBeUndefined();
        expect((await other.accept({ ...request, snapshotId: randomUUID() })).isNew).toBe(true);
      });

      it('withdraws nothing that a run has taken over', async () => {
        const { snapshotId } = await running();
        await one.withdraw({ snapshotId, claims: 1 });
        expect(await stateOf(snapshotId)).toBe('running');
      });

      it('leaves a row to whoever has claimed it last', async () => {
        const idempotencyKey = randomUUID();
        const { row: first } = await one.accept(accepted({ idempotencyKey }));
        const { row: second } = await other.accept(accepted({ idempotencyKey }));
        expect(second).toEqual({ ...first, claims: first.claims + 1 });
        await one.withdraw(first);
        expect(await stateOf(first.snapshotId)).toBe('accepted');
        await other.withdraw(second);
        expect(await stateOf(first.snapshotId)).toBeUndefined();
      });

      it('refuses a snapshot id that is taken', async () => {
        const { snapshotId } = await running();
        await expect(one.accept(accepted({ snapshotId }))).rejects.toMatchObject({ code: 'SNAPSHOT_ID_USED' });
      });
    });

    describe('taking over', () => {
      it('makes the accepted row the run’s', async () => {
        const request = accepted({ idempotencyKey: randomUUID() });
        await one.accept(request);
        const { runId } = run();
        const row = await takeOver({ ...request, runId });
        expect(row).toMatchObject({ state: 'running', runId, host: 'host-a', plan: { localDisks: ['vda'] } });
        expect((await other.accept(request)).row.runId).toBe(runId);
      });

      it('answers the same row to the same run again, whatever came of it', async () => {
        const { row, runId, snapshotId, vm } = await running();
        await one.beginUndoing(snapshotId, runId);
        expect(await takeOver({ snapshotId, runId, vm })).toEqual({ ...row, state: 'undoing' });
      });

      it('refuses an id that another run has used, and the second of two that come at once', async () => {
        const { snapshotId, vm } = await running();
        await expect(takeOver({ snapshotId, vm, runId: randomUUID() })).rejects.toMatchObject({
          code: 'SNAPSHOT_ID_USED',
        });

        const fresh = { snapshotId: randomUUID(), vm };
        const outcomes = await Promise.allSettled([
          takeOver({ ...fresh, runId: randomUUID() }),
          takeOver({ ...fresh, runId: randomUUID() }, other),
        ]);
        expect(outcomes.map((outcome) => outcome.status).sort()).toEqual(['fulfilled', 'rejected']);
      });

      it('refuses the accepted id of another VM', async () => {
        const request = accepted();
        await one.accept(request);
        await expect(
          takeOver({ snapshotId: request.snapshotId, vm: randomUUID(), runId: randomUUID() }),
        ).rejects.toMatchObject({ code: 'SNAPSHOT_ID_USED' });
      });

      it('keeps what a guest says, whatever it is', async () => {
        const vm = randomUUID();
        const text = 'NUL \u0000, half a pair \ud800, quote \' " \\ and 雪';
        const row = await takeOver({ snapshotId: randomUUID(), vm, runId: 'run' });
        await one.close(row.snapshotId, 'run', { state: 'failed', error: { code: 'X', text }, pending: [text] });
        expect(await other.getSnapshot(row.snapshotId)).toMatchObject({ error: { code: 'X', text }, pending: [text] });
      });
    });

    describe('record or undo', () => {
      it('records a run that recorded in order', async () => {
        const { row, runId, snapshotId } = await running();
        expect(await one.beginRecording(snapshotId, runId)).toBe(true);
        expect(await stateOf(snapshotId)).toBe('recording');
        expect(await one.record(snapshotId, runId, resultOf(row))).toBe(true);
        const recorded = await other.getSnapshot(snapshotId);
        expect(recorded).toMatchObject({ state: 'complete', result: resultOf(row), windowId: `${snapshotId}.1` });
        expect(recorded?.parts).toEqual(resultOf(row).disks);
        expect(recorded?.endedAt).toBeDefined();
      });

      it('records nothing that did not say so before its parts were verified', async () => {
        const { row, runId, snapshotId } = await running();
        expect(await one.record(snapshotId, runId, resultOf(row))).toBe(false);
        expect(await stateOf(snapshotId)).toBe('running');
      });

      it('lets each step be repeated by its run', async () => {
        const { row, runId, snapshotId } = await running();
        for (let time = 1; time <= 2; time += 1) expect(await one.beginRecording(snapshotId, runId)).toBe(true);
        for (let time = 1; time <= 2; time += 1) expect(await one.record(snapshotId, runId, resultOf(row))).toBe(true);
        expect(await one.beginRecording(snapshotId, runId)).toBe(true);
        expect(await stateOf(snapshotId)).toBe('complete');

        const undone = await running();
        for (let time = 1; time <= 2; time += 1)
          expect(await one.beginUndoing(undone.snapshotId, undone.runId)).toBe(true);
        const end = { state: 'failed', error: { code: 'CUT_MISSING', text: 'vda' }, pending: [] } as const;
        for (let time = 1; time <= 2; time += 1) {
          expect(await one.close(undone.snapshotId, undone.runId, { ...end, pending: [] })).toBe(true);
        }
      });

      it('refuses the undo of what is recorded, and the record of what is being undone', async () => {
        const recorded = await running();
        await one.beginRecording(recorded.snapshotId, recorded.runId);
        await one.record(recorded.snapshotId, recorded.runId, resultOf(recorded.row));
        expect(await other.beginUndoing(recorded.snapshotId, recorded.runId)).toBe(false);

        const undone = await running();
        await one.beginRecording(undone.snapshotId, undone.runId);
        expect(await other.beginUndoing(undone.snapshotId, undone.runId)).toBe(true);
        expect(await one.record(undone.snapshotId, undone.runId, resultOf(undone.row))).toBe(false);
        expect(await one.beginRecording(undone.snapshotId, undone.runId)).toBe(false);
        expect(await stateOf(undone.snapshotId)).toBe('undoing');
      });

      it('lets exactly one of record and undo through when both come at once', async () => {
        for (let round = 1; round <= 10; round += 1) {
          const { row, runId, snapshotId } = await running();
          await one.beginRecording(snapshotId, runId);
          const [recorded, undone] = await Promise.all(
            round % 2 === 0
              ? [one.record(snapshotId, runId, resultOf(row)), other.beginUndoing(snapshotId, runId)]
              : [other.beginUndoing(snapshotId, runId), one.record(snapshotId, runId, resultOf(row))].reverse(),
          );
          expect(recorded).not.toBe(undone);
          expect(await stateOf(snapshotId)).toBe(recorded ? 'complete' : 'undoing');
        }
      });

      it('answers another run nothing but no', async () => {
        const { row, snapshotId } = await running();
        const stranger = randomUUID();
        const end = { state: 'failed' as const, error: undefined, pending: [] };
        expect(await one.beginRecording(snapshotId, stranger)).toBe(false);
        expect(await one.beginUndoing(snapshotId, stranger)).toBe(false);
        expect(await one.record(snapshotId, stranger, resultOf(row))).toBe(false);
        expect(await one.close(snapshotId, stranger, end)).toBe(false);
        expect(await stateOf(snapshotId)).toBe('running');
      });

      it('closes with what is pending, and never what is being recorded', async () => {
        const { runId, snapshotId } = await running();
        const end = { state: 'cleanup-pending' as const, error: { code: 'HOST_LOST', text: 'gone' }, pending: ['vda'] };
        await one.beginRecording(snapshotId, runId);
        expect(await one.close(snapshotId, runId, end)).toBe(false);
        await one.beginUndoing(snapshotId, runId);
        expect(await one.close(snapshotId, runId, end)).toBe(true);
        expect(await other.getSnapshot(snapshotId)).toMatchObject(end);
      });

      it('keeps the parts that could not be taken back, so that deleting it merges them', async () => {
        const { runId, snapshotId, workflowId } = await running();
        await one.beginUndoing(snapshotId, runId);
        const left = { window: `${snapshotId}.1`, parts: [part('/i/a', '/i/a.1')] };
        await one.close(snapshotId, runId, { state: 'cleanup-pending', error: undefined, pending: ['vda'], left });
        expect(await other.getSnapshot(snapshotId)).toMatchObject({ windowId: left.window, parts: left.parts });
        expect(await one.beginDeleting(snapshotId, { workflowId, runId: randomUUID() })).toBe(true);
      });

      it('closes an accepted row whose run never took it over', async () => {
        const request = accepted();
        await one.accept(request);
        const end = { state: 'failed' as const, error: { code: 'VM_NOT_RUNNING', text: 'off' }, pending: [] };
        expect(await one.close(request.snapshotId, 'run', end)).toBe(true);
        expect(await other.getSnapshot(request.snapshotId)).toMatchObject({ ...end, runId: 'run' });
      });
    });

    describe('deleting', () => {
      const merged = (overlay: string, path: string, outcome: MergedPart['outcome'] = 'committed'): MergedPart => ({
        target: 'vda',
        kind: 'local',
        overlay,
        path,
        outcome,
        detail: '',
      });

      it('moves the images of later snapshots to where their data is', async () => {
        const vm = randomUUID();
        const first = await complete(vm, [part('/i/a', '/i/a.1')]);
        const second = await complete(vm, [part('/i/a.1', '/i/a.2')]);
        const strangers = await complete(randomUUID(), [part('/i/a.1', '/i/a.2')]);
        const runId = randomUUID();
        expect(await one.beginDeleting(first, { workflowId: `vm-${vm}`, runId })).toBe(true);
        for (let time = 1; time <= 2; time += 1) {
          expect(await one.finishDeleting(first, runId, [merged('/i/a.1', '/i/a')])).toBe(true);
        }
        expect(await other.getSnapshot(first)).toMatchObject({ state: 'deleted', parts: [], deletingRunId: runId });
        expect((await other.getSnapshot(second))?.parts).toEqual([part('/i/a', '/i/a.2')]);
        expect((await other.getSnapshot(strangers))?.parts).toEqual([part('/i/a.1', '/i/a.2')]);
      });

      it('lets a deletion of the same VM take over where a dead run was making the snapshot, and no other', async () => {
        const { snapshotId, workflowId } = await running();
        const runId = randomUUID();
        expect(await one.beginDeleting(snapshotId, { workflowId: 'vm-other', runId })).toBe(false);
        expect(await one.beginDeleting(snapshotId, { workflowId, runId })).toBe(true);
        expect(await one.finishDeleting(snapshotId, runId, [])).toBe(true);
      });

      it('lets a later run of the same VM go on where a dead one was deleting, and no other', async () => {
        const vm = randomUUID();
        const id = await complete(vm, [part('/i/a', '/i/a.1')]);
        const [dead, later] = [randomUUID(), randomUUID()];
        expect(await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId: dead })).toBe(true);
        expect(await other.beginDeleting(id, { workflowId: 'vm-other', runId: randomUUID() })).toBe(false);
        expect(await other.beginDeleting(id, { workflowId: `vm-${vm}`, runId: later })).toBe(true);
        expect(await one.finishDeleting(id, dead, [])).toBe(false);
        expect(await one.abandonDeleting(id, dead, { error: { code: 'X', text: '' }, merged: [] })).toBe(false);
        expect(await one.finishDeleting(id, later, [])).toBe(true);
      });

      it('refuses what is deleted or unknown', async () => {
        const by = { workflowId: 'vm-any', runId: randomUUID() };
        expect(await one.beginDeleting(randomUUID(), by)).toBe(false);
        const vm = randomUUID();
        const id = await complete(vm, []);
        await one.beginDeleting(id, by);
        await one.finishDeleting(id, by.runId, []);
        expect(await one.beginDeleting(id, { ...by, runId: randomUUID() })).toBe(false);
      });

      it('is complete again when nothing was merged', async () => {
        const vm = randomUUID();
        const id = await complete(vm, [part('/i/a', '/i/a.1')]);
        const runId = randomUUID();
        await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId });
        const error = { code: 'VM_NOT_FOUND', text: 'moved' };
        expect(await one.abandonDeleting(id, runId, { error, merged: [merged('/i/a.1', '/i/a', 'pending')] })).toBe(
          true,
        );
        expect(await other.getSnapshot(id)).toMatchObject({
          state: 'complete',
          error,
          parts: [part('/i/a', '/i/a.1')],
        });
      });

      it('is not complete again once a part is gone, though a later deletion touches nothing', async () => {
        const vm = randomUUID();
        const left = { ...part('/i/b', '/i/b.1'), target: 'vdb' };
        const id = await complete(vm, [part('/i/a', '/i/a.1'), left]);
        const abandoned = async (removed: RemovedPart[]) => {
          const runId = randomUUID();
          await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId });
          await one.abandonDeleting(id, runId, { error: { code: 'X', text: '' }, merged: removed });
        };
        await abandoned([merged('/i/a.1', '/i/a'), { ...merged('/i/b.1', '/i/b', 'pending'), target: 'vdb' }]);
        await abandoned([{ ...merged('/i/b.1', '/i/b', 'pending'), target: 'vdb' }]);
        expect(await other.getSnapshot(id)).toMatchObject({ state: 'cleanup-pending', parts: [left] });
      });

      it("is not complete any more when a part's merge has begun", async () => {
        const vm = randomUUID();
        const id = await complete(vm, [part('/i/a', '/i/a.1')]);
        const runId = randomUUID();
        await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId });
        const begun = { ...merged('/i/a.1', '/i/a', 'pending'), begun: true as const };
        await one.abandonDeleting(id, runId, { error: { code: 'MERGE_FAILED', text: '' }, merged: [begun] });
        expect(await other.getSnapshot(id)).toMatchObject({
          state: 'cleanup-pending',
          parts: [part('/i/a', '/i/a.1')],
        });
      });

      it.each([
        ['a cancelled deletion tells nothing of its parts', []],
        [
          'Cinder has begun to delete a part',
          [
            {
              target: 'vdc',
              kind: 'volume' as const,
              volume: 'v',
              snapshot: 's',
              outcome: 'pending' as const,
              detail: 'still deleting',
              begun: true as const,
            },
          ],
        ],
      ])('is not complete any more when %s', async (_, removed) => {
        const vm = randomUUID();
        const volume = { target: 'vdc', kind: 'volume' as const, volume: 'v', snapshot: 's', sizeBytes: 1 };
        const id = await complete(vm, [volume]);
        const runId = randomUUID();
        await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId });
        await one.abandonDeleting(id, runId, { error: { code: 'CANCELLED', text: 'cancelled' }, merged: removed });
        const row = await other.getSnapshot(id);
        expect(row).toMatchObject({ state: 'cleanup-pending', parts: [volume] });
        expect(row?.pending).toHaveLength(1);
      });

      it('is cleanup pending with what is left when some parts were merged', async () => {
        const vm = randomUUID();
        const left = { ...part('/i/b', '/i/b.1'), target: 'vdb' };
        const id = await complete(vm, [part('/i/a', '/i/a.1'), left]);
        const later = await complete(vm, [part('/i/a.1', '/i/a.2')]);
        const runId = randomUUID();
        await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId });
        const error = { code: 'MERGE_FAILED', text: 'vdb' };
        await one.abandonDeleting(id, runId, {
          error,
          merged: [merged('/i/a.1', '/i/a'), merged('/i/b.1', '/i/b', 'pending')],
        });
        const row = await other.getSnapshot(id);
        expect(row).toMatchObject({ state: 'cleanup-pending', parts: [left] });
        expect(row?.pending).toHaveLength(1);
        expect((await other.getSnapshot(later))?.parts).toEqual([part('/i/a', '/i/a.2')]);
        expect(await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId: randomUUID() })).toBe(true);
      });

      it('says what a deletion has found of a run that could not name its parts, and could not delete', async () => {
        const vm = randomUUID();
        const id = randomUUID();
        await takeOver({ snapshotId: id, vm, runId: 'dead' });
        const runId = randomUUID();
        await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId });
        const volume = { target: 'vdc', kind: 'volume' as const, volume: 'v', snapshot: 's' };
        await one.abandonDeleting(id, runId, {
          error: { code: 'CLEANUP_PENDING', text: 'vdc' },
          merged: [{ ...volume, outcome: 'pending', detail: 'Cinder is still creating it.' }],
        });
        expect(await other.getSnapshot(id)).toMatchObject({
          state: 'cleanup-pending',
          pending: ['vdc: Cinder is still creating it.'],
        });
      });

      it('says once what is pending of a part that could not be asked for', async () => {
        const vm = randomUUID();
        const volume = { target: 'vdc', kind: 'volume' as const, volume: 'v', snapshot: 's', sizeBytes: 1 };
        const id = await complete(vm, [part('/i/a', '/i/a.1'), volume]);
        const runId = randomUUID();
        await one.beginDeleting(id, { workflowId: `vm-${vm}`, runId });
        const { target, kind } = volume;
        await one.abandonDeleting(id, runId, {
          error: { code: 'CLEANUP_PENDING', text: 'vdc' },
          merged: [
            merged('/i/a.1', '/i/a'),
            { target, kind, volume: 'v', snapshot: '', outcome: 'pending', detail: 'Cinder does not answer.' },
          ],
        });
        expect(await other.getSnapshot(id)).toMatchObject({
          state: 'cleanup-pending',
          parts: [volume],
          pending: ['vdc: Cinder does not answer.'],
        });
      });
    });

    describe('lists', () => {
      it('come newest first, in pages, and filtered', async () => {
        const vm = randomUUID();
        const made: string[] = [];
        for (let number = 1; number <= 5; number += 1) made.unshift(await complete(vm, []));
        const failed = await takeOver({ snapshotId: randomUUID(), vm, runId: 'run' });
        await one.close(failed.snapshotId, 'run', { state: 'failed', error: undefined, pending: [] });

        const ids = async (query: Parameters<Catalogue['listSnapshots']>[0]) =>
          (await other.listSnapshots(query)).map((row) => row.snapshotId);
        expect(await ids({ vm, limit: 10 })).toEqual([failed.snapshotId, ...made]);
        expect(await ids({ vm, grade: 'filesystem', limit: 2 })).toEqual(made.slice(0, 2));
        expect(await ids({ vm, grade: 'filesystem', limit: 10, after: made[1] ?? '' })).toEqual(made.slice(2));
        expect(await ids({ vm, grade: 'crash', limit: 10 })).toEqual([]);
        expect(await ids({ vm, states: ['failed'], limit: 10 })).toEqual([failed.snapshotId]);
        expect(await ids({ vm, limit: 10, after: randomUUID() })).toEqual([]);
      });

      it('show deleted snapshots only to those who ask for them', async () => {
        const vm = randomUUID();
        const id = await complete(vm, []);
        const by = { workflowId: `vm-${vm}`, runId: randomUUID() };
        await one.beginDeleting(id, by);
        await one.finishDeleting(id, by.runId, []);
        expect(await other.listSnapshots({ vm, limit: 10 })).toEqual([]);
        expect(await other.listSnapshots({ vm, states: ['deleted'], limit: 10 })).toHaveLength(1);
      });

      it('find a VM by its name too', async () => {
        const vmName = `vm ${randomUUID()}`;
        await one.accept(accepted({ vmName }));
        expect(await other.listSnapshots({ vm: vmName, limit: 10 })).toHaveLength(1);
      });
    });

    describe('window slots', () => {
      const wanting = (limit: number) => ({ ...run(), snapshotId: randomUUID(), limit });

      it('are given first come, first served, and never more than there are', async () => {
        const [a, b, c, d] = [wanting(2), wanting(2), wanting(2), wanting(2)];
        expect(await one.takeSlot(a)).toEqual({ taken: true });
        expect(await other.takeSlot(b)).toEqual({ taken: true });
        expect(await one.takeSlot(c)).toMatchObject({ taken: false, ahead: 0 });
        expect(await one.takeSlot(d)).toMatchObject({ taken: false, ahead: 1 });
        await one.giveBackSlot(a.runId);
        // The one that came later asks first, and still waits.
        expect(await other.takeSlot(d)).toMatchObject({ taken: false });
        expect(await one.takeSlot(c)).toEqual({ taken: true });
        expect(await one.takeSlot(c)).toEqual({ taken: true });
        for (const { runId } of [b, c, d]) await one.giveBackSlot(runId);
      });

      it('name who is in the way, in the queue too, so that dead runs can be voided', async () => {
        const [holder, dead, waiting] = [wanting(1), wanting(1), wanting(1)];
        await one.takeSlot(holder);
        await one.takeSlot(dead);
        const answer = await other.takeSlot(waiting);
        const holders = [holder, dead].map(({ snapshotId, workflowId, runId }) => ({ snapshotId, workflowId, runId }));
        expect(answer).toEqual({ taken: false, ahead: 1, holders });
        for (const { runId } of holders) await other.giveBackSlot(runId);
        expect(await other.takeSlot(waiting)).toEqual({ taken: true });
        await one.giveBackSlot(waiting.runId);
        await one.giveBackSlot(waiting.runId);
      });

      it('are not given twice when many ask at once', async () => {
        const many = Array.from({ length: 8 }, () => wanting(3));
        const answers = await Promise.all(many.map((request, at) => (at % 2 === 0 ? one : other).takeSlot(request)));
        expect(answers.filter((answer) => answer.taken)).toHaveLength(3);
        for (const { runId } of many) await one.giveBackSlot(runId);
      });
    });
  });
}
