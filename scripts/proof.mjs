// npm run proof: many snapshots of the VM on Ceph, each judged by its content. See bench/proof.ts.
import { handOver, prepare } from './prepare.mjs';

await prepare({ temporal: true });
handOver('bench', 'dist', 'proof.js');
