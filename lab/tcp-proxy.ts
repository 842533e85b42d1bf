import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { LabError } from './errors.js';

/** Stands before a TCP server and passes every byte on, until it is told to be a network that carries nothing any more. */
export class TcpProxy {
  /** `127.0.0.1:<port>`. */
  readonly address: string;
  readonly #server: Server;
  readonly #pairs = new Map<Socket, Socket>();
  #isSilent = false;

  private constructor(server: Server) {
    this.#server = server;
    this.address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  /** Starts a proxy on a free port of 127.0.0.1 before `upstream`, HOST:PORT, which need not serve yet. */
  static async start(upstream: string): Promise<TcpProxy> {
    const at = upstream.lastIndexOf(':');
    const [host, port] = [upstream.slice(0, at), Number(upstream.slice(at + 1))];
    // What is half closed stays so: the proxy has no opinion of its own.
    const server = createServer({ allowHalfOpen: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) =>
        reject(new LabError('PROXY_FAILED', 'The proxy finds no port of 127.0.0.1 to listen on', { cause: error })),
      );
      server.listen(0, '127.0.0.1', resolve);
    });
    const proxy = new TcpProxy(server);
    server.on('connection', (client) => proxy.#join(client, connect({ host, port: port, allowHalfOpen: true })));
    return proxy;
  }

  /** From now on nothing passes, in either direction, and nobody is told: connections stay open, new ones are taken and lead nowhere. */
  partition(): void {
    this.#isSilent = true;
    for (const [client, upstream] of this.#pairs) {
      client.pause();
      upstream.pause();
    }
  }

  /** What was sent meanwhile arrives now, as TCP would send it again. */
  heal(): void {
    this.#isSilent = false;
    for (const [client, upstream] of this.#pairs) {
      client.resume();
      upstream.resume();
    }
  }

  /** Closes everything. */
  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      for (const [client, upstream] of this.#pairs) {
        client.destroy();
        upstream.destroy();
      }
    });
  }

  #join(client: Socket, upstream: Socket): void {
    this.#pairs.set(client, upstream);
    for (const [from, to] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      from.on('data', (bytes) => to.write(bytes));
      from.on('end', () => to.end());
      from.on('error', () => to.destroy());
      from.on('close', () => {
        to.destroy();
        this.#pairs.delete(client);
      });
      if (this.#isSilent) from.pause();
    }
  }
}
