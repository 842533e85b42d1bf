// What `npm run demo`, `npm test` and `npm run bench` need first: the dependencies of the lockfile and a build of this checkout.
// Plain Node, no dependency: it runs before anything is installed.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** Installs the lockfile's packages where they are not, and builds. Says what it does and how long it took; exits with the failing command's code. */
export function prepare() {
  const [major] = process.versions.node.split('.').map(Number);
  if (major < 20) fail(`Stillpoint needs Node 20 or newer; this is ${process.version}.`, 2);
  if (!dependenciesAreCurrent()) step('installing dependencies (npm ci)', 'npm', ['ci', '--no-audit', '--no-fund']);
  step('building', 'npm', ['run', '--silent', 'build']);
}

/** Runs a command with its output shown only when it fails. */
export function step(what, command, args) {
  const started = Date.now();
  process.stdout.write(`· ${what} …\n`);
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  });
  if (error) fail(`${command} could not be started: ${error.message}`, 1);
  if (status !== 0) {
    process.stderr.write(stdout + stderr);
    fail(`${what}: \`${command} ${args.join(' ')}\` ended with ${status}.`, status ?? 1);
  }
  process.stdout.write(`✓ ${what}, ${((Date.now() - started) / 1000).toFixed(1)} s\n`);
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

function fail(message, code) {
  process.stderr.write(`${message}\n`);
  process.exit(code);
}
