import type { Logger } from 'pino';
import type { Catalogue } from '../catalogue/catalogue.js';
import type { Hosts } from '../hosts/hosts.js';

/** What the activities work with. */
export interface ActivityDeps {
  catalogue: Catalogue;
  hosts: Hosts;
  /** Which runs are over: their window slots are void. */
  runs: Runs;
  log: Logger;
  /** This installation's id, from the catalogue. */
  installationId: string;
  settings?: ActivitySettings;
}

export interface ActivitySettings {
  /** How many windows may be open at once in the installation. Default 4: throughput is flat from there on, and each window only grows. */
  windowSlots?: number;
  /** How often a waiting run asks for its slot, ms. Default 500. */
  slotPollMs?: number;
  /** How long an undo or a deletion waits for a host that does not answer before it ends as pending, ms. Default 120 000. */
  hostPatienceMs?: number;
  /** How often it asks meanwhile, ms. Default 1 000. */
  hostPollMs?: number;
}

/** Temporal's word on a run. */
export interface Runs {
  /** Whether the run is closed, or was never there. */
  isClosed(workflowId: string, runId: string): Promise<boolean>;
}
