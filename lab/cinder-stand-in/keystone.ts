import { randomBytes } from 'node:crypto';
import { z } from 'zod';

/** Whom the stand-in's Keystone lets in. Its domain is `default`; so is that of its project. */
export interface StandInUser {
  name: string;
  password: string;
  roles: ('admin' | 'member' | 'reader')[];
  applicationCredential?: { id: string; name: string; secret: string };
}

export interface StandInProject {
  id: string;
  name: string;
}

/** Whose token it is. */
export interface TokenOwner {
  user: string;
  roles: readonly string[];
  projectId: string;
}

const byName = z.object({ name: z.string() });
const byId = z.object({ id: z.string() });
const inDomain = z.object({ domain: byId.or(byName) });
const named = byId.or(byName.and(inDomain));
const request = z.object({
  auth: z.object({
    identity: z.object({
      methods: z.array(z.string()).length(1),
      password: z.object({ user: named.and(z.object({ password: z.string() })) }).optional(),
      application_credential: byId
        .or(byName.and(z.object({ user: named })))
        .and(z.object({ secret: z.string() }))
        .optional(),
    }),
    scope: z.object({ project: named }).optional(),
  }),
});

const domains = ['default', 'Default'];

/** Keystone v3, as far as a client of Cinder sees it. */
export class StandInKeystone {
  readonly #users: readonly StandInUser[];
  readonly #project: StandInProject;
  readonly #lifetimeMs: () => number;
  readonly #tokens = new Map<string, { owner: TokenOwner; expires: number }>();
  /** How many tokens it has given. */
  issued = 0;

  constructor(users: readonly StandInUser[], project: StandInProject, lifetimeMs: () => number) {
    this.#users = users;
    this.#project = project;
    this.#lifetimeMs = lifetimeMs;
  }

  /** No token is good any more. */
  revokeAll(): void {
    this.#tokens.clear();
  }

  ownerOf(token: string): TokenOwner | undefined {
    const found = this.#tokens.get(token);
    return found !== undefined && performance.now() < found.expires ? found.owner : undefined;
  }

  /** POST /v3/auth/tokens. Undefined: 401; 'malformed': 400. */
  issue(body: unknown, endpoint: string): { token: string; body: object } | undefined | 'malformed' {
    const parsed = request.safeParse(body);
    if (!parsed.success) return 'malformed';
    const { identity, scope } = parsed.data.auth;
    const user = this.#userOf(identity);
    if (user === undefined) return undefined;
    // An application credential holds its project.
    const scoped = identity.application_credential !== undefined || scope !== undefined;
    if (scope !== undefined && !this.#isProject(scope.project)) return undefined;

    const token = randomBytes(48).toString('base64url');
    const lifetimeMs = this.#lifetimeMs();
    this.issued += 1;
    this.#tokens.set(token, {
      owner: { user: user.name, roles: user.roles, projectId: this.#project.id },
      expires: performance.now() + lifetimeMs,
    });
    const now = Date.now();
    return {
      token,
      body: {
        token: {
          methods: identity.methods,
          user: { name: user.name, domain: { id: 'default', name: 'Default' } },
          issued_at: new Date(now).toISOString(),
          expires_at: new Date(now + lifetimeMs).toISOString(),
          ...(scoped
            ? {
                project: { ...this.#project, domain: { id: 'default', name: 'Default' } },
                catalog: catalogueOf(endpoint),
              }
            : {}),
        },
      },
    };
  }

  #userOf(identity: z.infer<typeof request>['auth']['identity']): StandInUser | undefined {
    const { methods, password, application_credential: credential } = identity;
    if (methods[0] === 'password' && password !== undefined) {
      const { user: asked } = password;
      return this.#users.find(
        (user) => isNamed(asked, { id: user.name, name: user.name }) && user.password === asked.password,
      );
    }
    if (methods[0] !== 'application_credential' || credential === undefined) return undefined;
    return this.#users.find(({ name, applicationCredential: own }) => {
      if (own === undefined || own.secret !== credential.secret) return false;
      if ('id' in credential) return credential.id === own.id;
      return credential.name === own.name && isNamed(credential.user, { id: name, name });
    });
  }

  #isProject(asked: z.infer<typeof named>): boolean {
    return isNamed(asked, this.#project);
  }
}

function isNamed(asked: z.infer<typeof named>, one: { id: string; name: string }): boolean {
  if ('id' in asked) return asked.id === one.id;
  const domain = 'id' in asked.domain ? asked.domain.id : asked.domain.name;
  return asked.name === one.name && domains.includes(domain);
}

function catalogueOf(endpoint: string): object[] {
  const endpoints = ['public', 'internal', 'admin'].map((each) => ({
    interface: each,
    region: 'lab',
    region_id: 'lab',
    url: endpoint,
  }));
  return [
    { type: 'identity', name: 'keystone', endpoints: [] },
    { type: 'volumev3', name: 'cinderv3', endpoints },
  ];
}
