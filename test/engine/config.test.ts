import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConfigError, hostAndPort, readConfig } from '@stillpoint/engine/config.js';
import { version } from '@stillpoint/engine/version.js';
import { afterAll, beforeAll, expect, test } from 'vitest';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-engine-config-'));
});
afterAll(() => rm(folder, { recursive: true }));

let files = 0;
async function config(text: string, env: NodeJS.ProcessEnv = {}) {
  const path = join(folder, `${files++}.yaml`);
  await writeFile(path, text);
  return readConfig({ path, env });
}

test('an empty file means the defaults', async () => {
  expect(await config('')).toEqual({
    listen: '127.0.0.1:8700',
    stateFolder: '/var/lib/stillpoint/engine',
    role: 'all',
    hosts: {
      tls: {
        ca: '/etc/stillpoint/tls/ca.pem',
        certificate: '/etc/stillpoint/tls/engine.pem',
        key: '/etc/stillpoint/tls/engine-key.pem',
      },
    },
    openstack: {
      pools: ['volumes'],
      checkAttachment: true,
      snapshotsCountGigabytes: true,
      undoWaitMs: 60_000,
      giveUpCreatingMs: 600_000,
      requestTimeoutMs: 30_000,
      windowRequestTimeoutMs: 8_000,
      rpcTimeoutMs: 60_000,
    },
    windowSlots: 4,
    reconcileEveryMs: 3_600_000,
    logLevel: 'info',
  });
});

test('the example file holds the defaults and nothing else', async () => {
  const example = readFileSync(new URL('../../engine/systemd/engine.yaml', import.meta.url), 'utf8');
  expect(await config(example)).toEqual(await config(''));
});

test('every key may come from the environment, which wins over the file', async () => {
  const read = await config('listen: 127.0.0.1:1\nwindowSlots: 2', {
    STILLPOINT_ENGINE_LISTEN: '[::1]:2',
    STILLPOINT_ENGINE_STATE_FOLDER: '/x',
    STILLPOINT_ENGINE_ROLE: 'worker',
    STILLPOINT_ENGINE_HOSTS_TLS_CA: '/x/ca.pem',
    STILLPOINT_ENGINE_WINDOW_SLOTS: '3',
    STILLPOINT_ENGINE_LOG_LEVEL: 'debug',
    STILLPOINT_HOST_AGENT_LISTEN: 'not ours',
  });
  expect(read).toMatchObject({
    listen: '[::1]:2',
    stateFolder: '/x',
    role: 'worker',
    hosts: { tls: { ca: '/x/ca.pem', key: '/etc/stillpoint/tls/engine-key.pem' } },
    windowSlots: 3,
    logLevel: 'debug',
  });
  expect(await config('', { STILLPOINT_ENGINE_HOSTS_PLAIN: 'true' })).toMatchObject({ hosts: { plain: true } });
  expect(
    await config('openstack: { cloud: lab }', {
      STILLPOINT_ENGINE_OPENSTACK_CLOUD: '2026',
      STILLPOINT_ENGINE_OPENSTACK_POOLS: '[volumes, fast]',
      STILLPOINT_ENGINE_OPENSTACK_CHECK_ATTACHMENT: 'false',
      STILLPOINT_ENGINE_OPENSTACK_UNDO_WAIT_MS: '1000',
    }),
  ).toMatchObject({
    openstack: { cloud: '2026', pools: ['volumes', 'fast'], checkAttachment: false, undoWaitMs: 1000 },
  });
});

test.each(['0.0.0.0:8700', '[::]:8700', '192.168.1.2:8700', 'engine.example.org:8700', '8700', '128.0.0.1:8700'])(
  'the API is refused on %s, because it knows no authentication',
  async (listen) => {
    await expect(config(`listen: '${listen}'`)).rejects.toThrow(/listen must be ADDRESS:PORT on this machine only/);
  },
);

test.each([
  ['an unknown key', 'listn: 127.0.0.1:1', /Unrecognized key: "listn"/],
  ['an unknown key below', 'hosts: { tls: { cert: /x } }', /hosts\.tls Unrecognized key: "cert"/],
  ['a port that there is not', 'listen: 127.0.0.1:70000', /listen must have a port up to 65535/],
  ['both ways to talk to hosts', 'hosts: { plain: true, tls: { ca: /x } }', /hosts has both tls and plain/],
  ['a relative path', 'stateFolder: engine', /stateFolder must be an absolute path/],
  ['no slot at all', 'windowSlots: 0', /windowSlots/],
  ['what is no YAML', 'listen: [', /is no valid YAML/],
  ['a list', '- listen', /must hold keys and values/],
])('%s is an error that names the file', async (_case, text, expected) => {
  const reading = config(text);
  await expect(reading).rejects.toThrow(ConfigError);
  await expect(reading).rejects.toThrow(expected);
  await expect(reading).rejects.toThrow(folder);
});

