/** A bug that is planted in a copy of the sources, to see that the net finds it. */
export interface PlantedBug {
  name: string;
  /** Of docs/architecture.md section 3. */
  invariant: number;
  /** What somebody might do. */
  what: string;
  file: string;
  /** Must be in the file once, and only once. */
  line: string;
  broken: string;
}

/** One for each invariant. */
export const plantedBugs: readonly PlantedBug[] = [
  {
    name: 'restart-forgets',
    invariant: 1,
    what: 'A host agent that comes back does not pay the thaws that its journal says are owed.',
    file: 'host-agent/freeze/recovery.ts',
    line: `      .owe({ window, domainId, seenFrozen: history.frozen.has(window) })
      .thaw();`,
    broken: `      .owe({ window, domainId, seenFrozen: history.frozen.has(window) });`,
  },
  {
    name: 'one-thaw',
    invariant: 2,
    what: 'The freeze room tries a thaw once, and then nobody owes it any more.',
    file: 'host-agent/freeze/debt.ts',
    line: '      if (settlement !== undefined) return settlement;',
    broken: '      if (settlement !== undefined || this.#mustThaw) return settlement;',
  },
  {
    name: 'hopeful-grade',
    invariant: 3,
    what: 'A freeze that was lost is graded as one that held.',
    file: 'workflows/grade.ts',
    line: '  if (verdict?.held && uncovered.length === 0',
    broken: '  if (verdict && uncovered.length === 0',
  },
  {
    name: 'undo-does-not-ask',
    invariant: 4,
    what: 'The undo does not ask Cinder for the snapshots of cuts that were begun.',
    file: 'workflows/window.ts',
    line: '      this.#mayBeThere.add(disk.target);',
    broken: '',
  },
  {
    name: 'record-once',
    invariant: 5,
    what: 'A record that is repeated after its connection was lost is refused as if it were another run.',
    file: 'engine/catalogue/sql-catalogue.ts',
    line: "already: ['recording', 'complete'] }",
    broken: 'already: [] }',
  },
  {
    name: 'catalogue-in-the-window',
    invariant: 6,
    what: 'A cut looks into the catalogue while the guest is frozen.',
    file: 'engine/activities/volume-cut.ts',
    line: '  const { cinder, hold } = tools;',
    broken: '  const { cinder, hold } = tools;\n  await deps.catalogue.getSnapshot(request.plan.snapshotId);',
  },
  {
    name: 'any-id-with-the-vm',
    invariant: 7,
    what: 'A run is taken under every workflow id that names the VM.',
    file: 'engine/activities/accept.ts',
    line: '  if (workflowId === right) return;',
    broken: '  if (workflowId.endsWith(vm)) return;',
  },
  {
    name: 'any-error-is-gone',
    invariant: 8,
    what: "Any error of Cinder's is read as 'there is no such snapshot'.",
    file: 'engine/activities/volume-removal.ts',
    line: "    if (isCinderError(error, 'VOLUME_SNAPSHOT_NOT_FOUND')) return undefined;\n    throw error;",
    broken: '    if (isCinderError(error)) return undefined;\n    throw error;',
  },
  {
    name: 'delete-without-commit',
    invariant: 9,
    what: 'The overlay of a VM that is off is deleted without being committed.',
    file: 'host-agent/snapshot/take-back.ts',
    line: '    await images.commitOffline(image.real);',
    broken: '',
  },
  {
    name: 'anybodys-volume',
    invariant: 10,
    what: 'A volume is snapshotted though Cinder has it attached to another VM.',
    file: 'engine/activities/volume-disks.ts',
    line: '  if (instances.includes(vm.uuid.toLowerCase())) return;',
    broken: '  if (instances.length > 0) return;',
  },
];
