import { type Client, WorkflowNotFoundError } from '@temporalio/client';
import type { Runs } from './deps.js';

/** Asks Temporal whether a run is closed. */
export function runsOf(client: Client): Runs {
  const isOpen = async (workflowId: string, runId?: string): Promise<boolean> => {
    try {
      const { status } = await client.workflow.getHandle(workflowId, runId).describe();
      return status.name === 'RUNNING' || status.name === 'PAUSED';
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return false;
      throw error;
    }
  };
  return {
    isClosed: async (workflowId, runId) => !(await isOpen(workflowId, runId)),
    hasOpen: (workflowId) => isOpen(workflowId),
  };
}
