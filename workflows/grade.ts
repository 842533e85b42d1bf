import type { WindowVerdict } from './activities.js';
import type { Gap, Grade } from './contract.js';

/** What a grade is made of: evidence, and nothing that is merely likely. */
export interface Evidence {
  /** Disks of the set. */
  setDisks: readonly string[];
  /** Those that were cut in one libvirt transaction. */
  oneTransaction: readonly string[];
  /** The host's verdict; undefined: the window was never to be frozen. */
  verdict: WindowVerdict | undefined;
  /** Gaps that the host told before the verdict (prepare, freeze). */
  gaps: readonly Gap[];
  /** Why nothing was frozen, where that was asked for or came to be: a sentence without a full stop. */
  unfrozenBecause: string | undefined;
  /** "libvirt" or "simulated". */
  hypervisor: string;
}

export interface Graded {
  grade: Grade;
  /** Plain words. */
  why: string;
  /** What stayed unfrozen and is named beside the grade. */
  unfrozen: Gap[];
}

/** The grade that the evidence proves (docs/architecture.md, invariant 3). No default is optimistic. */
export function gradeOf(evidence: Evidence): Graded {
  const { verdict } = evidence;
  const gaps = allGaps([...evidence.gaps, ...(verdict?.gaps ?? [])]);
  const uncovered = gaps.filter((gap) => !gap.accepted);
  const simulated = evidence.hypervisor === 'libvirt' ? '' : ` On a ${evidence.hypervisor} hypervisor.`;

  if (verdict?.held && uncovered.length === 0 && !nothingFrozen(evidence, gaps)) {
    const accepted = gaps.length === 0 ? '' : ` Not frozen, by rule or by request: ${gaps.map(placeOf).join('; ')}.`;
    const count = verdict.window.frozenFileSystems;
    const why = `${count} file system${count === 1 ? '' : 's'} stayed frozen from before the first cut to after the last, ${ms(verdict.window.ms)} in all.`;
    return { grade: 'filesystem', why: `${why}${accepted}${simulated}`, unfrozen: gaps };
  }

  const { grade, sentence } = instantOf(evidence);
  const reason = whyNotFilesystem(evidence, uncovered);
  return { grade, why: `${sentence} ${reason}${simulated}`, unfrozen: gaps };
}

/** A freeze that held and reached no disk of the set proves nothing about it, whatever the request accepts. */
function nothingFrozen({ verdict, setDisks }: Evidence, gaps: readonly Gap[]): boolean {
  const hasNoFileSystem = (disk: string) => gaps.some(({ target, mountpoint }) => target === disk && mountpoint === '');
  return verdict?.window.frozenFileSystems === 0 || setDisks.every(hasNoFileSystem);
}

/** Without a freeze that counts: one instant for all disks, or one for each. */
function instantOf({ setDisks, oneTransaction }: Evidence): { grade: Grade; sentence: string } {
  if (setDisks.length === 1) return { grade: 'crash', sentence: 'One disk, as after a power failure.' };
  if (setDisks.length > 0 && setDisks.every((disk) => oneTransaction.includes(disk))) {
    return {
      grade: 'crash',
      sentence: `All ${setDisks.length} disks were cut in one transaction: one instant, as after a power failure.`,
    };
  }
  return {
    grade: 'per-disk',
    sentence: 'Each disk is as after a power failure; the order of writes between the disks is not kept.',
  };
}

function whyNotFilesystem({ verdict, unfrozenBecause }: Evidence, uncovered: readonly Gap[]): string {
  if (unfrozenBecause !== undefined) return `Not frozen: ${unfrozenBecause}.`;
  if (verdict === undefined) return 'Not frozen.';
  if (!verdict.held) return `The freeze was lost (${verdict.lostReason ?? 'unknown'}): ${verdict.detail}`;
  if (uncovered.length === 0) return 'The freeze reached no file system on these disks.';
  return `The freeze did not cover the set: ${uncovered.map(placeOf).join('; ')}.`;
}

/** One entry a place. Where two reports differ, the one that accepts less counts. */
function allGaps(gaps: readonly Gap[]): Gap[] {
  const byPlace = new Map<string, Gap>();
  for (const gap of gaps) {
    const place = `${gap.target} ${gap.mountpoint}`;
    const known = byPlace.get(place);
    if (known === undefined || (known.accepted && !gap.accepted)) byPlace.set(place, gap);
  }
  return [...byPlace.values()];
}

function placeOf(gap: Gap): string {
  const place = [gap.target, gap.mountpoint].filter((part) => part !== '').join(' ');
  return place === '' ? gap.reason : `${place} (${gap.reason})`;
}

/** Whole ms, or one decimal below 10. */
export function ms(value: number): string {
  return `${value < 10 ? Math.round(value * 10) / 10 : Math.round(value)} ms`;
}
