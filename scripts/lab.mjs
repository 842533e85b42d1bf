// npm run lab: real Ceph, Cinder, Keystone, libvirt and a guest on this machine, until Ctrl-C. `npm run lab -- help` lists what else it can do.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { prepare, root } from './prepare.mjs';

const program = path.join(root, 'lab', 'dist', 'main.js');
const bringsUp = ['up', undefined].includes(process.argv[2]);
// The other commands ask a lab that runs: built is built.
if (bringsUp || !existsSync(program)) prepare();
const child = spawn(process.execPath, [program, ...process.argv.slice(2)], { stdio: 'inherit' });
// It cleans up by itself on Ctrl-C: this wrapper only waits for it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
child.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
