import { z } from 'zod';

import { snapshotRequest } from '../contract/snapshot-input.js';
import { problemSchema } from './problems.js';
import {
  acceptedAnswer,
  idempotencyHeaders,
  noQuery,
  snapshotParameters,
  snapshotQuery,
  snapshotsAnswer,
  snapshotsQuery,
  snapshotView,
  vmParameter,
} from './schemas.js';
import type { Api } from './server.js';
import type { SnapshotDesk } from './snapshot-desk.js';
import type { VmDirectory } from './vm-directory.js';

const problems = { '4xx': problemSchema, '5xx': problemSchema };

/** Snapshots: taken, followed, listed, cancelled, deleted, cleaned up. */
export function addSnapshotRoutes(api: Api, { desk, directory }: { desk: SnapshotDesk; directory: VmDirectory }): void {
  api.post(
    '/v1/vms/:vm/snapshots',
    {
      schema: {
        tags: ['snapshots'],
        summary: 'Take a snapshot of a running VM',
        description: 'Without a body: all disks that can be snapshotted, quiesce=required.',
        params: z.object({ vm: vmParameter }),
        querystring: noQuery,
        headers: idempotencyHeaders,
        body: snapshotRequest,
        response: { 202: acceptedAnswer, ...problems },
      },
      preValidation: async (request) => {
        if (request.body === undefined) request.body = {};
      },
    },
    async (request, reply) => {
      const vm = await directory.find(request.params.vm);
      const row = await desk.take(vm, request.body, request.headers['idempotency-key']);
      return reply.status(202).header('location', hrefOf(row.snapshotId)).send(acceptedOf(row));
    },
  );

  api.get(
    '/v1/snapshots',
    {
      schema: {
        tags: ['snapshots'],
        summary: 'Snapshots, newest first',
        querystring: snapshotsQuery,
        response: { 200: snapshotsAnswer, ...problems },
      },
    },
    async (request) => {
      const { vm, grade, state, limit, cursor } = request.query;
      const { snapshots, next } = await desk.list({
        // UUIDs are kept in lower case; a name is taken as it is.
        ...(vm === undefined ? {} : { vm: z.guid().safeParse(vm).success ? vm.toLowerCase() : vm }),
        ...(grade === undefined ? {} : { grade }),
        ...(state === undefined ? {} : { state }),
        ...(cursor === undefined ? {} : { after: cursor }),
        limit,
      });
      return { snapshots, next: next ?? null };
    },
  );

  api.get(
    '/v1/snapshots/:id',
    {
      schema: {
        tags: ['snapshots'],
        summary: 'One snapshot; while its run goes on, its steps',
        params: snapshotParameters,
        querystring: snapshotQuery,
        response: { 200: snapshotView, ...problems },
      },
    },
    async (request, reply) => {
      const { wait = 0 } = request.query;
      if (wait === 0) return desk.view(request.params.id);
      const gone = new AbortController();
      reply.raw.once('close', () => gone.abort());
      const signal = AbortSignal.any([AbortSignal.timeout(Math.round(wait * 1_000)), gone.signal]);
      return desk.viewAtEnd(request.params.id, signal);
    },
  );

  api.delete(
    '/v1/snapshots/:id',
    {
      schema: {
        tags: ['snapshots'],
        summary: 'Delete a snapshot: merge its overlays, delete the snapshots of its volumes',
        params: snapshotParameters,
        querystring: noQuery,
        response: { 202: acceptedAnswer, ...problems },
      },
    },
    async (request, reply) => {
      const row = await desk.remove(request.params.id);
      return reply.status(202).header('location', hrefOf(row.snapshotId)).send(acceptedOf(row));
    },
  );

  api.post(
    '/v1/snapshots/:id/cleanup',
    {
      schema: {
        tags: ['snapshots'],
        summary: 'Finish a snapshot that is cleanup-pending: take back what is left of it',
        description:
          'Followed as a deletion is. It ends deleted, or cleanup-pending again, and `pending` says what is left and why. A snapshot in another state is a 409.',
        params: snapshotParameters,
        querystring: noQuery,
        response: { 202: acceptedAnswer, ...problems },
      },
    },
    async (request, reply) => {
      const row = await desk.cleanUp(request.params.id);
      return reply.status(202).header('location', hrefOf(row.snapshotId)).send(acceptedOf(row));
    },
  );

  api.post(
    '/v1/snapshots/:id/cancel',
    {
      schema: {
        tags: ['snapshots'],
        summary: 'Cancel the run of a snapshot: it ends thawed and clean',
        params: snapshotParameters,
        querystring: noQuery,
        response: { 202: z.object({ id: z.string(), href: z.string() }), ...problems },
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      await desk.cancel(id);
      return reply
        .status(202)
        .header('location', hrefOf(id))
        .send({ id, href: hrefOf(id) });
    },
  );
}

function hrefOf(snapshotId: string): string {
  return `/v1/snapshots/${snapshotId}`;
}

/** The same to the same Idempotency-Key, whatever has become of the snapshot. */
function acceptedOf(row: { snapshotId: string; vm: string; vmName: string }) {
  return { id: row.snapshotId, vm: { uuid: row.vm, name: row.vmName }, href: hrefOf(row.snapshotId) };
}
