/** What the worker runs: every function exported here is a workflow type. */
export { deleteSnapshot } from './delete-snapshot.js';
export { reconcile } from './reconcile.js';
export { removeLeftover } from './remove-leftover.js';
export { snapshotDisks } from './snapshot-disks.js';
export { snapshotVm } from './snapshot-vm.js';
