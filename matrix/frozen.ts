import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';

/** The word of the guest's kernel; both by Date.now(). */
export interface SeenThawed {
  readonly askedAt: number;
  readonly thawedAt: number;
}

/**
 * How long the guest was frozen after an instant (Date.now()), by libvirt's log: also by a freeze that came only then. ms.
 *
 * @param seen what was frozen when the kernel was asked ended when it was seen thawed, also where libvirt never saw the answer, or saw it after a slow hook.
 */
export function frozenMsAfter(instant: number, log: LibvirtLog, seen?: SeenThawed): number {
  const times = log.frozenTimes().map(({ fromMs, untilMs = Date.now() }) => {
    const end = seen !== undefined && fromMs <= seen.askedAt ? Math.min(untilMs, seen.thawedAt) : untilMs;
    return end - Math.max(fromMs, instant);
  });
  return Math.max(0, ...times);
}
