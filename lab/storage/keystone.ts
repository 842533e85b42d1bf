import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LabError } from '../errors.js';
import { runProgram } from '../programs.js';
import type { Cinder } from './cinder.js';
import { Daemon } from './daemon.js';
import type { Database } from './database.js';

export interface KeystonePorts {
  readonly keystone: number;
  readonly cinderAuth: number;
}

/** Somebody who can ask for a token; domain `Default`. */
export interface KeystoneUser {
  readonly id: string;
  readonly name: string;
  readonly password: string;
  readonly projectId: string;
  readonly projectName: string;
}

/** Whom Keystone knows. */
export interface Identity {
  /** Role `admin`. */
  readonly admin: KeystoneUser;
  /** Role `member` on its project, and no other. */
  readonly member: KeystoneUser;
  /** As `member`, on another project. */
  readonly stranger: KeystoneUser;
  /** Of `member`, with the role that it has. */
  readonly applicationCredential: { readonly id: string; readonly secret: string };
  /** cinder-api's own user. */
  readonly servicePassword: string;
}

export const REGION = 'lab';
const DOMAIN = 'default';
const DEFAULT_TOKEN_LIFETIME_S = 3_600;

// No Apache and no uWSGI, which resets connections now and then. Keystone reads its file from the environment and would take
// the arguments for its own.
const SERVER = `import sys, waitress
port = sys.argv[1]
sys.argv = ['keystone']
from keystone.server.wsgi import initialize_public_application
waitress.serve(initialize_public_application(), listen='127.0.0.1:' + port, threads=4)
`;

/** Keystone, and a second API server of the same Cinder that asks it. */
export class Keystone {
  readonly daemons: { readonly keystone: Daemon; readonly cinderApi: Daemon };
  readonly authUrl: string;
  readonly #folder: string;
  readonly #ports: KeystonePorts;
  readonly #database: Database;

