// npm run fuzz -- --runs N [--seed S]: the properties of test/hostile, N times each instead of the few of `npm test`. A failure prints its seed.
import { spawn } from 'node:child_process';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { prepare, root } from './prepare.mjs';

const usage = 'Usage: npm run fuzz -- [--runs N] [--seed S] [test files]\n';
let asked;
try {
  asked = parseArgs({
    options: { runs: { type: 'string', default: '10000' }, seed: { type: 'string' } },
    allowPositionals: true,
  });
  for (const number of [asked.values.runs, asked.values.seed ?? '0']) {
    if (!/^-?\d+$/.test(number)) throw new TypeError(`${number} is no number`);
  }
} catch (error) {
  process.stderr.write(`${error.message}\n${usage}`);
  process.exit(2);
}
await prepare();
const { runs, seed } = asked.values;
const files = asked.positionals.length > 0 ? asked.positionals : ['test/hostile'];
// Vitest's own limit would end a long run; one input that hangs has a limit of its own (test/hostile/runs.ts).
const limits = ['--testTimeout=0', '--hookTimeout=120000'];
const child = spawn(
  process.execPath,
  [path.join(root, 'node_modules', 'vitest', 'vitest.mjs'), 'run', '--project', 'unit', ...limits, ...files],
  { cwd: root, stdio: 'inherit', env: { ...process.env, FUZZ_RUNS: runs, ...(seed && { FUZZ_SEED: seed }) } },
);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
child.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
