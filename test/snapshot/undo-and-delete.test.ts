import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Overlay } from '@stillpoint/host-agent/window.js';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { Lab, outcomes, window1, window2, window3 } from './lab.js';

/** Three snapshots, one above the other. */
async function threeSnapshots(lab: Lab): Promise<{ life: Awaited<ReturnType<Lab['life']>>; overlays: Overlay[][] }> {
  const life = await lab.life();
  const overlays: Overlay[][] = [];
  for (const window of [window1, window2, window3]) {
    overlays.push(await life.prepareAndCut(window));
    await lab.simulated.getVm(lab.vm.uuid);
  }
  return { life, overlays };
}

async function chainOf(lab: Lab, target: string): Promise<string[]> {
  const source = (lab.vm.live ?? lab.vm.inactive)?.get(target)?.source;
  return source === undefined ? [] : lab.simulated.files.chain(source).map((image) => image.path);
}

describe('undo', () => {
  it('commits the overlays back, tells its progress, and leaves the VM as it was', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const told = new Set<string>();
    expect(outcomes(await life.undo(window1, overlays, ({ target }) => told.add(target)))).toEqual([
      'committed',
      'committed',
    ]);
    expect([...told]).toEqual(['vda', 'vdb']);
    expect(await chainOf(lab, 'vda')).toEqual(['/images/web-1.qcow2']);
    expect(lab.vm.inactive?.get('vda')).toMatchObject({ source: '/images/web-1.qcow2', format: 'qcow2' });
    expect(lab.vm.inactive?.get('vdb')).toMatchObject({ source: '/images/data.img', format: 'raw' });
    expect(lab.overlays()).toEqual([]);
    expect(lab.nothingLost()).toBe(true);
  });

  it('deletes overlays that libvirt was never asked for, also when nobody but their maker knew of them', async () => {
    const lab = new Lab();
    const life = await lab.life();
    await life.prepare();
    life.kill();
    expect(outcomes(await (await lab.life()).undo())).toEqual(['unused-deleted', 'unused-deleted']);
    expect(lab.overlays()).toEqual([]);
  });

  it('can be repeated, and finds nothing', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    await life.undo(window1, overlays);
    expect(outcomes(await life.undo(window1, overlays))).toEqual(['not-found', 'not-found']);
  });

  it('waits for a cut of the same VM that is under way', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const prepared = await life.prepare();
    const held = lab.simulated.inject('snapshotDisks', { hold: 'before' });
    const order: string[] = [];
    lab.simulated.onCall(({ name, phase }) => {
      if (name === 'snapshotDisks' || name === 'getVmBehindJob') order.push(`${name} ${phase}`);
    });
    const cut = life.cut(prepared);
    await held.hit;
    const undo = life.undo(window1, prepared.overlays);
    // An undo that did not wait would read its notes and then ask libvirt: let it.
    for (let i = 0; i < 20; i++) await readFile(join(lab.notesFolder, `${window1}.jsonl`));
    held.release();
    await cut;
    expect(outcomes(await undo)).toEqual(['committed', 'committed']);
    expect(order.slice(0, 3)).toEqual(['snapshotDisks begins', 'snapshotDisks answered', 'getVmBehindJob begins']);
  });

  it('joins a run of the same window', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const merges: string[] = [];
    lab.simulated.onCall(({ name, phase }) => phase === 'begins' && name === 'mergeOverlay' && merges.push(name));
    const [first, second] = await Promise.all([life.undo(window1, overlays), life.undo(window1, overlays)]);
    expect(second).toEqual(first);
    expect(merges).toHaveLength(2);
  });

  it('ends the wait of a caller that goes away, not the merge', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const held = lab.simulated.inject('mergeOverlay', { hold: 'before' });
    const gone = new AbortController();
    const request = { vm: lab.vm.uuid, window: window1, overlays, onProgress: () => {}, signal: gone.signal };
    const left = life.room.undo(request);
    await held.hit;
    gone.abort(new Error('caller gone'));
    await expect(left).rejects.toThrow('caller gone');
    const joined = life.undo(window1, overlays);
    held.release();
    expect(outcomes(await joined)).toEqual(['committed', 'committed']);
  });

  it('waits for a switch whose outcome is unknown, and finds it when it happens late', async () => {
    const lab = new Lab({ room: { settings: { lateSwitchMs: 10_000 } } });
    const life = await lab.life();
    const prepared = await life.prepare();
    const late = lab.simulated.inject('snapshotDisks', { late: 'LIBVIRT_CALL_TIMEOUT' });
    await expect(life.cut(prepared)).rejects.toMatchObject({ code: 'LIBVIRT_CALL_TIMEOUT' });
    let looks = 0;
    const happened = new Promise<void>((resolve, reject) => {
      lab.simulated.onCall(({ name, phase }) => {
        if (name === 'getVmBehindJob' && phase === 'answered' && ++looks === 3) late.happen().then(resolve, reject);
      });
    });
    const disks = await life.undo(window1, prepared.overlays);
    await happened;
    // Both were switched at once: the first disk's wait has found it, the second's merge follows.
    expect(outcomes(disks)).toEqual(['committed', 'committed']);
    expect(lab.nothingLost()).toBe(true);
    expect(lab.overlays()).toEqual([]);
  });

  it('deletes them when the time for a late switch has passed and they are empty', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const prepared = await life.prepare();
    lab.simulated.inject('snapshotDisks', { late: 'LIBVIRT_UNREACHABLE' });
    await expect(life.cut(prepared)).rejects.toMatchObject({ code: 'LIBVIRT_UNREACHABLE' });
    expect(outcomes(await life.undo())).toEqual(['unused-deleted', 'unused-deleted']);
    expect(lab.overlays()).toEqual([]);
  });

  it('waits from when the cut failed, for its request may have been sent only then', async () => {
    const lab = new Lab({ room: { settings: { lateSwitchMs: 10_000 } } });
    const life = await lab.life();
    const prepared = await life.prepare();
    const late = lab.simulated.inject('snapshotDisks', { late: 'LIBVIRT_UNREACHABLE' });
    const now = performance.now.bind(performance);
    onTestFinished(() => void vi.restoreAllMocks());
    let looks = 0;
    lab.simulated.onCall(({ name, phase }) => {
      if (name === 'snapshotDisks' && phase === 'begins')
        vi.spyOn(performance, 'now').mockImplementation(() => now() + 100_000);
      if (name === 'getVmBehindJob' && phase === 'answered' && ++looks === 2) void late.happen();
    });
    await expect(life.cut(prepared)).rejects.toMatchObject({ code: 'LIBVIRT_UNREACHABLE' });
    expect(outcomes(await life.undo())).toEqual(['committed', 'committed']);
    expect(lab.nothingLost()).toBe(true);
  });

  it('finds a switch whose answer was lost', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const prepared = await life.prepare();
    lab.simulated.inject('snapshotDisks', { loseReply: 'LIBVIRT_CALL_TIMEOUT' });
    await expect(life.cut(prepared)).rejects.toMatchObject({ code: 'LIBVIRT_CALL_TIMEOUT' });
    expect(outcomes(await life.undo(window1, prepared.overlays))).toEqual(['committed', 'committed']);
    expect(lab.nothingLost()).toBe(true);
  });

  it("waits for another program's block job to end: pending, and repeated it succeeds", async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const end = lab.vm.startForeignBlockJob('vdb');
    const disks = await life.undo(window1, overlays);
    expect(outcomes(disks)).toEqual(['committed', 'pending BLOCK_JOB_ACTIVE']);
    // Ours did not begin.
    expect(disks[1]?.untouched).toBe(true);
    end();
    expect(outcomes(await life.undo(window1, overlays))).toEqual(['not-found', 'committed']);
    expect(lab.nothingLost()).toBe(true);
  });

  it.each([
    ['MANAGED_SAVE', (lab: Lab) => lab.vm.managedSave()],
    ['VM_NOT_FOUND', (lab: Lab) => lab.vm.moveAway()],
    ['MIGRATION_ACTIVE', (lab: Lab) => lab.vm.migrate()],
    ['LIBVIRT_UNREACHABLE', (lab: Lab) => lab.simulated.connectionDown()],
  ] as const)('touches nothing and stays pending: %s', async (reason, happens) => {
    for (const step of ['prepared', 'cut'] as const) {
      const lab = new Lab();
      const life = await lab.life();
      const { overlays } = await (step === 'cut'
        ? life.prepareAndCut().then((made) => ({ overlays: made }))
        : life.prepare());
      happens(lab);
      const state = () => [lab.simulated.files.paths(), [...(lab.vm.live ?? [])], [...(lab.vm.inactive ?? [])]];
      const before = structuredClone(state());
      const disks = await life.undo(window1, overlays);
      expect(outcomes(disks)).toEqual([`pending ${reason}`, `pending ${reason}`]);
      expect(disks.map(({ untouched }) => untouched)).toEqual([true, true]);
      expect(state()).toEqual(before);
    }
  });

  it('says of a merge that broke off that it had begun, also in a later life that touches nothing', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const [vda, vdb] = await life.prepareAndCut();
    if (vda === undefined || vdb === undefined) throw new Error('two disks are cut');
    lab.simulated.inject('mergeOverlay', { reject: 'MERGE_FAILED' });
    expect(await life.delete([vda])).toMatchObject([{ outcome: 'pending', reason: 'MERGE_FAILED', untouched: false }]);
    life.kill();
    lab.vm.managedSave();
    expect(await (await lab.life()).delete([vda, vdb])).toMatchObject([
      { target: 'vda', reason: 'MANAGED_SAVE', untouched: false },
      { target: 'vdb', reason: 'MANAGED_SAVE', untouched: true },
    ]);
  });

  it('of a VM that is off commits under the image lock and changes the definition', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    lab.vm.shutOff();
    const close = lab.simulated.files.holdOpen('/images/data.img');
    expect(outcomes(await life.undo(window1, overlays))).toEqual(['committed', 'pending IMAGE_LOCKED']);
    close();
    expect(outcomes(await life.undo(window1, overlays))).toEqual(['not-found', 'committed']);
    expect(lab.vm.inactive?.get('vdb')).toMatchObject({ source: '/images/data.img', format: 'raw' });
    expect(lab.overlays()).toEqual([]);
    expect(lab.nothingLost()).toBe(true);
    lab.vm.start();
    await lab.simulated.getVm(lab.vm.uuid);
    expect(lab.nothingLost()).toBe(true);
  });

  it('loses nothing when the VM starts between the commit and the change of its definition', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    lab.vm.shutOff();
    const held = lab.simulated.inject('replaceImage', { hold: 'before' });
    const undo = life.undo(window1, overlays);
    await held.hit;
    lab.vm.start();
    lab.vm.write(50);
    held.release();
    expect(outcomes(await undo)).toEqual(['committed', 'committed']);
    expect(lab.nothingLost()).toBe(true);
    expect(lab.overlays()).toEqual([]);
  });

  it('goes on offline when the VM stops before its merge', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const held = lab.simulated.inject('mergeOverlay', { hold: 'before' });
    const undo = life.undo(window1, overlays);
    await held.hit;
    lab.vm.shutOff();
    held.release();
    expect(outcomes(await undo)).toEqual(['committed', 'committed']);
    expect(lab.nothingLost()).toBe(true);
  });

  it('a running VM whose persistent definition still names the overlay: nothing is deleted, and nothing old is put over new later', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const [vda] = overlays;
    if (vda === undefined) throw new Error('no overlay');
    await lab.simulated.mergeOverlay(lab.vm.uuid, 'vda', vda.overlayPath);
    lab.vm.setSource('inactive', 'vda', vda.overlayPath, 'qcow2');
    expect(outcomes(await life.undo(window1, overlays))).toEqual(['pending INACTIVE_NAMES_OVERLAY', 'committed']);
    expect(lab.overlays()).toEqual([vda.overlayPath]);
    lab.vm.setSource('inactive', 'vda', vda.basePath, vda.baseFormat);
  });

  it('what was merged live is not committed again when the VM is off, though its definition names it: the base is newer', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const [overlay] = await life.prepareAndCut();
    if (overlay === undefined) throw new Error('no overlay');
    const held = lab.simulated.inject('mergeOverlay', { hold: 'after' });
    const undo = life.undo(window1, [overlay]);
    await held.hit;
    lab.vm.setSource('inactive', 'vda', overlay.overlayPath, 'qcow2');
    held.release();
    const [first] = outcomes(await undo);
    expect(first).toBe('pending INACTIVE_NAMES_OVERLAY');
    lab.vm.shutOff();
    const commits: string[] = [];
    lab.simulated.onCall(({ name }) => name === 'commitOffline' && commits.push(name));
    expect(outcomes(await life.delete([overlay]))).toEqual(['pending INACTIVE_NAMES_OVERLAY']);
    expect(commits).toEqual([]);
    expect(lab.overlays()).toContain(overlay.overlayPath);
  });

  it('a VM that ran on its overlay after a commit that was not finished has it committed again', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    lab.vm.shutOff();
    const death = lab.simulated.inject('replaceImage', { die: 'before' });
    void life.undo(window1, overlays);
    await death.hit;
    lab.vm.start();
    lab.vm.write(50);
    lab.vm.shutOff();
    expect(outcomes(await (await lab.life()).undo(window1, overlays))).toEqual(['committed', 'committed']);
    expect(lab.nothingLost()).toBe(true);
  });

  it('data that left every chain without being seen committed is kept', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    lab.vm.shutOff();
    lab.vm.setSource('inactive', 'vda', '/images/web-1.qcow2', 'qcow2');
    lab.vm.start();
    expect(outcomes(await life.undo(window1, overlays))).toEqual(['pending NOT_SEEN_COMMITTED', 'committed']);
    expect(lab.overlays()).toEqual([overlays[0]?.overlayPath]);
  });

  it('after a reboot it is not known that libvirt was never asked: an overlay with data is kept', async () => {
    const lab = new Lab();
    const { overlays } = await (await lab.life()).prepare();
    const notes = join(lab.notesFolder, `${window1}.jsonl`);
    writeFileSync(notes, readFileSync(notes, 'utf8').replace(/"boot":"[^"]*"/, '"boot":"an earlier one"'));
    lab.simulated.files.need(overlays[0]?.overlayPath ?? '').numbers.add(1);
    expect(outcomes(await (await lab.life()).undo())).toEqual(['pending NOT_SEEN_COMMITTED', 'unused-deleted']);
  });

  it('a merge that had begun proves nothing once the VM was restarted on another image', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const death = lab.simulated.inject('mergeOverlay', { die: 'before' });
    void life.undo(window1, overlays);
    await death.hit;
    lab.vm.shutOff();
    lab.vm.setSource('inactive', 'vda', '/images/web-1.qcow2', 'qcow2');
    lab.vm.start();
    expect(outcomes(await (await lab.life()).undo())).toEqual(['pending NOT_SEEN_COMMITTED', 'committed']);
  });

  it('nor after a reboot, when libvirt counts its domain ids from the beginning', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    const death = lab.simulated.inject('mergeOverlay', { die: 'before' });
    void life.undo(window1, overlays);
    await death.hit;
    lab.vm.shutOff();
    lab.vm.setSource('inactive', 'vda', '/images/web-1.qcow2', 'qcow2');
    lab.vm.start();
    const notes = join(lab.notesFolder, `${window1}.jsonl`);
    const text = readFileSync(notes, 'utf8').replace(/"domainId":\d+/, `"domainId":${lab.vm.domainId}`);
    writeFileSync(notes, text.replace(/"boot":"[^"]*"/g, '"boot":"an earlier one"'));
    expect(outcomes(await (await lab.life()).undo())).toEqual(['pending NOT_SEEN_COMMITTED', 'committed']);
  });

  it('a note behind one that a full disk cut short is still read', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const overlays = await life.prepareAndCut();
    appendFileSync(join(lab.notesFolder, `${window1}.jsonl`), '{"note":"mer');
    const death = lab.simulated.inject('mergeOverlay', { die: 'after' });
    void life.undo(window1, overlays);
    await death.hit;
    expect(outcomes(await (await lab.life()).undo())).toEqual(['committed', 'committed']);
  });

  it('an empty overlay that somebody holds open, or that another VM uses, is kept', async () => {
    const lab = new Lab();
    const life = await lab.life();
    const prepared = await life.prepare();
    lab.simulated.files.holdOpen(prepared.overlays[0]?.overlayPath ?? '');
    lab.simulated.addVm({
      name: 'other',
      disks: [{ target: 'vda', path: prepared.overlays[1]?.overlayPath ?? '' }],
      state: 'shut-off',
    });
    expect(outcomes(await life.undo())).toEqual(['pending OPEN', 'pending IN_USE_BY_OTHER_VM']);
    expect(lab.overlays()).toHaveLength(2);
  });
});

