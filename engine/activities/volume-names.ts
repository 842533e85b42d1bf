import type { Grade, Plan } from '@stillpoint/workflows';

/**
 * What Stillpoint writes on its Cinder snapshots, for OpenStack's administrators and for finding them again: nothing without our installation's id is ours.
 */
const keys = {
  installation: 'stillpoint_installation',
  snapshot: 'stillpoint_snapshot',
  window: 'stillpoint_window',
} as const;

/** Cinder's limit for a metadata value. */
const longest = 255;

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
    stillpoint_vm_name: of.vm.name.slice(0, longest),
    stillpoint_disk: of.disk.target,
    stillpoint_set: of.plan.setDisks.join(',').slice(0, longest),
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

/** What is added once it is known. */
export function gradeMetadata(grade: Grade): Record<string, string> {
  return { stillpoint_grade: grade };
}
