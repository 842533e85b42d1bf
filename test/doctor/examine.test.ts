import { randomUUID } from 'node:crypto';
import type { ActivityDeps } from '@stillpoint/engine/activities/deps.js';
import { examine } from '@stillpoint/engine/activities/examine.js';
import type { SnapshotState } from '@stillpoint/engine/catalogue/catalogue.js';
import { expect, it } from 'vitest';

const vm = randomUUID();
const snapshotId = randomUUID();

/** A row in these states, one look after another; whether a run of its VM is open; whether there is another row of a run that is gone. */
async function examined(looks: { state: SnapshotState; isOpen?: boolean; another?: boolean }[]) {
  const asked: string[] = [];
  let look = 0;
  const deps = {
    installationId: 'ours',
    cloud: undefined,
    hosts: {
      names: async () => {
        asked.push('hosts');
        return [];
      },
    },
    catalogue: {
      listSnapshots: async () => {
        asked.push('catalogue');
        const { state, another } = looks[look++] ?? { state: 'deleted' };
        const row = { snapshotId, vm, vmName: 'web-1', host: 'kvm-01', state, parts: [], pending: [] };
        return another === true ? [row, { ...row, snapshotId: randomUUID(), state: 'running' }] : [row];
      },
    },
    runs: {
      hasOpen: async (workflowId: string) => {
        asked.push(`runs of ${workflowId}`);
        return looks[look - 1]?.isOpen ?? false;
      },
    },
  } as unknown as ActivityDeps;
  const examination = await examine(deps, {}, new AbortController().signal, () => {});
  return { codes: examination.findings.map(({ code }) => code), asked };
}

it('finds what two looks show, each of which asks hosts before the catalogue, and Temporal last', async () => {
  const { codes, asked } = await examined([{ state: 'running' }, { state: 'recording' }]);
  expect(codes).toEqual(['RUN_GONE']);
  expect(asked).toEqual([...oneLook, ...oneLook]);
});

it('does not find what was only under way at the first look', async () => {
  expect((await examined([{ state: 'recording' }, { state: 'complete' }])).codes).toEqual([]);
});

it('does not find what is left by a run that ended after the first look: the next report has it', async () => {
  const { codes, asked } = await examined([{ state: 'running', isOpen: true }, { state: 'running' }]);
  expect(codes).toEqual([]);
  expect(asked).toEqual(oneLook);
});

it('does not find what only the second look shows: the next report has it', async () => {
  expect((await examined([{ state: 'running' }, { state: 'running', another: true }])).codes).toEqual(['RUN_GONE']);
});

const oneLook = ['hosts', 'catalogue', `runs of vm-${vm}`];
