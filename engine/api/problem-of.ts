import { isCatalogueError } from '../catalogue/errors.js';
import { isHostError } from '../hosts/errors.js';
import { isProblemCode, Problem, type ProblemCode } from './problems.js';

/** Any error of a request as the problem that its sender sees. What nobody foresaw is INTERNAL and says nothing of our insides. */
export function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (isCatalogueError(error)) {
    return isProblemCode(error.code) ? new Problem(error.code, error.message, {}, error) : internal(error);
  }
  if (isHostError(error)) {
    const detail = [error.message, error.advice].filter((sentence) => sentence !== '').join(' ');
    return isProblemCode(error.code) ? new Problem(error.code, detail, { host: error.host }, error) : internal(error);
  }
  return fromFastify(error) ?? internal(error);
}

/** Fastify's own refusals, by the codes of https://fastify.dev/docs/latest/Reference/Errors. */
const fastifyCodes: Readonly<Record<string, ProblemCode>> = {
  FST_ERR_CTP_INVALID_JSON_BODY: 'BODY_MALFORMED',
  FST_ERR_CTP_EMPTY_JSON_BODY: 'BODY_MALFORMED',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'REQUEST_MALFORMED',
  FST_ERR_CTP_BODY_TOO_LARGE: 'BODY_TOO_LARGE',
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'MEDIA_TYPE_UNSUPPORTED',
  FST_ERR_BAD_URL: 'REQUEST_MALFORMED',
  FST_ERR_MAX_PARAM_LENGTH: 'REQUEST_MALFORMED',
};

function fromFastify(error: unknown): Problem | undefined {
  if (!(error instanceof Error)) return undefined;
  const { code = '', statusCode = 0 } = error as { code?: string; statusCode?: number };
  const known = fastifyCodes[code];
  const sentence = `${error.message.replace(/\.+$/, '')}.`;
  if (known !== undefined) return new Problem(known, sentence, {}, error);
  // The rest of what the parser of bodies refuses (a forbidden key, a broken transfer) has a status only.
  if (statusCode >= 400 && statusCode < 500) return new Problem('BODY_MALFORMED', sentence, {}, error);
  return undefined;
}

function internal(error: unknown): Problem {
  return new Problem('INTERNAL', "An error in Stillpoint: report it with the engine's log.", {}, error);
}
