import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

import { cacheRoot, TemporalCache } from '@stillpoint/engine/temporal/cache.js';
import type { Release } from '@stillpoint/engine/temporal/download.js';
import { type FindOptions, type FoundTemporal, findTemporal } from '@stillpoint/engine/temporal/find.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const temporalProgram = 'echo "temporal version 9.9.9 (Server 9.9, UI 9)"';
let home: string;
let bin: string;
let env: NodeJS.ProcessEnv;
let cache: TemporalCache;
let server: Server | undefined;
/** A release that cannot be had: nothing listens there any more. */
let unreachable: Release;

beforeEach(async () => {
  unreachable = await served(Buffer.of(), () => {});
  server?.close();
  home = await mkdtemp(join(tmpdir(), 'stillpoint-find-'));
  bin = join(home, 'bin');
  await mkdir(bin);
  env = { HOME: home, PATH: bin };
  cache = new TemporalCache(cacheRoot(env));
});

afterEach(async () => {
  server?.closeAllConnections();
  server?.close();
  server = undefined;
  await rm(home, { recursive: true, force: true });
});

describe('what a person has provided', () => {
  it('takes the cluster of TEMPORAL_ADDRESS before any command', async () => {
    await program(join(bin, 'temporal'), temporalProgram);
    const found = await find({ env: { ...env, TEMPORAL_ADDRESS: 'temporal.example:7233', TEMPORAL_NAMESPACE: 'vms' } });
    expect(found).toEqual({
      kind: 'cluster',
      source: 'environment',
      settings: expect.objectContaining({
        namespace: 'vms',
        connection: expect.objectContaining({ address: 'temporal.example:7233' }),
      }),
    });
  });

  it('takes the cluster of a profile, with its TLS', async () => {
    const file = join(home, 'temporal.toml');
    await writeFile(file, '[profile.prod]\naddress = "prod:7233"\n[profile.prod.tls]\nserver_name = "prod.example"\n');
    const found = await find({ env: { ...env, TEMPORAL_CONFIG_FILE: file, TEMPORAL_PROFILE: 'prod' } });
    expect(found).toMatchObject({
      settings: {
        namespace: 'default',
        connection: { address: 'prod:7233', tls: { serverNameOverride: 'prod.example' } },
      },
    });
  });

  it('refuses a profile that is not there instead of going on without it', async () => {
    await program(join(bin, 'temporal'), temporalProgram);
    await expect(find({ env: { ...env, TEMPORAL_PROFILE: 'absent' } })).rejects.toMatchObject({
      code: 'TEMPORAL_CONFIG_INVALID',
    });
  });

  it('takes TEMPORAL_CLI before the PATH', async () => {
    await program(join(bin, 'temporal'), temporalProgram);
    const named = await program(join(home, 'my-temporal'), temporalProgram);
    expect(await find({ env: { ...env, TEMPORAL_CLI: named } })).toEqual({
      kind: 'command',
      source: 'command',
      path: named,
    });
  });

  it('refuses a TEMPORAL_CLI that is not Temporal instead of going on without it', async () => {
    await program(join(bin, 'temporal'), temporalProgram);
    const other = await program(join(home, 'other'), 'echo "other tool 1.0"');
    await expect(find({ env: { ...env, TEMPORAL_CLI: other } })).rejects.toMatchObject({
      code: 'TEMPORAL_COMMAND_UNUSABLE',
      message: expect.stringContaining('other tool 1.0'),
    });
  });

  it('passes over another program called temporal on the PATH', async () => {
    await program(join(bin, 'temporal'), 'exit 1');
    const later = join(home, 'later');
    await mkdir(later);
    const right = await program(join(later, 'temporal'), temporalProgram);
    const found = await find({ env: { ...env, PATH: [bin, later].join(delimiter) } });
    expect(found).toEqual({ kind: 'command', source: 'command', path: right });
  });

  it('takes the cache before any download', async () => {
    await mkdir(cache.folder, { recursive: true });
    await program(cache.executable, temporalProgram);
    expect(await find()).toEqual({ kind: 'command', source: 'cache', path: cache.executable });
  });

  it('looks for the cache in XDG_CACHE_HOME', () => {
    expect(cacheRoot({ HOME: '/home/ada', XDG_CACHE_HOME: '/scratch' })).toBe('/scratch/stillpoint');
    expect(cacheRoot({ HOME: '/home/ada' })).toBe('/home/ada/.cache/stillpoint');
  });
});

