/** The contract of the hypervisor port over a real libvirt, QEMU and guest agent. */
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { Lab } from '@stillpoint/lab/lab.js';
import { hypervisorContract } from '../hypervisor/contract.js';
import { testStateFolder } from './state-folder.js';

hypervisorContract('libvirt', async () => {
  const lab = await Lab.up({ stateFolder: testStateFolder('contract'), progress: console.log });
  const { vm, guest, libvirtd } = lab;
  const hypervisor = createLibvirtHypervisor({ socketPath: libvirtd.socket });
  await hypervisor.start(AbortSignal.timeout(30_000));
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
      await hypervisor.thaw(vm.uuid);
      await guest.waitUntilThawed(30_000);
    },
    close: async () => {
      await hypervisor.close();
      await lab.down();
    },
  };
});
