/**
 * The proof: many snapshots of the VM with local disks and Ceph volumes, whose guest writes all the time, each judged by its content alone; and the
 * counter-proof, which shows that the judge can tell: snapshots without a freeze. The result goes to docs/proof.md.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { type SetReport, verifySet } from '@stillpoint/lab/snapshot-check.js';
import { quantile } from './samples.js';
import { type CephStage, cephStage, stopSignal } from './stage.js';
import { windowMs, withSnapshot } from './stillpoint.js';

const USAGE = `Usage: npm run proof [-- [N] [--storage FOLDER]]
  N          how many snapshots; default 200
  --storage  the folder of a lab's storage that runs (npm run lab: <state>/storage) instead of one of its own
`;
const VOLUMES = 4;
const DISKS = VOLUMES + 2;
const COUNTER_PROOF = 20;

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const result = join(root, 'docs', 'proof.md');
const say = (line: string) => process.stdout.write(`${line}\n`);

function readArguments() {
  try {
    const { values, positionals } = parseArgs({ allowPositionals: true, options: { storage: { type: 'string' } } });
    const [count = '200', ...more] = positionals;
    if (/^[1-9]\d{0,4}$/.test(count) && more.length === 0) return { count: Number(count), storage: values.storage };
  } catch {
    // An option that there is not.
  }
  process.stderr.write(USAGE);
  process.exit(2);
}

/** What became of one snapshot. */
interface Judged {
  readonly grade: string | null;
  /** ms; undefined: there was no window that held. */
  readonly windowMs: number | undefined;
  readonly report: SetReport;
}

/** All disks of the snapshot, read from where they lie: the host's images and Ceph. */
async function judge(stage: CephStage, snapshot: SnapshotView): Promise<SetReport> {
  const report = await verifySet(
    snapshot.disks.map((part) => ({
      target: part.target,
      image: part.kind === 'local' ? part.path : stage.storage.snapshotImage(part.volume, part.snapshot),
    })),
  );
  // Otherwise a disk that nobody reads would be in order.
  if (report.numbers.length !== DISKS) {
    throw new Error(`the writer's number is on ${report.numbers.length} of ${DISKS} disks`);
  }
  return report;
}

/** So many snapshots, one after another, each judged and deleted. One that fails is an outcome, too: its text. */
async function takeAll(
  stage: CephStage,
  what: { readonly title: string; readonly count: number; readonly request: Record<string, unknown> },
): Promise<(Judged | string)[]> {
  const outcomes: (Judged | string)[] = [];
  for (let index = 1; index <= what.count && !signal.aborted; index += 1) {
    const outcome = await withSnapshot(stage, what.request, async (snapshot): Promise<Judged> => {
      const report = await judge(stage, snapshot);
      return {
        grade: snapshot.grade,
        windowMs: snapshot.grade === 'filesystem' ? windowMs(snapshot) : undefined,
        report,
      };
    }).catch((error: unknown) => (error instanceof Error ? error.message : String(error)));
    if (signal.aborted) break;
    outcomes.push(outcome);
    say(`${what.title} ${index} of ${what.count}: ${typeof outcome === 'string' ? outcome : lineOf(outcome)}`);
    if (typeof outcome !== 'string' && outcome.grade === 'filesystem' && !outcome.report.clean) {
      for (const { path, fileSystems } of outcome.report.images) {
        for (const { clean, output } of fileSystems) if (!clean) say(`${path}:\n${output}`);
      }
    }
  }
  return outcomes;
}

function lineOf({ grade, windowMs, report }: Judged): string {
  const window = windowMs === undefined ? 'no window' : `window ${windowMs.toFixed(0)} ms`;
  const order = report.ordered ? 'in order' : 'ORDER BROKEN';
  return `${grade}, ${window}, fsck ${report.clean ? 'clean' : 'NOT clean'}, ${order}: ${report.numbers.join(' ')}`;
}

function countOf(outcomes: readonly (Judged | string)[], fits: (judged: Judged) => boolean): number {
  return outcomes.filter((outcome) => typeof outcome !== 'string' && fits(outcome)).length;
}

/** Versions of what took part, as a Markdown list. */
async function versions({ lab, temporalVersion }: CephStage): Promise<string> {
  const hypervisor = createLibvirtHypervisor({ socketPath: lab.libvirtSocket });
  await hypervisor.start();
  const { libvirtVersion, qemuVersion } = await hypervisor.facts().finally(() => hypervisor.close());
  const system = readFileSync('/etc/os-release', 'utf8').match(/^PRETTY_NAME="(.*)"$/m)?.[1] ?? 'unknown';
  const [ceph, cinder, keystone] = ['ceph-osd', 'cinder-volume', 'keystone'].map(
    (name) => run('dpkg', ['-s', name]).match(/^Version: (.*)$/m)?.[1] ?? 'unknown',
  );
  return [
    `${system}, ${lab.acceleration.toUpperCase()}; libvirt ${libvirtVersion}, QEMU ${qemuVersion}`,
    `Ceph ${ceph}, Cinder ${cinder}, Keystone ${keystone} (packages)`,
    `Temporal ${temporalVersion}, Node ${process.version}; the guest's Linux ${await lab.guest.run('uname -r')}`,
  ].join('; ');
}

