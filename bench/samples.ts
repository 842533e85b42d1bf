import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';
import type { Progress } from '@stillpoint/lab/programs.js';

/** One way to take a snapshot. */
export interface Way {
  readonly name: string;
  /** Takes one and answers its window by the caller's own clock: freeze answered -> thaw asked for, ms; undefined where the caller cannot see it. */
  take(run: number): Promise<number | undefined>;
}

/** One setting under which several ways are compared. */
export interface Setting {
  readonly title: string;
  /** Makes the setting so, before its ways have their turn. */
  prepare(): Promise<void>;
  readonly ways: readonly Way[];
}

/** The windows of one way under one setting, ms. */
export interface Series {
  readonly setting: string;
  readonly way: string;
  readonly host: number[];
  /** By libvirt's log: freeze answered by the guest agent -> thaw sent to it. The same clock for everybody. */
  readonly log: number[];
  failures: number;
}

export interface MeasureOptions {
  readonly runs: number;
  /** Takes what is measured, as it is measured: it stays if the rest cannot be. */
  readonly into: Series[];
  readonly settings: readonly Setting[];
  /** libvirt's log from now on. */
  log(): Pick<LibvirtLog, 'agent'>;
  /** Takes back whatever a way has left: the guest thawed, no overlay, no snapshot. */
  restore(): Promise<void>;
  readonly signal: AbortSignal;
  readonly say: Progress;
}

/**
 * Lets every way under every setting have its turn, again and again, so that whatever else the machine does falls upon all of them. The first round is not
 * counted: everybody's connections and caches are cold. One that fails is said and counted, and costs no other; an aborted signal ends it after the way whose
 * turn it is.
 */
export async function measure(options: MeasureOptions): Promise<void> {
  const { runs, into, settings, restore, signal, say } = options;
  const turns = settings.map((setting) => ({
    ...setting,
    ways: setting.ways.map(({ name, take }) => {
      const series: Series = { setting: setting.title, way: name, host: [], log: [], failures: 0 };
      into.push(series);
      return { take, series };
    }),
  }));
  for (let run = 0; run <= runs; run += 1) {
    for (const { title, prepare, ways } of turns) {
      if (signal.aborted) return;
      await prepare();
      // Each way is the first as often as the others: what the one before it leaves to do slows the next.
      const first = run % ways.length;
      for (const { take, series } of [...ways.slice(first), ...ways.slice(0, first)]) {
        if (signal.aborted) return;
        const what = `${run} of ${runs}, ${title}, ${series.way}`;
        try {
          const log = options.log();
          const hostMs = await take(run);
          const logMs = windowInLog(log);
          say(`${what}: ${logMs} ms`);
          if (run === 0) continue;
          if (hostMs !== undefined) series.host.push(hostMs);
          series.log.push(logMs);
        } catch (error) {
          if (!signal.aborted) series.failures += 1;
          say(`${what}: failed: ${error instanceof Error ? error.message : String(error)}`);
        } finally {
          // Once more: what has just failed may be still at work.
          await restore().catch(restore);
        }
      }
    }
  }
}

function windowInLog(log: Pick<LibvirtLog, 'agent'>): number {
  const entries = log.agent();
  const frozen = entries.find(
    (entry) => entry.direction === 'received' && entry.command.startsWith('guest-fsfreeze-freeze') && !entry.failed,
  );
  const thaw = entries.find((entry) => entry.direction === 'sent' && entry.command === 'guest-fsfreeze-thaw');
  if (frozen === undefined || thaw === undefined) throw new Error("libvirt's log has no freeze and thaw");
  return thaw.atMs - frozen.atMs;
}

/** The smallest value that the share of all values does not exceed; NaN of none. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}

/** A Markdown table of median / p95, ms: the ways below each other, the settings side by side. */
export function windowTable(all: readonly Series[], clock: 'host' | 'log'): string {
  const settings = [...new Set(all.map(({ setting }) => setting))];
  const ways = [...new Set(all.map(({ way }) => way))];
  const cell = (way: string, setting: string) => {
    const values = all.find((series) => series.way === way && series.setting === setting)?.[clock] ?? [];
    return values.length === 0 ? '-' : `${quantile(values, 0.5).toFixed(0)} / ${quantile(values, 0.95).toFixed(0)}`;
  };
  return [
    `| | ${settings.join(' | ')} |`,
    `|---|${'---|'.repeat(settings.length)}`,
    ...ways.map((way) => `| ${way} | ${settings.map((setting) => cell(way, setting)).join(' | ')} |`),
  ].join('\n');
}
