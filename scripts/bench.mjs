// npm run bench: the frozen window on the real lab. See bench/window.ts.
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { prepare, root } from './prepare.mjs';

await prepare({ temporal: true });
const { status } = spawnSync(
  process.execPath,
  [path.join(root, 'bench', 'dist', 'window.js'), ...process.argv.slice(2)],
  {
    stdio: 'inherit',
  },
);
process.exit(status ?? 1);
