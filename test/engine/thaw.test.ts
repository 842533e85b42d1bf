import { thawFileSystems } from '@stillpoint/engine/activities/thaw.js';
import { HostError } from '@stillpoint/engine/hosts/errors.js';
import type { HostClient, Hosts, HostVerdict } from '@stillpoint/engine/hosts/hosts.js';
import { describe, expect, it } from 'vitest';

const window = '6f8f1b9e-9d35-4f2c-8b3e-2f5f6a1d7c01.1';
const request = { host: 'kvm-1', vm: 'web', window, frozen: true, reason: 'every cut is made' };

const verdict = (lostReason: string): HostVerdict => ({
  window,
  held: lostReason === '',
  lostReason,
  detail: 'As the host says.',
  neverAsked: false,
  frozenFileSystems: 2,
  thawedFileSystems: 2,
  windowMs: 40,
  frozenUnixMs: 1,
  thawedUnixMs: 0,
  thawedBy: '',
  cuts: [],
  gaps: [],
});
const fails = (code: string) => (): never => {
  throw new HostError('kvm-1', code, `Told ${code}`);
};

/** A host as far as it is asked here; every thaw that it was asked for is in `thaws`. */
interface Fake {
  thawFileSystems?: () => HostVerdict;
  getVm?: () => 'running' | 'paused' | 'shut-off';
  thawVm?: () => number;
}

function hostsOf(fakes: Record<string, Fake>): { hosts: Hosts; thaws: string[] } {
  const thaws: string[] = [];
  const client = (name: string, fake: Fake = {}): Partial<HostClient> => ({
    thawFileSystems: async () => (fake.thawFileSystems ?? (() => verdict('VM_MOVED')))(),
    getVm: async () => ({ state: (fake.getVm ?? fails('VM_NOT_FOUND'))() }) as Awaited<ReturnType<HostClient['getVm']>>,
    thawVm: async (asked) => {
      thaws.push(`${name}: ${asked.window}`);
      return { thawedFileSystems: (fake.thawVm ?? (() => 2))(), lostWindow: '' };
    },
  });
  const hosts = {
    host: (name: string) => client(name, fakes[name]) as HostClient,
    names: async () => Object.keys(fakes),
    close: async () => {},
  };
  return { hosts, thaws };
}

const thaw = (fakes: Record<string, Fake>, changes: { frozen?: boolean } = {}) => {
  const { hosts, thaws } = hostsOf(fakes);
  return { thaws, done: thawFileSystems({ hosts }, { ...request, ...changes }, new AbortController().signal) };
};
const running = { getVm: () => 'running' as const };

describe('A window whose host says that the VM is not there', () => {
  it.each([
    ['it moved', { thawFileSystems: () => verdict('VM_MOVED') }],
    ['the window is unknown', { thawFileSystems: fails('WINDOW_UNKNOWN') }],
    ['the host is lost', { thawFileSystems: fails('HOST_LOST') }],
  ])('%s: the thaw is repeated where the VM runs', async (_, first) => {
    const { done, thaws } = thaw({ 'kvm-1': first, 'kvm-2': {}, 'kvm-3': running });
    expect(await done).toMatchObject({ held: false, thawedOn: 'kvm-3' });
    expect(thaws).toEqual([`kvm-3: ${window}`]);
  });

  it('is also looked for on that very host, which may have lost its journal alone', async () => {
    const { done, thaws } = thaw({ 'kvm-1': { ...running, thawFileSystems: fails('WINDOW_UNKNOWN') } });
    expect(await done).toMatchObject({ thawedOn: 'kvm-1' });
    expect(thaws).toHaveLength(1);
  });

  it('is asked for again while the other host cannot thaw it', async () => {
    const { done } = thaw({ 'kvm-1': {}, 'kvm-2': { getVm: () => 'paused', thawVm: fails('STILL_FROZEN') } });
    await expect(done).rejects.toMatchObject({ code: 'STILL_FROZEN' });
  });

  it.each(['VM_NOT_FOUND', 'VM_NOT_RUNNING'])(
    'is not called thawed by a host that has no more of it: %s',
    async (code) => {
      const { done } = thaw({ 'kvm-1': {}, 'kvm-2': { ...running, thawVm: fails(code) } });
      expect(await done).not.toHaveProperty('thawedOn');
    },
  );

  it('is not called thawed where nobody has it, and who did not answer is named', async () => {
    const off = { getVm: () => 'shut-off' as const };
    const { done, thaws } = thaw({ 'kvm-1': {}, 'kvm-2': { getVm: fails('HOST_UNREACHABLE') }, 'kvm-3': off });
    const { thawedOn, detail } = await done;
    expect(thawedOn).toBeUndefined();
    expect(detail).toContain('kvm-2 did not answer');
    expect(detail).not.toContain('kvm-3');
    expect(thaws).toEqual([]);
  });
});

describe('A window in which nothing was to be frozen', () => {
  it.each(['VM_MOVED', 'WINDOW_UNKNOWN', 'HOST_LOST'])('is thawed for by nobody else: %s', async (lostReason) => {
    const hosts = { 'kvm-1': { thawFileSystems: () => verdict(lostReason) }, 'kvm-2': running };
    const { done, thaws } = thaw(hosts, { frozen: false });
    expect(await done).toMatchObject({ lostReason, detail: 'As the host says.' });
    expect(thaws).toEqual([]);
  });
});

describe('A window that its own host has thawed', () => {
  it.each(['', 'LIMIT', 'VM_GONE', 'VM_SAVED'])('is nobody else’s business: %s', async (lostReason) => {
    const { done, thaws } = thaw({ 'kvm-1': { thawFileSystems: () => verdict(lostReason) }, 'kvm-2': running });
    expect(await done).toMatchObject({ held: lostReason === '', detail: 'As the host says.' });
    expect(thaws).toEqual([]);
  });

  it('tells it when its freeze was never asked for', async () => {
    const { done } = thaw({ 'kvm-1': { thawFileSystems: () => ({ ...verdict('HOLD_BROKEN'), neverAsked: true }) } });
    expect(await done).toMatchObject({ neverAsked: true });
  });
});
