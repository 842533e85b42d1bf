import { once } from 'node:events';
import { LibvirtClient, type LibvirtClientOptions } from '@stillpoint/host-agent/libvirt/client.js';
import { isAgentUnresponsive, isNoDomain, LibvirtConnectionError } from '@stillpoint/host-agent/libvirt/errors.js';
import { Procedures } from '@stillpoint/host-agent/libvirt/procedures.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Arrivals, FakeLibvirtd, web1, writeDomain } from './fake-libvirtd.js';

let libvirtd: FakeLibvirtd;
const clients: LibvirtClient[] = [];

beforeEach(async () => {
  libvirtd = await FakeLibvirtd.start();
});

afterEach(async () => {
  for (const client of clients.splice(0)) await client.close();
  await libvirtd[Symbol.asyncDispose]();
});

function client(options: LibvirtClientOptions = {}): LibvirtClient {
  const made = new LibvirtClient({ socketPath: libvirtd.path, reconnectMinMs: 1, reconnectMaxMs: 5, ...options });
  clients.push(made);
  return made;
}

async function started(options: LibvirtClientOptions = {}): Promise<LibvirtClient> {
  const made = client(options);
  await made.start();
  return made;
}

describe('LibvirtClient', () => {
  it('opens the configured driver and knows the versions', async () => {
    const uris: string[] = [];
    libvirtd.answer(Procedures.connectOpen, (call) => {
      uris.push(call.body.optional((r) => r.string()) ?? '');
      call.reply();
    });
    const libvirt = await started({ uri: 'test:///default' });
    expect(libvirt.versions).toEqual({ libvirt: 9_000_000, hypervisor: 7_002_022 });
    expect(new Set(uris)).toEqual(new Set(['test:///default']));
  });

  it('waits for a libvirtd that is not there yet', async () => {
    await libvirtd.stop();
    const libvirt = client();
    const up = libvirt.start();
    await libvirtd.listen();
    await up;
    expect(libvirt.versions?.libvirt).toBe(9_000_000);
  });

  it('gives up the first wait when told to, and says why there is no connection', async () => {
    await libvirtd.stop();
    const libvirt = client();
    await expect(libvirt.start(AbortSignal.timeout(20))).rejects.toMatchObject({
      code: 'LIBVIRT_UNREACHABLE',
      message: expect.stringContaining('ENOENT'),
    });
  });

  it('says what to do when libvirtd asks for an authentication', async () => {
    libvirtd.authTypes = [2];
    const libvirt = client();
    const failure = await libvirt.start(AbortSignal.timeout(50)).catch((error: unknown) => error);
    expect((failure as Error).cause).toMatchObject({
      code: 'LIBVIRT_AUTH',
      message: expect.stringContaining('as root'),
    });
  });

  it('never reads a refused OPEN as the answer to the call that needed the connection', async () => {
    const libvirt = await started();
    libvirtd.answer(Procedures.connectOpen, (call) => call.fail({ number: 86 }));
    const frozen = Array.from({ length: 5 }, () => libvirt.fsFreeze(web1).catch((error: unknown) => error));
    const calls = await libvirtd.calls(Procedures.domainFsFreeze).take(4);
    for (const call of calls) call.reply((w) => w.int(1));
    const results = await Promise.all(frozen);
    expect(results.filter((result) => result === 1)).toHaveLength(4);
    const refused = results.find((result) => result !== 1);
    expect(refused).toMatchObject({ code: 'LIBVIRT_UNREACHABLE', outcome: 'not-sent' });
    expect(isAgentUnresponsive(refused)).toBe(false);
  });

  it('sends freeze and thaw for all file systems', async () => {
    const libvirt = await started();
    const frozen = libvirt.fsFreeze(web1);
    const freeze = await libvirtd.calls(Procedures.domainFsFreeze).next();
    expect(freeze.body.string()).toBe('web-1');
    freeze.body.opaque(16);
    expect([freeze.body.int(), freeze.body.uint(), freeze.body.uint(), freeze.body.remaining]).toEqual([7, 0, 0, 0]);
    freeze.reply((w) => w.int(3));
    expect(await frozen).toBe(3);
    const thawed = libvirt.fsThaw(web1);
    (await libvirtd.calls(Procedures.domainFsThaw).next()).reply((w) => w.int(3));
    expect(await thawed).toBe(3);
  });

  it('tells libvirt’s errors by their numbers', async () => {
    const libvirt = await started();
    libvirtd.answer(Procedures.domainLookupByName, (call) => call.fail({ number: 42, message: 'Domain not found' }));
    const error = await libvirt.lookupByName('web-2').catch((failure: unknown) => failure);
    expect(isNoDomain(error)).toBe(true);
    expect(isAgentUnresponsive(error)).toBe(false);
  });

  it('rejects a call at once, as not sent, while libvirtd is away', async () => {
    const libvirt = await started();
    const down = once(libvirt, 'down');
    await libvirtd.stop();
    await down;
    await expect(libvirt.fsThaw(web1)).rejects.toMatchObject({ code: 'LIBVIRT_UNREACHABLE', outcome: 'not-sent' });
  });

  it('rejects calls under way when it is closed', async () => {
    const libvirt = await started();
    const frozen = libvirt.fsFreeze(web1).catch((error: unknown) => error);
    await libvirtd.calls(Procedures.domainFsFreeze).next();
    await libvirt.close();
    expect(await frozen).toMatchObject({ code: 'LIBVIRT_UNREACHABLE', outcome: 'unknown' });
    await expect(libvirt.fsFreeze(web1)).rejects.toBeInstanceOf(LibvirtConnectionError);
  });
});

