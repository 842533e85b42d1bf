import { spawn } from 'node:child_process';
import { cp, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { scratchFolder } from './net.js';
import { type PlantedBug, plantedBugs } from './planted-bugs.js';

/** The checkout, from test/dist/random/. */
const root = fileURLToPath(new URL('../../..', import.meta.url));
const workspaces = ['proto', 'workflows', 'host-agent', 'engine', 'lab'];

/**
 * Plants each of these bugs (none named: every one) in a copy of the sources, and runs seeds from 1 on until the net finds it. Answers an exit code: 1 when a
 * bug was not found in `runs` scenarios.
 */
export async function castOverPlanted(names: readonly string[], runs: number): Promise<number> {
  const unknown = names.filter((name) => !plantedBugs.some((bug) => bug.name === name));
  if (unknown.length > 0) {
    const known = plantedBugs.map(({ name, what }) => `  ${name}: ${what}`).join('\n');
    process.stderr.write(`No bug is called ${unknown.join(', ')}. Those that can be planted:\n${known}\n`);
    return 2;
  }
  const bugs = plantedBugs.filter(({ name }) => names.length === 0 || names.includes(name));
  const copy = await scratchFolder();
  try {
    await copySources(copy);
    let missed = 0;
    for (const bug of bugs) {
      const found = await foundIn(copy, bug, runs);
      if (found === undefined) missed += 1;
      process.stdout.write(
        found === undefined
          ? `NOT FOUND in ${runs} runs: ${bug.name} (invariant ${bug.invariant})\n`
          : `| ${bug.invariant} | ${bug.name} | ${bug.what} | ${found.runs} | ${found.seed} | ${new Date().toISOString().slice(0, 10)} |\n  ${found.how}\n`,
      );
    }
    return missed === 0 ? 0 : 1;
  } finally {
    await rm(copy, { recursive: true, force: true });
  }
}

async function copySources(copy: string): Promise<void> {
  const isOurs = (path: string) => !path.endsWith('/node_modules');
  for (const name of [...workspaces, 'test', 'bench', 'matrix']) {
    await cp(join(root, name), join(copy, name), { recursive: true, preserveTimestamps: true, filter: isOurs });
  }
  for (const name of ['package.json', 'tsconfig.json', 'tsconfig.base.json'])
    await cp(join(root, name), join(copy, name));
  // The packages are those of the checkout; only the workspaces are the copy's own.
  const modules = join(copy, 'node_modules');
  await mkdir(join(modules, '@stillpoint'), { recursive: true });
  for (const name of await readdir(join(root, 'node_modules'))) {
    if (name !== '@stillpoint') await symlink(join(root, 'node_modules', name), join(modules, name));
  }
  for (const name of workspaces) await symlink(join(copy, name), join(modules, '@stillpoint', name));
}

async function foundIn(
  copy: string,
  { file, line, broken, name }: PlantedBug,
  runs: number,
): Promise<{ runs: number; seed: number; how: string } | undefined> {
  const path = join(copy, file);
  const source = await readFile(path, 'utf8');
  if (source.split(line).length !== 2) {
    throw new Error(
      `${name} cannot be planted: ${file} has its line ${source.split(line).length - 1} times. Mend it in test/random/planted-bugs.ts: ${line}`,
    );
  }
  await writeFile(
    path,
    source.replace(line, () => broken),
  );
  try {
    process.stdout.write(`· ${name}: building …\n`);
    await lines(copy, join(root, 'node_modules', 'typescript', 'bin', 'tsc'), ['-b', 'test'], () => {});
    // Also of a bug elsewhere: the one before it may have been in the bundle.
    await lines(join(copy, 'workflows'), 'bundle.mjs', [], () => {});
    let seed: number | undefined;
    let how = '';
    let done = 0;
    const program = join(copy, 'test', 'dist', 'random', 'main.js');
    await lines(copy, program, ['--seed', '1', '--runs', `${runs}`, '--until-found'], (said) => {
      process.stdout.write(`  ${said}\n`);
      const found = /^FOUND by seed (\d+), run (\d+)/.exec(said);
      if (found !== null && seed === undefined) [seed, done] = [Number(found[1]), Number(found[2])];
      else if (seed !== undefined && how === '') how = said.trim();
    });
    return seed === undefined ? undefined : { runs: done, seed, how };
  } finally {
    await writeFile(path, source);
  }
}

/** Runs a program of Node's; its exit code matters only to whom it tells nothing. */
function lines(cwd: string, program: string, args: readonly string[], onLine: (line: string) => void): Promise<void> {
  const child = spawn(process.execPath, [program, ...args], { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  const said: string[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => {
    said.push(line);
    onLine(line);
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => {
      if (code === 0 || (code === 1 && args.includes('--until-found'))) resolve();
      else reject(new Error(`${program} ended with ${code ?? signal}: ${said.slice(-20).join('\n')}`));
    });
  });
}
