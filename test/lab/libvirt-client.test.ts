/**
 * The RPC client against a real libvirtd and its built-in driver `test:///default`, which has one domain and no guest: what the bytes mean
 * is judged by libvirt itself here, and not by our own idea of them.
 */
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DomainState, DomainXmlFlag, LibvirtClient } from '@stillpoint/host-agent/libvirt/client.js';
import { ErrorNumber, isNoDomain } from '@stillpoint/host-agent/libvirt/errors.js';
import { Program } from '@stillpoint/host-agent/libvirt/procedures.js';
import { connectSocket, encodeMessage } from '@stillpoint/host-agent/libvirt/rpc.js';
import { Libvirtd } from '@stillpoint/lab/libvirtd.js';
import { ensurePackages, VM_REQUIREMENTS } from '@stillpoint/lab/packages.js';
import { ProcessTable } from '@stillpoint/lab/processes.js';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';

let folder: string;
let libvirtd: Libvirtd;
let client: LibvirtClient;

beforeAll(async () => {
  await ensurePackages(VM_REQUIREMENTS, () => {});
  folder = await mkdtemp(join(tmpdir(), 'sp-libvirt-'));
  libvirtd = new Libvirtd('libvirtd', folder, 'root', 'tcg', new ProcessTable(join(folder, 'processes.json')));
  await libvirtd.start();
});

afterAll(async () => {
  await libvirtd.stop();
  await rm(folder, { recursive: true, force: true });
});

beforeEach(async () => {
  await libvirtd.start(); // where a test failed while it was away
  client = new LibvirtClient({ uri: 'test:///default', socketPath: libvirtd.socket });
  await client.start(AbortSignal.timeout(30_000));
});

afterEach(async () => {
  await client.close();
});

describe('A real libvirtd', () => {
  it('tells its version', async () => {
    const printed = await libvirtd.virsh(['version', '--daemon']);
    const [, major, minor, release] = /Running against daemon: (\d+)\.(\d+)\.(\d+)/.exec(printed) ?? [];
    expect(client.versions?.libvirt).toBe(Number(major) * 1_000_000 + Number(minor) * 1_000 + Number(release));
  });

  it('lists, finds and describes its domain', async () => {
    const domains = await client.listAllDomains();
    const domain = await client.lookupByName('test');
    expect(domains).toContainEqual(domain);
    expect(await client.lookupByUuid(domain.uuid)).toEqual(domain);
    expect(await client.getState(domain)).toMatchObject({ state: DomainState.running });
    expect(await client.getXml(domain, DomainXmlFlag.inactive)).toContain(domain.uuid);
    expect(await client.hasManagedSaveImage(domain)).toBe(false);
  });

  it('says by number that there is no such domain', async () => {
    const error = await client.lookupByName('nobody').catch((failure: unknown) => failure);
    expect(isNoDomain(error)).toBe(true);
  });

  it('says by number what its driver cannot do', async () => {
    const domain = await client.lookupByName('test');
    const error = await client.getBlockJobInfo(domain, 'vda').catch((failure: unknown) => failure);
    expect(error).toMatchObject({ number: ErrorNumber.noSupport });
  });

  it('does not know the qemu program’s calls for another driver, and the connection survives that', async () => {
    const domain = await client.lookupByName('test');
    const error = await client.agentCommand(domain, '{"execute":"guest-ping"}', 1).catch((failure: unknown) => failure);
    expect(error).toMatchObject({ code: 'LIBVIRT_ERROR' });
    expect(await client.fsFreeze(domain)).toBeGreaterThan(0);
    expect(await client.fsThaw(domain)).toBeGreaterThan(0);
  });

  it('tells of a suspended and resumed domain', async () => {
    const domain = await client.lookupByName('test');
    const suspended = once(client, 'lifecycle');
    await client.suspend(domain);
    expect(await suspended).toEqual([{ domain, event: 3, detail: 0 }]);
    expect(await client.getState(domain)).toMatchObject({ state: DomainState.paused });
    const resumed = once(client, 'lifecycle');
    await client.resume(domain);
    expect(await resumed).toEqual([{ domain, event: 4, detail: 0 }]);
  });

  it('defines a domain and tells of it', async () => {
    const defined = once(client, 'lifecycle');
    const domain = await client.defineXml(
      "<domain type='test'><name>fresh</name><memory>1024</memory><os><type>hvm</type></os></domain>",
    );
    expect(await defined).toEqual([{ domain, event: 0, detail: 0 }]);
    expect(domain.id).toBe(-1);
    expect(await client.getState(domain)).toMatchObject({ state: DomainState.shutOff });
  });

  it('answers our keepalive pings', async () => {
    const socket = await connectSocket(libvirtd.socket);
    const header = { program: Program.keepalive, type: 2, serial: 0, status: 0 };
    const chunk = once(socket, 'data');
    socket.write(encodeMessage({ ...header, procedure: 1 }, () => {}));
    expect((await chunk)[0]).toEqual(encodeMessage({ ...header, procedure: 2 }, () => {}));
    socket.destroy();
  });

  it('is found again after it was killed, and its events come again', async () => {
    const down = once(client, 'down');
    const up = once(client, 'up');
    await libvirtd.kill();
    expect((await down)[0]).toMatchObject({ code: 'LIBVIRT_UNREACHABLE' });
    await expect(client.listAllDomains()).rejects.toMatchObject({ code: 'LIBVIRT_UNREACHABLE', outcome: 'not-sent' });
    await libvirtd.start();
    await up;
    const suspended = once(client, 'lifecycle');
    await client.suspend(await client.lookupByName('test'));
    expect((await suspended)[0]).toMatchObject({ event: 3 });
    await client.resume(await client.lookupByName('test'));
  });

  it('that stands still is noticed by its silence', async () => {
    const quick = new LibvirtClient({
      uri: 'test:///default',
      socketPath: libvirtd.socket,
      keepaliveIntervalMs: 50,
      keepaliveCount: 2,
    });
    await quick.start(AbortSignal.timeout(30_000));
    const down = once(quick, 'down');
    libvirtd.freeze();
    expect((await down)[0]).toMatchObject({
      code: 'LIBVIRT_UNREACHABLE',
      message: expect.stringContaining('keepalive'),
    });
    const up = once(quick, 'up');
    libvirtd.cont();
    await up;
    expect(await quick.lookupByName('test')).toMatchObject({ name: 'test' });
    await quick.close();
  });
});
