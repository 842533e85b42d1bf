import { workflowIdOf } from '@stillpoint/workflows';
import { Client, Connection } from '@temporalio/client';
import type { World } from './world.js';

/** Does something to the run of the first VM as a person does with Temporal's own tools. */
export async function withRun<T>(
  { system, lab }: World,
  work: (client: Client, workflowId: string) => Promise<T>,
): Promise<T> {
  const connection = await Connection.connect({ address: system.temporal.address });
  try {
    return await work(new Client({ connection }), workflowIdOf(lab.vm.uuid));
  } finally {
    await connection.close();
  }
}

/** Resets the open run to the end of its first workflow task: all of it happens again, in a new run. */
export async function resetRun(world: World): Promise<void> {
  await withRun(world, async (client, workflowId) => {
    const namespace = client.options.namespace;
    const { runId } = await client.workflow.getHandle(workflowId).describe();
    const history = await client.workflow.getHandle(workflowId, runId).fetchHistory();
    const completed = history.events?.find((event) => event.workflowTaskCompletedEventAttributes != null);
    if (completed?.eventId == null) throw new Error('The run has no completed workflow task yet');
    await client.workflowService.resetWorkflowExecution({
      namespace,
      workflowExecution: { workflowId, runId },
      reason: 'the matrix',
      workflowTaskFinishEventId: completed.eventId,
      requestId: `${runId}-reset`,
    });
  });
}

/** Pauses, or lets go on, every activity that is open in the run. */
export async function pauseActivities(world: World): Promise<() => Promise<void>> {
  const paused = await withRun(world, async (client, workflowId) => {
    const namespace = client.options.namespace;
    const { raw } = await client.workflow.getHandle(workflowId).describe();
    const execution = { workflowId, runId: raw.workflowExecutionInfo?.execution?.runId ?? '' };
    const ids = (raw.pendingActivities ?? []).flatMap(({ activityId }) => activityId ?? []);
    for (const id of ids) await client.workflowService.pauseActivity({ namespace, execution, id });
    return { namespace, execution, ids };
  });
  return () =>
    withRun(world, async (client) => {
      for (const id of paused.ids) {
        const { namespace, execution } = paused;
        // One that has ended meanwhile cannot go on.
        await client.workflowService.unpauseActivity({ namespace, execution, id }).catch(() => undefined);
      }
    });
}
