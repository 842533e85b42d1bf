import { InvalidArgumentError } from 'commander';

const unitMs: Record<string, number> = { ms: 1, s: 1_000, m: 60_000 };

/** `500ms`, `30s`, `2m` as ms. Without a unit it would be guessed, and a guess of a window is wrong by a thousand. */
export function durationMs(text: string): number {
  const [, amount, unit = ''] = /^(\d+(?:\.\d+)?)(ms|s|m)$/.exec(text) ?? [];
  const perUnit = unitMs[unit];
  if (amount === undefined || perUnit === undefined) {
    throw new InvalidArgumentError('It must be a number with its unit, like 500ms, 30s or 2m.');
  }
  return Math.round(Number(amount) * perUnit);
}
