import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundleWorkflowCode, DefaultLogger } from '@temporalio/worker';
import type { TestProject } from 'vitest/node';
import { installedTemporal } from './fixtures/installed-command.js';

declare module 'vitest' {
  interface ProvidedContext {
    /** The file of the workflows' bundle, as the worker gets it. */
    workflowBundle: string;
  }
}

/**
 * Before the first file: on a bare machine the server is built, which takes minutes and is told as it goes; and the workflows are bundled from their sources,
 * once for all files.
 */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  await installedTemporal();
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-workflows-'));
  const { code } = await bundleWorkflowCode({
    workflowsPath: fileURLToPath(new URL('../../workflows/flows.ts', import.meta.url)),
    logger: new DefaultLogger('WARN'),
  });
  const file = join(folder, 'workflows.js');
  await writeFile(file, code);
  project.provide('workflowBundle', file);
  return () => rm(folder, { recursive: true });
}
