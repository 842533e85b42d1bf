import { basename } from 'node:path';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** The suites that need more than Node: `scripts/test.mjs` says for each what it runs on. */
const onTemporal = ['test/temporal/**/*.test.ts', 'test/workflows/**/*.test.ts', 'test/system/**/*.test.ts'];
const onPostgres = ['test/postgres/**/*.test.ts'];
const onLab = ['test/lab/**/*.test.ts'];
const onCeph = ['test/ceph/**/*.test.ts'];

/** Where vitest has not seen its files run it begins with the largest: these are few lines long, and last longest. */
const longest = ['engine.test.ts', 'guest.test.ts', 'host-agent.test.ts'];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const isLong = ({ moduleId }: TestSpecification) => longest.includes(basename(moduleId));
    const sorted = await super.sort(files);
    return [...sorted.filter(isLong), ...sorted.filter((file) => !isLong(file))];
  }
}

const shared = {
  // Sources instead of builds: `exports` of the workspaces name them under this condition.
  resolve: { conditions: ['stillpoint-source'] },
  // No 'import' here: vitest hands these on to node, where require('long') would then get a module namespace instead of
  // the class, and the Temporal client fails on every 64-bit number of the server (historyLength.toNumber).
  ssr: { resolve: { conditions: ['stillpoint-source'] } },
};
// One Temporal runtime and one libvirt connection a process.
const pool = 'forks' as const;

export default defineConfig({
  ...shared,
  test: {
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        ...shared,
        test: {
          name: 'unit',
          pool,
          isolate: false,
          include: ['test/**/*.test.ts'],
          exclude: [...onTemporal, ...onPostgres, ...onLab, ...onCeph],
          testTimeout: 30_000,
          hookTimeout: 60_000,
        },
      },
      {
        ...shared,
        test: {
          name: 'temporal',
          pool,
          include: onTemporal,
          globalSetup: 'test/temporal/prepare.ts',
          testTimeout: 60_000,
          hookTimeout: 300_000,
        },
      },
      {
        ...shared,
        test: {
          name: 'postgres',
          pool,
          include: onPostgres,
          globalSetup: 'test/postgres/prepare.ts',
          testTimeout: 60_000,
          hookTimeout: 300_000,
        },
      },
      {
        ...shared,
        test: {
          name: 'lab',
          pool,
          include: onLab,
          globalSetup: 'test/lab/prepare.ts',
          testTimeout: 180_000,
          hookTimeout: 600_000,
        },
      },
      {
        ...shared,
        test: {
          name: 'ceph',
          pool,
          include: onCeph,
          globalSetup: 'test/ceph/prepare.ts',
          testTimeout: 180_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
});
