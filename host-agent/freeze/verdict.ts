import type { CoverageGap, CutRecord, LostReason, Verdict, WhereGone } from '../window.js';
import type { Settlement } from './debt.js';

/** All that is known of a window whose guest is thawed. */
export interface Evidence {
  window: string;
  cuts: CutRecord[];
  gaps: CoverageGap[];
  limitMs: number;
  /** libvirt was asked to freeze, or may have been. */
  asked: boolean;
  /** Undefined: the freeze was never answered. */
  frozen: { fileSystems: number; at: number; unixMs: number } | undefined;
  /** The answer to the status question just before the thaw; undefined: not asked. */
  statusBefore: 'frozen' | 'thawed' | { unanswered: string } | undefined;
  /** Undefined: nothing was to be thawed. */
  settlement: Settlement | undefined;
  /** What made the thaw due. */
  thawedBy: string;
  /** Why the window was lost, where that was known before the thaw. */
  lost: Loss | undefined;
  /** What was seen in the window that leaves the freeze unproven, though nothing was thawed for it. */
  doubt: Loss | undefined;
}

export interface Loss {
  reason: LostReason;
  detail: string;
}

/** The verdict: held only where each part of invariant 3 is in evidence, in the order in which it would have been lost. */
export function judge(evidence: Evidence): Verdict {
  const { frozen, settlement } = evidence;
  const thawed = settlement?.how === 'thawed' ? settlement : undefined;
  const windowMs = frozen !== undefined && thawed !== undefined ? Math.max(0, thawed.requestedAt - frozen.at) : 0;
  const lost = lossOf(evidence, windowMs);
  return {
    window: evidence.window,
    held: lost === undefined,
    neverAsked: !evidence.asked,
    lostReason: lost?.reason,
    detail: lost?.detail ?? 'The freeze held from before the first cut to after the last.',
    frozenFileSystems: frozen?.fileSystems ?? 0,
    thawedFileSystems: thawed?.fileSystems,
    windowMs,
    frozenUnixMs: frozen?.unixMs ?? 0,
    thawedUnixMs: thawed?.thawedUnixMs ?? 0,
    thawedBy: evidence.thawedBy,
    cuts: evidence.cuts,
    gaps: evidence.gaps,
  };
}

/** A VM that is not here any more is what people must know first: its guest may be frozen elsewhere. */
function lossOf(evidence: Evidence, windowMs: number): Loss | undefined {
  const { settlement, lost } = evidence;
  if (settlement?.how !== 'gone') return lost ?? lossIn(evidence, windowMs);
  if (lost !== undefined && tellsWhere.has(lost.reason)) return lost;
  const detail = lost === undefined ? settlement.detail : `${settlement.detail} Before that: ${lost.detail}`;
  return { reason: settlement.reason, detail };
}

const tellsWhere: ReadonlySet<LostReason> = new Set<WhereGone>(['VM_GONE', 'VM_MOVED', 'VM_SAVED']);

function lossIn(evidence: Evidence, windowMs: number): Loss | undefined {
  const { frozen, statusBefore, settlement } = evidence;
  if (frozen === undefined) return { reason: 'NEVER_FROZEN', detail: 'The guest was not frozen in this window.' };

  const undone = evidence.cuts.filter((cut) => cut.outcome !== 'done').map((cut) => cut.cut);
  if (undone.length > 0 || evidence.cuts.length === 0) {
    return {
      reason: 'THAWED_EARLY',
      detail: `The guest was thawed before these cuts were done: ${undone.join(', ')}.`,
    };
  }
  if (evidence.doubt !== undefined) return evidence.doubt;
  if (statusBefore === 'thawed') {
    return { reason: 'STATUS_NOT_FROZEN', detail: 'Just before the thaw the guest said that it was not frozen.' };
  }
  if (statusBefore !== 'frozen') {
    const why = statusBefore === undefined ? 'it was not asked' : statusBefore.unanswered;
    return {
      reason: 'STATUS_UNANSWERED',
      detail: `Whether the guest was frozen just before the thaw is unknown: ${why}.`,
    };
  }
  if (windowMs > evidence.limitMs) {
    const detail = `The window took ${Math.round(windowMs)} ms, more than its limit of ${evidence.limitMs} ms.`;
    return { reason: 'LIMIT', detail };
  }
  const thawedFileSystems = settlement?.how === 'thawed' ? settlement.fileSystems : undefined;
  if (thawedFileSystems !== frozen.fileSystems) {
    const detail = `${frozen.fileSystems} file systems were frozen and ${thawedFileSystems ?? 'an unknown number'} thawed.`;
    return { reason: 'COUNT_MISMATCH', detail };
  }
  return undefined;
}
