import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { TcpProxy } from '@stillpoint/lab/tcp-proxy.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

describe('the proxy before a TCP server', () => {
  let server: Server;
  let proxy: TcpProxy;
  let client: Socket;

  beforeEach(async () => {
    // Says back what it hears, and ends when its client does.
    server = createServer((socket) => socket.pipe(socket));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    proxy = await TcpProxy.start(`127.0.0.1:${(server.address() as AddressInfo).port}`);
    client = connect(Number(proxy.address.split(':')[1]), '127.0.0.1');
    await once(client, 'connect');
  });
  afterEach(async () => {
    client.destroy();
    await proxy.close();
    server.close();
  });

  const heard = async () => String((await once(client, 'data'))[0]);

  it('passes on what is said, in both directions', async () => {
    client.write('one');
    expect(await heard()).toBe('one');
  });

  it('carries nothing while the network is parted, keeps connections open, and delivers all of it afterwards', async () => {
    client.write('one');
    expect(await heard()).toBe('one');
    proxy.partition();
    const seen: string[] = [];
    client.on('data', (bytes) => seen.push(String(bytes)));
    client.write('two');
    // A second connection is taken, too, and leads nowhere: who speaks on it later is heard earlier than who was parted.
    const another = connect(Number(proxy.address.split(':')[1]), '127.0.0.1');
    await once(another, 'connect');
    expect({ seen, isOpen: !client.closed && !another.closed }).toEqual({ seen: [], isOpen: true });
    proxy.heal();
    await once(client, 'data');
    expect(seen.join('')).toBe('two');
    another.destroy();
  });

  it('ends a connection where the other side ends it', async () => {
    client.end();
    client.resume();
    await once(client, 'close');
    expect(client.destroyed).toBe(true);
  });
});
