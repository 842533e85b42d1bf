import { existsSync } from 'node:fs';
import { appendFile, copyFile, mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { type TemporalCache, temporalVersion } from './cache.js';
import { ChildFailed, runToEnd } from './child.js';
import { reasonOf, TemporalError } from './errors.js';
import type { Progress } from './progress.js';

const commandPackage = 'github.com/temporalio/cli/cmd/temporal';

/**
 * What starts workers on AWS, Google Cloud and Kubernetes: a development server has no use for it, and the clients it brings
 * are a third of what there is to compile. Each of these files registers itself, so nothing else misses them.
 */
const leftOut = {
  module: 'go.temporal.io/auto-scaled-workers',
  files: /^wci\/workflow\/compute_provider\/(aws|gcp|k8s)/,
};

/**
 * How Go is called, in a file that plain JavaScript reads too: scripts/prepare.mjs compiles `headStart` with the same while npm
 * still installs, and what is compiled with other flags would not be found in Go's cache.
 */
interface GoRecipe {
  readonly environment: Readonly<Record<string, string>>;
  readonly flags: readonly string[];
  readonly headStart: string;
}

export interface GoBuildOptions {
  /** A sign of life at least so often, ms. Default 5000. */
  readonly progressEveryMs?: number;
  readonly signal?: AbortSignal;
  readonly env?: NodeJS.ProcessEnv;
}

/**
 * Builds `temporal` from its Go module, pinned by the go.mod and go.sum in `go-module/`, into the cache.
 *
 * Minutes on 2 cores when nothing is cached, seconds when Go has built it before.
 * @throws TemporalError TEMPORAL_BUILD_FAILED with the last lines Go wrote
 */
export async function buildWithGo(
  cache: TemporalCache,
  progress: Progress,
  options: GoBuildOptions = {},
): Promise<string> {
  const scratch = await cache.scratchPath();
  const made = join(scratch, 'temporal');
  const pinned = join(packageRoot(), 'temporal', 'go-module');
  const started = Date.now();
  let state = 'asking Go for the modules';
  const tell = (): void => progress(`Building Temporal ${temporalVersion} (${secondsSince(started)} s): ${state}`);
  const ticker = setInterval(tell, options.progressEveryMs ?? 5000);
  tell();

  try {
    const { environment, flags } = JSON.parse(await readFile(join(pinned, 'build.json'), 'utf8')) as GoRecipe;
    const go = (args: readonly string[], onErrorLine: (line: string) => void): Promise<string> =>
      runToEnd('go', args, {
        cwd: pinned,
        // The person's own flags and workspace must not change what go.sum pins.
        env: { ...(options.env ?? process.env), ...environment },
        signal: options.signal,
        onErrorLine,
      });
    let modules = 0;
    const onModuleLine = (line: string): void => {
      if (line.startsWith('go: downloading')) state = `module ${++modules}, ${line.slice('go: downloading '.length)}`;
    };
    const downloaded = await go(['mod', 'download', '-json', leftOut.module], onModuleLine);
    const { Dir: whole } = JSON.parse(downloaded) as { Dir: string };
    const modFile = await writeModFile(pinned, scratch, await copyWithoutLeftOut(whole, join(scratch, 'module')));

    const list = await go(['list', ...flags, `-modfile=${modFile}`, '-deps', commandPackage], onModuleLine);
    const total = list.trim().split('\n').length;
    let packages = 0;
    state = 'compiling';
    await go(['build', '-v', ...flags, `-modfile=${modFile}`, linkerFlags, '-o', made, commandPackage], (line) => {
      if (line.startsWith('go: downloading')) return;
      // -v names a package when its compilation starts, and only what Go has not built before; the linker says nothing.
      packages += 1;
      state = line === commandPackage ? 'linking' : `package ${packages} of at most ${total}, ${line}`;
    });
    const path = await cache.install(made);
    progress(`Built Temporal ${temporalVersion} in ${secondsSince(started)} s: ${path}`);
    return path;
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new TemporalError('TEMPORAL_BUILD_FAILED', buildFailure(error), error);
  } finally {
    clearInterval(ticker);
    await rm(scratch, { recursive: true, force: true });
  }
}

// Without the version, the module's own default says 0.0.0-DEV.
const linkerFlags = `-ldflags=-s -w -X github.com/temporalio/cli/internal/temporalcli.Version=${temporalVersion}`;

/** Copies a module's Go files out of Go's cache, whose folders are read-only, and answers the copy's folder. */
async function copyWithoutLeftOut(whole: string, copy: string): Promise<string> {
  for (const path of await readdir(whole, { recursive: true })) {
    if (!/(\.go|^go\.mod)$/.test(path) || leftOut.files.test(path)) continue;
    await mkdir(dirname(join(copy, path)), { recursive: true });
    await copyFile(join(whole, path), join(copy, path));
  }
  return copy;
}

/** The pinned go.mod and go.sum, with the trimmed copy instead of the module itself; answers the go.mod's path. */
async function writeModFile(pinned: string, scratch: string, module: string): Promise<string> {
  const modFile = join(scratch, 'go.mod');
  await copyFile(join(pinned, 'go.mod'), modFile);
  await copyFile(join(pinned, 'go.sum'), join(scratch, 'go.sum'));
  await appendFile(modFile, `\nreplace ${leftOut.module} => ${JSON.stringify(module)}\n`);
  return modFile;
}

function buildFailure(error: unknown): string {
  if (!(error instanceof ChildFailed)) return reasonOf(error);
  const notThere = error.cause instanceof Error && (error.cause as NodeJS.ErrnoException).code === 'ENOENT';
  return notThere ? 'there is no `go` on the PATH' : error.message;
}

/** The folder of this package, from the sources as well as from `dist`. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

function secondsSince(start: number): number {
  return Math.round((Date.now() - start) / 1000);
}
