import type { Parameters } from 'fast-check';

/**
 * How often a property is tried: few times in the unit suite, and `npm run fuzz -- --runs N --seed S` says otherwise. A failure prints the seed, and the
 * smallest input that fast-check could find.
 */
export function tries<T>(usual: number): Parameters<T> {
  const { FUZZ_RUNS, FUZZ_SEED } = process.env;
  return {
    numRuns: FUZZ_RUNS === undefined ? usual : Number(FUZZ_RUNS),
    ...(FUZZ_SEED === undefined ? {} : { seed: Number(FUZZ_SEED) }),
    // One input that is never answered is a failure of its own, with its seed.
    timeout: 20_000,
  };
}
