// What `npm run demo`, `npm test` and `npm run bench` need first: the dependencies of the lockfile and a build of this checkout.
// Plain Node, no dependency: it runs before anything is installed.
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** A sign of life while a step takes long, ms. */
const TELL_EVERY = 5000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/**
 * Installs the lockfile's packages where they are not, and builds. Says what it does and how long it took; exits with the failing command's code.
 *
 * With `temporal`, the Temporal server is compiled meanwhile on machines that will have to build it.
 */
export async function prepare({ temporal = false } = {}) {
  const [major] = process.versions.node.split('.').map(Number);
  if (major < 20) fail(`Stillpoint needs Node 20 or newer; this is ${process.version}.`, 2);
  const headStart = temporal ? startCompilingTemporal() : undefined;
  if (!dependenciesAreCurrent())
    await step('installing dependencies (npm ci)', 'npm', ['ci', '--no-audit', '--no-fund']);
  await step('building', 'npm', ['run', '--silent', 'build']);
  await headStart?.end();
}

/** Runs a command with its output shown only when it fails. */
export async function step(what, command, args) {
  const started = Date.now();
  process.stdout.write(`· ${what} …\n`);
  const ticker = setInterval(() => process.stdout.write(`· ${what}, ${seconds(started, 0)}\n`), TELL_EVERY);
  const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  const said = [];
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => said.push(chunk));
  const { code, signal, error } = await ended(child);
  clearInterval(ticker);
  if (error) fail(`${command} could not be started: ${error.message}`, 1);
  if (code !== 0) {
    process.stderr.write(Buffer.concat(said));
    fail(`${what}: \`${command} ${args.join(' ')}\` ended with ${code ?? signal}.`, code ?? 1);
  }
  process.stdout.write(`✓ ${what}, ${seconds(started, 1)}\n`);
}

/**
 * Lets Go compile most of the Temporal server while npm waits for its registry: the build proper (engine/temporal/go-build.ts) then
 * finds it in Go's cache. Only where nothing else will provide the server; whatever goes wrong here, that build will say.
 */
function startCompilingTemporal() {
  const folder = path.join(root, 'engine', 'temporal', 'go-module');
  const version = readFileSync(path.join(folder, 'go.mod'), 'utf8').match(/temporalio\/cli v(\S+)/)[1];
  const cache = path.join(process.env.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'stillpoint');
  const programs = (process.env.PATH ?? '').split(path.delimiter).map((folder) => path.join(folder, 'temporal'));
  const provided = [path.join(cache, 'temporal', version, 'temporal'), ...programs].some(existsSync);
  if (provided || process.env.TEMPORAL_CLI || process.env.TEMPORAL_ADDRESS) return undefined;

  const { environment, flags, headStart } = JSON.parse(readFileSync(path.join(folder, 'build.json'), 'utf8'));
  let child;
  const unwanted = new AbortController();
  const begun = canBeDownloaded(unwanted.signal).then((itCan) => {
    if (itCan || unwanted.signal.aborted) return;
    process.stdout.write('· Temporal cannot be downloaded here: compiling it meanwhile …\n');
    // A process group of its own, so that its compilers end with it.
    child = spawn('go', ['build', ...flags, headStart], {
      cwd: folder,
      env: { ...process.env, ...environment },
      stdio: 'ignore',
      detached: true,
    });
    child.on('error', () => {});
  });
  const stop = () => {
    if (child?.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
    process.kill(-child.pid, 'SIGKILL');
  };
  // Ctrl-C reaches only our own process group.
  const stopAndEnd = () => process.exit(130);
  process.on('exit', stop);
  for (const signal of SIGNALS) process.on(signal, stopAndEnd);
  return {
    async end() {
      unwanted.abort();
      await begun;
      stop();
      process.removeListener('exit', stop);
      for (const signal of SIGNALS) process.removeListener(signal, stopAndEnd);
    },
  };
}

/** Whether the official release's server answers at all, within seconds. */
async function canBeDownloaded(signal) {
  try {
    await fetch('https://github.com', { method: 'HEAD', signal: AbortSignal.any([signal, AbortSignal.timeout(5000)]) });
    return true;
  } catch {
    return false;
  }
}

/** Goes over to a built program, with this one's arguments. It cleans up by itself when it is stopped: this one only waits for it. */
export function handOver(...program) {
  const child = spawn(process.execPath, [path.join(root, ...program), ...process.argv.slice(2)], { stdio: 'inherit' });
  for (const signal of SIGNALS) process.on(signal, () => child.kill(signal));
  child.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
}

/** npm keeps what it installed in node_modules/.package-lock.json: older than the lockfile means that the lockfile changed since. */
function dependenciesAreCurrent() {
  const installed = path.join(root, 'node_modules', '.package-lock.json');
  if (!existsSync(installed)) return false;
  const lock = path.join(root, 'package-lock.json');
  if (statSync(installed).mtimeMs >= statSync(lock).mtimeMs) return true;
  const wanted = JSON.parse(readFileSync(lock, 'utf8')).packages;
  const present = JSON.parse(readFileSync(installed, 'utf8')).packages;
  return Object.entries(wanted).every(
    ([place, entry]) =>
      !place.startsWith('node_modules/') || entry.link || entry.optional || present[place]?.version === entry.version,
  );
}

function ended(child) {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve({ error }));
    child.once('close', (code, signal) => resolve({ code, signal }));
  });
}

function seconds(since, digits) {
  return `${((Date.now() - since) / 1000).toFixed(digits)} s`;
}

function fail(message, code) {
  process.stderr.write(`${message}\n`);
  process.exit(code);
}
