import fs from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { openPglite } from '@stillpoint/engine/catalogue/pglite.js';
import { afterAll, expect, it, vi } from 'vitest';

const folders: string[] = [];
const fsync = vi.spyOn(fs, 'fsyncSync');
// What others have imported by name is the spy too.
syncBuiltinESMExports();
afterAll(() => {
  fsync.mockRestore();
  syncBuiltinESMExports();
  return Promise.all(folders.map((folder) => rm(folder, { recursive: true })));
});

it('asks the disk for every commit, so that a recorded snapshot outlives a power failure', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-catalogue-'));
  folders.push(folder);
  const database = await openPglite(join(folder, 'catalogue'));
  await database.query('create table things (thing int)');
  for (let thing = 1; thing <= 3; thing += 1) {
    const before = fsync.mock.calls.length;
    await database.query('insert into things values ($1)', [thing]);
    expect(fsync.mock.calls.length).toBeGreaterThan(before);
  }
  await database.close();
});
