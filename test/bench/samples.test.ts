import { parseAgentLog } from '@stillpoint/lab/libvirt-log.js';
import { describe, expect, it } from 'vitest';
import { type MeasureOptions, measure, quantile, type Series, type Way, windowTable } from '../../bench/samples.js';

/** libvirt's log of one window of so many ms. */
const logOf = (ms: number) => {
  const line = (atMs: number, text: string) => `2026-01-01 00:00:0${(atMs / 1000).toFixed(3)}+0000: 1: debug : ${text}`;
  return parseAgentLog(
    [
      line(0, `qemuAgentCommandFull:1 : Send command '{"execute":"guest-fsfreeze-freeze"}' for write, seconds = -2`),
      line(1000, 'qemuAgentIOProcessLine:1 : Line [{"return": 3}]'),
      line(
        1000 + ms,
        `qemuAgentCommandFull:1 : Send command '{"execute":"guest-fsfreeze-thaw"}' for write, seconds = -2`,
      ),
    ].join('\n'),
  );
};

/** Runs the ways once under each setting and the round before that does not count. */
async function measured(ways: Way[], over: Partial<MeasureOptions> = {}) {
  const into: Series[] = [];
  const said: string[] = [];
  const measuring = measure({
    runs: 1,
    into,
    settings: [{ title: 'a setting', prepare: async () => undefined, ways }],
    log: () => ({ agent: () => logOf(40) }),
    restore: async () => undefined,
    signal: new AbortController().signal,
    say: (line) => said.push(line),
    ...over,
  });
  const error = await measuring.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  return { into, said, error };
}

describe('The bench', () => {
  it('gives every way under every setting its turn in every round, another one first each time, and does not count the first round', async () => {
    const turns: string[] = [];
    const way = (name: string): Way => ({
      name,
      take: async (run) => {
        turns.push(`${name} ${run}`);
        return 30 + run;
      },
    });
    const setting = (title: string) => ({
      title,
      prepare: async () => void turns.push(title),
      ways: [way('one'), way('other')],
    });
    const { into } = await measured([], { settings: [setting('fast'), setting('stock')] });
    expect(turns).toEqual(
      ['fast', 'stock']
        .flatMap((title) => [title, 'one 0', 'other 0'])
        .concat(['fast', 'stock'].flatMap((title) => [title, 'other 1', 'one 1'])),
    );
    expect(into).toHaveLength(4);
    for (const series of into) expect(series).toMatchObject({ host: [31], log: [40], failures: 0 });
  });

  it('loses nothing but the snapshot that fails, and takes back what that one has left', async () => {
    let restored = 0;
    const failing = { name: 'failing', take: async () => Promise.reject(new Error('no quota')) };
    const working = { name: 'working', take: async () => 12 };
    const restore = async () => {
      restored += 1;
    };
    const { into, said } = await measured([failing, working], { restore });
    expect(into[0]).toMatchObject({ host: [], log: [], failures: 2 });
    expect(into[1]).toMatchObject({ host: [12], log: [40], failures: 0 });
    expect(said.join('\n')).toContain('1 of 1, a setting, failing: failed: no quota');
    expect(restored).toBe(4);
  });

  it('keeps what it has measured when the guest cannot be brought back', async () => {
    const broken = new Error('libvirt is gone');
    let restored = 0;
    const restore = async () => {
      restored += 1;
      if (restored > 2) throw broken;
    };
    const ways = ['one', 'other', 'third'].map((name): Way => ({ name, take: async () => undefined }));
    const { into, error } = await measured(ways, { restore });
    expect(error).toBe(broken);
    expect(restored).toBe(4);
    expect(into.map(({ way }) => way)).toEqual(['one', 'other', 'third']);
  });

  it('stops behind the snapshot under way when it is told to', async () => {
    const stop = new AbortController();
    const turns: string[] = [];
    const way = (name: string): Way => ({
      name,
      take: async () => {
        turns.push(name);
        if (turns.length === 3) stop.abort();
        return 1;
      },
    });
    const { into } = await measured([way('one'), way('other')], { signal: stop.signal });
    expect(turns).toEqual(['one', 'other', 'other']);
    expect(into.map(({ host }) => host.length)).toEqual([0, 1]);
  });

  it('shows median and p95, and a dash where a way has no such clock', () => {
    const values = Array.from({ length: 20 }, (_, index) => 20 - index);
    expect([quantile(values, 0.5), quantile(values, 0.95), quantile([], 0.5)]).toEqual([10, 19, Number.NaN]);
    const series = { setting: 'local', failures: 0, log: values };
    const all = [
      { ...series, way: 'ours', host: values },
      { ...series, way: 'QUIESCE', host: [] },
    ];
    expect(windowTable(all, 'host')).toBe('| | local |\n|---|---|\n| ours | 10 / 19 |\n| QUIESCE | - |');
  });
});
