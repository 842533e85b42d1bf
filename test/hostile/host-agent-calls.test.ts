import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { credentials, type ServiceError, status } from '@grpc/grpc-js';
import { createFreezeRoom } from '@stillpoint/host-agent/freeze/room.js';
import { type Listening, serveEngine } from '@stillpoint/host-agent/rpc/server.js';
import { createServices } from '@stillpoint/host-agent/rpc/service.js';
import { noLatencies } from '@stillpoint/host-agent/simulated/faults.js';
import { createSimulatedHypervisor, type SimulatedHypervisor } from '@stillpoint/host-agent/simulated/hypervisor.js';
import { createSnapshotRoom } from '@stillpoint/host-agent/snapshot/room.js';
import { HostAgentClient, HostAgentService } from '@stillpoint/proto';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { operation, overlay, vmUuid, window1 } from '../rpc/rooms.js';
import { ask, silent } from '../rpc/served.js';
import { hostileText } from './domain-texts.js';
import { tries } from './runs.js';

/** Messages of any kind to a host agent with its real rooms, over a simulated guest. */

let folder: string;
let world: SimulatedHypervisor;
let listening: Listening;
let client: HostAgentClient;
let shutdown: () => Promise<void>;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'stillpoint-calls-'));
  world = createSimulatedHypervisor({
    vms: [{ name: 'web-1', uuid: vmUuid, disks: [{ target: 'vda' }, { target: 'vdb' }] }],
    latencies: noLatencies,
    writeEveryMs: 0,
    secondMs: 20,
  });
  await world.start();
  const settings = { readyMs: 5 };
  const freeze = createFreezeRoom({ hypervisor: world, folder, log: silent, settings });
  await freeze.start();
  const snapshot = await createSnapshotRoom({
    hypervisor: world,
    folder: join(folder, 'snapshots'),
    settings: { lateSwitchMs: 20, lookAgainMs: 1, closeWaitMs: 5 },
    log: silent,
  });
  const { hostAgent } = createServices({
    hostName: 'kvm-01',
    hypervisor: world,
    freeze,
    snapshot,
    recovering: Promise.resolve(),
    stopping: new AbortController().signal,
    log: silent,
  });
  listening = await serveEngine({ listen: '127.0.0.1:0', transport: 'insecure', hostAgent, log: silent });
  client = new HostAgentClient(listening.address, credentials.createInsecure());
  shutdown = () => freeze.shutdown();
});

afterAll(async () => {
  client.close();
  await shutdown();
  await listening.stop(0);
  await world.close();
  rmSync(folder, { recursive: true });
});

const text = fc.oneof(
  { arbitrary: fc.constantFrom(vmUuid, operation, window1, `${operation}.2`, 'vda', 'vdb', 'site-a'), weight: 3 },
  { arbitrary: hostileText, weight: 2 },
  {
    arbitrary: fc.constantFrom('x'.repeat(5_000), '/var/lib/libvirt/images/../../../etc/passwd', vmUuid.toUpperCase()),
    weight: 1,
  },
);
const texts = fc.oneof(fc.array(text, { maxLength: 4 }), fc.constant(Array.from({ length: 500 }, (_, i) => `vd${i}`)));
const whole = fc.oneof(fc.integer({ min: -5, max: 40_000 }), fc.constantFrom(0, 1, 100, 1_000, -1, 2 ** 31 - 1));

/** Requests with every field that any of the calls has: what a call does not know it leaves out. */
const request = fc.record({
  vmUuid: fc.oneof({ arbitrary: fc.constant(vmUuid), weight: 4 }, { arbitrary: text, weight: 1 }),
  operationId: fc.oneof({ arbitrary: fc.constant(operation), weight: 4 }, { arbitrary: text, weight: 1 }),
  windowId: fc.oneof(
    { arbitrary: fc.constantFrom(window1, `${operation}.2`), weight: 4 },
    { arbitrary: text, weight: 1 },
  ),
  installationId: fc.oneof({ arbitrary: fc.constant('site-a'), weight: 4 }, { arbitrary: text, weight: 1 }),
  localDisks: texts,
  setDisks: texts,
  unquiescedDisks: texts,
  disks: texts,
  cuts: texts,
  cut: text,
  quiesce: fc.integer({ min: -1, max: 5 }),
  windowLimitMs: whole,
  freezeTimeoutMs: whole,
  frozen: fc.boolean(),
  reason: text,
  askedBy: text,
  overlays: fc.array(
    fc
      .record({ target: text, overlayPath: text, basePath: text, baseFormat: text, sizeBytes: whole })
      .map((each) => ({ ...overlay, ...each })),
    { maxLength: 3 },
  ),
});

