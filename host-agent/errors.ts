/**
 * The one table of the host agent's errors: a stable code, the gRPC status it travels as, and what to do about it.
 * `transient` says that the same call may succeed when repeated unchanged; an unknown error is INTERNAL and never read as another.
 */
const table = {
  INVALID_ARGUMENT: { status: 'INVALID_ARGUMENT', advice: 'Correct the request.' },
  CLIENT_NOT_ALLOWED: {
    status: 'PERMISSION_DENIED',
    advice: 'Use the certificate that stillpoint-host-agent certs engine makes: only stillpoint:engine is let in.',
  },

  VM_NOT_FOUND: { status: 'NOT_FOUND', advice: 'Check the UUID, and whether the VM has moved to another host.' },
  VM_NOT_RUNNING: { status: 'FAILED_PRECONDITION', advice: 'Start the VM, or copy its disks while it is off.' },
  VM_PAUSED: { status: 'FAILED_PRECONDITION', advice: 'Resume the VM, or ask for quiesce=skip.' },
  VM_CHANGED: {
    status: 'ABORTED',
    advice: 'The VM changed between the checks and the cut. Ask for the snapshot again.',
  },
  MIGRATION_ACTIVE: { status: 'FAILED_PRECONDITION', advice: 'Wait until the migration has ended.' },
  BLOCK_JOB_ACTIVE: {
    status: 'FAILED_PRECONDITION',
    advice: 'Wait until the block job of that disk has ended, or abort it.',
  },
  HYPERVISOR_BUSY: {
    status: 'UNAVAILABLE',
    advice: 'Another job of libvirt holds the VM. Try again when it has ended.',
    transient: true,
  },
  LIBVIRT_UNREACHABLE: {
    status: 'UNAVAILABLE',
    advice: 'Start libvirtd (or virtqemud) on the host; the host agent reconnects by itself.',
    transient: true,
  },
  LIBVIRT_PROTOCOL: {
    status: 'INTERNAL',
    advice: 'libvirt answered something that is no valid answer. Check which program listens on its socket.',
  },
  LIBVIRT_CALL_TIMEOUT: {
    status: 'DEADLINE_EXCEEDED',
    advice: 'libvirt did not answer in time; what it was asked may still happen.',
  },
  LIBVIRT_TOO_OLD: {
    status: 'FAILED_PRECONDITION',
    advice: 'Quiescing needs libvirt 5.10 or newer; upgrade it, or ask for quiesce=skip.',
  },
  LIBVIRT_ERROR: {
    status: 'UNKNOWN',
    advice: 'libvirt reported an error that Stillpoint does not know; its text says more.',
  },

  AGENT_NOT_CONFIGURED: {
    status: 'FAILED_PRECONDITION',
    advice: 'Add a guest agent channel (org.qemu.guest_agent.0) to the domain.',
  },
  AGENT_NOT_CONNECTED: { status: 'FAILED_PRECONDITION', advice: 'Install and start qemu-guest-agent in the guest.' },
  AGENT_NOT_RESPONDING: {
    status: 'DEADLINE_EXCEEDED',
    advice: 'Look at qemu-guest-agent in the guest: it runs but does not answer.',
  },
  ALREADY_FROZEN: {
    status: 'FAILED_PRECONDITION',
    advice: 'Somebody else froze this guest. If nobody needs it any more: stillpoint thaw VM.',
  },
  FREEZE_HOOK_FAILED: {
    status: 'FAILED_PRECONDITION',
    advice: "Look at the guest's fsfreeze-hook: it refused the freeze. The guest is thawed.",
  },
  FREEZE_TIMEOUT: {
    status: 'DEADLINE_EXCEEDED',
    advice: 'The freeze was not answered in time. The host agent watches the guest and thaws it if it still freezes.',
  },
  FREEZE_FAILED: {
    status: 'UNKNOWN',
    advice:
      'The guest agent refused the freeze; its text says more. The host agent made sure that the guest is thawed.',
  },
  MAYBE_FROZEN: {
    status: 'UNAVAILABLE',
    advice:
      'An earlier freeze of this VM was never answered. Wait until its guest agent answers; the host agent thaws it then.',
  },
  STILL_FROZEN: {
    status: 'UNAVAILABLE',
    advice: 'The guest is frozen and cannot be thawed now; the host agent keeps trying.',
    transient: true,
  },
  QUIESCE_INCOMPLETE: {
    status: 'FAILED_PRECONDITION',
    advice:
      "A freeze does not cover every disk of the set. Accept the disk by name (unquiesced), or choose disks that the guest's file systems cover.",
  },

  BUSY: {
    status: 'ABORTED',
    advice:
      'Another operation holds this VM. Wait for it, or release it on the host: stillpoint-host-agent release VM.',
  },
  NOT_PREPARED: { status: 'FAILED_PRECONDITION', advice: 'Prepare the window first.' },
  WINDOW_CLOSED: {
    status: 'FAILED_PRECONDITION',
    advice: 'This window was thawed or undone and stays closed. Start a new snapshot.',
  },
  WINDOW_UNKNOWN: { status: 'NOT_FOUND', advice: 'No such window on this host.' },
  CUT_UNKNOWN: { status: 'FAILED_PRECONDITION', advice: 'The freeze did not name this cut.' },
  CUT_ALREADY_HELD: { status: 'ALREADY_EXISTS', advice: 'A cut is held once per window.' },
  SHUTTING_DOWN: {
    status: 'UNAVAILABLE',
    advice: 'The host agent is stopping. Try again when it is back.',
    transient: true,
  },
  JOURNAL_UNWRITABLE: {
    status: 'UNAVAILABLE',
    advice: "The host agent's state folder cannot be written (disk full?): nothing is frozen without a lease on disk.",
  },

  DISK_NOT_FOUND: { status: 'NOT_FOUND', advice: "Name the disks by their target, as in the VM's disk list." },
  DISK_NOT_SNAPSHOTTABLE: { status: 'FAILED_PRECONDITION', advice: 'Leave this disk out.' },
  CHAIN_TOO_DEEP: {
    status: 'FAILED_PRECONDITION',
    advice: 'Delete snapshots of this VM first: its backing chain is at the limit.',
  },
  NO_SPACE: { status: 'RESOURCE_EXHAUSTED', advice: 'Free space on the file system of the images.' },
  OVERLAY_EXISTS: {
    status: 'ALREADY_EXISTS',
    advice: "A file of this window's name exists and is not ours to replace. Start a new snapshot.",
  },
  SNAPSHOT_FAILED: { status: 'UNKNOWN', advice: 'libvirt refused the snapshot; its text says more.' },
  MERGE_FAILED: { status: 'UNKNOWN', advice: 'The overlay could not be merged; no data is lost. Repeat the deletion.' },
  IMAGE_INVALID: {
    status: 'FAILED_PRECONDITION',
    advice: 'qemu-img cannot read this image; check it with qemu-img check.',
  },

  INTERNAL: { status: 'INTERNAL', advice: "An error in Stillpoint: report it with the host agent's log." },
} as const satisfies Record<string, { status: string; advice: string; transient?: true }>;

