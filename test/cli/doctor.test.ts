import type { DoctorRun } from '@stillpoint/engine/api/schemas.js';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { FakeApi, problem, stillpoint, uuid } from './fake-api.js';

const id = 'stillpoint-doctor-41f38dcc-c078-4237-b5b5-4fa9045d4e2b';
type Finding = NonNullable<DoctorRun['report']>['findings'][number];

const finding = (over: Partial<Finding> = {}): Finding => ({
  code: 'RUN_GONE',
  about: { vm: { uuid, name: 'web-1' }, host: 'kvm-01', snapshotId: '41f38dcc-c078-4237-b5b5-4fa9045d4e2b' },
  text: 'Snapshot nightly of web-1 is running, and no run of its VM is open.',
  advice: 'What the run made is taken back.',
  outcome: 'repairable',
  detail: '',
  ...over,
});

const run = (over: Partial<DoctorRun> = {}): DoctorRun => ({
  id,
  state: 'running',
  startedAt: '2026-11-21T12:00:00.000Z',
  error: null,
  report: null,
  ...over,
});

const done = (findings: Finding[], omitted = 0): DoctorRun =>
  run({
    state: 'done',
    report: {
      at: '2026-11-21T12:00:01.000Z',
      repair: false,
      looked: { hosts: 2, snapshots: 12, overlays: 20, volumeSnapshots: 3 },
      findings,
      omitted,
    },
  });

let api: FakeApi;
beforeAll(async () => {
  api = await FakeApi.start();
});
beforeEach(() => {
  api.asked.length = 0;
});
afterAll(() => api.close());

test('doctor looks, waits for the report, and is content where nothing is found', async () => {
  api.inTurn({ status: 202, body: run() }, { body: run() }, { body: done([]) });
  const ran = await stillpoint(api.url, ['doctor']);
  expect(ran).toMatchObject({
    exitCode: 0,
    out: 'Looked at 2026-11-21 12:00:01 UTC: 2 hosts, 12 snapshots, 20 overlays, 3 snapshots in Cinder.\nNothing found.\n',
  });
  expect(api.asked.map(({ method, url, body }) => [method, url, body])).toEqual([
    ['POST', '/v1/doctor', { repair: false }],
    ['GET', `/v1/doctor/${id}?wait=20`, undefined],
    ['GET', `/v1/doctor/${id}?wait=20`, undefined],
  ]);
});

test('doctor lists what it found, and says what a person can do and what --repair would', async () => {
  const away = finding({
    code: 'HOST_AWAY',
    about: { host: 'kvm-02' },
    text: 'It\u001b[2J is away.',
    advice: 'See.',
    outcome: 'for-a-person',
  });
  api.inTurn({ status: 202, body: run() }, { body: done([finding(), away], 3) });
  const ran = await stillpoint(api.url, ['doctor']);
  expect(ran.exitCode).toBe(8);
  expect(ran.out.split('\n').slice(2)).toEqual([
    '   FINDING    VM     HOST    SNAPSHOT                              OUTCOME',
    '1  RUN_GONE   web-1  kvm-01  41f38dcc-c078-4237-b5b5-4fa9045d4e2b  repairable',
    '2  HOST_AWAY  -      kvm-02  -                                     for-a-person',
    '',
    '1: Snapshot nightly of web-1 is running, and no run of its VM is open. What the run made is taken back.',
    '2: It is away. See.',
    'And 3 more: look again when these are settled.',
    '',
  ]);
  expect(ran.err).toContain('FINDINGS_LEFT: 5 of 5 are left. Repair what is unambiguous: stillpoint doctor --repair.');
});

test('doctor --repair repairs, and is content when nothing is left', async () => {
  api.inTurn({ status: 202, body: run() }, { body: done([finding({ outcome: 'repaired' })]) });
  const ran = await stillpoint(api.url, ['doctor', '--repair']);
  expect(ran.exitCode).toBe(0);
  expect(ran.out).toContain('repaired');
  expect(api.asked[0]?.body).toEqual({ repair: true });
});

test('doctor --repair says why something was not repaired', async () => {
  const detail = 'Another run of this VM goes on.';
  api.inTurn({ status: 202, body: run() }, { body: done([finding({ outcome: 'not-repaired', detail })]) });
  const ran = await stillpoint(api.url, ['doctor', '--repair']);
  expect(ran.exitCode).toBe(8);
  expect(ran.out).toContain(`Not repaired: ${detail}`);
  expect(ran.err).not.toContain('--repair');
});

test('doctor --json is the API’s answer', async () => {
  api.inTurn({ status: 202, body: run() }, { body: done([finding()]) });
  const ran = await stillpoint(api.url, ['doctor', '--json']);
  expect(JSON.parse(ran.out)).toEqual(done([finding()]));
  expect(JSON.parse(ran.err)).toMatchObject({ code: 'FINDINGS_LEFT', exitCode: 8 });
});

test('doctor whose run failed, or that Temporal does not start, says so', async () => {
  const error = { code: 'CATALOGUE_UNAVAILABLE', text: 'Nothing was compared: the catalogue is down.' };
  api.inTurn({ status: 202, body: run() }, { body: run({ state: 'failed', error }) });
  expect(await stillpoint(api.url, ['doctor'])).toMatchObject({
    exitCode: 1,
    err: expect.stringContaining(error.text),
  });
  api.inTurn(problem(503, 'TEMPORAL_UNAVAILABLE', 'Temporal does not answer.'));
  expect((await stillpoint(api.url, ['doctor'])).exitCode).toBe(5);
});
