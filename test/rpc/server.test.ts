import { createServer } from 'node:net';
import { getChannelzHandlers } from '@grpc/grpc-js';
import { serveEngine } from '@stillpoint/host-agent/rpc/server.js';
import { createServices } from '@stillpoint/host-agent/rpc/service.js';
import { expect, onTestFinished, test } from 'vitest';
import { FakeFreezeRoom, FakeSnapshotRoom, fakeHypervisor } from './rooms.js';
import { facts, silent } from './served.js';

/** How many servers grpc-js keeps in this process. */
function servers(): Promise<number> {
  return new Promise((resolve, reject) => {
    const call = { request: { start_server_id: 0, max_results: 100 } } as never;
    getChannelzHandlers().GetServers(call, (error, answer) => {
      if (error) reject(error);
      else resolve((answer as { server: unknown[] }).server.length);
    });
  });
}

test('a server whose port is taken leaves nothing behind, however often it is tried', async () => {
  const squatter = createServer();
  await new Promise<void>((resolve) => squatter.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void squatter.close());
  const taken = squatter.address();
  const port = typeof taken === 'object' && taken !== null ? taken.port : 0;
  const { hostAgent } = createServices({
    hostName: 'kvm-01',
    hypervisor: fakeHypervisor(facts),
    freeze: new FakeFreezeRoom(),
    snapshot: new FakeSnapshotRoom(),
    recovering: Promise.resolve(),
    stopping: new AbortController().signal,
    log: silent,
  });
  const before = await servers();
  const opening = serveEngine({ listen: `127.0.0.1:${port}`, transport: 'insecure', hostAgent, log: silent });
  await expect(opening).rejects.toThrow('EADDRINUSE');
  expect(await servers()).toBe(before);
});
