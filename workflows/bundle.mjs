// Bundles the compiled workflows into the one file that the worker runs (`workflowBundle: { codePath }`).
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile, rename, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, 'dist');
const bundle = join(dist, 'workflow-bundle.js');
const hashFile = join(dist, 'workflow-bundle.sha256');

const inputs = await hashOfInputs();
const bundled = existsSync(bundle) ? await readFile(hashFile, 'utf8').catch(() => '') : '';
if (bundled !== inputs) {
  // Loading the bundler takes longer than the check, so only now.
  const { bundleWorkflowCode, DefaultLogger } = await import('@temporalio/worker');
  const { code } = await bundleWorkflowCode({
    workflowsPath: join(dist, 'flows.js'),
    logger: new DefaultLogger('WARN'),
  });
  await writeFile(`${bundle}.new`, code);
  await rename(`${bundle}.new`, bundle);
  await writeFile(hashFile, inputs);
}

/** What the bundle is made of: our compiled files, this script, and the SDK (by its version, which is pinned). */
async function hashOfInputs() {
  const ours = (await readdir(dist, { recursive: true })).filter(
    (name) => name.endsWith('.js') && join(dist, name) !== bundle,
  );
  const require = createRequire(import.meta.url);
  const files = [
    ...ours.sort().map((name) => [name, join(dist, name)]),
    ['bundle.mjs', fileURLToPath(import.meta.url)],
    ['@temporalio/workflow', require.resolve('@temporalio/workflow/package.json')],
    ['@temporalio/worker', require.resolve('@temporalio/worker/package.json')],
  ];
  const hash = createHash('sha256');
  for (const [name, path] of files) {
    const content = await readFile(path);
    hash.update(`${name} ${content.byteLength}\n`).update(content);
  }
  return hash.digest('hex');
}
