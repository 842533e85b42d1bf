// npm run bench: the frozen window on the real lab. See bench/main.ts.
import { handOver, prepare } from './prepare.mjs';

await prepare({ temporal: true });
handOver('bench', 'dist', 'main.js');
