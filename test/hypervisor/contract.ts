import { posix } from 'node:path';
import type { HostAgentErrorCode } from '@stillpoint/host-agent/errors.js';
import type { Disk, Hypervisor, HypervisorEvent } from '@stillpoint/host-agent/hypervisor.js';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';

/**
 * What an implementation brings to the contract: the port, connected, and one running, persistent VM on it, whose guest agent answers, whose guest writes
 * all the time, with two local disks (qcow2 files with a file system each) and one network disk. What the contract asks for here it asks of the world (the
 * guest, libvirt's administrator), never of the port.
 */
export interface ContractHost {
  readonly hypervisor: Hypervisor;
  readonly uuid: string;
  readonly name: string;
  readonly localDisks: readonly [string, string];
  readonly networkDisk: string;

  /** Asks the guest itself. */
  isFrozen(): Promise<boolean>;
  /** How far the guest's writer has got. */
  written(): Promise<number>;
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** Kills the guest agent for good; startAgent() brings it back. */
  killAgent(): Promise<void>;
  startAgent(): Promise<void>;
  /** SIGSTOP and SIGCONT of the guest agent. */
  stopAgent(): Promise<void>;
  continueAgent(): Promise<void>;
  setFreezeHook(hook: 'nothing' | 'fail' | 'hang'): Promise<void>;
  /** Resolves once the guest's freeze hook has begun. */
  hookBegan(): Promise<void>;
  /** `virsh save`: the VM is shut off, its guest in a file. */
  save(): Promise<SavedVm>;
  /** `virsh managedsave`, and a start that goes on from there. */
  managedSave(): Promise<SavedVm>;
  /** libvirt goes away, and comes back; the guest lives on. */
  connectionDown(): Promise<void>;
  connectionUp(): Promise<void>;
  /** One more VM, with the first local disk only; defined, and started if asked for. */
  addVm(extra: { name: string; agentChannel: boolean; start: boolean }): Promise<ContractVm>;

  /** After each test: the VM runs, thawed, its guest agent answers, libvirt is up, and its disks have their first images. */
  reset(): Promise<void>;
  /** After all tests. */
  close(): Promise<void>;
}

export interface ContractVm {
  readonly uuid: string;
  /** Path of its first local disk. */
  readonly disk: string;
  start(): Promise<void>;
  shutOff(): Promise<void>;
  remove(): Promise<void>;
}

/** A running guest in a file: it goes on from there once. */
export interface SavedVm {
  restore(): Promise<void>;
}

const nobody = '00000000-0000-4000-8000-00000000dead';

