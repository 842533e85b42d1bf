/** One cell: the run is held at the step, the fault is done and ended, and what became of all of it is judged from outside our own journal. */
import { setTimeout as delay } from 'node:timers/promises';
import type { DoctorRun, SnapshotView, VmView } from '@stillpoint/engine/api/schemas.js';
import type { LibvirtLog } from '@stillpoint/lab/libvirt-log.js';
import type { Fault } from './faults.js';
import { frozenMsAfter, type SeenThawed } from './frozen.js';
import type { Step } from './steps.js';
import { VM, type World } from './world.js';

/** Invariant 1: so long after a thaw is possible again, at most, a guest may stay frozen. ms. */
export const THAW_LIMIT_MS = 5_000;
/** How long a frozen guest is looked at before the cell goes on without its thaw. ms. */
const PATIENCE_MS = 30_000;
const RUN_LIMIT_MS = 120_000;

export interface Outcome {
  /** How the run ended: `complete`, or the code of its error. */
  readonly end: string;
  /** The error's text; empty where there is none. */
  readonly error: string;
  /** How long the guest was frozen after a thaw was possible again. ms. */
  readonly frozenMs: number;
  /** What is not as it must be; a passed cell has none. */
  readonly problems: readonly string[];
}

/** Plays a cell. Where the outcome has problems, or where it throws, the world may be broken. */
export async function play(world: World, fault: Fault, step: Step): Promise<Outcome> {
  const problems: string[] = [];
  await fault.ready?.(world);
  const log = world.lab.log();
  const { id, letGo } = await within(60_000, `the run comes to '${step.name}'`, step.reach(world, fault.request));
  if (step.isFrozen && !(await world.lab.guest.isFrozen())) problems.push('the guest was not frozen at the step');

  const beganAt = Date.now();
  await fault.begin(world);
  if (step.blocksTheThaw || !fault.keepsHeld) letGo();
  let possibleAt = step.blocksTheThaw ? Date.now() : beganAt;
  const lasting = delay(Math.max(0, beganAt + fault.lastsMs - Date.now()));
  if (!fault.blocksTheThaw) problems.push(...(await untilThawed(world)).problems);
  else if (fault.shown !== undefined && step.isFrozen) problems.push(...(await untilShown(world, fault)));
  await lasting;
  await fault.end(world);
  if (fault.blocksTheThaw) possibleAt = Date.now();
  const thaw = await untilThawed(world);
  problems.push(...thaw.problems);
  letGo();

  const snapshot = await world.system.waitForSnapshot(id, RUN_LIMIT_MS);
  const frozenMs = frozenFor(log, { possibleAt, ...thaw });
  if (frozenMs > THAW_LIMIT_MS) problems.push(`frozen for ${(frozenMs / 1000).toFixed(1)} s after a thaw was possible`);
  problems.push(...(await endedTruly(world, fault, step, snapshot)));
  await world.mend();
  problems.push(...(await world.leftovers()));
  problems.push(...(await nextOneWorks(world)));
  const { state, error } = snapshot;
  const end = state === 'complete' ? state : (error?.code ?? state);
  return { end, error: error?.text ?? '', frozenMs, problems };
}

interface Thaw extends SeenThawed {
  /** By the guest's kernel, when it was asked first. */
  readonly wasFrozen: boolean;
  readonly problems: readonly string[];
}

/** Waits until writes to the guest's file systems go through, by the guest's own word. */
async function untilThawed({ lab: { guest } }: World): Promise<Thaw> {
  const askedAt = Date.now();
  const wasFrozen = await guest.isFrozen();
  const problems = await guest.waitUntilThawed(PATIENCE_MS).then(
    () => [],
    () => [`the guest is frozen for ${PATIENCE_MS / 1000} s although a thaw is possible`],
  );
  return { wasFrozen, askedAt, thawedAt: Date.now(), problems };
}

/** By libvirt's log; by the guest's kernel where libvirt was not there to see the freeze. ms. */
function frozenFor(
  log: LibvirtLog,
  { possibleAt, wasFrozen, ...seen }: Thaw & { readonly possibleAt: number },
): number {
  const isLogged = log.frozenTimes().some(({ fromMs }) => fromMs <= seen.thawedAt);
  const unlogged = wasFrozen && !isLogged ? seen.thawedAt - possibleAt : 0;
  return Math.max(unlogged, frozenMsAfter(possibleAt, log, seen));
}

