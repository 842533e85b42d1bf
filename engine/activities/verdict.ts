import type { WindowVerdict } from '@stillpoint/workflows';
import type { HostVerdict } from '../hosts/hosts.js';

/** The host's verdict as the workflows read it. */
export function verdictOf(verdict: HostVerdict): WindowVerdict {
  return {
    held: verdict.held,
    ...(verdict.held ? {} : { lostReason: verdict.lostReason || 'UNKNOWN' }),
    detail: verdict.detail,
    window: {
      id: verdict.window,
      ms: verdict.windowMs,
      ...(verdict.frozenUnixMs === 0 ? {} : { frozenAt: isoTime(verdict.frozenUnixMs) }),
      ...(verdict.thawedUnixMs === 0 ? {} : { thawedAt: isoTime(verdict.thawedUnixMs) }),
      frozenFileSystems: verdict.frozenFileSystems,
    },
    cuts: verdict.cuts.map(({ cut, heldMs, endedMs, outcome, reason }) => ({
      cut,
      ...(heldMs < 0 ? {} : { heldMs }),
      ...(endedMs < 0 ? {} : { endedMs }),
      outcome,
      reason,
    })),
    gaps: verdict.gaps,
    thawedBy: verdict.thawedBy,
    ...(verdict.neverAsked ? { neverAsked: true } : {}),
  };
}

/** The verdict on a window of which the host can say nothing: nothing is proven. */
export function lostVerdict(window: string, lostReason: string, detail: string): WindowVerdict {
  return {
    held: false,
    lostReason,
    detail,
    window: { id: window, ms: 0, frozenFileSystems: 0 },
    cuts: [],
    gaps: [],
    thawedBy: '',
  };
}

export function isoTime(unixMs: number): string {
  return new Date(unixMs).toISOString();
}
