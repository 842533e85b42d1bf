import { spawn } from 'node:child_process';
import { type ClientDuplexStream, type ServiceError, status } from '@grpc/grpc-js';
import { HostAgentError } from '@stillpoint/host-agent/errors.js';
import { type HoldCutRequest, type HoldCutResponse, type HostAgentClient, HostAgentService } from '@stillpoint/proto';
import { afterEach, expect, test } from 'vitest';
import { happening, vmUuid, window1 } from './rooms.js';
import { ask, failure, served } from './served.js';

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

async function up(options: Parameters<typeof served>[0] = {}) {
  const server = await served(options);
  closing.push(server.close);
  return server;
}

const begin: HoldCutRequest = { message: { $case: 'begin', value: { vmUuid, windowId: window1, cut: 'vda' } } };
const done: HoldCutRequest = { message: { $case: 'done', value: {} } };

type Said = NonNullable<HoldCutResponse['message']>;

/** The stream, and what the host agent says on it: each kind of message may be waited for. */
function holdStream(client: HostAgentClient) {
  const stream: ClientDuplexStream<HoldCutRequest, HoldCutResponse> = client.holdCut();
  const said: Said[] = [];
  const waiting: { kind: Said['$case']; happens: (said: Said) => void }[] = [];
  stream.on('data', ({ message }: HoldCutResponse) => {
    if (message === undefined) return;
    said.push(message);
    for (const { kind, happens } of waiting) if (kind === message.$case) happens(message);
  });
  const ended = new Promise<ServiceError | undefined>((resolve) => {
    stream.on('error', resolve);
    stream.on('end', () => resolve(undefined));
  });
  const hears = (kind: Said['$case']) => {
    const { happened, happens } = happening<Said>();
    waiting.push({ kind, happens });
    return happened;
  };
  return { stream, said, ended, hears };
}

test('a hold is begun, pinged while it lasts, and ended by done', async () => {
  const { client, freeze } = await up();
  const { stream, said, ended, hears } = holdStream(client);
  const pinged = hears('ping');
  stream.write(begin);
  await pinged;
  stream.write(done);
  expect(await ended).toBeUndefined();
  expect(said[0]).toEqual({ $case: 'held', value: {} });
  expect(said.at(-1)).toEqual({ $case: 'ended', value: { inTime: true, reason: '' } });
  expect(freeze.calls).toEqual(['hold vda']);
  expect(await freeze.holds[0]?.ended).toEqual({ done: true });
});

