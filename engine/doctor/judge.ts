import { posix } from 'node:path';
import type { JudgedFinding, LocalPart, Plan, VolumePart } from '@stillpoint/workflows';
import { isGraded, snapshotOf } from '../activities/volume-names.js';
import type { SnapshotRow, SnapshotState } from '../catalogue/catalogue.js';
import type { VolumeSnapshot } from '../cinder/cinder.js';
import type { HostVm } from '../hosts/hosts.js';
import { doubtAbout, inARun, waysOut } from './dead-run.js';
import { type HostAnswer, type Observation, operationOf } from './observation.js';

/** What such rows, and those that are pending, have made is theirs: whoever ends them finds it. */
const owed: readonly SnapshotState[] = ['accepted', ...inARun, 'cleanup-pending'];
/** With these Cinder's data is not there, or not to be relied on. */
const brokenStatus: readonly (string | undefined)[] = [undefined, 'error', 'error_deleting', 'deleting', 'deleted'];

/**
 * What one look shows, judged; docs/doctor.md has the same in words. `busy`: VMs with an open run under their workflow id. That run ends, or cleans up, what
 * is seen of it: nothing is concluded about what it may be at work on. `statuses`: Temporal's word on the own run of each row whose end is not written, by the
 * snapshot's id; `undefined`, or none: Temporal has no such run.
 */
export function judge(
  seen: Observation,
  busy: ReadonlySet<string>,
  statuses: ReadonlyMap<string, string | undefined>,
): JudgedFinding[] {
  const judges = new Judges(seen, statuses);
  const findings = [
    ...judges.away(),
    ...judges.guests(),
    ...judges.rows(),
    ...judges.reservations(),
    ...judges.overlays(),
    ...judges.volumeSnapshots(),
  ];
  return findings.filter(
    ({ code, about }) => code === 'GUEST_FROZEN' || about.vm === undefined || !busy.has(about.vm.uuid),
  );
}

/** The same in every look. */
export function keyOf({ code, about }: JudgedFinding): string {
  return JSON.stringify([code, about.host, about.vm?.uuid, about.snapshotId, about.thing]);
}

class Judges {
  readonly #seen: Observation;
  readonly #statuses: ReadonlyMap<string, string | undefined>;
  readonly #answered: HostAnswer[];

  constructor(seen: Observation, statuses: ReadonlyMap<string, string | undefined>) {
    this.#seen = seen;
    this.#statuses = statuses;
    this.#answered = seen.hosts.filter((host): host is HostAnswer => !('away' in host));
  }