  constructor(folder: string, ports: KeystonePorts, database: Database, cinder: Cinder) {
    this.#folder = folder;
    this.#ports = ports;
    this.#database = database;
    this.authUrl = `http://127.0.0.1:${ports.keystone}/v3`;
    this.daemons = {
      keystone: new Daemon('keystone', folder, {
        program: '/usr/bin/python3',
        args: ['-c', SERVER, String(ports.keystone)],
        env: { OS_KEYSTONE_CONFIG_FILES: this.#conf },
        ready: async () => (await fetch(this.authUrl, { signal: AbortSignal.timeout(5_000) })).ok,
      }),
      cinderApi: cinder.apiDaemon('cinder-api-keystone', ports.cinderAuth, ['--config-file', this.#cinderConf]),
    };
  }

  /** Tables, keys, the administrator, users and projects, in an empty database; Keystone runs afterwards. */
  async create(): Promise<Identity> {
    this.setTokenLifetime(DEFAULT_TOKEN_LIFETIME_S);
    await this.#database.query('create database keystone character set utf8');
    const manage = (...args: string[]) => runProgram('keystone-manage', ['--config-file', this.#conf, ...args]);
    await manage('db_sync');
    const owner = ['--keystone-user', 'root', '--keystone-group', 'root'];
    await manage('fernet_setup', ...owner);
    await manage('credential_setup', ...owner);
    const password = newPassword();
    const urls = ['--bootstrap-public-url', this.authUrl, '--bootstrap-internal-url', this.authUrl];
    await manage('bootstrap', '--bootstrap-password', password, ...urls, '--bootstrap-region-id', REGION);
    await this.daemons.keystone.start();
    return this.#populate(password);
  }

  /** Starts Keystone and its cinder-api on the ports of this storage, whatever the database says of others. */
  async start(identity: Identity, signal?: AbortSignal): Promise<void> {
    this.setTokenLifetime(DEFAULT_TOKEN_LIFETIME_S);
    this.#writeCinderConfiguration(identity);
    const cinderUrl = `http://127.0.0.1:${this.#ports.cinderAuth}/v3/%(project_id)s`;
    const set = (type: string, url: string) =>
      `update keystone.endpoint set url = '${url}' where service_id in (select id from keystone.service where type = '${type}')`;
    await this.#database.query(`${set('identity', this.authUrl)}; ${set('volumev3', cinderUrl)}`);
    await Promise.all(Object.values(this.daemons).map((daemon) => daemon.start(signal)));
  }

  /** Seconds for which tokens are good that are issued after the next start of Keystone. */
  setTokenLifetime(seconds: number): void {
    for (const name of ['fernet', 'credential']) mkdirSync(this.#at(name), { recursive: true, mode: 0o700 });
    const text = `[DEFAULT]
log_file = ${join(this.#folder, 'logs', 'keystone.log')}
[database]
connection = ${this.#database.url('keystone')}
[identity]
# The cheapest that bcrypt has.
password_hash_rounds = 4
[token]
provider = fernet
expiration = ${seconds}
[fernet_tokens]
key_repository = ${this.#at('fernet')}
[credential]
key_repository = ${this.#at('credential')}
`;
    writeFileSync(this.#conf, text, { mode: 0o600 });
  }

  get #conf(): string {
    return join(this.#folder, 'keystone.conf');
  }

  get #cinderConf(): string {
    return join(this.#folder, 'cinder-keystone.conf');
  }

  #at(name: string): string {
    return join(this.#folder, 'keystone', name);
  }

  #writeCinderConfiguration(identity: Identity): void {
    const text = `[DEFAULT]
auth_strategy = keystone
osapi_volume_listen_port = ${this.#ports.cinderAuth}
[keystone_authtoken]
www_authenticate_uri = http://127.0.0.1:${this.#ports.keystone}
auth_url = http://127.0.0.1:${this.#ports.keystone}
auth_type = password
project_domain_id = ${DOMAIN}
user_domain_id = ${DOMAIN}
project_name = service
username = cinder
password = ${identity.servicePassword}
`;
    writeFileSync(this.#cinderConf, text, { mode: 0o600 });
  }

  async #populate(adminPassword: string): Promise<Identity> {
    const rest = new KeystoneRest(this.authUrl);
    const self = await rest.login('admin', adminPassword, 'admin');
    const admin = { ...self, name: 'admin', password: adminPassword, projectName: 'admin' };
    const roles = await rest.call<{ roles: { id: string; name: string }[] }>('GET', '/roles');
    const roleId = (name: string) => roles.roles.find((role) => role.name === name)?.id ?? name;
    const addUser = async (name: string, role: string, projectName: string): Promise<KeystoneUser> => {
      const password = newPassword();
      const { project } = await rest.call<{ project: Named }>('POST', '/projects', { project: { name: projectName } });
      const { user } = await rest.call<{ user: Named }>('POST', '/users', { user: { name, password } });
      await rest.call('PUT', `/projects/${project.id}/users/${user.id}/roles/${roleId(role)}`);
      return { id: user.id, name, password, projectId: project.id, projectName };
    };
    const service = await addUser('cinder', 'admin', 'service');
    const member = await addUser('stillpoint', 'member', 'tenant');
    const stranger = await addUser('stranger', 'member', 'other-tenant');
    const volumes = { service: { name: 'cinderv3', type: 'volumev3' } };
    const { service: cinder } = await rest.call<{ service: Named }>('POST', '/services', volumes);
    const url = `http://127.0.0.1:${this.#ports.cinderAuth}/v3/%(project_id)s`;
    const endpoint = { service_id: cinder.id, interface: 'public', region_id: REGION, url };
    await rest.call('POST', '/endpoints', { endpoint });
    // Only its owner can make an application credential.
    await rest.login(member.name, member.password, member.projectName);
    const made = await rest.call<{ application_credential: { id: string; secret: string } }>(
      'POST',
      `/users/${member.id}/application_credentials`,
      { application_credential: { name: 'stillpoint' } },
    );
    const { id, secret } = made.application_credential;
    return { admin, member, stranger, applicationCredential: { id, secret }, servicePassword: service.password };
  }
}

interface Named {
  readonly id: string;
}

const newPassword = () => randomBytes(12).toString('hex');

/** As much of Keystone's REST API as its first users need. */
class KeystoneRest {
  readonly #url: string;
  #token = '';

  constructor(url: string) {
    this.#url = url;
  }

  /** Speaks as that user from now on. */
  async login(name: string, password: string, projectName: string): Promise<{ id: string; projectId: string }> {
    const domain = { id: DOMAIN };
    const identity = { methods: ['password'], password: { user: { name, password, domain } } };
    const body = { auth: { identity, scope: { project: { name: projectName, domain } } } };
    const answer = await this.#send('POST', '/auth/tokens', body);
    this.#token = answer.headers.get('x-subject-token') ?? '';
    const { token } = (await answer.json()) as { token: { user: Named; project: Named } };
    return { id: token.user.id, projectId: token.project.id };
  }

  async call<Answer>(method: string, path: string, body?: unknown): Promise<Answer> {
    const text = await (await this.#send(method, path, body)).text();
    return (text === '' ? undefined : JSON.parse(text)) as Answer;
  }

  async #send(method: string, path: string, body?: unknown): Promise<Response> {
    const answer = await fetch(`${this.#url}${path}`, {
      method,
      headers: { 'x-auth-token': this.#token, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(60_000),
    });
    if (!answer.ok) {
      const said = (await answer.text()).slice(0, 500);
      throw new LabError('STORAGE_FAILED', `Keystone answered ${answer.status} to ${method} ${path}: ${said}`);
    }
    return answer;
  }
}
