import { randomUUID } from 'node:crypto';
import type { z } from 'zod';

import type { acceptedAnswer, SnapshotView, snapshotsAnswer } from '../api/schemas.js';
import { inputFaults, type SnapshotRequest, snapshotRequest } from '../contract/snapshot-input.js';
import { type Context, show } from './context.js';
import { CommandError, exitCodes } from './exit-codes.js';
import { follow } from './follow.js';
import { snapshotTable, snapshotText } from './snapshot-text.js';
import { json, plain } from './terminal.js';

type Accepted = z.infer<typeof acceptedAnswer>;
type Page = z.infer<typeof snapshotsAnswer>;

export interface CreateOptions {
  quiesce?: string;
  disk?: string[];
  unquiesced?: string[];
  name?: string;
  description?: string;
  /** ms */
  freezeTimeout?: number;
  /** ms */
  windowLimit?: number;
  wait?: boolean;
}

const pathOf = (id: string) => `/v1/snapshots/${encodeURIComponent(id)}`;

/** `snapshot create VM` */
export async function createSnapshot(context: Context, vm: string, options: CreateOptions): Promise<number> {
  const accepted = await context.api.request<Accepted>('POST', `/v1/vms/${encodeURIComponent(vm)}/snapshots`, {
    body: requestOf(options),
    headers: { 'idempotency-key': randomUUID() },
  });
  if (options.wait) return showEnd(context, await follow(context, accepted.id));
  show(context, accepted, ({ id, vm: { name } }) =>
    plain(`Snapshot ${id} of ${name} has begun. Follow it: stillpoint snapshot show ${id} --wait`),
  );
  return exitCodes.ok;
}

interface Filter {
  vm?: string;
  grade?: string;
  state?: string;
}

/** `snapshot list` */
export async function listSnapshots(context: Context, filter: Filter): Promise<number> {
  const snapshots = await snapshotsOf(context, filter);
  show(context, { snapshots }, () => snapshotTable(snapshots));
  return exitCodes.ok;
}

/** Every page of them, newest first. */
export async function snapshotsOf(context: Context, filter: Filter): Promise<SnapshotView[]> {
  const snapshots: SnapshotView[] = [];
  let cursor: string | undefined;
  do {
    const page: Page = await context.api.request<Page>('GET', '/v1/snapshots', {
      query: { vm: filter.vm, grade: filter.grade, state: filter.state, limit: '200', cursor },
    });
    snapshots.push(...page.snapshots);
    cursor = page.next ?? undefined;
  } while (cursor !== undefined);
  return snapshots;
}

/** `snapshot show ID` */
export async function showSnapshot(context: Context, id: string, options: { wait?: boolean }): Promise<number> {
  if (options.wait) return showEnd(context, await follow(context, id));
  show(context, await context.api.request<SnapshotView>('GET', pathOf(id)), snapshotText);
  return exitCodes.ok;
}

/** `snapshot cancel ID` */
export async function cancelSnapshot(context: Context, id: string): Promise<number> {
  const answer = await context.api.request<{ id: string }>('POST', `${pathOf(id)}/cancel`);
  show(context, answer, () =>
    plain(`The run of snapshot ${id} was asked to end: thawed and clean. See: stillpoint snapshot show ${id} --wait`),
  );
  return exitCodes.ok;
}

/** `snapshot delete ID` */
export async function deleteSnapshot(context: Context, id: string, options: { wait?: boolean }): Promise<number> {
  const accepted = await context.api.request<Accepted>('DELETE', pathOf(id));
  if (!options.wait) {
    show(context, accepted, ({ vm: { name } }) =>
      plain(`The deletion of snapshot ${id} of ${name} has begun. Follow it: stillpoint snapshot show ${id} --wait`),
    );
    return exitCodes.ok;
  }
  const snapshot = await follow(context, id);
  if (snapshot.state === 'deleted') {
    show(context, snapshot, ({ vm: { name } }) => plain(`Deleted snapshot ${id} of ${name}.`));
    return exitCodes.ok;
  }
  context.terminal.out(`${context.json ? json(snapshot) : snapshotText(snapshot)}\n`);
  throw endError(snapshot, 'was not deleted');
}

/** The options against the schema of the contract, each fault under the option's name. */
function requestOf(options: CreateOptions): SnapshotRequest {
  const given = {
    quiesce: options.quiesce,
    disks: options.disk,
    unquiesced: options.unquiesced,
    name: options.name,
    description: options.description,
    freezeTimeoutMs: options.freezeTimeout,
    windowLimitMs: options.windowLimit,
  };
  const parsed = snapshotRequest.safeParse(
    Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
  );
  if (parsed.success) return parsed.data;
  const faults = inputFaults(parsed.error).map(({ field, message }) => `${optionOf(field)} ${message}`);
  throw new CommandError(exitCodes.usage, 'USAGE', `${faults.join('\n')}.`);
}

function optionOf(field: string): string {
  const names: Record<string, string> = {
    disks: '--disk',
    freezeTimeoutMs: '--freeze-timeout (in ms)',
    windowLimitMs: '--window-limit (in ms)',
  };
  const name = field.replace(/\[\d+\]$/, '');
  return names[name] ?? `--${name}`;
}

/** What became of it on stdout, and for whatever is not `complete` the error and its exit code. */
function showEnd(context: Context, snapshot: SnapshotView): number {
  show(context, snapshot, snapshotText);
  if (snapshot.state === 'complete' || snapshot.state === 'deleted') return exitCodes.ok;
  throw endError(snapshot, snapshot.state === 'cancelled' ? 'was cancelled' : 'failed');
}

function endError(snapshot: SnapshotView, what: string): CommandError {
  const pending = snapshot.state === 'cleanup-pending';
  const text = snapshot.error?.text ?? `The snapshot ${snapshot.id} ${what}.`;
  const code = snapshot.error?.code ?? (pending ? 'CLEANUP_PENDING' : 'SNAPSHOT_FAILED');
  return new CommandError(pending ? exitCodes.cleanupPending : exitCodes.snapshotFailed, code, text);
}
