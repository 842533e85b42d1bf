import { type Evidence, judge } from '@stillpoint/host-agent/freeze/verdict.js';
import type { CutRecord, WhereGone } from '@stillpoint/host-agent/window.js';
import { expect, test } from 'vitest';
import { window1 } from './fixture.js';

const cut = (changes: Partial<CutRecord> = {}): CutRecord => ({
  cut: 'vda',
  heldMs: 3,
  endedMs: 40,
  outcome: 'done',
  reason: '',
  ...changes,
});

const evidence = (changes: Partial<Evidence> = {}): Evidence => ({
  window: window1,
  cuts: [cut()],
  gaps: [],
  limitMs: 100,
  asked: true,
  frozen: { fileSystems: 2, at: 1_000, unixMs: 1_700_000_000_000 },
  statusBefore: 'frozen',
  settlement: { how: 'thawed', fileSystems: 2, requestedAt: 1_050, thawedUnixMs: 1_700_000_000_100 },
  thawedBy: 'all cuts done',
  lost: undefined,
  doubt: undefined,
  ...changes,
});

const thawed = (changes: { fileSystems?: number | undefined; requestedAt?: number }): Evidence['settlement'] => ({
  how: 'thawed',
  fileSystems: 2,
  requestedAt: 1_050,
  thawedUnixMs: 1_700_000_000_100,
  ...changes,
});

const gone = (reason: WhereGone): Evidence['settlement'] => ({ how: 'gone', reason, detail: 'Not here.' });
const limit = { reason: 'LIMIT', detail: 'It took too long.' } as const;

test('with every part in evidence the window was held', () => {
  expect(judge(evidence())).toMatchObject({
    held: true,
    lostReason: undefined,
    windowMs: 50,
    frozenUnixMs: 1_700_000_000_000,
    thawedUnixMs: 1_700_000_000_100,
  });
});

test.each<[string, Partial<Evidence>, string]>([
  ['it was never frozen', { frozen: undefined, settlement: undefined }, 'NEVER_FROZEN'],
  ['a cut failed', { cuts: [cut(), cut({ cut: 'vdb', outcome: 'failed' })] }, 'THAWED_EARLY'],
  ['no cut was named', { cuts: [] }, 'THAWED_EARLY'],
  ['the thaw went out after the limit, by a late timer', { settlement: thawed({ requestedAt: 1_101 }) }, 'LIMIT'],
  ['the guest said that it was thawed', { statusBefore: 'thawed' }, 'STATUS_NOT_FROZEN'],
  ['the guest did not say', { statusBefore: { unanswered: 'timed out' } }, 'STATUS_UNANSWERED'],
  ['the guest was not asked', { statusBefore: undefined }, 'STATUS_UNANSWERED'],
  ['fewer file systems thawed', { settlement: thawed({ fileSystems: 1 }) }, 'COUNT_MISMATCH'],
  ['nobody knows how many thawed', { settlement: thawed({ fileSystems: undefined }) }, 'COUNT_MISMATCH'],
  ['the VM is gone', { settlement: gone('VM_GONE') }, 'VM_GONE'],
  ['the VM moved away', { settlement: gone('VM_MOVED') }, 'VM_MOVED'],
  ['the VM moved away after something else', { settlement: gone('VM_MOVED'), lost: limit }, 'VM_MOVED'],
  ['the VM was saved', { settlement: gone('VM_SAVED') }, 'VM_SAVED'],
  ['the VM was seen to stop', { settlement: gone('VM_MOVED'), lost: { ...limit, reason: 'VM_GONE' } }, 'VM_GONE'],
  ['the agent restarted', { doubt: { reason: 'AGENT_RESTARTED', detail: 'seen' } }, 'AGENT_RESTARTED'],
  ['it was lost before', { lost: { reason: 'SHUTDOWN', detail: 'stopped' } }, 'SHUTDOWN'],
])('a window is lost when %s', (_, changes, lostReason) => {
  const verdict = judge(evidence(changes));
  expect(verdict).toMatchObject({ held: false, lostReason });
  expect(verdict.detail).not.toBe('');
});