  *away(): Generator<JudgedFinding> {
    const nothing = 'Nothing is concluded about what it has.';
    for (const host of this.#seen.hosts) {
      if ('away' in host) {
        yield {
          code: 'HOST_AWAY',
          about: { host: host.name },
          text: `Host ${host.name} did not tell what it has: ${host.away}`,
          advice: `${nothing} See that it is up; if it is gone for good: stillpoint host remove ${host.name} --lost.`,
        };
      } else if (host.overlaysAway !== undefined) {
        yield {
          code: 'HOST_AWAY',
          about: { host: host.name, thing: 'overlay files' },
          text: `Host ${host.name} did not tell its overlay files: ${host.overlaysAway}`,
          advice:
            'Nothing is concluded about its overlays. Look again; if it stays so, see that its host agent is of the version of the engine, and how long its folders take to be read.',
        };
      }
    }
    const { cloud } = this.#seen;
    if (cloud !== 'none' && !('away' in cloud)) return;
    const needing = [...this.#seen.rows.values()].filter((row) => volumesOf(row).length > 0 && row.state !== 'deleted');
    if (cloud === 'none' && needing.length === 0) return;
    yield {
      code: 'CLOUD_AWAY',
      about: {},
      text:
        cloud === 'none'
          ? `This engine knows no cloud, and ${needing.length} snapshots have Cinder volumes.`
          : `Cinder did not tell what it has: ${cloud.away}`,
      advice: `${nothing} See: stillpoint cloud.`,
    };
  }

  *guests(): Generator<JudgedFinding> {
    for (const { host, vm } of this.#vms()) {
      const { freezeState, freezeDetail } = vm.hold;
      if (freezeState !== 'still-frozen' && freezeState !== 'maybe-frozen') continue;
      yield {
        code: 'GUEST_FROZEN',
        about: { host: host.name, vm: named(vm) },
        text: `The guest of ${vm.name} is ${freezeState === 'still-frozen' ? 'still' : 'perhaps'} frozen: ${freezeDetail}`,
        advice: 'Its host agent thaws it within 2 s of its becoming possible. Do what the text says.',
      };
    }
  }

  *rows(): Generator<JudgedFinding> {
    for (const row of this.#seen.rows.values()) {
      const { snapshotId, vm, vmName, state } = row;
      const about = {
        vm: { uuid: vm, name: vmName },
        snapshotId,
        ...(row.host === undefined ? {} : { host: row.host }),
      };
      const which = `Snapshot ${row.name ?? snapshotId} of ${vmName}`;
      if (inARun.includes(state)) {
        const status = this.#statuses.get(snapshotId);
        const doubt = doubtAbout(row, status, this.#gradedPart(row));
        const text = `${which} is ${state}, and no run of its VM is open. ${doubt ?? `Its run ended as ${status}, and is not recorded.`}`;
        const whatNow =
          doubt === undefined
            ? this.#cleanUp(row, 'What the run made is taken back.')
            : { advice: waysOut(snapshotId) };
        yield { code: 'RUN_GONE', about, text, ...whatNow };
      } else if (state === 'cleanup-pending') {
        const text = `${which} has something pending. ${row.pending.join(' ')}`.trim();
        yield { code: 'CLEANUP_PENDING', about, text, ...this.#cleanUp(row, 'It is cleaned up again.') };
      } else if (state === 'complete') {
        const missing = row.parts.map((part) => this.#whatIsMissing(row, part)).filter((text) => text !== undefined);
        if (missing.length === 0) continue;
        yield {
          code: 'SNAPSHOT_NOT_WHOLE',
          about,
          text: `${which} was recorded, and is not whole any more. ${missing.join(' ')}`,
          advice: `A set with a part missing is a set no more; the other parts are as they were. When they are of no use: stillpoint snapshot delete ${snapshotId}.`,
        };
      }
    }
  }

  *reservations(): Generator<JudgedFinding> {
    const { installation, rows } = this.#seen;
    for (const { host, vm } of this.#vms()) {
      const { operation, window, installation: holder } = vm.hold;
      if (operation === '') continue;
      const about = { host: host.name, vm: named(vm), thing: operation };
      const byHand = `stillpoint-host-agent release ${vm.name} (on ${host.name})`;
      if (holder !== installation) {
        yield {
          code: 'VM_HELD_ELSEWHERE',
          about,
          text: `${vm.name} is held on ${host.name} by ${operation} of the installation ${holder}, which is not this one (${installation}).`,
          advice: `If that installation works, leave it alone. If it is gone, or was this one before its catalogue was lost: ${byHand}.`,
        };
        continue;
      }
      const row = rows.get(operation);
      // Its clean-up gives the VM back.
      if (row !== undefined && inARun.includes(row.state)) continue;
      const text = `${vm.name} is held on ${host.name} by ${operation}, and no run of it is open.`;
      if (row === undefined && window !== '') {
        yield {
          code: 'VM_HELD',
          about,
          text: `${text} The catalogue does not know that operation.`,
          advice: `Its record may be in an older catalogue, so nothing of it is undone. Look at its overlays and at Cinder's snapshots (other findings name them), then: ${byHand}.`,
        };
        continue;
      }
      const repair = { kind: 'reservation', vm: vm.uuid, host: host.name, operation, window } as const;
      yield { code: 'VM_HELD', about, text, advice: 'The VM is given back.', repair };
    }
  }

  *overlays(): Generator<JudgedFinding> {
    const { rows, installation } = this.#seen;
    for (const host of this.#answered) {
      const names = new Map(host.vms.map((vm) => [vm.uuid, vm.name]));
      for (const { path, window, usedBy } of host.overlays) {
        const row = rows.get(operationOf(window));
        if (row !== undefined && (owed.includes(row.state) || hasOverlay(row, path))) continue;
        const uuid = usedBy?.vm ?? row?.vm;
        const vm = uuid === undefined ? undefined : { uuid, name: names.get(uuid) ?? row?.vmName ?? uuid };
        const whose =
          row !== undefined
            ? `Snapshot ${row.snapshotId} is ${row.state}, and has no such part.`
            : host.installation === '' || host.installation === installation
              ? `The catalogue knows no snapshot of its window ${window}.`
              : `The catalogue knows no snapshot of its window ${window}; the host agent's journal is of another installation, ${host.installation}.`;
        yield {
          code: 'OVERLAY_UNCLAIMED',
          about: { host: host.name, ...(vm && { vm }), thing: path },
          text: `${path} on ${host.name} ${usedBy === undefined ? 'lies in no chain' : `is what ${vm?.name} uses for ${usedBy.target}`}. ${whose}`,
          advice:
            usedBy === undefined
              ? 'It is never deleted by Stillpoint: nobody has seen its data committed. See that no definition names it (virsh dumpxml --inactive), compare it with the image below it (qemu-img compare), then delete it.'
              : `Never delete it: the guest's data is in it. The image below it holds the disk as it was at that cut. To give that up, merge it: virsh blockcommit ${vm?.name} ${usedBy.target} --top ${path} --shallow --wait (with --pivot where it is the active image).`,
        };
      }
    }
  }

  *volumeSnapshots(): Generator<JudgedFinding> {
    const { cloud, rows } = this.#seen;
    if (cloud === 'none' || 'away' in cloud) return;
    for (const snapshot of cloud.snapshots) {
      const snapshotId = snapshotOf(snapshot.metadata);
      const row = rows.get(snapshotId);
      if (row === undefined) {
        yield unknownVolumeSnapshot(snapshot, snapshotId);
        continue;
      }
      if (!isLeftInCinder(row, snapshot)) continue;
      yield {
        code: 'VOLUME_SNAPSHOT_LEFT',
        about: { vm: { uuid: row.vm, name: row.vmName }, snapshotId, thing: snapshot.id },
        text: `Cinder has the snapshot ${snapshot.id} of volume ${snapshot.volumeId} (${snapshot.status}), made for snapshot ${snapshotId} of ${row.vmName}, which is ${row.state} and has no such part.`,
        advice: 'It is deleted in Cinder.',
        repair: { kind: 'volume-snapshot', vm: row.vm, snapshotId, volumeSnapshot: snapshot.id },
      };
    }
  }

  #cleanUp(row: SnapshotRow, what: string): Pick<JudgedFinding, 'advice' | 'repair'> {
    const answers = this.#answered.some(({ name }) => name === row.host);
    const { cloud } = this.#seen;
    if (answers && inARun.includes(row.state) && volumesOf(row).length > 0 && (cloud === 'none' || 'away' in cloud)) {
      return { advice: 'Cinder does not answer, which may know more of it: it is left until that does.' };
    }
    if (answers) return { advice: what, repair: { kind: 'clean-up', vm: row.vm, snapshotId: row.snapshotId } };
    const isAway = this.#seen.hosts.some(({ name }) => name === row.host);
    return {
      advice: isAway
        ? `Its host ${row.host} does not answer: it is left until that does.`
        : `Its host ${row.host} was removed as lost. What lies on it is lost with it; if it comes back: stillpoint host add ${row.host} ADDRESS.`,
    };
  }

  /** Id of one of the snapshot's parts in Cinder that carries a grade. */
  #gradedPart({ snapshotId }: SnapshotRow): string | undefined {
    const { cloud } = this.#seen;
    if (cloud === 'none' || 'away' in cloud) return undefined;
    return cloud.snapshots.find(({ metadata }) => snapshotOf(metadata) === snapshotId && isGraded(metadata))?.id;
  }

  #whatIsMissing(row: SnapshotRow, part: LocalPart | VolumePart): string | undefined {
    return part.kind === 'volume' ? this.#missingInCinder(row, part) : this.#missingOnHost(row, part);
  }

  #missingInCinder(row: SnapshotRow, { target, volume, snapshot }: VolumePart): string | undefined {
    const { cloud } = this.#seen;
    if (cloud === 'none' || 'away' in cloud) return undefined;
    const project = (row.plan as Partial<Plan> | undefined)?.volumes?.find(
      (planned) => planned.volume === volume,
    )?.project;
    // Another project's snapshots are not there to be seen.
    if ((project !== undefined && project !== cloud.project) || !cloud.parts.has(snapshot)) return undefined;
    const status = cloud.parts.get(snapshot);
    if (!brokenStatus.includes(status)) return undefined;
    return `${target}: Cinder's snapshot ${snapshot} is ${status ?? 'not there'}.`;
  }

