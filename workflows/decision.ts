import type { Prepared, WindowVerdict } from './activities.js';
import type { Quiesce } from './contract.js';
import type { Failure } from './failure.js';
import { type Graded, gradeOf } from './grade.js';

/** How a window ended, as far as the workflow has seen it. */
export interface WindowEnd {
  /** Absent: prepare failed, and nothing can have been frozen or cut. */
  prepared?: Prepared;
  /** Present whenever prepared is. */
  verdict?: WindowVerdict;
  /** The first thing that failed; absent: every step said that it is done. */
  trouble?: Failure;
}

export interface Circumstances {
  /** The request's policy. */
  policy: Quiesce;
  /** How this window was opened: `skip` is an unfrozen one. */
  quiesce: Quiesce;
  cancelled: boolean;
  /** A window was lost to a connection or a worker before. */
  isSecondTry: boolean;
  setDisks: readonly string[];
  localDisks: readonly string[];
  hypervisor: string;
  /** Why an unfrozen window is one. */
  unfrozenBecause: string | undefined;
}

/** What follows a window. */
export type Decision = { record: Graded } | { undo: Failure; next: 'end' | 'second window' | 'unfrozen window' };

/** The freeze could not be had: `best-effort` goes on without. A paused VM is not among them: it allows only `skip`. */
const noFreezeToBeHad: ReadonlySet<string> = new Set([
  'AGENT_NOT_CONFIGURED',
  'AGENT_NOT_CONNECTED',
  'AGENT_NOT_RESPONDING',
  'FREEZE_HOOK_FAILED',
  'FREEZE_TIMEOUT',
  'FREEZE_FAILED',
  'ALREADY_FROZEN',
  'MAYBE_FROZEN',
  'LIBVIRT_TOO_OLD',
]);

/** A connection or a worker was lost, and nothing about the VM speaks against trying once more. */
const connectionLost: ReadonlySet<string> = new Set([
  'HOST_UNREACHABLE',
  'CINDER_UNREACHABLE',
  'WORKER_LOST',
  'HOLD_BROKEN',
  'HOST_AGENT_RESTARTED',
  'CALLER_GONE',
  'SHUTDOWN',
  'SHUTTING_DOWN',
  // Nobody took the cut up in time: the worker died between the freeze and the cut.
  'NOT_HELD_IN_TIME',
]);

/**
 * The verdict decides, not the activities' fate (docs/architecture.md section 2). *Held* means record, also when a cut's answer was lost. *Lost*, a missing
 * cut, or a cancel means undo; only under `best-effort`, not cancelled and with every cut made, a lost freeze is recorded with the grade that is left.
 */
export function decide(end: WindowEnd, now: Circumstances): Decision {
  if (now.cancelled) {
    return { undo: { code: 'CANCELLED', text: 'the run was cancelled', advice: '' }, next: 'end' };
  }
  const { prepared, verdict, trouble } = end;
  if (prepared === undefined || verdict === undefined) {
    return { undo: trouble ?? neverPrepared, next: followUp(end, now) };
  }

  // Held: the host saw every cut end in time, whatever became of the answers.
  const everyCutMade = verdict.held || trouble === undefined;
  if (!everyCutMade) return { undo: whatWentWrong(verdict, trouble), next: followUp(end, now) };

  const graded = gradeOf({
    setDisks: now.setDisks,
    oneTransaction: now.localDisks,
    verdict: now.quiesce === 'skip' ? undefined : verdict,
    gaps: prepared.gaps,
    unfrozenBecause: now.unfrozenBecause,
    hypervisor: now.hypervisor,
  });
  if (now.policy === 'required' && graded.grade !== 'filesystem') {
    return { undo: tooLittle(verdict, graded), next: followUp(end, now) };
  }
  return { record: graded };
}

function followUp(
  { prepared, verdict, trouble }: WindowEnd,
  now: Circumstances,
): 'end' | 'second window' | 'unfrozen window' {
  if (now.policy === 'best-effort' && now.quiesce !== 'skip' && trouble && noFreezeToBeHad.has(trouble.code)) {
    return 'unfrozen window';
  }
  // Prepare repeats by itself, so its failure is final.
  if (prepared === undefined || now.isSecondTry) return 'end';
  const lost = connectionLost.has(trouble?.code ?? '') || connectionLost.has(verdict?.lostReason ?? '');
  return lost ? 'second window' : 'end';
}

/** A cut that came too late reports a closed window: why it was closed is what people need to know. */
function whatWentWrong(verdict: WindowVerdict, trouble: Failure | undefined): Failure {
  if (trouble !== undefined && trouble.code !== 'WINDOW_CLOSED') return trouble;
  return consistencyLost(verdict, trouble);
}

function tooLittle(verdict: WindowVerdict, graded: Graded): Failure {
  if (!verdict.held) return consistencyLost(verdict, undefined);
  return {
    code: 'QUIESCE_INCOMPLETE',
    text: `the snapshot would be no better than ${graded.grade}. ${graded.why.replace(/\.$/, '')}`,
    advice: 'Accept the disk by name (unquiesced), choose other disks, or ask for quiesce=best-effort.',
  };
}

function consistencyLost(verdict: WindowVerdict, trouble: Failure | undefined): Failure {
  return {
    code: 'CONSISTENCY_LOST',
    text: `the freeze did not hold (${verdict.lostReason ?? 'unknown'}): ${verdict.detail.replace(/\.$/, '')}`,
    advice: 'Ask for the snapshot again, or for quiesce=best-effort where a lower grade will do.',
    ...(trouble === undefined ? {} : { cause: trouble.cause }),
  };
}

const neverPrepared: Failure = { code: 'INTERNAL', text: 'the window was never prepared', advice: '' };
