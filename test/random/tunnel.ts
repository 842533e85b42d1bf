import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

/** A network between two programs: TCP through this process, which can be cut, refused and silenced. */
export class Tunnel {
  readonly #to: { host: string; port: number };
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  #state: 'open' | 'refusing' | 'silent' = 'open';

  static async to(address: string): Promise<Tunnel> {
    const tunnel = new Tunnel(address);
    tunnel.#server.listen(0, '127.0.0.1');
    await once(tunnel.#server, 'listening');
    return tunnel;
  }

  private constructor(address: string) {
    const at = address.lastIndexOf(':');
    this.#to = { host: address.slice(0, at), port: Number(address.slice(at + 1)) };
    this.#server = createServer((near) => this.#accept(near));
  }

  get address(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Breaks every connection; new ones are made. */
  cut(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  /** Breaks every connection and makes no new ones, until `open`. */
  refuse(): void {
    this.#state = 'refusing';
    this.cut();
  }

  /** Nothing arrives any more, in neither direction, and nobody is told; until `open`. */
  silence(): void {
    if (this.#state !== 'open') return;
    this.#state = 'silent';
    for (const [near, far] of this.#pairs) {
      near.unpipe(far).pause();
      far.unpipe(near).pause();
    }
  }

  open(): void {
    const wasSilent = this.#state === 'silent';
    this.#state = 'open';
    if (wasSilent) for (const [near, far] of this.#pairs) near.pipe(far).pipe(near);
  }

  async close(): Promise<void> {
    this.refuse();
    const closed = once(this.#server, 'close');
    this.#server.close();
    await closed;
  }

  #accept(near: Socket): void {
    near.on('error', () => {});
    if (this.#state === 'refusing') {
      near.destroy();
      return;
    }
    near.setNoDelay(true);
    const far = connect({ ...this.#to, noDelay: true });
    const pair = [near, far] as const;
    this.#pairs.add(pair);
    for (const socket of pair) {
      socket.on('error', () => {});
      socket.once('close', () => {
        this.#pairs.delete(pair);
        for (const other of pair) other.destroy();
      });
    }
    if (this.#state === 'open') near.pipe(far).pipe(near);
  }
}
