import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { CloudError, readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';

let home: string;
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'stillpoint-clouds-'));
});
afterEach(() => rmSync(home, { recursive: true }));

/** Nothing of the machine's own configuration. */
const read = (env: NodeJS.ProcessEnv, options: { cloud?: string } = {}) =>
  readCloud({ env: { HOME: home, ...env }, folder: join(home, 'here'), ...options });

function write(path: string, content: string): string {
  const whole = join(home, path);
  mkdirSync(join(whole, '..'), { recursive: true });
  writeFileSync(whole, content);
  return whole;
}

const variables = {
  OS_AUTH_URL: 'https://keystone.example.org:5000/v3',
  OS_USERNAME: 'stillpoint',
  OS_PASSWORD: 'very-secret',
  OS_PROJECT_NAME: 'web',
};

describe('the variables OS_…', () => {
  test('without one there is no cloud', () => {
    expect(read({})).toBeUndefined();
    expect(read({ OS_CLOUD: '', OS_AUTH_URL: '', OS_REGION_NAME: 'north' })).toBeUndefined();
  });

  test('give a user by name, in the domain default unless it is named', () => {
    const cloud = read(variables);
    expect(cloud).toMatchObject({
      source: 'the variables OS_…',
      auth: {
        type: 'password',
        url: variables.OS_AUTH_URL,
        user: { name: 'stillpoint', domain: { id: 'default' } },
        project: { name: 'web', domain: { id: 'default' } },
      },
      interface: 'public',
      tls: { verify: true },
      warnings: [],
    });
    expect(cloud?.auth.type === 'password' && cloud.auth.password.reveal()).toBe('very-secret');
    const named = read({ ...variables, OS_USER_DOMAIN_NAME: 'People', OS_PROJECT_DOMAIN_ID: 'd1' });
    expect(named?.auth).toMatchObject({ user: { domain: { name: 'People' } }, project: { domain: { id: 'd1' } } });
    const both = read({ ...variables, OS_DEFAULT_DOMAIN_NAME: 'All' });
    expect(both?.auth).toMatchObject({ user: { domain: { name: 'All' } }, project: { domain: { name: 'All' } } });
  });

  test('give user and project by id', () => {
    const { OS_USERNAME: _user, OS_PROJECT_NAME: _project, ...others } = variables;
    expect(read({ ...others, OS_USER_ID: 'u1', OS_TENANT_ID: 'p1' })?.auth).toMatchObject({
      user: { id: 'u1' },
      project: { id: 'p1' },
    });
  });

  test('give an application credential by its id, or by its name and user', () => {
    const credential = { OS_AUTH_URL: variables.OS_AUTH_URL, OS_APPLICATION_CREDENTIAL_SECRET: 's' };
    expect(read({ ...credential, OS_APPLICATION_CREDENTIAL_ID: 'c1' })?.auth).toMatchObject({
      type: 'application-credential',
      credential: { id: 'c1' },
    });
    expect(
      read({
        ...credential,
        OS_AUTH_TYPE: 'v3applicationcredential',
        OS_APPLICATION_CREDENTIAL_NAME: 'engine',
        OS_USERNAME: 'stillpoint',
      })?.auth,
    ).toMatchObject({ credential: { name: 'engine', user: { name: 'stillpoint', domain: { id: 'default' } } } });
  });

  test('give region, interface, endpoint and CA', () => {
    const ca = write('ca.pem', 'PEM');
    expect(
      read({
        ...variables,
        OS_REGION_NAME: 'north',
        OS_ENDPOINT_TYPE: 'internalURL',
        OS_VOLUME_ENDPOINT_OVERRIDE: 'https://cinder.example.org:8776/v3',
        OS_CACERT: ca,
      }),
    ).toMatchObject({
      region: 'north',
      interface: 'internal',
      endpoint: 'https://cinder.example.org:8776/v3',
      tls: { ca: 'PEM', verify: true },
    });
  });

  test('give a Cinder without authentication, with a warning', () => {
    const cloud = read({
      OS_AUTH_TYPE: 'noauth',
      OS_ENDPOINT: 'http://127.0.0.1:8776/v3',
      OS_PROJECT_ID: 'aaaa0000bbbb1111cccc2222dddd3333',
      OS_USERNAME: 'admin',
    });
    expect(cloud).toMatchObject({
      auth: {
        type: 'noauth',
        endpoint: 'http://127.0.0.1:8776/v3',
        user: 'admin',
        projectId: 'aaaa0000bbbb1111cccc2222dddd3333',
      },
      warnings: [expect.stringMatching(/without authentication/)],
    });
    expect(read({ OS_AUTH_TYPE: 'noauth', OS_ENDPOINT: 'http://127.0.0.1:8776/v3/p1' })?.auth).toMatchObject({
      projectId: 'p1',
    });
  });

  test('may switch the check of certificates off, with a warning; http to another machine is one, too', () => {
    expect(read({ ...variables, OS_INSECURE: 'True' })).toMatchObject({
      tls: { verify: false },
      warnings: [expect.stringMatching(/not checked/)],
    });
    expect(read({ ...variables, OS_AUTH_URL: 'http://keystone.example.org' })?.warnings).toEqual([
      expect.stringMatching(/^OS_AUTH_URL is not https/),
    ]);
    expect(read({ ...variables, OS_AUTH_URL: 'http://127.0.0.1:5000' })?.warnings).toEqual([]);
  });
});

