import { type ChannelTimes, HostChannel } from './channel.js';
import { hostClient } from './client.js';
import type { CredentialsOf } from './credentials.js';
import { HostError } from './errors.js';
import type { HostClient, Hosts } from './hosts.js';

/** Where the hosts are registered: the catalogue. */
export interface HostRegistry {
  listHosts(): Promise<{ name: string; address: string; state: 'active' | 'lost' }[]>;
}

export interface HostPoolOptions extends ChannelTimes {
  /** How often the registry is read again, ms: an address that changed or a host that was given up is known after it. Default 2 000. */
  refreshMs?: number;
}

interface Known {
  address: string;
  state: 'active' | 'lost';
  channel: HostChannel | undefined;
}

/**
 * One kept connection a host. Addresses are read from the registry in the background, never by a call to a known host: a thaw does not wait for the
 * catalogue, and nothing inside a window asks it.
 */
export class HostPool implements Hosts {
  readonly #registry: HostRegistry;
  readonly #credentialsOf: CredentialsOf;
  readonly #options: HostPoolOptions;
  readonly #known = new Map<string, Known>();
  readonly #timer: NodeJS.Timeout;
  #refreshing: Promise<void> | undefined;

  /** Reads the registry and connects. Errors: the registry's. */
  static async open(
    registry: HostRegistry,
    credentialsOf: CredentialsOf,
    options: HostPoolOptions = {},
  ): Promise<HostPool> {
    const pool = new HostPool(registry, credentialsOf, options);
    try {
      await pool.#refresh();
    } catch (error) {
      await pool.close();
      throw error;
    }
    return pool;
  }

  private constructor(registry: HostRegistry, credentialsOf: CredentialsOf, options: HostPoolOptions) {
    this.#registry = registry;
    this.#credentialsOf = credentialsOf;
    this.#options = options;
    // A registry that is down changes nothing: what is known stays known.
    this.#timer = setInterval(() => void this.#refresh().catch(() => {}), options.refreshMs ?? 2_000);
    this.#timer.unref();
  }

  host(name: string): HostClient {
    return hostClient(name, () => this.#channel(name));
  }

  async names(): Promise<string[]> {
    // Who is frozen must be seen, and thawed, also while the catalogue is down.
    await this.#refresh().catch((error: unknown) => {
      if (this.#known.size === 0) throw error;
    });
    return [...this.#known].filter(([, host]) => host.state === 'active').map(([name]) => name);
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#refreshing?.catch(() => {});
    for (const { channel } of this.#known.values()) channel?.close();
    this.#known.clear();
  }

  async #channel(name: string): Promise<HostChannel> {
    // Only a host that nobody has told us of is worth a question.
    if (!this.#known.has(name)) await this.#refresh();
    const known = this.#known.get(name);
    if (known === undefined) throw new HostError(name, 'HOST_NOT_FOUND', `No host ${name} is registered.`);
    if (known.state === 'lost') throw lostHost(name);
    known.channel ??= new HostChannel({ name, address: known.address }, this.#credentialsOf, this.#options);
    return known.channel;
  }

  /** One question at a time; whoever comes meanwhile shares its answer. */
  #refresh(): Promise<void> {
    this.#refreshing ??= this.#readRegistry().finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  async #readRegistry(): Promise<void> {
    const registered = new Map((await this.#registry.listHosts()).map((host) => [host.name, host]));
    for (const [name, known] of this.#known) {
      const now = registered.get(name);
      if (now?.address === known.address && now.state === known.state) continue;
      if (now?.state === 'lost') known.channel?.giveUp(lostHost(name));
      else known.channel?.close();
      this.#known.delete(name);
    }
    for (const { name, address, state } of registered.values()) {
      if (!this.#known.has(name)) this.#known.set(name, { address, state, channel: undefined });
    }
  }
}

function lostHost(name: string): HostError {
  return new HostError(name, 'HOST_LOST', `Host ${name} was removed as lost.`);
}