describe('Events', () => {
  it('of lifecycle, guest agent and block jobs are told with the domain', async () => {
    const libvirt = client();
    const told = new Arrivals<unknown>();
    libvirt.on('lifecycle', (event) => told.add(event));
    libvirt.on('agent', (event) => told.add(event));
    libvirt.on('blockJob', (event) => told.add(event));
    await libvirt.start();
    const events = libvirtd.connections[0];
    events?.event(318, (w) => {
      writeDomain(w.int(0));
      w.int(5).int(1);
    });
    events?.event(348, (w) => {
      writeDomain(w.int(2));
      w.int(2).int(2);
    });
    events?.event(339, (w) => {
      writeDomain(w.int(1));
      w.string('vda').int(4).int(3);
    });
    expect(await told.take(3)).toEqual([
      { domain: web1, event: 5, detail: 1 },
      { domain: web1, connected: false },
      { domain: web1, disk: 'vda', type: 4, status: 3 },
    ]);
  });

  it('that nobody asked for are ignored', async () => {
    const libvirt = client();
    const told = new Arrivals<unknown>();
    libvirt.on('agent', (event) => told.add(event));
    await libvirt.start();
    const events = libvirtd.connections[0];
    events?.event(999, (w) => w.int(1));
    events?.event(348, (w) => {
      writeDomain(w.int(2));
      w.int(1).int(1);
    });
    expect(await told.next()).toEqual({ domain: web1, connected: true });
  });

  it('are registered again after a restart of libvirtd, before the client says that it is up', async () => {
    const registered: number[] = [];
    libvirtd.answer(Procedures.eventRegister, (call) => {
      registered.push(call.body.int());
      call.reply((w) => w.int(registered.length));
    });
    const libvirt = await started();
    expect(registered.sort()).toEqual([0, 16, 18]);

    const down = once(libvirt, 'down');
    await libvirtd.stop();
    expect((await down)[0]).toMatchObject({ code: 'LIBVIRT_UNREACHABLE' });
    expect(libvirt.versions).toBeUndefined();
    registered.length = 0;
    libvirtd.answer(Procedures.connectGetLibVersion, (call) => call.reply((w) => w.uhyper(10_001_000n)));
    const up = once(libvirt, 'up');
    await libvirtd.listen();
    expect((await up)[0]).toEqual({ libvirt: 10_001_000, hypervisor: 7_002_022 });
    expect(registered.sort()).toEqual([0, 16, 18]);

    const answer = libvirt.lookupByName('web-1');
    (await libvirtd.calls(Procedures.domainLookupByName).next()).reply((w) => writeDomain(w));
    expect(await answer).toEqual(web1);
  });

  it('that make no sense end the connection, and a new one is opened', async () => {
    const libvirt = await started();
    const down = once(libvirt, 'down');
    const up = once(libvirt, 'up');
    libvirtd.connections[0]?.event(318, (w) => w.int(0));
    expect((await down)[0]).toMatchObject({ code: 'LIBVIRT_PROTOCOL' });
    await up;
    expect(libvirt.versions).toBeDefined();
  });
});

