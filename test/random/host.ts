import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { createFreezeRoom } from '@stillpoint/host-agent/freeze/room.js';
import { type Listening, serveEngine } from '@stillpoint/host-agent/rpc/server.js';
import { createServices } from '@stillpoint/host-agent/rpc/service.js';
import { noLatencies } from '@stillpoint/host-agent/simulated/faults.js';
import {
  createSimulatedHypervisor,
  type SimulatedHypervisor,
  type SimulatedSession,
} from '@stillpoint/host-agent/simulated/hypervisor.js';
import { createSnapshotRoom } from '@stillpoint/host-agent/snapshot/room.js';
import type { FreezeRoom } from '@stillpoint/host-agent/window.js';
import type { Logger } from 'pino';

/** A second of libvirt's and the guest agent's own timeouts, ms: its 30 s wait for a domain's job is 600 ms here. */
const secondMs = 20;

/** The host agent's settings, shortened; each keeps its order to the others. */
const freezeSettings = {
  readyMs: 2_500,
  callGuardMs: 400,
  retryFirstMs: 20,
  retryMaxMs: 100,
  stillFrozenAfterMs: 300,
  thawAnswerMs: 800,
  thawTimeoutS: 1,
  readTimeoutS: 5,
};
const snapshotSettings = { lateSwitchMs: 900, lookAgainMs: 50, closeWaitMs: 200 };

interface Life {
  session: SimulatedSession;
  freeze: FreezeRoom;
  listening: Listening;
  stopping: AbortController;
}

/** A host: its hypervisor, and a host agent in this process that dies and comes back over the same journal. */
export class RandomHost {
  readonly name: string;
  readonly world: SimulatedHypervisor;
  readonly #folder: string;
  readonly #log: Logger;
  #life: Life | undefined;
  #lives = 0;
  #address = '127.0.0.1:0';
  #change: Promise<void> = Promise.resolve();

  private constructor(name: string, folder: string, log: Logger) {
    this.name = name;
    this.#folder = folder;
    this.#log = log.child({ host: name });
    this.world = createSimulatedHypervisor({ vms: [], latencies: noLatencies, writeEveryMs: 0, secondMs });
  }

  static async start(name: string, folder: string, log: Logger): Promise<RandomHost> {
    const host = new RandomHost(name, folder, log);
    await host.world.start();
    await host.#begin(host.#stateFolder);
    return host;
  }

  get address(): string {
    return this.#address;
  }

  /** Whether its host agent lives. */
  get isUp(): boolean {
    return this.#life !== undefined;
  }

  /** kill -9, and the next life `downMs` later. What it had written is there, what it had not is not; libvirt goes on. */
  kill(downMs: number): Promise<void> {
    const life = this.#life;
    if (life === undefined) return this.#change;
    this.#life = undefined;
    life.session.kill();
    // In this process the dead one's timers go on: its journal is its own from now on.
    const before = this.#stateFolder;
    this.#lives += 1;
    const after = this.#stateFolder;
    this.#change = this.#change.then(async () => {
      await life.listening.stop(0);
      await cp(before, after, { recursive: true });
      await delay(downMs);
      await this.#begin(after);
    });
    return this.#change;
  }

  /** SIGTERM, and the next life `downMs` after its end. */
  restart(downMs: number): Promise<void> {
    const life = this.#life;
    if (life === undefined) return this.#change;
    this.#change = this.#change.then(async () => {
      if (this.#life !== life) return;
      this.#life = undefined;
      await end(life);
      await delay(downMs);
      await this.#begin(this.#stateFolder);
    });
    return this.#change;
  }

  /** Resolves when it is up and no change of it is under way. */
  async settled(): Promise<void> {
    for (let seen: Promise<void> | undefined; seen !== this.#change; ) {
      seen = this.#change;
      await seen;
    }
  }

  async close(): Promise<void> {
    await this.settled();
    if (this.#life !== undefined) await end(this.#life);
    await this.world.close();
  }

  get #stateFolder(): string {
    return join(this.#folder, `${this.name}-${this.#lives}`);
  }

  async #begin(folder: string): Promise<void> {
    const session = this.world.session();
    const stopping = new AbortController();
    void session.start(stopping.signal).catch(() => {});
    const freeze = createFreezeRoom({ hypervisor: session, folder, settings: freezeSettings, log: this.#log });
    await freeze.start();
    const snapshot = await createSnapshotRoom({
      hypervisor: session,
      folder: join(folder, 'snapshots'),
      settings: snapshotSettings,
      log: this.#log,
    });
    const { hostAgent } = createServices({
      hostName: this.name,
      hypervisor: session,
      freeze,
      snapshot,
      recovering: Promise.resolve(),
      stopping: stopping.signal,
      log: this.#log,
    });
    const listening = await serveEngine({ listen: this.#address, transport: 'insecure', hostAgent, log: this.#log });
    this.#address = listening.address;
    this.#life = { session, freeze, listening, stopping };
  }
}

async function end({ stopping, freeze, listening, session }: Life): Promise<void> {
  stopping.abort();
  await freeze.shutdown();
  await listening.stop(0);
  await session.close();
}
