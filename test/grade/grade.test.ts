import type { Gap, WindowVerdict } from '@stillpoint/workflows';
import { type Evidence, gradeOf } from '@stillpoint/workflows/grade.js';
import { describe, expect, it } from 'vitest';

const held: WindowVerdict = {
  held: true,
  detail: '',
  window: { id: 'w.1', ms: 54.3, frozenAt: '2026-11-21T12:00:00.000Z', frozenFileSystems: 3 },
  cuts: [],
  gaps: [],
  thawedBy: 'all cuts done',
};
const lost: WindowVerdict = { ...held, held: false, lostReason: 'LIMIT', detail: 'The limit of 30 s passed.' };

const gap = (target: string, accepted: boolean, mountpoint = ''): Gap => ({
  target,
  mountpoint,
  reason: 'no file system reported',
  accepted,
});

const two: Evidence = {
  setDisks: ['vda', 'vdb'],
  oneTransaction: ['vda', 'vdb'],
  verdict: held,
  gaps: [],
  unfrozenBecause: undefined,
  hypervisor: 'libvirt',
};

describe('the grade', () => {
  it.each<[string, Partial<Evidence>, string]>([
    ['a held freeze that covers the set', {}, 'filesystem'],
    ['a held freeze over several storages', { oneTransaction: ['vda'] }, 'filesystem'],
    ['a held freeze with accepted gaps', { gaps: [gap('vda', true, '/boot/efi')] }, 'filesystem'],
    ['a held freeze with a gap that prepare told', { gaps: [gap('vdb', false)] }, 'crash'],
    [
      'a held freeze with a gap that only the verdict tells',
      { verdict: { ...held, gaps: [gap('vdb', false)] } },
      'crash',
    ],
    [
      'a gap that one report accepts and another does not',
      { gaps: [gap('vdb', true)], verdict: { ...held, gaps: [gap('vdb', false)] } },
      'crash',
    ],
    [
      'a held freeze with a gap over several storages',
      { oneTransaction: ['vda'], gaps: [gap('vdb', false)] },
      'per-disk',
    ],
    [
      'a held freeze that reached no disk of the set, though all are accepted',
      { gaps: [gap('vda', true), gap('vdb', true)] },
      'crash',
    ],
    [
      'a held freeze of no file system',
      { verdict: { ...held, window: { ...held.window, frozenFileSystems: 0 } } },
      'crash',
    ],
    ['a held freeze that reached one disk, the other being accepted', { gaps: [gap('vdb', true)] }, 'filesystem'],
    ['a lost freeze in one transaction', { verdict: lost }, 'crash'],
    ['a lost freeze over several storages', { verdict: lost, oneTransaction: ['vda'] }, 'per-disk'],
    ['a lost freeze of one disk, wherever it lies', { verdict: lost, setDisks: ['vda'], oneTransaction: [] }, 'crash'],
    ['no freeze, one transaction', { verdict: undefined }, 'crash'],
    ['no freeze, several storages', { verdict: undefined, oneTransaction: ['vda'] }, 'per-disk'],
    ['no freeze, one disk', { verdict: undefined, setDisks: ['vda'], oneTransaction: ['vda'] }, 'crash'],
    ['no freeze, and no transaction at all', { verdict: undefined, oneTransaction: [] }, 'per-disk'],
    ['no disks, no evidence', { verdict: undefined, setDisks: [], oneTransaction: [] }, 'per-disk'],
  ])('of %s', (_what, change, grade) => {
    expect(gradeOf({ ...two, ...change }).grade).toBe(grade);
  });

  it('says in plain words how long what stayed frozen, and what did not by rule or request', () => {
    expect(gradeOf({ ...two, gaps: [gap('vda', true, '/boot/efi')] })).toEqual({
      grade: 'filesystem',
      why:
        '3 file systems stayed frozen from before the first cut to after the last, 54 ms in all. ' +
        'Not frozen, by rule or by request: vda /boot/efi (no file system reported).',
      unfrozen: [gap('vda', true, '/boot/efi')],
    });
  });

  it('says why it is no better', () => {
    expect(gradeOf({ ...two, verdict: lost }).why).toBe(
      'All 2 disks were cut in one transaction: one instant, as after a power failure. ' +
        'The freeze was lost (LIMIT): The limit of 30 s passed.',
    );
    expect(gradeOf({ ...two, verdict: undefined, unfrozenBecause: 'there is no guest agent' }).why).toContain(
      'Not frozen: there is no guest agent.',
    );
    expect(gradeOf({ ...two, gaps: [gap('vdb', false)] }).why).toContain(
      'The freeze did not cover the set: vdb (no file system reported).',
    );
  });

  it('names a hypervisor that is not real', () => {
    expect(gradeOf({ ...two, hypervisor: 'simulated' }).why).toContain('On a simulated hypervisor.');
    expect(gradeOf(two).why).not.toContain('hypervisor');
  });
});
