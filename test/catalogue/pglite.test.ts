import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { openCatalogue, openOn } from '@stillpoint/engine/catalogue/open.js';
import { openPglite } from '@stillpoint/engine/catalogue/pglite.js';
import { PGliteDialect } from 'kysely-pglite-dialect';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

import { catalogueContract } from './catalogue-contract.js';

catalogueContract('PGlite', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-catalogue-'));
  const catalogue = await openCatalogue(folder);
  return {
    one: catalogue,
    other: catalogue,
    close: async () => {
      await catalogue.disconnect();
      await rm(folder, { recursive: true });
    },
  };
});

describe('the embedded catalogue', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'stillpoint-catalogue-'));
  });
  afterEach(() => rm(folder, { recursive: true }));

  it('survives its engine being killed, and is taken over from the dead', { timeout: 60_000 }, async () => {
    // The build, not the sources: the engine that dies is a program of its own.
    const engine = fork(new URL('hosts-writer.mjs', import.meta.url), [folder], { execArgv: [] });
    const exited = once(engine, 'exit');
    const [written] = await Promise.race([
      once(engine, 'message'),
      exited.then(() => Promise.reject(new Error('The engine ended by itself; is the build there (npx tsc -b)?'))),
    ]);
    await expect(openCatalogue(folder)).rejects.toMatchObject({
      code: 'CATALOGUE_IN_USE',
      message: expect.stringContaining(String(engine.pid)),
    });
    engine.kill('SIGKILL');
    await exited;

    const catalogue = await openCatalogue(folder);
    expect((await catalogue.listHosts()).map((host) => host.name)).toEqual(written);
    await catalogue.disconnect();
    expect((await readdir(folder)).filter((file) => file.includes('lock'))).toEqual([]);
  });

  it('tells an older Stillpoint that it is too old', async () => {
    await (await openCatalogue(folder)).disconnect();
    const database = await openPglite(join(folder, 'catalogue'));
    await database.query("insert into kysely_migration values ('9999_from_the_future', '2030-01-01')");
    await database.close();
    await expect(openCatalogue(folder)).rejects.toMatchObject({ code: 'CATALOGUE_NEWER' });
    expect((await readdir(folder)).filter((file) => file.includes('lock'))).toEqual([]);
  });

  it('writes nothing while a run waits for its turn: the disk is left to the windows that are open', async () => {
    const database = await openPglite(join(folder, 'catalogue'));
    const catalogue = await openOn(new PGliteDialect(database));
    const written = async () => (await database.query('select pg_current_wal_insert_lsn()::text as at')).rows;
    const wanting = (runId: string) => ({ runId, workflowId: 'vm-1', snapshotId: runId, limit: 1 });
    await catalogue.takeSlot(wanting('holder'));
    await catalogue.takeSlot(wanting('waiting'));
    const before = await written();
    expect(await catalogue.takeSlot(wanting('waiting'))).toMatchObject({ taken: false });
    expect(await written()).toEqual(before);
    await catalogue.giveBackSlot('holder');
    expect(await catalogue.takeSlot(wanting('waiting'))).toEqual({ taken: true });
    await catalogue.disconnect();
  });

  it('says that it is unavailable once it is closed', async () => {
    const catalogue = await openCatalogue(folder);
    await catalogue.disconnect();
    await expect(catalogue.ping()).rejects.toMatchObject({ code: 'CATALOGUE_UNAVAILABLE' });
  });
});
