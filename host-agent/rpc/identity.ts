import { ServerInterceptingCall, type ServerInterceptor } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { HostAgentError } from '../errors.js';
import { toRpcFailure } from './status.js';

/** The URI in the subject alternative name of the only certificate that may call a host agent. */
export const engineIdentity = 'stillpoint:engine';

/**
 * Lets only the engine in. TLS has checked by now that the certificate is of our CA and for clients; a host's certificate, or another one that the same CA
 * made for something else, is not the engine's, and ends here with CLIENT_NOT_ALLOWED.
 */
export function onlyTheEngine(log: Logger): ServerInterceptor {
  return (method, call) =>
    new ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata: (metadata, pass) => {
            const certificate = call.getAuthContext().sslPeerCertificate;
            if (uriNames(certificate?.subjectaltname).includes(engineIdentity)) return pass(metadata);
            const shown = certificate?.subject?.CN ?? 'without a name';
            log.warn(
              { call: method.path, peer: call.getPeer(), certificate: String(shown) },
              'client refused: not the engine',
            );
            const {
              code,
              details,
              metadata: trailers,
            } = toRpcFailure(
              new HostAgentError(
                'CLIENT_NOT_ALLOWED',
                `The client's certificate (${String(shown)}) is not the engine's.`,
              ),
            );
            call.sendStatus({ code, details, metadata: trailers });
          },
        }),
    });
}

/** URIs of a `subjectaltname` as node prints it. Node quotes names that hold separators: none of those is the engine's, and none may be taken apart. */
function uriNames(subjectAltName: string | undefined): string[] {
  return (subjectAltName ?? '')
    .replace(/"(?:[^"\\]|\\.)*"/g, 'quoted')
    .split(', ')
    .filter((name) => name.startsWith('URI:'))
    .map((name) => name.slice('URI:'.length));
}
