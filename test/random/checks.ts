import { setTimeout as delay } from 'node:timers/promises';
import type { SnapshotRow } from '@stillpoint/engine/catalogue/catalogue.js';
import { keepsWriteOrder } from '@stillpoint/host-agent/simulated/numbers.js';
import type { DiskPart, DoctorReport, Finding, SnapshotVmInput, SnapshotVmResult } from '@stillpoint/workflows';
import type { Guest, SeenCut } from './guest.js';
import type { ScenarioRun } from './run.js';
import { elsewhere } from './scenario.js';

/** A healed guest must be thawed within so long, ms. */
const thawedWithinMs = 5_000;
/** So often the doctor repairs before what it still finds is called left over. */
const mostRepairs = 5;
/** For the snapshots at the end: nothing goes wrong any more, only the machine may be busy. */
const longLimitMs = 30_000;

/** What is untrue of a snapshot that a run said it has made; `before`: the number that the guest wrote last when it was asked for. */
export function checkResult(guest: Guest, input: SnapshotVmInput, result: SnapshotVmResult, before: number): string[] {
  const wrong: string[] = [];
  const cuts = result.disks.map((part) => ({ part, cut: cutOf(guest, part) }));
  for (const { part, cut } of cuts) {
    if (cut === undefined) wrong.push(`${part.target} was recorded and never cut`);
    else if (cut.last < before) wrong.push(`${part.target} was cut before the snapshot was asked for`);
  }
  const seen = cuts.map(({ cut }) => cut).filter((cut) => cut !== undefined);
  const inOrder = guest.vm.writtenDisks.flatMap((target) => seen.filter((cut) => cut.target === target));
  const keepsOrder = keepsWriteOrder(inOrder.map(({ last }) => last));
  if (result.grade === 'filesystem') {
    const [first] = seen;
    if (seen.some(({ freeze }) => freeze === undefined || freeze !== first?.freeze)) {
      const how = seen.map(
        ({ target, freeze }) => `${target} ${freeze === undefined ? 'unfrozen' : `in freeze ${freeze}`}`,
      );
      wrong.push(`graded filesystem, but it was cut ${how.join(', ')}`);
    }
    for (const { target, isBare } of guest.spec.disks) {
      if (!isBare || !result.disks.some((part) => part.target === target)) continue;
      if (!input.unquiesced?.includes(target))
        wrong.push(`graded filesystem, but ${target} has none and was not accepted`);
    }
  }
  if (result.grade !== 'per-disk' && !keepsOrder) {
    wrong.push(
      `graded ${result.grade}, but the order of writes is broken: ${inOrder.map(({ target, last }) => `${target} ${last}`).join(', ')}`,
    );
  }
  if (input.quiesce === 'required' && result.grade !== 'filesystem') wrong.push(`required, and graded ${result.grade}`);
  const leftOut = guest.vm.writtenDisks.filter((target) => !result.disks.some((part) => part.target === target));
  if (leftOut.length > 0 && !result.partial)
    wrong.push(`it leaves out ${leftOut.join(', ')} and is not called partial`);
  return wrong;
}

function cutOf(guest: Guest, part: DiskPart): SeenCut | undefined {
  return part.kind === 'local' ? guest.localCuts.get(part.overlay) : guest.volumeCuts.get(part.snapshot);
}

/** Everything is healed: what is left, is every VM as before, and does its next snapshot work? */
export async function checkEnd(run: ScenarioRun): Promise<void> {
  await eachGuest(run, (guest) => thawed(run, guest));
  for (const guest of run.guests) await nothingLeftOfFailed(run, guest);
  await repaired(run);
  await eachGuest(run, async (guest) => {
    await isFree(run, guest);
    await completeIsWhole(run, guest);
    await nextWorks(run, guest);
    await allCanBeDeleted(run, guest);
    isAsBefore(run, guest);
  });
}

async function eachGuest(run: ScenarioRun, check: (guest: Guest) => Promise<void>): Promise<void> {
  await Promise.all(run.guests.map(check));
}

