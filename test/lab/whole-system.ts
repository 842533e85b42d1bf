import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import { expect } from 'vitest';
import { bringUp, World, type WorldOptions } from '../../matrix/world.js';
import { testStateFolder } from './state-folder.js';

export { VM } from '../../matrix/world.js';

/** The matrix's world, with what tests expect of it. */
export class WholeSystem extends World {
  static async start(name: string, options: Omit<WorldOptions, 'stateFolder' | 'progress'> = {}): Promise<WholeSystem> {
    return new WholeSystem(await bringUp({ ...options, stateFolder: testStateFolder(name), progress: console.log }));
  }

  /** Nothing is left of any snapshot: no overlay in the live or the inactive chain, no file, no reservation, no frozen guest. */
  async expectNothingLeft(): Promise<void> {
    expect(await this.leftovers()).toEqual([]);
  }

  /** The images of a snapshot pass fsck with nothing to replay, and hold the writes to vda and vdb in the order in which the guest made them. */
  async expectConsistent(snapshot: SnapshotView): Promise<void> {
    expect(await this.inconsistencies(snapshot)).toEqual([]);
  }
}
