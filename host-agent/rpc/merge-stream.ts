import type { MergeProgress } from '../window.js';

/**
 * Runs a merge and tells its progress at least every `intervalMs`, the last one again when nothing moved: an intermediate proxy or a person sees that it
 * lives. The run is not bound to its listener: whoever goes away stops nothing.
 */
export async function withProgress<Result>(
  intervalMs: number,
  tell: (progress: MergeProgress) => void,
  run: (onProgress: (progress: MergeProgress) => void) => Promise<Result>,
): Promise<Result> {
  let last: MergeProgress = { target: '', doneBytes: 0, totalBytes: 0 };
  const timer = setInterval(() => tell(last), intervalMs);
  try {
    return await run((progress) => {
      last = progress;
    });
  } finally {
    clearInterval(timer);
  }
}
