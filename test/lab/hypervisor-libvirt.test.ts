/** The contract of the hypervisor port over a real libvirt, QEMU and guest agent. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { Lab } from '@stillpoint/lab/lab.js';
import { vi } from 'vitest';
import { hypervisorContract } from '../hypervisor/contract.js';
import { testStateFolder } from './state-folder.js';

hypervisorContract('libvirt', async () => {
  const lab = await Lab.up({ stateFolder: testStateFolder('contract'), progress: console.log });
  const { vm, guest, libvirtd } = lab;
  const hypervisor = createLibvirtHypervisor({ socketPath: libvirtd.socket });
  await hypervisor.start(AbortSignal.timeout(30_000));
  // For a moment libvirt has not found the agent of a guest that goes on.
  const answering = () => vi.waitFor(() => hypervisor.freezeStatus(vm.uuid, 5), { timeout: 30_000, interval: 50 });
  return {
    hypervisor,
    uuid: vm.uuid,
    name: vm.name,
    localDisks: ['vda', 'vdb'],
    networkDisk: 'vdc',
    isFrozen: () => guest.isFrozen(),
    written: () => guest.writerNumber(),
    pause: () => vm.pause(),
    resume: () => vm.resume(),
    killAgent: () => guest.killAgent({ respawn: false }),
    startAgent: () => guest.startAgent(),
    stopAgent: () => guest.stopAgent(),
    continueAgent: () => guest.contAgent(),
    setFreezeHook: async (hook) => {
      await guest.run(': > /run/hook/log');
      await guest.setHook(hook === 'fail' ? { failFreeze: true } : hook === 'hang' ? { freezeSleepS: 20 } : {});
    },
    hookBegan: async () => {
      await guest.run("while ! grep -q 'freeze begin' /run/hook/log; do usleep 10000; done");
    },
    save: async () => {
      const file = join(lab.stateFolder, 'saved-guest');
      await vm.save(file);
      return {
        restore: async () => {
          await vm.restore(file);
          await rm(file);
          await answering();
        },
      };
    },
    managedSave: async () => {
      await vm.managedSave();
      return {
        restore: async () => {
          await vm.powerOn();
          await answering();
        },
      };
    },
    connectionDown: () => libvirtd.kill(),
    connectionUp: () => libvirtd.start(),
    addVm: async ({ name, agentChannel, start }) => {
      const extra = await lab.addVm({ name, disks: ['vda'], agentChannel, start: false });
      // The contract asks libvirt of them, and nothing of their guests.
      if (start) await extra.powerOn();
      return {
        uuid: extra.uuid,
        disk: extra.diskPath('vda'),
        start: () => extra.powerOn(),
        shutOff: () => extra.destroy(),
        remove: () => extra.remove(),
      };
    },
    reset: async () => {
      if ((await vm.state()) === 'paused') await vm.resume();
      await guest.setHook({});
      await guest.startAgent();
      await guest.contAgent().catch(() => undefined);
      await guest.waitForAgent();
      await hypervisor.setAgentTimeout(vm.uuid, 'default');
      await hypervisor.setNote(vm.uuid, undefined);
      await hypervisor.thaw(vm.uuid);
      await guest.waitUntilThawed(30_000);
    },
    close: async () => {
      await hypervisor.close();
      await lab.down();
    },
  };
});
