import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { castNet } from './net.js';
import { castOverPlanted } from './planted.js';
import type { Outcome } from './run.js';
import { scenarioOf } from './scenario.js';

const usage = `npm run random -- [--runs N] [--seed S] [--planted [NAME]]

Random faults over the simulated hypervisor and the Cinder stand-in, on a real Temporal server (docs/random-faults.md).

  --runs N        how many scenarios; default 1000, with --seed 1
  --seed S        the first one's seed, and each next one's is one more; default: made from the time
  --planted NAME  plants a bug in a copy of the sources, and sees that it is found within --runs (default 500); without NAME: each of them
  --lanes N       scenarios side by side in each of two processes; default 4
  --log FOLDER    keeps the product's log there
`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    runs: { type: 'string' },
    seed: { type: 'string' },
    planted: { type: 'boolean' },
    lanes: { type: 'string', default: '4' },
    log: { type: 'string' },
    'until-found': { type: 'boolean' },
    help: { type: 'boolean' },
  },
});

function wholeNumber(name: string, text: string | undefined, otherwise: number): number {
  if (text === undefined) return otherwise;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  process.stderr.write(`--${name} is a whole number, not ${text}.\n${usage}`);
  process.exit(2);
}

const lanes = Math.max(1, wholeNumber('lanes', values.lanes, 4));
const seed = wholeNumber('seed', values.seed, Date.now() % 100_000_000);

if (values.help) process.stdout.write(usage);
else if (values.planted) process.exitCode = await castOverPlanted(positionals, wholeNumber('runs', values.runs, 500));
else process.exitCode = await run(wholeNumber('runs', values.runs, values.seed === undefined ? 1_000 : 1));

async function run(runs: number): Promise<number> {
  const started = performance.now();
  const found: Outcome[] = [];
  const ends = new Map<string, number>();
  const struck = new Map<string, number>();
  let done = 0;
  let longestMs = 0;
  let processorSeconds = 0;
  const seconds = () => `${((performance.now() - started) / 1000).toFixed(0)} s`;
  process.stdout.write(`seeds ${seed} to ${seed + runs - 1}\n`);
  await castNet({
    seeds: Array.from({ length: runs }, (_, i) => seed + i),
    processes: Math.min(runs, Math.max(2, availableParallelism())),
    lanes: Math.max(1, Math.min(lanes, Math.ceil(runs / 2))),
    ...(values.log === undefined ? {} : { logFolder: values.log }),
    ...(values['until-found'] === undefined ? {} : { untilFound: values['until-found'] }),
    onProcessorTime: (used) => {
      processorSeconds += used;
    },
    onOutcome: (outcome) => {
      done += 1;
      longestMs = Math.max(longestMs, outcome.longestFreezeMs);
      count(ends, Object.entries(outcome.ends));
      count(
        struck,
        outcome.struck.map((what) => [what, 1]),
      );
      if (runs === 1)
        process.stdout.write(`${JSON.stringify({ scenario: scenarioOf(outcome.seed), outcome }, null, 1)}\n`);
      if (outcome.findings.length > 0) tellFound(outcome, done);
      if (outcome.findings.length > 0) found.push(outcome);
      if (done % 25 === 0) process.stdout.write(`${done} of ${runs}, ${found.length} with a finding, ${seconds()}\n`);
    },
  });
  process.stdout.write(
    [
      `${done} runs in ${seconds()}: ${found.length} with a finding`,
      `processor time beside Temporal's server: ${Math.round(processorSeconds)} s`,
      `longest freeze while a thaw was possible: ${Math.round(longestMs)} ms`,
      `workflow runs: ${told(ends)}`,
      `faults that struck: ${told(struck)}`,
      '',
    ].join('\n'),
  );
  return found.length > 0 ? 1 : 0;
}

function tellFound({ seed: of, findings, struck }: Outcome, run: number): void {
  process.stdout.write(
    `FOUND by seed ${of}, run ${run} (${struck.join(', ') || 'no fault struck'}); again: npm run random -- --seed ${of}\n`,
  );
  for (const finding of findings) process.stdout.write(`  ${finding}\n`);
}

function count(into: Map<string, number>, entries: readonly (readonly [string, number])[]): void {
  for (const [what, times] of entries) into.set(what, (into.get(what) ?? 0) + times);
}

function told(counts: ReadonlyMap<string, number>): string {
  const sorted = [...counts].sort(([, a], [, b]) => b - a);
  return sorted.map(([what, times]) => `${what} ${times}`).join(', ');
}
