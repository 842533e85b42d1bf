import { HostAgentError, type HostAgentErrorCode, isHostAgentError } from '../errors.js';
import type { FreezeRoom, Hold, Overlay, Pinned, SnapshotRoom, Verdict } from '../window.js';
import type { Call } from './call.js';
import type { CheckedSnapshotVm } from './validate.js';

/** What SnapshotVm answers. */
export interface LocalCut {
  overlays: Overlay[];
  transactionMs: number;
  /** Of a freeze made in this call. */
  verdict: Verdict | undefined;
  /** Why best-effort went on without a freeze. */
  unfrozenReason: HostAgentErrorCode | undefined;
}

type Rooms = { freeze: FreezeRoom; snapshot: SnapshotRoom };
type Prepared = { pinned: Pinned; overlays: Overlay[] };

/** Name of the only cut of a window that this call freezes by itself. */
const localCut = 'local';

/**
 * SnapshotVm: the local disks, in one transaction. With `frozen` it is one cut among the engine's; without, the whole window is made here, through the same
 * freeze room. The call is its own hold: whoever breaks it off breaks the window, although libvirt's transaction cannot be called back.
 */
export async function snapshotVm(rooms: Rooms, request: CheckedSnapshotVm, call: Call): Promise<LocalCut> {
  const prepared = preparedFor(rooms.freeze, request);
  if (!request.frozen && request.quiesce !== 'skip') return freezeCutThaw(rooms, request, prepared, call);
  const hold = rooms.freeze.hold(request.vm, request.window, request.frozen ? request.cut : localCut);
  return cutUnderHold(rooms, request, hold, prepared, call);
}

async function freezeCutThaw(
  rooms: Rooms,
  request: CheckedSnapshotVm & { frozen: false },
  prepared: Prepared,
  call: Call,
): Promise<LocalCut> {
  const { vm, window, freezeTimeoutMs } = request;
  const hold = rooms.freeze.hold(vm, window, localCut);
  const cutting = cutUnderHold(rooms, request, hold, prepared, call);
  // Without a freeze there is no cut, and the freeze's error tells more.
  cutting.catch(() => undefined);
  try {
    await rooms.freeze.freeze({ vm, window, cuts: [localCut], freezeTimeoutMs, caller: call.gone });
  } catch (error) {
    hold.end({ failed: 'the freeze failed' });
    if (request.quiesce === 'best-effort' && mayGoOnUnfrozen(error, call)) {
      const { transactionMs } = await rooms.snapshot.cut({ vm, window, ...prepared });
      return { overlays: prepared.overlays, transactionMs, verdict: undefined, unfrozenReason: error.code };
    }
    throw error;
  }
  let cut: LocalCut;
  try {
    cut = await cutting;
  } catch (error) {
    // The failed hold has caused the thaw already; waiting for it here means that this call never returns with its guest frozen.
    await rooms.freeze.thaw(vm, window, 'the cut failed').catch((thawError: unknown) => {
      call.log.warn({ err: thawError }, 'not thawed yet after a failed cut; the freeze room keeps trying');
    });
    throw error;
  }
  return { ...cut, verdict: await rooms.freeze.thaw(vm, window, 'the local cut is done') };
}

/** Cuts as soon as the window is held, which begins with the freeze where there is one. */
async function cutUnderHold(
  rooms: Rooms,
  request: { vm: string; window: string },
  hold: Hold,
  prepared: Prepared,
  call: Call,
): Promise<LocalCut> {
  const { vm, window } = request;
  const breakHold = () => hold.end({ broken: 'the call was broken off (caller gone, or its connection lost)' });
  if (call.gone.aborted) breakHold();
  call.gone.addEventListener('abort', breakHold, { once: true });
  try {
    await hold.held;
    const { transactionMs } = await rooms.snapshot.cut({ vm, window, ...prepared });
    // Not in time is no error here: the cut exists, and the verdict says what it is worth.
    const ended = hold.end({ done: true });
    if (!ended.inTime) call.log.warn({ reason: ended.reason }, 'the cut ended after its window');
    return { overlays: prepared.overlays, transactionMs, verdict: undefined, unfrozenReason: undefined };
  } catch (error) {
    hold.end({ failed: error instanceof Error ? error.message : String(error) });
    throw error;
  } finally {
    call.gone.removeEventListener('abort', breakHold);
  }
}

function preparedFor(freeze: FreezeRoom, request: CheckedSnapshotVm): Prepared {
  const prepared = freeze.prepared(request.window);
  if (prepared === undefined) {
    throw new HostAgentError('NOT_PREPARED', `Window ${request.window} is not prepared.`, {
      metadata: { window: request.window },
    });
  }
  const preparedTargets = prepared.overlays.map((overlay) => overlay.target);
  const same =
    preparedTargets.length === request.disks.length &&
    preparedTargets.every((target) => request.disks.includes(target));
  if (!same) {
    throw new HostAgentError(
      'INVALID_ARGUMENT',
      `disks: names ${request.disks.join(', ')}, but ${preparedTargets.join(', ') || 'no disk'} was prepared.`,
      { metadata: { field: 'disks' } },
    );
  }
  return prepared;
}

/**
 * Best effort goes on when there is no guest agent or it does not answer, while the caller waits. A window that somebody closed meanwhile is none of these:
 * its freeze ends in WINDOW_CLOSED, however the guest agent answered.
 */
function mayGoOnUnfrozen(error: unknown, call: Call): error is HostAgentError {
  return isHostAgentError(error) && withoutAgent.has(error.code) && !call.gone.aborted;
}

const withoutAgent: ReadonlySet<HostAgentErrorCode> = new Set([
  'AGENT_NOT_CONFIGURED',
  'AGENT_NOT_CONNECTED',
  'AGENT_NOT_RESPONDING',
  'FREEZE_TIMEOUT',
  'LIBVIRT_TOO_OLD',
]);
