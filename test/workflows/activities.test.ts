import { randomUUID } from 'node:crypto';
import type { ActivityDeps } from '@stillpoint/engine/activities/deps.js';
import { undoWindow } from '@stillpoint/engine/activities/merge.js';
import { takeWindowSlot } from '@stillpoint/engine/activities/window-slot.js';
import type { SnapshotState } from '@stillpoint/engine/catalogue/catalogue.js';
import { asyncLocalStorage, type Context } from '@temporalio/activity';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';

/** Single activities, where what they meet is hard to bring about in a whole run. */

const runId = randomUUID();

function asActivity<T>(work: () => Promise<T>): Promise<T> {
  const context = { info: { workflowExecution: { workflowId: 'vm-1', runId } } };
  return asyncLocalStorage.run(context as unknown as Context, work);
}

function depsWith(parts: { [part in keyof ActivityDeps]?: unknown }): ActivityDeps {
  return { log: pino({ level: 'silent' }), installationId: 'i', settings: { slotPollMs: 1 }, ...parts } as ActivityDeps;
}

describe('undoWindow before another window', () => {
  const undoOf = (row: { state: SnapshotState; runId: string }) => {
    const undone: string[] = [];
    const deps = depsWith({
      catalogue: { getSnapshot: async () => row },
      hosts: {
        host: () => ({
          undo: async ({ window }: { window: string }) => {
            undone.push(window);
            return { complete: true, disks: [] };
          },
        }),
      },
    });
    const request = {
      host: 'h',
      vm: 'v',
      operation: 'o',
      window: 'o.1',
      plan: { snapshotId: 'o', localDisks: ['vda'], volumes: [] },
      parts: [],
      mayBeThere: [],
      mayAppear: [],
    };
    const undoing = asActivity(() =>
      undoWindow(deps, { ...request, isLast: false } as never, new AbortController().signal, () => {}),
    );
    return { undone, undoing };
  };

  it('takes back what the run has made', async () => {
    const { undone, undoing } = undoOf({ state: 'running', runId });
    expect(await undoing).toMatchObject({ complete: true });
    expect(undone).toEqual(['o.1']);
  });

  it.each<[string, { state: SnapshotState; runId: string }]>([
    ['was recorded before the run was reset', { state: 'complete', runId: randomUUID() }],
    ['is in the hands of another run', { state: 'running', runId: randomUUID() }],
    ['is being recorded', { state: 'recording', runId }],
  ])('touches nothing of a snapshot that %s', async (_, row) => {
    const { undone, undoing } = undoOf(row);
    await expect(undoing).rejects.toMatchObject({ code: 'CATALOGUE_REFUSED' });
    expect(undone).toEqual([]);
  });
});

describe('a run that waits for its window', () => {
  it('comes again later, and keeps no activity of the worker, while very many are ahead', async () => {
    const deps = depsWith({ catalogue: { takeSlot: async () => ({ taken: false, ahead: 101, holders: [] }) } });
    const waiting = asActivity(() => takeWindowSlot(deps, 's', new AbortController().signal, () => {}));
    await expect(waiting).rejects.toMatchObject({ type: 'WINDOW_QUEUED', nonRetryable: false, nextRetryDelay: 10_000 });
  });

  it('goes on waiting when Temporal does not say whether the runs ahead are over', async () => {
    let asked = 0;
    const deps = depsWith({
      catalogue: {
        takeSlot: async () => {
          asked += 1;
          const holder = { snapshotId: 's', workflowId: 'vm-2', runId: 'r' };
          return asked > 1 ? { taken: true } : { taken: false, ahead: 0, holders: [holder] };
        },
      },
      runs: {
        isClosed: () => Promise.reject(new Error('Temporal is away')),
        statusOf: () => Promise.reject(new Error('Temporal is away')),
        hasOpen: () => Promise.reject(new Error('Temporal is away')),
      },
    });
    await asActivity(() => takeWindowSlot(deps, 's', new AbortController().signal, () => {}));
    expect(asked).toBe(2);
  });
});
