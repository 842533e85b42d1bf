/**
 * The frozen window of the demo's VM, three ways, interleaved, on the real lab:
 *
 * - ours: a snapshot through the whole system (API, Temporal, gRPC, host agent);
 * - bare: the same calls to libvirt (prepared overlays, freeze, snapshot, thaw) from this one script, without Temporal, gRPC or journal;
 * - QUIESCE: libvirt's own VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE, which makes its overlay files inside.
 *
 * Two clocks: *host* is freeze reply read -> thaw request written, on the caller's side of libvirt's socket; *log* is the same seen by libvirt's own log
 * (freeze answered by the guest agent -> thaw sent to it), and the only one that can see into QUIESCE.
 *
 * npm run bench [-- RUNS]; default 30.
 */
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { findTemporal } from '@stillpoint/engine/temporal/find.js';
import type { Hypervisor } from '@stillpoint/host-agent/hypervisor.js';
import { LibvirtClient, SnapshotFlag } from '@stillpoint/host-agent/libvirt/client.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { Lab } from '@stillpoint/lab/lab.js';
import { type LibvirtLog, QUIESCE } from '@stillpoint/lab/libvirt-log.js';
import { System } from '@stillpoint/lab/system.js';

/** VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE works with disk-only only, and makes its files itself. */
const quiesceFlags = QUIESCE | SnapshotFlag.diskOnly | SnapshotFlag.atomic | SnapshotFlag.noMetadata;
const targets = ['vda', 'vdb'] as const;

interface Sample {
  /** ms; undefined: this way has no such clock. */
  hostMs: number | undefined;
  logMs: number;
}

const runs = Number(process.argv[2] ?? 30);
if (!Number.isSafeInteger(runs) || runs < 1) {
  process.stderr.write('Usage: npm run bench [-- RUNS]\n');
  process.exit(2);
}
const say = (line: string) => process.stderr.write(`${line}\n`);
const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'stillpoint');

const temporal = await findTemporal({ progress: say });
if (temporal.kind !== 'command') throw new Error('Unset TEMPORAL_ADDRESS: the bench starts a server of its own.');
const lab = await Lab.up({ stateFolder: join(cache, 'lab'), progress: say });
const system = await System.start({
  folder: join(cache, 'bench'),
  hypervisor: { kind: 'libvirt', socket: lab.libvirtSocket, imageFolders: [lab.imagesFolder] },
  temporalCommand: temporal.path,
  progress: say,
});
const hypervisor = createLibvirtHypervisor({ socketPath: lab.libvirtSocket });
const client = new LibvirtClient({ socketPath: lab.libvirtSocket });
const vm = lab.vm.uuid;

try {
  await hypervisor.start();
  await client.start();
  const samples: Record<'ours' | 'bare' | 'QUIESCE', Sample[]> = { ours: [], bare: [], QUIESCE: [] };
  // The first of each is not counted: everybody's connections and caches are cold.
  for (let run = 0; run <= runs; run += 1) {
    for (const [name, take] of [
      ['ours', ours],
      ['bare', bare],
      ['QUIESCE', quiesced],
    ] as const) {
      const log = lab.log();
      const hostMs = await take(run);
      if (run > 0) samples[name].push({ hostMs, logMs: windowInLog(log) });
    }
    say(`${run} of ${runs}`);
  }
  report(samples);
} finally {
  await client.close();
  await hypervisor.close();
  await system.stop();
  await lab.down();
}

async function ours(): Promise<number> {
  const id = await system.createSnapshot(vm);
  const { state, grade, why, window, error } = await system.waitForSnapshot(id);
  if (state !== 'complete' || grade !== 'filesystem' || window === null)
    throw new Error(`ours: ${state} ${error?.text ?? why}`);
  await system.deleteSnapshot(id);
  return window.ms;
}

async function bare(run: number): Promise<number> {
  const overlays = await activeImages(hypervisor, `bench-bare-${run}`);
  for (const { path, base, format, sizeBytes } of overlays) {
    await hypervisor.images.createOverlay({ path, base, baseFormat: format, sizeBytes, likeFile: base });
  }
  const { repliedAt } = await hypervisor.freeze(vm);
  let requestedAt: number;
  try {
    await hypervisor.snapshotDisks(vm, overlays);
  } finally {
    ({ requestedAt } = await hypervisor.thaw(vm));
  }
  await takeBack(overlays);
  return requestedAt - repliedAt;
}

async function quiesced(run: number): Promise<undefined> {
  const overlays = await activeImages(hypervisor, `bench-quiesce-${run}`);
  const disks = overlays.map(
    ({ target, path }) => `<disk name='${target}' snapshot='external'><source file='${path}'/></disk>`,
  );
  const xml = `<domainsnapshot><disks>${disks.join('')}<disk name='vdc' snapshot='no'/></disks></domainsnapshot>`;
  await client.createSnapshot(await client.lookupByUuid(vm), xml, quiesceFlags, { timeoutMs: 60_000 });
  await takeBack(overlays);
  return undefined;
}

async function activeImages(port: Hypervisor, name: string) {
  const { disks } = await port.getVm(vm);
  const images = [];
  for (const target of targets) {
    const disk = disks.find((candidate) => candidate.target === target);
    if (disk?.path === undefined) throw new Error(`${target} has no file`);
    const sizeBytes = await port.images.sizeBytes(disk.path, disk.format);
    const path = join(dirname(disk.path), `${target}.${name}.qcow2`);
    images.push({ target, path, base: disk.path, format: disk.format, sizeBytes });
  }
  return images;
}

async function takeBack(overlays: readonly { target: string; path: string }[]): Promise<void> {
  for (const { target, path } of overlays) {
    await hypervisor.mergeOverlay(vm, target, path);
    await hypervisor.images.delete(path);
  }
}

/** Freeze answered by the guest agent -> thaw sent to it. */
function windowInLog(log: LibvirtLog): number {
  const entries = log.agent();
  const frozen = entries.find(
    (entry) => entry.direction === 'received' && entry.command.startsWith('guest-fsfreeze-freeze'),
  );
  const thaw = entries.find((entry) => entry.direction === 'sent' && entry.command === 'guest-fsfreeze-thaw');
  if (frozen === undefined || thaw === undefined) throw new Error("libvirt's log has no freeze and thaw");
  return thaw.atMs - frozen.atMs;
}

function report(samples: Record<string, Sample[]>): void {
  const rows = Object.entries(samples).map(([name, all]) => {
    const host = all.flatMap(({ hostMs }) => (hostMs === undefined ? [] : [hostMs]));
    return `| ${name} | ${quantiles(host)} | ${quantiles(all.map(({ logMs }) => logMs))} |`;
  });
  const memory = (what: { pid: number; startTicks: number; bootId: string } | undefined) =>
    what === undefined ? '?' : `${Math.round(system.residentBytes(what) / 2 ** 20)} MiB`;
  process.stdout.write(`
Frozen window, ms, ${runs} runs each, interleaved; median / p95 (${lab.acceleration.toUpperCase()}, Node ${process.version})

| | host | libvirt's log |
|---|---|---|
${rows.join('\n')}

Resident memory after it: engine ${memory(system.engine)}, host agent (supervisor and worker) ${memory(system.hostAgent)}
`);
}

function quantiles(values: number[]): string {
  if (values.length === 0) return '-';
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) =>
    (sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? 0).toFixed(0);
  return `${at(0.5)} / ${at(0.95)}`;
}
