import { noLatencies } from '@stillpoint/host-agent/simulated/faults.js';
import { createSimulatedHypervisor } from '@stillpoint/host-agent/simulated/hypervisor.js';
import { hypervisorContract } from './contract.js';

hypervisorContract('simulated', async () => {
  const simulated = createSimulatedHypervisor({
    vms: [{ name: 'web-1', disks: [{ target: 'vda' }, { target: 'vdb' }, { target: 'vdc', kind: 'rbd' }] }],
    latencies: noLatencies,
    writeEveryMs: 0,
    secondMs: 20,
  });
  await simulated.start();
  const vm = simulated.vm('web-1');
  return {
    hypervisor: simulated,
    uuid: vm.uuid,
    name: vm.name,
    localDisks: ['vda', 'vdb'],
    networkDisk: 'vdc',
    isFrozen: async () => vm.frozen,
    written: async () => vm.content('vda').last,
    pause: async () => vm.pause(),
    resume: async () => vm.resume(),
    killAgent: async () => vm.disconnectAgent(),
    startAgent: async () => vm.connectAgent(),
    stopAgent: async () => vm.agent.stop(),
    continueAgent: async () => vm.agent.continue(),
    setFreezeHook: async (hook) => {
      const hooks = {
        nothing: { does: 'nothing' },
        fail: { does: 'fail', status: 3 },
        hang: { does: 'hang' },
      } as const;
      vm.setFreezeHook(hooks[hook]);
    },
    hookBegan: async () => await vm.agent.hookBegan,
    save: async () => {
      const file = vm.save();
      return { restore: async () => vm.restore(file) };
    },
    managedSave: async () => {
      vm.managedSave();
      return { restore: async () => vm.start() };
    },
    connectionDown: async () => simulated.connectionDown(),
    connectionUp: async () => simulated.connectionUp(),
    addVm: async ({ name, agentChannel, start }) => {
      const extra = simulated.addVm({
        name,
        disks: [{ target: 'vda' }],
        guestAgent: agentChannel ? 'connected' : 'not-configured',
        state: start ? 'running' : 'shut-off',
      });
      return {
        uuid: extra.uuid,
        disk: `/var/lib/libvirt/images/${name}-vda.qcow2`,
        start: async () => extra.start(),
        shutOff: async () => extra.shutOff(),
        remove: async () => extra.moveAway(),
      };
    },
    reset: async () => {
      simulated.connectionUp();
      vm.setFreezeHook({ does: 'nothing' });
      vm.resume();
      vm.agent.continue();
      if (!vm.agent.connected) vm.connectAgent();
      vm.thawByOther();
      vm.note = undefined;
      vm.agent.timeoutS = 'default';
    },
    close: async () => await simulated.close(),
  };
});
