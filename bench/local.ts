import { LibvirtClient, SnapshotFlag } from '@stillpoint/host-agent/libvirt/client.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { QUIESCE } from '@stillpoint/lab/libvirt-log.js';
import { inWindow, newOverlays, prepareOverlays, restoreHost } from './direct.js';
import { type MeasureOptions, measure } from './samples.js';
import type { Stage } from './stage.js';
import { windowMs, withSnapshot } from './stillpoint.js';

/** VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE works with disk-only only, and makes its files itself. */
const quiesceFlags = QUIESCE | SnapshotFlag.diskOnly | SnapshotFlag.atomic | SnapshotFlag.noMetadata;

/** The windows of snapshots of local disks alone. */
export async function measureLocal(
  stage: Stage,
  options: Pick<MeasureOptions, 'runs' | 'into' | 'signal' | 'say'>,
): Promise<void> {
  const { vm, libvirtSocket } = stage.lab;
  const hypervisor = createLibvirtHypervisor({ socketPath: libvirtSocket });
  const client = new LibvirtClient({ socketPath: libvirtSocket });

  const ours = () => withSnapshot(stage, {}, windowMs);
  const bare = async (run: number) => {
    const overlays = await newOverlays(hypervisor, vm, `bare-${run}`);
    await prepareOverlays(hypervisor, overlays);
    return inWindow(hypervisor, vm, () => hypervisor.snapshotDisks(vm.uuid, overlays));
  };
  const quiesce = async (run: number) => {
    const disks = (await newOverlays(hypervisor, vm, `quiesce-${run}`)).map(
      ({ target, path }) => `<disk name='${target}' snapshot='external'><source file='${path}'/></disk>`,
    );
    const xml = `<domainsnapshot><disks>${disks.join('')}<disk name='vdc' snapshot='no'/></disks></domainsnapshot>`;
    await client.createSnapshot(await client.lookupByUuid(vm.uuid), xml, quiesceFlags, { timeoutMs: 60_000 });
    return undefined;
  };

  try {
    await hypervisor.start();
    await client.start();
    await measure({
      ...options,
      settings: [
        {
          title: 'local only',
          prepare: async () => undefined,
          ways: [
            { name: 'Stillpoint', take: ours },
            { name: 'bare', take: bare },
            { name: "libvirt's QUIESCE", take: quiesce },
          ],
        },
      ],
      log: () => stage.lab.log(),
      restore: () => restoreHost(hypervisor, vm),
    });
  } finally {
    await client.close();
    await hypervisor.close();
  }
}