function commit(): string {
  // What an earlier run has written there is no change of what is proven.
  const others = ['--untracked-files=no', '--', '.', ':!docs/proof.md'];
  try {
    const changed = run('git', ['-C', root, 'status', '--porcelain', ...others]) !== '';
    return `${run('git', ['-C', root, 'rev-parse', '--short=12', 'HEAD'])}${changed ? ', with changes' : ''}`;
  } catch {
    return 'unknown: not in a checkout';
  }
}

function run(program: string, args: readonly string[]): string {
  return execFileSync(program, args, { encoding: 'utf8' }).trim();
}

const { count, storage } = readArguments();
const signal = stopSignal(say);
const startedAt = performance.now();
// What is built now, whatever is committed while this runs.
const proven = commit();
const stage = await cephStage({ name: 'proof', signal, say, volumes: VOLUMES, storageFolder: storage });
try {
  // As Ceph is shipped: the windows are longer, and the cuts of a set lie further apart.
  await stage.storage.setMonitor('stock');
  const used = await versions(stage);
  const proof = await takeAll(stage, { title: 'proof', count, request: {} });
  const counterProof = await takeAll(stage, {
    title: 'counter-proof',
    count: COUNTER_PROOF,
    request: { quiesce: 'skip' },
  });
  if (signal.aborted) process.exitCode = 1;
  else {
    const { text, isProven } = written({ used, proof, counterProof });
    writeFileSync(result, text);
    say(`\n${text}`);
    say(`Written to ${result}`);
    process.exitCode = isProven ? 0 : 1;
  }
} finally {
  await stage.end();
}

function written(taken: {
  used: string;
  proof: readonly (Judged | string)[];
  counterProof: readonly (Judged | string)[];
}): { text: string; isProven: boolean } {
  const { used, proof, counterProof } = taken;
  const windows = proof.flatMap((outcome) => (typeof outcome === 'string' ? [] : (outcome.windowMs ?? [])));
  const ms = (share: number) => `${quantile(windows, share).toFixed(0)} ms`;
  const held = countOf(proof, ({ grade }) => grade === 'filesystem');
  const unclean = countOf(proof, ({ report }) => !report.clean);
  const broken = countOf(proof, ({ report }) => !report.ordered);
  const failed = proof.filter((outcome) => typeof outcome === 'string').length;
  const perDisk = countOf(counterProof, ({ grade }) => grade === 'per-disk');
  const counterBroken = countOf(counterProof, ({ report }) => !report.ordered);
  const counterUnclean = countOf(counterProof, ({ report }) => !report.clean);
  const isProven =
    held === proof.length && unclean + broken + failed === 0 && perDisk === counterProof.length && counterBroken > 0;
  const rows = [
    ['date', new Date().toISOString().slice(0, 10)],
    ['commit', proven],
    ['with', used],
    ['snapshots', `${proof.length}, of 2 local disks and ${VOLUMES} Ceph volumes`],
    ['failed', `${failed} of ${proof.length}`],
    ['graded `filesystem`', `${held} of ${proof.length}`],
    ['fsck found something to repair or to replay', `${unclean} of ${proof.length}`],
    ['**order of writes broken**', `**${broken} of ${proof.length}**`],
    ['window: median / p95 / longest', `${ms(0.5)} / ${ms(0.95)} / ${ms(1)}`],
    ['counter-proof: graded `per-disk`', `${perDisk} of ${counterProof.length}`],
    ['counter-proof: fsck found something to repair or to replay', `${counterUnclean} of ${counterProof.length}`],
    ['**counter-proof: order of writes broken**', `**${counterBroken} of ${counterProof.length}**`],
    ['proven', isProven ? 'yes' : 'NO'],
    ['took', `${((performance.now() - startedAt) / 60_000).toFixed(0)} minutes`],
  ];
  const text = `# The proof

<!-- Written by \`npm run proof\`. -->

A process in the guest writes an increasing number to a file on every file system in turn (the root disk, the second local disk, then each Ceph volume), each write with fsync before the next. So at any one instant no file system holds a higher number than
the one before it, and the last holds at most one less than the first. \`npm run proof\` takes snapshots one after another while that goes on, with Ceph's monitor as it is shipped. Of each it reads all disks from where they lie (the host's images, Ceph's
snapshots), runs \`e2fsck\` and \`fsck.vfat\` on a copy without replaying a journal, compares the numbers, and deletes it.

The counter-proof shows that this test can fail: the same with \`quiesce: skip\`, which freezes nothing. Such a snapshot must be graded \`per-disk\`, for its cuts are not one instant.

| | |
|---|---|
${rows.map(([what, value]) => `| ${what} | ${value} |`).join('\n')}

Repeat it: \`npm run proof\` (200 snapshots), or \`npm run proof -- N\`.
`;
  return { text, isProven };
}
