// npm run demo: everything on one machine. See README.md.
import { spawn } from 'node:child_process';
import path from 'node:path';
import { prepare, root } from './prepare.mjs';

const started = Date.now();
await prepare({ temporal: true });
const child = spawn(process.execPath, [path.join(root, 'lab', 'dist', 'demo', 'main.js'), ...process.argv.slice(2)], {
  stdio: 'inherit',
  env: { ...process.env, STILLPOINT_DEMO_STARTED: String(started) },
});
// The demo cleans up by itself on Ctrl-C: this wrapper only waits for it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
child.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