  /** Only where the VM is seen: it may run on a host that does not answer, or be a transient one that is off. */
  #missingOnHost(row: SnapshotRow, { target, overlay }: LocalPart): string | undefined {
    const hosts = this.#answered.filter(({ vms }) => vms.some((vm) => vm.uuid === row.vm));
    const runs = hosts.some(({ vms }) => vms.some((vm) => vm.uuid === row.vm && vm.state !== 'shut-off'));
    const isSeen = hosts.length > 0 && (runs || this.#answered.length === this.#seen.hosts.length);
    if (!isSeen || hosts.some(({ unreadVms }) => unreadVms.includes(row.vm))) return undefined;
    const isUsed = hosts.some(({ overlays }) =>
      overlays.some(
        ({ path, usedBy }) =>
          usedBy?.vm === row.vm && usedBy.target === target && posix.basename(path) === posix.basename(overlay),
      ),
    );
    return isUsed ? undefined : `${target}: ${overlay} is not in its chain any more.`;
  }

  *#vms(): Generator<{ host: HostAnswer; vm: HostVm }> {
    for (const host of this.#answered) for (const vm of host.vms) yield { host, vm };
  }
}

/** Whether a snapshot in Cinder is none of its row's parts. Of a row whose end is not written nobody can say. */
export function isLeftInCinder(row: SnapshotRow, { id, status }: Pick<VolumeSnapshot, 'id' | 'status'>): boolean {
  if (owed.includes(row.state) || status === 'deleting') return false;
  return !row.parts.some((part) => part.kind === 'volume' && part.snapshot === id);
}

