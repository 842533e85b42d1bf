import { testStateFolder } from '../lab/state-folder.js';

/** Where the storage of this suite lies: it is started before the first file. */
export const storageFolder = testStateFolder('ceph-storage');
