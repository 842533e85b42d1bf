import { proxyActivities, type RetryPolicy } from '@temporalio/workflow';
import type { Activities } from './activities.js';

/**
 * Every activity with its timeouts and retries, and why they are so.
 *
 * Three rules hold for all. (1) An activity that lasts longer than seconds heartbeats every second, so a dead worker is noticed by `heartbeatTimeout` and
 * not by the far longer `startToCloseTimeout`. (2) `heartbeatTimeout` is 3 s: two heartbeats may be late on a busy machine. (3) A cancel is delivered
 * and waited for: a step that was asked to stop has stopped when its promise settles. (The SDK's documentation calls that its default, and its code takes
 * TRY_CANCEL: so it is said every time.)
 */

const waitedFor = { cancellationType: 'WAIT_CANCELLATION_COMPLETED' } as const;

/** The catalogue or a host may be away for hours: waited for, and asked often enough that nobody waits long for us afterwards. */
const untilItAnswers: RetryPolicy = { initialInterval: '1 s', backoffCoefficient: 2, maximumInterval: '30 s' };

/** Checks: quick, harmless, repeated while the catalogue is down. What is wrong with the request itself is not retryable. */
const checks = proxyActivities<Pick<Activities, 'acceptSnapshot' | 'acceptDelete'>>({
  ...waitedFor,
  startToCloseTimeout: '30 s',
  retry: untilItAnswers,
});

/** Waits as long as others are ahead; cancellable all the time. */
const queue = proxyActivities<Pick<Activities, 'takeWindowSlot'>>({
  ...waitedFor,
  startToCloseTimeout: '24 h',
  heartbeatTimeout: '3 s',
  retry: untilItAnswers,
});

/** Not worth waiting for: a slot is void once its run is closed. */
const slotBack = proxyActivities<Pick<Activities, 'giveBackWindowSlot'>>({
  ...waitedFor,
  startToCloseTimeout: '5 s',
  scheduleToCloseTimeout: '10 s',
});

/**
 * Nothing is frozen yet, so it may be repeated, a few times: a host that is away for longer is a reason to fail. It may first take back what a dead run
 * left, and committing an overlay takes as long as it is big: hence the hour.
 */
const preparation = proxyActivities<Pick<Activities, 'prepare'>>({
  ...waitedFor,
  startToCloseTimeout: '1 h',
  heartbeatTimeout: '3 s',
  retry: { initialInterval: '1 s', backoffCoefficient: 2, maximumAttempts: 5 },
});

/**
 * Once. A freeze that is repeated may freeze a guest that was just thawed, and a cut that is repeated lies outside the window; what may be repeated (a
 * connection refused) is repeated inside the activity, for at most 2 s. The freeze's own time comes on top (`freezeTimeoutMs`).
 */
const once: RetryPolicy = { maximumAttempts: 1 };
const freezing = proxyActivities<Pick<Activities, 'freezeFileSystems'>>({
  ...waitedFor,
  startToCloseTimeout: '30 s',
  heartbeatTimeout: '3 s',
  retry: once,
});
const cutting = proxyActivities<Pick<Activities, 'snapshotLocalDisks' | 'snapshotVolume'>>({
  ...waitedFor,
  // What a cut may take is said where it is begun: it waits for the freeze first.
  startToCloseTimeout: '3 min',
  heartbeatTimeout: '3 s',
  retry: once,
});

/**
 * Until the host agent answers, however long that takes: a guest may be frozen. Asked often, because its administrator waits. The host agent answers
 * within the thaw's own time (60 s, a thaw hook may be slow), or says that the guest is still frozen.
 */
const thawing = proxyActivities<Pick<Activities, 'thawFileSystems'>>({
  ...waitedFor,
  startToCloseTimeout: '90 s',
  heartbeatTimeout: '3 s',
  retry: { initialInterval: '500 ms', backoffCoefficient: 1.5, maximumInterval: '5 s' },
});

/** After the window: as long as the catalogue or the host are away. The run is then seen waiting; an administrator's `host remove --lost` ends it. */
const recording = proxyActivities<Pick<Activities, 'recordSnapshot' | 'closeSnapshot' | 'closeDelete'>>({
  ...waitedFor,
  startToCloseTimeout: '2 min',
  heartbeatTimeout: '10 s',
  retry: untilItAnswers,
});

/** A commit takes as long as the overlay is big. A host that stays away ends it as `pending`, by the activity itself. */
const undoing = proxyActivities<Pick<Activities, 'undoWindow' | 'deleteParts'>>({
  ...waitedFor,
  startToCloseTimeout: '24 h',
  heartbeatTimeout: '3 s',
  retry: untilItAnswers,
});

/** Bounded: a host that is away keeps a dead run's reservation, and the next run of this VM gives it back. */
const releasing = proxyActivities<Pick<Activities, 'release'>>({
  ...waitedFor,
  startToCloseTimeout: '10 s',
  scheduleToCloseTimeout: '5 min',
  retry: { initialInterval: '500 ms', backoffCoefficient: 2, maximumInterval: '10 s' },
});

/** What cannot be asked now is asked at the next time. Reading a host's chains may take minutes where it has many VMs. */
const examining = proxyActivities<Pick<Activities, 'examine'>>({
  ...waitedFor,
  startToCloseTimeout: '15 min',
  heartbeatTimeout: '3 s',
  retry: { initialInterval: '1 s', backoffCoefficient: 2, maximumAttempts: 4 },
});

/** As preparation, which does the same for the next snapshot. */
const removing = proxyActivities<Pick<Activities, 'removeLeftover'>>({
  ...waitedFor,
  startToCloseTimeout: '1 h',
  heartbeatTimeout: '3 s',
  retry: { initialInterval: '1 s', backoffCoefficient: 2, maximumAttempts: 3 },
});

export const steps = {
  acceptSnapshot: checks.acceptSnapshot,
  acceptDelete: checks.acceptDelete,
  takeWindowSlot: queue.takeWindowSlot,
  giveBackWindowSlot: slotBack.giveBackWindowSlot,
  prepare: preparation.prepare,
  freezeFileSystems: freezing.freezeFileSystems,
  snapshotLocalDisks: cutting.snapshotLocalDisks,
  snapshotVolume: cutting.snapshotVolume,
  thawFileSystems: thawing.thawFileSystems,
  recordSnapshot: recording.recordSnapshot,
  undoWindow: undoing.undoWindow,
  closeSnapshot: recording.closeSnapshot,
  closeDelete: recording.closeDelete,
  deleteParts: undoing.deleteParts,
  release: releasing.release,
  examine: examining.examine,
  removeLeftover: removing.removeLeftover,
};
