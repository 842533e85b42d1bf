import { fsyncSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';

import { PGlite } from '@electric-sql/pglite';
import { NodeFS } from '@electric-sql/pglite/nodefs';

import { copyEmptyDatabase } from './empty-database.js';

/**
 * Opens the embedded PostgreSQL on a folder, such that what is committed is on the disk.
 *
 * PGlite as it comes starts with fsync off, and Emscripten's file system ignores a request for it: fine for a killed process, not for a host that
 * loses power with a snapshot recorded.
 */
export async function openPglite(folder: string): Promise<PGlite> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await copyEmptyDatabase(folder);
  return PGlite.create({
    fs: new SyncedFolder(folder),
    // wal_sync_method: Emscripten answers fdatasync itself, without asking the file system.
    startParams: [
      ...PGlite.defaultStartParams.filter((parameter) => parameter !== '-F'),
      '-c',
      'wal_sync_method=fsync',
    ],
    relaxedDurability: false,
  });
}

/** What Emscripten keeps of an open file: `nfd` is the host's descriptor; a folder has none. */
interface OpenFile {
  nfd?: number;
}

class SyncedFolder extends NodeFS {
  override async init(...[pg, options]: Parameters<NodeFS['init']>): ReturnType<NodeFS['init']> {
    const { emscriptenOpts } = await super.init(pg, options);
    const addSync = (module: unknown): void => {
      const fileSystem = (module as { NODEFS: { stream_ops: { fsync?: (file: OpenFile) => number } } }).NODEFS;
      fileSystem.stream_ops.fsync = (file) => {
        if (file.nfd !== undefined) fsyncSync(file.nfd);
        return 0;
      };
    };
    return { emscriptenOpts: { ...emscriptenOpts, preRun: [...(emscriptenOpts.preRun ?? []), addSync] } };
  }
}
