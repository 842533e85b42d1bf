import { issuedToken } from './answers.js';
import type { CinderCallOptions } from './cinder.js';
import type { ApplicationCredentialAuth, CloudAuth, CloudSettings, NoAuth, PasswordAuth } from './cloud.js';
import { CinderError } from './errors.js';
import { type HttpConnections, late, untilAborted } from './http.js';
import { type Asking, explained, jsonOf, notOfTheApi, refusal, unanswered } from './refusals.js';
import { Secret } from './secret.js';

/** What a request to Cinder needs of Keystone. */
export interface Access {
  token: Secret;
  /** Cinder's address, as the catalogue or the configuration has it. */
  endpoint: URL;
  projectId: string;
}

/** Who the engine is to Cinder. */
export interface Identity {
  /** An access that is valid for `validForMs` from now on, or as long as the issuer lets one be. */
  access(validForMs: number, options: CinderCallOptions): Promise<Access>;
  /** A new access in the place of one that Cinder has refused. */
  renewed(refused: Access, options: CinderCallOptions): Promise<Access>;
}

export function identityOf(cloud: CloudSettings, http: HttpConnections): Identity {
  return cloud.auth.type === 'noauth' ? new Anybody(cloud.auth) : new Keystone(cloud, cloud.auth, http);
}

/** noauth: the token is who we say we are. */
class Anybody implements Identity {
  readonly #access: Access;

  constructor({ endpoint, user, projectId }: NoAuth) {
    this.#access = { token: new Secret(`${user}:${projectId}`), endpoint: new URL(endpoint), projectId };
  }

  access(): Promise<Access> {
    return Promise.resolve(this.#access);
  }

  renewed(): Promise<Access> {
    return this.access();
  }
}

/** A token so close to its end counts as expired: a request takes its time, and Cinder's clock may be ahead. Less where tokens live shortly. */
const marginMs = 30_000;

/** Keystone v3: one token at a time, kept until it is about to expire. */
class Keystone implements Identity {
  readonly #cloud: CloudSettings;
  readonly #auth: Exclude<CloudAuth, NoAuth>;
  readonly #http: HttpConnections;
  readonly #asked: Asking;
  #current: { access: Access; validUntil: number } | undefined;
  #asking: Promise<Access> | undefined;

  constructor(cloud: CloudSettings, auth: Exclude<CloudAuth, NoAuth>, http: HttpConnections) {
    this.#cloud = cloud;
    this.#auth = auth;
    this.#http = http;
    this.#asked = {
      service: 'Keystone',
      at: tokensUrl(auth.url).origin,
      asked: { what: 'token' },
      changes: false,
      secrets: [auth.type === 'password' ? auth.password : auth.secret],
    };
  }

