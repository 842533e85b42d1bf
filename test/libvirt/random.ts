/** Random numbers that a seed repeats (mulberry32), so that a failure found by chance can be found again. */
export class Random {
  readonly seed: number;
  #state: number;

  constructor(seed: number) {
    this.seed = seed;
    this.#state = seed >>> 0;
  }

  /** An integer from 0 to `below` - 1. */
  below(below: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 0x1_0000_0000) * below);
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let i = 0; i < length; i++) bytes[i] = this.below(256);
    return bytes;
  }

  /** `bytes` with a few bytes changed, cut off or inserted. */
  damage(bytes: Buffer): Buffer {
    let damaged = Buffer.from(bytes);
    for (let changes = 1 + this.below(3); changes > 0; changes--) {
      const at = this.below(damaged.length + 1);
      switch (this.below(3)) {
        case 0:
          if (at < damaged.length) damaged[at] = this.below(256);
          break;
        case 1:
          damaged = damaged.subarray(0, at);
          break;
        default:
          damaged = Buffer.concat([damaged.subarray(0, at), this.bytes(1 + this.below(8)), damaged.subarray(at)]);
      }
    }
    return damaged;
  }
}

/** The seed of this run: FUZZ_SEED, or a new one that the failing test's name or message prints. */
export function fuzzSeed(): number {
  const given = process.env.FUZZ_SEED;
  return given === undefined ? Math.floor(Math.random() * 0x1_0000_0000) : Number(given);
}
