import type { Cloud } from '@stillpoint/engine/activities/deps.js';
import { whoseDisks } from '@stillpoint/engine/activities/volume-disks.js';
import { CinderError } from '@stillpoint/engine/cinder/errors.js';
import type { HostDisk, HostVm } from '@stillpoint/engine/hosts/hosts.js';
import { expect, it } from 'vitest';

/** Whose volume a disk is, where Cinder cannot be asked. */

it("says why Cinder was asked about a disk of the host: its serial looks like a volume's id", async () => {
  const serial = '5F0D9A1E-7c3b-4e0a-9b57-0b7d9c1e2a33';
  const disks = [{ target: 'vda', kind: 'file', serial }] as HostDisk[];
  const volume = () =>
    Promise.reject(new CinderError('CINDER_UNREACHABLE', 'Cinder did not answer.', { advice: 'A.' }));
  const cloud = { cinder: { volume } } as unknown as Cloud;
  await expect(whoseDisks(cloud, {} as HostVm, disks, new AbortController().signal)).rejects.toMatchObject({
    name: 'CinderError',
    code: 'CINDER_UNREACHABLE',
    message: expect.stringMatching(`vda, ${serial}, looks like a volume's id, .*Cinder did not answer.`),
    advice: 'A.',
  });
});
