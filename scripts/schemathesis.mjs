// npm run schemathesis: the REST API of a running engine under thousands of generated requests. See lab/schemathesis/main.ts.
import { handOver, prepare } from './prepare.mjs';

await prepare({ temporal: true });
handOver('lab', 'dist', 'schemathesis', 'main.js');
