import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Fault } from '../../matrix/faults.js';
import { type CellResult, type OpenRow, Results, render } from '../../matrix/results.js';
import type { Step } from '../../matrix/steps.js';

const step = (name: string): Step => ({
  name,
  place: `where it is ${name}`,
  isFrozen: false,
  blocksTheThaw: false,
  reach: () => Promise.reject(new Error('nobody goes there')),
});
const [first, second, third] = [step('prepared'), step('frozen'), step('thawed')];
const stepsOf = () => [first, second, third];
const fault: Fault = {
  name: 'engine killed',
  on: 'local',
  how: 'kill -9',
  request: {},
  begin: async () => undefined,
  end: async () => undefined,
  lastsMs: 0,
  blocksTheThaw: false,
  keepsHeld: true,
  leavesPending: false,
  cause: /engine/,
};
const openRows: OpenRow[] = [{ name: 'clock jumps', why: 'there is no clock to move' }];

const cell = (over: Partial<CellResult> = {}): CellResult => ({
  row: fault.name,
  column: first.name,
  at: '2026-01-02T03:04:05.000Z',
  commit: 'abcdef12',
  tookMs: 9_000,
  end: 'complete',
  error: '',
  frozenMs: 312,
  problems: [],
  ...over,
});

describe('The results of the matrix', () => {
  let folder: string;
  let file: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'stillpoint-matrix-'));
    file = join(folder, 'matrix.jsonl');
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  const table = (results: Results) => render(results, { faults: [fault], steps: stepsOf, openRows });

  it('are there again in the next run, the last of each cell', () => {
    const results = new Results(file);
    results.add(cell({ problems: ['the guest is frozen'] }));
    results.add(cell());
    expect(new Results(file).get(fault.name, first.name)).toEqual(cell());
  });

  it('are compacted to one line a cell, and what is no cell any more goes', () => {
    const results = new Results(file);
    results.add(cell({ tookMs: 1 }));
    results.add(cell());
    results.add(cell({ row: 'a row of old' }));
    results.compact((row) => row === fault.name);
    expect(readFileSync(file, 'utf8')).toBe(`${JSON.stringify(cell())}\n`);
  });

  it('show each cell’s end, freeze, date and commit, and the longest freeze of all', () => {
    const results = new Results(file);
    results.add(cell());
    results.add(cell({ column: second.name, end: 'CANCELLED', frozenMs: 1_234 }));
    const shown = table(results);
    expect(shown).toContain('complete, 0.3 s<br>2026-01-02 abcdef12');
    expect(shown).toContain(`**1.2 s** (${fault.name}, ${second.name})`);
  });

  it('show nothing as passed that failed or was not played', () => {
    const results = new Results(file);
    results.add(cell({ problems: ['overlay files: a.qcow2'] }));
    const shown = table(results);
    expect(shown).toContain('3 cells: 0 passed, **1 failed**, 2 not played');
    expect(shown).toMatch(/\*\*FAILED\*\* \[1\][\s\S]*1\. overlay files: a\.qcow2/);
    expect(shown.match(/\*\*not played\*\*/g)).toHaveLength(2);
  });

  it('show why there is no such cell', () => {
    const without = (at: Step) => (at === third ? 'the guest is thawed' : undefined);
    const shown = render(new Results(file), { faults: [{ ...fault, without }], steps: stepsOf, openRows });
    expect(shown).toContain('2 not played, 1 that cannot occur or equal another');
    expect(shown).toMatch(/– \[1\][\s\S]*1\. the guest is thawed/);
  });

  it('name every row that nobody plays yet, with its reason', () => {
    const shown = table(new Results(file));
    for (const { name, why } of openRows) expect(shown).toContain(`*${name}*: ${why}`);
  });
});
