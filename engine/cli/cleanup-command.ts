import type { z } from 'zod';

import type { acceptedAnswer, SnapshotView } from '../api/schemas.js';
import type { Context } from './context.js';
import { CommandError, exitCodes } from './exit-codes.js';
import { follow } from './follow.js';
import { snapshotsOf } from './snapshot-commands.js';
import { json, plain } from './terminal.js';

/** What became of one snapshot; with `--json` these are the answer. */
interface Cleanup {
  id: string;
  /** Null: the API does not know the snapshot, or was not asked. */
  vm: { uuid: string; name: string } | null;
  outcome: 'begun' | 'cleaned-up' | 'pending' | 'refused';
  /** What is left of it, and what ends that. */
  pending: string[];
  error: { code: string; text: string } | null;
}

/**
 * `snapshot cleanup [ID…]`: one after another, because those of one VM cannot go side by side; one that is refused does not keep the others.
 *
 * @throws CommandError when something is pending still (CLEANUP_PENDING) or a cleanup was refused, after all are told; and where it makes no sense to go on
 */
export async function cleanUpSnapshots(context: Context, ids: string[], options: { wait?: boolean }): Promise<number> {
  const done: Cleanup[] = [];
  const refusals: CommandError[] = [];
  const snapshots = await meant(context, ids);
  if (snapshots.length === 0 && !context.json) context.terminal.out('Nothing is pending.\n');
  try {
    for (const { id, vm } of snapshots) {
      const cleanup = await cleanUp(context, id, options.wait ?? false).catch((error: unknown): Cleanup => {
        if (!isAboutOne(error)) throw error;
        refusals.push(error);
        return { id, vm, outcome: 'refused', pending: [], error: { code: error.code, text: error.message } };
      });
      done.push(cleanup);
      if (!context.json) context.terminal.out(`${lineOf(cleanup)}\n`);
    }
  } finally {
    if (context.json) context.terminal.out(`${json({ snapshots: done })}\n`);
  }
  const pending = done.filter(({ outcome }) => outcome === 'pending').length;
  if (pending > 0) {
    const text = `Of ${pending} of ${done.length} something is pending still. Do what its line says, then clean up again.`;
    throw new CommandError(exitCodes.cleanupPending, 'CLEANUP_PENDING', text);
  }
  const [refusal] = refusals;
  if (refusal === undefined) return exitCodes.ok;
  throw done.length === 1
    ? refusal
    : new CommandError(refusal.exitCode, refusal.code, `${refusals.length} of ${done.length} were not cleaned up.`);
}

async function meant(context: Context, ids: string[]): Promise<{ id: string; vm: Cleanup['vm'] }[]> {
  if (ids.length > 0) return [...new Set(ids)].map((id) => ({ id, vm: null }));
  return snapshotsOf(context, { state: 'cleanup-pending' });
}

async function cleanUp(context: Context, id: string, wait: boolean): Promise<Cleanup> {
  const path = `/v1/snapshots/${encodeURIComponent(id)}/cleanup`;
  const { vm } = await context.api.request<z.infer<typeof acceptedAnswer>>('POST', path);
  if (!wait) return { id, vm, outcome: 'begun', pending: [], error: null };
  return endOf(await follow(context, id));
}

function endOf({ id, vm, state, pending, error }: SnapshotView): Cleanup {
  if (state === 'deleted') return { id, vm, outcome: 'cleaned-up', pending: [], error: null };
  return { id, vm, outcome: 'pending', pending, error };
}

/** The API's word on one snapshot: what goes for all (nobody answers, Ctrl-C) ends the command. */
function isAboutOne(error: unknown): error is CommandError {
  const ofOne: number[] = [exitCodes.notFound, exitCodes.conflict, exitCodes.usage];
  return error instanceof CommandError && ofOne.includes(error.exitCode);
}

function lineOf({ id, vm, outcome, pending, error }: Cleanup): string {
  const said = error === null ? '' : `${error.code}: ${error.text}`;
  const text = {
    begun: `cleanup has begun. Follow it: stillpoint snapshot show ${id} --wait`,
    'cleaned-up': 'cleaned up',
    pending: `still pending: ${pending.length > 0 ? pending.join(' ') : said}`,
    refused: `not cleaned up: ${said}`,
  }[outcome];
  return plain(`${id}${vm === null ? '' : `  ${vm.name}`}  ${text}`);
}
