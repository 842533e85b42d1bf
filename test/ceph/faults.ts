/** Cinder, its quota, its tokens and its volumes fail in every way that matters: the guest is thawed, nothing is left, and the error says what to do. */
import type { SnapshotView } from '@stillpoint/engine/api/schemas.js';
import type { ExchangeMatch, HeldExchange } from '@stillpoint/lab/cinder-proxy.js';
import { describe, expect, it } from 'vitest';
import { VOLUMES } from './mixed-system.js';
import { leavingNothing, log, mixed } from './the-system.js';

/** The host agent's own default. */
const WINDOW_LIMIT_MS = 30_000;

const create = (what: ExchangeMatch['what'], nth = 1): ExchangeMatch => ({
  method: 'POST',
  path: /\/snapshots$/,
  what,
  nth,
});

/** No freeze was ever sent, by libvirt's own word. */
function expectNeverFrozen(): void {
  expect(log.agent().map(({ command }) => command)).not.toContain('guest-fsfreeze-freeze');
}

/** The guest was frozen, is thawed by its kernel's word, and libvirt never sent the thaw later than allowed. */
async function expectThawedInTime(limitMs = WINDOW_LIMIT_MS): Promise<void> {
  await mixed.lab.guest.waitUntilThawed(30_000);
  const frozen = log.frozenTimes();
  expect(frozen.length).toBeGreaterThan(0);
  const thaws = log
    .agent()
    .filter(({ direction, command }) => direction === 'sent' && command === 'guest-fsfreeze-thaw');
  for (const { fromMs, untilMs } of frozen) {
    expect(untilMs).toBeDefined();
    const thaw = thaws.find(({ atMs }) => atMs >= fromMs);
    expect((thaw?.atMs ?? Number.POSITIVE_INFINITY) - fromMs).toBeLessThanOrEqual(limitMs);
  }
}

function expectFailed(snapshot: SnapshotView, code: string, advice: RegExp): void {
  expect(snapshot).toMatchObject({ state: 'failed', grade: null, pending: [], disks: [], error: { code } });
  expect(snapshot.error?.text).toMatch(/guest|froze nothing/);
  expect(snapshot.error?.text).toMatch(advice);
}

/** It is what it says, and is deleted. */
async function expectComplete(snapshot: SnapshotView, window: 1 | 2): Promise<void> {
  expect(snapshot).toMatchObject({ state: 'complete', grade: 'filesystem', error: null });
  expect(snapshot.window?.id).toBe(`${snapshot.id}.${window}`);
  await mixed.expectConsistent(snapshot);
  await mixed.system.deleteSnapshot(snapshot.id);
}

/** A lost connection is a reason to try once more: it has a snapshot from the second window, or says why it has none. */
async function expectTrueEnd(snapshot: SnapshotView, codes: readonly string[]): Promise<void> {
  if (snapshot.state === 'complete') return expectComplete(snapshot, 2);
  const code = snapshot.error?.code ?? 'none';
  expect(codes).toContain(code);
  expectFailed(snapshot, code, /See that|Ask for the snapshot again/);
}

/** A snapshot in its window, whose guest is frozen: one volume's create is held before Cinder, the others are cut. */
async function withOneCreateHeld(): Promise<{ id: string; held: HeldExchange; volume: string }> {
  const held = mixed.cinder.hold(create('request'));
  const id = await mixed.begin();
  await held.reached;
  const volume = await mixed.until('the others are available', async () => {
    const available = (await mixed.snapshotsInCinder()).filter(({ status }) => status === 'available');
    const made = available.map(({ volume_id }) => volume_id);
    const [missing, another] = VOLUMES.map((target) => mixed.volume(target)).filter((one) => !made.includes(one));
    return another === undefined ? missing : undefined;
  });
  expect(await mixed.lab.guest.isFrozen()).toBe(true);
  return { id, held, volume };
}

