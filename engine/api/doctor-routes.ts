import { randomUUID } from 'node:crypto';

import { reconcileInput } from '../contract/snapshot-input.js';
import type { TemporalDoctor } from '../temporal/doctor.js';
import { Problem, problemSchema } from './problems.js';
import { doctorParameters, doctorRun, noQuery, snapshotQuery } from './schemas.js';
import type { Api } from './server.js';
import { asUnavailable } from './temporal-runs.js';

/** What the API needs of the reconciler. */
export type Doctor = Pick<TemporalDoctor, 'start' | 'run' | 'last'>;

const problems = { '4xx': problemSchema, '5xx': problemSchema };

/** The reconciler: started, followed, and its schedule's last report. */
export function addDoctorRoutes(api: Api, { doctor }: { doctor: Doctor }): void {
  api.get(
    '/v1/doctor',
    {
      schema: {
        tags: ['doctor'],
        summary: "The last report of the installation's schedule",
        description: 'A 404 before the first one.',
        querystring: noQuery,
        response: { 200: doctorRun, ...problems },
      },
    },
    async () => found(await asked(doctor.last()), 'The schedule has made no report yet.'),
  );

  api.post(
    '/v1/doctor',
    {
      schema: {
        tags: ['doctor'],
        summary: 'Look now, and repair what is unambiguous if asked to',
        description: 'Without a body: only look. Followed at Location.',
        querystring: noQuery,
        body: reconcileInput,
        response: { 202: doctorRun, ...problems },
      },
      preValidation: async (request) => {
        if (request.body === undefined) request.body = {};
      },
    },
    async (request, reply) => {
      const run = await asked(doctor.start(randomUUID(), request.body));
      return reply.status(202).header('location', `/v1/doctor/${run.id}`).send(run);
    },
  );

  api.get(
    '/v1/doctor/:id',
    {
      schema: {
        tags: ['doctor'],
        summary: 'One report; while its run goes on, none yet',
        params: doctorParameters,
        querystring: snapshotQuery,
        response: { 200: doctorRun, ...problems },
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      const gone = new AbortController();
      reply.raw.once('close', () => gone.abort());
      const { wait = 0 } = request.query;
      const signal =
        wait === 0 ? undefined : AbortSignal.any([AbortSignal.timeout(Math.round(wait * 1_000)), gone.signal]);
      return found(await asked(doctor.run(id, signal)), `There is no report ${id}, or Temporal keeps it no longer.`);
    },
  );
}

function found<Run>(run: Run | undefined, otherwise: string): Run {
  if (run !== undefined) return run;
  throw new Problem('REPORT_NOT_FOUND', `${otherwise} To look now: stillpoint doctor.`);
}

async function asked<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    throw asUnavailable(error);
  }
}
