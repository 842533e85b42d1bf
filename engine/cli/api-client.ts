import { CommandError, exitCodeOf, exitCodes } from './exit-codes.js';

/** Longer than anything that the API does before it answers, but for a thaw and a long-poll, which say so. */
const defaultTimeoutMs = 30_000;

export interface RequestOptions {
  body?: unknown;
  headers?: Record<string, string>;
  query?: Record<string, string | undefined>;
  timeoutMs?: number;
}

/** The REST API of an engine. */
export class ApiClient {
  readonly #base: string;
  readonly #interrupted: AbortSignal;

  /** @param interrupted ends what is under way. Errors: CommandError when `url` is no http URL. */
  constructor(url: string, interrupted: AbortSignal) {
    this.#base = baseOf(url);
    this.#interrupted = interrupted;
  }

  /**
   * One request, JSON in and out; undefined: an answer without a body.
   *
   * @throws CommandError API_UNREACHABLE, API_UNKNOWN (what answers there is no Stillpoint), INTERRUPTED, or with the API's own code
   */
  async request<Answer>(method: string, path: string, options: RequestOptions = {}): Promise<Answer> {
    const { status, text } = await this.#fetch(method, path, options);
    const body = this.#parsed(text);
    if (status < 300) return body as Answer;
    throw this.#problem(status, body);
  }

  async #fetch(method: string, path: string, options: RequestOptions): Promise<{ status: number; text: string }> {
    const { body, headers = {}, query = {}, timeoutMs = defaultTimeoutMs } = options;
    const url = new URL(this.#base + path);
    for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, value);
    try {
      const answer = await fetch(url, {
        method,
        headers: { accept: 'application/json', ...(body === undefined ? {} : jsonType), ...headers },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        redirect: 'error',
        signal: AbortSignal.any([this.#interrupted, AbortSignal.timeout(timeoutMs)]),
      });
      return { status: answer.status, text: await answer.text() };
    } catch (cause) {
      if (this.#interrupted.aborted) throw new CommandError(exitCodes.interrupted, 'INTERRUPTED', 'Interrupted.');
      throw new CommandError(
        exitCodes.unreachable,
        'API_UNREACHABLE',
        `The API at ${this.#base} does not answer (${reasonOf(cause, timeoutMs)}). See that stillpoint-engine runs, or name another one: --api URL or STILLPOINT_API.`,
        { cause },
      );
    }
  }

  #parsed(text: string): unknown {
    if (text === '') return undefined;
    try {
      return JSON.parse(text);
    } catch (cause) {
      throw this.#unknown(cause);
    }
  }

  #problem(status: number, body: unknown): CommandError {
    if (typeof body !== 'object' || body === null) return this.#unknown();
    const problem = body as Record<string, unknown>;
    if (typeof problem.code !== 'string') return this.#unknown();
    const detail = problem.detail ?? problem.title ?? '';
    return new CommandError(exitCodeOf(status), problem.code, String(detail), { problem });
  }

  #unknown(cause?: unknown): CommandError {
    return new CommandError(
      exitCodes.failed,
      'API_UNKNOWN',
      `What answers at ${this.#base} is not Stillpoint's API. Name the right address: --api URL or STILLPOINT_API.`,
      { cause },
    );
  }
}

const jsonType = { 'content-type': 'application/json' };

function baseOf(url: string): string {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (parsed === undefined || !['http:', 'https:'].includes(parsed.protocol)) {
    throw new CommandError(
      exitCodes.usage,
      'USAGE',
      `--api (or STILLPOINT_API) must be a URL like http://127.0.0.1:8700, not '${url}'.`,
    );
  }
  return parsed.origin + parsed.pathname.replace(/\/+$/, '');
}

/** fetch says 'fetch failed'; why, says its cause. */
function reasonOf(error: unknown, timeoutMs: number): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === 'TimeoutError') return `no answer within ${timeoutMs / 1000} s`;
  const { cause } = error;
  if (!(cause instanceof Error)) return error.message;
  return cause.message || (cause as NodeJS.ErrnoException).code || error.message;
}
