import { join } from 'node:path';

/** The administrator's socket in the state folder: the worker serves it, the command line asks there. */
export function adminSocketPath(stateFolder: string): string {
  return join(stateFolder, 'admin.sock');
}
