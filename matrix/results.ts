/** What the cells' results are kept in, and the table that is made of it. */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { Outcome } from './cell.js';
import type { Fault } from './faults.js';
import type { Step } from './steps.js';

export interface CellResult extends Outcome {
  readonly row: string;
  readonly column: string;
  /** ISO 8601. */
  readonly at: string;
  /** Of the build that ran. */
  readonly commit: string;
  readonly tookMs: number;
}

/** A row that nobody plays yet, and why. */
export interface OpenRow {
  readonly name: string;
  readonly why: string;
}

/** Results, one JSON line each: a cell's last line counts. */
export class Results {
  readonly #file: string;
  readonly #cells = new Map<string, CellResult>();

  constructor(file: string) {
    this.#file = file;
    const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').filter(Boolean) : [];
    for (const line of lines) this.#keep(JSON.parse(line) as CellResult);
  }

  get(row: string, column: string): CellResult | undefined {
    return this.#cells.get(key(row, column));
  }

  /** Written at once: whatever ends the run, the cell need not be played again. */
  add(result: CellResult): void {
    this.#keep(result);
    appendFileSync(this.#file, `${JSON.stringify(result)}\n`);
  }

  /** Leaves one line for each cell that there is. */
  compact(isCell: (row: string, column: string) => boolean): void {
    const kept = [...this.#cells.values()].filter(({ row, column }) => isCell(row, column));
    writeFileSync(this.#file, kept.map((result) => `${JSON.stringify(result)}\n`).join(''));
  }

  #keep(result: CellResult): void {
    this.#cells.set(key(result.row, result.column), result);
  }
}

const key = (row: string, column: string) => `${row}\n${column}`;

export interface Shown {
  readonly faults: readonly Fault[];
  readonly steps: (fault: Fault) => readonly Step[];
  readonly openRows: readonly OpenRow[];
}

/** The section of docs/matrix.md that a run writes. */
export function render(results: Results, { faults, steps, openRows }: Shown): string {
  const notes: string[] = [];
  const note = (text: string) => {
    const at = notes.indexOf(text);
    return at >= 0 ? at + 1 : notes.push(text);
  };
  const all = faults.flatMap((fault) => steps(fault).map((step) => ({ fault, step })));
  const reasoned = all.filter(({ fault, step }) => fault.without?.(step) !== undefined);
  const played = all.flatMap(({ fault, step }) => {
    const result = fault.without?.(step) === undefined ? results.get(fault.name, step.name) : undefined;
    return result === undefined ? [] : [result];
  });
  const failed = played.filter(({ problems }) => problems.length > 0);
  const missing = all.length - reasoned.length - played.length;
  const longest = played.reduce((most, next) => (next.frozenMs > most.frozenMs ? next : most), played[0] ?? nobody);
  const minutes = played.reduce((sum, { tookMs }) => sum + tookMs, 0) / 60_000;

  const cellText = (fault: Fault, step: Step): string => {
    const reason = fault.without?.(step);
    if (reason !== undefined) return `– [${note(reason)}]`;
    const result = results.get(fault.name, step.name);
    if (result === undefined) return '**not played**';
    const { end, frozenMs, problems, at, commit } = result;
    const when = `<br>${at.slice(0, 10)} ${commit}`;
    if (problems.length > 0) return `**FAILED** [${note(problems.join('; '))}]${when}`;
    return `${end}, ${seconds(frozenMs)}${when}`;
  };
  const tables = [...new Set(faults.map(({ on }) => on))].map((on) => {
    const rows = faults.filter((fault) => fault.on === on);
    const columns = steps(rows[0] as Fault);
    const lines = rows.map(
      (fault) => `| **${fault.name}**: ${fault.how} | ${columns.map((step) => cellText(fault, step)).join(' | ')} |`,
    );
    return [
      on === 'local' ? '### A VM whose disks are on the host' : '### A VM with disks on the host and on Ceph',
      `| fault | ${columns.map(({ name }) => name).join(' | ')} |`,
      `|---|${columns.map(() => '---|').join('')}`,
      ...lines,
      '',
      'The columns: ',
      ...columns.map(({ name, place }) => `- *${name}*: ${place}.`),
    ].join('\n');
  });
  return [
    `${all.length} cells: ${played.length - failed.length} passed, **${failed.length} failed**, ${missing} not played, ${reasoned.length} that cannot occur or equal another.`,
    `The longest freeze after a thaw was possible: **${seconds(longest.frozenMs)}** (${longest.row}, ${longest.column}). The cells shown took ${minutes.toFixed(0)} minutes.`,
    '',
    ...tables.flatMap((table) => [table, '']),
    ...(notes.length === 0 ? [] : ['Notes:', '', ...notes.map((text, index) => `${index + 1}. ${text}`), '']),
    ...(openRows.length === 0
      ? []
      : ['### Rows that nobody plays yet', '', ...openRows.map(({ name, why }) => `- *${name}*: ${why}`), '']),
  ].join('\n');
}

const nobody = { frozenMs: 0, row: 'no cell', column: 'none' };
const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