describe('what is half configured is an error that names the variable', () => {
  const without = (name: keyof typeof variables) => ({ ...variables, [name]: '' });
  test.each<[string, NodeJS.ProcessEnv]>([
    ['OS_AUTH_URL is missing.', without('OS_AUTH_URL')],
    ['OS_USERNAME is missing.', without('OS_USERNAME')],
    ['OS_PASSWORD is missing.', without('OS_PASSWORD')],
    ['OS_PROJECT_NAME or project_id is missing', without('OS_PROJECT_NAME')],
    ['OS_AUTH_URL must be an address of http or https', { ...variables, OS_AUTH_URL: 'keystone:5000' }],
    ['OS_AUTH_URL must be an address', { ...variables, OS_AUTH_URL: 'https://me:very-secret@keystone' }],
    ['OS_AUTH_URL must be that of Keystone v3', { ...variables, OS_AUTH_URL: 'https://keystone/v2.0' }],
    ['OS_AUTH_TYPE must be password, v3applicationcredential or noauth', { ...variables, OS_AUTH_TYPE: 'v3totp' }],
    ['OS_INTERFACE must be public, internal or admin', { ...variables, OS_INTERFACE: 'private' }],
    ['OS_INSECURE must be true or false', { ...variables, OS_INSECURE: 'maybe' }],
    ['OS_CACERT: /nowhere/ca.pem cannot be read', { ...variables, OS_CACERT: '/nowhere/ca.pem' }],
    ['OS_VOLUME_ENDPOINT_OVERRIDE must be an address', { ...variables, OS_VOLUME_ENDPOINT_OVERRIDE: 'ftp://x' }],
    [
      'OS_APPLICATION_CREDENTIAL_SECRET is missing',
      { OS_AUTH_URL: variables.OS_AUTH_URL, OS_APPLICATION_CREDENTIAL_ID: 'c1' },
    ],
    ['OS_ENDPOINT is missing', { OS_AUTH_TYPE: 'noauth', OS_PROJECT_ID: 'p1' }],
    ['OS_PROJECT_ID is missing', { OS_AUTH_TYPE: 'noauth', OS_ENDPOINT: 'http://127.0.0.1:8776/v3' }],
    ['OS_PROJECT_ID must be', { OS_AUTH_TYPE: 'none', OS_ENDPOINT: 'http://127.0.0.1/v3', OS_PROJECT_ID: '../x' }],
  ])('%s', (text, env) => {
    expect(() => read(env)).toThrow(CloudError);
    expect(() => read(env)).toThrow(text);
    expect(() => read(env)).not.toThrow('very-secret');
  });
});

