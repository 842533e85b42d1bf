import { HostAgentError } from '../errors.js';
import type { GuestFileSystem, GuestOs, Hypervisor, Vm } from '../hypervisor.js';
import type { FreezeSettings } from './settings.js';
import { within } from './within.js';

/** What is read of a guest before it is frozen. */
export interface Reading {
  vm: Vm;
  fileSystems: GuestFileSystem[];
  os: GuestOs | undefined;
}

/**
 * Reads a guest that is to be frozen, in Prepare and again just before the freeze. The status comes last, so that it is as fresh as it can be.
 * `boundAgent` sets the domain's agent timeout: libvirt's own blocks without limit where the guest agent has stopped answering.
 * Errors: LIBVIRT_TOO_OLD, VM_NOT_RUNNING, VM_PAUSED, ALREADY_FROZEN, LIBVIRT_CALL_TIMEOUT and the guest agent's.
 */
export async function readGuest(
  hypervisor: Hypervisor,
  uuid: string,
  settings: FreezeSettings,
  boundAgent: () => Promise<void>,
): Promise<Reading> {
  const guardMs = settings.readTimeoutS * 1_000 + settings.callGuardMs;
  const ask = <T>(answer: Promise<T>) => within(answer, guardMs);

  const facts = await ask(hypervisor.facts());
  if (facts.reachable && !facts.canSetAgentTimeout) {
    throw new HostAgentError('LIBVIRT_TOO_OLD', `libvirt ${facts.libvirtVersion} cannot bound a guest agent's answer`);
  }
  const vm = await runningVm(hypervisor, uuid, guardMs);
  if (vm.state === 'paused') throw new HostAgentError('VM_PAUSED', `${vm.name} is paused and cannot freeze`);

  await boundAgent();

  // Asked first: of a frozen guest the file systems cannot be read, and that error would hide the reason.
  await refuseFrozen(hypervisor, vm, settings, guardMs);
  const fileSystems = await ask(hypervisor.guestFileSystems(uuid));
  const os = await ask(hypervisor.guestOs(uuid, settings.readTimeoutS));
  await refuseFrozen(hypervisor, vm, settings, guardMs);
  return { vm, fileSystems, os };
}

/** The VM, if it runs or is paused. Errors: VM_NOT_RUNNING, VM_NOT_FOUND. */
export async function runningVm(hypervisor: Hypervisor, uuid: string, guardMs: number): Promise<Vm> {
  const vm = await within(hypervisor.getVm(uuid), guardMs);
  if (vm.state === 'running' || vm.state === 'paused') return vm;
  throw new HostAgentError('VM_NOT_RUNNING', `${vm.name} is not running (${vm.state})`);
}

async function refuseFrozen(hypervisor: Hypervisor, vm: Vm, settings: FreezeSettings, guardMs: number): Promise<void> {
  const status = await within(hypervisor.freezeStatus(vm.uuid, settings.readTimeoutS), guardMs);
  if (status === 'thawed') return;
  // Whoever froze it may be in the middle of a backup: refused, and never thawed by us unasked.
  throw new HostAgentError('ALREADY_FROZEN', `${vm.name} is frozen already, and not by this host agent`);
}
