import { type ChannelCredentials, type Client, credentials, type ServiceError } from '@grpc/grpc-js';
import { type Listening, serveEngine, type Transport } from '@stillpoint/host-agent/rpc/server.js';
import { createServices, type ServiceOptions } from '@stillpoint/host-agent/rpc/service.js';
import { ErrorInfo, HostAgentClient, Status } from '@stillpoint/proto';
import { pino } from 'pino';
import { FakeFreezeRoom, FakeSnapshotRoom, fakeHypervisor } from './rooms.js';

export const silent = pino({ level: 'silent' });

export const facts = async () => ({
  reachable: true,
  libvirtVersion: '9.0.0',
  qemuVersion: '7.2.22',
  canSetAgentTimeout: true,
});

/** The services over fakes of the rooms, on a loopback port, and a real client. */
export async function served(
  options: Partial<ServiceOptions> & { transport?: Transport; clientCredentials?: ChannelCredentials } = {},
): Promise<{
  client: HostAgentClient;
  freeze: FakeFreezeRoom;
  snapshot: FakeSnapshotRoom;
  listening: Listening;
  close: () => Promise<void>;
}> {
  const freeze = new FakeFreezeRoom();
  const snapshot = new FakeSnapshotRoom();
  const { hostAgent } = createServices({
    hostName: 'kvm-01',
    hypervisor: fakeHypervisor(facts),
    freeze,
    snapshot,
    recovering: Promise.resolve(),
    stopping: new AbortController().signal,
    log: silent,
    pingMs: 5,
    progressMs: 5,
    ...options,
  });
  const listening = await serveEngine({
    listen: '127.0.0.1:0',
    transport: options.transport ?? 'insecure',
    hostAgent,
    log: silent,
  });
  const client = new HostAgentClient(listening.address, options.clientCredentials ?? credentials.createInsecure());
  const close = async () => {
    client.close();
    await listening.stop(0);
  };
  return { client, freeze, snapshot, listening, close };
}

/** A unary call as a promise. */
export function ask<Request, Response>(
  client: Client,
  method: {
    path: string;
    requestSerialize: (request: Request) => Buffer;
    responseDeserialize: (bytes: Buffer) => Response;
  },
  request: Request,
): Promise<Response> {
  const { path, requestSerialize, responseDeserialize } = method;
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, (error, response) => {
      if (error === null && response !== undefined) resolve(response);
      else reject(error ?? new Error(`${path} answered nothing`));
    });
  });
}

/** What a failed call says: status code, stable reason, its metadata. */
export async function failure(
  call: Promise<unknown>,
): Promise<{ code: number; reason: string; domain: string; metadata: Record<string, string>; details: string }> {
  const error = await call.then(
    () => {
      throw new Error('the call succeeded');
    },
    (rejected: ServiceError) => rejected,
  );
  const bytes = error.metadata?.get('grpc-status-details-bin')[0];
  if (!Buffer.isBuffer(bytes)) throw new Error(`no grpc-status-details-bin with: ${error.message}`);
  const detail = Status.decode(bytes).details[0];
  if (detail?.typeUrl !== 'type.googleapis.com/google.rpc.ErrorInfo') throw new Error('no ErrorInfo');
  const info = ErrorInfo.decode(detail.value);
  return {
    code: error.code,
    reason: info.reason,
    domain: info.domain,
    metadata: info.metadata,
    details: error.details,
  };
}
