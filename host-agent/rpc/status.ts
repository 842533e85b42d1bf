import { Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { Any, ErrorInfo, Status } from '@stillpoint/proto';
import { errorRow, type HostAgentErrorCode, isHostAgentError } from '../errors.js';

/** ErrorInfo.domain of every error of the host agent. */
export const errorDomain = 'stillpoint.host';

/** What grpc-js sends when a handler fails. */
export type RpcFailure = Pick<ServiceError, 'code' | 'details' | 'metadata' | 'name' | 'message'>;

// Trailers are HTTP/2 headers: peers refuse them from 8 to 64 KiB on, and percent-encoding triples what is not ASCII.
const maxMessageCharacters = 1_000;
const maxMetadataCharacters = 500;
const maxMetadataEntries = 16;

/**
 * The error as it travels: gRPC status of the table, text and advice as grpc-message, and google.rpc.Status with one ErrorInfo
 * (reason = the stable code; metadata = the error's own, and `advice`). Anything but a HostAgentError is INTERNAL.
 */
export function toRpcFailure(error: unknown): RpcFailure {
  const code: HostAgentErrorCode = isHostAgentError(error) ? error.code : 'INTERNAL';
  const message = safeText(error instanceof Error ? error.message : String(error), maxMessageCharacters);
  const row = errorRow(code);
  const grpcCode = grpcStatusByName(row.status);
  const metadata: Record<string, string> = { advice: row.advice };
  if (isHostAgentError(error)) {
    for (const [key, value] of Object.entries(error.metadata).slice(0, maxMetadataEntries)) {
      metadata[key] = safeText(value, maxMetadataCharacters);
    }
  }
  const info = ErrorInfo.encode({ reason: code, domain: errorDomain, metadata }).finish();
  const details = Any.create({ typeUrl: 'type.googleapis.com/google.rpc.ErrorInfo', value: Buffer.from(info) });
  const trailers = new Metadata();
  trailers.set(
    'grpc-status-details-bin',
    Buffer.from(Status.encode({ code: grpcCode, message, details: [details] }).finish()),
  );
  return { name: 'HostAgentError', message, code: grpcCode, details: `${message} ${row.advice}`, metadata: trailers };
}

function grpcStatusByName(name: string): status {
  const code = (status as unknown as Record<string, status | string>)[name];
  return typeof code === 'number' ? code : status.UNKNOWN;
}

/** Bounded, without control characters, and well-formed: grpc-js throws on a lone surrogate, and guests and libvirt choose these texts. */
function safeText(text: string, maxCharacters: number): string {
  const wellFormed = Buffer.from(text, 'utf8').toString('utf8');
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out.
  const printable = wellFormed.replace(/[\u0000-\u001f\u007f]+/g, ' ');
  if (printable.length <= maxCharacters) return printable;
  return `${Buffer.from(printable.slice(0, maxCharacters), 'utf8').toString('utf8')}…`;
}
