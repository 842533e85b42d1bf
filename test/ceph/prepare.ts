import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { defaultStateFolder, Lab } from '@stillpoint/lab/lab.js';
import { identifyProcess } from '@stillpoint/lab/processes.js';
import { prepareStorage, startStorage } from '@stillpoint/lab/storage/storage.js';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';
import { storageFolder } from './storage-folder.js';

const progress = (line: string) => console.log(line);

/** Before the first file: what takes minutes on a bare machine, and the one storage of this suite. */
export async function setup(): Promise<() => Promise<void>> {
  const cacheFolder = join(defaultStateFolder(), 'cache');
  await Lab.prepare({ progress });
  await prepareStorage(cacheFolder, progress);
  await installedTemporal();
  const storage = await startStorage({ folder: storageFolder, cacheFolder, keystone: true, monitor: 'fast', progress });
  return async () => {
    const { daemons } = storage;
    const pids = daemons.flatMap((daemon) => daemon.pids);
    await storage.stop();
    const left = pids.filter((pid) => identifyProcess(pid) !== undefined);
    if (left.length > 0 || existsSync(storageFolder)) {
      throw new Error(`The storage has left processes (${left.join(', ')}) or its folder ${storageFolder}`);
    }
  };
}
