import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import { Lab } from '@stillpoint/lab/lab.js';

/** Before the first file: what the labs of all files need and would otherwise install or build side by side. */
export async function setup(): Promise<void> {
  await Lab.prepare({ progress: console.log });
  const { TEMPORAL_ADDRESS: _address, TEMPORAL_PROFILE: _profile, ...env } = process.env;
  await findTemporal({ env, progress: console.log });
}
