import { noLatencies } from '@stillpoint/host-agent/simulated/faults.js';
import { createSimulatedHypervisor } from '@stillpoint/host-agent/simulated/hypervisor.js';
import { keepsWriteOrder } from '@stillpoint/host-agent/simulated/numbers.js';
import { describe, expect, it } from 'vitest';

/** A VM with two local disks, and a volume that the guest writes last. */
function lab() {
  const simulated = createSimulatedHypervisor({
    vms: [{ name: 'web-1', disks: [{ target: 'vda' }, { target: 'vdb' }, { target: 'vdc', kind: 'rbd' }] }],
    latencies: noLatencies,
    writeEveryMs: 0,
    secondMs: 10,
  });
  return { simulated, vm: simulated.vm('web-1') };
}

describe('simulated guests', () => {
  it('write increasing numbers to all their disks, in turn', () => {
    const { vm } = lab();
    vm.write(7);
    expect(vm.content('vda').ranges).toEqual([{ from: 1, to: 3 }]);
    expect(vm.content('vdb').ranges).toEqual([{ from: 1, to: 2 }]);
    expect(vm.content('vdc').ranges).toEqual([{ from: 1, to: 2 }]);
  });

  it('write at every call of the port, and not while they are frozen, paused or off', async () => {
    const { simulated, vm } = lab();
    await simulated.getVm(vm.uuid);
    expect(vm.content('vda').last).toBeGreaterThan(0);
    for (const [still, again] of [
      [() => simulated.freeze(vm.uuid), () => simulated.thaw(vm.uuid)],
      [async () => vm.pause(), async () => vm.resume()],
    ] as const) {
      await still();
      const before = vm.content('vda').last;
      await simulated.getVm(vm.uuid);
      expect(vm.content('vda').last).toBe(before);
      await again();
      await simulated.getVm(vm.uuid);
      expect(vm.content('vda').last).toBeGreaterThan(before);
    }
    vm.shutOff();
    const before = vm.content('vda').last;
    await simulated.getVm(vm.uuid);
    expect(vm.content('vda').last).toBe(before);
  });

  it('cut at different instants lose the order of their writes, unless they are frozen', async () => {
    const { simulated, vm } = lab();
    const cuts = async (): Promise<number[]> => {
      const volume = await simulated.snapshotVolume('web-1', 'vdc');
      await simulated.getVm(vm.uuid);
      return [vm.content('vda').last, vm.content('vdb').last, volume.last];
    };
    expect(keepsWriteOrder(await cuts())).toBe(false);
    await simulated.freeze(vm.uuid);
    expect(keepsWriteOrder(await cuts())).toBe(true);
  });
});

describe('simulated faults', () => {
  it('a freeze given up behind a stopped guest agent still happens when the agent goes on', async () => {
    const { simulated, vm } = lab();
    await simulated.setAgentTimeout(vm.uuid, 1);
    await simulated.freezeStatus(vm.uuid, 1);
    vm.agent.stop();
    await expect(simulated.freeze(vm.uuid)).rejects.toMatchObject({ code: 'AGENT_NOT_RESPONDING' });
    expect(vm.frozen).toBe(false);
    vm.agent.continue();
    expect(await simulated.freezeStatus(vm.uuid, 1)).toBe('frozen');
  });

  it('a session that dies gets no answers, and what it asked goes on', async () => {
    const { simulated, vm } = lab();
    const first = simulated.session();
    const held = simulated.inject('freeze', { die: 'after' });
    void first.freeze(vm.uuid);
    await held.hit;
    expect(await simulated.session().freezeStatus(vm.uuid, 1)).toBe('frozen');
  });

  it('a late call happens after its error, when the test says so', async () => {
    const { simulated, vm } = lab();
    const late = simulated.inject('freeze', { late: 'LIBVIRT_CALL_TIMEOUT' });
    await expect(simulated.freeze(vm.uuid)).rejects.toMatchObject({ code: 'LIBVIRT_CALL_TIMEOUT' });
    expect(vm.frozen).toBe(false);
    await late.happen();
    expect(vm.frozen).toBe(true);
  });

  it('a connection that goes down loses the answers under way, not their effects', async () => {
    const { simulated, vm } = lab();
    const held = simulated.inject('freeze', { hold: 'after' });
    const freeze = simulated.freeze(vm.uuid);
    await held.hit;
    simulated.connectionDown();
    await expect(freeze).rejects.toMatchObject({ code: 'LIBVIRT_UNREACHABLE' });
    await expect(simulated.getVm(vm.uuid)).rejects.toMatchObject({ code: 'LIBVIRT_UNREACHABLE' });
    simulated.connectionUp();
    expect(await simulated.freezeStatus(vm.uuid, 1)).toBe('frozen');
  });
});
