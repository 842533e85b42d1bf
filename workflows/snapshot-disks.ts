import type { SnapshotVmInput, SnapshotVmResult } from './contract.js';
import { snapshotVm } from './snapshot-vm.js';

/** The same flow under its own name, for Ceph volumes alone: `acceptSnapshot` refuses a set with a disk of the host in a run of this type. */
export async function snapshotDisks(input: SnapshotVmInput): Promise<SnapshotVmResult> {
  return await snapshotVm(input);
}
