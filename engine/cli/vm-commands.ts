import type { z } from 'zod';
import type { thawAnswer, VmView, vmsAnswer } from '../api/schemas.js';
import { type Context, show } from './context.js';
import { exitCodes } from './exit-codes.js';
import { duration, fields, plain, size, table, time } from './terminal.js';

/** A thaw hook in the guest may be slow: the host agent gives it 60 s, the API some more. */
const thawTimeoutMs = 80_000;

type VmsAnswer = z.infer<typeof vmsAnswer>;
type ThawAnswer = z.infer<typeof thawAnswer>;

/** `vms` */
export async function listVms(context: Context): Promise<number> {
  show(context, await context.api.request<VmsAnswer>('GET', '/v1/vms'), vmsText);
  return exitCodes.ok;
}

/** `vms VM`: one VM with its disks, and what each of them is. */
export async function showVm(context: Context, vm: string): Promise<number> {
  show(context, await context.api.request<VmView>('GET', `/v1/vms/${encodeURIComponent(vm)}`), vmText);
  return exitCodes.ok;
}

/** `thaw VM` */
export async function thawVm(context: Context, vm: string): Promise<number> {
  const answer = await context.api.request<ThawAnswer>('POST', `/v1/vms/${encodeURIComponent(vm)}/thaw`, {
    timeoutMs: thawTimeoutMs,
  });
  show(context, answer, ({ vm: { name }, host, thawedFileSystems, lostWindow }) =>
    plain(
      [
        thawedFileSystems === 0
          ? `${name} on ${host} is thawed: no file system was frozen.`
          : `Thawed ${name} on ${host}: ${thawedFileSystems} file system${thawedFileSystems === 1 ? '' : 's'}.`,
        ...(lostWindow === null ? [] : [`Window ${lostWindow} was open and has lost its freeze.`]),
      ].join(' '),
    ),
  );
  return exitCodes.ok;
}

function vmsText({ vms, hosts }: VmsAnswer): string {
  const rows = vms.map((vm) => [
    vm.name,
    vm.uuid,
    vm.host,
    vm.stale ? `${vm.state}, as of ${time(vm.seenAt)}` : vm.state,
    vm.guestAgent,
    ...holdColumns(vm),
  ]);
  const silent = hosts.filter((host) => !host.reachable);
  const remarks = [
    ...silent.map(({ name, error }) => `${name} does not answer: ${error?.code ?? ''} ${error?.text ?? ''}`),
    ...vms.flatMap(({ name, hold }) =>
      hold === null || hold.detail === '' ? [] : [`${name}: ${hold.freezeState}: ${hold.detail}`],
    ),
  ];
  const head = ['NAME', 'UUID', 'HOST', 'STATE', 'GUEST AGENT', 'FREEZE', 'SINCE', 'HELD BY'];
  const list = rows.length === 0 ? noVms(hosts.length) : table(head, rows);
  return remarks.length === 0 ? list : `${list}\n\n${remarks.map(plain).join('\n')}`;
}

function vmText(vm: VmView): string {
  const [freeze, frozenSince, holder] = holdColumns(vm);
  const about = fields([
    ['VM', `${vm.name} (${vm.uuid}) on ${vm.host}`],
    ['state', vm.stale ? `${vm.state}, as of ${time(vm.seenAt)}: its host does not answer` : vm.state],
    ['guest agent', vm.guestAgent],
    ['freeze', vm.hold === null ? undefined : [`${freeze} since ${frozenSince}, held by ${holder}`, vm.hold.detail]],
  ]);
  if (vm.disks.length === 0) return `${about}\n\nIt has no disks.`;
  const disks = vm.disks.map((disk) => [
    disk.target,
    kindText[disk.kind],
    disk.sizeBytes > 0 ? size(disk.sizeBytes) : '-',
    disk.image || disk.path || '-',
    disk.serial || '-',
    disk.leftOut === null ? (disk.writable ? 'may be taken' : 'read-only') : `cannot be taken: ${disk.leftOut}`,
  ]);
  return `${about}\n\n${table(['DISK', 'IS', 'SIZE', 'AT', 'SERIAL', 'SNAPSHOT'], disks)}`;
}

const kindText: Record<VmView['disks'][number]['kind'], string> = {
  file: 'file of the host',
  block: 'block device of the host',
  rbd: 'Ceph image',
  network: 'network disk',
  other: 'other',
};

function noVms(hosts: number): string {
  return hosts === 0 ? 'No hosts, so no VMs. Register one: stillpoint host add NAME ADDRESS:8701' : 'No VMs.';
}

function holdColumns({ hold }: VmView): [string, string, string] {
  if (hold === null) return ['-', '-', '-'];
  const holder = hold.snapshotId === '' ? 'nobody of ours' : `snapshot ${hold.snapshotId}`;
  return [hold.freezeState, hold.frozenSince === null ? '-' : since(hold.frozenSince), holder];
}

function since(iso: string): string {
  return `${time(iso)} (${duration(Math.max(0, Date.now() - Date.parse(iso)))})`;
}
