import { setTimeout as delay } from 'node:timers/promises';
import type { Activities, VolumeCut } from '@stillpoint/workflows';
import type { Cinder, NewVolumeSnapshot, VolumeSnapshot } from '../cinder/cinder.js';
import { type CinderError, isCinderError } from '../cinder/errors.js';
import type { CutHold } from '../hosts/hosts.js';
import type { ActivityDeps } from './deps.js';
import { ActivityError, asActivityError, cloudOf } from './failure.js';
import { descriptionOf, fitting, metadataOf, windowMetadata } from './volume-names.js';
import { deletedSnapshot } from './volume-removal.js';

/** `held` or a ping of the stream must be younger than this when the create is sent, ms: Cinder cannot refuse what comes late. */
const freshMs = 1_000;
/** What may be repeated inside the window (a connection refused, a 503) is repeated for so long, ms. */
const repeatMs = 2_000;
const repeatEveryMs = 50;
/**
 * There is no event to wait for: Cinder is asked whether the snapshot is available, ms after its answer to the create and then so often. On
 * the lab it never was sooner, and a plain script's single-volume window was 150 ms with this wait and 172 ms without (12 runs each); presumably the questions
 * take from Cinder the processor that it needs for the cut. A quicker Cinder loses what it would have been ahead.
 */
const firstLookMs = 80;
const pollMs = 20;
/** No window is longer, ms; one that is not frozen has no limit of its own. */
const availableMs = 60_000;
/** So long a cut that lost its window tries to be rid of what it made, ms; then the undo does. */
const discardMs = 10_000;

const GiB = 1024 ** 3;

/** What a cut works with. `answerMs`: so long it waits for word of Cinder, also where it asks again; the guest is frozen meanwhile. */
interface Tools {
  cinder: Cinder;
  hold: CutHold;
  answerMs: number;
}

/**
 * One volume's cut. The hold keeps the window open from before the create is sent until Cinder says `available`: the data is cut in between, and never
 * surely before. Whatever goes wrong is told to the host at once, so that the guest thaws before anything is cleaned up.
 */
export async function snapshotVolume(
  deps: ActivityDeps,
  request: Parameters<Activities['snapshotVolume']>[0],
  signal: AbortSignal,
): Promise<VolumeCut> {
  const { host, vm, window, cut, disk } = request;
  const tools = await begun(deps, { host, vm, window, cut }, signal).catch((error: unknown) => {
    throw asActivityError(error, { outcome: 'none' });
  });

  const { cinder, hold } = tools;
  const started = performance.now();
  const made = await create(tools, newSnapshot(deps, request)).catch(async (error: unknown) => {
    await hold.failed(textOf(error));
    throw error;
  });
  try {
    await untilAvailable(tools, made);
  } catch (error) {
    await hold.failed(textOf(error));
    throw await discarded(cinder, made, error);
  }

  const ended = await hold.done().catch((error: unknown) => {
    // The host may have taken the end of this cut: its verdict says, and what was made stays for it.
    throw asActivityError(error, { outcome: 'made' });
  });
  if (!ended.inTime) {
    const late = new ActivityError('WINDOW_CLOSED', `The window closed before ${disk.target} was cut: ${ended.reason}`);
    throw await discarded(cinder, made, late);
  }
  return {
    part: {
      target: disk.target,
      kind: 'volume',
      volume: disk.volume,
      snapshot: made.id,
      sizeBytes: made.sizeGiB * GiB || disk.sizeBytes,
    },
    cutMs: performance.now() - started,
  };
}

/** What a cut needs; nothing has been asked of Cinder yet. */
async function begun(
  deps: ActivityDeps,
  { host, ...cut }: { host: string; vm: string; window: string; cut: string },
  signal: AbortSignal,
): Promise<Tools> {
  const { cinder, windowRequestTimeoutMs: answerMs } = cloudOf(deps);
  return { cinder, answerMs, hold: await deps.hosts.host(host).holdCut(cut, { signal }) };
}

/**
 * Sends the create while the hold is fresh; again only where nobody was reached, or where it was told to come later and Cinder has said since that nothing of
 * this window is there. Where its answer was lost it only looks for what may have been made.
 *
 * @throws ActivityError; its `outcome` is `none` only where nothing that was sent may have been taken.
 */
async function create(tools: Tools, snapshot: NewVolumeSnapshot): Promise<VolumeSnapshot> {
  const { cinder, hold, answerMs } = tools;
  const started = performance.now();
  const until = started + repeatMs;
  let mayAppear = false;
  for (;;) {
    try {
      // Without a signal: its answer is worth waiting for, because it says what there is to take back.
      return await cinder.createSnapshot(snapshot, { answerMs, beforeSending: () => requireFresh(hold) });
    } catch (error) {
      mayAppear ||= isUnknown(error);
      const pause = repeatableAfter(error);
      let look: Look = { seen: 'no answer' };
      if (pause === undefined) {
        // Where Cinder has answered that it failed it is there or it is not, and the guest is frozen meanwhile: one look.
        const patience = isCinderError(error, 'CINDER_FAILED') ? 0 : repeatMs;
        if (isUnknown(error)) look = await lookFor(tools, snapshot, { started, until: performance.now() + patience });
      } else if (performance.now() + pause <= until) {
        await delay(pause);
        // Nothing was sent where nobody was reached.
        if (isCinderError(error, 'CINDER_UNREACHABLE')) continue;
        look = await lookFor(tools, snapshot, { started, until, once: true });
        if (look.seen === 'nothing') continue;
      }
      if (look.seen === 'it') return look.snapshot;
      throw asActivityError(error, mayAppear ? {} : { outcome: 'none' });
    }
  }
}

