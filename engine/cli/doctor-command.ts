import type { DoctorRun } from '../api/schemas.js';
import { type Context, show } from './context.js';
import { CommandError, exitCodes } from './exit-codes.js';
import { plain, table, time } from './terminal.js';

/** How long one question waits for the end, s: less than the API client's own limit. */
const waitS = 20;

type Report = NonNullable<DoctorRun['report']>;

/**
 * `doctor [--repair]`: looks, and shows what was found.
 *
 * @throws CommandError FINDINGS_LEFT when something is left, after it is shown; the run's own error when it failed
 */
export async function doctor(context: Context, options: { repair?: boolean }): Promise<number> {
  const body = { repair: options.repair ?? false };
  let run = await context.api.request<DoctorRun>('POST', '/v1/doctor', { body });
  if (!context.json) context.terminal.err(`Comparing catalogue, Temporal, Cinder and hosts … (${plain(run.id)})\n`);
  while (run.state === 'running') {
    run = await context.api.request<DoctorRun>('GET', `/v1/doctor/${encodeURIComponent(run.id)}`, {
      query: { wait: String(waitS) },
    });
  }
  const { report, error } = run;
  if (report === null) {
    throw new CommandError(exitCodes.failed, error?.code ?? 'INTERNAL', error?.text ?? 'The run left no report.');
  }
  show(context, run, () => textOf(report));
  const left = report.findings.filter(({ outcome }) => outcome !== 'repaired').length + report.omitted;
  if (left === 0) return exitCodes.ok;
  const canRepair = report.findings.some(({ outcome }) => outcome === 'repairable');
  throw new CommandError(
    exitCodes.findingsLeft,
    'FINDINGS_LEFT',
    `${left} of ${report.findings.length + report.omitted} are left.${canRepair ? ' Repair what is unambiguous: stillpoint doctor --repair.' : ''} docs/doctor.md says what each means.`,
  );
}

function textOf({ at, looked, findings, omitted }: Report): string {
  const { hosts, snapshots, overlays, volumeSnapshots } = looked;
  const head = `Looked at ${time(at)}: ${hosts} hosts, ${snapshots} snapshots, ${overlays} overlays, ${volumeSnapshots} snapshots in Cinder.`;
  if (findings.length === 0) return `${head}\nNothing found.`;
  const rows = findings.map(({ code, about, outcome }, at) => [
    String(at + 1),
    code,
    about.vm?.name ?? '-',
    about.host ?? '-',
    about.snapshotId ?? '-',
    outcome,
  ]);
  const remarks = findings.map(({ text, advice, detail, outcome }, at) => {
    const then = outcome === 'not-repaired' ? `Not repaired: ${detail}` : outcome === 'repaired' ? '' : advice;
    return plain(`${at + 1}: ${text} ${then}`.trimEnd());
  });
  return [
    head,
    '',
    table(['', 'FINDING', 'VM', 'HOST', 'SNAPSHOT', 'OUTCOME'], rows),
    '',
    ...remarks,
    ...(omitted === 0 ? [] : [`And ${omitted} more: look again when these are settled.`]),
  ].join('\n');
}
