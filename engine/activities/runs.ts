import { type Client, WorkflowNotFoundError } from '@temporalio/client';
import type { Runs } from './deps.js';

/** Asks Temporal what became of a run. */
export function runsOf(client: Client): Runs {
  const statusOf = async (workflowId: string, runId?: string): Promise<string | undefined> => {
    try {
      const { status } = await client.workflow.getHandle(workflowId, runId).describe();
      return status.name;
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return undefined;
      throw error;
    }
  };
  const isOpen = (status: string | undefined) => status === 'RUNNING' || status === 'PAUSED';
  return {
    isClosed: async (workflowId, runId) => !isOpen(await statusOf(workflowId, runId)),
    statusOf: (workflowId, runId) => statusOf(workflowId, runId),
    hasOpen: async (workflowId) => isOpen(await statusOf(workflowId)),
  };
}
