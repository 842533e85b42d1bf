import { readFileSync } from 'node:fs';
import { exitCodes } from '@stillpoint/engine/cli/exit-codes.js';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { FakeApi, problem, stillpoint } from './fake-api.js';

let api: FakeApi;
beforeAll(async () => {
  api = await FakeApi.start();
});
beforeEach(() => {
  api.asked.length = 0;
});
afterAll(() => api.close());

test.each([
  [400, 'INPUT_INVALID', exitCodes.usage],
  [404, 'VM_NOT_FOUND', exitCodes.notFound],
  [409, 'VM_BUSY', exitCodes.conflict],
  [422, 'IDEMPOTENCY_CONFLICT', exitCodes.conflict],
  [500, 'INTERNAL', exitCodes.failed],
  [503, 'TEMPORAL_UNAVAILABLE', exitCodes.unreachable],
])('an answer %i %s is told on stderr with its code and ends %i', async (status, code, exitCode) => {
  api.inTurn(problem(status, code, 'What happened. What to do.'));
  const ran = await stillpoint(api.url, ['vms']);
  expect(ran).toEqual({ exitCode, out: '', err: `stillpoint: ${code}: What happened. What to do.\n` });
});

test('with --json an error is JSON too, with all that the API said', async () => {
  api.inTurn(problem(409, 'VM_NAME_AMBIGUOUS', 'Several.', { vms: ['one', 'two'] }));
  const ran = await stillpoint(api.url, ['thaw', 'web-1', '--json']);
  expect(ran.exitCode).toBe(4);
  expect(ran.out).toBe('');
  expect(JSON.parse(ran.err)).toMatchObject({
    code: 'VM_NAME_AMBIGUOUS',
    detail: 'Several.',
    exitCode: 4,
    vms: ['one', 'two'],
  });
});

test('an API that is not there ends 5 and says what to do', async () => {
  const gone = await FakeApi.start();
  const { url } = gone;
  await gone.close();
  const ran = await stillpoint(url, ['vms']);
  expect(ran.exitCode).toBe(5);
  expect(ran.err).toContain(`API_UNREACHABLE: The API at ${url} does not answer (connect ECONNREFUSED`);
  expect(ran.err).toContain('STILLPOINT_API');
});

test.each([
  ['no JSON', { text: '<html>' }],
  ['no problem', { status: 502, body: { message: 'Bad gateway' } }],
])('whatever answers with %s is not taken for Stillpoint', async (_case, answer) => {
  api.inTurn(answer);
  const ran = await stillpoint(api.url, ['vms']);
  expect(ran.exitCode).toBe(1);
  expect(ran.err).toContain('API_UNKNOWN');
});

test.each([
  [['nonsense']],
  [['host']],
  [['host', 'add', 'only-a-name']],
  [['vms', '--unknown']],
  [['snapshot', 'create', 'web-1', '--quiesce', 'perhaps']],
  [['snapshot', 'create', 'web-1', '--freeze-timeout', '30']],
  [['snapshot', 'create', 'web-1', '--freeze-timeout', '20m']],
  [['snapshot', 'create', 'web-1', '--disk', '../vda']],
  [['snapshot', 'create', 'web-1', '--disk', 'vda', '--disk', 'vda']],
  [['snapshot', 'list', '--state', 'odd']],
  [['vms', '--api', 'ftp://nowhere']],
])('%j is a usage error, and nothing is asked of the API', async (args) => {
  const ran = await stillpoint(api.url, args);
  expect(ran.exitCode).toBe(2);
  expect(ran.err).not.toBe('');
  expect(api.asked).toEqual([]);
});

test('help and version are no errors', async () => {
  for (const args of [['--help'], ['snapshot', 'create', '--help'], ['--version']]) {
    const ran = await stillpoint(api.url, args);
    expect(ran).toMatchObject({ exitCode: 0, err: '' });
    expect(ran.out).not.toBe('');
  }
});

test('docs/cli.md lists every exit code', () => {
  const page = readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8');
  const listed = [...page.matchAll(/^\| (\d+) \|/gm)].map(([, code]) => Number(code));
  expect(listed).toEqual(Object.values(exitCodes));
});
