/**
 * The numbers written to one image: simulated guests write 1, 2, 3, … to all their disks in turn, so the content of an image is a set of
 * numbers. Kept as ranges, because a guest may write for days.
 */
export class WrittenNumbers {
  #ranges: { from: number; to: number }[];

  constructor(ranges: readonly { from: number; to: number }[] = []) {
    this.#ranges = ranges.map((range) => ({ ...range }));
  }

  /** The ranges, ascending, none touching another. */
  get ranges(): readonly { from: number; to: number }[] {
    return this.#ranges;
  }

  /** The highest number; 0: nothing was written. */
  get last(): number {
    return this.#ranges.at(-1)?.to ?? 0;
  }

  get isEmpty(): boolean {
    return this.#ranges.length === 0;
  }

  /** Whether every number from 1 to the last is there: nothing was lost in a merge. */
  get isGapless(): boolean {
    return this.isEmpty || (this.#ranges.length === 1 && this.#ranges[0]?.from === 1);
  }

  add(number: number): void {
    const last = this.#ranges.at(-1);
    if (last !== undefined && number === last.to + 1) last.to = number;
    else this.addAll([{ from: number, to: number }]);
  }

  addAll(ranges: readonly { from: number; to: number }[]): void {
    const sorted = [...this.#ranges, ...ranges.map((range) => ({ ...range }))].sort((a, b) => a.from - b.from);
    const merged: { from: number; to: number }[] = [];
    for (const range of sorted) {
      const last = merged.at(-1);
      if (last !== undefined && range.from <= last.to + 1) last.to = Math.max(last.to, range.to);
      else merged.push(range);
    }
    this.#ranges = merged;
  }

  /** A copy that later writes do not change: what a snapshot of a volume keeps. */
  clone(): WrittenNumbers {
    return new WrittenNumbers(this.#ranges);
  }
}

/**
 * Whether cuts of a guest's disks, in the order in which it writes them, keep the order of its writes: each number goes to the first disk
 * first, so at any one instant the numbers fall along the disks and differ by at most one. A cut that does not keep it has seen a later
 * write and missed an earlier one.
 */
export function keepsWriteOrder(lastNumbers: readonly number[]): boolean {
  const [first, last] = [lastNumbers[0] ?? 0, lastNumbers.at(-1) ?? 0];
  return first - last <= 1 && lastNumbers.every((number, i) => i === 0 || number <= (lastNumbers[i - 1] ?? 0));
}
