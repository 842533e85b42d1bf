import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { FakeApi, host, id, problem, stillpoint, vm } from './fake-api.js';

let api: FakeApi;
beforeAll(async () => {
  api = await FakeApi.start();
});
beforeEach(() => {
  api.asked.length = 0;
});
afterAll(() => api.close());

test('host add registers a host and says whether it answers', async () => {
  api.inTurn({ status: 201, body: host() });
  const ran = await stillpoint(api.url, ['host', 'add', 'kvm-01', '10.0.0.1:8701']);
  expect(ran).toEqual({ exitCode: 0, out: 'Added host kvm-01 at 10.0.0.1:8701. It answers.\n', err: '' });
  expect(api.asked).toMatchObject([
    { method: 'POST', url: '/v1/hosts', body: { name: 'kvm-01', address: '10.0.0.1:8701' } },
  ]);
});

test('host add of a host that is silent is done, and tells why it is silent', async () => {
  const error = { code: 'HOST_UNREACHABLE', text: 'See that the host is up.' };
  api.inTurn({ status: 201, body: host({ reachable: false, error }) });
  const ran = await stillpoint(api.url, ['host', 'add', 'kvm-01', '10.0.0.1:8701']);
  expect(ran.exitCode).toBe(0);
  expect(ran.out).toContain('It does not answer yet: HOST_UNREACHABLE See that the host is up.');
});

test('host list is a table, with what is wrong below it', async () => {
  api.inTurn({
    body: {
      hosts: [
        host({ warnings: ['the image folder is nearly full'] }),
        host({
          name: 'kvm-02',
          reachable: false,
          error: { code: 'HOST_IDENTITY', text: 'Wrong name.' },
          version: null,
        }),
        host({ name: 'kvm-03', state: 'lost', reachable: false }),
      ],
    },
  });
  const { exitCode, out } = await stillpoint(api.url, ['host', 'list']);
  const lines = out.split('\n');
  expect(exitCode).toBe(0);
  expect(lines[0]).toMatch(/^NAME +ADDRESS +STATE +HYPERVISOR +VERSION +CAN QUIESCE +ADDED$/);
  expect(lines[1]).toMatch(/^kvm-01 +10\.0\.0\.1:8701 +answers +libvirt +0\.1\.0 +yes +2026-11-21 12:00:00 UTC$/);
  expect(lines[2]).toMatch(/^kvm-02 .* does not answer /);
  expect(lines[3]).toMatch(/^kvm-03 .* lost /);
  expect(out).toContain('kvm-01: the image folder is nearly full');
  expect(out).toContain('kvm-02: HOST_IDENTITY: Wrong name.');
});

test('host remove removes a host', async () => {
  api.inTurn({ status: 204 });
  const ran = await stillpoint(api.url, ['host', 'remove', 'kvm-01']);
  expect(ran).toEqual({ exitCode: 0, out: 'Removed host kvm-01.\n', err: '' });
  expect(api.asked).toMatchObject([{ method: 'DELETE', url: '/v1/hosts/kvm-01' }]);
});

test('host remove --lost says what it means and goes on only with the name of the host', async () => {
  api.inTurn({ body: host({ state: 'lost' }) });
  const ran = await stillpoint(api.url, ['host', 'remove', 'kvm-01', '--lost'], { says: 'kvm-01' });
  expect(ran.exitCode).toBe(0);
  expect(ran.err).toContain('fenced (powered off, or cut off from its storage) and that all its guests are dead');
  expect(ran.out).toContain('Host kvm-01 is lost');
  expect(api.asked).toMatchObject([{ method: 'DELETE', url: '/v1/hosts/kvm-01?lost=true' }]);
});

test.each([
  ['another answer', 'y', 1],
  ['nobody there', undefined, 2],
])('host remove --lost with %s changes nothing', async (_case, says, exitCode) => {
  const ran = await stillpoint(api.url, ['host', 'remove', 'kvm-01', '--lost'], says === undefined ? {} : { says });
  expect(ran.exitCode).toBe(exitCode);
  expect(api.asked).toEqual([]);
});

test('host remove --lost --yes does not ask', async () => {
  api.inTurn({ body: host({ state: 'lost' }) });
  expect(await stillpoint(api.url, ['host', 'remove', 'kvm-01', '--lost', '--yes'])).toMatchObject({
    exitCode: 0,
    err: '',
  });
});