/** Every method and every error that the port promises, over one implementation. */
export function hypervisorContract(name: string, setup: () => Promise<ContractHost>): void {
  describe(`the hypervisor port: ${name}`, () => {
    let host: ContractHost;
    let port: Hypervisor;
    let uuid: string;
    let made: string[];

    beforeAll(async () => {
      host = await setup();
      port = host.hypervisor;
      uuid = host.uuid;
    }, 600_000);
    afterAll(async () => {
      await host?.close();
    });
    afterEach(async () => {
      await host.reset();
      for (const path of made ?? []) await port.images.delete(path);
      made = [];
    }, 180_000);

    const rejects = async (call: Promise<unknown>, code: HostAgentErrorCode): Promise<void> => {
      await expect(call).rejects.toMatchObject({ name: 'HostAgentError', code });
    };
    const event = (fits: (event: HypervisorEvent) => boolean): Promise<HypervisorEvent> =>
      new Promise((resolve) => {
        const end = port.onEvent((told) => {
          if (!fits(told)) return;
          end();
          resolve(told);
        });
      });
    const disk = async (target: string): Promise<Disk> => {
      const found = (await port.getVmBehindJob(uuid)).vm.disks.find((other) => other.target === target);
      if (found === undefined) throw new Error(`no disk ${target}`);
      return found;
    };
    const chain = async (target: string) => (await disk(target)).chain.map((image) => image.path);
    const makeOverlay = async (target: string, label: string) => {
      const { path: base, format } = await disk(target);
      if (base === undefined) throw new Error(`${target} is no local disk`);
      const path = posix.join(posix.dirname(base), `${target}.sp-${label}.qcow2`);
      const sizeBytes = await port.images.sizeBytes(base, format);
      await port.images.createOverlay({ path, base, baseFormat: format, sizeBytes, likeFile: base });
      made = [...(made ?? []), path];
      return { target, path, base };
    };

    describe('what it tells', () => {
      it('its versions', async () => {
        expect(await port.facts()).toEqual({
          reachable: true,
          libvirtVersion: expect.stringMatching(/^\d+\.\d+\.\d+$/),
          qemuVersion: expect.stringMatching(/^\d+\.\d+\.\d+$/),
          canSetAgentTimeout: true,
        });
      });

      it('a VM, alone, in the list and behind its jobs', async () => {
        const vm = await port.getVm(uuid);
        expect(vm).toMatchObject({
          uuid,
          name: host.name,
          domainId: expect.any(Number),
          state: 'running',
          persistent: true,
          hasManagedSave: false,
          guestAgent: 'connected',
          migrating: false,
        });
        expect(await port.listVms()).toContainEqual(vm);
        const behind = await port.getVmBehindJob(uuid);
        expect(behind.vm).toEqual(vm);
        expect(behind.inactive?.map(({ target, path }) => ({ target, path }))).toEqual(
          vm.disks.map(({ target, path }) => ({ target, path })),
        );
      });

      it('its disks: local ones with their chain, the network disk without a path', async () => {
        for (const target of host.localDisks) {
          const local = await disk(target);
          expect(local).toMatchObject({
            device: 'disk',
            kind: 'file',
            format: 'qcow2',
            readOnly: false,
            shareable: false,
          });
          expect(local).toMatchObject({ transient: false, blockJob: false });
          expect(local.chain).toEqual([{ path: local.path, format: 'qcow2', kind: 'file' }]);
        }
        const network = await disk(host.networkDisk);
        expect(network.path).toBeUndefined();
        expect(['rbd', 'network']).toContain(network.kind);
        expect(network.image).toEqual(expect.any(String));
      });

      it("the guest's file systems and its OS", async () => {
        const fileSystems = await port.guestFileSystems(uuid);
        for (const target of host.localDisks) {
          expect(fileSystems).toContainEqual(expect.objectContaining({ targets: [target], type: 'ext4' }));
        }
        // A guest need not say what it is.
        expect((await port.guestOs(uuid, 5))?.isWindows ?? false).toBe(false);
      });

      it('pausing and resuming', async () => {
        const paused = event((told) => told.type === 'lifecycle' && told.uuid === uuid && told.what === 'paused');
        await host.pause();
        await paused;
        expect(await port.getVm(uuid)).toMatchObject({ state: 'paused' });
        const resumed = event((told) => told.type === 'lifecycle' && told.uuid === uuid && told.what === 'resumed');
        await host.resume();
        await resumed;
        expect(await port.getVm(uuid)).toMatchObject({ state: 'running' });
      });

      it('that the guest agent goes and comes', async () => {
        const gone = event((told) => told.type === 'agent' && !told.connected);
        await host.killAgent();
        expect(await gone).toEqual({ type: 'agent', uuid, connected: false });
        const back = event((told) => told.type === 'agent' && told.connected);
        await host.startAgent();
        expect(await back).toEqual({ type: 'agent', uuid, connected: true });
      });
    });

    describe('freeze and thaw', () => {
      it('hold the guest still, count its file systems and say when', async () => {
        await port.setAgentTimeout(uuid, 30);
        expect(await port.freezeStatus(uuid, 5)).toBe('thawed');
        const frozen = await port.freeze(uuid);
        expect(frozen.fileSystems).toBeGreaterThanOrEqual(host.localDisks.length);
        expect(await port.freezeStatus(uuid, 5)).toBe('frozen');
        expect(await host.isFrozen()).toBe(true);
        const written = await host.written();
        await port.getVm(uuid);
        expect(await host.written()).toBe(written);
        const thawed = await port.thaw(uuid);
        expect(thawed.fileSystems).toBe(frozen.fileSystems);
        expect(frozen.repliedAt).toBeLessThanOrEqual(thawed.requestedAt);
        expect(thawed.requestedAt).toBeLessThanOrEqual(thawed.repliedAt);
        expect(await host.isFrozen()).toBe(false);
      });

      it('a thaw of a guest that is not frozen is 0', async () => {
        expect((await port.thaw(uuid)).fileSystems).toBe(0);
      });

      it('a second freeze is ALREADY_FROZEN, and so are questions that a frozen guest does not answer', async () => {
        await port.freeze(uuid);
        await rejects(port.freeze(uuid), 'ALREADY_FROZEN');
        await rejects(port.guestFileSystems(uuid), 'ALREADY_FROZEN');
        expect(await host.isFrozen()).toBe(true);
      });

      it('a hook that refuses is FREEZE_HOOK_FAILED, and the guest is not frozen', async () => {
        await host.setFreezeHook('fail');
        await rejects(port.freeze(uuid), 'FREEZE_HOOK_FAILED');
        expect(await host.isFrozen()).toBe(false);
      });

      it('without a guest agent they are AGENT_NOT_CONNECTED', async () => {
        const gone = event((told) => told.type === 'agent' && !told.connected);
        await host.killAgent();
        await gone;
        expect(await port.getVm(uuid)).toMatchObject({ guestAgent: 'disconnected' });
        await rejects(port.freeze(uuid), 'AGENT_NOT_CONNECTED');
        await rejects(port.thaw(uuid), 'AGENT_NOT_CONNECTED');
        await rejects(port.freezeStatus(uuid, 1), 'AGENT_NOT_CONNECTED');
        await rejects(port.guestFileSystems(uuid), 'AGENT_NOT_CONNECTED');
        expect(await port.guestOs(uuid, 1)).toBeUndefined();
      });

      it('a guest agent killed while frozen leaves the guest frozen; the next one thaws it', async () => {
        const frozen = await port.freeze(uuid);
        const gone = event((told) => told.type === 'agent' && !told.connected);
        await host.killAgent();
        await gone;
        await rejects(port.thaw(uuid), 'AGENT_NOT_CONNECTED');
        const back = event((told) => told.type === 'agent' && told.connected);
        await host.startAgent();
        await back;
        expect(await port.freezeStatus(uuid, 10)).toBe('frozen');
        expect((await port.thaw(uuid)).fileSystems).toBe(frozen.fileSystems);
      });

      it('a stopped guest agent is AGENT_NOT_RESPONDING after the timeout that was set', async () => {
        await port.setAgentTimeout(uuid, 1);
        await host.stopAgent();
        await rejects(port.freezeStatus(uuid, 1), 'AGENT_NOT_RESPONDING');
        await rejects(port.guestFileSystems(uuid), 'AGENT_NOT_RESPONDING');
        await rejects(port.thaw(uuid), 'AGENT_NOT_RESPONDING');
      });

      it('a freeze given up behind a stopped guest agent can still happen', async () => {
        await port.setAgentTimeout(uuid, 1);
        expect(await port.freezeStatus(uuid, 5)).toBe('thawed');
        await host.stopAgent();
        await rejects(port.freeze(uuid), 'AGENT_NOT_RESPONDING');
        await host.continueAgent();
        // The guest agent works in order: this question is answered after the freeze.
        expect(await port.freezeStatus(uuid, 10)).toBe('frozen');
        await port.setAgentTimeout(uuid, 30);
        await port.thaw(uuid);
        expect(await host.isFrozen()).toBe(false);
      });

      it('a guest agent that dies in its freeze hook is AGENT_NOT_RESPONDING', async () => {
        await host.setFreezeHook('hang');
        const freeze = rejects(port.freeze(uuid), 'AGENT_NOT_RESPONDING');
        await host.hookBegan();
        await host.killAgent();
        await freeze;
        expect(await host.isFrozen()).toBe(false);
      });

      it('of a paused VM they are VM_PAUSED, and a frozen guest stays frozen until it is resumed', async () => {
        await port.freeze(uuid);
        await host.pause();
        await rejects(port.freeze(uuid), 'VM_PAUSED');
        await rejects(port.thaw(uuid), 'VM_PAUSED');
        await rejects(port.freezeStatus(uuid, 1), 'VM_PAUSED');
        await rejects(port.guestFileSystems(uuid), 'VM_PAUSED');
        await host.resume();
        expect((await port.thaw(uuid)).fileSystems).toBeGreaterThan(0);
      });

      it('without a channel they are AGENT_NOT_CONFIGURED', async () => {
        const vm = await host.addVm({ name: 'no-channel', agentChannel: false, start: true });
        expect(await port.getVm(vm.uuid)).toMatchObject({ guestAgent: 'not-configured' });
        await rejects(port.freeze(vm.uuid), 'AGENT_NOT_CONFIGURED');
        await rejects(port.thaw(vm.uuid), 'AGENT_NOT_CONFIGURED');
        await rejects(port.freezeStatus(vm.uuid, 1), 'AGENT_NOT_CONFIGURED');
        await rejects(port.guestFileSystems(vm.uuid), 'AGENT_NOT_CONFIGURED');
        await vm.remove();
      }, 180_000);

      it('a timeout for the guest agent is whole seconds, at least 1', async () => {
        await rejects(port.setAgentTimeout(uuid, 0), 'INVALID_ARGUMENT');
        await rejects(port.setAgentTimeout(uuid, 1.5), 'INVALID_ARGUMENT');
        await port.setAgentTimeout(uuid, 'default');
        expect(await port.freezeStatus(uuid, 5)).toBe('thawed');
      });
    });

    describe('snapshot and merge', () => {
      it('switch exactly the named disks, frozen or not, and merge them back', async () => {
        const [a, b] = host.localDisks;
        const overlays = [await makeOverlay(a, 'w.1'), await makeOverlay(b, 'w.1')];
        const network = await disk(host.networkDisk);
        expect(await port.images.isEmptyOverlay(overlays[0]?.path ?? '')).toBe(true);
        await port.freeze(uuid);
        const { requestedAt, repliedAt } = await port.snapshotDisks(uuid, overlays);
        expect(requestedAt).toBeLessThanOrEqual(repliedAt);
        expect(await host.isFrozen()).toBe(true);
        await port.thaw(uuid);
        const { inactive } = await port.getVmBehindJob(uuid);
        for (const overlay of overlays) {
          expect(await chain(overlay.target)).toEqual([overlay.path, overlay.base]);
          expect(inactive?.find((other) => other.target === overlay.target)?.path).toBe(overlay.path);
          expect(await port.images.isOpen(overlay.path)).toBe(true);
        }
        expect(await disk(host.networkDisk)).toEqual(network);

        const told: number[] = [];
        const completed = event((seen) => seen.type === 'block-job' && seen.target === a && seen.what === 'completed');
        const onProgress = ({ doneBytes }: { doneBytes: number }) => told.push(doneBytes);
        await Promise.all([
          port.mergeOverlay(uuid, a, overlays[0]?.path ?? '', { onProgress }),
          port.mergeOverlay(uuid, a, overlays[0]?.path ?? ''),
          port.mergeOverlay(uuid, b, overlays[1]?.path ?? ''),
        ]);
        await completed;
        expect(told.length).toBeGreaterThan(0);
        const after = await port.getVmBehindJob(uuid);
        for (const overlay of overlays) {
          expect(await chain(overlay.target)).toEqual([overlay.base]);
          expect(after.inactive?.find((other) => other.target === overlay.target)?.path).toBe(overlay.base);
          expect(await port.images.isOpen(overlay.path)).toBe(false);
          expect(await port.images.exists(overlay.path)).toBe(true);
        }
      });

      it('merge an image out of the middle of a chain', async () => {
        const [, target] = host.localDisks;
        const lower = await makeOverlay(target, 'lower.1');
        await port.snapshotDisks(uuid, [lower]);
        const upper = await makeOverlay(target, 'upper.1');
        await port.snapshotDisks(uuid, [upper]);
        expect(await chain(target)).toEqual([upper.path, lower.path, lower.base]);
        await port.mergeOverlay(uuid, target, lower.path);
        expect(await chain(target)).toEqual([upper.path, lower.base]);
        expect((await port.images.info(upper.path, 'qcow2')).backing).toBe(lower.base);
        await rejects(port.mergeOverlay(uuid, target, lower.path), 'DISK_NOT_FOUND');
        await port.mergeOverlay(uuid, target, upper.path);
        expect(await chain(target)).toEqual([lower.base]);
      });

      it('a snapshot that cannot be made of every disk is made of none: SNAPSHOT_FAILED', async () => {
        const [a, b] = host.localDisks;
        const overlay = await makeOverlay(a, 'refused.1');
        const missing = { target: b, path: `${overlay.path}.missing` };
        await rejects(port.snapshotDisks(uuid, [overlay, missing]), 'SNAPSHOT_FAILED');
        await rejects(port.snapshotDisks(uuid, [{ target: 'vdz', path: overlay.path }]), 'SNAPSHOT_FAILED');
        await rejects(port.snapshotDisks(uuid, []), 'SNAPSHOT_FAILED');
        expect(await chain(a)).toEqual([overlay.base]);
        expect(await port.images.isOpen(overlay.path)).toBe(false);
      });

      it('a disk that the VM does not have is DISK_NOT_FOUND, the last image of a chain MERGE_FAILED', async () => {
        const [a] = host.localDisks;
        const { path = '' } = await disk(a);
        await rejects(port.mergeOverlay(uuid, 'vdz', path), 'DISK_NOT_FOUND');
        await rejects(port.mergeOverlay(uuid, a, path), 'MERGE_FAILED');
      });

      it('an aborted signal ends the wait', async () => {
        const [a] = host.localDisks;
        const overlay = await makeOverlay(a, 'aborted.1');
        await port.snapshotDisks(uuid, [overlay]);
        const reason = new Error('nobody waits');
        await expect(port.mergeOverlay(uuid, a, overlay.path, { signal: AbortSignal.abort(reason) })).rejects.toBe(
          reason,
        );
        // It may run by now or not: asked again, it is joined or begun; or it is done.
        await port.mergeOverlay(uuid, a, overlay.path).catch((error: unknown) => {
          expect(error).toMatchObject({ code: 'DISK_NOT_FOUND' });
        });
        expect(await chain(a)).toEqual([overlay.base]);
      });
    });

    describe('a VM that is off', () => {
      it('is VM_NOT_RUNNING for all that needs a running one', async () => {
        const vm = await host.addVm({ name: 'off-1', agentChannel: true, start: false });
        const [a] = host.localDisks;
        expect(await port.getVm(vm.uuid)).toMatchObject({ state: 'shut-off', domainId: undefined, migrating: false });
        await rejects(port.freeze(vm.uuid), 'VM_NOT_RUNNING');
        await rejects(port.thaw(vm.uuid), 'VM_NOT_RUNNING');
        await rejects(port.freezeStatus(vm.uuid, 1), 'VM_NOT_RUNNING');
        await rejects(port.guestFileSystems(vm.uuid), 'VM_NOT_RUNNING');
        await rejects(port.snapshotDisks(vm.uuid, [{ target: a, path: `${vm.disk}.x` }]), 'VM_NOT_RUNNING');
        await rejects(port.mergeOverlay(vm.uuid, a, vm.disk), 'VM_NOT_RUNNING');
        expect(await port.guestOs(vm.uuid, 1)).toBeUndefined();
        await vm.remove();
      });

      it('has its image replaced, unless it names another one or runs: VM_CHANGED', async () => {
        const vm = await host.addVm({ name: 'off-2', agentChannel: true, start: false });
        const [target] = host.localDisks;
        const path = `${vm.disk}.sp-off.1.qcow2`;
        const sizeBytes = await port.images.sizeBytes(vm.disk, 'qcow2');
        await port.images.createOverlay({ path, base: vm.disk, baseFormat: 'qcow2', sizeBytes, likeFile: vm.disk });
        const there = { from: vm.disk, to: path, toFormat: 'qcow2' };
        const back = { from: path, to: vm.disk, toFormat: 'qcow2' };
        await port.replaceImage(vm.uuid, target, there);
        expect((await port.getVm(vm.uuid)).disks.find((other) => other.target === target)?.path).toBe(path);
        await rejects(port.replaceImage(vm.uuid, target, there), 'VM_CHANGED');
        await vm.start();
        await rejects(port.replaceImage(vm.uuid, target, back), 'VM_CHANGED');
        await vm.shutOff();
        await port.replaceImage(vm.uuid, target, back);
        expect((await port.getVm(vm.uuid)).disks.find((other) => other.target === target)?.path).toBe(vm.disk);
        await port.images.delete(path);
        await vm.remove();
      }, 180_000);
    });

    describe('images', () => {
      it('an overlay takes a free name only, and knows its base', async () => {
        const [a] = host.localDisks;
        const overlay = await makeOverlay(a, 'name.1');
        await expect(makeOverlay(a, 'name.1')).rejects.toMatchObject({ code: 'OVERLAY_EXISTS' });
        expect(await port.images.info(overlay.path, 'qcow2')).toEqual({
          format: 'qcow2',
          virtualSizeBytes: await port.images.sizeBytes(overlay.base, 'qcow2'),
          backing: overlay.base,
          backingFormat: 'qcow2',
        });
        expect(await port.images.listOverlays(posix.dirname(overlay.base))).toContain(overlay.path);
        expect(await port.images.resolve(overlay.path)).toEqual({ path: overlay.path, kind: 'file' });
        expect(await port.images.freeBytes(posix.dirname(overlay.base))).toBeGreaterThan(0);
      });

      it('what is missing is DISK_NOT_FOUND; deleting it again is nothing', async () => {
        const [a] = host.localDisks;
        const { path } = await makeOverlay(a, 'gone.1');
        await port.images.delete(path);
        await port.images.delete(path);
        expect(await port.images.exists(path)).toBe(false);
        expect(await port.images.isOpen(path)).toBe(false);
        await rejects(port.images.resolve(path), 'DISK_NOT_FOUND');
        await rejects(port.images.info(path, 'qcow2'), 'DISK_NOT_FOUND');
        await rejects(port.images.sizeBytes(path, 'qcow2'), 'DISK_NOT_FOUND');
      });

      it('in use they are neither committed nor rebased: IMAGE_LOCKED', async () => {
        const [a] = host.localDisks;
        const overlay = await makeOverlay(a, 'locked.1');
        await port.snapshotDisks(uuid, [overlay]);
        const locked = { code: 'MERGE_FAILED', metadata: { reason: 'IMAGE_LOCKED' } };
        await expect(port.images.commitOffline(overlay.path)).rejects.toMatchObject(locked);
        const to = { backing: overlay.base, backingFormat: 'qcow2' };
        await expect(port.images.rebase(overlay.path, to)).rejects.toMatchObject(locked);
        await port.mergeOverlay(uuid, a, overlay.path);
      });
    });

    describe('a note', () => {
      const noted = async () => (await port.getVm(uuid)).note;

      it('is in the running VM until it is removed, whatever its text', async () => {
        expect(await noted()).toBeUndefined();
        const text = JSON.stringify({ a: `<&>"']]>`, b: 'ü' });
        await port.setNote(uuid, text);
        expect(await noted()).toBe(text);
        expect((await port.listVms()).find((vm) => vm.uuid === uuid)?.note).toBe(text);
        await port.setNote(uuid, 'another');
        expect(await noted()).toBe('another');
        await port.setNote(uuid, undefined);
        expect(await noted()).toBeUndefined();
        await port.setNote(uuid, undefined);
      });

      it('can be written and removed while the guest is frozen or paused', async () => {
        await port.freeze(uuid);
        await port.setNote(uuid, 'frozen');
        await host.pause();
        expect(await noted()).toBe('frozen');
        await port.setNote(uuid, undefined);
        expect(await noted()).toBeUndefined();
      });

      it('outlives libvirt’s own restart', async () => {
        await port.setNote(uuid, 'kept');
        const down = event((told) => told.type === 'connection' && !told.up);
        const up = event((told) => told.type === 'connection' && told.up);
        await host.connectionDown();
        await down;
        await host.connectionUp();
        await up;
        expect(await noted()).toBe('kept');
      }, 60_000);

      it.each(['save', 'managedSave'] as const)(
        'and the freeze go with the guest: %s',
        async (how) => {
          const { domainId } = await port.getVm(uuid);
          await port.setNote(uuid, 'frozen here');
          const { fileSystems } = await port.freeze(uuid);
          const stopped = event((told) => told.type === 'lifecycle' && told.uuid === uuid && told.what === 'stopped');
          const saved = await host[how]();
          expect(await stopped).toMatchObject({ why: 'saved' });
          expect(await port.getVm(uuid)).toMatchObject({
            state: 'shut-off',
            offBecause: 'saved',
            note: undefined,
            hasManagedSave: how === 'managedSave',
          });
          await rejects(port.setNote(uuid, 'too late'), 'VM_NOT_RUNNING');
          const started = event((told) => told.type === 'lifecycle' && told.uuid === uuid && told.what === 'started');
          const resumed = event((told) => told.type === 'lifecycle' && told.uuid === uuid && told.what === 'resumed');
          await saved.restore();
          await Promise.all([started, resumed]);
          const vm = await port.getVm(uuid);
          expect(vm).toMatchObject({ state: 'running', offBecause: undefined, note: 'frozen here' });
          expect(vm.domainId).not.toBe(domainId);
          expect(await host.isFrozen()).toBe(true);
          expect((await port.thaw(uuid)).fileSystems).toBe(fileSystems);
          expect(await host.isFrozen()).toBe(false);
          await port.setNote(uuid, undefined);
        },
        120_000,
      );

      it('ends with the life of the VM', async () => {
        const extra = await host.addVm({ name: 'noted', agentChannel: false, start: true });
        await port.setNote(extra.uuid, 'this life');
        await extra.shutOff();
        expect(await port.getVm(extra.uuid)).toMatchObject({ note: undefined, offBecause: 'ended' });
        await extra.start();
        expect((await port.getVm(extra.uuid)).note).toBeUndefined();
        await extra.remove();
      }, 60_000);
    });

    describe('when things are missing', () => {
      it('an unknown VM is VM_NOT_FOUND', async () => {
        const calls: (() => Promise<unknown>)[] = [
          () => port.getVm(nobody),
          () => port.getVmBehindJob(nobody),
          () => port.setAgentTimeout(nobody, 5),
          () => port.setNote(nobody, 'x'),
          () => port.freezeStatus(nobody, 1),
          () => port.guestFileSystems(nobody),
          () => port.freeze(nobody),
          () => port.thaw(nobody),
          () => port.snapshotDisks(nobody, [{ target: 'vda', path: '/x' }]),
          () => port.mergeOverlay(nobody, 'vda', '/x'),
        ];
        for (const call of calls) await rejects(call(), 'VM_NOT_FOUND');
      });

      it('without libvirt every call is LIBVIRT_UNREACHABLE, and it comes back by itself', async () => {
        const down = event((told) => told.type === 'connection' && !told.up);
        await host.connectionDown();
        await down;
        expect((await port.facts()).reachable).toBe(false);
        await rejects(port.getVm(uuid), 'LIBVIRT_UNREACHABLE');
        await rejects(port.freeze(uuid), 'LIBVIRT_UNREACHABLE');
        await rejects(port.listVms(), 'LIBVIRT_UNREACHABLE');
        const up = event((told) => told.type === 'connection' && told.up);
        await host.connectionUp();
        await up;
        expect(await port.getVm(uuid)).toMatchObject({ uuid });
      }, 60_000);
    });
  });
}
