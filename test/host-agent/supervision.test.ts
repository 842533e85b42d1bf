import { readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { HostAgentService, Quiesce, type Verdict } from '@stillpoint/proto';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { ask, failure } from '../rpc/served.js';
import { buildHostAgent, clientOf, command, hostFolder, ready, startHostAgent, webUuid } from './running.js';

beforeAll(buildHostAgent);

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

async function folder(more?: string) {
  const made = await hostFolder(more);
  closing.push(made.remove);
  return made;
}

/** Starts it; it and its worker are gone when the test is. */
function start(config: string, env?: NodeJS.ProcessEnv) {
  const running = startHostAgent(config, env);
  closing.push(async () => {
    running.child.kill('SIGKILL');
    await running.exited;
    for (const { msg, pid } of running.lines) if (msg === 'worker started') killIfAlive(pid as number);
  });
  return running;
}

function killIfAlive(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It ended by itself.
  }
}

const operation = '11111111-1111-4111-8111-111111111111';
const ofWindow = { vmUuid: webUuid, windowId: `${operation}.1` };

async function freezeIn(port: number) {
  const client = clientOf(port);
  closing.push(() => client.close());
  await ready(client);
  await ask(client, HostAgentService.prepare, {
    ...ofWindow,
    operationId: operation,
    installationId: 'site-a',
    localDisks: [],
    setDisks: ['vda', 'vdb'],
    unquiescedDisks: [],
    quiesce: Quiesce.REQUIRED,
    windowLimitMs: 0,
  });
  const hold = client.holdCut();
  // It ends with its host agent, as it should.
  hold.on('error', () => {}).resume();
  hold.write({ message: { $case: 'begin', value: { ...ofWindow, cut: 'vda' } } });
  await ask(client, HostAgentService.freezeFileSystems, { ...ofWindow, cuts: ['vda'], freezeTimeoutMs: 0 });
  return client;
}

async function verdictOf(port: number): Promise<Verdict | undefined> {
  const client = clientOf(port);
  closing.push(() => client.close());
  await ready(client);
  return (await ask(client, HostAgentService.thawFileSystems, { ...ofWindow, reason: 'test' })).verdict;
}

test('a killed worker is started again and pays what it owes: the window is lost, and the verdict says why', async () => {
  const { config, port } = await folder();
  const agent = start(config);
  await agent.logged('listening');
  await freezeIn(port);
  const { pid } = await agent.logged('worker started');
  const from = agent.lines.length;
  process.kill(pid as number, 'SIGKILL');
  await agent.logged('listening', from);
  expect(await verdictOf(port)).toMatchObject({ held: false, lostReason: 'HOST_AGENT_RESTARTED' });
});

test('a worker that is stopped, and so silent, is killed within 2 s and started again', async () => {
  const { config } = await folder();
  const agent = start(config);
  const { pid } = await agent.logged('worker started');
  await agent.logged('listening');
  const from = agent.lines.length;
  process.kill(pid as number, 'SIGSTOP');
  expect(await agent.logged('the worker is silent: killing it', from)).toMatchObject({ pid, silentMs: 2_000 });
  const again = await agent.logged('listening', from);
  expect(again.process).not.toBe(pid);
});

test('a supervisor under systemd tells it that it has started, and then again and again that it lives', async () => {
  const { config, folder: own } = await folder();
  const told = join(own, 'told');
  await writeFile(join(own, 'systemd-notify'), `#!/bin/sh\necho "$NOTIFY_SOCKET $*" >>${told}\n`, { mode: 0o755 });
  await writeFile(told, '');
  const agent = start(config, {
    PATH: `${own}:${process.env.PATH}`,
    NOTIFY_SOCKET: '/run/systemd/notify',
    WATCHDOG_USEC: '1500000',
  });
  await agent.logged('supervisor started');
  const lines = async () => (await readFile(told, 'utf8')).trimEnd().split('\n');
  await expect.poll(async () => (await lines()).length, { timeout: 20_000 }).toBeGreaterThanOrEqual(4);
  expect(new Set(await lines())).toEqual(new Set(['/run/systemd/notify READY=1 WATCHDOG=1']));
});

test('SIGTERM with a guest frozen thaws, journals and ends with 0', async () => {
  const { config, port } = await folder();
  const agent = start(config);
  await agent.logged('listening');
  await freezeIn(port);
  agent.child.kill('SIGTERM');
  expect(await agent.exited).toEqual({ code: 0, signal: null });
  const next = start(config);
  await next.logged('listening');
  expect(await verdictOf(port)).toMatchObject({ held: false, lostReason: 'SHUTDOWN' });
});

test('a worker whose supervisor is killed thaws and leaves, and the next one gets its port', async () => {
  const { config, port } = await folder();
  const agent = start(config);
  await agent.logged('listening');
  await freezeIn(port);
  agent.child.kill('SIGKILL');
  const next = start(config);
  await next.logged('listening');
  expect(agent.lines.map(({ msg }) => msg)).toContain('stopping: thawing what is frozen');
  expect(await verdictOf(port)).toMatchObject({ held: false, lostReason: 'SHUTDOWN' });
});

test("a dead supervisor's worker that hangs is killed by its successor, which takes its leases over", async () => {
  const { config, port } = await folder();
  const agent = start(config);
  await agent.logged('listening');
  await freezeIn(port);
  const { pid } = await agent.logged('worker started');
  process.kill(pid as number, 'SIGSTOP');
  agent.child.kill('SIGKILL');
  const next = start(config);
  await next.logged('listening');
  expect(next.lines).toContainEqual(expect.objectContaining({ pid, msg: expect.stringContaining('killing it') }));
  expect(await verdictOf(port)).toMatchObject({ held: false, lostReason: 'HOST_AGENT_RESTARTED' });
});

