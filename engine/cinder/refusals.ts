import { z } from 'zod';
import { CinderError, type CinderErrorCode } from './errors.js';
import { type HttpAnswer, HttpFailure } from './http.js';
import { quotable, type Secret } from './secret.js';

/** What a request was about: it decides how an answer is read. */
export type Asked =
  | { what: 'volume' | 'snapshot' | 'new snapshot' | 'deletion of the snapshot' | 'change of the snapshot'; id: string }
  | { what: 'list of snapshots' | 'quota' | 'versions' | 'token' };

export interface Asking {
  service: 'Cinder' | 'Keystone';
  /** Scheme, host and port, for people. */
  at: string;
  asked: Asked;
  /** Repeating it may do it twice. */
  changes: boolean;
  /** What must not be quoted, should the other side repeat it to us. */
  secrets: readonly Secret[];
}

/** A request without an answer. */
export function unanswered(failure: HttpFailure, asking: Asking): CinderError {
  const { service, at } = asking;
  const why = quotable(failure.message, asking.secrets);
  const mayHaveHappened = asking.changes && failure.written;
  if (failure.reason === 'bad-answer') {
    return new CinderError('CINDER_BAD_ANSWER', `What answers at ${at} is not ${service}: ${why}.`, {
      advice: adviceOf(service).address,
      mayHaveHappened,
      cause: failure,
    });
  }
  return new CinderError('CINDER_UNREACHABLE', `${service} at ${at} did not answer: ${why}.`, {
    advice: certificateProblem(failure)
      ? 'Name the CA that signed its certificate: OS_CACERT, or cacert in clouds.yaml.'
      : `See that ${service} runs and can be reached from the engine.`,
    mayHaveHappened,
    cause: failure,
  });
}

/** An answer of 2xx that is none of the API's. */
export function notOfTheApi(why: string, { service, at, changes, secrets }: Asking, cause?: unknown): CinderError {
  return new CinderError(
    'CINDER_BAD_ANSWER',
    `${service} at ${at} answered what its API does not know: ${quotable(why, secrets)}.`,
    {
      advice: adviceOf(service).address,
      mayHaveHappened: changes,
      ...(cause === undefined ? {} : { cause }),
    },
  );
}

/** An answer that is not 2xx. Only what the service itself has said is read as its word: a proxy's 404 is not a snapshot that is gone. */
export function refusal(answer: HttpAnswer, asking: Asking): CinderError {
  const { status } = answer;
  const said = saidBy(answer, asking.secrets);
  const error = (code: CinderErrorCode, text: string, more: ConstructorParameters<typeof CinderError>[2] = {}) =>
    new CinderError(
      code,
      said.message === '' ? `${text} (HTTP ${status}).` : `${text}: ${said.message} (HTTP ${status}).`,
      more,
    );
  const { service, at, asked } = asking;
  const advice = adviceOf(service);
  const notTheService = () =>
    error('CINDER_BAD_ANSWER', `What answers at ${at} is not ${service}, or not at this address`, {
      advice: advice.address,
    });

  if (status >= 300 && status < 400) return notTheService();
  if (status === 429 || status === 503) return overloaded();
  if (status === 413) {
    const quota = quotaOf(said.message);
    if (quota !== undefined) {
      return error('CINDER_QUOTA', `The project's quota of ${quota} does not allow another snapshot`, {
        advice: `Delete snapshots or volumes that are no longer needed, or ask the OpenStack administrator for more ${quota}.`,
      });
    }
    return retryAfterMs() === undefined ? badRequest() : overloaded();
  }
  if (status === 502 || status === 504) {
    return error('CINDER_UNREACHABLE', `The proxy before ${service} at ${at} got no answer`, {
      advice: `See that ${service} runs.`,
      mayHaveHappened: asking.changes,
    });
  }
  if (status >= 500) {
    return error('CINDER_FAILED', `${service} at ${at} failed`, {
      advice: advice.log,
      mayHaveHappened: asking.changes,
    });
  }
  if (status === 401)
    return error('CINDER_UNAUTHORISED', `${service} at ${at} refuses ${advice.refused}`, {
      advice: advice.credentials,
    });
  if (status === 403) {
    return error('CINDER_FORBIDDEN', `${service} at ${at} does not allow it to this user`, {
      advice: 'Give the user the role member on the project, or what the policy named here asks for.',
    });
  }
  if (status === 404) return notFound();
  if (status === 406) {
    return error('CINDER_BAD_REQUEST', `${service} at ${at} does not know the microversion it named itself`, {
      advice: 'Repeat it: Cinder was exchanged for an older one, and its versions are asked for again.',
    });
  }
  if (!said.byService) return notTheService();
  if (status === 400 || status === 409) return busy() ?? badRequest();
  return badRequest();

  function overloaded(): CinderError {
    return error('CINDER_OVERLOADED', `${service} at ${at} is overloaded or not ready`, {
      advice: `Try again later; if it lasts, see how ${service} is.`,
      retryAfterMs: retryAfterMs(),
      // A proxy says 503 too when the connection to Cinder broke behind it: then the request may have arrived.
      mayHaveHappened: asking.changes && status === 503 && !said.byService,
    });
  }

  function badRequest(): CinderError {
    return error('CINDER_BAD_REQUEST', `${service} at ${at} refuses the request`, { advice: advice.log });
  }

  function notFound(): CinderError {
    // A path that Cinder does not know is a 404 of the same make, but without the id.
    if (!said.byService || !('id' in asked) || !said.message.includes(asked.id)) return notTheService();
    if (asked.what === 'volume' || asked.what === 'new snapshot') {
      return error('VOLUME_NOT_FOUND', `The project has no volume ${asked.id}`, {
        advice: 'See that the engine is configured for the project that the volume belongs to.',
      });
    }
    return error('VOLUME_SNAPSHOT_NOT_FOUND', `The project has no volume snapshot ${asked.id}`);
  }

  function busy(): CinderError | undefined {
    if (!('id' in asked)) return undefined;
    if (asked.what === 'new snapshot' && (status === 409 || said.message.startsWith('Invalid volume'))) {
      const found = /current status is:? ?["']?([a-z][a-z_-]*)|when the volume is in ["']?([a-z][a-z_-]*)/i.exec(
        said.message,
      );
      const state = found?.[1] ?? found?.[2];
      return error(
        'VOLUME_BUSY',
        `The volume ${asked.id} ${state === undefined ? 'is busy' : `is ${state}`}, so that no snapshot of it can be made`,
        {
          advice: 'Wait until it is in-use or available again; from error only an OpenStack administrator gets it out.',
        },
      );
    }
    if (
      asked.what.endsWith('of the snapshot') &&
      (status === 409 || /^Invalid snapshot|not allowed for update_snapshot_status/.test(said.message))
    ) {
      return error(
        'VOLUME_SNAPSHOT_BUSY',
        `The volume snapshot ${asked.id} is in a state that does not allow this, or something depends on it`,
        {
          advice: 'Wait until it is available or error, and delete the volumes that were made from it.',
        },
      );
    }
    return undefined;
  }

  function retryAfterMs(): number | undefined {
    const seconds = Number(answer.headers['retry-after'] ?? said.retryAfter ?? Number.NaN);
    // As a date it is of no use to us: the clocks may differ.
    return Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, 3600) * 1000 : undefined;
  }
}

