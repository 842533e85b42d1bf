import { z } from 'zod';

import type { HostHold, Hosts } from '../hosts/hosts.js';
import { problemSchema } from './problems.js';
import { noQuery, thawAnswer, type VmView, vmParameter, vmsAnswer, vmView } from './schemas.js';
import type { Api } from './server.js';
import type { KnownVm, VmDirectory } from './vm-directory.js';

/** A thaw hook in the guest may be slow: the host agent gives it 60 s. */
const thawTimeoutMs = 65_000;

/** VMs are not registered: they are what the hosts say. */
export function addVmRoutes(api: Api, { hosts, directory }: { hosts: Hosts; directory: VmDirectory }): void {
  api.get(
    '/v1/vms',
    {
      schema: {
        tags: ['vms'],
        summary: 'All VMs, who holds them, and which guests are frozen since when',
        querystring: noQuery,
        response: { 200: vmsAnswer, '4xx': problemSchema, '5xx': problemSchema },
      },
    },
    async () => {
      const { vms, hosts: reached } = await directory.list();
      return { vms: vms.map(viewOf), hosts: reached };
    },
  );

  api.get(
    '/v1/vms/:vm',
    {
      schema: {
        tags: ['vms'],
        summary: 'One VM',
        params: z.object({ vm: vmParameter }),
        querystring: noQuery,
        response: { 200: vmView, '4xx': problemSchema, '5xx': problemSchema },
      },
    },
    async (request) => viewOf(await directory.find(request.params.vm)),
  );

  api.post(
    '/v1/vms/:vm/thaw',
    {
      schema: {
        tags: ['vms'],
        summary: 'Thaw a guest, whoever froze it; a window that is open loses its freeze',
        params: z.object({ vm: vmParameter }),
        querystring: noQuery,
        response: { 200: thawAnswer, '4xx': problemSchema, '5xx': problemSchema },
      },
    },
    async (request) => {
      const vm = await directory.find(request.params.vm);
      const thawed = await hosts
        .host(vm.host)
        .thawVm({ vm: vm.uuid, askedBy: 'administrator over the REST API' }, { deadlineMs: thawTimeoutMs });
      directory.forget();
      return {
        vm: { uuid: vm.uuid, name: vm.name },
        host: vm.host,
        thawedFileSystems: thawed.thawedFileSystems,
        lostWindow: thawed.lostWindow === '' ? null : thawed.lostWindow,
      };
    },
  );
}

function viewOf(vm: KnownVm): VmView {
  return {
    uuid: vm.uuid,
    name: vm.name,
    host: vm.host,
    state: vm.state,
    guestAgent: vm.guestAgent,
    stale: vm.stale,
    seenAt: vm.seenAt,
    hold: holdOf(vm.hold),
    disks: vm.disks.map((disk) => ({
      target: disk.target,
      kind: disk.kind,
      path: disk.path,
      image: disk.image,
      format: disk.format,
      sizeBytes: disk.sizeBytes,
      serial: disk.serial,
      writable: disk.writable,
      leftOut: disk.leftOut === '' ? null : disk.leftOut,
      chainDepth: disk.chainDepth,
    })),
  };
}

/** Null: nobody holds the VM, and its guest is not known to be anything but thawed. */
function holdOf(hold: HostHold): VmView['hold'] {
  if (hold.operation === '' && (hold.freezeState === 'thawed' || hold.freezeState === 'unknown')) return null;
  return {
    snapshotId: hold.operation,
    window: hold.window,
    installation: hold.installation,
    reservedAt: timeOf(hold.reservedUnixMs),
    freezeState: hold.freezeState,
    frozenSince: timeOf(hold.frozenUnixMs),
    detail: hold.freezeDetail,
    windowLimitMs: hold.windowLimitMs,
  };
}

/** 0: never. */
function timeOf(unixMs: number): string | null {
  return unixMs > 0 ? new Date(unixMs).toISOString() : null;
}
