/**
 * Guests that leave libvirt while they are frozen and come back frozen: the lease's note in the domain's metadata is what the host agent's freeze room has of them.
 * Asked of the guest's kernel, over a real libvirt.
 */
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createFreezeRoom } from '@stillpoint/host-agent/freeze/room.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import type { FreezeRoom, Verdict } from '@stillpoint/host-agent/window.js';
import type { Lab } from '@stillpoint/lab/lab.js';
import type { Libvirtd } from '@stillpoint/lab/libvirtd.js';
import pino from 'pino';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

/** Invariant 1, and what the host agent promises of a guest that comes to it frozen: ms from when it runs. */
const LIMIT_MS = 5_000;

/** The tests, over the lab that the file has up. */
export function frozenMoves(theLab: () => Lab): void {
  describe('A frozen guest', () => {
    let lab: Lab;
    let folder: string;
    let rooms: { room: FreezeRoom; close(): Promise<void> }[];

    beforeEach(async () => {
      lab = theLab();
      folder = await mkdtemp(join(tmpdir(), 'stillpoint-moves-'));
      rooms = [];
    });
    afterEach(async () => {
      for (const { close } of rooms.splice(0)) await close();
      await rm(folder, { recursive: true });
    });

    /** A host agent's freeze room, with a journal of its own. */
    const startRoom = async (hostName: string, libvirtd = lab.libvirtd): Promise<FreezeRoom> => {
      const hypervisor = createLibvirtHypervisor({ socketPath: libvirtd.socket });
      await hypervisor.start(AbortSignal.timeout(30_000));
      const log = pino({ level: 'silent' });
      const room = createFreezeRoom({ hypervisor, folder: join(folder, hostName), hostName, log });
      const close = async () => {
        await room.shutdown();
        await hypervisor.close();
      };
      rooms.push({ room, close });
      await room.start();
      return room;
    };
    const freeze = async (room: FreezeRoom): Promise<string> => {
      const vm = lab.vm.uuid;
      const operation = randomUUID();
      const window = `${operation}.1`;
      await room.reserve({
        vm,
        operation,
        window,
        installation: 'lab',
        quiesce: 'required',
        windowLimitMs: undefined,
        setDisks: ['vda', 'vdb'],
        unquiescedDisks: [],
      });
      const { domainId } = await domain();
      await room.keepPrepared(window, {
        pinned: { domainId, disks: [], fileSystems: undefined, osId: undefined },
        overlays: [],
      });
      room.hold(vm, window, 'vda');
      await room.freeze({ vm, window, cuts: ['vda'], freezeTimeoutMs: 30_000, caller: new AbortController().signal });
      expect(await lab.guest.isFrozen()).toBe(true);
      return window;
    };
    const domain = async () => ({ domainId: Number(await lab.libvirtd.virsh(['domid', lab.vm.name])) });
    const verdict = (room: FreezeRoom, window: string): Promise<Verdict> =>
      vi.waitFor(
        () => {
          const found = room.verdict(lab.vm.uuid, window);
          if (found === undefined) throw new Error('no verdict yet');
          return found;
        },
        { timeout: 30_000, interval: 20 },
      );
    const expectThawedSince = async (runsSince: number): Promise<void> => {
      await lab.guest.waitUntilThawed(30_000);
      const frozenMs = performance.now() - runsSince;
      console.log(`thawed ${frozenMs.toFixed(0)} ms after it ran again`);
      expect(frozenMs).toBeLessThan(LIMIT_MS);
      await vi.waitFor(async () => expect(await lab.vm.xml()).not.toContain('urn:stillpoint:lease'), 10_000);
    };

    it('that is saved is thawed within 5 s of its restoration, by a host agent that knows nothing of it but its note', async () => {
      const first = await startRoom('first');
      const window = await freeze(first);
      expect(await lab.vm.xml()).toContain(window);
      expect(await lab.vm.xml('inactive')).not.toContain('urn:stillpoint:lease');
      const memory = join(folder, 'memory');
      await lab.vm.save(memory);
      expect(await verdict(first, window)).toMatchObject({ held: false, lostReason: 'VM_SAVED', thawedUnixMs: 0 });
      await rooms.pop()?.close();

      await startRoom('second');
      await lab.vm.restore(memory);
      await expectThawedSince(performance.now());
    });

    it('that libvirt saved by itself is thawed within 5 s of its start by the host agent that froze it', async () => {
      const room = await startRoom('first');
      const window = await freeze(room);
      await lab.vm.managedSave();
      await lab.vm.powerOn();
      await expectThawedSince(performance.now());
      expect(await verdict(room, window)).toMatchObject({ held: false });
    });

    it('that migrates is thawed within 5 s by the host agent of its new host, there and back', async () => {
      const second = await lab.secondLibvirtd();
      const room = await startRoom('first');
      await startRoom('second', second);
      const window = await freeze(room);
      const moved = async (to: Libvirtd) => {
        await lab.vm.migrate(to);
        await expectThawedSince(performance.now());
      };
      await moved(second);
      expect(await verdict(room, window)).toMatchObject({ held: false, lostReason: 'VM_MOVED', thawedUnixMs: 0 });
      await room.release(lab.vm.uuid, window.replace(/\.1$/, ''));

      // Its host agent dies with it: nobody of the old host has a hand in what follows.
      await rooms.pop()?.close();
      const dead = createLibvirtHypervisor({ socketPath: second.socket });
      await dead.start(AbortSignal.timeout(30_000));
      await dead.setNote(lab.vm.uuid, JSON.stringify({ version: 1, window, host: 'second', installation: 'lab' }));
      await dead.freeze(lab.vm.uuid);
      await dead.close();
      await moved(lab.libvirtd);
      await second.stop();
    });
  });
}