test('a second host agent on the same state folder waits and leaves the first one alone', async () => {
  const { config } = await folder();
  const first = start(config);
  await first.logged('listening');
  const second = start(config);
  await second.logged('another worker has the state folder; waiting for its end');
  first.child.kill('SIGTERM');
  expect(await first.exited).toEqual({ code: 0, signal: null });
  await second.logged('listening');
  expect(first.lines.filter(({ msg }) => msg === 'worker started')).toHaveLength(1);
});

test('a host agent that waits for the state folder can be stopped', async () => {
  const { config } = await folder();
  const first = start(config);
  await first.logged('listening');
  const second = start(config);
  await second.logged('another worker has the state folder; waiting for its end');
  second.child.kill('SIGTERM');
  expect(await second.exited).toEqual({ code: 0, signal: null });
});

test('a configuration that is broken while it runs does not keep a worker from its restart', async () => {
  const { config } = await folder();
  const agent = start(config);
  const { pid } = await agent.logged('worker started');
  await agent.logged('listening');
  await writeFile(config, 'lissten: nonsense');
  const from = agent.lines.length;
  process.kill(pid as number, 'SIGKILL');
  expect(await agent.logged('listening', from)).toMatchObject({ hostName: 'kvm-01' });
});

test('a taken port keeps nobody from recovering, and is taken once it is free', async () => {
  const { config, port } = await folder();
  const squatter = createServer();
  await new Promise<void>((resolve) => squatter.listen(port, '127.0.0.1', resolve));
  const agent = start(config);
  await agent.logged('recovery has begun');
  await agent.logged('cannot serve yet; trying again every second');
  await new Promise((resolve) => squatter.close(resolve));
  expect(await agent.logged('listening')).toMatchObject({ listen: `127.0.0.1:${port}` });
});

test('without its certificate it recovers, says what is missing, and serves the administrator', async () => {
  const { config } = await folder();
  const agent = start(config, {
    STILLPOINT_HOST_AGENT_INSECURE: 'false',
    STILLPOINT_HOST_AGENT_TLS_CA: '/nowhere/ca.pem',
  });
  const trouble = await agent.logged('cannot serve yet; trying again every second');
  expect(trouble).toMatchObject({ err: { message: expect.stringContaining('/nowhere/ca.pem cannot be read') } });
  expect(await command('--config', config, 'vms')).toMatchObject({ code: 0, stdout: expect.stringContaining('web-1') });
});

test('without libvirt it starts, answers GetHost, and stops', async () => {
  const { config, port } = await folder();
  const agent = start(config, {
    STILLPOINT_HOST_AGENT_HYPERVISOR: 'libvirt',
    STILLPOINT_HOST_AGENT_LIBVIRT_SOCKET: '/nowhere/libvirt-sock',
  });
  await agent.logged('listening');
  const client = clientOf(port);
  closing.push(() => client.close());
  const host = await ask(client, HostAgentService.getHost, {});
  expect(host).toMatchObject({ hypervisor: 'libvirt', hypervisorReachable: false, canQuiesce: false });
  expect(await failure(ask(client, HostAgentService.listVms, {}))).toMatchObject({ reason: 'LIBVIRT_UNREACHABLE' });
  agent.child.kill('SIGTERM');
  expect(await agent.exited).toEqual({ code: 0, signal: null });
});

test('a state folder that cannot be made is told, and is no end of the restarts', async () => {
  const { config } = await folder();
  const agent = start(config, { STILLPOINT_HOST_AGENT_STATE_FOLDER: join(config, 'below-a-file') });
  await agent.logged('the worker died; it is restarted');
  const from = agent.lines.length;
  await agent.logged('the worker died; it is restarted', from);
  expect(agent.child.exitCode).toBeNull();
});

test('an unusable configuration ends with 78 and names the key', async () => {
  const { config } = await folder('lissten: 127.0.0.1:1\n');
  const ended = await command('--config', config);
  expect(ended.code).toBe(78);
  expect(ended.stderr).toContain('lissten');
});

test('the administrator lists VMs and releases one, whoever holds it', async () => {
  const { config, port } = await folder();
  const agent = start(config);
  await agent.logged('listening');
  await freezeIn(port);
  const before = await command('--config', config, 'vms');
  expect(before.stdout).toMatch(
    new RegExp(`web-1\\s+${webUuid}\\s+running\\s+${operation} \\(site-a\\)\\s+frozen since`),
  );
  const released = await command('--config', config, 'release', 'web-1');
  expect(released).toMatchObject({ code: 0, stdout: `Released web-1: operation ${operation} of site-a held it.\n` });
  const after = await command('--config', config, 'vms', '--json');
  expect(JSON.parse(after.stdout)).toMatchObject([{ name: 'web-1', hold: { operationId: '' } }]);
  expect(await command('--config', config, 'release', webUuid)).toMatchObject({ stdout: `Nobody held ${webUuid}.\n` });
});

test('the administrator is told when no host agent runs, and when there is no such VM', async () => {
  const { config } = await folder();
  expect(await command('--config', config, 'vms')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('No host agent answers'),
  });
  const agent = start(config);
  await agent.logged('listening');
  const unknown = await command('--config', config, 'release', 'web-2');
  expect(unknown).toMatchObject({ code: 1, stderr: expect.stringContaining('no VM called web-2') });
});