async function thawed(run: ScenarioRun, guest: Guest): Promise<void> {
  const host = run.lane.engines[0].hosts.host(guest.host.name);
  const state = () =>
    host.getVm(guest.vm.uuid).then(
      ({ hold }) => hold.freezeState,
      (error: unknown) => String(error),
    );
  const until = performance.now() + thawedWithinMs;
  for (;;) {
    const says = await state();
    if (!guest.vm.frozen && says === 'thawed') return;
    if (performance.now() > until) {
      tell(
        run,
        guest,
        `at the end it is ${guest.vm.frozen ? 'frozen' : 'not frozen'}, and its host agent says: ${says}`,
      );
      return;
    }
    await delay(50);
  }
}

/** All or nothing (invariant 4): who says that it has failed has left nothing, or says what. */
async function nothingLeftOfFailed(run: ScenarioRun, guest: Guest): Promise<void> {
  for (const row of await rowsOf(run, guest)) {
    const saysNothing = ['failed', 'cancelled', 'deleted'].includes(row.state) && row.pending.length === 0;
    if (!saysNothing) continue;
    for (const thing of thingsOf(run, guest, row.snapshotId)) {
      tell(
        run,
        guest,
        `${row.snapshotId} is ${row.state} (${row.error?.code ?? ''}), without anything pending, and left ${thing}`,
      );
    }
  }
}

/** What there is of a snapshot, in Cinder and on the host. */
function thingsOf(run: ScenarioRun, guest: Guest, snapshotId: string): string[] {
  const inCinder = run.lane.standIn.volumes
    .snapshots()
    .filter(({ metadata, status }) => metadata.stillpoint_snapshot === snapshotId && status !== 'deleting')
    .map(({ id, status }) => `Cinder's snapshot ${id} (${status})`);
  const onHost = guest.host.world.files.paths().filter((path) => path.includes(`.sp-${snapshotId}`));
  return [...inCinder, ...onHost];
}

/** What was told as left over is finished by the doctor; nothing is left for a person. */
async function repaired(run: ScenarioRun): Promise<void> {
  let findings: Finding[] = [];
  for (let repairs = 0; repairs < mostRepairs; repairs += 1) {
    const { client, name } = run.lane.settings;
    const report = (await client.workflow.execute('reconcile', {
      taskQueue: run.lane.taskQueue,
      workflowId: `doctor-${name}`,
      args: [{ repair: true }],
    })) as DoctorReport;
    findings = report.findings.filter(
      ({ about }) => about.vm === undefined || run.guests.some(({ vm }) => vm.uuid === about.vm?.uuid),
    );
    if (findings.length === 0) return;
    await delay(200 * repairs);
  }
  for (const { code, about, text, outcome, detail } of findings) {
    run.findings.push(
      `${about.vm?.name ?? about.host ?? 'cloud'}: after ${mostRepairs} repairs the doctor still finds ${code} (${outcome}): ${text} ${detail}`,
    );
  }
}

async function isFree(run: ScenarioRun, guest: Guest): Promise<void> {
  const { hold } = await run.lane.engines[0].hosts.host(guest.host.name).getVm(guest.vm.uuid);
  if (hold.operation !== '') tell(run, guest, `it is still held by ${hold.operation}`);
  for (const row of await rowsOf(run, guest)) {
    if (['complete', 'failed', 'cancelled', 'deleted'].includes(row.state)) continue;
    tell(run, guest, `${row.snapshotId} is ${row.state} at the end: ${row.pending.join(' ')}`);
  }
}

/** What is recorded is there, and holds what it held at its cut. */
async function completeIsWhole(run: ScenarioRun, guest: Guest): Promise<void> {
  for (const row of await rowsOf(run, guest)) {
    if (row.state !== 'complete') continue;
    for (const part of row.parts) {
      if (part.kind === 'volume') {
        const status = run.lane.standIn.volumes.snapshots().find(({ id }) => id === part.snapshot)?.status;
        if (status !== 'available')
          tell(
            run,
            guest,
            `${row.snapshotId} is complete, and Cinder's snapshot of ${part.target} is ${status ?? 'gone'}`,
          );
        continue;
      }
      const was = guest.localCuts.get(part.overlay)?.last;
      const { files } = guest.host.world;
      const now = files.get(part.path) === undefined ? 'gone' : files.content(part.path).last;
      if (now !== was)
        tell(
          run,
          guest,
          `${row.snapshotId} is complete, and ${part.path} (${part.target}) held ${was} at its cut and is at ${now}`,
        );
    }
  }
}

