import { Lab } from '@stillpoint/lab/lab.js';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';
import { testStateFolder } from './state-folder.js';

/** Before the first file: what the labs of all files need and would otherwise install or build side by side. */
export async function setup(): Promise<void> {
  await Lab.prepare({ progress: console.log });
  await Lab.saveBoot({ stateFolder: testStateFolder('boot'), progress: console.log });
  await installedTemporal();
}
