import { type Examination, type JudgedFinding, type ReconcileInput, workflowIdOf } from '@stillpoint/workflows';
import { reconcileInput } from '../contract/snapshot-input.js';
import { inARun, ownRunOf } from '../doctor/dead-run.js';
import { judge, keyOf } from '../doctor/judge.js';
import type { Observation } from '../doctor/observation.js';
import { observe } from '../doctor/observe.js';
import { checked } from './accept.js';
import type { ActivityDeps } from './deps.js';

/** So many findings are told and repaired at one time: a report is one message of Temporal's, which bounds it. */
const mostFindings = 200;

/**
 * Looks, judges, and looks again: what both looks show is found. What was only on its way when it was seen (a run that has just ended, a part that has just
 * been recorded) is not there the second time.
 */
export async function examine(
  deps: ActivityDeps,
  given: ReconcileInput,
  signal: AbortSignal,
  tell: (details: unknown) => void,
): Promise<Examination> {
  checked(reconcileInput, given);
  const at = new Date().toISOString();
  tell({ looking: 'for the first time' });
  const first = await look(deps, signal);
  if (first.findings.length === 0) return examinationOf(at, first.seen, []);
  tell({ looking: 'again', toProve: first.findings.length });
  const second = await look(deps, signal);
  const before = new Set(first.findings.map(keyOf));
  return examinationOf(
    at,
    second.seen,
    second.findings.filter((finding) => before.has(keyOf(finding))),
  );
}

/** Temporal is asked last, and only of the VMs in question: a run that is closed by then has changed nothing since. */
async function look(
  deps: ActivityDeps,
  signal: AbortSignal,
): Promise<{ seen: Observation; findings: JudgedFinding[] }> {
  const seen = await observe(deps, signal);
  const inQuestion = new Set(judge(seen, new Set(), new Map()).flatMap(({ about }) => about.vm?.uuid ?? []));
  const busy = new Set<string>();
  for (const vm of inQuestion) if (await deps.runs.hasOpen(workflowIdOf(vm))) busy.add(vm);
  const statuses = new Map<string, string | undefined>();
  for (const row of seen.rows.values()) {
    const run = ownRunOf(row);
    if (run === undefined || !inARun.includes(row.state) || busy.has(row.vm)) continue;
    statuses.set(row.snapshotId, await deps.runs.statusOf(run.workflowId, run.runId));
  }
  return { seen, findings: judge(seen, busy, statuses) };
}

function examinationOf(at: string, { hosts, rows, cloud }: Observation, findings: JudgedFinding[]): Examination {
  return {
    at,
    looked: {
      hosts: hosts.filter((host) => !('away' in host)).length,
      snapshots: [...rows.values()].filter(({ state }) => state !== 'deleted').length,
      overlays: hosts.reduce((sum, host) => sum + ('away' in host ? 0 : host.overlays.length), 0),
      volumeSnapshots: cloud === 'none' || 'away' in cloud ? 0 : cloud.snapshots.length,
    },
    findings: findings.slice(0, mostFindings),
    omitted: Math.max(0, findings.length - mostFindings),
  };
}
