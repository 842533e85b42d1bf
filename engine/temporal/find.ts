import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { delimiter, isAbsolute, join } from 'node:path';

import { cacheRoot, TemporalCache, temporalVersion } from './cache.js';
import { runToEnd } from './child.js';
import { settingsFromEnvironment, type TemporalSettings } from './connection.js';
import { downloadRelease, officialRelease, type Release } from './download.js';
import { reasonOf, TemporalError, type TemporalSource } from './errors.js';
import { buildWithGo } from './go-build.js';
import type { Progress } from './progress.js';

/** A cluster that exists, or the `temporal` command with which a development server can be started. */
export type FoundTemporal =
  | { readonly kind: 'cluster'; readonly source: 'environment'; readonly settings: TemporalSettings }
  | { readonly kind: 'command'; readonly source: Exclude<TemporalSource, 'environment'>; readonly path: string };

export interface FindOptions {
  /** Default: this process's. */
  readonly env?: NodeJS.ProcessEnv;
  readonly progress?: Progress;
  /** Gives up a download that is silent for so long, ms. Default 10 000. */
  readonly downloadSilenceMs?: number;
  /** Default: the official release for this machine. */
  readonly release?: Release | undefined;
  readonly signal?: AbortSignal;
}

/** A source that has nothing says why; the reasons become the final error. */
type Answer = { readonly found: FoundTemporal } | { readonly reason: string };

/**
 * Finds Temporal: a cluster named by the environment, else the `temporal` command from TEMPORAL_CLI or the PATH, from
 * the project's cache, from the official download, or built from its Go module.
 *
 * What a person has set is never passed over in silence: a wrong TEMPORAL_CLI or profile is an error.
 * @throws TemporalError TEMPORAL_NOT_FOUND (every source, why it had nothing, what to provide),
 *   TEMPORAL_CONFIG_INVALID, TEMPORAL_COMMAND_UNUSABLE
 */
export async function findTemporal(options: FindOptions = {}): Promise<FoundTemporal> {
  const env = options.env ?? process.env;
  const progress = options.progress ?? (() => {});
  const cache = new TemporalCache(cacheRoot(env));
  const release = 'release' in options ? options.release : officialRelease();

  const reasons: string[] = [];
  const tried = async (source: string, look: () => Answer | Promise<Answer>): Promise<FoundTemporal | undefined> => {
    const answer = await look();
    if ('found' in answer) return answer.found;
    reasons.push(`${source}: ${answer.reason}`);
    return undefined;
  };

  const found =
    (await tried('environment', () => inEnvironment(env))) ??
    (await tried('TEMPORAL_CLI', () => namedCommand(env))) ??
    (await tried('PATH', () => commandOnPath(env))) ??
    (await tried('cache', () => inCache(cache))) ??
    (await cache.exclusively(
      progress,
      async () =>
        // Whoever held the lock before us may have filled the cache; its reason is the same, so it is not told twice.
        foundIn(await inCache(cache)) ??
        (await tried('download', () => byDownload(release, cache, progress, options))) ??
        (await tried('Go module', () => byGoBuild(cache, progress, env, options))),
    ));
  if (found) return found;
  throw new TemporalError('TEMPORAL_NOT_FOUND', notFoundText(reasons, cache));
}

function inEnvironment(env: NodeJS.ProcessEnv): Answer {
  const settings = settingsFromEnvironment(env);
  if (!settings)
    return { reason: 'TEMPORAL_ADDRESS is not set, and no profile of a Temporal configuration file has an address' };
  return { found: { kind: 'cluster', source: 'environment', settings } };
}

async function namedCommand(env: NodeJS.ProcessEnv): Promise<Answer> {
  const path = env.TEMPORAL_CLI;
  if (!path) return { reason: 'it is not set' };
  const problem = await whyNotTemporal(path);
  if (problem) {
    throw new TemporalError(
      'TEMPORAL_COMMAND_UNUSABLE',
      `TEMPORAL_CLI is ${path}, but ${problem}. Set it to Temporal's command-line program, or unset it.`,
    );
  }
  return { found: { kind: 'command', source: 'command', path } };
}

