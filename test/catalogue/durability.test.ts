import { fsyncSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { openPglite } from '@stillpoint/engine/catalogue/pglite.js';
import { afterAll, expect, it, vi } from 'vitest';

vi.mock('node:fs', async (importOriginal) => {
  const original = await importOriginal<typeof import('node:fs')>();
  return { ...original, fsyncSync: vi.fn(original.fsyncSync) };
});

const folders: string[] = [];
afterAll(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true }))));

it('asks the disk for every commit, so that a recorded snapshot outlives a power failure', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-catalogue-'));
  folders.push(folder);
  const database = await openPglite(join(folder, 'catalogue'));
  await database.query('create table things (thing int)');
  for (let thing = 1; thing <= 3; thing += 1) {
    const before = vi.mocked(fsyncSync).mock.calls.length;
    await database.query('insert into things values ($1)', [thing]);
    expect(vi.mocked(fsyncSync).mock.calls.length).toBeGreaterThan(before);
  }
  await database.close();
});