/** {"itemNotFound": {"code": 404, "message": …}} of Cinder, {"error": {…}} of Keystone. */
const fault = z.record(
  z.string(),
  z.object({ message: z.string(), retryAfter: z.union([z.string(), z.number()]).optional() }),
);

function saidBy(
  { text }: HttpAnswer,
  secrets: readonly Secret[],
): { byService: boolean; message: string; retryAfter?: string | number } {
  const parsed = fault.safeParse(jsonOf(text));
  const [only, ...others] = parsed.success ? Object.values(parsed.data) : [];
  if (only === undefined || others.length > 0) return { byService: false, message: '' };
  const message = quotable(only.message, secrets).replace(/\.$/, '');
  return { byService: true, message, ...(only.retryAfter === undefined ? {} : { retryAfter: only.retryAfter }) };
}

/** The JSON of a text, or undefined. The parser's own error is not kept: it quotes the text. */
export function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * Which quota a 413 names; undefined where it is about none (a rate limit, a proxy). Cinder's exceptions are
 * SnapshotLimitExceeded, VolumeSizeExceedsAvailableQuota and others of QuotaError, and their name begins the message.
 */
function quotaOf(message: string): string | undefined {
  const named = /exceeds allowed (\w[\w.-]*) quota|over quota on (\w[\w.-]*)/i.exec(message);
  if (named !== null) return named[1] ?? named[2] ?? '';
  if (/^SnapshotLimitExceeded/.test(message)) return 'snapshots';
  if (/^VolumeSizeExceeds/.test(message)) return 'gigabytes';
  const limit = /^([A-Z]\w*?)LimitExceeded/.exec(message);
  if (limit !== null) return `${limit[1]?.toLowerCase()}s`;
  return /\bquota/i.test(message) ? 'what it names' : undefined;
}

function certificateProblem({ cause }: HttpFailure): boolean {
  const code = cause instanceof Error ? (cause as NodeJS.ErrnoException).code : undefined;
  return code !== undefined && /CERT|SIGNATURE|SIGNED|ISSUER/.test(code);
}

function adviceOf(service: Asking['service']): { address: string; credentials: string; log: string; refused: string } {
  return service === 'Keystone'
    ? {
        address: 'See that OS_AUTH_URL (auth_url in clouds.yaml) is the address of Keystone v3.',
        credentials: 'See that user, password or application credential, domains and project are right and enabled.',
        log: "Look at Keystone's log.",
        refused: 'the credentials',
      }
    : {
        address:
          "See that the volumev3 endpoint in Keystone's catalogue, or the one that is configured instead, is Cinder's.",
        credentials: 'See that Cinder and the engine use the same Keystone, and that their clocks agree.',
        log: 'Look at the log of cinder-api.',
        refused: 'the token',
      };
}

/** What a HttpFailure becomes; everything else (the signal's reason) stays. */
export function explained(error: unknown, asking: Asking): unknown {
  return error instanceof HttpFailure ? unanswered(error, asking) : error;
}
