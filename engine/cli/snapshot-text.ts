import type { SnapshotView } from '../api/schemas.js';
import { endStates } from './follow.js';
import { duration, fields, plain, size, table, time } from './terminal.js';

/** One snapshot, whole: how consistent it is and why comes before where it lies. */
export function snapshotText(snapshot: SnapshotView): string {
  const { vm, window, progress } = snapshot;
  // What a terminated run told last is not what goes on.
  const goesOn = progress !== null && progress.state !== 'done' && !endStates.has(snapshot.state);
  return fields([
    ['snapshot', snapshot.id],
    ['name', snapshot.name ?? undefined],
    ['description', snapshot.description?.split('\n')],
    ['VM', `${vm.name} (${vm.uuid})${snapshot.host === null ? '' : ` on ${snapshot.host}`}`],
    ['state', goesOn && progress !== null ? `${snapshot.state}, ${progress.state}` : snapshot.state],
    ['waiting', (goesOn && progress?.waiting) || undefined],
    ['grade', snapshot.grade ?? undefined],
    ['why', snapshot.why ?? undefined],
    ['quiesce', snapshot.quiesce],
    ['window', window === null ? undefined : windowText(window)],
    ['partial', partialText(snapshot)],
    ['disks', snapshot.disks.map((disk) => `${disk.target}  ${size(disk.sizeBytes)} ${placeOf(disk)}`)],
    ['left out', snapshot.leftOut.map((disk) => `${disk.target}: ${disk.reason}`)],
    ['unfrozen', snapshot.unfrozen.map((gap) => `${[gap.target, gap.mountpoint].join(' ').trim()}: ${gap.reason}`)],
    ['steps', progress?.steps.map((step) => `${step.name}: ${stepText(step, goesOn)}`)],
    ['created', time(snapshot.createdAt)],
    ['ended', snapshot.endedAt === null ? undefined : time(snapshot.endedAt)],
    ['error', snapshot.error === null ? undefined : `${snapshot.error.code}: ${snapshot.error.text}`],
    ['pending', snapshot.pending],
    [
      'finish it',
      snapshot.state === 'cleanup-pending' ? `stillpoint snapshot cleanup ${snapshot.id} --wait` : undefined,
    ],
    ['run', snapshot.run === null ? undefined : `${snapshot.run.workflowId}, ${snapshot.run.runId}`],
  ]);
}

/** Snapshots, one a line. */
export function snapshotTable(snapshots: SnapshotView[]): string {
  if (snapshots.length === 0) return 'No snapshots. Take one: stillpoint snapshot create VM --wait';
  return table(
    ['ID', 'VM', 'NAME', 'STATE', 'GRADE', 'PARTIAL', 'WINDOW', 'CREATED'],
    snapshots.map((snapshot) => [
      snapshot.id,
      snapshot.vm.name,
      shortened(snapshot.name ?? '-'),
      snapshot.state,
      snapshot.grade ?? '-',
      snapshot.partial === null ? '-' : snapshot.partial ? 'yes' : 'no',
      snapshot.window === null
        ? '-'
        : snapshot.window.frozenAt === undefined
          ? 'never frozen'
          : duration(snapshot.window.ms),
      time(snapshot.createdAt),
    ]),
  );
}

function placeOf(disk: SnapshotView['disks'][number]): string {
  if (disk.kind === 'local') return `${disk.format} in ${disk.path}`;
  return `in Cinder: snapshot ${disk.snapshot} of volume ${disk.volume}`;
}

function windowText(window: NonNullable<SnapshotView['window']>): string {
  if (window.frozenAt === undefined) return 'never frozen';
  const count = window.frozenFileSystems;
  return `${Math.round(window.ms * 10) / 10} ms, ${count} file system${count === 1 ? '' : 's'} frozen at ${window.frozenAt}`;
}

function partialText({ partial, leftOut }: SnapshotView): string | undefined {
  if (partial === null) return undefined;
  if (!partial) return 'no';
  return `yes, without ${leftOut
    .filter((disk) => disk.writable)
    .map((disk) => disk.target)
    .join(', ')}`;
}

function stepText(step: { ms: number | null; error: string | null }, goesOn: boolean): string {
  if (step.ms === null) return goesOn ? 'runs' : 'did not end';
  return step.error === null ? duration(step.ms) : `failed after ${duration(step.ms)}: ${step.error}`;
}

function shortened(name: string): string {
  const one = plain(name);
  return one.length > 40 ? `${one.slice(0, 39)}…` : one;
}
