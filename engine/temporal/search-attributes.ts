import { setTimeout as delay } from 'node:timers/promises';

import { type Connection, isGrpcServiceError } from '@temporalio/client';
import type { SearchAttributeType } from '@temporalio/common';

import { reasonOf, TemporalError } from './errors.js';

/** gRPC status codes (https://grpc.io/docs/guides/status-codes). */
const grpc = { invalidArgument: 3, alreadyExists: 6, permissionDenied: 7, unimplemented: 12, unauthenticated: 16 };

/** A search attribute of any type, as made by `defineSearchAttributeKey`. */
export interface AnySearchAttributeKey {
  readonly name: string;
  readonly type: SearchAttributeType;
}

/** Temporal's API: enum temporal.api.enums.v1.IndexedValueType, and how the `temporal` command spells it. */
const indexedTypes: Readonly<Record<SearchAttributeType, { readonly value: number; readonly inCommand: string }>> = {
  TEXT: { value: 1, inCommand: 'Text' },
  KEYWORD: { value: 2, inCommand: 'Keyword' },
  INT: { value: 3, inCommand: 'Int' },
  DOUBLE: { value: 4, inCommand: 'Double' },
  BOOL: { value: 5, inCommand: 'Bool' },
  DATETIME: { value: 6, inCommand: 'Datetime' },
  KEYWORD_LIST: { value: 7, inCommand: 'KeywordList' },
};

export interface RegisterOptions {
  /** How long the cluster may take until queries know the attributes, ms. Default 90 000: its caches live a minute. */
  readonly readyTimeoutMs?: number;
  /** How often that is asked, ms. Default 200. */
  readonly pollMs?: number;
}

/**
 * Registers search attributes on a namespace and waits until they can be used; those that are there are left alone.
 *
 * @throws TemporalError SEARCH_ATTRIBUTES_REFUSED with the commands for someone who may,
 *   SEARCH_ATTRIBUTES_TYPE_CONFLICT when one exists with another type, SEARCH_ATTRIBUTES_NOT_READY
 */
export async function registerSearchAttributes(
  connection: Connection,
  namespace: string,
  keys: readonly AnySearchAttributeKey[],
  options: RegisterOptions = {},
): Promise<void> {
  // Usable without asking the operator service: an engine with few rights works where an administrator prepared it.
  const before = await existing(connection, namespace);
  if (before !== 'refused') {
    const missing = missingFrom(before, keys, namespace);
    if (missing.length > 0) await add(connection, namespace, missing);
  }
  await untilUsable(
    connection,
    namespace,
    keys,
    before === 'refused' ? 0 : (options.readyTimeoutMs ?? 90_000),
    options.pollMs ?? 200,
  );
}

async function existing(connection: Connection, namespace: string): Promise<Record<string, number> | 'refused'> {
  try {
    const { customAttributes } = await connection.operatorService.listSearchAttributes({ namespace });
    return customAttributes ?? {};
  } catch (error) {
    if (isRefusal(error)) return 'refused';
    throw error;
  }
}

function missingFrom(
  existing: Record<string, number>,
  keys: readonly AnySearchAttributeKey[],
  namespace: string,
): AnySearchAttributeKey[] {
  return keys.filter(({ name, type }) => {
    const there = existing[name];
    if (there === undefined) return true;
    if (there === indexedTypes[type].value) return false;
    throw new TemporalError(
      'SEARCH_ATTRIBUTES_TYPE_CONFLICT',
      `The search attribute ${name} exists in namespace '${namespace}' with another type than ${indexedTypes[type].inCommand}. ` +
        'Use another namespace, or remove it there: ' +
        `temporal operator search-attribute remove --namespace ${namespace} --name ${name}`,
    );
  });
}

async function add(connection: Connection, namespace: string, keys: readonly AnySearchAttributeKey[]): Promise<void> {
  const searchAttributes = Object.fromEntries(keys.map(({ name, type }) => [name, indexedTypes[type].value]));
  try {
    await connection.operatorService.addSearchAttributes({ namespace, searchAttributes });
  } catch (error) {
    // A second engine that starts at the same time may have been quicker.
    if (isGrpcServiceError(error) && (error.code as number) === grpc.alreadyExists) return;
    throw refused(namespace, keys, error);
  }
}

/** Attributes exist before every frontend's cache knows them; until then a start that sets one is refused. */
async function untilUsable(
  connection: Connection,
  namespace: string,
  keys: readonly AnySearchAttributeKey[],
  timeoutMs: number,
  pollMs: number,
): Promise<void> {
  const query = keys.map(({ name }) => `${name} IS NULL`).join(' AND ');
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      await connection.workflowService.countWorkflowExecutions({ namespace, query });
      return;
    } catch (error) {
      if (!isGrpcServiceError(error) || (error.code as number) !== grpc.invalidArgument) throw error;
      if (timeoutMs === 0) throw refused(namespace, keys, error);
      if (performance.now() > deadline) {
        throw new TemporalError(
          'SEARCH_ATTRIBUTES_NOT_READY',
          `Search attributes were registered in namespace '${namespace}', but after ${timeoutMs / 1000} s the cluster ` +
            `still refuses them (${reasonOf(error)}). Start again in a minute; if it stays so, ask its administrator.`,
          error,
        );
      }
      await delay(pollMs);
    }
  }
}

function refused(namespace: string, keys: readonly AnySearchAttributeKey[], cause: unknown): TemporalError {
  const commands = keys.map(
    ({ name, type }) =>
      `  temporal operator search-attribute create --namespace ${namespace} --name ${name} --type ${indexedTypes[type].inCommand}`,
  );
  return new TemporalError(
    'SEARCH_ATTRIBUTES_REFUSED',
    [
      `The Temporal cluster did not let us register search attributes in namespace '${namespace}' (${reasonOf(cause)}).`,
      'Someone who may should run these once (those that exist already can be left out), then start again:',
      ...commands,
    ].join('\n'),
    cause,
  );
}

/** The operator service is closed to us, or not there at all (Temporal Cloud has its own). */
function isRefusal(error: unknown): boolean {
  const refusals: number[] = [grpc.permissionDenied, grpc.unimplemented, grpc.unauthenticated];
  return isGrpcServiceError(error) && refusals.includes(error.code);
}
