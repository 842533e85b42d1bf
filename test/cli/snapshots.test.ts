import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { accepted, FakeApi, id, problem, running, snapshot, stillpoint } from './fake-api.js';

let api: FakeApi;
beforeAll(async () => {
  api = await FakeApi.start();
});
beforeEach(() => {
  api.asked.length = 0;
});
afterAll(() => api.close());

test('snapshot create sends what was asked for, under a key of its own', async () => {
  api.inTurn(accepted);
  const options = ['--quiesce', 'best-effort', '--disk', 'vda', '--disk', 'vdb', '--unquiesced', 'vdb'];
  const more = ['--name', 'n', '--description', 'd', '--freeze-timeout', '5s', '--window-limit', '1500ms'];
  const ran = await stillpoint(api.url, ['snapshot', 'create', 'web-1', ...options, ...more]);
  expect(ran.exitCode).toBe(0);
  expect(ran.out).toBe(`Snapshot ${id} of web-1 has begun. Follow it: stillpoint snapshot show ${id} --wait\n`);
  expect(api.asked).toMatchObject([
    {
      method: 'POST',
      url: '/v1/vms/web-1/snapshots',
      body: {
        quiesce: 'best-effort',
        disks: ['vda', 'vdb'],
        unquiesced: ['vdb'],
        name: 'n',
        description: 'd',
        freezeTimeoutMs: 5_000,
        windowLimitMs: 1_500,
      },
    },
  ]);
  expect(api.asked[0]?.headers['idempotency-key']).toMatch(/^[0-9a-f-]{36}$/);
});

test('snapshot create without options asks for nothing in particular', async () => {
  api.inTurn(accepted);
  await stillpoint(api.url, ['snapshot', 'create', 'web-1']);
  expect(api.asked[0]?.body).toEqual({});
});

test('snapshot create --wait shows each step as it begins and ends, then grade, why, window and what is left out', async () => {
  api.inTurn(
    accepted,
    { body: running([{ name: 'prepare' }]) },
    { body: running([{ name: 'prepare', ms: 67 }, { name: 'freeze file systems' }]) },
    {
      body: running([
        { name: 'prepare', ms: 67 },
        { name: 'freeze file systems', ms: 1_250 },
      ]),
    },
    { body: snapshot() },
  );
  const ran = await stillpoint(api.url, ['snapshot', 'create', 'web-1', '--wait']);
  expect(ran.exitCode).toBe(0);
  expect(ran.err.split('\n')).toEqual([
    '12:29:44.100  prepare …',
    '12:29:44.100  prepare: 67 ms',
    '12:29:44.100  freeze file systems …',
    '12:29:44.100  freeze file systems: 1.3 s',
    '',
  ]);
  expect(ran.out).toMatch(/^grade +filesystem$/m);
  expect(ran.out).toMatch(/^why +3 file systems stayed frozen, 219 ms in all\.$/m);
  expect(ran.out).toMatch(/^window +218\.8 ms, 3 file systems frozen at/m);
  expect(ran.out).toMatch(/^partial +yes, without vdc$/m);
  expect(ran.out).toMatch(/^disks +vda {2}20\.0 GiB qcow2 in \/images\/web-1\.qcow2$/m);
  expect(ran.out).toMatch(/^left out +vdc: a network disk that is no volume Stillpoint knows$/m);
});

test('a step that failed and what a run waits for are told', async () => {
  const steps = [{ name: 'thaw file systems', ms: 90, error: 'STILL_FROZEN' }];
  const waiting = running(steps);
  api.inTurn(
    { body: { ...waiting, progress: { ...waiting.progress, waiting: 'still frozen: start the guest agent' } } },
    { body: snapshot() },
  );
  const ran = await stillpoint(api.url, ['snapshot', 'show', id, '--wait']);
  expect(ran.err).toContain('thaw file systems: failed after 90 ms: STILL_FROZEN');
  expect(ran.err).toContain('waiting: still frozen: start the guest agent');
});

test('on a terminal the steps are drawn over, each line cut to its width', async () => {
  api.inTurn(
    { body: running([{ name: 'prepare' }]) },
    {
      body: running([
        { name: 'prepare', ms: 67 },
        { name: 'a step with a name that is longer than the line', ms: 1 },
      ]),
    },
    { body: snapshot() },
  );
  const ran = await stillpoint(api.url, ['snapshot', 'show', id, '--wait'], { columns: 40 });
  const [first = '', second = ''] = ran.err.split('\u001b[2A');
  expect(first).toContain('\u001b[0J');
  expect(second).toContain('67 ms');
  for (const line of second.replaceAll('\u001b[0J', '').split('\n')) expect(line.length).toBeLessThanOrEqual(40);
});

test('with --json --wait there is nothing but the snapshot', async () => {
  api.inTurn(accepted, { body: running([{ name: 'prepare' }]) }, { body: snapshot() });
  const ran = await stillpoint(api.url, ['snapshot', 'create', 'web-1', '--wait', '--json']);
  expect(ran).toMatchObject({ exitCode: 0, err: '' });
  expect(JSON.parse(ran.out)).toEqual(snapshot());
});

