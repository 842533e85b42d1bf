import { Agent as HttpAgent, type IncomingHttpHeaders, type IncomingMessage, request as requestHttp } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';

/** How servers are checked, and what they are shown. PEM texts. */
export interface TlsSettings {
  /** Instead of the well-known CAs. */
  ca?: string;
  /** False: any certificate is taken. */
  verify: boolean;
  /** A client's certificate and its key, where the cloud asks for one. */
  client?: { certificate: string; key: string };
}

export interface HttpTimes {
  /** From the request to a connection that is ready, with its TLS handshake, ms. */
  connectMs: number;
  /** From there to the last byte of the answer, ms. */
  answerMs: number;
}

export interface HttpRequest {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  url: URL;
  headers: Record<string, string>;
  body?: string;
  signal?: AbortSignal | undefined;
  /** Instead of the connections' own time, ms. */
  answerMs?: number | undefined;
  /** Called when the connection stands and nothing is written yet; what it throws ends the request. */
  beforeSending?: (() => void) | undefined;
}

export interface HttpAnswer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

/** No answer of HTTP's: nobody there, too late, cut off, or bytes that are none. `cause` is Node's error, where there is one. */
export class HttpFailure extends Error {
  override readonly name = 'HttpFailure';
  readonly reason: 'unreachable' | 'bad-answer';
  /** The connection stood, so the request may have arrived. */
  readonly written: boolean;
  /** It was a kept connection that broke before an answer began: most likely the server had closed it meanwhile. */
  readonly stale: boolean;

  constructor(reason: HttpFailure['reason'], written: boolean, message: string, cause?: unknown, stale = false) {
    super(message, cause === undefined ? undefined : { cause });
    this.reason = reason;
    this.written = written;
    this.stale = stale;
  }
}

/** The largest list that Cinder gives by default (1000 snapshots) is below 2 MiB. */
const longestAnswerBytes = 16 * 1024 * 1024;

/** Keep-alive connections to one cloud. No redirect is followed; nothing is repeated but a GET for which a kept connection was no good any more. */
export class HttpConnections {
  readonly #plain: HttpAgent;
  readonly #secure: HttpsAgent;
  readonly #times: HttpTimes;

  constructor(tls: TlsSettings, times: HttpTimes) {
    this.#plain = new HttpAgent({ keepAlive: true });
    this.#secure = new HttpsAgent({
      keepAlive: true,
      rejectUnauthorized: tls.verify,
      ...(tls.ca === undefined ? {} : { ca: tls.ca }),
      ...(tls.client === undefined ? {} : { cert: tls.client.certificate, key: tls.client.key }),
    });
    this.#times = times;
  }

  close(): void {
    this.#plain.destroy();
    this.#secure.destroy();
  }

  /** Requests that are begun in one turn of the event loop have a connection each. Errors: HttpFailure; the signal's reason. */
  async request(request: HttpRequest): Promise<HttpAnswer> {
    for (;;) {
      try {
        return await this.#once(request);
      } catch (error) {
        // It ends with the first connection that is new.
        if (!(error instanceof HttpFailure && error.stale && request.method === 'GET')) throw error;
      }
    }
  }

  #once(asked: HttpRequest): Promise<HttpAnswer> {
    const { method, url, headers, body, signal, beforeSending, answerMs = this.#times.answerMs } = asked;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const secure = url.protocol === 'https:';
      const options = { method, headers };
      const request = secure
        ? requestHttps(url, { ...options, agent: this.#secure })
        : requestHttp(url, { ...options, agent: this.#plain });
      let written = false;

      const settle = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
      };
      const fail = (reason: unknown): void => {
        settle();
        reject(reason);
        request.destroy();
      };
      const abort = (): void => fail(signal?.reason);
      const { connectMs } = this.#times;
      let timer = setTimeout(() => fail(unreachable(false, `no connection within ${connectMs} ms`)), connectMs);
      signal?.addEventListener('abort', abort, { once: true });

      const ready = (): void => {
        clearTimeout(timer);
        try {
          beforeSending?.();
        } catch (error) {
          fail(error);
          return;
        }
        written = true;
        timer = setTimeout(() => fail(late(answerMs)), answerMs);
      };
      request.once('socket', (socket) => {
        if (request.reusedSocket) ready();
        else socket.once(secure ? 'secureConnect' : 'connect', ready);
      });
      request.on('error', (error) => fail(failureOf(error, written, request.reusedSocket && isBroken(error))));
      request.once('upgrade', () => fail(badAnswer('a change of protocol that nobody asked for')));
      request.once('response', (response) => {
        readText(response).then((text) => {
          settle();
          resolve({ status: response.statusCode ?? 0, headers: response.headers, text });
        }, fail);
      });
      request.end(body);
    });
  }
}

/** The body. Rejects with a HttpFailure when it breaks off, is too long or encoded. */
function readText(response: IncomingMessage): Promise<string> {
  return new Promise((resolve, reject) => {
    const encoding = response.headers['content-encoding'];
    if (encoding !== undefined && encoding !== 'identity') {
      reject(badAnswer('an encoding that nobody asked for'));
      return;
    }
    const chunks: Buffer[] = [];
    let bytes = 0;
    response.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > longestAnswerBytes) reject(badAnswer(`more than ${longestAnswerBytes} bytes`));
      else chunks.push(chunk);
    });
    response.once('error', (error) => reject(failureOf(error, true)));
    response.once('end', () => resolve(Buffer.concat(chunks).toString('utf8')));
  });
}

function failureOf(error: Error, written: boolean, stale = false): HttpFailure {
  const { code } = error as NodeJS.ErrnoException;
  // HPE_…: Node's HTTP parser.
  if (code?.startsWith('HPE_') === true) return badAnswer('bytes that are no HTTP', error);
  return new HttpFailure('unreachable', written, whyOf(error), error, stale);
}

function isBroken(error: Error): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ECONNRESET' || code === 'EPIPE';
}

/** Several addresses tried in vain are one error without a text (AggregateError). */
function whyOf(error: Error): string {
  if (error instanceof AggregateError && error.message === '') {
    return error.errors.map((each: unknown) => (each instanceof Error ? each.message : String(each))).join('; ');
  }
  return error.message;
}

/** Something was sent, and nothing whole has come back. */
export function late(answerMs: number): HttpFailure {
  return unreachable(true, `no whole answer within ${answerMs} ms`);
}

function unreachable(written: boolean, message: string, cause?: unknown): HttpFailure {
  return new HttpFailure('unreachable', written, message, cause);
}

function badAnswer(message: string, cause?: unknown): HttpFailure {
  return new HttpFailure('bad-answer', true, message, cause);
}

/** The promise, or the signal's reason: what is shared with others goes on without the one who leaves. */
export function untilAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  if (signal.aborted) return Promise.reject(signal.reason);
  return new Promise<T>((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