type Method = (typeof HostAgentService)[keyof typeof HostAgentService];
const unary = Object.values(HostAgentService).filter((method) => !method.requestStream && !method.responseStream);
const merging = [HostAgentService.undo, HostAgentService.deleteSnapshot];

/** Codes of an answer that says what is wrong, or that there is nothing; INTERNAL and UNKNOWN are a bug's. */
function isTold({ code }: { code: number }): boolean {
  return code !== status.INTERNAL && code !== status.UNKNOWN && code !== status.UNAVAILABLE;
}

/** Bytes to a call that answers once, or in a stream; the error, if there is one. */
function send(method: Method, bytes: Buffer): Promise<ServiceError | undefined> {
  const identity = (sent: Buffer) => sent;
  if (!method.responseStream) {
    return new Promise((resolve) => {
      client.makeUnaryRequest(method.path, identity, identity, bytes, { deadline: Date.now() + 15_000 }, (error) =>
        resolve(error ?? undefined),
      );
    });
  }
  return new Promise((resolve) => {
    const call = client.makeServerStreamRequest(method.path, identity, identity, bytes, {
      deadline: Date.now() + 15_000,
    });
    call.on('data', () => {});
    call.on('error', (error: ServiceError) => resolve(error));
    call.on('end', () => resolve(undefined));
  });
}

async function stillServes(): Promise<void> {
  expect(await ask(client, HostAgentService.getHost, {})).toMatchObject({ hostName: 'kvm-01' });
}

test('no message makes a host agent fail inside, and it goes on serving', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.constantFrom(...unary, ...merging), request), { minLength: 1, maxLength: 5 }),
      async (messages) => {
        for (const [method, message] of messages) {
          const bytes = Buffer.from((method.requestSerialize as (value: unknown) => Buffer)(message));
          const error = await send(method, bytes);
          if (error !== undefined && !isTold(error)) {
            throw new Error(`${method.path} answered ${status[error.code]}: ${error.details}`);
          }
        }
        await ask(client, HostAgentService.release, { vmUuid, operationId: operation });
        await stillServes();
      },
    ),
    tries(60),
  );
});

test('bytes that are no message are refused, and the next message is answered', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...unary, ...merging),
      fc.oneof(
        fc.uint8Array({ maxLength: 100 }),
        // A field of length that is not there, a group without an end, a varint without an end.
        fc.constantFrom(
          Uint8Array.of(0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f),
          Uint8Array.of(0x0b, 0x0b, 0x0b),
          new Uint8Array(64).fill(0xff),
          new Uint8Array(50_000).fill(0x0b),
        ),
      ),
      async (method, bytes) => {
        const error = await send(method, Buffer.from(bytes));
        // grpc-js's own word for bytes that it cannot read is INTERNAL, or RESOURCE_EXHAUSTED.
        expect(error?.code ?? status.OK).not.toBe(status.UNAVAILABLE);
        await stillServes();
      },
    ),
    tries(100),
  );
});

const holdMessage = fc.oneof(
  request.map((value) => ({ message: { $case: 'begin' as const, value } })),
  fc.constant({ message: { $case: 'done' as const, value: {} } }),
  text.map((reason) => ({ message: { $case: 'failed' as const, value: { reason } } })),
  fc.constant({ message: undefined }),
);

test('a hold that says anything in any order ends, and leaves nobody frozen', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(holdMessage, { maxLength: 5 }), fc.boolean(), async (messages, cancels) => {
      const call = client.holdCut();
      const ended = new Promise<ServiceError | undefined>((resolve) => {
        call.on('data', () => {});
        call.on('error', (error: ServiceError) => resolve(error));
        call.on('end', () => resolve(undefined));
      });
      for (const message of messages) if (call.writable) call.write(message);
      if (cancels) call.cancel();
      else call.end();
      const error = await ended;
      if (error !== undefined && !isTold(error)) throw new Error(`${status[error.code]}: ${error.details}`);
      await stillServes();
      expect(await world.freezeStatus(vmUuid, 1)).toBe('thawed');
    }),
    tries(60),
  );
});
