import { CancellationScope, executeChild, TemporalFailure, upsertSearchAttributes } from '@temporalio/workflow';
import type { Examination, JudgedFinding, Repair } from './activities.js';
import { type DoctorReport, type Finding, type ReconcileInput, searchAttributes, workflowIdOf } from './contract.js';
import { failureOf, runFailure } from './failure.js';
import { cell, RunReport } from './run-report.js';
import { steps } from './steps.js';

/**
 * Finds what no compensation could reach, and repairs, if it is to, what is ours and unambiguous. Each repair is a run of its own under the workflow id of
 * the VM, which proves again what was found: it waits for nobody, and no snapshot of that VM runs beside it.
 */
export async function reconcile(input: ReconcileInput = {}): Promise<DoctorReport> {
  const report = new RunReport();
  const examination = await examine(input, report);
  const repair = input.repair === true;
  const findings: Finding[] = [];
  for (const judged of examination.findings) {
    findings.push({ ...withoutRepair(judged), ...(await outcomeOf(judged, repair, report)) });
  }
  const left = findings.filter(({ outcome }) => outcome !== 'repaired').length;
  upsertSearchAttributes([{ key: searchAttributes.findings, value: left }]);
  if (findings.length > 0) report.adds(tableOf(findings));
  report.ends(
    findings.length === 0
      ? '**Nothing found**'
      : `**Found: ${findings.length + examination.omitted}. Left: ${left + examination.omitted}.**`,
  );
  return { ...examination, repair, findings };
}

async function examine(input: ReconcileInput, report: RunReport): Promise<Examination> {
  try {
    const examination = await report.step('checking', 'compare catalogue, Temporal, Cinder and hosts', () =>
      steps.examine.executeWithOptions({ summary: 'Compares catalogue, Temporal, Cinder and hosts' }, [input]),
    );
    const { hosts, snapshots, overlays, volumeSnapshots } = examination.looked;
    report.isAbout(
      undefined,
      `Looked at ${hosts} hosts, ${snapshots} snapshots, ${overlays} overlays and ${volumeSnapshots} snapshots in Cinder${input.repair === true ? ', to repair what is unambiguous' : '; it only reports'}.`,
      [],
    );
    return examination;
  } catch (error) {
    const failure = failureOf(error);
    report.failed(failure);
    throw runFailure(failure, [`Nothing was compared: ${failure.text}.`, failure.advice]);
  }
}

async function outcomeOf(
  { repair: how, text }: JudgedFinding,
  repair: boolean,
  report: RunReport,
): Promise<Pick<Finding, 'outcome' | 'detail'>> {
  if (how === undefined) return { outcome: 'for-a-person', detail: '' };
  if (!repair) return { outcome: 'repairable', detail: '' };
  try {
    await report.step('deleting', nameOf(how), () => carriedOut(how, text));
    return { outcome: 'repaired', detail: '' };
  } catch (error) {
    if (CancellationScope.current().consideredCancelled) throw error;
    return { outcome: 'not-repaired', detail: whyNot(error) };
  }
}

/** A child that is under way when this run is terminated goes on: what it has begun is better ended. */
function carriedOut(how: Repair, text: string): Promise<unknown> {
  const options = {
    workflowId: workflowIdOf(how.vm),
    parentClosePolicy: 'ABANDON' as const,
    staticSummary: nameOf(how),
    staticDetails: cell(text),
  };
  return how.kind === 'clean-up'
    ? executeChild('deleteSnapshot', {
        ...options,
        args: [{ vm: how.vm, snapshotId: how.snapshotId, leftoversOnly: true, provenDead: true }],
      })
    : executeChild('removeLeftover', { ...options, args: [how] });
}

function nameOf(how: Repair): string {
  if (how.kind === 'clean-up') return `clean up snapshot ${how.snapshotId}`;
  if (how.kind === 'reservation') return `give back the VM that ${how.operation} held`;
  return `delete Cinder's snapshot ${how.volumeSnapshot}`;
}

function whyNot(error: unknown): string {
  // The SDK does not export the class to workflows.
  if (error instanceof TemporalFailure && error.name === 'WorkflowExecutionAlreadyStartedError') {
    return 'Another run of this VM goes on. The next look finds what that leaves.';
  }
  return `${failureOf(error).text}.`;
}

function withoutRepair({ repair: _, ...finding }: JudgedFinding): Omit<JudgedFinding, 'repair'> {
  return finding;
}

function tableOf(findings: readonly Finding[]): string {
  const rows = findings.map(
    ({ code, about, text, advice, outcome, detail }) =>
      `| ${code} | ${cell(about.vm?.name ?? about.host ?? '')} | ${cell(text)} | ${outcome} | ${cell(detail === '' ? advice : detail)} |`,
  );
  return ['| finding | of | what | outcome | |', '|---|---|---|---|---|', ...rows].join('\n');
}
