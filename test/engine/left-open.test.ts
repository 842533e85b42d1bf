import { randomUUID } from 'node:crypto';
import { acceptDelete } from '@stillpoint/engine/activities/accept.js';
import type { ActivityDeps } from '@stillpoint/engine/activities/deps.js';
import { cleanUpAfterDeadRun } from '@stillpoint/engine/activities/prepare.js';
import type { SnapshotRow } from '@stillpoint/engine/catalogue/catalogue.js';
import type { HostClient } from '@stillpoint/engine/hosts/hosts.js';
import { asyncLocalStorage, type Context } from '@temporalio/activity';
import { pino } from 'pino';
import { expect, it } from 'vitest';

/** Rows of which a run has not said, or could not say, what is left. */

const vm = randomUUID();
const snapshotId = randomUUID();
const volume = { target: 'vdc', kind: 'volume' as const, volume: 'v', snapshot: 's', sizeBytes: 1 };
const local = {
  target: 'vda',
  kind: 'local' as const,
  path: '/i/a',
  format: 'qcow2',
  overlay: '/i/a.1',
  sizeBytes: 1,
};

async function isLeftOpen(row: Partial<SnapshotRow>, localDisks: string[]): Promise<boolean> {
  const catalogue = {
    getSnapshot: async () => ({
      snapshotId,
      vm,
      vmName: 'web',
      host: 'h',
      state: 'cleanup-pending',
      endedAt: '2026-11-21T12:00:00Z',
      pending: ['something'],
      plan: { localDisks, volumes: [] },
      ...row,
    }),
    beginDeleting: async () => true,
  };
  const context = { info: { workflowExecution: { workflowId: `vm-${vm}`, runId: randomUUID() } } };
  const plan = await asyncLocalStorage.run(context as unknown as Context, () =>
    acceptDelete({ catalogue } as unknown as ActivityDeps, { vm, snapshotId }),
  );
  return plan.leftOpen;
}

it('the host looks for what is left on it, where only what is left in Cinder is known', async () => {
  expect(await isLeftOpen({ parts: [volume] }, ['vda'])).toBe(true);
  expect(await isLeftOpen({ parts: [] }, ['vda'])).toBe(true);
});

it('the host does not look where the parts that are left are known, or it has none', async () => {
  expect(await isLeftOpen({ parts: [local, volume] }, ['vda'])).toBe(false);
  expect(await isLeftOpen({ parts: [volume] }, [])).toBe(false);
});

it('a dead run of the time before there were volumes is cleaned up', async () => {
  const undone: string[] = [];
  const host = {
    name: 'h',
    undo: async ({ window }: { window: string }) => {
      undone.push(window);
      return { complete: true, disks: [] };
    },
    release: async () => true,
  } as unknown as HostClient;
  const deps = {
    catalogue: {
      getSnapshot: async () => ({
        snapshotId,
        runId: 'dead',
        state: 'running',
        plan: { snapshotId, localDisks: ['vda'] },
      }),
      beginUndoing: async () => true,
      close: async () => true,
    },
    hosts: { host: () => host },
    log: pino({ level: 'silent' }),
  } as unknown as ActivityDeps;
  const dead = { vm, operation: snapshotId, window: `${snapshotId}.1` };
  await cleanUpAfterDeadRun(deps, host, dead, new AbortController().signal, () => {});
  expect(undone).toEqual([dead.window]);
});

it('what a dead run had recorded is told on its volumes’ snapshots, which may still say that nothing is', async () => {
  const told: unknown[] = [];
  const host = { name: 'h', release: async () => true } as unknown as HostClient;
  const result = { snapshotId, vm: { uuid: vm, name: 'web' }, grade: 'filesystem', disks: [local, volume] };
  const deps = {
    catalogue: {
      getSnapshot: async () => ({ snapshotId, runId: 'dead', state: 'complete', result, parts: [local, volume] }),
    },
    cloud: { cinder: { describeSnapshot: async (...asked: unknown[]) => told.push(asked.slice(0, 2)) } },
    log: pino({ level: 'silent' }),
  } as unknown as ActivityDeps;
  const dead = { vm, operation: snapshotId, window: `${snapshotId}.1` };
  await cleanUpAfterDeadRun(deps, host, dead, new AbortController().signal, () => {});
  expect(told).toEqual([
    [
      volume.snapshot,
      { description: expect.stringContaining('Grade filesystem.'), metadata: { stillpoint_grade: 'filesystem' } },
    ],
  ]);
});