describe('Calls that libvirtd does not answer', () => {
  it('leave the fifth slot of their connection free, so that libvirtd keeps reading it', async () => {
    const libvirt = await started();
    const frozen = Array.from({ length: 9 }, () => libvirt.fsFreeze(web1));
    const calls = await libvirtd.calls(Procedures.domainFsFreeze).take(9);
    const perConnection = new Map<unknown, number>();
    for (const { connection } of calls) perConnection.set(connection, (perConnection.get(connection) ?? 0) + 1);
    expect(Math.max(...perConnection.values())).toBeLessThanOrEqual(4);
    for (const call of calls) call.reply((w) => w.int(1));
    expect(await Promise.all(frozen)).toEqual(Array(9).fill(1));
  });

  it('count as long as libvirtd has not answered, even when their callers gave up', async () => {
    const libvirt = await started();
    const hung = Array.from({ length: 12 }, () =>
      libvirt.fsFreeze(web1, { timeoutMs: 200 }).catch((error: unknown) => error),
    );
    const calls = await libvirtd.calls(Procedures.domainFsFreeze).take(12);
    for (const error of await Promise.all(hung))
      expect(error).toMatchObject({ code: 'LIBVIRT_CALL_TIMEOUT', outcome: 'unknown' });

    const waiting = await libvirt.fsFreeze(web1, { timeoutMs: 5 }).catch((error: unknown) => error);
    expect(waiting).toMatchObject({ code: 'LIBVIRT_CALL_TIMEOUT', outcome: 'not-sent' });

    const next = libvirt.fsFreeze(web1);
    calls[0]?.reply((w) => w.int(1));
    (await libvirtd.calls(Procedures.domainFsFreeze).next()).reply((w) => w.int(2));
    expect(await next).toBe(2);
  });

  it('never delay a thaw, a freeze status or a state', async () => {
    const libvirt = await started();
    const hung = Array.from({ length: 20 }, () => libvirt.fsFreeze(web1).catch((error: unknown) => error));
    await libvirtd.calls(Procedures.domainFsFreeze).take(12);
    const answers = Promise.all([
      libvirt.fsThaw(web1),
      libvirt.agentCommand(web1, '{"execute":"guest-fsfreeze-status"}', 1),
      libvirt.getState(web1),
    ]);
    (await libvirtd.calls(Procedures.domainFsThaw).next()).reply((w) => w.int(2));
    (await libvirtd.calls(Procedures.qemuAgentCommand).next()).reply((w) =>
      w.optional('{"return":"thawed"}', (o, text) => o.string(text)),
    );
    (await libvirtd.calls(Procedures.domainGetState).next()).reply((w) => w.int(1).int(1));
    expect(await answers).toEqual([2, '{"return":"thawed"}', { state: 1, reason: 1 }]);
    await libvirt.close();
    await Promise.all(hung);
  });

  it('can be given up while they wait for their turn', async () => {
    const libvirt = await started();
    const hung = Array.from({ length: 12 }, () => libvirt.fsFreeze(web1).catch((error: unknown) => error));
    await libvirtd.calls(Procedures.domainFsFreeze).take(12);
    const controller = new AbortController();
    const waiting = libvirt.fsFreeze(web1, { signal: controller.signal }).catch((error: unknown) => error);
    controller.abort();
    expect(await waiting).toMatchObject({ code: 'LIBVIRT_CALL_ABORTED', outcome: 'not-sent' });
    await libvirt.close();
    await Promise.all(hung);
  });

  it('do not keep the connections that they needed once they are answered', async () => {
    const libvirt = await started();
    const before = libvirtd.connections.length;
    const frozen = Array.from({ length: 12 }, () => libvirt.fsFreeze(web1));
    const calls = await libvirtd.calls(Procedures.domainFsFreeze).take(12);
    const further = libvirtd.connections.slice(before);
    expect(further.length).toBeGreaterThan(0);
    for (const call of calls) call.reply((w) => w.int(1));
    await Promise.all(frozen);
    const ordinary = new Set(calls.map((call) => call.connection));
    const kept = await Promise.race([...ordinary].map((connection) => connection.closed.then(() => ordinary.size - 1)));
    expect(kept).toBeLessThan(ordinary.size);
  });
});