test.each([
  [
    'failed',
    { code: 'CONSISTENCY_LOST', text: 'Lost. Try again.' },
    6,
    'stillpoint: CONSISTENCY_LOST: Lost. Try again.',
  ],
  ['cancelled', null, 6, `stillpoint: SNAPSHOT_FAILED: The snapshot ${id} was cancelled.`],
  ['cleanup-pending', { code: 'CLEANUP_PENDING', text: 'Later.' }, 7, 'stillpoint: CLEANUP_PENDING: Later.'],
] as const)(
  'a snapshot that ends %s is shown, and ends the command with its error',
  async (state, error, exitCode, err) => {
    api.inTurn(accepted, { body: snapshot({ state, error, grade: null }) });
    const ran = await stillpoint(api.url, ['snapshot', 'create', 'web-1', '--wait']);
    expect(ran.exitCode).toBe(exitCode);
    expect(ran.err.trim()).toBe(err);
    expect(ran.out).toMatch(new RegExp(`^state +${state}$`, 'm'));
  },
);

test('Ctrl-C while waiting leaves the run alone, and says so', async () => {
  const interrupt = new AbortController();
  api.inTurn(accepted, { body: running([{ name: 'prepare' }]) });
  const ran = await stillpoint(api.url, ['snapshot', 'create', 'web-1', '--wait'], {
    interrupt: interrupt.signal,
    onErr: (text) => {
      if (text.includes('prepare')) interrupt.abort();
    },
  });
  expect(ran.exitCode).toBe(130);
  expect(ran.err).toContain(`The run of snapshot ${id} goes on. Follow it: stillpoint snapshot show ${id} --wait.`);
  expect(api.asked.map(({ method }) => method)).not.toContain('DELETE');
  expect(api.asked.some(({ url }) => url.includes('cancel'))).toBe(false);
});

test('an engine that is away for a while does not end the wait', async () => {
  api.inTurn(problem(503, 'CATALOGUE_UNAVAILABLE', 'Down.'), problem(503, 'CATALOGUE_UNAVAILABLE', 'Down.'), {
    body: snapshot(),
  });
  const ran = await stillpoint(api.url, ['snapshot', 'show', id, '--wait']);
  expect(ran.exitCode).toBe(0);
  expect(ran.err).toBe('CATALOGUE_UNAVAILABLE: Down. Trying again for a minute …\n');
});

test('snapshot list asks for what was asked, and reads every page', async () => {
  const second = snapshot({ id: '51f38dcc-c078-4237-b5b5-4fa9045d4e2b', state: 'failed', grade: null, window: null });
  api.inTurn({ body: { snapshots: [snapshot()], next: 'abc' } }, { body: { snapshots: [second], next: null } });
  const ran = await stillpoint(api.url, [
    'snapshot',
    'list',
    '--vm',
    'web-1',
    '--grade',
    'filesystem',
    '--state',
    'complete',
  ]);
  expect(ran.exitCode).toBe(0);
  expect(ran.out).toMatch(
    new RegExp(`${id} +web-1 +before the update +complete +filesystem +yes +219 ms +2026-11-21 12:29:43 UTC`),
  );
  expect(ran.out).toContain(second.id);
  expect(api.asked.map(({ url }) => url)).toEqual([
    '/v1/snapshots?vm=web-1&grade=filesystem&state=complete&limit=200',
    '/v1/snapshots?vm=web-1&grade=filesystem&state=complete&limit=200&cursor=abc',
  ]);
});

test('snapshot show of one that failed is no failure of show', async () => {
  api.inTurn({ body: snapshot({ state: 'failed', error: { code: 'NO_SPACE', text: 'Make room.' } }) });
  const ran = await stillpoint(api.url, ['snapshot', 'show', id]);
  expect(ran).toMatchObject({ exitCode: 0, err: '' });
  expect(ran.out).toMatch(/^error +NO_SPACE: Make room\.$/m);
});

test('snapshot cancel asks the run to end', async () => {
  api.inTurn({ status: 202, body: { id, href: `/v1/snapshots/${id}` } });
  expect(await stillpoint(api.url, ['snapshot', 'cancel', id])).toMatchObject({ exitCode: 0, err: '' });
  expect(api.asked).toMatchObject([{ method: 'POST', url: `/v1/snapshots/${id}/cancel`, body: undefined }]);
});

test('snapshot delete begins the deletion and says how to follow it', async () => {
  api.inTurn(accepted);
  const ran = await stillpoint(api.url, ['snapshot', 'delete', id]);
  expect(ran.out).toContain(`The deletion of snapshot ${id} of web-1 has begun.`);
  expect(api.asked).toMatchObject([{ method: 'DELETE', url: `/v1/snapshots/${id}` }]);
});

test('snapshot delete --wait ends when it is deleted', async () => {
  api.inTurn(
    accepted,
    { body: running([{ name: 'merge' }], { state: 'deleting' }) },
    { body: snapshot({ state: 'deleted' }) },
  );
  const ran = await stillpoint(api.url, ['snapshot', 'delete', id, '--wait']);
  expect(ran.exitCode).toBe(0);
  expect(ran.out).toBe(`Deleted snapshot ${id} of web-1.\n`);
});

test.each([
  ['complete', 6],
  ['cleanup-pending', 7],
] as const)('snapshot delete --wait of one that is %s afterwards is told as what it is', async (state, exitCode) => {
  api.inTurn(accepted, { body: snapshot({ state, error: { code: 'HOST_UNREACHABLE', text: 'The host is away.' } }) });
  const ran = await stillpoint(api.url, ['snapshot', 'delete', id, '--wait']);
  expect(ran.exitCode).toBe(exitCode);
  expect(ran.err).toBe('stillpoint: HOST_UNREACHABLE: The host is away.\n');
});

test('snapshot show of an ended snapshot says how it ended, and not that its run is done too', async () => {
  api.inTurn({ body: snapshot({ progress: { state: 'done', waiting: null, steps: [] } }) });
  const ran = await stillpoint(api.url, ['snapshot', 'show', id]);
  expect(ran.out).toMatch(/^state +complete$/m);
});
