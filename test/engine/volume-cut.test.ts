import type { ActivityDeps } from '@stillpoint/engine/activities/deps.js';
import { snapshotVolume } from '@stillpoint/engine/activities/volume-cut.js';
import type { Cinder, VolumeSnapshot } from '@stillpoint/engine/cinder/cinder.js';
import { CinderError } from '@stillpoint/engine/cinder/errors.js';
import { expect, it, vi } from 'vitest';

/** One volume's cut, where the host or Cinder does what is hard to bring about in a whole run. */

const made: VolumeSnapshot = {
  id: '22222222-2222-4222-8222-222222222222',
  volumeId: '11111111-1111-4111-8111-111111111111',
  name: '',
  description: '',
  status: 'creating',
  sizeGiB: 1,
  createdAt: '2026-11-21T12:00:00Z',
  metadata: {},
};
const disk = { target: 'vdc', volume: made.volumeId, project: 'p-1', name: 'data', sizeBytes: 1 };

function cut(cinder: Partial<Cinder> | undefined, windowRequestTimeoutMs = 8_000) {
  const told: string[] = [];
  const hold = {
    isFresh: () => true,
    lost: new AbortController().signal,
    done: async () => ({ inTime: true, reason: '' }),
    failed: async (reason: string) => {
      told.push(reason);
    },
  };
  const deps = {
    installationId: 'i',
    hosts: { host: () => ({ holdCut: async () => hold }) },
    cloud: cinder && { cinder, windowRequestTimeoutMs },
  } as unknown as ActivityDeps;
  const plan = { snapshotId: 's', name: 'n', vm: { uuid: 'u', name: 'web' }, setDisks: ['vdc'], volumes: [disk] };
  const request = { host: 'h', vm: 'u', operation: 's', window: 's.1', cut: 'vdc', disk, plan };
  return { told, part: snapshotVolume(deps, request as never, new AbortController().signal) };
}

it('says that nothing of it is there on an engine that knows no cloud', async () => {
  await expect(cut(undefined).part).rejects.toMatchObject({
    code: 'CINDER_NOT_CONFIGURED',
    metadata: { outcome: 'none' },
  });
});

it('does not wait for ever to be rid of what it made in vain, and leaves it to the undo', async () => {
  const signals: unknown[] = [];
  const failing = cut({
    createSnapshot: async () => made,
    snapshot: async (_, options) => {
      signals.push(options?.signal);
      if (signals.length === 1) return { ...made, status: 'error' };
      throw new CinderError('CINDER_UNREACHABLE', 'Cinder did not answer.');
    },
  });
  await expect(failing.part).rejects.toMatchObject({ code: 'VOLUME_SNAPSHOT_FAILED', metadata: { outcome: 'made' } });
  expect(failing.told).toHaveLength(1);
  // The second look belongs to the deletion.
  expect(signals).toEqual([expect.any(AbortSignal), expect.any(AbortSignal)]);
});

it('gives a snapshot up that stays in `creating`, also where no window’s limit ends the hold', async () => {
  const timeout = vi.spyOn(AbortSignal, 'timeout').mockImplementation(() => AbortSignal.abort());
  const stuck = cut({ createSnapshot: async () => made, snapshot: async () => made });
  await expect(stuck.part)
    .rejects.toMatchObject({
      code: 'VOLUME_SNAPSHOT_FAILED',
      message: expect.stringMatching(/not made the snapshot .* available within 60 s/),
      metadata: { outcome: 'made' },
    })
    .finally(() => timeout.mockRestore());
  expect(stuck.told).toHaveLength(1);
});

it('looks once for what a create has made that Cinder answers has failed: the guest is frozen meanwhile', async () => {
  let looks = 0;
  const failed = cut({
    createSnapshot: async () => {
      throw new CinderError('CINDER_FAILED', 'Cinder failed inside.', { mayHaveHappened: true });
    },
    findSnapshots: async () => {
      looks += 1;
      return [];
    },
  });
  await expect(failed.part).rejects.toMatchObject({ code: 'CINDER_FAILED', metadata: {} });
  expect(looks).toBe(1);
  expect(failed.told).toHaveLength(1);
});

it('waits no longer in all than for one answer where Cinder says nothing of the snapshot any more, so that the guest thaws', async () => {
  const times: unknown[] = [];
  const silent = cut(
    {
      createSnapshot: async (_, options) => {
        times.push(options?.answerMs);
        return made;
      },
      snapshot: async (_, options) => {
        times.push(options?.answerMs);
        throw new CinderError('CINDER_UNREACHABLE', 'Cinder did not answer.');
      },
    },
    50,
  );
  await expect(silent.part).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', metadata: { outcome: 'made' } });
  expect(silent.told).toEqual(['Cinder did not answer.']);
  // It was asked again, for there may be an answer the next time.
  expect(times.length).toBeGreaterThan(2);
  expect(times.slice(0, 3)).toEqual([50, 25, 25]);
});

it('does not look for ever for what a create may have made whose answer came too late', async () => {
  let looks = 0;
  const lost = cut(
    {
      createSnapshot: async () => {
        throw new CinderError('CINDER_UNREACHABLE', 'Cinder did not answer.', { mayHaveHappened: true });
      },
      findSnapshots: (_, options) => {
        looks += 1;
        // Cinder takes the request, and that is all.
        return new Promise((_, reject) =>
          options?.signal?.addEventListener('abort', () => reject(options.signal?.reason)),
        );
      },
    },
    1,
  );
  // Without `outcome`: it may still appear.
  await expect(lost.part).rejects.toMatchObject({ code: 'CINDER_UNREACHABLE', metadata: {} });
  expect(looks).toBe(1);
  expect(lost.told).toHaveLength(1);
});

const overloaded = () => new CinderError('CINDER_OVERLOADED', 'Later.', { mayHaveHappened: true, retryAfterMs: 0 });

it('takes what is there where a proxy said "later" after Cinder had taken the create, and sends it no second time', async () => {
  let creates = 0;
  const taken = cut({
    createSnapshot: async () => {
      creates += 1;
      throw overloaded();
    },
    findSnapshots: async () => [made],
    snapshot: async () => ({ ...made, status: 'available' }),
  });
  await expect(taken.part).resolves.toMatchObject({ part: { snapshot: made.id } });
  expect(creates).toBe(1);
});

it('does not take what a proxy answered with "later" for never sent, though it was refused the second time', async () => {
  const asked: string[] = [];
  const refused = cut({
    createSnapshot: async () => {
      asked.push('create');
      if (asked.length === 1) throw overloaded();
      throw new CinderError('CINDER_QUOTA', 'No quota left.');
    },
    findSnapshots: async () => {
      asked.push('look');
      return [];
    },
  });
  await expect(refused.part).rejects.toMatchObject({ code: 'CINDER_QUOTA', metadata: {} });
  expect(asked).toEqual(['create', 'look', 'create']);
});
