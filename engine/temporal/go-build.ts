import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { type TemporalCache, temporalVersion } from './cache.js';
import { ChildFailed, runToEnd } from './child.js';
import { reasonOf, TemporalError } from './errors.js';
import type { Progress } from './progress.js';

const commandPackage = 'github.com/temporalio/cli/cmd/temporal';

export interface GoBuildOptions {
  /** A sign of life at least so often, ms. Default 5000. */
  readonly progressEveryMs?: number;
  readonly signal?: AbortSignal;
  readonly env?: NodeJS.ProcessEnv;
}

/**
 * Builds `temporal` from its Go module, pinned by the go.mod and go.sum in `go-module/`, into the cache.
 *
 * About 3 minutes on 2 cores when nothing is cached, seconds when Go has built it before.
 * @throws TemporalError TEMPORAL_BUILD_FAILED with the last lines Go wrote
 */
export async function buildWithGo(
  cache: TemporalCache,
  progress: Progress,
  options: GoBuildOptions = {},
): Promise<string> {
  const made = await cache.scratchPath();
  const started = Date.now();
  let state = 'asking Go for the modules';
  const tell = (): void => progress(`Building Temporal ${temporalVersion} (${secondsSince(started)} s): ${state}`);
  const ticker = setInterval(tell, options.progressEveryMs ?? 5000);
  tell();

  const go = (args: readonly string[], onErrorLine: (line: string) => void): Promise<string> =>
    runToEnd('go', args, {
      cwd: join(packageRoot(), 'temporal', 'go-module'),
      env: goEnvironment(options.env ?? process.env),
      signal: options.signal,
      onErrorLine,
    });
  try {
    let modules = 0;
    const list = await go(['list', '-mod=readonly', '-deps', commandPackage], (line) => {
      if (line.startsWith('go: downloading')) state = `module ${++modules}, ${line.slice('go: downloading '.length)}`;
    });
    const total = list.trim().split('\n').length;

    let packages = 0;
    state = 'compiling';
    await go(['build', '-v', ...buildFlags, '-o', made, commandPackage], (line) => {
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
    await rm(made, { force: true });
  }
}

const buildFlags = [
  '-mod=readonly',
  '-trimpath',
  '-buildvcs=false',
  // Without this, the module's own default says 0.0.0-DEV.
  `-ldflags=-s -w -X github.com/temporalio/cli/internal/temporalcli.Version=${temporalVersion}`,
];

function goEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return {
    ...env,
    // The person's own flags and workspace must not change what go.sum pins.
    GOFLAGS: '',
    GOWORK: 'off',
    // `auto` uses the Go that is there and fetches a newer one only if go.mod asks for it.
    GOTOOLCHAIN: 'auto',
    // SQLite is Go code here, so no C compiler is needed.
    CGO_ENABLED: '0',
  };
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
