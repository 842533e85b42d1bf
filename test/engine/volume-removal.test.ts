import type { ActivityDeps } from '@stillpoint/engine/activities/deps.js';
import { removeVolumeSnapshots, type VolumeRemoval } from '@stillpoint/engine/activities/volume-removal.js';
import type { Cinder, VolumeSnapshot } from '@stillpoint/engine/cinder/cinder.js';
import { CinderError } from '@stillpoint/engine/cinder/errors.js';
import { expect, it } from 'vitest';

/** Taking back what Cinder has, where Cinder does what no test can ask of a real one. */

const volume = '11111111-1111-4111-8111-111111111111';
const disk = { target: 'vdc', volume, project: 'p-1', name: 'data', sizeBytes: 1 };
const ours: VolumeSnapshot = {
  id: '22222222-2222-4222-8222-222222222222',
  volumeId: volume,
  name: '',
  description: '',
  status: 'available',
  sizeGiB: 1,
  createdAt: '2026-11-21T12:00:00Z',
  metadata: {},
};
const unreachable = () => new CinderError('CINDER_UNREACHABLE', 'Cinder did not answer.');
const unknown = () => new CinderError('VOLUME_SNAPSHOT_NOT_FOUND', 'The project has no such snapshot.');

function removed(cinder: Partial<Cinder>, change: Partial<VolumeRemoval> = {}, patienceMs = 0) {
  const deps = {
    installationId: 'i',
    settings: { hostPatienceMs: patienceMs, hostPollMs: 1 },
    cloud: {
      cinder: { project: async () => 'p-1', ...cinder },
      undoWaitMs: 0,
      giveUpCreatingMs: 60_000,
      rpcTimeoutMs: 20,
    },
  } as unknown as ActivityDeps;
  const removal: VolumeRemoval = {
    snapshotId: 's',
    volumes: [disk],
    recorded: [],
    mayBeThere: ['vdc'],
    mayAppear: [],
    mayGiveUp: true,
    ...change,
  };
  return removeVolumeSnapshots(deps, removal, new AbortController().signal, () => {});
}

it('takes what Cinder knows no more for gone, though its list still has it', async () => {
  let asked = 0;
  const parts = await removed({
    findSnapshots: async () => {
      asked += 1;
      if (asked > 10) throw new Error('asked for ever');
      return [ours];
    },
    snapshot: () => Promise.reject(unknown()),
  });
  expect(parts).toMatchObject([{ target: 'vdc', snapshot: ours.id, outcome: 'not-found' }]);
});

it('deletes a snapshot that comes to `available` just when it is given up', async () => {
  let status: string | undefined = 'creating';
  const parts = await removed({
    findSnapshots: async () => (status === undefined ? [] : [{ ...ours, status }]),
    snapshot: async () => {
      if (status === undefined) throw unknown();
      return { ...ours, status };
    },
    giveUpCreating: async () => {
      status = 'available';
      throw new CinderError('VOLUME_SNAPSHOT_BUSY', 'not allowed for update_snapshot_status');
    },
    deleteSnapshot: async () => {
      status = undefined;
    },
  });
  expect(parts).toMatchObject([{ snapshot: ours.id, outcome: 'deleted' }]);
});

it('ends with a Cinder that fails now and then for ever', async () => {
  let asked = 0;
  const parts = await removed(
    {
      findSnapshots: async () => {
        asked += 1;
        if (asked % 2 === 1) throw new CinderError('CINDER_OVERLOADED', 'Too many requests.');
        return [];
      },
    },
    { mayAppear: ['vdc'] },
    20,
  );
  expect(parts).toEqual([]);
});

it('says which snapshot is half deleted when Cinder goes away meanwhile', async () => {
  let isAway = false;
  const parts = await removed({
    findSnapshots: async () => {
      if (isAway) throw unreachable();
      return [ours];
    },
    snapshot: async () => {
      if (isAway) throw unreachable();
      return ours;
    },
    deleteSnapshot: async () => {
      isAway = true;
    },
  });
  expect(parts).toMatchObject([{ snapshot: ours.id, outcome: 'pending', begun: true }]);
});

it('blames the back end, and no clone, where Cinder fails to delete', async () => {
  let status = 'available';
  const parts = await removed({
    findSnapshots: async () => [ours],
    snapshot: async () => ({ ...ours, status }),
    deleteSnapshot: async () => {
      status = 'error_deleting';
    },
  });
  expect(parts).toMatchObject([{ outcome: 'pending', begun: true, detail: expect.stringMatching(/cinder-volume/) }]);
});

it('takes nothing for gone when the engine is configured for another project than the volume’s', async () => {
  const nothing = { findSnapshots: async () => [], snapshot: () => Promise.reject(unknown()) };
  const recorded = [{ target: 'vdc', kind: 'volume' as const, volume, snapshot: ours.id, sizeBytes: 1 }];
  expect(await removed({ ...nothing, project: async () => 'p-2' }, { recorded })).toMatchObject([
    { target: 'vdc', outcome: 'pending', detail: expect.stringMatching(/p-1.*p-2/) },
  ]);
  expect(await removed(nothing, { recorded })).toEqual([]);
});