/** How long to wait before a create is sent again, ms; undefined where it must not be, because it may have been taken or would be refused again. */
function repeatableAfter(error: unknown): number | undefined {
  if (!isCinderError(error, 'CINDER_UNREACHABLE', 'CINDER_OVERLOADED')) return undefined;
  // "Later" is no word that it was taken, though a proxy may say it after Cinder has: hence the look.
  return error.retryAfterMs ?? (error.mayHaveHappened ? undefined : repeatEveryMs);
}

type Look = { seen: 'it'; snapshot: VolumeSnapshot } | { seen: 'nothing' | 'no answer' };

/** Looks for what a create may have made, until it is seen; `once`: until Cinder has answered. What goes wrong with a look is not what people need to know. */
async function lookFor(
  { cinder, hold, answerMs }: Tools,
  { volumeId, metadata }: NewVolumeSnapshot,
  { started, until, once = false }: { started: number; until: number; once?: boolean },
): Promise<Look> {
  const query = { metadata: windowMetadata(metadata), volumeId };
  // A create that took all the time leaves little for the look.
  const tooLong = AbortSignal.timeout(Math.max(repeatMs, Math.ceil(started + answerMs - performance.now())));
  const signal = AbortSignal.any([hold.lost, tooLong]);
  for (;;) {
    const found = signal.aborted ? undefined : await cinder.findSnapshots(query, { signal }).catch(() => undefined);
    const [snapshot] = found ?? [];
    if (snapshot !== undefined) return { seen: 'it', snapshot };
    if (found !== undefined && once) return { seen: 'nothing' };
    if (signal.aborted || performance.now() > until) return { seen: 'no answer' };
    await delay(repeatEveryMs);
  }
}

async function untilAvailable({ cinder, hold, answerMs }: Tools, { id, volumeId }: VolumeSnapshot): Promise<void> {
  const tooLong = AbortSignal.timeout(availableMs);
  const signal = AbortSignal.any([hold.lost, tooLong]);
  await delay(firstLookMs);
  let answeredAt = performance.now();
  for (;;) {
    if (hold.lost.aborted) throw lossOf(hold);
    if (tooLong.aborted) {
      throw new ActivityError(
        'VOLUME_SNAPSHOT_FAILED',
        `Cinder has not made the snapshot of volume ${volumeId} available within ${availableMs / 1000} s.`,
        { advice: "See cinder-volume's log and the state of the Ceph cluster, then ask for the snapshot again." },
      );
    }
    // Twice in the time that it has: a question may hang where the next one would not.
    const now = await cinder.snapshot(id, { signal, answerMs: answerMs / 2 }).catch((error: unknown) => {
      if (signal.aborted) return undefined;
      const mayPass = isCinderError(error, 'CINDER_UNREACHABLE', 'CINDER_OVERLOADED', 'CINDER_FAILED');
      if (mayPass && performance.now() - answeredAt < answerMs) return undefined;
      throw error;
    });
    if (now !== undefined) answeredAt = performance.now();
    if (now?.status === 'available') return;
    if (now !== undefined && now.status !== 'creating') {
      throw new ActivityError(
        'VOLUME_SNAPSHOT_FAILED',
        `Cinder could not snapshot volume ${now.volumeId}: the snapshot's status is ${now.status}.`,
        { advice: "See cinder-volume's log and the state of the Ceph cluster, then ask for the snapshot again." },
      );
    }
    await delay(pollMs);
  }
}

/** Deletes what the cut made in vain; the error says whether anything of it is left for the undo. */
async function discarded(cinder: Cinder, { id }: VolumeSnapshot, error: unknown): Promise<Error> {
  // The signal bounds the calls, too: a Cinder that hangs must not keep the cut, nor what waits for it to settle.
  const signal = AbortSignal.timeout(discardMs);
  const isGone = await deletedSnapshot(cinder, id, { waitMs: discardMs, signal }).then(
    (end) => end.outcome !== 'pending',
    () => false,
  );
  return asActivityError(error, { outcome: isGone ? 'none' : 'made' });
}

function newSnapshot(
  deps: ActivityDeps,
  { plan, disk, window }: Parameters<Activities['snapshotVolume']>[0],
): NewVolumeSnapshot {
  return {
    volumeId: disk.volume,
    name: fitting(`${plan.name} (${plan.vm.name} ${disk.target})`),
    description: descriptionOf(plan, { target: disk.target, set: plan.setDisks }, 'Not recorded yet.'),
    metadata: metadataOf({
      installation: deps.installationId,
      snapshot: plan.snapshotId,
      window,
      vm: plan.vm,
      disk,
      plan,
    }),
  };
}

function requireFresh(hold: CutHold): void {
  if (!hold.isFresh(freshMs)) throw lossOf(hold);
}

function lossOf(hold: CutHold): unknown {
  if (hold.lost.aborted) return hold.lost.reason;
  return new ActivityError(
    'HOLD_BROKEN',
    'The host agent has not been heard of for a second: nothing is asked of Cinder.',
  );
}

function isUnknown(error: unknown): error is CinderError {
  return isCinderError(error) && error.mayHaveHappened;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
