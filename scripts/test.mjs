// npm test: every suite, and a closing table of what ran, on what, and how long.
// `npm test -- unit lab` runs only those; `-- --help` lists them.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { prepare, root, step } from './prepare.mjs';

const lab =
  process.platform !== 'linux'
    ? `needs Linux; this is ${process.platform}`
    : process.arch !== 'x64'
      ? `needs x86-64; this is ${process.arch}`
      : process.getuid() !== 0
        ? 'needs root: it installs packages and starts a libvirtd of its own'
        : undefined;

const postgres =
  process.platform !== 'linux'
    ? `needs Linux; this is ${process.platform}`
    : process.getuid() !== 0 && !existsSync('/usr/lib/postgresql')
      ? "needs root: it installs Debian's PostgreSQL"
      : undefined;

const suites = [
  { name: 'lint', on: 'Biome and buf over the whole tree' },
  // vitest alone would leave one of two cores idle.
  {
    name: 'unit',
    on: 'Node, PGlite, gRPC on loopback, the simulated hypervisor',
    workers: Math.max(2, availableParallelism() - 1),
  },
  { name: 'temporal', on: 'a real Temporal server, the simulated hypervisor', workers: 2 },
  {
    name: 'postgres',
    on: "Debian's PostgreSQL, a real Temporal server, several engines",
    cannot: postgres,
    workers: 2,
  },
  // Each file has a lab of its own and waits most of its time; more than three starve the guests on small machines.
  { name: 'lab', on: 'real libvirt, QEMU, guest agent and Temporal', cannot: lab, workers: 3 },
  // One storage for all files, and quotas and daemons are set and broken in it: one after another.
  { name: 'ceph', on: 'real Ceph, Cinder, Keystone, libvirt, QEMU and Temporal', cannot: lab, workers: 1 },
];
/** What is side by side here runs side by side: `ceph` alone leaves the processors idle half of its time; `unit` and `lab` never do. */
const order = [[['lint', 'unit', 'lab']], [['temporal', 'postgres'], ['ceph']]];

const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !suites.some((suite) => suite.name === name));
if (unknown.length > 0) {
  const known = suites.map(({ name, on }) => `  ${name.padEnd(9)} ${on}`).join('\n');
  process.stderr.write(`${unknown[0] === '--help' ? '' : `No suite is called ${unknown[0]}. `}Suites:\n${known}\n`);
  process.exit(unknown[0] === '--help' ? 0 : 2);
}

const started = Date.now();
const reports = mkdtempSync(path.join(tmpdir(), 'stillpoint-tests-'));
const rows = [];
await prepare({
  temporal: asked.length === 0 || asked.some((name) => ['temporal', 'postgres', 'lab', 'ceph'].includes(name)),
});
for (const lanes of order) await Promise.all(lanes.map(oneAfterAnother));
rmSync(reports, { recursive: true, force: true });
rows.sort((one, other) => suites.indexOf(one.suite) - suites.indexOf(other.suite));

const total = (what) => rows.reduce((sum, row) => sum + row[what], 0);
process.stdout.write(`\nSuites of this run (${seconds(started)} in all, Node ${process.version}):\n`);
for (const { suite, result } of rows) {
  process.stdout.write(`  ${suite.name.padEnd(9)} ${result.padEnd(42)} on ${suite.on}\n`);
}
process.stdout.write(`\n${total('passed')} passed, ${total('failed')} failed, ${total('skipped')} skipped\n`);
process.exit(total('failed') > 0 ? 1 : 0);

async function oneAfterAnother(names) {
  for (const suite of names.map((name) => suites.find((one) => one.name === name))) {
    if (asked.length > 0 && !asked.includes(suite.name)) continue;
    if (suite.cannot) rows.push({ suite, result: `did not run: ${suite.cannot}`, passed: 0, failed: 0, skipped: 1 });
    else if (suite.name === 'lint') rows.push(await lint(suite));
    else rows.push(await vitest(suite));
  }
}

async function lint(suite) {
  const start = Date.now();
  await step('linting', 'npm', ['run', '--silent', 'lint']);
  return { suite, result: `clean, ${seconds(start)}`, passed: 1, failed: 0, skipped: 0 };
}

async function vitest(suite) {
  const start = Date.now();
  const report = path.join(reports, `${suite.name}.json`);
  process.stdout.write(`\n── ${suite.name}: on ${suite.on}\n`);
  const child = spawn(
    process.execPath,
    [
      path.join(root, 'node_modules', 'vitest', 'vitest.mjs'),
      'run',
      '--project',
      suite.name,
      ...(suite.workers ? [`--maxWorkers=${suite.workers}`] : []),
      '--reporter=default',
      '--reporter=json',
      `--outputFile.json=${report}`,
    ],
    { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  // Suites that run side by side are told apart by their names before each line.
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => process.stdout.write(`${suite.name.padEnd(9)}${line}\n`));
  }
  const status = await new Promise((resolve) => child.once('close', resolve));
  let counts = { numPassedTests: 0, numFailedTests: 0, numPendingTests: 0, numTodoTests: 0 };
  try {
    counts = JSON.parse(readFileSync(report, 'utf8'));
  } catch {
    // No report: the runner itself failed, which its exit code tells.
  }
  // A file that fails to load has no failed test of its own, and a run without any test proves nothing.
  const failed = Math.max(counts.numFailedTests, status === 0 && counts.numPassedTests > 0 ? 0 : 1);
  const skipped = counts.numPendingTests + counts.numTodoTests;
  const result = `${counts.numPassedTests} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ''}, ${seconds(start)}`;
  return { suite, result, passed: counts.numPassedTests, failed, skipped };
}

function seconds(since) {
  return `${((Date.now() - since) / 1000).toFixed(0)} s`;
}
