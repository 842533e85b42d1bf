import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { takeLock } from '@stillpoint/engine/catalogue/lock.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

describe('the lock file', () => {
  let folder: string;
  let path: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'stillpoint-lock-'));
    path = join(folder, 'catalogue.lock');
  });
  afterEach(() => rm(folder, { recursive: true }));

  // Above every system's highest process id.
  const deadLock = (change = {}) => JSON.stringify({ pid: 2 ** 30, started: 'long ago', token: 'dead', ...change });

  it('is given to one at a time', async () => {
    const unlock = await takeLock(path);
    await expect(takeLock(path)).rejects.toMatchObject({
      code: 'CATALOGUE_IN_USE',
      message: expect.stringContaining(`Process ${process.pid} `),
    });
    await unlock();
    await (await takeLock(path))();
    expect(await readdir(folder)).toEqual([]);
  });

  it('is taken over from a dead process by exactly one of many heirs', async () => {
    await writeFile(path, deadLock());
    const outcomes = await Promise.allSettled(Array.from({ length: 10 }, () => takeLock(path)));
    expect(outcomes.filter((outcome) => outcome.status === 'fulfilled')).toHaveLength(1);
    expect(await readdir(folder)).toEqual(['catalogue.lock']);
  });

  it('is taken over where its process id belongs to a younger process', async () => {
    await writeFile(path, deadLock({ pid: process.pid, started: 'another boot 1' }));
    await expect(takeLock(path)).resolves.toBeTypeOf('function');
  });

  it('is taken over where an heir died on the way', async () => {
    await writeFile(path, deadLock());
    await writeFile(`${path}.dead`, deadLock({ token: 'heir' }));
    await expect(takeLock(path)).resolves.toBeTypeOf('function');
    expect(await readdir(folder)).toEqual(['catalogue.lock']);
  });

  it.each(['', '{', 'null', '{"pid":"1"}', deadLock({ token: '../../etc' })])(
    'is not guessed at when it reads %j',
    async (text) => {
      await writeFile(path, text);
      await expect(takeLock(path)).rejects.toMatchObject({
        code: 'CATALOGUE_IN_USE',
        message: expect.stringContaining('delete that file'),
      });
    },
  );
});
