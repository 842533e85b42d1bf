#!/usr/bin/env node
import { Command } from 'commander';
import { isCatalogueError } from './catalogue/errors.js';
import { ConfigError, defaultConfigPath, type EngineConfig, readConfig } from './config.js';
import { createLog } from './log.js';
import type { TemporalSettings } from './temporal/connection.js';
import { TemporalError } from './temporal/errors.js';
import { version } from './version.js';

/**
 * `stillpoint-engine`. Exit codes: 0 stopped by a signal, 1 failed (the unit starts it again), 78 the configuration cannot be used (sysexits.h
 * EX_CONFIG: systemd does not try that again).
 */
const exitConfig = 78;

const program = new Command('stillpoint-engine')
  .description('Decides on snapshots: REST API, Temporal worker and catalogue of Stillpoint.')
  .version(version)
  .option('--config <path>', `configuration (default: ${defaultConfigPath})`);
const { config: path } = program.parse().opts<{ config?: string }>();

// Not by itself: Temporal's runtime, once installed, keeps a process alive that has nothing left to do.
process.exit(await main());

async function main(): Promise<number> {
  try {
    const config = readConfig(path === undefined ? {} : { path });
    await run(config, await temporalSettings());
    return 0;
  } catch (error) {
    process.stderr.write(`stillpoint-engine: ${error instanceof Error ? error.message : String(error)}\n`);
    const isConfig =
      error instanceof ConfigError || error instanceof TemporalError || isCatalogueError(error, 'CATALOGUE_OF_ANOTHER');
    return isConfig ? exitConfig : 1;
  }
}

async function temporalSettings(): Promise<TemporalSettings> {
  const { settingsFromEnvironment } = await import('./temporal/connection.js');
  const settings = settingsFromEnvironment(process.env);
  if (settings !== undefined) return settings;
  throw new ConfigError(
    'No Temporal server is named. Set TEMPORAL_ADDRESS=host:port (and TEMPORAL_NAMESPACE, TEMPORAL_TLS_…, TEMPORAL_API_KEY as the cluster needs), ' +
      "or give a profile of Temporal's configuration file an address. For a try on one machine: temporal server start-dev, and TEMPORAL_ADDRESS=127.0.0.1:7233.",
  );
}

async function run(config: EngineConfig, temporal: TemporalSettings): Promise<void> {
  const { log, flush, flushNow } = createLog(config.logLevel);
  const die = (error: unknown) => {
    log.fatal({ err: error }, 'An error that nobody handled: the engine ends, and is to be started again');
    flushNow();
    process.exit(1);
  };
  process.on('uncaughtException', die);
  process.on('unhandledRejection', die);
  const stopAsked = new Promise<string>((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => resolve(signal));
  });

  log.info({ version, role: config.role, listen: config.listen }, 'starting');
  try {
    const { Engine } = await import('./engine.js');
    const engine = await Engine.start(config, temporal, log);
    try {
      // Without a worker nothing can fail here: an API alone goes on until it is told to stop.
      const signal = await Promise.race([stopAsked, engine.failed.then(() => stopAsked)]);
      log.info({ signal }, 'stopping');
    } finally {
      await engine.stop();
    }
  } finally {
    await flush();
  }
}
