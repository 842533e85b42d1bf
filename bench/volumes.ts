import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { CinderClient } from '@stillpoint/engine/cinder/client.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { runProgram } from '@stillpoint/lab/programs.js';
import { inWindow, MADE_HERE, newOverlays, prepareOverlays, restoreHost, restoreVolumes } from './direct.js';
import { type MeasureOptions, measure, type Setting } from './samples.js';
import type { CephStage } from './stage.js';
import { windowMs, withSnapshot } from './stillpoint.js';

/** Bare looks at Cinder when and as often as Stillpoint does (engine/activities/volume-cut.ts), and gives as much metadata: it is to be as quick as can be, ms. */
const firstLookMs = 80;
const pollMs = 20;
const bareMetadata = Object.fromEntries(Array.from({ length: 7 }, (_, index) => [`bench_${index}`, 'x'.repeat(36)]));
/** Longer than Ceph's own paxos_propose_interval, ms. */
const atRestMs = 1_200;
/** As often as Nova asks, ms. */
const novaPollMs = 500;

/** The windows of snapshots of two local disks and one or all of the volumes, with a quick monitor and with Ceph's default. */
export async function measureVolumes(
  stage: CephStage,
  options: Pick<MeasureOptions, 'runs' | 'into' | 'signal' | 'say'>,
): Promise<void> {
  const { lab, storage } = stage;
  const { vm } = lab;
  const cloud = readCloud({ env: storage.environment('member') });
  if (cloud === undefined) throw new Error('The storage names no cloud');
  const hypervisor = createLibvirtHypervisor({ socketPath: lab.libvirtSocket });
  const cinder = new CinderClient(cloud);

  const create = (volumeId: string, name: string, metadata: Record<string, string> = {}) =>
    cinder.createSnapshot({ volumeId, name: `${MADE_HERE}${name}`, description: 'of the bench', metadata });
  const untilAvailable = async (id: string, everyMs: number) => {
    for (;;) {
      const { status } = await cinder.snapshot(id);
      if (status === 'available') return;
      if (status !== 'creating') throw new Error(`Snapshot ${id} is ${status}`);
      await delay(everyMs);
    }
  };
  const makeReady = (volumes: readonly string[]) =>
    cinder.makeReady({ validForMs: 120_000, connections: volumes.length });

  const ways = (targets: readonly string[]): Setting['ways'] => {
    const volumes = targets.flatMap((target) => vm.volumes[target] ?? []);
    const ours = () => withSnapshot(stage, { disks: ['vda', 'vdb', ...targets] }, windowMs);
    const bare = async (run: number) => {
      const overlays = await newOverlays(hypervisor, vm, `bare-${run}`);
      await prepareOverlays(hypervisor, overlays);
      await makeReady(volumes);
      const cut = async (volume: string) => {
        const { id } = await create(volume, `bare-${run}`, bareMetadata);
        await delay(firstLookMs);
        await untilAvailable(id, pollMs);
      };
      return inWindow(hypervisor, vm, () =>
        allSettled([hypervisor.snapshotDisks(vm.uuid, overlays), ...volumes.map(cut)]),
      );
    };
    const nova = async (run: number) => {
      await makeReady(volumes);
      return inWindow(hypervisor, vm, async () => {
        const made: string[] = [];
        for (const volume of volumes) made.push((await create(volume, `nova-${run}`)).id);
        for (const id of made) await untilAvailable(id, novaPollMs);
      });
    };
    const script = async (run: number) => {
      const variables = Object.entries({
        ...storage.environment('member'),
        OS_VOLUME_API_VERSION: '3.70',
        VIRSH_DEFAULT_CONNECT_URI: `qemu:///system?socket=${encodeURIComponent(lab.libvirtSocket)}`,
      }).map(([key, value]) => `${key}=${value}`);
      const { stdout } = await runProgram('env', [
        ...['-i', 'PATH=/usr/bin:/bin', 'LC_ALL=C.UTF-8', `HOME=${storage.folder}`, ...variables],
        ...['sh', fileURLToPath(new URL('../todays-script.sh', import.meta.url))],
        ...[vm.name, `${MADE_HERE}script-${run}`, dirname(vm.diskPath('vda'))],
        ...[volumes.join(' '), Object.keys(vm.volumes).join(' ')],
      ]);
      return Number(stdout);
    };
    return [
      { name: 'Stillpoint', take: ours },
      { name: 'bare', take: bare },
      { name: "Nova's order, no local disks", take: nova },
      { name: 'the shell script of today', take: script },
    ];
  };

  const all = Object.keys(vm.volumes);
  let paceNow: string | undefined;
  const settings = (['fast', 'stock'] as const).flatMap((pace) =>
    [all.slice(0, 1), all].map(
      (targets): Setting => ({
        title: `${targets.length} ${targets.length === 1 ? 'volume' : 'volumes'}${pace === 'stock' ? ', stock monitor' : ''}`,
        prepare: async () => {
          if (pace !== paceNow) await storage.setMonitor(pace);
          paceNow = pace;
          await delay(atRestMs);
        },
        ways: ways(targets),
      }),
    ),
  );
  try {
    await hypervisor.start();
    await measure({
      ...options,
      settings,
      log: () => lab.log(),
      restore: async () => {
        await restoreHost(hypervisor, vm);
        await restoreVolumes(cinder, Object.values(vm.volumes));
        // The deletions were the monitor's last business, and it waits up to a second after each: every way is to meet it at rest.
        if (paceNow === 'stock') await delay(atRestMs);
      },
    });
  } finally {
    await cinder.close();
    await hypervisor.close();
  }
}

/** As Promise.all, but nothing goes on any more when it rejects: the guest would be thawed and the cuts made later. */
async function allSettled(work: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find((outcome) => outcome.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}
