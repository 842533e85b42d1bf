import 'reflect-metadata';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ChannelCredentials, credentials, makeClientConstructor, type ServiceError, status } from '@grpc/grpc-js';
import * as x509 from '@peculiar/x509';
import { CertificateError, makeCa, makeEngineCertificate, makeHostCertificate } from '@stillpoint/host-agent/certs.js';
import { HostAgentClient, HostAgentService } from '@stillpoint/proto';
import { service as healthService } from 'grpc-health-check';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { ask, failure, served } from './served.js';

let folder: string;
let other: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-tls-'));
  other = await mkdtemp(join(tmpdir(), 'stillpoint-tls-'));
  for (const place of [folder, other]) {
    await makeCa(place);
    await makeEngineCertificate(place);
    await makeHostCertificate(place, 'kvm-01.example.org');
  }
});
afterAll(async () => {
  await rm(folder, { recursive: true });
  await rm(other, { recursive: true });
});

let close: (() => Promise<void>) | undefined;
afterEach(async () => {
  await close?.();
  close = undefined;
});

const pem = (place: string, file: string) => readFile(join(place, `${file}.pem`));

async function up(client: { place: string; file: string } | 'without') {
  const transport = {
    ca: await pem(folder, 'ca'),
    certificate: await pem(folder, 'kvm-01.example.org'),
    key: await pem(folder, 'kvm-01.example.org-key'),
  };
  const clientCredentials =
    client === 'without'
      ? credentials.createSsl(transport.ca)
      : credentials.createSsl(
          transport.ca,
          await pem(client.place, `${client.file}-key`),
          await pem(client.place, client.file),
        );
  const server = await served({ transport });
  close = server.close;
  const calls = (name: string, channel: ChannelCredentials = clientCredentials) =>
    new HostAgentClient(server.listening.address, channel, {
      'grpc.ssl_target_name_override': name,
      'grpc.enable_retries': 0,
    });
  return { ...server, calls, clientCredentials };
}

/** Asks once and closes. */
async function getHost(client: HostAgentClient) {
  try {
    return await ask(client, HostAgentService.getHost, {});
  } finally {
    client.close();
  }
}

test("the engine's certificate is let in by the host of the registered name", async () => {
  const { calls } = await up({ place: folder, file: 'engine' });
  expect(await getHost(calls('kvm-01.example.org'))).toMatchObject({ hostName: 'kvm-01' });
});

test('an engine that expects another host refuses the server', async () => {
  const { calls } = await up({ place: folder, file: 'engine' });
  await expect(getHost(calls('kvm-02.example.org'))).rejects.toMatchObject({ code: status.UNAVAILABLE });
});

test('a client without a certificate is refused', async () => {
  const { calls } = await up('without');
  await expect(getHost(calls('kvm-01.example.org'))).rejects.toMatchObject({ code: status.UNAVAILABLE });
});

test("another CA's engine is refused", async () => {
  const { calls } = await up({ place: other, file: 'engine' });
  await expect(getHost(calls('kvm-01.example.org'))).rejects.toMatchObject({ code: status.UNAVAILABLE });
});

test("a host's certificate is no client's", async () => {
  const { calls } = await up({ place: folder, file: 'kvm-01.example.org' });
  await expect(getHost(calls('kvm-01.example.org'))).rejects.toMatchObject({ code: status.UNAVAILABLE });
});

test.each<[string, x509.JsonGeneralNames]>([
  ['whose name is only similar', [{ type: 'url', value: 'stillpoint:engine2' }]],
  ['that has the identity as a DNS name', [{ type: 'dns', value: 'stillpoint:engine' }]],
  ['that hides the identity inside another name', [{ type: 'url', value: 'x, URI:stillpoint:engine, URI:y' }]],
])('a client certificate of our CA %s is told that it is not allowed', async (_what, names) => {
  const { calls, freeze } = await up({ place: folder, file: 'engine' });
  const stranger = await signedByCa(names);
  const channel = credentials.createSsl(await pem(folder, 'ca'), stranger.key, stranger.certificate);
  const error = await failure(getHost(calls('kvm-01.example.org', channel)));
  expect(error).toMatchObject({ code: status.PERMISSION_DENIED, reason: 'CLIENT_NOT_ALLOWED' });
  expect(freeze.calls).toEqual([]);
});

test('gRPC health tells whether the host agent serves', async () => {
  const { listening, clientCredentials } = await up({ place: folder, file: 'engine' });
  const HealthClient = makeClientConstructor(healthService, 'Health');
  const client = new HealthClient(listening.address, clientCredentials, {
    'grpc.ssl_target_name_override': 'kvm-01.example.org',
  });
  const check = () =>
    new Promise<{ status: string }>((resolve, reject) => {
      (
        client.check as (
          request: object,
          callback: (error: ServiceError | null, answer: { status: string }) => void,
        ) => void
      ).call(client, { service: 'stillpoint.host.v1.HostAgent' }, (error, answer) =>
        error === null ? resolve(answer) : reject(error),
      );
    });
  expect(await check()).toEqual({ status: 'SERVING' });
  listening.setHealth(false);
  expect(await check()).toEqual({ status: 'NOT_SERVING' });
  client.close();
});

test('keys and certificates can be read by their owner only', async () => {
  for (const file of ['ca', 'ca-key', 'engine', 'engine-key', 'kvm-01.example.org', 'kvm-01.example.org-key']) {
    expect((await stat(join(folder, `${file}.pem`))).mode & 0o777).toBe(0o600);
  }
});

test('nothing that exists is replaced', async () => {
  const before = await pem(folder, 'ca-key');
  await expect(makeCa(folder)).rejects.toThrow(CertificateError);
  await expect(makeEngineCertificate(folder)).rejects.toThrow(/exists and is not replaced/);
  expect(await pem(folder, 'ca-key')).toEqual(before);
});

test.each(['', 'UPPER', '../x', 'a b', 'engine', 'ca', '-a'])('%j is no host name', async (name) => {
  await expect(makeHostCertificate(folder, name)).rejects.toThrow(CertificateError);
});

test('a certificate needs a CA, and the error says how to make one', async () => {
  await expect(makeEngineCertificate(join(folder, 'nowhere'))).rejects.toThrow(/certs init/);
});

async function signedByCa(names: x509.JsonGeneralNames): Promise<{ key: Buffer; certificate: Buffer }> {
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const ca = new x509.X509Certificate((await pem(folder, 'ca')).toString());
  const caKey = await crypto.subtle.importKey(
    'pkcs8',
    x509.PemConverter.decodeFirst((await pem(folder, 'ca-key')).toString()),
    algorithm,
    false,
    ['sign'],
  );
  const keys = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const publicKey = await crypto.subtle.importKey(
    'spki',
    keys.publicKey.export({ type: 'spki', format: 'der' }),
    algorithm,
    true,
    ['verify'],
  );
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: '0badcafe',
    subject: 'CN=stillpoint:engine',
    issuer: ca.subject,
    notBefore: new Date(Date.now() - 1000),
    notAfter: new Date(Date.now() + 3_600_000),
    publicKey,
    signingKey: caKey,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension(names),
    ],
  });
  return {
    key: Buffer.from(keys.privateKey.export({ type: 'pkcs8', format: 'pem' })),
    certificate: Buffer.from(certificate.toString('pem')),
  };
}
