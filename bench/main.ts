/**
 * The frozen window of the lab's VM, several ways, interleaved, on the real thing:
 *
 * - Stillpoint: a snapshot through the whole system (API, Temporal, gRPC, host agent, Cinder);
 * - bare: the same calls to libvirt and Cinder (prepared overlays and connections, freeze, all cuts side by side, thaw) from this one script, without
 *   Temporal, gRPC or journal: the limit;
 * - of local disks, QUIESCE: libvirt's own VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE, which makes its overlay files inside;
 * - with volumes, Nova's order (one create after another, asked every 0.5 s, no local disks) and the shell script of today (todays-script.sh).
 *
 * Two clocks: the caller's is freeze answered -> thaw asked for, on its own side of libvirt's socket; libvirt's own log sees the same from inside (freeze
 * answered by the guest agent -> thaw sent to it), and is the only one that can see into QUIESCE.
 */
import { parseArgs } from 'node:util';
import { measureLocal } from './local.js';
import { quantile, type Series, windowTable } from './samples.js';
import { cephStage, localStage, type Stage, stopSignal } from './stage.js';
import { measureVolumes } from './volumes.js';

const USAGE = `Usage: npm run bench [-- [RUNS] [--only local|volumes] [--storage FOLDER]]
  RUNS       how many snapshots each way takes under each setting; default 20
  --only     local: local disks alone; volumes: two local disks with 1 and with 4 Ceph volumes; default both
  --storage  the folder of a lab's storage that runs (npm run lab: <state>/storage) instead of one of its own
`;
const VOLUMES = 4;

const say = (line: string) => process.stderr.write(`${line}\n`);

function readArguments() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { only: { type: 'string' }, storage: { type: 'string' } },
    });
    const { only, storage } = values;
    const [runs = '20', ...more] = positionals;
    const fits = /^[1-9]\d{0,4}$/.test(runs) && more.length === 0 && ['local', 'volumes', undefined].includes(only);
    if (fits) return { runs: Number(runs), only, storage };
  } catch {
    // An option that there is not.
  }
  process.stderr.write(USAGE);
  process.exit(2);
}

const { runs, only, storage } = readArguments();
const signal = stopSignal(say);
const series: Series[] = [];
const measuring = { runs, into: series, signal, say };
/** Lines of the report, beside the windows. */
const facts: string[] = [];

async function part<T extends Stage>(
  title: string,
  stage: T,
  measureAll: (stage: T, options: typeof measuring) => Promise<void>,
): Promise<void> {
  try {
    await measureAll(stage, measuring);
    facts.push(
      `Resident memory after ${title} (${stage.lab.acceleration.toUpperCase()}, Node ${process.version}): ${memoryOf(stage)}`,
    );
  } finally {
    await stage.end();
  }
}

function memoryOf({ system }: Stage): string {
  const of = (process: Stage['system']['engine']) =>
    process === undefined ? 'unknown' : `${Math.round(system.residentBytes(process) / 2 ** 20)} MiB`;
  return `engine ${of(system.engine)}, host agent (supervisor and worker) ${of(system.hostAgent)}`;
}

/** What is to be reached: 1.1 times bare or 25 ms over it, whichever is more; of local disks alone QUIESCE. Medians decide, in libvirt's log. */
function goals(): string[] {
  const median = (setting: string, way: string, clock: 'host' | 'log') =>
    quantile(series.find((one) => one.setting === setting && one.way === way)?.[clock] ?? [], 0.5);
  return [...new Set(series.map(({ setting }) => setting))].flatMap((setting) =>
    (['log', 'host'] as const).flatMap((clock) => {
      const ours = median(setting, 'Stillpoint', clock);
      const isLocal = series.some((one) => one.setting === setting && one.way === "libvirt's QUIESCE");
      const other = isLocal ? "libvirt's QUIESCE" : 'bare';
      const limit = median(setting, other, clock);
      if (Number.isNaN(limit) || Number.isNaN(ours)) return [];
      const isReached = ours <= (isLocal ? limit : Math.max(limit * 1.1, limit + 25));
      const more = `${Math.abs(ours - limit).toFixed(0)} ms ${ours < limit ? 'less' : 'more'}`;
      const ratio = `${(ours / limit).toFixed(2)} times ${other} (${more})`;
      return [
        `${setting}, ${clock === 'log' ? "libvirt's log" : "the caller's clock"}: ${ratio}: ${isReached ? 'reached' : 'NOT reached'}`,
      ];
    }),
  );
}

let failure: unknown;
try {
  const bench = { name: 'bench', signal, say };
  if (only !== 'volumes') await part('local disks', await localStage(bench), measureLocal);
  if (only !== 'local' && !signal.aborted) {
    await part('volumes', await cephStage({ ...bench, volumes: VOLUMES, storageFolder: storage }), measureVolumes);
  }
} catch (error) {
  failure = error;
}

const counts = series.map(({ log }) => log.length);
if (counts.some((count) => count > 0)) {
  const [fewest, most] = [Math.min(...counts), Math.max(...counts)];
  process.stdout.write(`
Frozen window, ms, median / p95 of ${fewest === most ? most : `${fewest} to ${most}`} runs, interleaved

In libvirt's log:

${windowTable(series, 'log')}

By the caller's clock:

${windowTable(series, 'host')}

${[...goals(), ...facts].join('\n')}
`);
}
for (const { setting, way, failures } of series) if (failures > 0) say(`${setting}, ${way}: ${failures} failed`);
if (failure !== undefined && !signal.aborted) throw failure;
process.exitCode = signal.aborted || series.some(({ failures }) => failures > 0) ? 1 : 0;
