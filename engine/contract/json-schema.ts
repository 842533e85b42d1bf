import { z } from 'zod';

import { deleteSnapshotInput, snapshotVmInput } from './snapshot-input.js';
import { deleteSnapshotResult, snapshotVmResult } from './snapshot-result.js';

const published = {
  'snapshot-vm-input.json': {
    title: 'Input of the workflow snapshotVm',
    schema: snapshotVmInput,
    io: 'input',
  },
  'snapshot-vm-result.json': {
    title: 'Result of the workflow snapshotVm',
    schema: snapshotVmResult,
    io: 'output',
  },
  'delete-snapshot-input.json': {
    title: 'Input of the workflow deleteSnapshot',
    schema: deleteSnapshotInput,
    io: 'input',
  },
  'delete-snapshot-result.json': {
    title: 'Result of the workflow deleteSnapshot',
    schema: deleteSnapshotResult,
    io: 'output',
  },
} as const;

/** The files of docs/schema/: name -> text. */
export function jsonSchemaFiles(): Map<string, string> {
  return new Map(
    Object.entries(published).map(([file, { title, schema, io }]) => {
      const { $schema, ...rest } = z.toJSONSchema(schema, {
        io,
        override: ({ jsonSchema }) => allowMore(jsonSchema, io),
      });
      return [file, `${JSON.stringify({ $schema, title, ...rest }, null, 2)}\n`];
    }),
  );
}

/** A result may gain fields in a later version, so a reader must not be told to refuse them. */
function allowMore(schema: z.core.JSONSchema.BaseSchema, io: 'input' | 'output'): void {
  if (io === 'output') delete schema.additionalProperties;
}
