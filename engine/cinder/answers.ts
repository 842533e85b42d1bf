import { z } from 'zod';
import type { CinderVolume, SnapshotQuota, VolumeSnapshot } from './cinder.js';

/** What Cinder and Keystone answer, as far as we read it: everything comes from the network and is checked. */

/** Ids of volumes and snapshots: UUIDs, in practice also without their dashes. They go into paths. */
export const uuidLike = z.string().regex(/^[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$/i);

const shortText = z.string().max(4096);
/** Python's None where nothing was given. */
const textOrNone = shortText.nullish().transform((text) => text ?? '');
const whole = z.number().int();

/** Cinder's times are UTC without saying so; the answer to a creation has microseconds, every later one whole seconds. */
const time = shortText.transform((text, context) => {
  const at = Date.parse(/(?:Z|[+-]\d\d:?\d\d)$/.test(text) ? text : `${text}Z`);
  if (!Number.isNaN(at)) return new Date(Math.floor(at / 1000) * 1000).toISOString().replace('.000', '');
  context.addIssue({ code: 'custom', message: 'no time' });
  return z.NEVER;
});

const snapshot = z
  .object({
    id: uuidLike,
    volume_id: uuidLike,
    name: textOrNone,
    description: textOrNone,
    status: shortText,
    size: whole,
    created_at: time,
    metadata: z
      .record(z.string(), z.string())
      .nullish()
      .transform((metadata) => metadata ?? {}),
    'os-extended-snapshot-attributes:project_id': shortText.nullish(),
  })
  .transform((answer): { snapshot: VolumeSnapshot; projectId: string | undefined } => ({
    snapshot: {
      id: answer.id,
      volumeId: answer.volume_id,
      name: answer.name,
      description: answer.description,
      status: answer.status,
      sizeGiB: answer.size,
      createdAt: answer.created_at,
      metadata: answer.metadata,
    },
    projectId: answer['os-extended-snapshot-attributes:project_id'] ?? undefined,
  }));

export const oneSnapshot = z.object({ snapshot }).transform((answer) => answer.snapshot);

/** A page of a list; `hasNext`: Cinder knows more. The address it gives for them is not read: who comes next is asked for by the last id. */
export const pageOfSnapshots = z
  .object({ snapshots: z.array(snapshot), snapshots_links: z.array(z.object({ rel: shortText })).nullish() })
  .transform(({ snapshots, snapshots_links }) => ({
    snapshots,
    hasNext: snapshots_links?.some(({ rel }) => rel === 'next') ?? false,
  }));

const volume = z
  .object({
    id: uuidLike,
    name: textOrNone,
    status: shortText,
    size: whole,
    volume_type: textOrNone,
    attachments: z.array(z.object({ server_id: textOrNone, device: textOrNone, host_name: textOrNone })),
    'os-vol-mig-status-attr:name_id': uuidLike.nullish(),
    'os-vol-tenant-attr:tenant_id': shortText.nullish(),
  })
  .transform((answer): { volume: CinderVolume; projectId: string | undefined } => {
    const nameId = answer['os-vol-mig-status-attr:name_id'];
    return {
      volume: {
        id: answer.id,
        name: answer.name,
        status: answer.status,
        sizeGiB: answer.size,
        ...(nameId == null ? {} : { nameId }),
        attachments: answer.attachments.map(({ server_id, device, host_name }) => ({
          instance: server_id,
          device,
          host: host_name,
        })),
        volumeType: answer.volume_type,
      },
      projectId: answer['os-vol-tenant-attr:tenant_id'] ?? undefined,
    };
  });

export const oneVolume = z.object({ volume }).transform((answer) => answer.volume);

export const limits = z
  .object({
    limits: z.object({
      absolute: z.object({
        maxTotalSnapshots: whole,
        totalSnapshotsUsed: whole,
        maxTotalVolumeGigabytes: whole,
        totalGigabytesUsed: whole,
      }),
    }),
  })
  .transform(
    ({ limits: { absolute } }): SnapshotQuota => ({
      snapshots: { limit: absolute.maxTotalSnapshots, used: absolute.totalSnapshotsUsed },
      gigabytes: { limit: absolute.maxTotalVolumeGigabytes, used: absolute.totalGigabytesUsed },
    }),
  );

/** GET /v3/: the microversions of v3. Those that v2 has are empty texts. */
export const versions = z
  .object({ versions: z.array(z.object({ id: shortText, version: shortText, min_version: shortText })) })
  .transform(({ versions }, context) => {
    const v3 = versions.find(({ id }) => id.startsWith('v3'));
    const newest = minorOf(v3?.version);
    const oldest = minorOf(v3?.min_version);
    if (newest !== undefined && oldest !== undefined) return { oldest, newest };
    context.addIssue({ code: 'custom', message: 'no microversions of v3' });
    return z.NEVER;
  });

function minorOf(version: string | undefined): number | undefined {
  const minor = /^3\.(\d{1,4})$/.exec(version ?? '')?.[1];
  return minor === undefined ? undefined : Number(minor);
}

const catalogueEntry = z.object({
  type: shortText,
  endpoints: z.array(z.object({ interface: shortText, region: textOrNone, region_id: textOrNone, url: shortText })),
});

/** POST /v3/auth/tokens. */
export const issuedToken = z.object({
  token: z.object({
    expires_at: z.iso.datetime({ offset: true }),
    issued_at: z.iso.datetime({ offset: true }),
    project: z.object({ id: z.string().regex(/^[\w-]{1,255}$/) }).optional(),
    catalog: z.array(catalogueEntry).default([]),
  }),
});
export type CatalogueEntry = z.infer<typeof catalogueEntry>;