test('vms tells who holds which VM frozen since when, and which hosts are silent', async () => {
  const hold = {
    snapshotId: id,
    window: `${id}.1`,
    installation: 'i',
    reservedAt: '2026-11-21T12:00:00.000Z',
    freezeState: 'still-frozen' as const,
    frozenSince: '2026-11-21T12:00:01.000Z',
    detail: 'the guest agent is stopped; start it',
    windowLimitMs: 30_000,
  };
  api.inTurn({
    body: {
      vms: [vm({ hold }), vm({ name: 'db-1', host: 'kvm-02', stale: true })],
      hosts: [
        { name: 'kvm-01', reachable: true, error: null },
        { name: 'kvm-02', reachable: false, error: { code: 'HOST_UNREACHABLE', text: 'Gone.' } },
      ],
    },
  });
  const { exitCode, out } = await stillpoint(api.url, ['vms']);
  expect(exitCode).toBe(0);
  expect(out).toMatch(new RegExp(`web-1 .* still-frozen +2026-11-21 12:00:01 UTC \\(.+\\) +snapshot ${id}`));
  expect(out).toMatch(/db-1 .* running, as of 2026-11-21 12:00:00 UTC/);
  expect(out).toContain('kvm-02 does not answer: HOST_UNREACHABLE Gone.');
  expect(out).toContain('web-1: still-frozen: the guest agent is stopped; start it');
});

test('vms of one VM tells what each of its disks is', async () => {
  const local = {
    target: 'vda',
    kind: 'file' as const,
    path: '/images/a.qcow2',
    image: '',
    format: 'qcow2',
    sizeBytes: 1 << 30,
    serial: '',
    writable: true,
    leftOut: null,
    chainDepth: 1,
  };
  const volume = { ...local, target: 'vdc', kind: 'rbd' as const, path: '', image: 'volumes/volume-v', serial: 'v' };
  const cdrom = { ...local, target: 'sda', path: '', sizeBytes: 0, writable: false, leftOut: 'read-only' };
  api.inTurn({ body: vm({ disks: [local, volume, cdrom] }) });
  const { exitCode, out } = await stillpoint(api.url, ['vms', 'web-1']);
  expect(exitCode).toBe(0);
  expect(api.asked).toMatchObject([{ method: 'GET', url: '/v1/vms/web-1' }]);
  expect(out).toMatch(/^vda +file of the host +1\.0 GiB +\/images\/a\.qcow2 +- +may be taken$/m);
  expect(out).toMatch(/^vdc +Ceph image +1\.0 GiB +volumes\/volume-v +v +may be taken$/m);
  expect(out).toMatch(/^sda +file of the host +- +- +- +cannot be taken: read-only$/m);
});

test('thaw tells what was thawed and which window was lost', async () => {
  api.inTurn({
    body: { vm: { uuid: 'u', name: 'web-1' }, host: 'kvm-01', thawedFileSystems: 3, lostWindow: `${id}.1` },
  });
  const ran = await stillpoint(api.url, ['thaw', 'web 1/ü']);
  expect(ran.out).toBe(`Thawed web-1 on kvm-01: 3 file systems. Window ${id}.1 was open and has lost its freeze.\n`);
  expect(api.asked).toMatchObject([{ method: 'POST', url: '/v1/vms/web%201%2F%C3%BC/thaw' }]);
});

test('--json prints what the API has answered', async () => {
  const answer = { hosts: [host()] };
  api.inTurn({ body: answer });
  const { out } = await stillpoint(api.url, ['host', 'list', '--json']);
  expect(JSON.parse(out)).toEqual(answer);
});

test('escape sequences in names reach the terminal neither in tables nor in JSON', async () => {
  const hostile = 'web\u001b]0;owned\u0007-1\u009b2J\u202e\nroot';
  api.inTurn({ body: { vms: [vm({ name: hostile })], hosts: [] } });
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not come through
  const obeyed = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202e]/;
  const asTable = await stillpoint(api.url, ['vms']);
  expect(asTable.out).not.toMatch(obeyed);
  expect(asTable.out).toContain('-1');
  const asJson = await stillpoint(api.url, ['--json', 'vms']);
  expect(asJson.out).not.toMatch(obeyed);
  expect(JSON.parse(asJson.out).vms[0].name).toBe(hostile);
  api.inTurn(problem(409, 'VM_BUSY', hostile));
  expect((await stillpoint(api.url, ['thaw', 'web-1'])).err).not.toMatch(obeyed);
});