/** While a fault keeps the thaw back the API must say so where a person looks. */
async function untilShown(world: World, { shown, lastsMs }: Fault): Promise<string[]> {
  let last = '';
  const seen = world.until(
    `the VM is shown as ${shown}`,
    async () => {
      const { body } = await world.system.request<VmView>('GET', `/v1/vms/${VM}`);
      last = `${body.stale ? 'stale, ' : ''}${body.hold?.freezeState ?? 'nobody holds it'}: ${body.hold?.detail ?? ''}`;
      if (shown === 'stale') return body.stale ? true : undefined;
      // A freeze whose answer was lost with the fault may have happened: more is not known to anybody then.
      const isTold = body.hold?.freezeState === 'still-frozen' || body.hold?.freezeState === 'maybe-frozen';
      return isTold && body.hold?.detail !== '' ? true : undefined;
    },
    lastsMs,
  );
  return seen.then(
    () => [],
    () => [`while it was frozen the VM was not shown as ${shown}, but as '${last}'`],
  );
}

/** The run's end: a snapshot with a true grade, or none and the cause; what is pending can be cleaned up now. */
async function endedTruly(world: World, fault: Fault, step: Step, snapshot: SnapshotView): Promise<string[]> {
  const { id, state, grade, error, pending } = snapshot;
  if (state === 'complete') {
    const problems = grade === 'filesystem' ? await world.inconsistencies(snapshot) : [`it is graded ${grade}`];
    await world.system.deleteSnapshot(id);
    return problems;
  }
  // Its run is dead, and the doctor has taken back what it left: the error was the run's, if there was one.
  if (state === 'deleted') return pending.length === 0 ? [] : [`pending: ${pending.join(' ')}`];
  const problems: string[] = [];
  const cause = `${error?.code}: ${error?.text}`;
  const isCancelled = step.name === 'undoing' && error?.code === 'CANCELLED';
  if (!isCancelled && !fault.cause.test(cause)) problems.push(`the error does not name the cause: ${cause}`);
  if (grade !== null) problems.push(`a snapshot that is ${state} is graded ${grade}`);
  if (state !== 'cleanup-pending')
    return pending.length === 0 ? problems : [...problems, `pending: ${pending.join(' ')}`];
  if (!fault.leavesPending) problems.push(`cleanup pending: ${pending.join(' ')}`);
  const cleaned = await world.system.stillpoint('snapshot', 'cleanup', id, '--wait');
  if (cleaned.exitCode !== 0) problems.push(`snapshot cleanup: ${cleaned.stdout}${cleaned.stderr}`.trim());
  return problems;
}

/** Nobody has anything to tidy up, and the next snapshot is what it has to be. */
async function nextOneWorks(world: World): Promise<string[]> {
  const problems: string[] = [];
  const findings = await doctorsFindings(world);
  problems.push(...findings.map((finding) => `the doctor finds ${finding}`));
  const next = await world.snapshot();
  if (next.state !== 'complete') {
    return [...problems, `the next snapshot is ${next.state}: ${next.error?.code}: ${next.error?.text}`];
  }
  if (next.grade !== 'filesystem') problems.push(`the next snapshot is graded ${next.grade}`);
  await world.system.deleteSnapshot(next.id);
  return problems;
}

async function doctorsFindings(world: World): Promise<string[]> {
  const { system } = world;
  const { body: begun } = await system.request<DoctorRun>('POST', '/v1/doctor');
  const report = await world.until('the doctor has looked', async () => {
    const { body } = await system.request<DoctorRun>('GET', `/v1/doctor/${begun.id}?wait=20`);
    if (body.state === 'failed') throw new Error(`The doctor failed: ${body.error?.text}`);
    return body.report ?? undefined;
  });
  return report.findings.map(({ code, text }) => `${code}: ${text}`);
}

/** Rejects where the promise takes longer; it goes on. */
export async function within<T>(limitMs: number, what: string, promise: Promise<T>): Promise<T> {
  const over = new AbortController();
  const late = delay(limitMs, undefined, { signal: over.signal }).then(() => {
    throw new Error(`Not within ${limitMs / 1000} s: ${what}`);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    over.abort();
    late.catch(() => undefined);
  }
}
