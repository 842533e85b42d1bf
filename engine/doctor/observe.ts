import type { ActivityDeps } from '../activities/deps.js';
import { installationMetadata, snapshotOf } from '../activities/volume-names.js';
import type { SnapshotRow } from '../catalogue/catalogue.js';
import type { Cinder, VolumeSnapshot } from '../cinder/cinder.js';
import { isCinderError } from '../cinder/errors.js';
import { snapshotId } from '../contract/snapshot-input.js';
import { isHostError } from '../hosts/errors.js';
import { type CloudSeen, type HostSeen, type Observation, operationOf } from './observation.js';

/** Rows a question. */
const pageSize = 200;

type Deps = Pick<ActivityDeps, 'catalogue' | 'hosts' | 'cloud' | 'installationId'>;

/**
 * Looks at everything once. Hosts and Cinder before the catalogue: of what they have the row was written before, so that a row that is not there is
 * missing. Errors: CatalogueError. A host or a Cinder that does not answer is no error.
 */
export async function observe(deps: Deps, signal: AbortSignal): Promise<Observation> {
  const names = await deps.hosts.names();
  const [hosts, listed] = await Promise.all([
    Promise.all(names.map((name) => hostSeen(deps, name, signal))),
    listedIn(deps, signal),
  ]);
  const rows = await allRows(deps);
  for (const id of idsNamedBy(hosts, listed)) {
    if (rows.has(id)) continue;
    const row = await deps.catalogue.getSnapshot(id);
    if (row !== undefined) rows.set(id, row);
  }
  return { installation: deps.installationId, hosts, cloud: await withParts(listed, rows, signal), rows };
}

async function hostSeen({ hosts }: Deps, name: string, signal: AbortSignal): Promise<HostSeen> {
  const host = hosts.host(name);
  try {
    // Reading the folders may take longer than the host agent's answer may, and an older host agent does not know the call: what it holds is told all the same.
    const [{ installation }, vms, files] = await Promise.all([
      host.facts({ signal }),
      host.listVms({ signal }),
      host.listOverlays({ signal }).catch((error: unknown) => hostAway(error, signal)),
    ]);
    if (!('away' in files)) return { name, installation, vms, ...files };
    return { name, installation, vms, overlays: [], unreadVms: vms.map(({ uuid }) => uuid), overlaysAway: files.away };
  } catch (error) {
    return { name, ...hostAway(error, signal) };
  }
}

function hostAway(error: unknown, signal: AbortSignal): { away: string } {
  if (signal.aborted) throw signal.reason;
  if (!isHostError(error)) throw error;
  return { away: `${error.message} ${error.advice}`.trim() };
}

type Listed = 'none' | { away: string } | { cinder: Cinder; project: string; snapshots: VolumeSnapshot[] };

async function listedIn({ cloud, installationId }: Deps, signal: AbortSignal): Promise<Listed> {
  if (cloud === undefined) return 'none';
  const { cinder } = cloud;
  try {
    const project = await cinder.project({ signal });
    return {
      cinder,
      project,
      snapshots: await cinder.findSnapshots({ metadata: installationMetadata(installationId) }, { signal }),
    };
  } catch (error) {
    return awayOrThrow(error, signal);
  }
}

/** What the list does not have is asked for by its id: somebody may have changed its metadata, which is all that a list goes by. */
async function withParts(
  listed: Listed,
  rows: ReadonlyMap<string, SnapshotRow>,
  signal: AbortSignal,
): Promise<CloudSeen> {
  if (listed === 'none' || 'away' in listed) return listed;
  const { cinder, project, snapshots } = listed;
  const parts = new Map<string, string | undefined>(snapshots.map(({ id, status }) => [id, status]));
  try {
    for (const part of [...rows.values()].flatMap((row) => (row.state === 'complete' ? row.parts : []))) {
      if (part.kind !== 'volume' || parts.has(part.snapshot)) continue;
      parts.set(part.snapshot, await statusIn(cinder, part.snapshot, signal));
    }
  } catch (error) {
    return awayOrThrow(error, signal);
  }
  return { project, snapshots, parts };
}

async function statusIn(cinder: Cinder, id: string, signal: AbortSignal): Promise<string | undefined> {
  try {
    return (await cinder.snapshot(id, { signal })).status;
  } catch (error) {
    if (isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND')) return undefined;
    throw error;
  }
}

function awayOrThrow(error: unknown, signal: AbortSignal): { away: string } {
  if (signal.aborted) throw signal.reason;
  if (!isCinderError(error)) throw error;
  return { away: `${error.message} ${error.advice}`.trim() };
}

async function allRows({ catalogue }: Deps): Promise<Map<string, SnapshotRow>> {
  const rows = new Map<string, SnapshotRow>();
  for (let after: string | undefined; ; ) {
    const page = await catalogue.listSnapshots({ limit: pageSize, ...(after === undefined ? {} : { after }) });
    for (const row of page) rows.set(row.snapshotId, row);
    after = page.at(-1)?.snapshotId;
    if (page.length < pageSize || after === undefined) return rows;
  }
}

/** Other people's text: only what is a snapshot's id is worth a question. */
function idsNamedBy(hosts: readonly HostSeen[], listed: Listed): Set<string> {
  const named: string[] =
    listed === 'none' || 'away' in listed ? [] : listed.snapshots.map((each) => snapshotOf(each.metadata));
  for (const host of hosts) {
    if ('away' in host) continue;
    named.push(
      ...host.vms.map(({ hold }) => hold.operation),
      ...host.overlays.map(({ window }) => operationOf(window)),
    );
  }
  return new Set(named.filter((id) => snapshotId.safeParse(id).success));
}
