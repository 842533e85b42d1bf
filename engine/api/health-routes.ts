import { z } from 'zod';

import type { Catalogue } from '../catalogue/catalogue.js';
import { Problem, problemSchema } from './problems.js';
import type { Runs } from './runs.js';
import { noQuery } from './schemas.js';
import type { Api } from './server.js';
import { within } from './within.js';

const ok = z.object({ status: z.literal('ok') });

/** Alive, and ready for work; who asks gets his answer within `readyTimeoutMs`. */
export function addHealthRoutes(
  api: Api,
  { catalogue, runs, readyTimeoutMs }: { catalogue: Catalogue; runs: Runs; readyTimeoutMs: number },
): void {
  api.get(
    '/healthz',
    { schema: { tags: ['health'], summary: 'The engine lives', querystring: noQuery, response: { 200: ok } } },
    async () => ({ status: 'ok' as const }),
  );

  api.get(
    '/readyz',
    {
      schema: {
        tags: ['health'],
        summary: 'Catalogue and Temporal answer',
        querystring: noQuery,
        response: { 200: ok, 503: problemSchema },
      },
    },
    async () => {
      const asked = await Promise.allSettled(
        [catalogue.ping(), runs.ping()].map((answer) => within(readyTimeoutMs, answer)),
      );
      const silent = ['catalogue', 'temporal'].filter((_, at) => asked[at]?.status === 'rejected');
      if (silent.length > 0) {
        throw new Problem('NOT_READY', `No answer from: ${silent.join(', ')}.`, { notReady: silent });
      }
      return { status: 'ok' as const };
    },
  );
}