describe('clouds.yaml', () => {
  const clouds = `
clouds:
  prod:
    auth:
      auth_url: https://keystone.example.org
      username: stillpoint
      password: 12345
      project_name: web
      user_domain_name: Default
    regions: [north]
    interface: internal
    verify: false
  lab:
    auth_type: noauth
    auth: { endpoint: 'http://127.0.0.1:8776/v3', project_id: p1 }
`;

  test('is searched in the working directory, then in the home, by the name that OS_CLOUD or the configuration gives', () => {
    write('.config/openstack/clouds.yaml', clouds);
    expect(read({ OS_CLOUD: 'prod' })).toMatchObject({
      source: `cloud prod of ${home}/.config/openstack/clouds.yaml`,
      region: 'north',
      interface: 'internal',
      tls: { verify: false },
      auth: { user: { name: 'stillpoint', domain: { name: 'Default' } } },
    });
    expect(read({ OS_CLOUD: 'prod' }, { cloud: 'lab' })?.auth.type).toBe('noauth');
    write('here/clouds.yml', clouds.replace('north', 'south'));
    expect(read({ OS_CLOUD: 'prod' })?.region).toBe('south');
    write('xdg/openstack/clouds.json', JSON.stringify({ clouds: { prod: {} } }));
    rmSync(join(home, 'here'), { recursive: true });
    expect(() => read({ OS_CLOUD: 'prod', XDG_CONFIG_HOME: join(home, 'xdg') })).toThrow(/auth_url in cloud prod/);
  });

  test('of a name that nobody gives is not used', () => {
    write('here/clouds.yaml', clouds);
    expect(read({})).toBeUndefined();
  });

  test('named by OS_CLIENT_CONFIG_FILE goes before', () => {
    write('here/clouds.yaml', clouds);
    const path = write('mine.yaml', clouds.replace('north', 'west'));
    expect(read({ OS_CLOUD: 'prod', OS_CLIENT_CONFIG_FILE: path })?.region).toBe('west');
    expect(() => read({ OS_CLOUD: 'prod', OS_CLIENT_CONFIG_FILE: '/nowhere.yaml' })).toThrow(
      /^\/nowhere\.yaml cannot be read/,
    );
  });

  test('reads a password of digits as it stands', () => {
    write('here/clouds.yaml', clouds);
    const auth = read({ OS_CLOUD: 'prod' })?.auth;
    expect(auth?.type === 'password' && auth.password.reveal()).toBe('12345');
  });

  test('gets its secrets from secure.yaml', () => {
    write('here/clouds.yaml', clouds.replace('      password: 12345\n', ''));
    expect(() => read({ OS_CLOUD: 'prod' })).toThrow(/^auth\.password in cloud prod of .*clouds\.yaml is missing/);
    write('.config/openstack/secure.yaml', 'clouds: { prod: { auth: { password: elsewhere } } }');
    const auth = read({ OS_CLOUD: 'prod' })?.auth;
    expect(auth?.type === 'password' && auth.password.reveal()).toBe('elsewhere');
  });

  test.each([
    ['has no cloud', "has no cloud 'other'; it has prod, lab", clouds],
    ['has no clouds', "has no cloud 'other'; it has none", ''],
    ['is a list', 'must hold keys and values', '- clouds'],
    ['has a cloud that is a text', 'clouds.other must hold keys and values', 'clouds: { other: text }'],
    ['is no YAML', 'is no valid YAML (line 3)', 'clouds:\n  other: "very-secret\n'],
    ['takes a profile', "from the profile 'vexxhost'", 'clouds: { other: { profile: vexxhost, auth: {} } }'],
    ['has a list for a text', 'auth.auth_url in cloud other', 'clouds: { other: { auth: { auth_url: [1] } } }'],
  ])('that %s is an error that says so', (_case, text, content) => {
    write('here/clouds.yaml', content);
    expect(() => read({ OS_CLOUD: 'other' })).toThrow(CloudError);
    expect(() => read({ OS_CLOUD: 'other' })).toThrow(text);
    expect(() => read({ OS_CLOUD: 'other' })).not.toThrow('very-secret');
  });

  test('that is nowhere is an error that says where it was looked for', () => {
    expect(() => read({ OS_CLOUD: 'prod' })).toThrow(`${home}/here, ${home}/.config/openstack, /etc/openstack`);
  });
});

test('secrets are neither printed nor serialised', () => {
  const cloud = read({ ...variables });
  expect(JSON.stringify(cloud)).not.toContain('very-secret');
  expect(inspect(cloud, { depth: 9, showHidden: true })).not.toContain('very-secret');
  expect(`${cloud?.auth.type === 'password' ? cloud.auth.password : ''}`).toBe('(secret)');
});
