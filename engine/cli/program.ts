import { Command, CommanderError, Option } from 'commander';

import { snapshotState } from '../api/schemas.js';
import { quiescePolicy } from '../contract/snapshot-input.js';
import { grade } from '../contract/snapshot-result.js';
import { version } from '../version.js';
import { ApiClient } from './api-client.js';
import { cleanUpSnapshots } from './cleanup-command.js';
import { showCloud } from './cloud-command.js';
import type { Context } from './context.js';
import { doctor } from './doctor-command.js';
import { durationMs } from './duration-option.js';
import { CommandError, exitCodes } from './exit-codes.js';
import { addHost, listHosts, removeHost } from './host-commands.js';
import {
  type CreateOptions,
  cancelSnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
  showSnapshot,
} from './snapshot-commands.js';
import { json, plainLines, type Terminal } from './terminal.js';
import { listVms, showVm, thawVm } from './vm-commands.js';

export interface Surroundings {
  readonly terminal: Terminal;
  readonly env: NodeJS.ProcessEnv;
  /** Aborts at Ctrl-C. */
  readonly interrupted: AbortSignal;
}

const defaultApi = 'http://127.0.0.1:8700';

/** Runs one command line; answers its exit code (exit-codes.ts), with every error told on stderr. */
export async function runCli(args: string[], { terminal, env, interrupted }: Surroundings): Promise<number> {
  let asJson = false;
  let exitCode: number = exitCodes.ok;
  const program = new Command('stillpoint');
  const act = async (action: (context: Context) => Promise<number>) => {
    const { api, json } = program.opts<{ api: string; json?: boolean }>();
    asJson = json ?? false;
    exitCode = await action({ api: new ApiClient(api, interrupted), terminal, json: asJson, interrupted });
  };
  describe(program, env, terminal, act);
  try {
    await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (error) {
    // commander has said what is wrong, or has printed what was asked for (--help, --version).
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
    const told = error instanceof CommandError ? error : unforeseen(error);
    terminal.err(`${asJson ? json(errorJson(told)) : plainLines(`stillpoint: ${told.code}: ${told.message}`)}\n`);
    return told.exitCode;
  }
}

type Act = (action: (context: Context) => Promise<number>) => Promise<void>;

function describe(program: Command, env: NodeJS.ProcessEnv, terminal: Terminal, act: Act): void {
  program
    .description('Consistent live snapshots of virtual machines.')
    .version(version)
    .exitOverride()
    .configureOutput({ writeOut: (text) => terminal.out(text), writeErr: (text) => terminal.err(text) })
    .configureHelp({ showGlobalOptions: true })
    .option('--api <url>', 'REST API of the engine (STILLPOINT_API)', env.STILLPOINT_API || defaultApi)
    .option('--json', "print the API's answers as JSON");

  const host = program.command('host').description('hosts: hypervisors with a host agent');
  host
    .command('add <name> <address>')
    .description('register a host, or take a lost one back; NAME is what its certificate carries, ADDRESS is HOST:PORT')
    .action((name: string, address: string) => act((context) => addHost(context, name, address)));
  host
    .command('list')
    .description('list the hosts, and whether they answer')
    .action(() => act(listHosts));
  host
    .command('remove <name>')
    .description('remove a host that no snapshot needs')
    .option('--lost', 'say that the host is fenced and its guests are dead: every wait for it ends')
    .option('--yes', 'do not ask')
    .action((name: string, options: { lost?: boolean; yes?: boolean }) =>
      act((context) => removeHost(context, name, options)),
    );

  program
    .command('vms [vm]')
    .description('list the VMs, and who holds which one frozen, since when; of one VM (name or UUID): its disks')
    .action((vm?: string) => act((context) => (vm === undefined ? listVms(context) : showVm(context, vm))));
  program
    .command('cloud')
    .description("show the engine's OpenStack cloud, asked now: whether it can be used, or why not")
    .action(() => act(showCloud));
  program
    .command('thaw <vm>')
    .description('thaw a guest (name or UUID), whoever froze it; an open window loses its freeze')
    .action((vm: string) => act((context) => thawVm(context, vm)));

  program
    .command('doctor')
    .description('compare catalogue, Temporal, Cinder and hosts: find what no run could clean up; changes nothing')
    .option('--repair', 'repair what is ours and unambiguous; the rest is left to you')
    .action((options: { repair?: boolean }) => act((context) => doctor(context, options)));

  const snapshot = program.command('snapshot').description('snapshots of VMs');
  snapshot
    .command('create <vm>')
    .description(
      'take a snapshot of a running VM (name or UUID): any set of its disks, files and block devices of the host, Ceph volumes of Cinder, or both',
    )
    .addOption(
      new Option('--quiesce <policy>', 'required (default): fail rather than be inconsistent').choices(
        quiescePolicy.options,
      ),
    )
    .option('--disk <target>', 'a disk to take, like vda; may be repeated (default: all that can be)', collected)
    .option('--unquiesced <target>', 'a disk that may stay unfrozen, say swap; may be repeated', collected)
    .option('--name <name>', 'for people (default: made from the time)')
    .option('--description <text>', 'for people')
    .option('--freeze-timeout <time>', 'how long the guest may take to freeze (1s to 10m; default 30s)', durationMs)
    .option('--window-limit <time>', 'how long it may stay frozen (100ms to 60s; default 30s, Windows 8s)', durationMs)
    .option('--wait', 'show its steps and wait for its end')
    .action((vm: string, options: CreateOptions) => act((context) => createSnapshot(context, vm, options)));
  snapshot
    .command('list')
    .description('list snapshots, newest first; deleted ones only with --state deleted')
    .option('--vm <vm>', 'of this VM (name or UUID)')
    .addOption(new Option('--grade <grade>', 'of this grade').choices(grade.options))
    .addOption(new Option('--state <state>', 'in this state').choices(snapshotState.options))
    .action((filter: { vm?: string; grade?: string; state?: string }) =>
      act((context) => listSnapshots(context, filter)),
    );
  snapshot
    .command('show <id>')
    .description('show a snapshot: grade, why, window, disks')
    .option('--wait', 'show its steps and wait for the end of its run')
    .action((id: string, options: { wait?: boolean }) => act((context) => showSnapshot(context, id, options)));
  snapshot
    .command('cancel <id>')
    .description('end the run of a snapshot: thawed, and nothing left behind')
    .action((id: string) => act((context) => cancelSnapshot(context, id)));
  snapshot
    .command('delete <id>')
    .description('delete a snapshot: merge its overlays, delete the snapshots of its volumes')
    .option('--wait', 'show its steps and wait for its end')
    .action((id: string, options: { wait?: boolean }) => act((context) => deleteSnapshot(context, id, options)));
  snapshot
    .command('cleanup [id...]')
    .description('finish what ended cleanup-pending (default: all of them, newest first): take back what is left')
    .option('--wait', 'one after another, and say of each what is pending still, and why')
    .action((ids: string[], options: { wait?: boolean }) => act((context) => cleanUpSnapshots(context, ids, options)));
}

function collected(value: string, before: string[] = []): string[] {
  return [...before, value];
}

function unforeseen(error: unknown): CommandError {
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return new CommandError(exitCodes.failed, 'INTERNAL', `An error in Stillpoint: report it with this text. ${text}`, {
    cause: error,
  });
}

function errorJson({ code, message, exitCode, problem }: CommandError) {
  return { ...problem, code, detail: message, exitCode };
}
