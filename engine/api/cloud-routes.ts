import type { Cinder, SnapshotQuota } from '../cinder/cinder.js';
import type { CloudSettings, Named } from '../cinder/cloud.js';
import { type CinderError, cinderErrors, isCinderError } from '../cinder/errors.js';
import { problemSchema } from './problems.js';
import { type CloudView, cloudView, noQuery } from './schemas.js';
import type { Api } from './server.js';
import { NoAnswerInTime, within } from './within.js';

/** The engine's cloud, and what may be said of it. */
export interface KnownCloud {
  cinder: Pick<Cinder, 'makeReady' | 'snapshotQuota'>;
  about: CloudFacts;
  pools: readonly string[];
  checkAttachment: boolean;
}

/** Which cloud it is, in words without secrets. */
export type CloudFacts = Pick<
  CloudView,
  'source' | 'authUrl' | 'as' | 'project' | 'region' | 'interface' | 'endpoint' | 'warnings'
>;

/** What of a cloud's settings an administrator may see. */
export function factsOf({ source, auth, region, interface: from, endpoint, warnings }: CloudSettings): CloudFacts {
  const facts = { source, region: region ?? null, interface: from, endpoint: endpoint ?? null, warnings };
  switch (auth.type) {
    case 'password':
      return {
        ...facts,
        authUrl: auth.url,
        as: `user ${textOf(auth.user)}`,
        project: textOf(auth.project),
      };
    case 'application-credential': {
      const { credential } = auth;
      const which = 'id' in credential ? credential.id : `${credential.name} of user ${textOf(credential.user)}`;
      return { ...facts, authUrl: auth.url, as: `application credential ${which}`, project: null };
    }
    case 'noauth':
      return { ...facts, authUrl: null, as: `user ${auth.user}`, project: auth.projectId, endpoint: auth.endpoint };
  }
}

/** Asks as a snapshot does before its window: a token, Cinder's address and version, and what quota is left. */
export function addCloudRoutes(
  api: Api,
  { cloud, cloudTimeoutMs }: { cloud: KnownCloud | undefined; cloudTimeoutMs: number },
): void {
  api.get(
    '/v1/cloud',
    {
      schema: {
        tags: ['cloud'],
        summary: "The engine's OpenStack cloud, asked now: whether it can be used, or why not",
        description:
          'A cloud that does not answer is no error of this request: `usable` and `error` say so. Secrets are never shown.',
        querystring: noQuery,
        response: { 200: cloudView, '4xx': problemSchema, '5xx': problemSchema },
      },
    },
    async () => (cloud === undefined ? noCloud : viewOf(cloud, await asked(cloud, cloudTimeoutMs))),
  );
}

const noCloud: CloudView = {
  configured: false,
  usable: false,
  error: {
    code: 'CINDER_NOT_CONFIGURED',
    text: `${cinderErrors.CINDER_NOT_CONFIGURED} Ceph disks are left out of its snapshots. Name one in clouds.yaml (openstack.cloud or OS_CLOUD), or set the variables OS_…`,
  },
  source: null,
  authUrl: null,
  as: null,
  project: null,
  region: null,
  interface: null,
  endpoint: null,
  warnings: [],
  pools: [],
  checkAttachment: null,
  quota: null,
};

type Asked = Pick<CloudView, 'usable' | 'error' | 'quota'>;

async function asked({ cinder }: KnownCloud, timeoutMs: number): Promise<Asked> {
  const gone = new AbortController();
  const { signal } = gone;
  try {
    return await within(timeoutMs, ask(cinder, signal));
  } catch (error) {
    if (isCinderError(error)) return unusable(error.code, textOfError(error));
    if (error instanceof NoAnswerInTime) {
      return unusable(
        'CINDER_UNREACHABLE',
        `${error.message} See that Keystone and Cinder run, and that this machine reaches them.`,
      );
    }
    throw error;
  } finally {
    gone.abort();
  }
}

async function ask(cinder: KnownCloud['cinder'], signal: AbortSignal): Promise<Asked> {
  await cinder.makeReady({ validForMs: 0, connections: 1 }, { signal });
  const quota = await cinder.snapshotQuota({ signal }).catch((error: unknown): SnapshotQuota | null => {
    // Snapshots are taken without it: Cinder says in the window whether it suffices.
    if (isCinderError(error, 'CINDER_FORBIDDEN')) return null;
    throw error;
  });
  return { usable: true, error: null, quota };
}

function unusable(code: string, text: string): Asked {
  return { usable: false, error: { code, text }, quota: null };
}

function textOfError({ message, advice }: CinderError): string {
  return [message, advice].filter((sentence) => sentence !== '').join(' ');
}

function viewOf({ about, pools, checkAttachment }: KnownCloud, now: Asked): CloudView {
  return { configured: true, ...now, ...about, pools: [...pools], checkAttachment };
}

function textOf(named: Named): string {
  if ('id' in named) return named.id;
  const { name, domain } = named;
  return `${name} (domain ${'id' in domain ? domain.id : domain.name})`;
}
