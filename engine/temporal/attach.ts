import { setTimeout as delay } from 'node:timers/promises';
import { isGrpcServiceError } from '@temporalio/client';
import { type NativeConnection, TransportError, type Worker } from '@temporalio/worker';
import type { Logger } from 'pino';

import { type ConnectedClient, connectWorker, requireNamespace, type TemporalSettings } from './connection.js';
import { reasonOf, TemporalError } from './errors.js';
import { type AnySearchAttributeKey, registerSearchAttributes } from './search-attributes.js';

export interface AttachOptions {
  readonly settings: TemporalSettings;
  readonly connected: ConnectedClient;
  readonly searchAttributes: readonly AnySearchAttributeKey[];
  /** Asked before anything runs on the namespace; its id is undefined where the cluster does not tell. What it throws ends the tries. */
  readonly admit?: (namespaceId: string | undefined) => Promise<void>;
  /** Absent: no worker is wanted. */
  readonly makeWorker?: (connection: NativeConnection) => Promise<Worker>;
  readonly log: Logger;
  /** Ends the tries. */
  readonly signal: AbortSignal;
  /** The longest pause between two tries, ms. Default 5 000. */
  readonly longestPauseMs?: number;
}

/** The cluster knows the search attributes; the worker, if one was wanted, is made and not yet run. */
export interface Attached {
  readonly worker: Worker | undefined;
  close(): Promise<void>;
}

const firstPauseMs = 250;
const answerWithinMs = 3_000;

/**
 * Prepares the cluster and makes the worker, and tries again, visibly, for as long as it takes: a cluster that is away for a while, or that an
 * administrator has not prepared yet, must not keep the engine from telling who is frozen and from thawing.
 *
 * Rejects with what is no fault of the cluster (a missing bundle, say), and with the signal's reason.
 */
export async function attach(options: AttachOptions): Promise<Attached> {
  const { log, settings, signal, longestPauseMs = 5_000 } = options;
  for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
    signal.throwIfAborted();
    try {
      return await attachOnce(options);
    } catch (error) {
      signal.throwIfAborted();
      if (!isTheClusters(error)) throw error;
      log.warn(
        {
          address: settings.connection.address,
          code: error instanceof TemporalError ? error.code : undefined,
          pauseMs,
        },
        `Not ready, will try again: ${error instanceof TemporalError ? error.message : `Temporal does not answer (${reasonOf(error)})`}`,
      );
      await delay(pauseMs, undefined, { signal });
    }
  }
}

async function attachOnce({
  settings,
  connected,
  searchAttributes,
  admit,
  makeWorker,
}: AttachOptions): Promise<Attached> {
  const { connection } = connected;
  // Without a deadline the client would repeat its calls for a minute by itself, and nobody would see that.
  await connection.withDeadline(Date.now() + answerWithinMs, () => connection.workflowService.getSystemInfo({}));
  const namespaceId = await requireNamespace(connection, settings.namespace);
  await admit?.(namespaceId);
  await registerSearchAttributes(connection, settings.namespace, searchAttributes);
  if (makeWorker === undefined) return { worker: undefined, close: async () => {} };
  const native = await connectWorker(settings);
  try {
    return { worker: await makeWorker(native), close: () => native.close() };
  } catch (error) {
    await native.close();
    throw error;
  }
}

function isTheClusters(error: unknown): boolean {
  return error instanceof TemporalError || error instanceof TransportError || isGrpcServiceError(error);
}
