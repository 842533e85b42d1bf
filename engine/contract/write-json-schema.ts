import { mkdir, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';

import { jsonSchemaFiles } from './json-schema.js';

// `npm run schema -w engine`: writes docs/schema/ anew from the zod source. Argument: that folder.
const folder = resolve(process.argv[2] ?? 'docs/schema');
await mkdir(folder, { recursive: true });
for (const [file, text] of jsonSchemaFiles()) {
  await writeFile(resolve(folder, file), text);
  process.stdout.write(`${resolve(folder, file)}\n`);
}
