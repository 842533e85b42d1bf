import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import type { Stage } from './stage.js';

/**
 * A snapshot through the whole system (API, Temporal, gRPC, host agent, Cinder); what `look` makes of it is answered, and it is deleted again, whatever
 * became of it.
 */
export async function withSnapshot<T>(
  { lab, system }: Stage,
  request: Record<string, unknown>,
  look: (snapshot: SnapshotView) => Promise<T> | T,
): Promise<T> {
  const snapshot = await system.waitForSnapshot(await system.createSnapshot(lab.vm.uuid, request));
  const { id, state, error } = snapshot;
  if (state !== 'complete') throw new Error(`${state}: ${error?.text ?? 'without an error'}`);
  try {
    return await look(snapshot);
  } finally {
    await system.deleteSnapshot(id);
  }
}

/** The window of a snapshot that is worth comparing: one that held. */
export function windowMs({ grade, why, window }: SnapshotView): number {
  if (grade !== 'filesystem' || window === null) throw new Error(`graded ${grade}: ${why}`);
  return window.ms;
}
