import { HostAgentError } from '../errors.js';

/** Every time and size of the freeze room. All are settings, so that no test needs to wait for a production value. */
export interface FreezeSettings {
  /** ms that a freeze waits until somebody stands ready for every cut that it names; nothing is frozen before. */
  readyMs: number;
  /** s that the guest agent has for the status question before the thaw: libvirt's smallest timeout, because it lies inside the window. */
  statusTimeoutS: number;
  /** s that the guest agent has for what is asked before the freeze (status, OS, file systems). */
  readTimeoutS: number;
  /** s that the guest agent has for the thaw: a thaw hook may be slow, and a Windows thaw once took 54 s. */
  thawTimeoutS: number;
  /** The domain's agent timeout once we are done with it, in s; libvirt cannot say what it was before. */
  agentTimeoutAfter: number | 'default';
  /** ms from the freeze's answer after which the guest is thawed whatever happens, unless the request says otherwise. */
  windowLimitMs: number;
  /** The same for Windows, whose VSS gives up at 10 s. */
  windowLimitWindowsMs: number;
  /** ms beyond libvirt's own timeout after which a call is taken as unanswered. */
  callGuardMs: number;
  /** ms before the first repetition of a thaw or status question; it doubles up to retryMaxMs. */
  retryFirstMs: number;
  /** ms, the longest pause between repetitions: what becomes possible without an event is noticed that soon. */
  retryMaxMs: number;
  /** ms after which a thaw that is due and not answered is told as `still frozen`. */
  stillFrozenAfterMs: number;
  /** ms that a caller waits for a thaw before it is told STILL_FROZEN; the thaw itself goes on. */
  thawAnswerMs: number;
  /** Ids of closed windows that the journal keeps at least, however old. */
  closedWindowsKept: number;
  /** ms for which the journal keeps the id of every closed window, however many. */
  closedWindowsKeptMs: number;
  /** Records since the last rewriting after which the journal is rewritten. */
  compactAfterRecords: number;
}

export const defaultFreezeSettings: FreezeSettings = {
  readyMs: 5_000,
  statusTimeoutS: 1,
  readTimeoutS: 5,
  thawTimeoutS: 60,
  agentTimeoutAfter: 'default',
  windowLimitMs: 30_000,
  windowLimitWindowsMs: 8_000,
  callGuardMs: 5_000,
  retryFirstMs: 100,
  retryMaxMs: 1_000,
  stillFrozenAfterMs: 1_500,
  thawAnswerMs: 10_000,
  closedWindowsKept: 10_000,
  closedWindowsKeptMs: 30 * 24 * 3_600_000,
  compactAfterRecords: 20_000,
};

/** Refuses a freeze timeout outside 1 s to 10 min. Errors: INVALID_ARGUMENT. */
export function checkFreezeTimeout(ms: number): void {
  checkRange('freeze timeout', ms, 1_000, 600_000);
}

/** Refuses a window limit outside 0.1 s to 60 s. Errors: INVALID_ARGUMENT. */
export function checkWindowLimit(ms: number): void {
  checkRange('window limit', ms, 100, 60_000);
}

/**
 * Refuses an id that is empty, overlong, or holds anything but letters, digits, '.', '_', ':' and '-': ids end up in file names
 * and in the journal. Errors: INVALID_ARGUMENT.
 */
export function checkId(what: string, id: string): void {
  if (!/^[A-Za-z0-9._:-]{1,200}$/.test(id)) {
    throw new HostAgentError('INVALID_ARGUMENT', `The ${what} ${JSON.stringify(id.slice(0, 200))} is no valid id.`, {
      metadata: { field: what },
    });
  }
}

function checkRange(what: string, ms: number, least: number, most: number): void {
  if (!Number.isFinite(ms) || ms < least || ms > most) {
    throw new HostAgentError('INVALID_ARGUMENT', `The ${what} must be ${least} to ${most} ms, not ${ms}.`, {
      metadata: { field: what },
    });
  }
}
