/** The workflows are a public contract: a run that somebody starts with a Temporal client of their own gets the same checks, record and grade. */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { runProgram } from '@stillpoint/lab/programs.js';
import type { SnapshotVmResult } from '@stillpoint/workflows';
import { Client, Connection } from '@temporalio/client';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { world } from './world.js';

const uuid = () => world.lab.vm.uuid;

/** What the result says is what the catalogue, the chain and the file systems say; deletes the snapshot. */
async function expectRecorded(result: SnapshotVmResult): Promise<void> {
  expect(result).toMatchObject({ grade: 'filesystem', partial: true, vm: { uuid: uuid(), name: 'web-1' } });
  const { status, body } = await world.system.request<SnapshotView>('GET', `/v1/snapshots/${result.snapshotId}`);
  expect(status).toBe(200);
  expect(body).toMatchObject({
    state: 'complete',
    name: result.name,
    grade: result.grade,
    why: result.why,
    disks: result.disks,
    window: { ms: result.window.ms },
  });
  const listed = (await world.system.request<{ snapshots: SnapshotView[] }>('GET', `/v1/snapshots?vm=${uuid()}`)).body
    .snapshots;
  expect(listed.map(({ id }) => id)).toContain(result.snapshotId);
  await world.expectConsistent(body);
  await world.system.deleteSnapshot(result.snapshotId);
  await world.expectNothingLeft();
}

describe('A run started with a Temporal client in TypeScript', () => {
  let connection: Connection;
  let client: Client;

  beforeAll(async () => {
    connection = await Connection.connect({ address: world.system.temporal.address });
    client = new Client({ connection });
  });
  afterAll(async () => {
    await connection?.close();
  });

  it('is checked, graded and recorded as one of the REST API', async () => {
    const result: SnapshotVmResult = await client.workflow.execute('snapshotVm', {
      taskQueue: 'stillpoint',
      workflowId: `vm-${uuid()}`,
      workflowIdConflictPolicy: 'FAIL',
      args: [{ vm: uuid(), name: 'before the upgrade', quiesce: 'required' }],
    });
    expect(result.name).toBe('before the upgrade');
    await expectRecorded(result);
  });

  it('fails at once under another workflow id, and prints the right one', async () => {
    const log = world.lab.log();
    const run = client.workflow.execute('snapshotVm', {
      taskQueue: 'stillpoint',
      workflowId: 'my-own-id',
      args: [{ vm: uuid() }],
    });
    await expect(run).rejects.toMatchObject({
      cause: { type: 'WORKFLOW_ID_WRONG', message: expect.stringContaining(`vm-${uuid()}`) },
    });
    expect(log.agent().map(({ command }) => command)).not.toContain('guest-fsfreeze-freeze');
    await world.expectNothingLeft();
  });

  it('fails with INPUT_INVALID and the field’s name where the input makes no sense', async () => {
    const run = client.workflow.execute('snapshotVm', {
      taskQueue: 'stillpoint',
      workflowId: `vm-${uuid()}`,
      args: [{ vm: uuid(), freezeTimeoutMs: 5 }],
    });
    await expect(run).rejects.toMatchObject({
      cause: { type: 'INPUT_INVALID', message: expect.stringContaining('freezeTimeoutMs') },
    });
    await world.expectNothingLeft();
  });
});

describe('A run started with the temporal command', () => {
  const execute = (workflowId: string, accept: number[]) =>
    runProgram(
      world.temporalCommand,
      [
        ...['workflow', 'execute', '--address', world.system.temporal.address, '--output', 'json'],
        ...['--type', 'snapshotVm', '--task-queue', 'stillpoint'],
        ...['--workflow-id', workflowId, '--id-conflict-policy', 'Fail'],
        ...['--input', JSON.stringify({ vm: uuid() })],
      ],
      { accept },
    );

  it('is checked, graded and recorded as one of the REST API', async () => {
    const { stdout } = await execute(`vm-${uuid()}`, [0]);
    await expectRecorded(JSON.parse(stdout).result);
  });

  it('fails at once under another workflow id, and prints the right one', async () => {
    const { stdout, stderr } = await execute('my-own-id', [1]);
    expect(`${stdout}${stderr}`).toContain('WORKFLOW_ID_WRONG');
    expect(`${stdout}${stderr}`).toContain(`vm-${uuid()}`);
  });
});
