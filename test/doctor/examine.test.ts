import { randomUUID } from 'node:crypto';
import type { ActivityDeps } from '@stillpoint/engine/activities/deps.js';
import { examine } from '@stillpoint/engine/activities/examine.js';
import type { SnapshotState } from '@stillpoint/engine/catalogue/catalogue.js';
import { HostError } from '@stillpoint/engine/hosts/errors.js';
import type { HostVm } from '@stillpoint/engine/hosts/hosts.js';
import { expect, it } from 'vitest';

const vm = randomUUID();
const snapshotId = randomUUID();
const run = { workflowId: `vm-${vm}`, runId: 'its run', deletingRunId: 'its deletion' };

/** A row in these states, one look after another; whether a run of its VM is open; whether there is another row of a run that is gone. */
async function examined(looks: { state: SnapshotState; isOpen?: boolean; another?: boolean; status?: string }[]) {
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
        const row = { snapshotId, vm, vmName: 'web-1', host: 'kvm-01', state, ...run, parts: [], pending: [] };
        return another === true ? [row, { ...row, snapshotId: randomUUID(), state: 'running' }] : [row];
      },
    },
    runs: {
      hasOpen: async (workflowId: string) => {
        asked.push(`runs of ${workflowId}`);
        return looks[look - 1]?.isOpen ?? false;
      },
      statusOf: async (workflowId: string, runId: string) => {
        asked.push(`${runId} of ${workflowId}`);
        return looks[look - 1]?.status ?? 'TERMINATED';
      },
    },
  } as unknown as ActivityDeps;
  const examination = await examine(deps, {}, new AbortController().signal, () => {});
  return { codes: examination.findings.map(({ code }) => code), findings: examination.findings, asked };
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
  expect(asked).toEqual(oneLook.slice(0, 3));
});

it('takes the word of the second look on how the run ended', async () => {
  const { findings } = await examined([{ state: 'running' }, { state: 'running', status: 'COMPLETED' }]);
  expect(findings).toMatchObject([{ code: 'RUN_GONE', text: expect.stringContaining('COMPLETED') }]);
  expect(findings[0]?.repair).toBeUndefined();
});

it('asks for the deletion of a row that is being deleted', async () => {
  const { asked } = await examined([{ state: 'deleting' }]);
  expect(asked.slice(0, 4)).toEqual([...oneLook.slice(0, 3), `its deletion of vm-${vm}`]);
});

it('does not find what only the second look shows: the next report has it', async () => {
  expect((await examined([{ state: 'running' }, { state: 'running', another: true }])).codes).toEqual(['RUN_GONE']);
});

const oneLook = ['hosts', 'catalogue', `runs of vm-${vm}`, `its run of vm-${vm}`];

it('tells a frozen guest of a host that does not tell its overlay files', async () => {
  const hold = { freezeState: 'still-frozen', freezeDetail: 'the VM is paused', operation: '' };
  const host = {
    facts: async () => ({ installation: 'ours' }),
    listVms: async () => [{ uuid: vm, name: 'web-1', hold } as unknown as HostVm],
    listOverlays: () => Promise.reject(new HostError('kvm-01', 'INTERNAL', 'It does not know the call.')),
  };
  const deps = {
    installationId: 'ours',
    cloud: undefined,
    hosts: { names: async () => ['kvm-01'], host: () => host },
    catalogue: { listSnapshots: async () => [] },
    runs: { hasOpen: async () => false },
  } as unknown as ActivityDeps;
  const { findings, looked } = await examine(deps, {}, new AbortController().signal, () => {});
  expect(findings.map(({ code, text }) => [code, text])).toEqual([
    ['HOST_AWAY', expect.stringContaining('overlay files: It does not know the call.')],
    ['GUEST_FROZEN', expect.stringContaining('web-1')],
  ]);
  expect(looked).toMatchObject({ hosts: 1, overlays: 0 });
});