/** A stable code of the host agent; it travels as google.rpc.ErrorInfo.reason. */
export type HostAgentErrorCode = keyof typeof table;

/** The table's row: gRPC status name, advice, and whether repeating the call may help. */
export function errorRow(code: HostAgentErrorCode): { status: string; advice: string; transient: boolean } {
  const row: { status: string; advice: string; transient?: true } = table[code];
  return { status: row.status, advice: row.advice, transient: row.transient === true };
}

/** All codes, for documentation and for the engine's table to be checked against. */
export const hostAgentErrorCodes = Object.keys(table) as HostAgentErrorCode[];

/**
 * Thrown by every room of the host agent. `message` says what happened, the table's advice what to do;
 * `cause` is the error underneath (libvirt's, the file system's); `metadata` holds the values that the text names.
 */
export class HostAgentError extends Error {
  override readonly name = 'HostAgentError';
  readonly code: HostAgentErrorCode;
  readonly metadata: Readonly<Record<string, string>>;

  constructor(
    code: HostAgentErrorCode,
    message: string,
    options: { cause?: unknown; metadata?: Record<string, string> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.metadata = options.metadata ?? {};
  }
}

/** Whether `error` is a HostAgentError, of this code if one is given. */
export function isHostAgentError(error: unknown, code?: HostAgentErrorCode): error is HostAgentError {
  return error instanceof HostAgentError && (code === undefined || error.code === code);
}
