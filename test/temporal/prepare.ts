import { installedTemporal } from './fixtures/installed-command.js';

/** Before the first file: on a bare machine the server is built, which takes minutes and is told as it goes. */
export async function setup(): Promise<void> {
  await installedTemporal();
}
