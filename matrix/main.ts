/**
 * `npm run matrix`: every fault at every step, on the real thing. Cells that this commit has passed already are not played again; the table goes to
 * docs/matrix.md.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { defaultStateFolder } from '@stillpoint/lab/lab.js';
import { prepareStorage, type Storage, startStorage } from '@stillpoint/lab/storage/storage.js';
import { play, within } from './cell.js';
import { bringUpOnCeph, CephWorld } from './ceph-world.js';
import { type Fault, faults, openRows, type Setup, stepsOf } from './faults.js';
import { type CellResult, Results, render } from './results.js';
import type { Step } from './steps.js';
import { bringUp, World } from './world.js';

const USAGE = `Usage: npm run matrix [-- [--row TEXT]... [--column TEXT]... [--again] [--table]]
  --row     only rows whose name contains this
  --column  only columns whose name contains this
  --again   also cells that this commit has passed already
  --table   play nothing, write the table of what was played
`;
const CELL_LIMIT_MS = 240_000;

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const page = join(root, 'docs', 'matrix.md');
const results = new Results(join(root, 'docs', 'matrix.jsonl'));
const say = (line: string) => process.stdout.write(`${line}\n`);

function readArguments() {
  try {
    const { values } = parseArgs({
      options: {
        row: { type: 'string', multiple: true },
        column: { type: 'string', multiple: true },
        again: { type: 'boolean', default: false },
        table: { type: 'boolean', default: false },
      },
    });
    return values;
  } catch {
    process.stderr.write(USAGE);
    process.exit(2);
  }
}

const asked = readArguments();
const isAsked = (parts: readonly string[] | undefined, name: string) =>
  parts === undefined || parts.some((part) => name.includes(part));

/** What is built now, whatever is committed while this runs. */
const commit = commitOfTheBuild();

interface Cell {
  readonly fault: Fault;
  readonly step: Step;
}

const cells: Cell[] = faults
  .filter(({ name }) => isAsked(asked.row, name))
  .flatMap((fault) => stepsOf(fault).map((step) => ({ fault, step })))
  .filter(({ step }) => isAsked(asked.column, step.name))
  .filter(({ fault, step }) => fault.without?.(step) === undefined)
  .filter(({ fault, step }) => {
    const known = results.get(fault.name, step.name);
    return asked.again || known?.commit !== commit || known.problems.length > 0;
  });

/** Two local disks and so many volumes: what there is beyond two cuts side by side costs time in every check. */
const VOLUMES = 2;

/** The world that stands, and the storage below it; made when a cell needs them, and made anew after a cell that failed. */
class Stage {
  #world: World | undefined;
  #setup: Setup | undefined;
  #storage: Storage | undefined;

  async world(setup: Setup): Promise<World> {
    if (this.#world !== undefined && this.#setup !== setup) await this.clear();
    this.#setup = setup;
    this.#world ??= await this.#bringUp(setup);
    return this.#world;
  }

  /** Takes the world down, whatever state it is in. */
  async clear(): Promise<void> {
    const world = this.#world;
    this.#world = undefined;
    if (world instanceof CephWorld) await world.storage.mend().catch(told('The storage was not mended'));
    await world?.stop().catch(told('The world did not end well'));
  }

  async end(): Promise<void> {
    await this.clear();
    await this.#storage?.stop();
  }

  async #bringUp(setup: Setup): Promise<World> {
    const stateFolder = join(defaultStateFolder(), '..', 'matrix');
    if (setup === 'local') return new World(await bringUp({ stateFolder, progress: say, journalApart: true }));
    this.#storage ??= await this.#startStorage();
    const options = { stateFolder, progress: say, storage: this.#storage, volumes: VOLUMES };
    try {
      return new CephWorld(await bringUpOnCeph(options));
    } catch (error) {
      // It may be the storage that does not work any more.
      await this.#storage.stop();
      this.#storage = undefined;
      throw error;
    }
  }

  async #startStorage(): Promise<Storage> {
    const cacheFolder = join(defaultStateFolder(), 'cache');
    await prepareStorage(cacheFolder, say);
    const folder = join(defaultStateFolder(), '..', 'matrix-storage');
    return startStorage({ folder, cacheFolder, keystone: true, monitor: 'fast', progress: say });
  }
}

const told = (what: string) => (error: unknown) => say(`${what}: ${error}`);

async function playAll(): Promise<number> {
  let failed = 0;
  const stage = new Stage();
  try {
    for (const [index, cell] of cells.entries()) {
      if (stopped) break;
      const result = await playCell(await stage.world(cell.fault.on), cell);
      // What stopped this program has stopped its programs, too.
      if (stopped && result.problems.length > 0) break;
      results.add(result);
      say(`${index + 1} of ${cells.length} ${lineOf(result)}`);
      if (result.problems.length === 0) continue;
      failed += 1;
      // What it has left must not fail the next one.
      await stage.clear();
    }
  } finally {
    await stage.end();
  }
  return failed;
}

async function playCell(world: World, { fault, step }: Cell): Promise<CellResult> {
  const startedAt = performance.now();
  const outcome = await within(CELL_LIMIT_MS, 'the cell is over', play(world, fault, step)).catch((error: unknown) => ({
    end: 'none',
    error: '',
    frozenMs: 0,
    problems: [error instanceof Error ? (error.stack ?? error.message) : String(error)],
  }));
  const tookMs = Math.round(performance.now() - startedAt);
  return { row: fault.name, column: step.name, at: new Date().toISOString(), commit, tookMs, ...outcome };
}

function lineOf({ row, column, end, frozenMs, tookMs, problems }: CellResult): string {
  const verdict = problems.length === 0 ? 'passed' : `FAILED: ${problems.join('; ')}`;
  return `${row} / ${column}: ${end}, frozen ${frozenMs.toFixed(0)} ms, took ${(tookMs / 1000).toFixed(1)} s, ${verdict}`;
}

function writeTable(): void {
  const isCell = (row: string, column: string) => {
    const fault = faults.find(({ name }) => name === row);
    return fault !== undefined && stepsOf(fault).some(({ name }) => name === column);
  };
  results.compact(isCell);
  const mark = '<!-- Below here `npm run matrix` writes. -->';
  const [head = ''] = readFileSync(page, 'utf8').split(mark);
  writeFileSync(page, `${head}${mark}\n\n${render(results, { faults, steps: stepsOf, openRows })}`);
  say(`Written to ${page}`);
}

function commitOfTheBuild(): string {
  const git = (...args: string[]) => execFileSync('git', ['-C', root, ...args], { encoding: 'utf8' }).trim();
  // What earlier cells have written there changes nothing of what is played.
  const others = ['--untracked-files=no', '--', '.', ':!docs'];
  try {
    const changed = git('status', '--porcelain', ...others) !== '';
    return `${git('rev-parse', '--short=8', 'HEAD')}${changed ? '+' : ''}`;
  } catch {
    return 'unknown';
  }
}

let stopped = false;
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(name, () => {
    if (!stopped) say('Stopping after this cell: what was made is cleaned up …');
    stopped = true;
  });
}

say(`${cells.length} cells to play`);
const failed = asked.table ? 0 : await playAll();
writeTable();
process.exitCode = failed > 0 || stopped ? 1 : 0;
