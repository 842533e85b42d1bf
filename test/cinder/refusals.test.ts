/** Each answer that is no 2xx, as the error that it is. */
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import type { CinderError } from '@stillpoint/engine/cinder/errors.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { type CinderStandIn, startCinderStandIn } from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';

let standIn: CinderStandIn;
let client: CinderClient;
let volumeId: string;
beforeAll(async () => {
  standIn = await startCinderStandIn({ times: { acceptMs: 0, cutMs: 1, availableMs: 2, deleteMs: 1 } });
  const cloud = readCloud({ env: standIn.environment() });
  if (cloud === undefined) throw new Error('no cloud');
  client = new CinderClient(cloud);
  volumeId = standIn.addVolume();
  await client.makeReady({ validForMs: 0, connections: 1 });
});
afterEach(() => standIn.faults.clear());
afterAll(async () => {
  await client.close();
  await standIn.close();
});

const create = () => client.createSnapshot({ volumeId, name: 'n', description: '', metadata: {} });
const creating = { method: 'POST', path: /^\/snapshots$/ };
const fault = (kind: string, code: number, message: string, more = {}) => ({ [kind]: { code, message, ...more } });

test.each<[string, number, unknown, Partial<CinderError>, RegExp, Record<string, string>?]>([
  [
    'a quota by type',
    413,
    fault(
      'overLimit',
      413,
      'VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes_ssd quota. Requested 1G, quota is 1G and 1G has been consumed.',
      { retryAfter: '0' },
    ),
    { code: 'CINDER_QUOTA', retryAfterMs: undefined },
    /quota of gigabytes_ssd .* quota is 1G/,
  ],
  [
    'a quota of volumes',
    413,
    fault('overLimit', 413, 'VolumeLimitExceeded: Maximum number of volumes allowed (1) exceeded'),
    { code: 'CINDER_QUOTA' },
    /quota of volumes/,
  ],
  [
    'an unexpected quota',
    413,
    fault('overLimit', 413, 'UnexpectedOverQuota: Unexpected over quota on snapshots.'),
    { code: 'CINDER_QUOTA' },
    /quota of snapshots/,
  ],
  [
    'a rate limit',
    413,
    fault('overLimit', 413, 'This request was rate-limited.', { retryAfter: '7' }),
    { code: 'CINDER_OVERLOADED', retryAfterMs: 7000 },
    /overloaded.*rate-limited/,
  ],
  ['a body too large for a proxy', 413, 'Too large', { code: 'CINDER_BAD_REQUEST' }, /HTTP 413/],
  [
    'too many requests',
    429,
    '',
    { code: 'CINDER_OVERLOADED', retryAfterMs: 2000, mayHaveHappened: false },
    /HTTP 429/,
    { 'retry-after': '2' },
  ],
  [
    'unavailable until later',
    503,
    'busy',
    { code: 'CINDER_OVERLOADED', retryAfterMs: 30_000, mayHaveHappened: true },
    /HTTP 503/,
    { 'retry-after': '30' },
  ],
  [
    "unavailable by a proxy's word alone",
    503,
    'upstream connect error or disconnect/reset before headers',
    { code: 'CINDER_OVERLOADED', mayHaveHappened: true },
    /HTTP 503/,
  ],
  [
    "unavailable by Cinder's own word",
    503,
    fault('serviceUnavailable', 503, 'Later.'),
    { code: 'CINDER_OVERLOADED', mayHaveHappened: false },
    /Later.*HTTP 503/,
  ],
  [
    'unavailable until a date',
    503,
    '',
    { code: 'CINDER_OVERLOADED', retryAfterMs: undefined, mayHaveHappened: true },
    /HTTP 503/,
    { 'retry-after': 'Fri, 31 Dec 1999 23:59:59 GMT' },
  ],
  [
    'unavailable for ages',
    503,
    '',
    { code: 'CINDER_OVERLOADED', retryAfterMs: 3_600_000, mayHaveHappened: true },
    /HTTP 503/,
    { 'retry-after': '1e9' },
  ],
  [
    'a failure',
    500,
    fault('computeFault', 500, 'The server has either erred or is incapable'),
    { code: 'CINDER_FAILED', mayHaveHappened: true },
    /has either erred/,
  ],
  [
    'a bad gateway',
    502,
    '<html>',
    { code: 'CINDER_UNREACHABLE', mayHaveHappened: true },
    /proxy before Cinder .* got no answer/,
  ],
  ['a gateway that gave up', 504, '<html>', { code: 'CINDER_UNREACHABLE', mayHaveHappened: true }, /HTTP 504/],
  [
    'a policy',
    403,
    fault('forbidden', 403, "Policy doesn't allow volume:create_snapshot to be performed."),
    { code: 'CINDER_FORBIDDEN', advice: expect.stringMatching(/role member/) as unknown as string },
    /volume:create_snapshot/,
  ],
  [
    'a volume that migrates',
    400,
    fault('badRequest', 400, 'Invalid volume: Snapshot cannot be created while volume is migrating.'),
    { code: 'VOLUME_BUSY' },
    /is busy.*migrating/,
  ],
  [
    'a conflict',
    409,
    fault('conflictingRequest', 409, 'The volume is being changed.'),
    { code: 'VOLUME_BUSY' },
    /being changed/,
  ],
  [
    "another project's path",
    400,
    fault('badRequest', 400, 'Malformed request url'),
    { code: 'CINDER_BAD_REQUEST' },
    /Malformed/,
  ],
  [
    'a microversion too new',
    406,
    fault('computeFault', 406, 'Version 3.66 is not supported by the API.'),
    { code: 'CINDER_BAD_REQUEST' },
    /microversion/,
  ],
  [
    'another type of content',
    415,
    fault('badMediaType', 415, 'Unsupported Content-Type'),
    { code: 'CINDER_BAD_REQUEST' },
    /Content-Type/,
  ],
])('%s', async (_case, status, body, expected, text, headers = {}) => {
  standIn.faults.set(creating, { does: 'answer', status, body, headers });
  await expect(create()).rejects.toMatchObject({
    mayHaveHappened: false,
    ...expected,
    message: expect.stringMatching(text),
  });
});

describe('of a deletion', () => {
  test('a conflict is a busy snapshot', async () => {
    const { id } = await create();
    standIn.faults.set(
      { method: 'DELETE' },
      { does: 'answer', status: 409, body: fault('conflictingRequest', 409, 'in use') },
    );
    await expect(client.deleteSnapshot(id)).rejects.toMatchObject({ code: 'VOLUME_SNAPSHOT_BUSY' });
  });

  test('a lost answer may have happened', async () => {
    const { id } = await create();
    standIn.faults.set({ method: 'DELETE' }, { does: 'lose-answer' });
    await expect(client.deleteSnapshot(id)).rejects.toMatchObject({ code: expect.any(String), mayHaveHappened: true });
  });
});

test('a reader may look and no more', async () => {
  const reading = await startCinderStandIn({ users: [{ name: 'reader', password: 'p', roles: ['reader'] }] });
  const cloud = readCloud({ env: reading.environment('reader') });
  if (cloud === undefined) throw new Error('no cloud');
  const reader = new CinderClient(cloud);
  const id = reading.addVolume();
  expect(await reader.volume(id)).toMatchObject({ id });
  await expect(reader.createSnapshot({ volumeId: id, name: '', description: '', metadata: {} })).rejects.toMatchObject({
    code: 'CINDER_FORBIDDEN',
    mayHaveHappened: false,
  });
  await reader.close();
  await reading.close();
});