describe('delete', () => {
  it.each([
    ['the oldest', 0],
    ['the middle one', 1],
    ['the newest', 2],
  ] as const)(
    'merges %s of three snapshots into the image below it, of a running VM and of one that is off',
    async (_, which) => {
      for (const state of ['running', 'off'] as const) {
        const lab = new Lab();
        const { life, overlays } = await threeSnapshots(lab);
        if (state === 'off') lab.vm.shutOff();
        const chosen = overlays[which] ?? [];
        const cuts = overlays.map((set) => set.map((overlay) => lab.simulated.files.lastNumber(overlay.basePath)));
        expect(outcomes(await life.delete(chosen, [window1, window2, window3][which]))).toEqual([
          'committed',
          'committed',
        ]);
        expect(lab.overlays()).toHaveLength(4);
        expect(await chainOf(lab, 'vda')).toHaveLength(3);
        expect(lab.nothingLost()).toBe(true);
        // The snapshots above keep the instant of their cut: their images below hold what the merged one held.
        if (which === 0) {
          expect(lab.simulated.files.lastNumber('/images/web-1.qcow2')).toBe(cuts[1]?.[0]);
          expect(lab.simulated.files.lastNumber('/images/data.img')).toBe(cuts[1]?.[1]);
        }
      }
    },
  );

  it('merges all three in any order, the VM starting and stopping between them', async () => {
    const lab = new Lab();
    const { life, overlays } = await threeSnapshots(lab);
    const windows = [window1, window2, window3];
    for (const which of [1, 0, 2]) {
      expect(outcomes(await life.delete(overlays[which] ?? [], windows[which]))).toEqual(['committed', 'committed']);
      if (lab.vm.running) lab.vm.shutOff();
      else lab.vm.start();
    }
    expect(await chainOf(lab, 'vdb')).toEqual(['/images/data.img']);
    expect(lab.overlays()).toEqual([]);
    expect(lab.nothingLost()).toBe(true);
  });

  it('of what is merged already succeeds', async () => {
    const lab = new Lab();
    const { life, overlays } = await threeSnapshots(lab);
    await life.delete(overlays[1] ?? [], window2);
    expect(outcomes(await life.delete(overlays[1] ?? [], window2))).toEqual(['not-found', 'not-found']);
  });

  it.each([
    ['NOT_OURS', { overlayPath: '/etc/shadow' }],
    ['NOT_OURS', { overlayPath: `/etc/passwd.sp-${window1}.qcow2` }],
    ['NOT_OURS', { overlayPath: `/images/../etc/x.sp-${window1}.qcow2` }],
    ['NOT_OURS', { overlayPath: `/images/x.sp-${window2}.qcow2` }],
    ['NOT_OURS', { overlayPath: `/images/link.sp-${window1}.qcow2` }],
    ['NOT_OURS', { basePath: '/images/a\n.qcow2' }],
    ['BASE_CHANGED', { basePath: '/images/other.qcow2' }],
    ['DISK_CHANGED', { target: 'vdb' }],
  ] as const)('a record that does not fit is refused: %s (%#)', async (reason, change) => {
    const lab = new Lab();
    const life = await lab.life();
    const [overlay] = await life.prepareAndCut();
    if (overlay === undefined) throw new Error('no overlay');
    lab.simulated.files.add({ path: '/etc/shadow' });
    lab.simulated.files.add({ path: '/images/other.qcow2' });
    lab.simulated.files.link(`/images/link.sp-${window1}.qcow2`, '/etc/shadow');
    const before = lab.simulated.files.paths();
    expect(outcomes(await life.delete([{ ...overlay, ...change }]))).toEqual([`pending ${reason}`]);
    expect(lab.simulated.files.paths()).toEqual(before);
    expect(lab.vm.live?.get('vda')?.source).toBe(overlay.overlayPath);
  });

  it('of a VM that is off changes nothing while the image above is open, or when the header names another base', async () => {
    const lab = new Lab();
    const { life, overlays } = await threeSnapshots(lab);
    const [vda, vdb] = overlays[1] ?? [];
    if (vda === undefined || vdb === undefined) throw new Error('no overlays');
    lab.vm.shutOff();
    lab.simulated.files.add({ path: '/images/evil.img', format: 'raw' });
    lab.simulated.files.need(vdb.overlayPath).backing = '/images/evil.img';
    lab.simulated.files.holdOpen(overlays[2]?.[0]?.overlayPath ?? '');
    const before = lab.simulated.files.content(vda.basePath).ranges;
    expect(outcomes(await life.delete([vda, vdb], window2))).toEqual(['pending IMAGE_LOCKED', 'pending BASE_CHANGED']);
    expect(lab.simulated.files.content(vda.basePath).ranges).toEqual(before);
    expect(lab.simulated.files.content('/images/evil.img').isEmpty).toBe(true);
  });

  it.each(['running', 'shut-off'] as const)(
    'does not change a base that another VM (%s) reads, or an overlay whose header names another base',
    async (state) => {
      const lab = new Lab();
      const life = await lab.life();
      const overlays = await life.prepareAndCut();
      lab.simulated.files.add({ path: '/images/clone.qcow2', backing: '/images/web-1.qcow2', backingFormat: 'qcow2' });
      lab.simulated.addVm({ name: 'clone', disks: [{ target: 'vda', path: '/images/clone.qcow2' }], state });
      lab.simulated.files.add({ path: '/images/evil.img', format: 'raw' });
      const header = lab.simulated.files.need(overlays[1]?.overlayPath ?? '');
      header.backing = '/images/evil.img';
      const before = lab.simulated.files.content('/images/web-1.qcow2').ranges;
      expect(outcomes(await life.delete(overlays))).toEqual(['pending IN_USE_BY_OTHER_VM', 'pending BASE_CHANGED']);
      expect(lab.simulated.files.content('/images/web-1.qcow2').ranges).toEqual(before);
      expect(lab.simulated.files.content('/images/evil.img').isEmpty).toBe(true);
    },
  );
});

