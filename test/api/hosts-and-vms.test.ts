import { HostError } from '@stillpoint/engine/hosts/errors.js';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';

import { someVm, unreachable } from './fakes.js';
import { ServedApi } from './served.js';

describe('hosts and VMs over the REST API', () => {
  let served: ServedApi;
  beforeAll(async () => {
    served = await ServedApi.start();
  });
  afterAll(() => served.stop());
  beforeEach(() => served.hosts.all.clear());

  describe('hosts', () => {
    it('are added, listed with what they say of themselves, and removed', async () => {
      served.hosts.add('hv-1.example.org');
      const added = await served.ask('POST', '/v1/hosts', { name: 'hv-1.example.org', address: '[::1]:8701' });
      expect(added).toMatchObject({
        status: 201,
        headers: { location: '/v1/hosts/hv-1.example.org' },
        body: { state: 'active', reachable: true, hypervisor: 'simulated' },
      });
      expect((await served.ask('GET', '/v1/hosts')).body.hosts).toContainEqual(added.body);
      expect(await served.ask('DELETE', '/v1/hosts/hv-1.example.org')).toMatchObject({ status: 204, body: undefined });
      expect(await served.ask('DELETE', '/v1/hosts/hv-1.example.org')).toMatchObject({
        status: 404,
        body: { code: 'HOST_NOT_FOUND' },
      });
    });

    it('are added while they do not answer, and say why', async () => {
      served.hosts.add('hv-2').down = unreachable('hv-2');
      const added = await served.ask('POST', '/v1/hosts', { name: 'hv-2', address: '10.0.0.2:8701' });
      expect(added).toMatchObject({ status: 201, body: { reachable: false, error: { code: 'HOST_UNREACHABLE' } } });
    });

    it('are there once', async () => {
      const host = { name: 'hv-3', address: 'hv-3:8701' };
      await served.ask('POST', '/v1/hosts', host);
      expect(await served.ask('POST', '/v1/hosts', host)).toMatchObject({ status: 409, body: { code: 'HOST_EXISTS' } });
    });

    it('stay as lost by an administrator’s word', async () => {
      await served.ask('POST', '/v1/hosts', { name: 'hv-4', address: 'hv-4:8701' });
      const lost = await served.ask('DELETE', '/v1/hosts/hv-4?lost=true');
      expect(lost).toMatchObject({ status: 200, body: { name: 'hv-4', state: 'lost', reachable: false } });
      expect((await served.ask('DELETE', '/v1/hosts/hv-5?lost=true')).status).toBe(404);
    });

    it.each([
      [{ address: 'a:1' }, 'name'],
      [{ name: 'UPPER', address: 'a:1' }, 'name'],
      [{ name: '../x', address: 'a:1' }, 'name'],
      [{ name: 'a', address: 'a' }, 'address'],
      [{ name: 'a', address: 'a:65536' }, 'address'],
      [{ name: 'a', address: 'http://a:1' }, 'address'],
      [{ name: 'a', address: 'a:1', port: 1 }, 'port'],
    ])('refuse %j and name the field', async (body, field) => {
      expect(await served.ask('POST', '/v1/hosts', body)).toMatchObject({
        status: 400,
        body: { code: 'INPUT_INVALID', field },
      });
    });

    it('refuse a name in the path that can be none', async () => {
      expect((await served.ask('DELETE', '/v1/hosts/A%2F..')).status).toBe(400);
      expect((await served.ask('DELETE', '/v1/hosts/a?lost=maybe')).status).toBe(400);
    });
  });

  describe('VMs', () => {
    it('are listed with who holds them and since when they are frozen', async () => {
      const frozen = someVm({
        name: 'db-1',
        hold: {
          operation: 'op',
          window: 'op.1',
          installation: 'here',
          reservedUnixMs: Date.parse('2026-11-21T12:00:00Z'),
          freezeState: 'frozen',
          frozenUnixMs: Date.parse('2026-11-21T12:00:01Z'),
          freezeDetail: '',
          windowLimitMs: 30_000,
        },
      });
      served.hosts.add('host-a', someVm(), frozen);
      const { body } = await served.ask('GET', '/v1/vms');
      expect(body.vms).toMatchObject([
        { name: 'web-1', host: 'host-a', stale: false, hold: null, disks: [{ target: 'vda', leftOut: null }] },
        { name: 'db-1', hold: { snapshotId: 'op', freezeState: 'frozen', frozenSince: '2026-11-21T12:00:01.000Z' } },
      ]);
    });

    it('are shown with what each disk is: the host’s, or a Ceph image with its serial', async () => {
      const vm = someVm();
      const volume = {
        target: 'vdc',
        kind: 'rbd' as const,
        path: '',
        image: 'volumes/volume-0a3e0b1c-0000-4000-8000-000000000001',
        format: 'raw',
        serial: '0a3e0b1c-0000-4000-8000-000000000001',
      };
      const disks = vm.disks.flatMap((disk) => [disk, { ...disk, ...volume }]);
      served.hosts.add('host-a', { ...vm, disks });
      expect((await served.ask('GET', `/v1/vms/${vm.uuid}`)).body.disks).toMatchObject([
        { target: 'vda', kind: 'file', path: '/images/a.qcow2', serial: '', leftOut: null },
        { ...volume, leftOut: null },
      ]);
    });

    it('show a freeze that nobody of ours holds', async () => {
      const vm = someVm();
      served.hosts.add('host-a', { ...vm, hold: { ...vm.hold, freezeState: 'maybe-frozen', freezeDetail: 'watched' } });
      const { body } = await served.ask('GET', `/v1/vms/${vm.uuid}`);
      expect(body.hold).toMatchObject({
        snapshotId: '',
        freezeState: 'maybe-frozen',
        detail: 'watched',
        frozenSince: null,
      });
    });

    it('are found by UUID in any case, and by name', async () => {
      const vm = someVm({ name: 'only one' });
      served.hosts.add('host-a', vm);
      expect((await served.ask('GET', `/v1/vms/${vm.uuid.toUpperCase()}`)).body.name).toBe('only one');
      expect((await served.ask('GET', '/v1/vms/only%20one')).body.uuid).toBe(vm.uuid);
    });

    it('of one name are told apart by their UUIDs', async () => {
      const [one, other] = [someVm(), someVm()];
      served.hosts.add('host-a', one);
      served.hosts.add('host-b', other);
      const answer = await served.ask('GET', '/v1/vms/web-1');
      expect(answer).toMatchObject({ status: 409, body: { code: 'VM_NAME_AMBIGUOUS' } });
      expect(answer.body.vms.map((vm: { uuid: string }) => vm.uuid)).toEqual([one.uuid, other.uuid]);
    });

    it('that were migrated are where they run', async () => {
      const vm = someVm();
      served.hosts.add('host-a', { ...vm, state: 'shut-off' });
      served.hosts.add('host-b', vm);
      expect((await served.ask('GET', `/v1/vms/${vm.uuid}`)).body.host).toBe('host-b');
      served.hosts.add('host-c', vm);
      expect(await served.ask('GET', `/v1/vms/${vm.uuid}`)).toMatchObject({
        status: 409,
        body: { code: 'VM_AMBIGUOUS' },
      });
    });

    it('of a host that does not answer are what it said last', async () => {
      const host = served.hosts.add('host-a', someVm());
      await served.ask('GET', '/v1/vms');
      host.down = unreachable('host-a');
      const { body } = await served.ask('GET', '/v1/vms');
      expect(body).toMatchObject({
        vms: [{ name: 'web-1', stale: true }],
        hosts: [{ name: 'host-a', reachable: false, error: { code: 'HOST_UNREACHABLE' } }],
      });
    });

    it('of a host whose libvirt is away are what it said last, but who is frozen is told as it is now', async () => {
      const vm = someVm();
      const host = served.hosts.add('host-a', vm);
      await served.ask('GET', '/v1/vms');
      host.libvirtAway = new HostError('host-a', 'LIBVIRT_UNREACHABLE', 'libvirt is away.');
      const freezeDetail = 'Cannot thaw: libvirt is away. Start libvirtd.';
      host.vms = [{ ...vm, hold: { ...vm.hold, operation: 'op', freezeState: 'still-frozen', freezeDetail } }];
      const { body } = await served.ask('GET', '/v1/vms');
      expect(body).toMatchObject({
        vms: [{ stale: true, hold: { snapshotId: 'op', freezeState: 'still-frozen', detail: freezeDetail } }],
        hosts: [{ name: 'host-a', reachable: false, error: { code: 'LIBVIRT_UNREACHABLE' } }],
      });
    });

    it('that nobody knows are 404, which names the hosts that did not answer', async () => {
      served.hosts.add('host-a').down = unreachable('host-a');
      expect(await served.ask('GET', '/v1/vms/web-9')).toMatchObject({
        status: 404,
        body: { code: 'VM_NOT_FOUND', unreachableHosts: ['host-a'] },
      });
    });

    it('are asked for once when many look at the same time, and kept for seconds', async () => {
      const kept = await served.anotherEngine({ vmsKeptMs: 60_000 });
      const host = kept.hosts.add('host-a', someVm());
      await Promise.all([1, 2, 3].map(() => kept.ask('GET', '/v1/vms')));
      await kept.ask('GET', '/v1/vms');
      expect(host.listed).toBe(1);
    });
  });

  describe('thaw', () => {
    it('says what it thawed and which window has lost its freeze', async () => {
      const vm = someVm();
      served.hosts.add('host-a', vm).thaw = async () => ({ thawedFileSystems: 3, lostWindow: 'op.1' });
      expect(await served.ask('POST', `/v1/vms/${vm.name}/thaw`)).toMatchObject({
        status: 200,
        body: { host: 'host-a', thawedFileSystems: 3, lostWindow: 'op.1' },
      });
    });

    it.each([
      ['AGENT_NOT_CONNECTED', 409],
      ['VM_NOT_RUNNING', 409],
      ['STILL_FROZEN', 409],
      ['HOST_UNREACHABLE', 503],
    ])('passes the host’s %s on as a %i', async (code, status) => {
      const vm = someVm();
      served.hosts.add('host-a', vm).thaw = async () =>
        Promise.reject(new HostError('host-a', code, 'No.', { advice: 'Do this.' }));
      expect(await served.ask('POST', `/v1/vms/${vm.uuid}/thaw`)).toMatchObject({
        status,
        body: { code, detail: 'No. Do this.', host: 'host-a' },
      });
    });
  });
});
