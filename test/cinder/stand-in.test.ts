import { randomUUID } from 'node:crypto';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { type CinderStandInOptions, startCinderStandIn } from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import { describeCinder } from './contract.js';

async function standIn(as: string | { noauth: true }, options: CinderStandInOptions = {}) {
  const standIn = await startCinderStandIn({
    times: { acceptMs: 0, cutMs: 5, availableMs: 10, deleteMs: 5 },
    ...options,
  });
  const cloud = readCloud({ env: standIn.environment(as) });
  if (cloud === undefined) throw new Error('no cloud');
  const cinder = new CinderClient(cloud);
  const { volumes } = standIn;
  return {
    cinder,
    asAdministrator: typeof as !== 'string',
    makeVolume: async (attachment?: { instance: string; device: string }) => standIn.addVolume(attachment),
    makeStrangersVolume: async () => volumes.add({ projectId: randomUUID().replaceAll('-', '') }).id,
    setVolumeStatus: async (id: string, status: string) => {
      volumes.volume(id).status = status;
    },
    setSnapshotStatus: async (id: string, status: string) => {
      volumes.snapshot(id).status = status;
    },
    setQuota: async (quota: { snapshots: number; gigabytes: number }) => {
      volumes.quota = quota;
    },
    makeDependent: async (snapshotId: string) => volumes.depend(snapshotId),
    close: async () => {
      await cinder.close();
      await standIn.close();
    },
  };
}

describeCinder('stand-in, noauth', () => standIn({ noauth: true }));
describeCinder('stand-in, a member with a password', () => standIn('stillpoint'));
describeCinder('stand-in of the oldest microversion, whose lists have one entry', () =>
  standIn('stillpoint', { newestMicroversion: 0, pageSize: 1 }),
);
