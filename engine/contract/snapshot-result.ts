import type {
  DeletedVolumePart,
  DeleteSnapshotResult,
  DiskPart,
  Gap,
  LeftOutDisk,
  LocalPart,
  MergedPart,
  RemovedPart,
  SnapshotVmResult,
  VolumePart,
} from '@stillpoint/workflows';
import { z } from 'zod';

import { quiescePolicy } from './snapshot-input.js';

/** What the workflows answer, for the OpenAPI document and docs/schema/. Unknown fields are dropped, so that a later worker may say more. */

export const grade = z.enum(['filesystem', 'crash', 'per-disk']);

const localPart = z.object({
  target: z.string(),
  kind: z.literal('local'),
  path: z.string().describe("Image on the host that holds the disk's data of the cut"),
  format: z.string(),
  overlay: z.string().describe('Overlay that the guest writes to since; deleting the snapshot merges it into path'),
  sizeBytes: z.number(),
}) satisfies z.ZodType<LocalPart>;

const volumePart = z.object({
  target: z.string(),
  kind: z.literal('volume'),
  volume: z.string().describe("Cinder's id of the volume"),
  snapshot: z.string().describe("Cinder's id of the snapshot that holds the disk's data of the cut"),
  sizeBytes: z.number(),
}) satisfies z.ZodType<VolumePart>;

export const diskPart = z.discriminatedUnion('kind', [localPart, volumePart]) satisfies z.ZodType<DiskPart>;

export const leftOutDisk = z.object({
  target: z.string(),
  reason: z.string(),
  writable: z.boolean().describe('The snapshot is partial without it'),
}) satisfies z.ZodType<LeftOutDisk>;

export const gap = z.object({
  target: z.string(),
  mountpoint: z.string(),
  reason: z.string(),
  accepted: z.boolean(),
}) satisfies z.ZodType<Gap>;

export const windowFacts = z.object({
  id: z.string(),
  ms: z.number().describe('Freeze answer read to thaw request written, on the host, ms; 0: never frozen'),
  frozenAt: z.string().exactOptional(),
  thawedAt: z.string().exactOptional(),
  frozenFileSystems: z.number(),
});

const vmNames = z.object({ uuid: z.string(), name: z.string() });

export const snapshotVmResult = z.object({
  snapshotId: z.string(),
  name: z.string(),
  vm: vmNames,
  host: z.string(),
  grade: grade.describe('How consistent the snapshot was proven to be'),
  why: z.string().describe('Why this grade, in plain words'),
  quiesce: quiescePolicy,
  partial: z.boolean().describe('A writable disk is left out'),
  leftOut: z.array(leftOutDisk),
  unfrozen: z.array(gap).describe("What stayed unfrozen by the request's leave or by rule"),
  disks: z.array(diskPart),
  window: windowFacts,
  hypervisor: z.string(),
}) satisfies z.ZodType<SnapshotVmResult>;

const mergedPart = z.object({
  target: z.string(),
  kind: z.literal('local'),
  overlay: z.string(),
  path: z.string().describe('Into which image it was merged'),
  outcome: z.enum(['unused-deleted', 'committed', 'not-found', 'pending']),
  detail: z.string(),
}) satisfies z.ZodType<MergedPart>;

const deletedVolumePart = z.object({
  target: z.string(),
  kind: z.literal('volume'),
  volume: z.string().describe("Cinder's id of the volume"),
  snapshot: z.string().describe("Cinder's id of the deleted snapshot; empty where none was found"),
  outcome: z.enum(['deleted', 'not-found', 'pending']),
  detail: z.string(),
}) satisfies z.ZodType<DeletedVolumePart>;

const removedPart = z.discriminatedUnion('kind', [mergedPart, deletedVolumePart]) satisfies z.ZodType<RemovedPart>;

export const deleteSnapshotResult = z.object({
  snapshotId: z.string(),
  vm: vmNames,
  host: z.string(),
  disks: z.array(removedPart),
}) satisfies z.ZodType<DeleteSnapshotResult>;
