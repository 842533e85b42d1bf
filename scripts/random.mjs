// npm run random: random faults, each scenario from its seed. See docs/random-faults.md and test/random/main.ts.
import { handOver, prepare } from './prepare.mjs';

await prepare({ temporal: true });
handOver('test', 'dist', 'random', 'main.js');