test('who stands ready hears nothing before the freeze is answered', async () => {
  const { client, freeze } = await up();
  freeze.freezesLater = true;
  const { stream, said, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  const hold = await freeze.begun;
  await ask(client, HostAgentService.getHost, {});
  expect(said).toEqual([]);
  hold.go();
  await held;
  stream.cancel();
});

test('a window that ends before the freeze is told to who stands ready', async () => {
  const { client, freeze } = await up();
  freeze.freezesLater = true;
  const { stream, said, ended } = holdStream(client);
  stream.write(begin);
  (await freeze.begun).lose('the freeze failed');
  expect(await ended).toBeUndefined();
  expect(said).toEqual([{ $case: 'ended', value: { inTime: false, reason: 'the freeze failed' } }]);
});

test('failed is handed to the freeze room with its reason', async () => {
  const { client, freeze } = await up();
  const { stream, said, ended, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  await held;
  stream.write({ message: { $case: 'failed', value: { reason: 'Cinder answered 500' } } });
  await ended;
  expect(await freeze.holds[0]?.ended).toEqual({ failed: 'Cinder answered 500' });
  expect(said.at(-1)).toMatchObject({ $case: 'ended', value: { inTime: false } });
});

test('when the window is lost under the hold, the holder is told at once', async () => {
  const { client, freeze } = await up();
  const { stream, said, ended, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  await held;
  freeze.holds[0]?.lose('the limit of 30 s has passed');
  expect(await ended).toBeUndefined();
  expect(said.at(-1)).toEqual({ $case: 'ended', value: { inTime: false, reason: 'the limit of 30 s has passed' } });
});

test('a cancelled stream breaks the hold', async () => {
  const { client, freeze } = await up();
  const { stream, ended, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  await held;
  stream.cancel();
  await ended;
  expect(await freeze.holds[0]?.ended).toHaveProperty('broken');
});

test('a stream that is half-closed without done or failed breaks the hold', async () => {
  const { client, freeze } = await up();
  const { stream, ended, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  await held;
  stream.end();
  await ended;
  expect(await freeze.holds[0]?.ended).toHaveProperty('broken');
});

test('a closed connection breaks the hold', async () => {
  const { client, freeze, listening } = await up();
  const { stream, ended, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  await held;
  await listening.stop(0);
  await ended;
  expect(await freeze.holds[0]?.ended).toHaveProperty('broken');
});

test('a refused hold is an error with its reason', async () => {
  const { client, freeze } = await up();
  freeze.onHold = () => {
    throw new HostAgentError('CUT_ALREADY_HELD', 'vda is held already', { metadata: { cut: 'vda' } });
  };
  const { stream, ended } = holdStream(client);
  stream.write(begin);
  const refused = await failure(Promise.reject(await ended));
  expect(refused).toMatchObject({ code: status.ALREADY_EXISTS, reason: 'CUT_ALREADY_HELD', metadata: { cut: 'vda' } });
});

test('a first message other than begin is refused', async () => {
  const { client, freeze } = await up();
  const { stream, ended } = holdStream(client);
  stream.write(done);
  expect(await failure(Promise.reject(await ended))).toMatchObject({ reason: 'INVALID_ARGUMENT' });
  expect(freeze.calls).toEqual([]);
});

test.each<[string, HoldCutRequest]>([
  ['a second begin', begin],
  ['a message that says nothing', {}],
])('%s breaks the hold', async (_what, message) => {
  const { client, freeze } = await up();
  const { stream, ended, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  await held;
  stream.write(message);
  expect(await failure(Promise.reject(await ended))).toMatchObject({ reason: 'INVALID_ARGUMENT' });
  expect(await freeze.holds[0]?.ended).toHaveProperty('broken');
});

test('no hold begins before recovery has', async () => {
  const recovery = happening<void>();
  const { client, freeze } = await up({ recovering: recovery.happened });
  const { stream, hears } = holdStream(client);
  const held = hears('held');
  stream.write(begin);
  await ask(client, HostAgentService.getHost, {});
  expect(freeze.calls).toEqual([]);
  recovery.happens();
  await held;
  stream.cancel();
});

/** An engine of its own process, so that it can be stopped and killed: holds a cut, says `held` on stdout, and then only lives. */
const engineProgram = `
  import { credentials } from '@grpc/grpc-js';
  import { HostAgentClient } from '@stillpoint/proto';
  const [address, vmUuid, windowId] = process.argv.slice(1);
  const stream = new HostAgentClient(address, credentials.createInsecure()).holdCut();
  stream.on('error', () => {});
  stream.on('data', ({ message }) => message.$case === 'held' && console.log('held'));
  stream.write({ message: { $case: 'begin', value: { vmUuid, windowId, cut: 'vda' } } });
`;

async function engineThatHolds(address: string) {
  const child = spawn(process.execPath, ['--input-type=module', '-e', engineProgram, address, vmUuid, window1], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  closing.push(() => child.kill('SIGKILL'));
  await new Promise((resolve, reject) => {
    child.stdout.once('data', resolve);
    child.once('exit', () => reject(new Error('the engine ended')));
  });
  return child;
}

test('a killed engine breaks its hold', async () => {
  const { freeze, listening } = await up();
  const engine = await engineThatHolds(listening.address);
  engine.kill('SIGKILL');
  expect(await freeze.holds[0]?.ended).toHaveProperty('broken');
});

test('a stopped engine, whose connection stays open, breaks its hold through keepalive', async () => {
  const { freeze, listening } = await up();
  const engine = await engineThatHolds(listening.address);
  engine.kill('SIGSTOP');
  expect(await freeze.holds[0]?.ended).toHaveProperty('broken');
});
