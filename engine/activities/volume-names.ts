import type { Grade, Plan } from '@stillpoint/workflows';

/**
 * What Stillpoint writes on its Cinder snapshots, for OpenStack's administrators and for finding them again: nothing without our installation's id is ours.
 */
const keys = {
  installation: 'stillpoint_installation',
  snapshot: 'stillpoint_snapshot',
  window: 'stillpoint_window',
} as const;

const gradeKey = 'stillpoint_grade';

/** Cinder's limit for a name, a description and a metadata value, characters. */
const longest = 255;

/**
 * A text as every Cinder takes it; what it refuses it would refuse in the window. Longer ones are cut. Its database is mostly MySQL's `utf8`, which has no
 * characters of four bytes (emoji).
 */
export function fitting(text: string): string {
  const plain = text.replace(/\p{Cc}/gu, ' ').replace(/[\p{Cs}\u{10000}-\u{10ffff}]/gu, '\u{fffd}');
  return plain.slice(0, longest);
}

/** For people who look into Cinder. What matters most comes first, for the end may be cut off. `now`: what is known of the snapshot. */
export function descriptionOf(
  plan: Pick<Plan, 'snapshotId' | 'vm'>,
  { target, set }: { target: string; set: readonly string[] },
  now: string,
): string {
  const others = set.filter((other) => other !== target);
  const withOthers = others.length === 0 ? '' : ` Together with ${others.join(', ')}.`;
  return fitting(
    `Stillpoint: ${target} of VM ${plan.vm.name} (${plan.vm.uuid}). ${now} Delete it there: stillpoint snapshot delete ${plan.snapshotId}.${withOthers}`,
  );
}

/** Everything that a cut writes. The grade is not among it: it is not known before the thaw. */
export function metadataOf(of: {
  installation: string;
  snapshot: string;
  window: string;
  vm: Plan['vm'];
  disk: { target: string };
  plan: Pick<Plan, 'setDisks' | 'volumes'>;
}): Record<string, string> {
  return {
    [keys.installation]: of.installation,
    [keys.snapshot]: of.snapshot,
    [keys.window]: of.window,
    stillpoint_vm: of.vm.uuid,
    stillpoint_vm_name: fitting(of.vm.name),
    stillpoint_disk: of.disk.target,
    stillpoint_set: fitting(of.plan.setDisks.join(',')),
  };
}

/** Of all that a cut writes, what names its window: for looking for it. */
export function windowMetadata(metadata: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.values(keys).map((key) => [key, metadata[key] ?? '']));
}

/** What names everything of a window, or of all windows of a snapshot. */
export function ownMetadata(of: { installation: string; snapshot: string; window?: string }): Record<string, string> {
  return {
    [keys.installation]: of.installation,
    [keys.snapshot]: of.snapshot,
    ...(of.window === undefined ? {} : { [keys.window]: of.window }),
  };
}

/** What names everything of our installation. */
export function installationMetadata(installation: string): Record<string, string> {
  return { [keys.installation]: installation };
}

/** The snapshot that a Cinder snapshot's metadata names; empty where it names none. */
export function snapshotOf(metadata: Record<string, string>): string {
  return metadata[keys.snapshot] ?? '';
}

/** What is added once it is known. */
export function gradeMetadata(grade: Grade): Record<string, string> {
  return { [gradeKey]: grade };
}

/** Whether a grade was added: only to what is recorded. */
export function isGraded(metadata: Record<string, string>): boolean {
  return metadata[gradeKey] !== undefined;
}