describe('the download', () => {
  it('puts a release with the right checksum into the cache', async () => {
    const archive = await releaseArchive(temporalProgram);
    const release = await served(archive, (response) => response.end(archive));
    expect(await find({ release })).toEqual({ kind: 'command', source: 'download', path: cache.executable });
    expect(await find({ release: unreachable })).toMatchObject({ source: 'cache' });
    expect(await readdir(cache.folder)).toEqual(['temporal']);
  });

  it('opens nothing of an archive with another checksum', async () => {
    const archive = await releaseArchive(temporalProgram);
    const release = await served(archive, (response) => response.end(archive));
    await expect(find({ release: { ...release, sha256: '0'.repeat(64) } })).rejects.toMatchObject({
      code: 'TEMPORAL_NOT_FOUND',
      message: expect.stringMatching(/has SHA-256 [0-9a-f]{64} instead of 0{64}/),
    });
    expect(await readdir(cache.folder)).toEqual([]);
  });

  it('gives up on a server that accepts and never answers', async () => {
    const release = await served(Buffer.of(), () => {});
    await expect(find({ release, downloadSilenceMs: 50 })).rejects.toMatchObject({
      message: expect.stringContaining('nothing heard for 0.05 s'),
    });
  });

  it('gives up on a server that falls silent in the middle', async () => {
    const release = await served(Buffer.of(), (response) => {
      response.writeHead(200, { 'content-length': '1000' });
      response.write('half');
    });
    await expect(find({ release, downloadSilenceMs: 50 })).rejects.toMatchObject({
      message: expect.stringContaining('nothing heard for 0.05 s'),
    });
    expect(await readdir(cache.folder)).toEqual([]);
  });

  it('says which status the server answered', async () => {
    const release = await served(Buffer.of(), (response) => response.writeHead(404).end());
    await expect(find({ release })).rejects.toMatchObject({ message: expect.stringContaining('HTTP status 404') });
  });

  it('is made once when two processes start together', async () => {
    const archive = await releaseArchive(temporalProgram);
    let requests = 0;
    const release = await served(archive, (response) => {
      requests += 1;
      response.end(archive);
    });
    const found = await Promise.all([find({ release }), find({ release })]);
    expect(found.map(({ source }) => source).sort()).toEqual(['cache', 'download']);
    expect(requests).toBe(1);
  });

  it('is not held up by the lock of a process that died, and removes what that one left half made', async () => {
    const archive = await releaseArchive(temporalProgram);
    const release = await served(archive, (response) => response.end(archive));
    await mkdir(cache.folder, { recursive: true });
    const dead = execFileSync('sh', ['-c', 'echo $$'], { encoding: 'utf8' });
    await writeFile(join(cache.folder, '.lock'), dead);
    await writeFile(join(cache.folder, `.new-${dead.trim()}-0`), 'half');
    expect(await find({ release })).toMatchObject({ source: 'download' });
    expect(await readdir(cache.folder)).toEqual(['temporal']);
  });

  it('ends at once when the search is stopped', async () => {
    const stop = new AbortController();
    const release = await served(Buffer.of(), () => stop.abort(new Error('stopped by the person')));
    await expect(find({ release, signal: stop.signal })).rejects.toThrow('stopped by the person');
  });
});

