import { z } from 'zod';

import type { Catalogue, HostRow } from '../catalogue/catalogue.js';
import { problemSchema } from './problems.js';
import { type HostView, hostName, hostsAnswer, hostView, newHost, noQuery } from './schemas.js';
import type { Api } from './server.js';
import type { VmDirectory } from './vm-directory.js';

/** Hosts are registered by an administrator. */
export function addHostRoutes(
  api: Api,
  { catalogue, directory }: { catalogue: Catalogue; directory: VmDirectory },
): void {
  const viewOf = async (row: HostRow): Promise<HostView> => {
    const reach = row.state === 'lost' ? undefined : await directory.reach(row.name);
    return {
      ...row,
      reachable: reach?.reachable ?? false,
      error: reach?.error ?? null,
      version: reach?.facts?.version ?? null,
      hypervisor: reach?.facts?.hypervisor ?? null,
      canQuiesce: reach?.facts?.canQuiesce ?? null,
      warnings: reach?.facts?.warnings ?? [],
    };
  };

  api.get(
    '/v1/hosts',
    {
      schema: {
        tags: ['hosts'],
        summary: 'The registered hosts, and whether they answer',
        querystring: noQuery,
        response: { 200: hostsAnswer, '4xx': problemSchema, '5xx': problemSchema },
      },
    },
    async () => ({ hosts: await Promise.all((await catalogue.listHosts()).map(viewOf)) }),
  );

  api.post(
    '/v1/hosts',
    {
      schema: {
        tags: ['hosts'],
        summary: 'Register a host, or take a lost one back',
        querystring: noQuery,
        body: newHost,
        response: { 201: hostView, '4xx': problemSchema, '5xx': problemSchema },
      },
    },
    async (request, reply) => {
      const row = await catalogue.addHost(request.body);
      directory.forget();
      return reply
        .status(201)
        .header('location', `/v1/hosts/${row.name}`)
        .send(await viewOf(row));
    },
  );

  api.delete(
    '/v1/hosts/:name',
    {
      schema: {
        tags: ['hosts'],
        summary: 'Remove a host that no snapshot needs, or say that it is lost',
        params: z.object({ name: hostName }),
        querystring: z.strictObject({
          lost: z
            .enum(['true', 'false'])
            .describe('The host is fenced and its guests are dead: every wait for it ends, and its row stays as lost')
            .optional(),
        }),
        response: { 200: hostView, 204: z.undefined(), '4xx': problemSchema, '5xx': problemSchema },
      },
    },
    async (request, reply) => {
      const { name } = request.params;
      if (request.query.lost === 'true') {
        const row = await catalogue.markHostLost(name);
        directory.forget();
        return reply.status(200).send(await viewOf(row));
      }
      await catalogue.removeHost(name);
      directory.forget();
      return reply.status(204).send(undefined);
    },
  );
}
