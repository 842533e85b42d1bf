import type { Does, Scenario } from './scenario.js';

/** What makes the VM itself different, beside the faults. */
type Circumstance = 'a stranger holds it' | 'a bare disk' | 'a foreign volume' | 'astray';

/**
 * Codes that name one cause, and what of a scenario can be that cause. A run that ends with one of them and met none of these was told a wrong reason
 * (invariant 8). Codes that are not here may come of many things.
 */
const causes: Partial<Record<string, readonly (Does | Circumstance)[]>> = {
  INTERNAL: [],
  INPUT_INVALID: [],
  VM_NOT_FOUND: [],
  VM_AMBIGUOUS: [],
  NO_SPACE: [],
  CHAIN_TOO_DEEP: [],
  LIBVIRT_TOO_OLD: [],
  OVERLAY_EXISTS: [],
  CUT_UNKNOWN: [],
  CUT_ALREADY_HELD: [],
  AGENT_NOT_CONFIGURED: [],
  HOST_IDENTITY: [],
  HOST_LOST: [],
  HOST_NOT_FOUND: [],
  DISK_NOT_FOUND: [],
  CINDER_NOT_CONFIGURED: [],
  CINDER_FORBIDDEN: [],
  AGENT_NOT_CONNECTED: ['kill guest agent', 'restart guest agent', 'power off', 'reboot', 'save'],
  VM_NOT_RUNNING: ['power off', 'reboot', 'save'],
  VM_PAUSED: ['pause'],
  MIGRATION_ACTIVE: ['migrate'],
  BLOCK_JOB_ACTIVE: ['block job by other'],
  ALREADY_FROZEN: ['freeze by other'],
  FREEZE_HOOK_FAILED: ['freeze hook', 'refuse call'],
  QUIESCE_INCOMPLETE: ['a bare disk'],
  VOLUME_MISMATCH: ['a foreign volume'],
  CINDER_QUOTA: ['quota used up'],
  WORKFLOW_ID_WRONG: ['astray'],
  CANCELLED: ['cancel'],
  BUSY: ['a stranger holds it', 'terminate', 'reset'],
  SNAPSHOT_ID_USED: ['reset'],
  CATALOGUE_REFUSED: ['reset', 'terminate'],
};

/** Why nothing of the scenario explains that a run of this VM ended with this code; undefined: something does. */
export function unexplained(scenario: Scenario, vm: number, code: string, astray: boolean): string | undefined {
  const possible = causes[code];
  if (possible === undefined) return undefined;
  const spec = scenario.vms[vm];
  const met = new Set<Does | Circumstance>(
    scenario.faults.filter((fault) => fault.vm === vm || isForMany(fault.what.does)).map((fault) => fault.what.does),
  );
  if (spec?.asks.some((ask) => ask.do === 'stranger')) met.add('a stranger holds it');
  if (spec?.disks.some(({ isBare }) => isBare)) met.add('a bare disk');
  if (spec?.disks.some(({ is }) => is === 'foreign-volume')) met.add('a foreign volume');
  if (astray) met.add('astray');
  if (possible.some((cause) => met.has(cause))) return undefined;
  return `it ended with ${code}, which nothing of this scenario explains (${possible.join(', ') || 'nothing does'})`;
}

function isForMany(does: Does): boolean {
  return does === 'quota used up';
}