describe('a host agent that dies', () => {
  /** Runs prepare, cut and undo, each life killed at its `at`th call of the port; then lets a new life undo until it is done. */
  async function dieAt(at: number, when: 'before' | 'after', off: boolean): Promise<{ lab: Lab; died: boolean }> {
    const lab = new Lab({ room: { settings: { lateSwitchMs: 20 } } });
    const fault = lab.simulated.inject('*', { die: when }, { skip: at });
    let died = false;
    const death = fault.hit.then(() => {
      died = true;
    });
    const life = await lab.life();
    const work = (async () => {
      const prepared = await life.prepare();
      await life.cut(prepared);
      if (off) lab.vm.shutOff();
      await life.undo(window1, prepared.overlays);
    })();
    await Promise.race([work, death]);
    fault.remove();
    const next = await lab.life();
    const disks = await next.undo();
    expect(disks.filter((disk) => disk.outcome === 'pending')).toEqual([]);
    return { lab, died };
  }

  it.each([
    ['before', false],
    ['after', false],
    ['before', true],
    ['after', true],
  ] as const)('%s any call of the port leaves what the next life takes back whole (VM off: %s)', async (when, off) => {
    let deaths = 0;
    for (let at = 0; ; at++) {
      const { lab, died } = await dieAt(at, when, off);
      expect(lab.overlays(), `killed ${when} call ${at}`).toEqual([]);
      expect(lab.nothingLost(), `killed ${when} call ${at}`).toBe(true);
      expect(await chainOf(lab, 'vda')).toEqual(['/images/web-1.qcow2']);
      if (!died) break;
      deaths++;
    }
    expect(deaths).toBeGreaterThan(20);
  });
});
