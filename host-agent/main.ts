#!/usr/bin/env node
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import type { Administrator } from './administrator.js';
import { ConfigError, defaultConfigPath, type HostAgentConfig, readConfig } from './config.js';
import { createLog } from './log.js';
import { supervise } from './supervisor.js';
import { answerSystemd } from './systemd-watchdog.js';
import { version } from './version.js';

/**
 * `stillpoint-host-agent`: without a command the host agent itself (the supervisor; its worker is worker.ts), with one the administrator's way out, or
 * certificates. Exit codes: 0 done, 1 failed, 78 the configuration cannot be used (sysexits.h EX_CONFIG).
 */
const exitConfig = 78;
const defaultCertificateFolder = '/etc/stillpoint/tls';

const program = new Command('stillpoint-host-agent')
  .description('Freezes, snapshots and thaws the guests of this host for Stillpoint.')
  .version(version)
  .option('--config <path>', `configuration (default: ${defaultConfigPath})`)
  .action(run);

program
  .command('vms')
  .description('list the VMs of this host, who holds them, and whether they are frozen')
  .option('--json', 'print JSON')
  .action(async (options: { json?: boolean }) => {
    const { vmTable } = await import('./administrator.js');
    const vms = await withAdministrator((administrator) => administrator.vms());
    print(options.json ? JSON.stringify(vms, undefined, 2) : vmTable(vms));
  });

program
  .command('release <vm>')
  .description('give a VM (name or UUID) back, whoever holds it: an open window is thawed and lost')
  .action(async (vm: string) => {
    const holder = await withAdministrator((administrator) => administrator.release(vm));
    print(
      holder === undefined
        ? `Nobody held ${vm}.`
        : `Released ${vm}: operation ${holder.operation} of ${holder.installation} held it.`,
    );
  });

const certs = program.command('certs').description('make the certificates of engine and hosts');
for (const [name, description, make] of [
  ['init', 'make a CA', (folder: string) => import('./certs.js').then(({ makeCa }) => makeCa(folder))],
  [
    'engine',
    "make the engine's client certificate",
    (folder: string) => import('./certs.js').then(({ makeEngineCertificate }) => makeEngineCertificate(folder)),
  ],
] as const) {
  certs
    .command(name)
    .description(description)
    .option('--out <folder>', 'folder of the CA and of what is made', defaultCertificateFolder)
    .action(async ({ out }: { out: string }) => tellFiles(await make(out)));
}
certs
  .command('host <name>')
  .description('make the server certificate of the host registered under this name')
  .option('--out <folder>', 'folder of the CA and of what is made', defaultCertificateFolder)
  .action(async (name: string, { out }: { out: string }) => {
    const { makeHostCertificate } = await import('./certs.js');
    tellFiles(await makeHostCertificate(out, name));
  });

try {
  await program.parseAsync();
} catch (error) {
  process.stderr.write(`stillpoint-host-agent: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = error instanceof ConfigError ? exitConfig : 1;
}

async function run(): Promise<void> {
  const config = configured();
  const { log, flush } = createLog(config.logLevel);
  const stop = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => stop.abort());
  log.info({ version }, 'supervisor started');
  answerSystemd(log);
  await supervise({ workerPath: fileURLToPath(new URL('./worker.js', import.meta.url)), config, log }, stop.signal);
  await flush();
}

function configured(): HostAgentConfig {
  const { config: path } = program.opts<{ config?: string }>();
  return readConfig(path === undefined ? {} : { path });
}

async function withAdministrator<Result>(ask: (administrator: Administrator) => Promise<Result>): Promise<Result> {
  const { Administrator } = await import('./administrator.js');
  const { adminSocketPath } = await import('./admin-socket.js');
  const administrator = new Administrator(adminSocketPath(configured().stateFolder));
  try {
    return await ask(administrator);
  } finally {
    administrator.close();
  }
}

function tellFiles(files: string[]): void {
  for (const file of files) print(file);
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
