// npm run matrix: every fault at every step, on the real lab. See matrix/main.ts.
import { handOver, prepare } from './prepare.mjs';

await prepare({ temporal: true });
handOver('matrix', 'dist', 'main.js');