async function commandOnPath(env: NodeJS.ProcessEnv): Promise<Answer> {
  const problems: string[] = [];
  // A relative entry would run whatever lies in the folder one happens to stand in.
  for (const folder of (env.PATH ?? '').split(delimiter).filter(isAbsolute)) {
    const path = join(folder, 'temporal');
    if (!(await isExecutable(path))) continue;
    const problem = await whyNotTemporal(path);
    if (!problem) return { found: { kind: 'command', source: 'command', path } };
    problems.push(`${path}: ${problem}`);
  }
  return { reason: problems.length > 0 ? problems.join('; ') : 'no `temporal` there' };
}

async function inCache(cache: TemporalCache): Promise<Answer> {
  if (!(await isExecutable(cache.executable))) return { reason: `no ${cache.executable}` };
  const problem = await whyNotTemporal(cache.executable);
  if (problem) return { reason: `${cache.executable}: ${problem}` };
  return { found: { kind: 'command', source: 'cache', path: cache.executable } };
}

async function byDownload(
  release: Release | undefined,
  cache: TemporalCache,
  progress: Progress,
  options: FindOptions,
): Promise<Answer> {
  if (!release) return { reason: `no official release is pinned for ${process.platform} on ${process.arch}` };
  try {
    const path = await downloadRelease(release, cache, progress, {
      ...(options.downloadSilenceMs === undefined ? {} : { silenceMs: options.downloadSilenceMs }),
      ...(options.signal ? { signal: options.signal } : {}),
    });
    return { found: { kind: 'command', source: 'download', path } };
  } catch (error) {
    return notThisWay(error, progress, options.signal);
  }
}

async function byGoBuild(
  cache: TemporalCache,
  progress: Progress,
  env: NodeJS.ProcessEnv,
  options: FindOptions,
): Promise<Answer> {
  try {
    const path = await buildWithGo(cache, progress, { env, ...(options.signal ? { signal: options.signal } : {}) });
    return { found: { kind: 'command', source: 'go-build', path } };
  } catch (error) {
    return notThisWay(error, progress, options.signal);
  }
}

/** A source that failed is a reason to try the next one, unless the person has stopped the search. */
function notThisWay(error: unknown, progress: Progress, signal: AbortSignal | undefined): Answer {
  signal?.throwIfAborted();
  const reason = error instanceof Error ? error.message : String(error);
  progress(`Not this way: ${reasonOf(error)}`);
  return { reason };
}

function foundIn(answer: Answer): FoundTemporal | undefined {
  return 'found' in answer ? answer.found : undefined;
}

/** Why that path is not Temporal's command; undefined when it is. */
async function whyNotTemporal(path: string): Promise<string | undefined> {
  if (!(await isExecutable(path))) return 'it is no executable file';
  try {
    const said = await runToEnd(path, ['--version'], { timeoutMs: 10_000 });
    return said.startsWith('temporal version') ? undefined : `it is another program (it says '${reasonOf(said)}')`;
  } catch (error) {
    return `it does not run (${reasonOf(error)})`;
  }
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}

function notFoundText(reasons: readonly string[], cache: TemporalCache): string {
  return [
    'No Temporal server was found, and none could be made:',
    ...reasons.map((reason) => `  - ${reason.replaceAll('\n', '\n      ')}`),
    'Provide one of these:',
    '  - a cluster: TEMPORAL_ADDRESS=host:port (and TEMPORAL_NAMESPACE, TEMPORAL_TLS_… as it needs)',
    "  - Temporal's command-line program: TEMPORAL_CLI=/path/to/temporal, or put it on the PATH",
    `  - version ${temporalVersion} of it as ${cache.executable}`,
    '  - a connection to github.com, for the download',
    '  - Go (https://go.dev/dl) and a connection to a Go module proxy, for the build',
  ].join('\n');
}
