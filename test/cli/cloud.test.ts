import type { CloudView } from '@stillpoint/engine/api/schemas.js';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { FakeApi, stillpoint } from './fake-api.js';

const cloud = (over: Partial<CloudView> = {}): CloudView => ({
  configured: true,
  usable: true,
  error: null,
  source: 'the variables OS_…',
  authUrl: 'https://keystone.example.org:5000/v3',
  as: 'user stillpoint (domain Default)',
  project: 'vms (domain Default)',
  region: 'north',
  interface: 'public',
  endpoint: null,
  warnings: [],
  pools: ['volumes'],
  checkAttachment: true,
  quota: { snapshots: { limit: 10, used: 3 }, gigabytes: { limit: -1, used: 12 } },
  ...over,
});

let api: FakeApi;
beforeAll(async () => {
  api = await FakeApi.start();
});
afterAll(() => api.close());

test('cloud shows which one it is, and that it can be used', async () => {
  api.inTurn({ body: cloud() });
  const { exitCode, out, err } = await stillpoint(api.url, ['cloud']);
  expect({ exitCode, err }).toEqual({ exitCode: 0, err: '' });
  expect(out).toMatch(/^Keystone +https:\/\/keystone\.example\.org:5000\/v3$/m);
  expect(out).toMatch(/^project +vms \(domain Default\)$/m);
  expect(out).toMatch(/^Cinder +as Keystone's catalogue says \(public\)$/m);
  expect(out).toMatch(/^usable +yes$/m);
  expect(out).toMatch(/^quota +3 of 10 snapshots used\n +12 of any number of gigabytes used$/m);
});

test('a cloud that cannot be used is shown, and ends the command with why', async () => {
  const error = { code: 'CINDER_UNAUTHORISED', text: 'Keystone refuses the credentials.' };
  api.inTurn({ body: cloud({ usable: false, error, quota: null }) });
  const ran = await stillpoint(api.url, ['cloud']);
  expect(ran).toMatchObject({
    exitCode: 5,
    err: 'stillpoint: CINDER_UNAUTHORISED: Keystone refuses the credentials.\n',
  });
  expect(ran.out).toMatch(/^usable +no$/m);
});

test('no cloud at all ends 3, as what is not there', async () => {
  const error = { code: 'CINDER_NOT_CONFIGURED', text: 'No cloud is configured.' };
  api.inTurn({ body: cloud({ configured: false, usable: false, error }) });
  expect(await stillpoint(api.url, ['cloud'])).toMatchObject({ exitCode: 3, out: 'No cloud is configured.\n' });
});
