import { factsOf } from '@stillpoint/engine/api/cloud-routes.js';
import type { SnapshotQuota } from '@stillpoint/engine/cinder/cinder.js';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import type { CloudAuth, CloudSettings } from '@stillpoint/engine/cinder/cloud.js';
import { CinderError } from '@stillpoint/engine/cinder/errors.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { Secret } from '@stillpoint/engine/cinder/secret.js';
import { type CinderStandIn, startCinderStandIn } from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';

import { ServedApi } from './served.js';

const password: CloudAuth = {
  type: 'password',
  url: 'https://keystone.example.org:5000/v3',
  user: { name: 'stillpoint', domain: { name: 'Default' } },
  password: new Secret('hunter2'),
  project: { name: 'vms', domain: { id: 'default' } },
};
const settings = (change: Partial<CloudSettings> = {}): CloudSettings => ({
  source: 'cloud prod of /etc/openstack/clouds.yaml',
  auth: password,
  region: 'north',
  interface: 'public',
  tls: { verify: false },
  warnings: ['Certificates are not checked.'],
  ...change,
});
const quota: SnapshotQuota = { snapshots: { limit: 10, used: 3 }, gigabytes: { limit: -1, used: 12 } };

describe('the cloud over the REST API', () => {
  const cinder = {
    makeReady: async (): Promise<void> => {},
    snapshotQuota: async (): Promise<SnapshotQuota> => quota,
  };
  let withCloud: ServedApi;
  beforeAll(async () => {
    const cloud = { cinder, about: factsOf(settings()), pools: ['volumes'], checkAttachment: true };
    withCloud = await ServedApi.withoutCatalogue({ cloudTimeoutMs: 20 }, cloud);
  });
  const closing: (() => Promise<void>)[] = [];
  afterAll(async () => {
    await withCloud.stop();
    for (const close of closing.reverse()) await close();
  });
  beforeEach(() => {
    cinder.makeReady = async () => {};
    cinder.snapshotQuota = async () => quota;
  });

  it('is shown with what an administrator has configured, and that it can be used', async () => {
    const answer = await withCloud.ask('GET', '/v1/cloud');
    expect(answer).toMatchObject({
      status: 200,
      body: {
        configured: true,
        usable: true,
        error: null,
        source: 'cloud prod of /etc/openstack/clouds.yaml',
        authUrl: 'https://keystone.example.org:5000/v3',
        as: 'user stillpoint (domain Default)',
        project: 'vms (domain default)',
        region: 'north',
        endpoint: null,
        warnings: ['Certificates are not checked.'],
        pools: ['volumes'],
        quota,
      },
    });
    expect(JSON.stringify(answer.body)).not.toContain('hunter2');
  });

  it.each([
    ['CINDER_UNREACHABLE', 'Keystone does not answer.'],
    ['CINDER_UNAUTHORISED', 'Keystone refuses the credentials.'],
  ] as const)('says %s where it cannot be used, and what to do', async (code, message) => {
    cinder.makeReady = async () => Promise.reject(new CinderError(code, message, { advice: 'Do this.' }));
    expect(await withCloud.ask('GET', '/v1/cloud')).toMatchObject({
      status: 200,
      body: { configured: true, usable: false, error: { code, text: `${message} Do this.` }, quota: null },
    });
  });

  it('that does not answer in time is said to be unreachable', async () => {
    cinder.makeReady = () => new Promise(() => {});
    const { body } = await withCloud.ask('GET', '/v1/cloud');
    expect(body).toMatchObject({ usable: false, error: { code: 'CINDER_UNREACHABLE' } });
  });

  it('is usable though its quota may not be read', async () => {
    cinder.snapshotQuota = async () => Promise.reject(new CinderError('CINDER_FORBIDDEN', 'No.'));
    expect((await withCloud.ask('GET', '/v1/cloud')).body).toMatchObject({ usable: true, error: null, quota: null });
  });

  it('that nobody has configured is no error, and says how to', async () => {
    const served = await ServedApi.withoutCatalogue({}, undefined);
    closing.push(() => served.stop());
    expect(await served.ask('GET', '/v1/cloud')).toMatchObject({
      status: 200,
      body: {
        configured: false,
        usable: false,
        error: { code: 'CINDER_NOT_CONFIGURED', text: expect.stringContaining('clouds.yaml') },
      },
    });
  });

  describe('that speaks Cinder’s API', () => {
    let standIn: CinderStandIn;
    beforeAll(async () => {
      standIn = await startCinderStandIn();
      closing.push(() => standIn.close());
    });
    async function asked(env: Record<string, string>) {
      const found = readCloud({ env });
      if (found === undefined) throw new Error('no cloud');
      const client = new CinderClient(found);
      closing.push(() => client.close());
      const cloud = { cinder: client, about: factsOf(found), pools: ['volumes'], checkAttachment: true };
      const engine = await ServedApi.withoutCatalogue({ cloudTimeoutMs: 20_000 }, cloud);
      closing.push(() => engine.stop());
      return (await engine.ask('GET', '/v1/cloud')).body;
    }

    it('is usable with its token, and tells the quota', async () => {
      standIn.addVolume();
      const body = await asked(standIn.environment('stillpoint'));
      expect(body).toMatchObject({ usable: true, error: null, authUrl: standIn.authUrl });
      expect(body.quota.snapshots).toEqual({ limit: expect.any(Number), used: 0 });
    });

    it('says that the password is refused, and not which', async () => {
      const body = await asked({ ...standIn.environment('stillpoint'), OS_PASSWORD: 'a-wrong-one' });
      expect(body).toMatchObject({ usable: false, error: { code: 'CINDER_UNAUTHORISED' } });
      expect(JSON.stringify(body)).not.toContain('a-wrong-one');
    });

    it('says that nobody is there', async () => {
      const env = standIn.environment('stillpoint');
      await standIn.down();
      expect(await asked(env)).toMatchObject({ usable: false, error: { code: 'CINDER_UNREACHABLE' } });
    });
  });

  it.each<[string, CloudAuth, object]>([
    [
      'an application credential',
      { type: 'application-credential', url: 'https://k/v3', credential: { id: 'c-1' }, secret: new Secret('hunter2') },
      { authUrl: 'https://k/v3', as: 'application credential c-1', project: null },
    ],
    [
      'noauth',
      { type: 'noauth', endpoint: 'http://127.0.0.1:8776/v3', user: 'admin', projectId: 'p-1' },
      { authUrl: null, as: 'user admin', project: 'p-1', endpoint: 'http://127.0.0.1:8776/v3' },
    ],
  ])('of %s is told without its secrets', (_what, auth, facts) => {
    const told = factsOf(settings({ auth }));
    expect(told).toMatchObject(facts);
    expect(JSON.stringify(told)).not.toContain('hunter2');
  });
});
