import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';

/**
 * How long the guest was frozen after an instant (Date.now()), by libvirt's log: also by a freeze that came only then. ms.
 *
 * @param seenThawedAt when the guest's kernel was seen thawed: what the log shows as frozen since before that ended then, though libvirt never saw the answer.
 */
export function frozenMsAfter(instant: number, log: LibvirtLog, seenThawedAt = Date.now()): number {
  const times = log.frozenTimes().map(({ fromMs, untilMs }) => {
    const end = untilMs ?? (fromMs < seenThawedAt ? seenThawedAt : Date.now());
    return end - Math.max(fromMs, instant);
  });
  return Math.max(0, ...times);
}