describe('the build from the Go module', () => {
  it('follows a download that failed, pinned by our go.sum, and tells how far it is', async () => {
    // The module as Go's cache holds it.
    const module = join(home, 'module');
    const providers = join(module, 'wci', 'workflow', 'compute_provider');
    await mkdir(providers, { recursive: true });
    for (const name of ['aws_ecs.go', 'gcp_cloudrun.go', 'k8s.go', 'registry.go'])
      await writeFile(join(providers, name), '');
    await writeFile(join(module, 'go.mod'), 'module go.temporal.io/auto-scaled-workers\n');
    await program(
      join(bin, 'go'),
      `echo "$PWD $GOFLAGS $*" >> ${home}/asked
case $1 in
  mod) printf '{"Dir": "${module}"}' ;;
  list) echo "go: downloading example.org/module v1" >&2; printf 'a\\nb\\n' ;;
  build) echo "a" >&2
    for arg; do case $arg in -modfile=*) modfile=\${arg#*=} ;; esac; done
    PATH=/usr/bin:/bin cp -r \${modfile%/*} ${home}/built
    while [ "$1" != -o ]; do shift; done
    printf '#!/bin/sh\\n${temporalProgram}\\n' > "$2" ;;
esac`,
    );
    const lines: string[] = [];
    const found = await find({ progress: (line) => lines.push(line) });
    expect(found).toEqual({ kind: 'command', source: 'go-build', path: cache.executable });
    expect(lines.join('\n')).toMatch(/Not this way: .*ECONNREFUSED[\s\S]*Building Temporal[\s\S]*Built Temporal/);

    const asked = (await readFile(join(home, 'asked'), 'utf8')).trim().split('\n');
    expect(asked).toHaveLength(3);
    const pinned = asked[0]?.split(' ', 1)[0] as string;
    for (const call of asked.slice(1)) {
      expect(call).toMatch(/go-module .*-mod=readonly .*github.com\/temporalio\/cli\/cmd\/temporal$/);
    }
    const built = join(home, 'built');
    expect(await readFile(join(built, 'go.sum'), 'utf8')).toBe(await readFile(join(pinned, 'go.sum'), 'utf8'));
    const [pins, ...replacements] = (await readFile(join(built, 'go.mod'), 'utf8')).split('\nreplace go.temporal.io/');
    expect(pins).toBe(await readFile(join(pinned, 'go.mod'), 'utf8'));
    expect(replacements).toHaveLength(1);
    const copied = join(built, 'module', 'wci', 'workflow', 'compute_provider');
    expect(await readdir(copied)).toEqual(['registry.go']);
    expect(await readdir(cache.folder)).toEqual(['temporal']);
  });

  it('gives the last lines of what Go said when it fails', async () => {
    await program(join(bin, 'go'), 'echo "go: checksum mismatch" >&2; exit 1');
    await expect(find()).rejects.toMatchObject({ message: expect.stringContaining('go: checksum mismatch') });
    expect(await readdir(cache.folder)).toEqual([]);
  });
});

describe('when there is nothing', () => {
  it('lists every source in order, why it had nothing, and what to provide', async () => {
    const error = await find().catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'TEMPORAL_NOT_FOUND' });
    const { message } = error as Error;
    expect(message).toMatch(
      /environment: TEMPORAL_ADDRESS is not set[\s\S]*TEMPORAL_CLI: [\s\S]*PATH: [\s\S]*cache: [\s\S]*download: .*ECONNREFUSED[\s\S]*Go module: there is no `go` on the PATH[\s\S]*Provide one of these/,
    );
    expect(message).toContain(cache.executable);
  });

  it('says so where no release is pinned for this kind of machine', async () => {
    await expect(find({ release: undefined })).rejects.toMatchObject({
      message: expect.stringContaining('no official release is pinned'),
    });
  });
});

function find(options: FindOptions = {}): Promise<FoundTemporal> {
  return findTemporal({ env, release: unreachable, ...options });
}

async function program(path: string, body: string): Promise<string> {
  await writeFile(path, `#!/bin/sh\n${body}\n`);
  await chmod(path, 0o755);
  return path;
}

/** A tar.gz like the official one, with a `temporal` that runs. */
async function releaseArchive(body: string): Promise<Buffer> {
  const folder = join(home, 'release');
  await mkdir(folder);
  await program(join(folder, 'temporal'), body);
  await writeFile(join(folder, 'LICENSE'), 'MIT');
  return execFileSync('tar', ['-cz', '-C', folder, 'LICENSE', 'temporal']);
}

async function served(archive: Buffer, answer: (response: ServerResponse) => void): Promise<Release> {
  server = createServer((_, response) => answer(response)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const sha256 = createHash('sha256').update(archive).digest('hex');
  return { url: `http://127.0.0.1:${port}/temporal.tar.gz`, sha256 };
}
