import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Where the lab of a test lies: under STILLPOINT_LAB_STATE or the temporary folder, short enough for Unix sockets. */
export function testStateFolder(name: string): string {
  return join(process.env.STILLPOINT_LAB_STATE || join(tmpdir(), 'stillpoint-lab'), name);
}
