import type { Quiesce } from '@stillpoint/workflows';
import type { Generated } from 'kysely';

import type { SnapshotState } from './catalogue.js';

/**
 * The catalogue's tables as kysely sees them; migrations.ts makes them.
 *
 * What is a list or an object is kept as JSON in a text column, not as jsonb: jsonb refuses the character U+0000, and what a guest or libvirt says
 * must not be able to prevent a record.
 */
export interface Tables {
  installation: {
    only_row: Generated<boolean>;
    id: string;
    /** The one Temporal namespace whose runs the rows are about; null: none has been told of yet. */
    temporal_namespace: string | null;
  };
  hosts: { name: string; address: string; state: 'active' | 'lost'; added_at: Date };
  snapshots: SnapshotsTable;
  window_slots: WindowSlotsTable;
}

export interface SnapshotsTable {
  snapshot_id: string;
  /** Order of making: what lists are sorted and paged by. */
  seq: Generated<string>;
  vm: string;
  vm_name: string;
  host: string | null;
  name: string | null;
  description: string | null;
  quiesce: Quiesce;
  state: SnapshotState;
  workflow_id: string | null;
  run_id: string | null;
  deleting_run_id: string | null;
  idempotency_key: string | null;
  body_hash: string | null;
  /** How many requests have set out to start its run. */
  claims: Generated<number>;
  created_at: Date;
  ended_at: Date | null;
  grade: string | null;
  window_id: string | null;
  plan: string | null;
  result: string | null;
  parts: string;
  error: string | null;
  pending: string;
}

export interface WindowSlotsTable {
  run_id: string;
  workflow_id: string;
  snapshot_id: string;
  /** Order of asking. */
  seq: Generated<string>;
  taken: boolean;
}
