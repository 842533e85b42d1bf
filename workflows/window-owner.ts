import type { Plan } from './activities.js';

/**
 * The window belongs to whoever can make all the cuts (docs/architecture.md section 2): the workflow, or, for local disks only, the host agent, which then
 * freezes, cuts and thaws in one call.
 */
export function windowOwner({ volumes }: Pick<Plan, 'volumes'>): 'workflow' | 'host' {
  return volumes.length > 0 ? 'workflow' : 'host';
}