async function nextWorks(run: ScenarioRun, guest: Guest): Promise<void> {
  const { spec, vm } = guest;
  const disks = spec.disks.filter(({ is }) => is === 'local' || is === 'volume');
  const input: SnapshotVmInput = {
    vm: vm.uuid,
    quiesce: 'required',
    windowLimitMs: longLimitMs,
    disks: disks.map(({ target }) => target),
    unquiesced: disks.filter(({ isBare }) => isBare).map(({ target }) => target),
  };
  guest.windowLimitMs = longLimitMs;
  const before = guest.lastRound();
  const end = await run.execute('snapshotVm', guest, input);
  if (end.code !== 'ok') {
    tell(run, guest, `its next snapshot fails: ${end.code} ${'message' in end ? end.message : ''}`);
    return;
  }
  const result = (end as { result: unknown }).result as SnapshotVmResult;
  for (const text of checkResult(guest, input, result, before)) tell(run, guest, `its next snapshot: ${text}`);
}

async function allCanBeDeleted(run: ScenarioRun, guest: Guest): Promise<void> {
  for (const row of await rowsOf(run, guest)) {
    if (row.state !== 'complete') continue;
    const end = await run.execute('deleteSnapshot', guest, { vm: guest.vm.uuid, snapshotId: row.snapshotId });
    if (end.code !== 'ok')
      tell(run, guest, `${row.snapshotId} cannot be deleted: ${end.code} ${'message' in end ? end.message : ''}`);
  }
}

/** Nothing of ours anywhere, and every number that the guest ever wrote. */
function isAsBefore(run: ScenarioRun, guest: Guest): void {
  const { vm, spec, host, foreignImages } = guest;
  const { files } = host.world;
  const ours = files.paths().filter((path) => path.includes('.sp-') && path.includes(`/${vm.name}-`));
  if (ours.length > 0) tell(run, guest, `everything was deleted, and there is ${ours.join(', ')}`);
  const abroad = files.paths().filter((path) => path.startsWith(elsewhere) && path.includes('.sp-'));
  if (abroad.length > 0) tell(run, guest, `there is ${abroad.join(', ')}, outside the folders that are allowed`);
  let images = 0;
  for (const { target, is, serial } of spec.disks) {
    const content = vm.content(target);
    if (!content.isGapless || content.last < guest.lastRound()) {
      tell(
        run,
        guest,
        `${target} has lost data: it holds ${JSON.stringify(content.ranges)}, and the guest has written up to ${guest.lastRound()}`,
      );
    }
    if (is === 'local') images += files.chain(vm.live?.get(target)?.source ?? '').length - 1;
    if (serial === undefined) continue;
    const left = run.lane.standIn.volumes
      .snapshots()
      .filter(({ volumeId, status }) => volumeId === serial && status !== 'deleting');
    if (left.length > 0)
      tell(
        run,
        guest,
        `everything was deleted, and Cinder has ${left.map(({ id, status }) => `${id} (${status})`).join(', ')} of ${target}`,
      );
  }
  if (images !== foreignImages)
    tell(run, guest, `its chains have ${images} images more than at first, and others have made ${foreignImages}`);
}

async function rowsOf(run: ScenarioRun, guest: Guest): Promise<SnapshotRow[]> {
  const states = [
    'accepted',
    'running',
    'recording',
    'undoing',
    'complete',
    'failed',
    'cancelled',
    'cleanup-pending',
    'deleting',
    'deleted',
  ] as const;
  return run.lane.catalogue.listSnapshots({ vm: guest.vm.uuid, limit: 100, states });
}

function tell(run: ScenarioRun, guest: Guest, text: string): void {
  run.findings.push(`${guest.vm.name}: ${text}`);
}
