import { existsSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';

import { PGlite } from '@electric-sql/pglite';

import { emptyDatabase } from './empty-database.js';

// `npm run database -w engine`, a step of the build: makes the database that every new catalogue starts from, once for a version of PGlite.
if (!existsSync(emptyDatabase)) {
  const work = `${emptyDatabase}.${process.pid}`;
  await mkdir(work, { mode: 0o700 });
  const database = await PGlite.create(work);
  await database.close();
  await rename(work, emptyDatabase).catch((error: unknown) => {
    // A build beside this one has made it meanwhile, which is as good.
    if (!existsSync(emptyDatabase)) throw error;
  });
  await rm(work, { recursive: true, force: true });
}