describe('Before the freeze a snapshot fails', () => {
  leavingNothing();

  it('as CINDER_QUOTA where the project may not make as many', async () => {
    await mixed.storage.setQuota({ snapshots: (await mixed.snapshotsCounted()) + VOLUMES.length - 1 });
    expectFailed(
      await mixed.snapshot(),
      'CINDER_QUOTA',
      /quota for snapshots leaves 3 of \d+, .* needs 4.*Delete snapshots/s,
    );
    expectNeverFrozen();
  });

  it('as CINDER_UNREACHABLE where Cinder takes no connection', async () => {
    mixed.cinder.refuse();
    expectFailed(await mixed.snapshot(), 'CINDER_UNREACHABLE', /See that Cinder runs/);
    expectNeverFrozen();
  });

  it('as VOLUME_MISMATCH where a volume is attached to another VM', async () => {
    const { storage, lab } = mixed;
    const id = mixed.volume('vdf');
    const another = '57111900-0000-4000-8000-00000000dead';
    await storage.detachVolume(id);
    await storage.attachVolume(id, another, '/dev/vdf');
    const snapshot = await mixed.snapshot();
    await storage.detachVolume(id);
    await storage.attachVolume(id, lab.vm.uuid, '/dev/vdf');
    expectFailed(snapshot, 'VOLUME_MISMATCH', new RegExp(`vdf .*${another}.*leave the disk out`, 's'));
    expectNeverFrozen();
  });

  it("as VOLUME_MISMATCH where a volume is another project's", async () => {
    const { storage, lab } = mixed;
    const ours = storage.cinder.projectId;
    const theirs = storage.keystone?.stranger.projectId ?? '';
    const id = mixed.volume('vdf');
    await storage.detachVolume(id);
    await storage.giveVolume(id, ours, theirs);
    const snapshot = await mixed.snapshot();
    await storage.giveVolume(id, theirs, ours);
    await storage.attachVolume(id, lab.vm.uuid, '/dev/vdf');
    expectFailed(snapshot, 'VOLUME_MISMATCH', /vdf .*project has no volume.*leave the disk out/s);
    expectNeverFrozen();
  });
});

describe('In the window', () => {
  leavingNothing();

  it('a quota that is taken away thaws the guest and undoes the others: CINDER_QUOTA', async () => {
    const { id, held } = await withOneCreateHeld();
    await mixed.storage.setQuota({ snapshots: await mixed.snapshotsCounted() });
    held.release();
    expectFailed(await mixed.system.waitForSnapshot(id), 'CINDER_QUOTA', /Delete snapshots/);
    await expectThawedInTime();
  });

  it('a volume that goes into error thaws the guest and undoes the others: VOLUME_BUSY', async () => {
    const { id, held, volume } = await withOneCreateHeld();
    const become = async (status: string) => {
      const answer = await mixed.storage.request('POST', `/volumes/${volume}/action`, {
        'os-reset_status': { status },
      });
      expect(answer.status).toBe(202);
    };
    await become('error');
    held.release();
    const snapshot = await mixed.system.waitForSnapshot(id);
    await become('in-use');
    expectFailed(snapshot, 'VOLUME_BUSY', new RegExp(`${volume} is error.*administrator`, 's'));
    await expectThawedInTime();
  });

  it('a Cinder that fails for one of the volumes thaws the guest and undoes the others: CINDER_FAILED', async () => {
    const body = { computeFault: { code: 500, message: 'The server has either erred or is incapable.' } };
    const answered = mixed.cinder.answer(create('request', 2), { status: 500, body });
    const snapshot = await mixed.snapshot();
    await answered;
    expectFailed(snapshot, 'CINDER_FAILED', /log of cinder-api/);
    await expectThawedInTime();
  });

  it('an answer that is lost loses nothing: what Cinder has made is found again', async () => {
    const lost = mixed.cinder.drop(create('answer'));
    const snapshot = await mixed.snapshot();
    await lost.reached;
    await expectComplete(snapshot, 1);
    await expectThawedInTime();
  });

  it('a request that is lost is not sent again: a second window is opened on clean ground', async () => {
    const lost = mixed.cinder.drop(create('request'));
    const snapshot = await mixed.snapshot();
    await lost.reached;
    await expectComplete(snapshot, 2);
    await expectThawedInTime();
    expect(log.frozenTimes()).toHaveLength(2);
  });

  it('a Cinder that says 503 is asked again when it says so, and not where that is too late: CINDER_OVERLOADED', async () => {
    const busy = (retryAfter: string) => ({ status: 503, headers: { 'retry-after': retryAfter } });
    const once = mixed.cinder.answer(create('request'), busy('1'));
    await expectComplete(await mixed.snapshot(), 1);
    await once;

    const toldToWait = mixed.cinder.answer(create('request'), busy('60'));
    expectFailed(await mixed.snapshot(), 'CINDER_OVERLOADED', /Try again later/);
    await toldToWait;
    await expectThawedInTime();
  });

  it('a Cinder that dies thaws the guest; what it had made is taken back when it is up again', async () => {
    const { id, held } = await withOneCreateHeld();
    const api = mixed.storage.daemon('cinder-api-keystone');
    await api.kill();
    held.release();
    await mixed.lab.guest.waitUntilThawed(30_000);
    expect(await mixed.snapshotsInCinder()).toHaveLength(VOLUMES.length - 1);
    await api.start();
    const snapshot = await mixed.system.waitForSnapshot(id);
    await expectThawedInTime();
    await expectTrueEnd(snapshot, ['CINDER_UNREACHABLE']);
  });

  it('a Cinder that takes a question and never answers fails its cut before the limit of the window; what it does when it goes on is taken back', async () => {
    const api = mixed.storage.daemon('cinder-api-keystone');
    const held = mixed.cinder.hold(create('request'));
    const id = await mixed.begin();
    await held.reached;
    await api.freeze();
    held.release();
    await mixed.lab.guest.waitUntilThawed(30_000);
    const steps = await mixed.until('what it may do is looked for', async () => {
      const { body } = await mixed.system.request<SnapshotView>('GET', `/v1/snapshots/${id}`);
      return body.progress?.state === 'undoing' ? body.progress.steps : undefined;
    });
    const told = steps.map(({ error }) => error ?? '').join();
    expect(told).toMatch(/Cinder at .* did not answer/);
    expect(told).not.toContain('LIMIT');
    await api.thaw();
    const snapshot = await mixed.system.waitForSnapshot(id);
    await expectThawedInTime();
    // On a busy machine the second window is lost, too.
    await expectTrueEnd(snapshot, ['CINDER_UNREACHABLE', 'CONSISTENCY_LOST']);
  });

  it('a snapshot that stays in creating is told as pending, with the command that ends it, and cleaned up later', async () => {
    const volumeService = mixed.storage.daemon('cinder-volume');
    await volumeService.freeze();
    const snapshot = await mixed.snapshot({ windowLimitMs: 3_000, disks: ['vda', 'vdc'] });
    await expectThawedInTime(4_000);
    const [stuck] = await mixed.snapshotsInCinder();
    expect(stuck).toMatchObject({ status: 'creating', volume_id: mixed.volume('vdc') });
    expect(snapshot).toMatchObject({ state: 'cleanup-pending', grade: null });
    expect(snapshot.pending.join()).toContain(`openstack volume snapshot set --state error ${stuck?.id}`);
    expect(snapshot.error?.text).toContain('stillpoint snapshot cleanup');
    // The host's part is gone already.
    expect(await mixed.leftOnHost()).toEqual([]);

    const tooEarly = await mixed.system.stillpoint('snapshot', 'cleanup', snapshot.id, '--wait');
    expect(tooEarly.exitCode).toBe(7);
    expect(`${tooEarly.stdout}${tooEarly.stderr}`).toContain(`still creating`);

    await volumeService.thaw();
    const cleaned = await mixed.system.stillpoint('snapshot', 'cleanup', '--wait');
    expect(cleaned).toMatchObject({ exitCode: 0, stdout: expect.stringContaining('cleaned up') });
  });
});

