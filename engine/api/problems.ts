import { z } from 'zod';

/**
 * The one table of the API's error codes: HTTP status and title. The host agent's codes pass through with their own text; what they have in common with
 * ours means the same. Cinder's are never here: only a run and GET /v1/cloud speak with it, and tell its codes as data. A request can never be the reason of a 5xx: those say that something of ours is down.
 */
const table = {
  // The request
  INPUT_INVALID: [400, 'The request is not valid'],
  BODY_MALFORMED: [400, 'The body is not valid JSON'],
  REQUEST_MALFORMED: [400, 'The request is not valid HTTP'],
  HOST_HEADER_REFUSED: [403, 'The Host header does not name this machine'],
  ORIGIN_REFUSED: [403, 'Requests from other web sites are refused'],
  NOT_FOUND: [404, 'No such resource'],
  METHOD_NOT_ALLOWED: [405, 'The resource does not know this method'],
  BODY_TOO_LARGE: [413, 'The body is too large'],
  MEDIA_TYPE_UNSUPPORTED: [415, 'The body must be application/json'],
  IDEMPOTENCY_CONFLICT: [422, 'The Idempotency-Key was used with another request'],

  // Hosts and VMs
  HOST_NOT_FOUND: [404, 'No such host'],
  HOST_EXISTS: [409, 'The host exists already'],
  HOST_IN_USE: [409, 'The host is still needed'],
  HOST_LOST: [409, 'The host was removed as lost'],
  HOST_UNREACHABLE: [503, 'The host agent does not answer'],
  HOST_IDENTITY: [503, "The host agent's certificate is not the host's"],
  VM_NOT_FOUND: [404, 'No such VM'],
  VM_NAME_AMBIGUOUS: [409, 'Several VMs have this name'],
  VM_AMBIGUOUS: [409, 'Several hosts report this VM'],
  VM_BUSY: [409, 'Another operation runs on this VM'],

  // Snapshots
  SNAPSHOT_NOT_FOUND: [404, 'No such snapshot'],
  SNAPSHOT_STATE: [409, 'The state of the snapshot does not allow this'],
  SNAPSHOT_ID_USED: [409, 'The snapshot id is taken'],

  // The doctor
  REPORT_NOT_FOUND: [404, 'No such report'],

  // The host agent's, when it is asked to thaw
  INVALID_ARGUMENT: [409, 'The host agent refused the request'],
  VM_NOT_RUNNING: [409, 'The VM does not run'],
  VM_PAUSED: [409, 'The VM is paused'],
  VM_CHANGED: [409, 'The VM has changed meanwhile'],
  MIGRATION_ACTIVE: [409, 'The VM is being migrated'],
  BLOCK_JOB_ACTIVE: [409, 'A block job runs on the VM'],
  HYPERVISOR_BUSY: [409, 'Another job of libvirt holds the VM'],
  AGENT_NOT_CONFIGURED: [409, 'The VM has no guest agent'],
  AGENT_NOT_CONNECTED: [409, 'The guest agent is not connected'],
  AGENT_NOT_RESPONDING: [409, 'The guest agent does not answer'],
  ALREADY_FROZEN: [409, 'Somebody else froze the guest'],
  FREEZE_HOOK_FAILED: [409, "The guest's fsfreeze hook refused"],
  FREEZE_TIMEOUT: [409, 'The freeze was not answered in time'],
  FREEZE_FAILED: [409, 'The guest agent refused the freeze'],
  MAYBE_FROZEN: [409, 'An earlier freeze was never answered'],
  STILL_FROZEN: [409, 'The guest is frozen and cannot be thawed now'],
  QUIESCE_INCOMPLETE: [409, 'A freeze does not cover every disk'],
  BUSY: [409, 'Another operation holds the VM'],
  NOT_PREPARED: [409, 'The window is not prepared'],
  WINDOW_CLOSED: [409, 'The window is closed'],
  WINDOW_UNKNOWN: [409, 'The host does not know the window'],
  CUT_UNKNOWN: [409, 'The freeze did not name the cut'],
  CUT_ALREADY_HELD: [409, 'The cut is held already'],
  DISK_NOT_FOUND: [409, 'No such disk'],
  DISK_NOT_SNAPSHOTTABLE: [409, 'The disk cannot be snapshotted'],
  CHAIN_TOO_DEEP: [409, 'The backing chain is too deep'],
  NO_SPACE: [409, 'Too little space on the host'],
  OVERLAY_EXISTS: [409, 'The overlay file exists'],
  SNAPSHOT_FAILED: [409, 'libvirt refused the snapshot'],
  MERGE_FAILED: [409, 'The overlay could not be merged'],
  IMAGE_INVALID: [409, 'The image cannot be read'],
  LIBVIRT_TOO_OLD: [409, 'libvirt is too old'],
  LIBVIRT_ERROR: [503, 'libvirt reported an error'],
  LIBVIRT_UNREACHABLE: [503, 'libvirt does not answer on the host'],
  LIBVIRT_PROTOCOL: [503, "libvirt's answer on the host is not valid"],
  LIBVIRT_CALL_TIMEOUT: [503, 'libvirt did not answer in time'],
  CLIENT_NOT_ALLOWED: [503, "The host agent does not accept the engine's certificate"],
  SHUTTING_DOWN: [503, 'The host agent is stopping'],
  JOURNAL_UNWRITABLE: [503, "The host agent's state folder cannot be written"],

  // Ours
  CATALOGUE_UNAVAILABLE: [503, 'The catalogue does not answer'],
  CATALOGUE_DENIED: [503, 'The database does not let the engine in'],
  TEMPORAL_UNAVAILABLE: [503, 'Temporal does not answer'],
  NOT_READY: [503, 'The engine is not ready'],
  INTERNAL: [500, 'An error in Stillpoint'],
} as const satisfies Record<string, readonly [number, string]>;

export type ProblemCode = keyof typeof table;

export const problemCodes = Object.keys(table) as ProblemCode[];

/** Whether the table knows a code. */
export function isProblemCode(code: string): code is ProblemCode {
  return Object.hasOwn(table, code);
}

export function statusOf(code: ProblemCode): number {
  return table[code][0];
}

/** A body of type application/problem+json (RFC 9457). Every problem carries a code; what else it names depends on it. */
export const problemSchema = z
  .looseObject({
    type: z.string().describe('urn:stillpoint:problem:<code>'),
    title: z.string(),
    status: z.int(),
    detail: z.string().describe('What happened and what to do'),
    code: z.string().describe('Stable; see the list of codes in docs/api.md'),
    field: z.string().exactOptional().describe('The field that is not valid'),
  })
  .meta({ id: 'Problem' });
export type ProblemBody = z.infer<typeof problemSchema>;

/** Thrown by the routes, answered as problem+json. `members` are added to the body. */
export class Problem extends Error {
  override readonly name = 'Problem';
  readonly code: ProblemCode;
  readonly members: Readonly<Record<string, unknown>>;

  constructor(code: ProblemCode, detail: string, members: Record<string, unknown> = {}, cause?: unknown) {
    super(detail, cause === undefined ? undefined : { cause });
    this.code = code;
    this.members = members;
  }

  get status(): number {
    return statusOf(this.code);
  }

  body(): ProblemBody {
    const [status, title] = table[this.code];
    const type = `urn:stillpoint:problem:${this.code.toLowerCase().replaceAll('_', '-')}`;
    return { type, title, status, detail: this.message, code: this.code, ...this.members };
  }
}
