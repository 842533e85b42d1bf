import { readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import type { PeerCertificate } from 'node:tls';
import { ChannelCredentials } from '@grpc/grpc-js';
import { HostError } from './errors.js';

/** Files of the engine's side of mTLS, as `stillpoint-host-agent certs` makes them. */
export interface TlsFiles {
  /** The CA that has signed every host's certificate. */
  ca: string;
  /** The engine's client certificate (URI `stillpoint:engine`). */
  certificate: string;
  key: string;
}

/** How hosts are talked to: mTLS, or without any protection, which is for host agents on this machine only. */
export type Security = { tls: TlsFiles } | { plain: true };

/** Makes the credentials of one host's connections. `onIdentity` hears at every connection whether the certificate carries the host's name. */
export type CredentialsOf = (
  host: { name: string; address: string },
  onIdentity: (problem: string | undefined) => void,
) => ChannelCredentials;

/** Reads the certificates once; a changed file needs a restart. Errors: those of the file system, naming the file. */
export async function credentialsFrom(security: Security): Promise<CredentialsOf> {
  if ('plain' in security) return plainOnLoopback;
  // One after another: of several that are missing the first is named, and not whichever failed first.
  const ca = await readFile(security.tls.ca);
  const certificate = await readFile(security.tls.certificate);
  const key = await readFile(security.tls.key);
  return (host, onIdentity) =>
    ChannelCredentials.createSsl(ca, key, certificate, {
      checkServerIdentity: (_name, peer) => {
        const problem = identityProblem(host.name, peer);
        onIdentity(problem);
        return problem === undefined ? undefined : new Error(problem);
      },
    });
}

/** The certificate must carry exactly the registered name: a wildcard would let one host stand in for another. */
function identityProblem(name: string, peer: PeerCertificate): string | undefined {
  const names = (peer.subjectaltname ?? '').split(', ').filter((entry) => entry.startsWith('DNS:'));
  if (names.includes(`DNS:${name}`)) return undefined;
  return `its certificate is for ${names.map((entry) => entry.slice(4)).join(', ') || 'no host'}, not for ${name}`;
}

const plainOnLoopback: CredentialsOf = ({ name, address }) => {
  if (!isLoopback(address)) {
    throw new HostError(name, 'HOST_NEEDS_TLS', `Host ${name} is at ${address}, which is not on this machine.`);
  }
  return ChannelCredentials.createInsecure();
};

function isLoopback(address: string): boolean {
  const host = address.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}
