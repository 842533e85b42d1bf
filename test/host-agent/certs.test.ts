import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { credentialsFrom } from '@stillpoint/engine/hosts/credentials.js';
import { HostPool } from '@stillpoint/engine/hosts/pool.js';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { buildHostAgent, command, hostFolder, startHostAgent } from './running.js';

beforeAll(buildHostAgent);

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

test('with the certificates that certs makes, the engine reaches this host and no other name is taken for it', async () => {
  const { folder, config, port, remove } = await hostFolder();
  closing.push(remove);
  const tls = join(folder, 'tls');
  for (const [args, file] of [
    [['init'], 'ca'],
    [['engine'], 'engine'],
    [['host', 'kvm-01'], 'kvm-01'],
  ] as const) {
    expect(await command('certs', ...args, '--out', tls)).toEqual({
      code: 0,
      stdout: `${join(tls, `${file}-key.pem`)}\n${join(tls, `${file}.pem`)}\n`,
      stderr: '',
    });
  }

  const agent = startHostAgent(config, {
    STILLPOINT_HOST_AGENT_INSECURE: 'false',
    STILLPOINT_HOST_AGENT_TLS_CA: join(tls, 'ca.pem'),
    STILLPOINT_HOST_AGENT_TLS_CERTIFICATE: join(tls, 'kvm-01.pem'),
    STILLPOINT_HOST_AGENT_TLS_KEY: join(tls, 'kvm-01-key.pem'),
  });
  closing.push(async () => {
    agent.child.kill('SIGTERM');
    await agent.exited;
  });
  expect(await agent.logged('listening')).toMatchObject({ insecure: false });

  const address = `127.0.0.1:${port}`;
  const rows = ['kvm-01', 'kvm-02'].map((name) => ({ name, address, state: 'active' as const }));
  const security = await credentialsFrom({
    tls: { ca: join(tls, 'ca.pem'), certificate: join(tls, 'engine.pem'), key: join(tls, 'engine-key.pem') },
  });
  const hosts = await HostPool.open({ listHosts: async () => rows }, security);
  closing.push(() => hosts.close());
  expect(await hosts.host('kvm-01').facts()).toMatchObject({ hypervisor: 'simulated' });
  await expect(hosts.host('kvm-02').facts()).rejects.toMatchObject({ code: 'HOST_IDENTITY' });
});

test('certs replaces no file, and says what is missing', async () => {
  const { folder, remove } = await hostFolder();
  closing.push(remove);
  const without = await command('certs', 'engine', '--out', folder);
  expect(without).toMatchObject({ code: 1, stderr: expect.stringContaining(`certs init --out ${folder}`) });
  await command('certs', 'init', '--out', folder);
  const key = await readFile(join(folder, 'ca-key.pem'), 'utf8');
  const again = await command('certs', 'init', '--out', folder);
  expect(again).toMatchObject({ code: 1, stderr: expect.stringContaining('is not replaced') });
  expect(await readFile(join(folder, 'ca-key.pem'), 'utf8')).toBe(key);
});
