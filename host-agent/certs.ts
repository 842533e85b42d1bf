import 'reflect-metadata';
import { webcrypto } from 'node:crypto';
import { mkdir, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as x509 from '@peculiar/x509';
import { engineIdentity } from './rpc/identity.js';

/**
 * The three kinds of certificates that Stillpoint's gRPC uses, and no others: one CA of its own, the engine's client certificate
 * (URI `stillpoint:engine`, clientAuth), and a server certificate for each host (DNS name = its registered name, serverAuth).
 */

// webcrypto's types are node's own and the DOM's at once: the library asks for the latter.
x509.cryptoProvider.set(webcrypto as unknown as Parameters<typeof x509.cryptoProvider.set>[0]);

const keyAlgorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const dayMs = 24 * 60 * 60 * 1000;
const caDays = 3_650;
const leafDays = 825;

/** Thrown when certificates cannot be made: a file is in the way, the CA is missing, a name is none. `cause` is the file system's error. */
export class CertificateError extends Error {
  override readonly name = 'CertificateError';
}

/** Makes a new CA in `folder` (ca.pem, ca-key.pem). An existing one is never replaced: every certificate would be void. Errors: CertificateError. */
export async function makeCa(folder: string): Promise<string[]> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const keys = await newKeys();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    ...lifetime(caDays),
    serialNumber: serialNumber(),
    name: 'CN=Stillpoint CA',
    keys,
    signingAlgorithm: keyAlgorithm,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return write(folder, 'ca', certificate, keys);
}

/** Makes the engine's client certificate with the CA in `folder` (engine.pem, engine-key.pem). Errors: CertificateError. */
export async function makeEngineCertificate(folder: string): Promise<string[]> {
  return makeLeaf(
    folder,
    'engine',
    `CN=${engineIdentity}`,
    [{ type: 'url', value: engineIdentity }],
    x509.ExtendedKeyUsage.clientAuth,
  );
}

/** Makes the server certificate of the host registered as `hostName` with the CA in `folder` (<name>.pem, <name>-key.pem). Errors: CertificateError. */
export async function makeHostCertificate(folder: string, hostName: string): Promise<string[]> {
  if (!/^(?=.{1,63}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$/.test(hostName)) {
    throw new CertificateError(
      `${JSON.stringify(hostName)} is no host name: use lower-case letters, digits, - and dots, at most 63.`,
    );
  }
  if (hostName === 'ca' || hostName === 'engine')
    throw new CertificateError(`A host cannot be called ${hostName}: its files would be another's.`);
  return makeLeaf(
    folder,
    hostName,
    `CN=${hostName}`,
    [{ type: 'dns', value: hostName }],
    x509.ExtendedKeyUsage.serverAuth,
  );
}

async function makeLeaf(
  folder: string,
  file: string,
  subject: string,
  names: x509.JsonGeneralNames,
  usage: x509.ExtendedKeyUsage,
): Promise<string[]> {
  const ca = await readCa(folder);
  const keys = await newKeys();
  const certificate = await x509.X509CertificateGenerator.create({
    ...lifetime(leafDays),
    serialNumber: serialNumber(),
    subject,
    issuer: ca.certificate.subject,
    publicKey: keys.publicKey,
    signingKey: ca.key,
    signingAlgorithm: keyAlgorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([usage], true),
      new x509.SubjectAlternativeNameExtension(names),
      await x509.AuthorityKeyIdentifierExtension.create(ca.certificate.publicKey),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return write(folder, file, certificate, keys);
}

async function readCa(folder: string): Promise<{ certificate: x509.X509Certificate; key: webcrypto.CryptoKey }> {
  try {
    const certificate = new x509.X509Certificate(await readFile(join(folder, 'ca.pem'), 'utf8'));
    const der = x509.PemConverter.decodeFirst(await readFile(join(folder, 'ca-key.pem'), 'utf8'));
    const key = await webcrypto.subtle.importKey('pkcs8', der, keyAlgorithm, false, ['sign']);
    return { certificate, key };
  } catch (cause) {
    throw new CertificateError(
      `There is no readable CA in ${folder}. Make one: stillpoint-host-agent certs init --out ${folder}`,
      { cause },
    );
  }
}

function newKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(keyAlgorithm, true, ['sign', 'verify']);
}

function lifetime(days: number): { notBefore: Date; notAfter: Date } {
  // An hour back: the clocks of two hosts differ.
  const notBefore = new Date(Date.now() - 60 * 60 * 1000);
  return { notBefore, notAfter: new Date(notBefore.getTime() + days * dayMs) };
}

/** 127 random bits: a serial number must be positive. */
function serialNumber(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16));
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return Buffer.from(bytes).toString('hex');
}

async function write(
  folder: string,
  file: string,
  certificate: x509.X509Certificate,
  keys: webcrypto.CryptoKeyPair,
): Promise<string[]> {
  const key = x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY');
  const written: string[] = [];
  for (const [path, text] of [
    [join(folder, `${file}-key.pem`), `${key}\n`],
    [join(folder, `${file}.pem`), `${certificate.toString('pem')}\n`],
  ] as const) {
    await writeNew(path, text);
    written.push(path);
  }
  return written;
}

async function writeNew(path: string, text: string): Promise<void> {
  try {
    const handle = await open(path, 'wx', 0o600);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (cause) {
    const exists = (cause as NodeJS.ErrnoException).code === 'EEXIST';
    throw new CertificateError(
      exists
        ? `${path} exists and is not replaced. Move it away first if it is to be made anew.`
        : `${path} cannot be written.`,
      { cause },
    );
  }
}