function unknownVolumeSnapshot(
  { id, volumeId, metadata, createdAt }: VolumeSnapshot,
  snapshotId: string,
): JudgedFinding {
  const { stillpoint_vm: uuid, stillpoint_vm_name: name, stillpoint_grade: grade } = metadata;
  return {
    code: 'VOLUME_SNAPSHOT_UNKNOWN',
    about: { ...(uuid === undefined ? {} : { vm: { uuid, name: name ?? uuid } }), snapshotId, thing: id },
    text: `Cinder has the snapshot ${id} of volume ${volumeId} (made ${createdAt}${grade === undefined ? ', no grade noted' : `, grade ${grade}`}) with our installation's id, and the catalogue knows no snapshot ${snapshotId}.`,
    advice: `The catalogue was lost, or restored from before it: somebody may rely on it, so it is not deleted. When it is of no use: openstack volume snapshot delete ${id}.`,
  };
}

/** By its name, which has the window's id: the folder may be named otherwise in the record (a symlink). */
function hasOverlay(row: SnapshotRow, path: string): boolean {
  return row.parts.some((part) => part.kind === 'local' && posix.basename(part.overlay) === posix.basename(path));
}

function volumesOf(row: SnapshotRow): unknown[] {
  return (row.plan as Partial<Plan> | undefined)?.volumes ?? [];
}

function named({ uuid, name }: HostVm): { uuid: string; name: string } {
  return { uuid, name };
}
