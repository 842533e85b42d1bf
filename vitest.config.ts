import { defineConfig } from 'vitest/config';

export default defineConfig({
  resolve: { conditions: ['stillpoint-source'] },
  ssr: { resolve: { conditions: ['stillpoint-source', 'node', 'import', 'default'] } },
  test: {
    include: ['test/**/*.test.ts'],
    // One Temporal runtime and one libvirt connection a process.
    pool: 'forks',
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
