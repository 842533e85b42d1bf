import { randomUUID } from 'node:crypto';

import { TemporalRuns } from '@stillpoint/engine/api/temporal-runs.js';
import type { Client } from '@temporalio/client';
import { describe, expect, it } from 'vitest';

/** What the API hands to Temporal's client, and reads from it. */

interface Options {
  staticSummary: string;
}

function runsOver(workflow: object): TemporalRuns {
  const client = { workflow, withDeadline: (_deadline: number, ask: () => Promise<unknown>) => ask() };
  return new TemporalRuns(client as unknown as Client);
}

describe('runs on Temporal', () => {
  it.each(['web-1', '\u{1F680}'.repeat(60), `x${'\u{1F680}'.repeat(60)}`, `xx${'\u{1F680}'.repeat(60)}`])(
    'have a summary of whole characters that Temporal takes: %s',
    async (vmName) => {
      let summary = '';
      const runs = runsOver({
        start: async (_type: string, options: Options) => {
          summary = options.staticSummary;
          return { firstExecutionRunId: randomUUID() };
        },
      });
      await runs.startSnapshot({ vm: randomUUID(), snapshotId: randomUUID() }, { vmName });
      expect(Buffer.byteLength(summary)).toBeLessThanOrEqual(200);
      expect(Buffer.from(summary).toString()).toBe(summary);
    },
  );

  const described = (change: object) =>
    runsOver({
      getHandle: () => ({
        describe: async () => ({
          workflowId: 'vm-1',
          runId: 'r',
          type: 'snapshotVm',
          status: { name: 'RUNNING' },
          startTime: new Date(),
          typedSearchAttributes: { get: () => undefined },
          raw: {},
          ...change,
        }),
      }),
    }).describe({ workflowId: 'vm-1', runId: 'r' });

  it('that somebody has paused are open', async () => {
    expect(await described({ status: { name: 'PAUSED' } })).toMatchObject({ isOpen: true });
    expect(await described({ status: { name: 'TERMINATED' } })).toMatchObject({ isOpen: false });
  });

  it.each<[string, object, string | undefined]>([
    [
      'the last failure of a step that is repeated',
      { attempt: 4, lastFailure: { message: 'still frozen' } },
      'still frozen (try 4)',
    ],
    [
      'what its heartbeat waits for',
      { attempt: 1, heartbeatDetails: { payloads: [{ data: Buffer.from('{"waitingFor":"kvm-01 is away"}') }] } },
      'kvm-01 is away',
    ],
    [
      'nothing of one that does well',
      { attempt: 1, heartbeatDetails: { payloads: [{ data: Buffer.from('null') }] } },
      undefined,
    ],
    [
      'nothing of a heartbeat that is no JSON',
      { attempt: 1, heartbeatDetails: { payloads: [{ data: Buffer.from('{') }] } },
      undefined,
    ],
  ])('tell %s', async (_, activity, waiting) => {
    expect((await described({ raw: { pendingActivities: [activity] } }))?.waiting).toBe(waiting);
  });
});