test('an error of a variable names the variable', async () => {
  await expect(config('', { STILLPOINT_ENGINE_WINDOW_SLOTS: 'many' })).rejects.toThrow(
    /^STILLPOINT_ENGINE_WINDOW_SLOTS: windowSlots /,
  );
  await expect(config('', { STILLPOINT_ENGINE_PORT: '1' })).rejects.toThrow(/^STILLPOINT_ENGINE_PORT: no key/);
});

test('a database is named by a URL, and what that leaves out by the variables of PostgreSQL', async () => {
  const database = async (url: string) => (await config('', { STILLPOINT_ENGINE_DATABASE_URL: url })).database;
  expect(await database('postgresql://stillpoint@db.example.org:5433/catalogue')).toEqual({
    url: { host: 'db.example.org', port: 5433, user: 'stillpoint', database: 'catalogue' },
    plain: false,
  });
  expect(await database('postgres:///catalogue?host=/run/postgresql&user=st%20illpoint')).toMatchObject({
    url: { host: '/run/postgresql', port: undefined, user: 'st illpoint', database: 'catalogue' },
  });
  expect(await database('postgresql://[::1]')).toMatchObject({ url: { host: '::1', user: undefined } });
});

test.each([
  ['url: mysql://db/x', 'url must be postgresql://USER@HOST:PORT/DATABASE'],
  ['url: "postgresql://u@a,b/x"', 'url must be postgresql://USER@HOST:PORT/DATABASE'],
  ['url: postgresql://u:secret@db/x', 'url must not hold a password'],
  ['url: postgresql://u@db/x?password=secret', 'url must not hold a password'],
  ['url: postgresql://u@db/x?sslmode=disable', 'url knows no parameters but host and user'],
  ['url: postgresql://u@db/%E0', 'url must be postgresql://USER@HOST:PORT/DATABASE'],
  ['url: postgresql://u@db/x, ca: /ca.pem, plain: true', ' has both ca and plain'],
])('a database is not accepted as {%s}, and no secret is repeated', async (text, wrong) => {
  const refused = await config(`database: {${text}}`).catch((error: Error) => error);
  expect(String(refused)).toContain(`database${wrong.startsWith(' ') ? '' : '.'}${wrong}`);
  expect(String(refused)).not.toContain('secret');
});

test('an API alone needs a database that it can share with a worker', async () => {
  await expect(config('role: api')).rejects.toThrow(/role can be api only with a database/);
  expect(await config('role: api\ndatabase: {url: "postgresql:///x"}')).toMatchObject({ role: 'api' });
});

test('a file that was asked for must be there', () => {
  expect(() => readConfig({ path: join(folder, 'none.yaml'), env: {} })).toThrow(/none\.yaml cannot be read/);
});

test('an address is taken apart', () => {
  expect(hostAndPort('127.0.0.1:8700')).toEqual({ host: '127.0.0.1', port: 8700 });
  expect(hostAndPort('[::1]:80')).toEqual({ host: '::1', port: 80 });
});

test('the version is that of package.json', () => {
  const { version: ofPackage } = JSON.parse(
    readFileSync(new URL('../../engine/package.json', import.meta.url), 'utf8'),
  ) as { version: string };
  expect(version).toBe(ofPackage);
});

/** The program as it is installed: built. */
async function run(args: string[], env: Record<string, string>): Promise<{ code: number | null; err: string }> {
  const program = new URL('../../engine/dist/main.js', import.meta.url).pathname;
  const child = spawn(process.execPath, [program, ...args], { env, stdio: ['ignore', 'ignore', 'pipe'] });
  let err = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, err };
}

test('the engine ends 78 where its configuration cannot be used, and says which key', async () => {
  const path = join(folder, 'open.yaml');
  await writeFile(path, 'listen: 0.0.0.0:8700');
  const { code, err } = await run(['--config', path], { TEMPORAL_ADDRESS: '127.0.0.1:1' });
  expect(code).toBe(78);
  expect(err).toContain(`stillpoint-engine: ${path}: listen must be ADDRESS:PORT on this machine only`);
});

test('the engine ends 78 where no Temporal is named, and says what to provide', async () => {
  const path = join(folder, 'empty.yaml');
  await writeFile(path, '');
  const { code, err } = await run(['--config', path], {
    TEMPORAL_CONFIG_FILE: new URL('../temporal/fixtures/no-profile.toml', import.meta.url).pathname,
  });
  expect(code).toBe(78);
  expect(err).toContain('No Temporal server is named. Set TEMPORAL_ADDRESS=host:port');
});

test('the engine ends 1 where its certificate is missing, and says how to make it', async () => {
  const path = join(folder, 'no-certificate.yaml');
  const tls = { ca: join(folder, 'ca.pem'), certificate: join(folder, 'e.pem'), key: join(folder, 'k.pem') };
  await writeFile(path, JSON.stringify({ stateFolder: join(folder, 'state'), hosts: { tls } }));
  const { code, err } = await run(['--config', path], { TEMPORAL_ADDRESS: '127.0.0.1:1' });
  expect(code).toBe(1);
  expect(err).toContain(join(folder, 'ca.pem'));
  expect(err).toContain('stillpoint-host-agent certs engine');
});
