import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type Answer, accepted, FakeApi, id, problem, running, snapshot, stillpoint, uuid } from './fake-api.js';

const second = '51f38dcc-c078-4237-b5b5-4fa9045d4e2b';
const stuck =
  "vdc: Cinder's snapshot s-1 is still creating, and cannot be deleted so. If Cinder has given it up, an OpenStack administrator ends it: openstack volume snapshot set --state error s-1, then openstack volume snapshot delete s-1.";

const pending = (of = id) =>
  snapshot({ id: of, state: 'cleanup-pending', pending: [stuck], error: { code: 'CLEANUP_PENDING', text: 'vdc' } });
const acceptedOf = (of: string): Answer => ({
  status: 202,
  body: { id: of, vm: { uuid, name: 'web-1' }, href: `/v1/snapshots/${of}` },
});
const list = (...snapshots: unknown[]): Answer => ({ body: { snapshots, next: null } });

let api: FakeApi;
beforeAll(async () => {
  api = await FakeApi.start();
});
beforeEach(() => {
  api.asked.length = 0;
});
afterAll(() => api.close());

test('snapshot cleanup begins it, and says how to follow it', async () => {
  api.inTurn(accepted);
  const ran = await stillpoint(api.url, ['snapshot', 'cleanup', id]);
  expect(ran).toEqual({
    exitCode: 0,
    out: `${id}  web-1  cleanup has begun. Follow it: stillpoint snapshot show ${id} --wait\n`,
    err: '',
  });
  expect(api.asked).toMatchObject([{ method: 'POST', url: `/v1/snapshots/${id}/cleanup`, body: undefined }]);
});

test('snapshot cleanup without ids takes all that is pending, newest first, each once the one before has ended', async () => {
  api.inTurn(
    list(pending(), pending(second)),
    accepted,
    { body: running([{ name: 'delete vdc' }], { state: 'deleting' }) },
    { body: snapshot({ state: 'deleted' }) },
    acceptedOf(second),
    { body: pending(second) },
  );
  const ran = await stillpoint(api.url, ['snapshot', 'cleanup', '--wait']);
  expect(ran.out.split('\n')).toEqual([
    `${id}  web-1  cleaned up`,
    // Whole, for it has the command that an administrator may have to give.
    `${second}  web-1  still pending: ${stuck}`,
    '',
  ]);
  expect(ran.exitCode).toBe(7);
  expect(ran.err).toContain('stillpoint: CLEANUP_PENDING: Of 1 of 2 something is pending still.');
  expect(api.asked.map(({ method, url }) => `${method} ${url}`)).toEqual([
    'GET /v1/snapshots?state=cleanup-pending&limit=200',
    `POST /v1/snapshots/${id}/cleanup`,
    `GET /v1/snapshots/${id}?wait=0.5`,
    `GET /v1/snapshots/${id}?wait=0.5`,
    `POST /v1/snapshots/${second}/cleanup`,
    `GET /v1/snapshots/${second}?wait=0.5`,
  ]);
});

test('one that is refused does not keep the others', async () => {
  api.inTurn(problem(409, 'VM_BUSY', 'Another operation runs.'), acceptedOf(second));
  const ran = await stillpoint(api.url, ['snapshot', 'cleanup', id, second]);
  expect(ran.out).toContain(`${id}  not cleaned up: VM_BUSY: Another operation runs.\n`);
  expect(ran.out).toContain(`${second}  web-1  cleanup has begun.`);
  expect(ran).toMatchObject({ exitCode: 4, err: 'stillpoint: VM_BUSY: 1 of 2 were not cleaned up.\n' });
});

test('of one alone the refusal is the command’s error', async () => {
  api.inTurn(problem(409, 'SNAPSHOT_STATE', 'Nothing of it is pending.', { state: 'complete' }));
  const ran = await stillpoint(api.url, ['snapshot', 'cleanup', id]);
  expect(ran).toMatchObject({ exitCode: 4, err: 'stillpoint: SNAPSHOT_STATE: Nothing of it is pending.\n' });
});

test('nothing pending is no error', async () => {
  api.inTurn(list());
  expect(await stillpoint(api.url, ['snapshot', 'cleanup', '--wait'])).toEqual({
    exitCode: 0,
    out: 'Nothing is pending.\n',
    err: '',
  });
  const ran = await stillpoint(api.url, ['snapshot', 'cleanup', '--json']);
  expect(JSON.parse(ran.out)).toEqual({ snapshots: [] });
});

test('with --json the outcomes are one object, those before an engine went away too', async () => {
  api.inTurn(
    list(pending(), pending(second)),
    accepted,
    { body: pending() },
    problem(503, 'TEMPORAL_UNAVAILABLE', 'No.'),
  );
  const ran = await stillpoint(api.url, ['snapshot', 'cleanup', '--wait', '--json']);
  expect(ran.exitCode).toBe(5);
  expect(JSON.parse(ran.out)).toEqual({
    snapshots: [
      {
        id,
        vm: { uuid, name: 'web-1' },
        outcome: 'pending',
        pending: [stuck],
        error: { code: 'CLEANUP_PENDING', text: 'vdc' },
      },
    ],
  });
  expect(JSON.parse(ran.err)).toMatchObject({ code: 'TEMPORAL_UNAVAILABLE' });
});

test('an API that is not there has cleaned nothing up', async () => {
  api.inTurn(problem(503, 'CATALOGUE_UNAVAILABLE', 'Down.'));
  expect(await stillpoint(api.url, ['snapshot', 'cleanup'])).toMatchObject({ exitCode: 5, out: '' });
});

test('snapshot show says whole what is pending, and how to finish it', async () => {
  api.inTurn({ body: pending() });
  const ran = await stillpoint(api.url, ['snapshot', 'show', id]);
  expect(ran.out).toContain(`pending    ${stuck}\n`);
  expect(ran.out).toContain(`finish it  stillpoint snapshot cleanup ${id} --wait\n`);
});

test('snapshot show of a terminated run does not say that its last step goes on', async () => {
  const progress = running([{ name: 'cut vdc' }]).progress;
  api.inTurn({ body: { ...pending(), progress } });
  const ran = await stillpoint(api.url, ['snapshot', 'show', id]);
  expect(ran.out).toMatch(/^state +cleanup-pending$/m);
  expect(ran.out).toMatch(/^steps +cut vdc: did not end$/m);
});

test('snapshot show names a volume’s part by Cinder’s ids', async () => {
  const part = { target: 'vdc', kind: 'volume' as const, volume: 'v-1', snapshot: 's-1', sizeBytes: 1_073_741_824 };
  api.inTurn({ body: snapshot({ disks: [part] }) });
  const ran = await stillpoint(api.url, ['snapshot', 'show', id]);
  expect(ran.out).toMatch(/^disks +vdc {2}1\.0 GiB in Cinder: snapshot s-1 of volume v-1$/m);
});
