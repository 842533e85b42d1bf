import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Catalogue } from '@stillpoint/engine/catalogue/catalogue.js';
import { openCatalogue } from '@stillpoint/engine/catalogue/open.js';
import { readCloud } from '@stillpoint/engine/cinder/read-cloud.js';
import type { SeenRequest } from '@stillpoint/lab/cinder-stand-in/faults.js';
import { type CinderStandIn, startCinderStandIn } from '@stillpoint/lab/cinder-stand-in/stand-in.js';
import type { Client } from '@temporalio/client';
import { pino } from 'pino';
import { RandomEngine, type Shared } from './engine.js';

export interface LaneSettings {
  name: string;
  folder: string;
  client: Client;
  temporal: { address: string; namespace: string };
  bundlePath: string;
  /** Where the product's log goes; absent: nowhere. */
  logFile?: string;
}

/**
 * The workflows' bundle without its source map, at `to`: the SDK reads that anew for each worker, which takes seconds of processor time, and scenarios start many.
 */
export async function leanBundle(from: string, to: string): Promise<void> {
  const code = await readFile(from, 'utf8');
  const mapAt = code.lastIndexOf('//# sourceMappingURL=data:');
  if (mapAt < 0) throw new Error(`${from} has no source map of its own`);
  const map = { version: 3, file: 'workflows.js', sources: [], names: [], mappings: '' };
  const encoded = Buffer.from(JSON.stringify(map)).toString('base64');
  await writeFile(to, `${code.slice(0, mapAt)}//# sourceMappingURL=data:application/json;base64,${encoded}\n`);
}

/** An installation: two engines, a catalogue and a Cinder. Scenarios run in it one after another, and each finds it as a new one. */
export class Lane {
  readonly settings: LaneSettings;
  readonly taskQueue: string;
  readonly standIn: CinderStandIn;
  readonly catalogue: Catalogue;
  readonly log;
  engines: [RandomEngine, RandomEngine];
  catalogueIsDown = false;
  onCatalogueCall: (method: string, args: readonly unknown[]) => void = () => {};
  onCinderRequest: (request: SeenRequest) => void = () => {};
  onVolumeCut: (volume: string, snapshot: string) => void = () => {};
  readonly #shared: Shared;

  static async open(settings: LaneSettings): Promise<Lane> {
    await mkdir(settings.folder, { recursive: true });
    const seen: { lane?: Lane } = {};
    const standIn = await startCinderStandIn({
      times: { acceptMs: 2, cutMs: 15, availableMs: 40, deleteMs: 10 },
      onCut: (volume, snapshot) => seen.lane?.onVolumeCut(volume, snapshot),
      onRequest: (request) => seen.lane?.onCinderRequest(request),
    });
    const catalogue = await openCatalogue(join(settings.folder, 'engine'));
    const cloud = readCloud({ env: standIn.environment('admin') });
    if (cloud === undefined) throw new Error('the stand-in is no cloud');
    const log = pino(
      { level: settings.logFile === undefined ? 'silent' : 'debug' },
      ...(settings.logFile === undefined ? [] : [pino.destination({ dest: settings.logFile, sync: true })]),
    );
    const shared: Shared = {
      catalogue,
      catalogueIsDown: () => seen.lane?.catalogueIsDown ?? false,
      onCatalogueCall: (method, args) => seen.lane?.onCatalogueCall(method, args),
      cloud,
      client: settings.client,
      temporal: settings.temporal,
      taskQueue: settings.name,
      bundlePath: settings.bundlePath,
      installationId: await catalogue.installationId(),
      log,
    };
    const engines = await Promise.all([RandomEngine.start(shared), RandomEngine.start(shared)]);
    const lane = new Lane(settings, { standIn, catalogue, engines, shared });
    seen.lane = lane;
    return lane;
  }

  private constructor(
    settings: LaneSettings,
    parts: {
      standIn: CinderStandIn;
      catalogue: Catalogue;
      engines: [RandomEngine, RandomEngine];
      shared: Shared;
    },
  ) {
    this.settings = settings;
    this.taskQueue = settings.name;
    this.standIn = parts.standIn;
    this.catalogue = parts.catalogue;
    this.engines = parts.engines;
    this.#shared = parts.shared;
    this.log = parts.shared.log;
  }

  get installationId(): string {
    return this.#shared.installationId;
  }

  /** Another engine in the place of one that was killed or stopped. */
  startEngine(): Promise<RandomEngine> {
    return RandomEngine.start(this.#shared);
  }

  async close(): Promise<void> {
    await Promise.all(this.engines.map((engine) => engine.close()));
    await this.catalogue.disconnect();
    await this.standIn.close();
    await rm(this.settings.folder, { recursive: true, force: true });
  }
}
