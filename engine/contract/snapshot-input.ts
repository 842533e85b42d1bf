import type { DeleteSnapshotInput, ReconcileInput, SnapshotVmInput } from '@stillpoint/workflows';
import { z } from 'zod';

/**
 * The one source of what `snapshotVm` and `deleteSnapshot` take. The workflows' first activities, the REST API's body, the command line and the JSON
 * Schemas in docs/schema/ all come from here; the compiler checks it against the public types in workflows/contract.ts.
 */

/** libvirt writes UUIDs of any version, in lower case; people paste them in upper case. */
export const vmUuid = z.guid('must be a UUID like 6c1b1f0e-8c1d-4b6e-9a59-3f0d2c7b1a11').toLowerCase();

/** A snapshot's id is made by us or by another Temporal client: a version 4 UUID. */
export const snapshotId = z.uuidv4('must be a version 4 UUID').toLowerCase();

/** What the guest's disk is called in the domain's XML: vda, sdb, nvme0n1. */
export const diskTarget = z.string().regex(/^[a-z][a-z0-9]{1,14}$/, 'must be the target of a disk, like vda');

/** No more disks than libvirt can attach to one VM in practice; it bounds every list in a request. */
const mostDisks = 256;

const diskTargets = z
  .array(diskTarget)
  .max(mostDisks)
  .refine((targets) => new Set(targets).size === targets.length, 'must name every disk only once')
  .meta({ uniqueItems: true });

/**
 * In a character class, written without \p{…}: readers of the JSON Schema in other languages do not know that. A control character would break tables,
 * terminals and the Temporal UI.
 */
const control = String.raw`\u0000-\u001f\u007f-\u009f`;
const edge = String.raw`[^\s\ufeff${control}]`;
/** Half a surrogate pair cannot be sent on as UTF-8; other languages cannot even say so in a pattern. */
const isWhole = (text: string) => !/\p{Cs}/u.test(text);

/** One line for people. Lengths count characters, as JSON Schema does, and not their UTF-16 halves. */
export const snapshotName = z
  .string()
  .regex(
    new RegExp(String.raw`^${edge}(?:[^${control}\u2028\u2029]{0,198}${edge})?$`, 'u'),
    'must be one line of 1 to 200 characters without control characters or outer spaces',
  )
  .refine(isWhole, 'must not hold half a character')
  .meta({ minLength: 1, maxLength: 200, examples: ['before the upgrade'] });

/** Text for people; line breaks and tabs are fine. */
export const snapshotDescription = z
  .string()
  .regex(
    new RegExp(String.raw`^(?:[\t\n]|[^${control}]){0,2000}$`, 'u'),
    'must be at most 2000 characters, without control characters but line breaks and tabs',
  )
  .refine(isWhole, 'must not hold half a character')
  .meta({ maxLength: 2000, examples: ['Asked for by the database team'] });

export const quiescePolicy = z.enum(['required', 'best-effort', 'skip']);

/** 1 s to 10 min, ms. */
export const freezeTimeoutMs = z.int().min(1_000).max(600_000);

/** 0.1 to 60 s, ms. */
export const windowLimitMs = z.int().min(100).max(60_000);

export const snapshotVmInput = z.strictObject({
  vm: vmUuid.describe("libvirt's UUID of the VM"),
  snapshotId: snapshotId.describe('Snapshot id; absent: the run makes its own').exactOptional(),
  name: snapshotName.describe('For people; absent: made from the time').exactOptional(),
  description: snapshotDescription.describe('For people').exactOptional(),
  quiesce: quiescePolicy
    .describe(
      'required (when absent): fail rather than be inconsistent; best-effort: go on without a freeze, the grade tells; skip: never freeze',
    )
    .exactOptional(),
  disks: diskTargets
    .min(1)
    .describe('Targets; absent: all writable disks that can be snapshotted. Naming an impossible one is an error')
    .exactOptional(),
  unquiesced: diskTargets
    .describe('Targets that may stay unfrozen (say swap); they are named beside the grade')
    .exactOptional(),
  freezeTimeoutMs: freezeTimeoutMs
    .describe('How long the guest agent may take to freeze, ms; absent: 30000')
    .exactOptional(),
  windowLimitMs: windowLimitMs
    .describe('How long the guest may stay frozen, ms; absent: 30000, for Windows 8000')
    .exactOptional(),
}) satisfies z.ZodType<SnapshotVmInput, SnapshotVmInput>;

/** The REST body of a snapshot: the same without what the URL and the API say. */
export const snapshotRequest = snapshotVmInput.omit({ vm: true, snapshotId: true });
export type SnapshotRequest = z.infer<typeof snapshotRequest>;

export const deleteSnapshotInput = z.strictObject({
  vm: vmUuid.describe("libvirt's UUID of the snapshot's VM"),
  snapshotId: snapshotId.describe('Snapshot to delete'),
  leftoversOnly: z
    .boolean()
    .describe('Take back only what a run has left: a snapshot that is complete is refused')
    .exactOptional(),
  provenDead: z
    .boolean()
    .describe('Refuse also where Temporal does not say that the run died which left it, as the reconciler does')
    .exactOptional(),
}) satisfies z.ZodType<DeleteSnapshotInput, DeleteSnapshotInput>;

/** Input of `reconcile`, and the REST body that starts one. */
export const reconcileInput = z.strictObject({
  repair: z.boolean().describe('Repair what is unambiguous; absent: only report').exactOptional(),
}) satisfies z.ZodType<ReconcileInput, ReconcileInput>;

// Both directions: a field added to the public type only would otherwise pass unseen.
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
true satisfies Same<keyof SnapshotVmInput, keyof z.infer<typeof snapshotVmInput>>;
true satisfies Same<SnapshotVmInput, z.infer<typeof snapshotVmInput>>;
true satisfies Same<keyof DeleteSnapshotInput, keyof z.infer<typeof deleteSnapshotInput>>;
true satisfies Same<DeleteSnapshotInput, z.infer<typeof deleteSnapshotInput>>;

/** One thing wrong with an input: where (dotted, empty for the whole) and what. */
export interface InputFault {
  field: string;
  message: string;
}

/** All that zod found wrong, one entry a field, unknown ones by their name. */
export function inputFaults(error: z.core.$ZodError): InputFault[] {
  return error.issues.flatMap((issue): InputFault[] => {
    if (issue.code === 'unrecognized_keys') {
      return issue.keys.map((key) => ({ field: fieldName([...issue.path, key]), message: 'is not a known field' }));
    }
    return [{ field: fieldName(issue.path), message: issue.message }];
  });
}

/** `disks[1]`, `name`; bounded, since the name may be the sender's. */
function fieldName(path: readonly PropertyKey[]): string {
  let name = '';
  for (const part of path) name += typeof part === 'number' ? `[${part}]` : `${name === '' ? '' : '.'}${String(part)}`;
  return name.length > 100 ? `${name.slice(0, 100)}…` : name;
}
