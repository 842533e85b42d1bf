import { HostAgentError } from '../errors.js';
import type { Disk } from '../hypervisor.js';
import { BlockCommitFlag, BlockJobAbortFlag, type LibvirtClient } from './client.js';
import { type Mirror, readDomainXml } from './domain-xml.js';
import { ErrorNumber, LibvirtError } from './errors.js';
import type { BlockJobEvent, Domain } from './procedures.js';

/** virDomainBlockJobType. */
const ACTIVE_COMMIT = 4;
/** Progress is asked for so often, in ms; also what notices the end of a job whose event was lost with a connection. */
const POLL_MS = 500;
/** libvirt waits 30 s for the domain's job, and then for storage: an answer of its own is worth more than a timeout of ours. In ms. */
const CALL_MS = 120_000;

export interface CommitOptions {
  onProgress?: (progress: { doneBytes: number; totalBytes: number }) => void;
  signal?: AbortSignal;
}

/** Reads one disk of the running domain, behind the domain's job. */
export type ReadDisk = () => Promise<Disk>;

/**
 * Commits one image of a disk's live chain into the image below it, and pivots where it is the active one. Resolves when the chain no longer
 * holds it; joins the same job where it runs already.
 *
 * @param image a path of the disk's chain.
 *
 * Errors: BLOCK_JOB_ACTIVE, MERGE_FAILED, LibvirtError, LibvirtConnectionError, and the signal's reason.
 */
export async function commitImage(
  client: LibvirtClient,
  domain: Domain,
  disk: Disk,
  image: string,
  readDisk: ReadDisk,
  options: CommitOptions,
): Promise<void> {
  const at = disk.chain.findIndex(({ path }) => path === image);
  const base = disk.chain[at + 1];
  const isActive = at === 0;
  if (base === undefined) {
    throw new HostAgentError('MERGE_FAILED', `${image} has no image below it that is a file or a block device.`);
  }

  const running = await client.getBlockJobInfo(domain, disk.target, { timeoutMs: CALL_MS });
  if (running === null) {
    const flags = isActive ? BlockCommitFlag.active : 0;
    const images = { base: base.path, top: image };
    await client.blockCommit(domain, disk.target, images, flags, { timeoutMs: CALL_MS });
  } else {
    // Only of an active commit can be told what it commits, and where to: one into a deeper base is another program's, and not ours to complete.
    const mirror = isActive && running.type === ACTIVE_COMMIT ? await mirrorOf(client, domain, disk.target) : undefined;
    if (mirror === undefined || !mirror.isActiveCommit || mirror.path !== base.path) {
      throw new HostAgentError('BLOCK_JOB_ACTIVE', `A block job of type ${running.type} runs on ${disk.target}.`);
    }
  }

  await untilEnded(client, domain, disk.target, isActive, options);

  const after = await readDisk();
  if (after.chain.some(({ path }) => path === image)) {
    throw new HostAgentError(
      'MERGE_FAILED',
      `The block commit of ${disk.target} ended, and its chain still holds ${image}.`,
    );
  }
}

/** Looks at the job at each of its events, and every POLL_MS, until there is none. */
async function untilEnded(
  client: LibvirtClient,
  domain: Domain,
  disk: string,
  isActive: boolean,
  { onProgress, signal }: CommitOptions,
): Promise<void> {
  for (;;) {
    const changed = nextChange(client, domain, disk, signal);
    try {
      signal?.throwIfAborted();
      const job = await client.getBlockJobInfo(domain, disk, { timeoutMs: CALL_MS });
      if (job === null) return;
      onProgress?.({ doneBytes: Number(job.cursor), totalBytes: Number(job.end) });
      // libvirt reports an end beyond the cursor until the job is ready (virDomainGetBlockJobInfo), and of a guest that never pauses in its
      // writing also afterwards: the job always lags a little then, and the definition alone tells that it is ready.
      const isReady = async () => job.cursor === job.end || (await mirrorOf(client, domain, disk))?.isReady === true;
      if (isActive && (await isReady()) && (await pivot(client, domain, disk))) continue;
      await changed.promise;
    } finally {
      changed.stop();
    }
  }
}

async function mirrorOf(client: LibvirtClient, domain: Domain, disk: string): Promise<Mirror | undefined> {
  return readDomainXml(await client.getXml(domain)).mirrors.get(disk);
}

/** Switches the disk to the committed image; false when the job is not ready after all. */
async function pivot(client: LibvirtClient, domain: Domain, disk: string): Promise<boolean> {
  try {
    await client.blockJobAbort(domain, disk, BlockJobAbortFlag.pivot, { timeoutMs: CALL_MS });
    return true;
  } catch (error) {
    // 'not ready for pivot yet', or ended meanwhile: the next look tells.
    const numbers: readonly number[] = [
      ErrorNumber.blockCopyActive,
      ErrorNumber.operationInvalid,
      ErrorNumber.invalidArg,
    ];
    if (error instanceof LibvirtError && numbers.includes(error.number)) return false;
    throw error;
  }
}

/** Resolves at the disk's next event, at a reconnection, or after POLL_MS; rejects with the signal's reason. */
function nextChange(
  client: LibvirtClient,
  domain: Domain,
  disk: string,
  signal: AbortSignal | undefined,
): { promise: Promise<void>; stop: () => void } {
  let stop = (): void => {};
  const promise = new Promise<void>((resolve, reject) => {
    const onEvent = (event: BlockJobEvent) => {
      if (event.domain.uuid === domain.uuid && event.disk === disk) resolve();
    };
    const onAbort = () => reject(signal?.reason);
    const timer = setTimeout(resolve, POLL_MS);
    client.on('blockJob', onEvent);
    signal?.addEventListener('abort', onAbort, { once: true });
    stop = () => {
      clearTimeout(timer);
      client.off('blockJob', onEvent);
      signal?.removeEventListener('abort', onAbort);
    };
  });
  promise.catch(() => {}); // where an error ends the wait first
  return { promise, stop };
}
