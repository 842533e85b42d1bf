import { afterAll, beforeAll } from 'vitest';
import { MixedSystem } from './mixed-system.js';

/** One for all: what takes time is a guest that boots. */
export let mixed: MixedSystem;

beforeAll(async () => {
  mixed = await MixedSystem.start();
});
afterAll(async () => {
  await mixed?.stop();
});
