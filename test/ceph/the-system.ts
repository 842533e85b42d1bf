import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';
import { afterAll, afterEach, beforeAll, beforeEach } from 'vitest';
import { MixedSystem } from './mixed-system.js';

/** One for all: what takes time is a guest that boots. */
export let mixed: MixedSystem;
/** libvirt's log of this test. */
export let log: LibvirtLog;

beforeAll(async () => {
  mixed = await MixedSystem.start();
});
beforeEach(() => {
  log = mixed.lab.log();
});
afterAll(async () => {
  await mixed?.stop();
});

/** For a group of tests: after each of them nothing is left of any snapshot, and what the test broke works again. */
export function leavingNothing(): void {
  afterEach(async () => {
    try {
      await mixed.expectNothingLeft();
    } catch (error) {
      await mixed.mend();
      await mixed.deleteAll();
      throw error;
    }
    await mixed.mend();
  });
}
