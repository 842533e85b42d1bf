import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

import { type TemporalCache, temporalVersion } from './cache.js';
import { runToEnd } from './child.js';
import { reasonOf, TemporalError } from './errors.js';
import type { Progress } from './progress.js';

/**
 * SHA-256 of the archives of the official release. A new version's come from the `checksums.txt` beside them:
 * https://github.com/temporalio/cli/releases.
 */
const releaseSha256: Readonly<Record<string, string>> = {
  'linux-amd64': 'd8421bda989e6514b4bdb4d63a9012a8a05a806892e881a5aad8510496349a94',
  'linux-arm64': '83600a8fac6e3da54093e5da6918d399f501532b9f1172235603f9606f4ac6e4',
  'darwin-amd64': '489d7f5420cae02b559774ac23df035141954c33a51dba96f5759a0ddccdf1b6',
  'darwin-arm64': 'dacdc3587682c04cf27e67c8878ca2d755230b6ad63c0c6ebddd7348ae90ed94',
};

/** One archive to download, and what it must be. */
export interface Release {
  readonly url: string;
  readonly sha256: string;
}

export interface DownloadOptions {
  /** Gives up when the server sends nothing for so long, ms. Default 10 000. */
  readonly silenceMs?: number;
  readonly signal?: AbortSignal;
}

/** The official release for this machine; undefined where Temporal publishes none that we pin. */
export function officialRelease(platform = process.platform, arch = process.arch): Release | undefined {
  const target = `${platform}-${arch === 'x64' ? 'amd64' : arch}`;
  const sha256 = releaseSha256[target];
  if (sha256 === undefined) return undefined;
  const archive = `temporal_cli_${temporalVersion}_${target.replace('-', '_')}.tar.gz`;
  return { url: `https://github.com/temporalio/cli/releases/download/v${temporalVersion}/${archive}`, sha256 };
}

/**
 * Downloads a release, checks it and puts its `temporal` into the cache.
 *
 * Nothing of the archive is opened before its checksum is right.
 * @throws TemporalError TEMPORAL_DOWNLOAD_FAILED (no connection, silence, HTTP status), TEMPORAL_CHECKSUM_MISMATCH
 */
export async function downloadRelease(
  release: Release,
  cache: TemporalCache,
  progress: Progress,
  options: DownloadOptions = {},
): Promise<string> {
  const scratch = await cache.scratchPath();
  await mkdir(scratch);
  try {
    const archive = join(scratch, 'archive.tar.gz');
    const sha256 = await fetchTo(archive, release.url, progress, options);
    if (sha256 !== release.sha256) {
      throw new TemporalError(
        'TEMPORAL_CHECKSUM_MISMATCH',
        `${release.url} has SHA-256 ${sha256} instead of ${release.sha256}: it was changed on its way and is not used`,
      );
    }
    await runToEnd('tar', ['-xzf', archive, '-C', scratch, 'temporal'], { signal: options.signal });
    return await cache.install(join(scratch, 'temporal'));
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

async function fetchTo(path: string, url: string, progress: Progress, options: DownloadOptions): Promise<string> {
  const silenceMs = options.silenceMs ?? 10_000;
  const silence = new AbortController();
  const giveUp = (): void => silence.abort(new Error(`nothing heard for ${silenceMs / 1000} s`));
  let timer = setTimeout(giveUp, silenceMs);
  const heard = (): void => {
    clearTimeout(timer);
    timer = setTimeout(giveUp, silenceMs);
  };
  const signal = options.signal ? AbortSignal.any([silence.signal, options.signal]) : silence.signal;
  try {
    progress(`Downloading Temporal ${temporalVersion} from ${new URL(url).host}`);
    const response = await fetch(url, { signal });
    heard();
    if (!response.ok || response.body === null) throw new Error(`HTTP status ${response.status}`);
    const total = Number(response.headers.get('content-length') ?? 0);
    const hash = createHash('sha256');
    const report = everyTenth(total, progress);
    let bytes = 0;
    await pipeline(
      Readable.fromWeb(response.body),
      async function* (chunks: AsyncIterable<Uint8Array>) {
        for await (const chunk of chunks) {
          heard();
          hash.update(chunk);
          bytes += chunk.byteLength;
          report(bytes);
          yield chunk;
        }
      },
      createWriteStream(path),
      { signal },
    );
    return hash.digest('hex');
  } catch (error) {
    options.signal?.throwIfAborted();
    const cause = silence.signal.aborted ? silence.signal.reason : error;
    // fetch hides the system's error (ENOTFOUND, ECONNREFUSED) one level down.
    const said = cause instanceof TypeError && cause.cause instanceof Error ? cause.cause : cause;
    throw new TemporalError('TEMPORAL_DOWNLOAD_FAILED', `${url}: ${reasonOf(said)}`, error);
  } finally {
    clearTimeout(timer);
  }
}

function everyTenth(total: number, progress: Progress): (bytes: number) => void {
  let told = 0;
  return (bytes) => {
    const tenths = total > 0 ? Math.floor((bytes / total) * 10) : 0;
    if (tenths <= told) return;
    told = tenths;
    progress(`Downloading Temporal ${temporalVersion}: ${tenths * 10} % of ${Math.round(total / 1e6)} MB`);
  };
}
