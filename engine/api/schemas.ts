import { findingCodes } from '@stillpoint/workflows';
import { z } from 'zod';

import { quiescePolicy, snapshotId } from '../contract/snapshot-input.js';
import { diskPart, gap, grade, leftOutDisk, windowFacts } from '../contract/snapshot-result.js';

/** What the API takes and answers, beside the body of a snapshot, which is the contract's. */

const time = z.string().describe('ISO 8601');

const errorText = z.object({ code: z.string(), text: z.string() });

// ---- hosts

/** A host's name is what its certificate carries. */
export const hostName = z
  .string()
  .max(253)
  .regex(
    /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*$/,
    'must be a host name in lower case, like hv-1.example.org',
  );

export const hostAddress = z
  .string()
  .max(300)
  .regex(
    /^(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$/,
    'must be HOST:PORT, an IPv6 address in brackets, a port up to 65535',
  );

export const newHost = z.strictObject({
  name: hostName.describe("As in the certificate of the host's agent"),
  address: hostAddress.describe('Of the host agent, HOST:PORT (its usual port is 8701)'),
});

export const hostView = z
  .object({
    name: z.string(),
    address: z.string(),
    state: z.enum(['active', 'lost']),
    addedAt: time,
    reachable: z.boolean(),
    error: errorText.nullable().describe('Why it does not answer'),
    version: z.string().nullable(),
    hypervisor: z.string().nullable().describe('libvirt or simulated'),
    canQuiesce: z.boolean().nullable(),
    warnings: z.array(z.string()),
  })
  .meta({ id: 'Host' });
export type HostView = z.infer<typeof hostView>;

export const hostsAnswer = z.object({ hosts: z.array(hostView) });

// ---- the cloud

const limit = z.object({ limit: z.number().describe('-1: none'), used: z.number() });

export const cloudView = z
  .object({
    configured: z.boolean(),
    usable: z.boolean().describe('Keystone gave a token, and Cinder answers it'),
    error: errorText.nullable().describe('Why it cannot be used'),
    source: z.string().nullable().describe('Where it was read'),
    authUrl: z.string().nullable().describe("Keystone's address; null: Cinder believes whoever asks (noauth)"),
    as: z.string().nullable().describe('Who the engine is to the cloud'),
    project: z.string().nullable().describe('null: the one that the application credential is for'),
    region: z.string().nullable(),
    interface: z.enum(['public', 'internal', 'admin']).nullable(),
    endpoint: z
      .string()
      .nullable()
      .describe("Cinder's address, where it is configured; null: as Keystone's catalogue says"),
    warnings: z.array(z.string()).describe('What is allowed but ought not to be'),
    pools: z.array(z.string()).describe("Ceph pools in which the volumes' images may be"),
    checkAttachment: z.boolean().nullable().describe("Whether a volume's attachment must name the VM"),
    quota: z
      .object({ snapshots: limit, gigabytes: limit })
      .nullable()
      .describe("The project's; null: not known, or not to be read with this role"),
  })
  .meta({ id: 'Cloud' });
export type CloudView = z.infer<typeof cloudView>;

// ---- VMs

/** A UUID or a name, as it stands in the path. */
export const vmParameter = z
  .string()
  .min(1)
  .refine((name) => [...name].length <= 255, 'must be 1 to 255 characters')
  .meta({ description: "The VM's UUID or name", maxLength: 255, examples: ['web-1'] });

const hold = z.object({
  snapshotId: z.string().describe('Operation that holds the VM; empty: an administrator or a stranger froze it'),
  window: z.string(),
  installation: z.string(),
  reservedAt: time.nullable(),
  freezeState: z.enum(['thawed', 'freezing', 'frozen', 'thawing', 'maybe-frozen', 'still-frozen', 'unknown']),
  frozenSince: time.nullable(),
  detail: z.string(),
  windowLimitMs: z.number(),
});

export const vmView = z
  .object({
    uuid: z.string(),
    name: z.string(),
    host: z.string(),
    state: z.enum(['running', 'paused', 'shut-off', 'other']),
    guestAgent: z.enum(['connected', 'disconnected', 'not-configured', 'unknown']),
    stale: z
      .boolean()
      .describe(
        'Its host does not answer: this is what it said last; if only its libvirt is away, hold is as it is now',
      ),
    seenAt: time,
    hold: hold.nullable().describe('Who holds the VM, and whether its guest is frozen'),
    disks: z.array(
      z.object({
        target: z.string(),
        kind: z
          .enum(['file', 'block', 'rbd', 'network', 'other'])
          .describe(
            "file and block: a disk of the host; rbd: a Ceph image, Cinder's where its serial is a volume's id",
          ),
        path: z.string().describe("The active image or device of a disk of the host; empty for others'"),
        image: z.string().describe('POOL/IMAGE of a Ceph image; empty for others'),
        format: z.string(),
        sizeBytes: z.number(),
        serial: z.string().describe("What the guest sees; a volume's disk carries Cinder's id of the volume"),
        writable: z.boolean(),
        leftOut: z
          .string()
          .nullable()
          .describe('Why its host says that it cannot be snapshotted; whose volume it is, a snapshot asks Cinder'),
        chainDepth: z.number().describe('Images in its backing chain, of a disk of the host'),
      }),
    ),
  })
  .meta({ id: 'Vm' });
export type VmView = z.infer<typeof vmView>;

export const vmsAnswer = z.object({
  vms: z.array(vmView),
  hosts: z.array(z.object({ name: z.string(), reachable: z.boolean(), error: errorText.nullable() })),
});

export const thawAnswer = z.object({
  vm: z.object({ uuid: z.string(), name: z.string() }),
  host: z.string(),
  thawedFileSystems: z.number(),
  lostWindow: z.string().nullable().describe('The window whose freeze this thaw has ended'),
});

// ---- snapshots

export const snapshotState = z.enum([
  'accepted',
  'running',
  'recording',
  'undoing',
  'complete',
  'failed',
  'cancelled',
  'cleanup-pending',
  'deleting',
  'deleted',
]);

const progress = z.object({
  state: z.enum([
    'checking',
    'queued',
    'preparing',
    'freezing',
    'frozen',
    'cutting',
    'thawing',
    'recording',
    'undoing',
    'deleting',
    'done',
  ]),
  waiting: z.string().nullable().describe('What it waits for that a person should know'),
  steps: z.array(
    z.object({
      name: z.string(),
      startedAt: time,
      ms: z.number().nullable().describe('null: it runs'),
      error: z.string().nullable(),
    }),
  ),
});

export const snapshotView = z
  .object({
    id: z.string(),
    name: z.string().nullable(),
    description: z.string().nullable(),
    vm: z.object({ uuid: z.string(), name: z.string() }),
    host: z.string().nullable(),
    quiesce: quiescePolicy,
    state: snapshotState,
    grade: grade.nullable().describe('How consistent it was proven to be; null: not (yet) recorded'),
    why: z.string().nullable(),
    partial: z.boolean().nullable().describe('A writable disk is left out'),
    createdAt: time,
    endedAt: time.nullable(),
    window: windowFacts.nullable(),
    disks: z.array(diskPart),
    leftOut: z.array(leftOutDisk),
    unfrozen: z.array(gap),
    error: errorText.nullable(),
    pending: z.array(z.string()).describe('What remains to be cleaned up, and what will end it'),
    run: z.object({ workflowId: z.string(), runId: z.string() }).nullable(),
    progress: progress.nullable().describe('The steps, from the run itself, for as long as Temporal keeps it'),
  })
  .meta({ id: 'Snapshot' });
export type SnapshotView = z.infer<typeof snapshotView>;

export const snapshotsAnswer = z.object({
  snapshots: z.array(snapshotView),
  next: z
    .string()
    .nullable()
    .describe('Cursor of the next page; a page by state may be short, or empty, before the last'),
});

export const acceptedAnswer = z
  .object({
    id: z.string(),
    vm: z.object({ uuid: z.string(), name: z.string() }),
    href: z.string().describe('Where the snapshot is followed; as in Location'),
  })
  .meta({ id: 'Accepted' });

export const idempotencyHeaders = z.object({
  'idempotency-key': z
    .string()
    .regex(/^[\x21-\x7e]{1,255}$/, 'must be 1 to 255 printable ASCII characters without spaces')
    .describe('The same key and request is answered the same; with another request it is refused')
    .optional(),
});

export const snapshotsQuery = z.strictObject({
  vm: vmParameter.optional(),
  grade: grade.optional(),
  state: snapshotState.optional().describe('Deleted snapshots are listed only by deleted'),
  limit: z.coerce.number().int().min(1).max(200).default(50),
  cursor: snapshotId.describe('next of the page before').optional(),
});

export const snapshotQuery = z.strictObject({
  wait: z.coerce.number().min(0).max(60).describe('Seconds to wait for the end of its run').optional(),
});

// ---- the doctor

const finding = z.object({
  code: z.enum(findingCodes).describe('Stable; docs/doctor.md says what each means'),
  about: z
    .object({
      host: z.string().optional(),
      vm: z.object({ uuid: z.string(), name: z.string() }).optional(),
      snapshotId: z.string().optional(),
      thing: z
        .string()
        .optional()
        .describe("A file's path, Cinder's id of a snapshot, or the operation that holds the VM"),
    })
    .describe('With the code: the same in every report'),
  text: z.string().describe('What was found'),
  advice: z.string().describe('What a person can do; of what can be repaired: what the repair does'),
  outcome: z.enum(['for-a-person', 'repairable', 'repaired', 'not-repaired']),
  detail: z.string().describe('Of what was not repaired: why'),
});

export const doctorRun = z
  .object({
    id: z.string(),
    state: z.enum(['running', 'done', 'failed']),
    startedAt: time,
    error: errorText.nullable().describe('Why it failed'),
    report: z
      .object({
        at: time.describe('When it looked'),
        repair: z.boolean().describe('Whether it was to repair'),
        looked: z.object({
          hosts: z.number(),
          snapshots: z.number(),
          overlays: z.number(),
          volumeSnapshots: z.number(),
        }),
        findings: z.array(finding),
        omitted: z.number().describe('Findings that are not told, because there are too many'),
      })
      .nullable(),
  })
  .meta({ id: 'DoctorRun' });
export type DoctorRun = z.infer<typeof doctorRun>;

/** Ours, or that of a run of the schedule: they are workflow ids. */
export const doctorParameters = z.object({
  id: z.string().regex(/^[0-9A-Za-z:.-]{1,200}$/, 'must be the id of a report'),
});

export const snapshotParameters = z.object({ id: snapshotId });
export const noQuery = z.strictObject({});