describe('A token', () => {
  leavingNothing();

  it('is renewed before the window, and once more where it expires in it', async () => {
    const { storage, keystone } = mixed;
    const tokens = { method: 'POST', path: /\/auth\/tokens$/ };
    await storage.setTokenLifetime(5);
    try {
      keystone.clearRecords();
      // The token from before is good for an hour: Cinder refuses it, and from then on none is good for as long as a window may last.
      const refused = mixed.cinder.answer({ method: 'GET', path: /\/limits$/, what: 'request' }, { status: 401 });
      const held = mixed.cinder.hold(create('request'));
      const id = await mixed.begin();
      await refused;
      const { headers } = await held.reached;
      const before = keystone.requests(tokens).length;
      expect(before).toBeGreaterThanOrEqual(2);
      const heldToken = String(headers['x-auth-token']);
      await mixed.until('the token has expired', async () => ((await isGood(heldToken)) ? undefined : true));
      expect(await mixed.lab.guest.isFrozen()).toBe(true);
      held.release();
      const snapshot = await mixed.system.waitForSnapshot(id);
      expect(keystone.requests(tokens).length).toBeGreaterThan(before);
      await expectThawedInTime();
      await expectComplete(snapshot, 1);
    } finally {
      await storage.setTokenLifetime(3_600);
    }
  });
});

/** Keystone's word on a token. */
async function isGood(token: string): Promise<boolean> {
  const { authUrl = '' } = mixed.storage.keystone ?? {};
  const { status } = await fetch(`${authUrl}/auth/tokens`, {
    headers: { 'x-auth-token': token, 'x-subject-token': token },
  });
  return status === 200;
}
