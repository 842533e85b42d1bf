import type { SnapshotRow } from '../catalogue/catalogue.js';
import type { VolumeSnapshot } from '../cinder/cinder.js';
import type { HostOverlayFiles, HostVm } from '../hosts/hosts.js';

/** What was seen at one look: plain data, for the judge. What did not answer is told as away, and nothing is concluded about it. */
export interface Observation {
  /** Our installation's id. */
  installation: string;
  hosts: HostSeen[];
  cloud: CloudSeen;
  /** Every row that is not deleted, and every one that hosts or Cinder name, by its id. */
  rows: ReadonlyMap<string, SnapshotRow>;
}

export type HostSeen = { name: string; away: string } | HostAnswer;

export interface HostAnswer extends HostOverlayFiles {
  name: string;
  /** Installation that its host agent's journal belongs to; empty: none yet. */
  installation: string;
  vms: HostVm[];
  /** Why it did not tell its overlay files: then none is known, and no VM's chain is read. */
  overlaysAway?: string;
}

export type CloudSeen =
  /** This engine knows none. */
  | 'none'
  | { away: string }
  | {
      project: string;
      /** All that carry our installation's id. */
      snapshots: VolumeSnapshot[];
      /** Status in Cinder of every recorded part, by Cinder's id; `undefined`: Cinder knows it no more. */
      parts: ReadonlyMap<string, string | undefined>;
    };

/** The operation, which is the snapshot's id, of a window. */
export function operationOf(window: string): string {
  return window.slice(0, window.lastIndexOf('.'));
}
