import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConfigError, readConfig } from '@stillpoint/host-agent/config.js';
import { version } from '@stillpoint/host-agent/version.js';
import { afterAll, beforeAll, expect, test } from 'vitest';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-config-'));
});
afterAll(() => rm(folder, { recursive: true }));

let files = 0;
async function config(text: string, env: NodeJS.ProcessEnv = {}) {
  const path = join(folder, `${files++}.yaml`);
  await writeFile(path, text);
  return readConfig({ path, env });
}

test('an empty file means the defaults', async () => {
  expect(await config('')).toMatchObject({
    hostName: hostname(),
    listen: '0.0.0.0:8701',
    insecure: false,
    stateFolder: '/var/lib/stillpoint/host-agent',
    hypervisor: 'libvirt',
    libvirt: { uri: 'qemu:///system' },
    disks: { locations: ['/var/lib/libvirt/images', '/var/lib/nova/instances'] },
    freeze: { windowLimitMs: 30_000, windowLimitWindowsMs: 8_000, thawTimeoutS: 60, agentTimeoutAfterS: 'default' },
    snapshot: { lateSwitchMs: 35_000 },
  });
});

test('the example file holds the defaults and nothing else', async () => {
  const example = readFileSync(new URL('../../host-agent/systemd/host-agent.yaml', import.meta.url), 'utf8');
  expect(await config(example)).toEqual(await config(''));
});

test('every key may come from the environment, which wins over the file', async () => {
  const read = await config('listen: 127.0.0.1:1\nfreeze: { windowLimitMs: 5000, thawTimeoutS: 7 }', {
    STILLPOINT_HOST_AGENT_LISTEN: '127.0.0.1:2',
    STILLPOINT_HOST_AGENT_INSECURE: 'true',
    STILLPOINT_HOST_AGENT_HOST_NAME: '8701',
    STILLPOINT_HOST_AGENT_TLS_CA: '/x/ca.pem',
    STILLPOINT_HOST_AGENT_LIBVIRT_SOCKET: '/run/x.sock',
    STILLPOINT_HOST_AGENT_DISKS_LOCATIONS: '/a, /dev/vg0',
    STILLPOINT_HOST_AGENT_FREEZE_WINDOW_LIMIT_MS: '6000',
    STILLPOINT_HOST_AGENT_FREEZE_AGENT_TIMEOUT_AFTER_S: '9',
    STILLPOINT_HOST_AGENT_SIMULATED_VMS: '[{name: web-1, disks: [{target: vda}]}]',
    STILLPOINT_ENGINE_LISTEN: 'not ours',
  });
  expect(read).toMatchObject({
    listen: '127.0.0.1:2',
    insecure: true,
    hostName: '8701',
    tls: { ca: '/x/ca.pem', key: '/etc/stillpoint/tls/host-key.pem' },
    libvirt: { socket: '/run/x.sock' },
    disks: { locations: ['/a', '/dev/vg0'] },
    freeze: { windowLimitMs: 6_000, thawTimeoutS: 7, agentTimeoutAfterS: 9 },
    simulated: { vms: [{ name: 'web-1', disks: [{ target: 'vda' }] }] },
  });
});

test.each([
  ['an unknown key', 'lissten: 127.0.0.1:1', /lissten/],
  ['an unknown key below another', 'tls: { cert: /x }', /tls.*cert/],
  ['a relative path', 'stateFolder: state', /stateFolder must be an absolute path/],
  ['a listen address without a port', 'listen: localhost', /listen must be ADDRESS:PORT/],
  ['a window limit beyond a minute', 'freeze: { windowLimitMs: 60001 }', /freeze\.windowLimitMs/],
  ['a text where a number belongs', 'freeze: { thawTimeoutS: soon }', /freeze\.thawTimeoutS/],
  ['a list instead of keys', '- listen', /must hold keys and values/],
  ['no YAML', 'listen: [', /no valid YAML/],
  ['plain text beyond loopback', 'insecure: true\nlisten: 0.0.0.0:8701', /insecure.*loopback/],
  [
    'plain text on a name that only looks like loopback',
    'insecure: true\nlisten: 127.0.0.1.example.org:8701',
    /loopback/,
  ],
  ['an empty list of locations', 'disks: { locations: [] }', /disks\.locations/],
])('%s is an error that names the key', async (_what, text, message) => {
  const reading = config(text);
  await expect(reading).rejects.toThrow(ConfigError);
  await expect(reading).rejects.toThrow(message);
});

test.each(['127.0.0.1:0', '127.1.2.3:8701', '[::1]:8701', 'localhost:8701'])(
  'plain text is allowed on %s when asked for',
  async (listen) => {
    expect(await config(`insecure: true\nlisten: "${listen}"`)).toMatchObject({ listen, insecure: true });
  },
);

test('an unknown variable is an error, and a bad value is told by its variable', async () => {
  await expect(config('', { STILLPOINT_HOST_AGENT_LISSTEN: 'x' })).rejects.toThrow(
    /STILLPOINT_HOST_AGENT_LISSTEN: no key/,
  );
  await expect(config('', { STILLPOINT_HOST_AGENT_FREEZE_THAW_TIMEOUT_S: 'x' })).rejects.toThrow(
    /^STILLPOINT_HOST_AGENT_FREEZE_THAW_TIMEOUT_S: /,
  );
});

test('a file that was asked for and is missing is an error', () => {
  expect(() => readConfig({ path: join(folder, 'none.yaml'), env: {} })).toThrow(/none\.yaml cannot be read/);
  expect(() => readConfig({ env: { STILLPOINT_HOST_AGENT_CONFIG: join(folder, 'none.yaml') } })).toThrow(ConfigError);
});

test("the version is the package's", () => {
  const manifest = JSON.parse(readFileSync(new URL('../../host-agent/package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  expect(version).toBe(manifest.version);
});