  async access(validForMs: number, options: CinderCallOptions): Promise<Access> {
    if (this.#current !== undefined && this.#current.validUntil - performance.now() > validForMs)
      return this.#current.access;
    return await this.#ask(options);
  }

  async renewed(refused: Access, options: CinderCallOptions): Promise<Access> {
    if (this.#current !== undefined && this.#current.access !== refused) return this.#current.access;
    return await this.#ask(options);
  }

  /** One request for all who wait; whose signal or time ends goes without it. */
  async #ask({ signal, answerMs }: CinderCallOptions): Promise<Access> {
    signal?.throwIfAborted();
    this.#asking ??= this.#askNow().finally(() => {
      this.#asking = undefined;
    });
    if (answerMs === undefined) return await untilAborted(this.#asking, signal);
    const tooLate = AbortSignal.timeout(answerMs);
    return await untilAborted(this.#asking, AbortSignal.any([tooLate, ...(signal ? [signal] : [])])).catch(
      (error: unknown) => {
        throw error === tooLate.reason ? unanswered(late(answerMs), this.#asked) : error;
      },
    );
  }

  async #askNow(): Promise<Access> {
    const url = tokensUrl(this.#auth.url);
    const asking = this.#asked;
    const asked = performance.now();
    const answer = await this.#http
      .request({
        method: 'POST',
        url,
        headers: { accept: 'application/json', 'content-type': 'application/json' },
        body: JSON.stringify({ auth: requestOf(this.#auth) }),
      })
      .catch((error: unknown) => {
        throw explained(error, asking);
      });
    if (answer.status < 200 || answer.status > 299) throw refusal(answer, asking);

    const parsed = issuedToken.safeParse(jsonOf(answer.text));
    if (!parsed.success) throw notOfTheApi(parsed.error.issues[0]?.message ?? '', asking, parsed.error);
    const { token } = parsed.data;
    const subject = answer.headers['x-subject-token'];
    if (typeof subject !== 'string' || !/^[\x21-\x7e]{1,16384}$/.test(subject))
      throw notOfTheApi('no token in X-Subject-Token', asking);
    if (token.project === undefined) {
      throw new CinderError('CINDER_UNAUTHORISED', 'Keystone gave a token that is for no project.', {
        advice: 'Name the project: OS_PROJECT_NAME or OS_PROJECT_ID, or project_name or project_id in clouds.yaml.',
      });
    }
    const access: Access = {
      token: new Secret(subject),
      endpoint: this.#endpointIn(token.catalog),
      projectId: token.project.id,
    };
    // From when we asked, for as long as Keystone says: its clock may be wrong.
    const lifetimeMs = Date.parse(token.expires_at) - Date.parse(token.issued_at);
    this.#current = { access, validUntil: asked + lifetimeMs - Math.min(marginMs, lifetimeMs / 4) };
    return access;
  }

  #endpointIn(catalogue: ReturnType<typeof issuedToken.parse>['token']['catalog']): URL {
    const { endpoint, region, interface: wanted } = this.#cloud;
    if (endpoint !== undefined) return new URL(endpoint);
    const offered = serviceTypes.flatMap((type) =>
      catalogue.filter((entry) => entry.type === type).flatMap((entry) => entry.endpoints),
    );
    const found = offered.find(
      (each) =>
        each.interface === wanted && (region === undefined || each.region_id === region || each.region === region),
    );
    const url = found === undefined ? undefined : httpUrl(found.url);
    if (url !== undefined) return url;
    const list = offered
      .map((each) => `${each.interface} in ${each.region_id || each.region || 'no region'}`)
      .join(', ');
    throw new CinderError(
      'CINDER_NOT_CONFIGURED',
      found === undefined
        ? `Keystone's catalogue has no ${wanted} endpoint of volumev3${region === undefined ? '' : ` in the region ${region}`}; it has ${list.slice(0, 400) || 'none at all'}.`
        : `Keystone's catalogue gives for volumev3 what is no address of http or https.`,
      {
        advice:
          'Set OS_REGION_NAME and OS_INTERFACE (region_name and interface in clouds.yaml), or have the endpoint registered.',
      },
    );
  }
}

/** The newer name of the service type is the second. */
const serviceTypes = ['volumev3', 'block-storage'];

/** A URL of http or https that carries no credentials; undefined for anything else. */
export function httpUrl(text: string): URL | undefined {
  if (!URL.canParse(text)) return undefined;
  const url = new URL(text);
  const fits = (url.protocol === 'http:' || url.protocol === 'https:') && url.username === '' && url.password === '';
  return fits ? url : undefined;
}

/** OS_AUTH_URL with or without /v3, as all tools take it. */
function tokensUrl(authUrl: string): URL {
  const url = new URL(authUrl);
  const base = url.pathname.replace(/\/+$/, '');
  url.pathname = `${base.endsWith('/v3') ? base : `${base}/v3`}/auth/tokens`;
  url.search = '';
  return url;
}

/** The body of POST /v3/auth/tokens. */
function requestOf(auth: PasswordAuth | ApplicationCredentialAuth): object {
  if (auth.type === 'password') {
    return {
      identity: { methods: ['password'], password: { user: { ...auth.user, password: auth.password.reveal() } } },
      scope: { project: auth.project },
    };
  }
  return {
    identity: {
      methods: ['application_credential'],
      application_credential: { ...auth.credential, secret: auth.secret.reveal() },
    },
  };
}
