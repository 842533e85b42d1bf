/** The rows: what goes wrong, for how long, and from when a thaw is possible again. */
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { signalProcess } from '@stillpoint/lab/processes.js';
import { runProgram } from '@stillpoint/lab/programs.js';
import type { DaemonName } from '@stillpoint/lab/storage/storage.js';
import { CephWorld } from './ceph-world.js';
import type { OpenRow } from './results.js';
import { cephSteps, localSteps, type Step } from './steps.js';
import { pauseActivities, resetRun, withRun } from './temporal.js';
import type { World } from './world.js';

/** What a world has to have for a row: disks of the host alone, or volumes of a Cinder too. */
export type Setup = 'local' | 'ceph';

export interface Fault {
  readonly name: string;
  readonly on: Setup;
  /** How it is done, how it is ended, and how long it lasts, for people. */
  readonly how: string;
  /** What the run is asked for, beyond a snapshot of all disks. */
  readonly request: Readonly<Record<string, unknown>>;
  /** Done before the run begins, for what must be there already when the run comes to the step. */
  readonly ready?: (world: World) => Promise<void>;
  begin(world: World): Promise<void>;
  end(world: World): Promise<void>;
  /** ms from its beginning to its end, at least. */
  readonly lastsMs: number;
  /** True: no thaw is possible before its end, and the limit counts from there. False: the guest must be thawed while it lasts. */
  readonly blocksTheThaw: boolean;
  /** True: what is held at the step goes on only when the guest is thawed; false: as soon as the fault is there. */
  readonly keepsHeld: boolean;
  /** One of these is in the error (`CODE: text`) of a run that failed. */
  readonly cause: RegExp;
  /** How the API must show the VM while the guest is frozen and the fault keeps the thaw back. */
  readonly shown?: 'still-frozen' | 'stale';
  /** True: something may be `cleanup pending` for as long as the fault lasts, and `stillpoint snapshot cleanup` ends it afterwards. */
  readonly leavesPending: boolean;
  /** The reason why there is no such cell; undefined where there is one. */
  readonly without?: (step: Step) => string | undefined;
}

const defaults = {
  on: 'local',
  request: {},
  lastsMs: 0,
  blocksTheThaw: false,
  keepsHeld: false,
  leavesPending: false,
  end: async () => undefined,
} as const;

type Row = Omit<Fault, keyof typeof defaults> & Partial<Fault>;

const done = (reason: string, ...columns: string[]) => {
  return (step: Step) => (columns.includes(step.name) ? reason : undefined);
};

const engineOf = ({ system }: World) => {
  if (system.engine === undefined) throw new Error('the engine does not run');
  return system.engine;
};

const workerOf = ({ system }: World) => {
  if (system.hostAgentWorker === undefined) throw new Error('the host agent has no worker now');
  return system.hostAgentWorker;
};

const supervisorOf = ({ system }: World) => {
  if (system.hostAgent === undefined) throw new Error('the host agent does not run');
  return system.hostAgent;
};

const startEngine = async ({ system }: World) => {
  system.startEngine();
  await system.waitUntilReady();
};

/** The image below one in the chain of vda. */
async function below({ lab }: World, file: string): Promise<string> {
  const { vda = [] } = await lab.vm.chains();
  const image = vda[vda.indexOf(file) + 1];
  if (image === undefined || !vda.includes(file)) throw new Error(`the chain of vda has no image below ${file}`);
  return image;
}

const startVm = async ({ lab }: World) => {
  await lab.vm.waitForState('shut off', 10_000);
  await lab.vm.start();
};

const engineGone = /WORKER_LOST|CONSISTENCY_LOST|engine|CANCELLED/;
const hostAgentGone = /HOST_AGENT_RESTARTED|HOST_UNREACHABLE|CONSISTENCY_LOST|host agent|CANCELLED/i;
const libvirtGone = /LIBVIRT_UNREACHABLE|libvirt|CONSISTENCY_LOST/i;
const agentGone = /AGENT_NOT_RESPONDING|AGENT_NOT_CONNECTED|CONSISTENCY_LOST|guest agent/i;
const vmGone = /VM_NOT_RUNNING|VM_PAUSED|VM_CHANGED|VM_GONE|VM_STOPPED|not running|paused|stopped|CONSISTENCY_LOST/i;
const hookIsOver = 'the hook is not called there: the freeze has been answered';
const beforeTheFreeze = ['frozen', 'cutting', 'cuts done', 'thawing', 'thawed', 'recording', 'undoing'];

/** Ends the pause that is under way. */
let goOn: () => Promise<void> = async () => undefined;

const rows: readonly Row[] = [
  {
    name: 'engine killed',
    how: 'kill -9; started again when the guest is thawed',
    begin: ({ system }) => system.killEngine(),
    end: startEngine,
    keepsHeld: true,
    cause: engineGone,
  },
  {
    name: 'engine stopped',
    how: 'SIGSTOP for 8 s, then SIGCONT',
    begin: async (world) => void signalProcess(engineOf(world), 'SIGSTOP'),
    end: async (world) => void signalProcess(engineOf(world), 'SIGCONT'),
    lastsMs: 8_000,
    keepsHeld: true,
    cause: engineGone,
  },
  {
    name: 'host agent killed',
    how: 'kill -9 of supervisor and worker; started again at once',
    begin: ({ system }) => system.killHostAgent(),
    end: async ({ system }) => void system.startHostAgent(),
    blocksTheThaw: true,
    cause: hostAgentGone,
  },
  {
    name: "host agent's worker killed",
    how: 'kill -9; its supervisor starts the next one',
    begin: async ({ system }) => void system.killHostAgentWorker(),
    cause: hostAgentGone,
  },
  {
    name: "host agent's worker stopped",
    how: 'SIGSTOP for good: its supervisor kills it after 2 s of silence, and starts the next one',
    begin: async (world) => void signalProcess(workerOf(world), 'SIGSTOP'),
    cause: hostAgentGone,
  },
  {
    name: 'host agent stopped',
    how: 'SIGSTOP of supervisor and worker for 6 s, then SIGCONT',
    begin: async (world) => {
      const [supervisor, worker] = [supervisorOf(world), workerOf(world)];
      signalProcess(supervisor, 'SIGSTOP');
      signalProcess(worker, 'SIGSTOP');
    },
    end: async (world) => {
      const worker = workerOf(world);
      signalProcess(supervisorOf(world), 'SIGCONT');
      signalProcess(worker, 'SIGCONT');
    },
    lastsMs: 6_000,
    blocksTheThaw: true,
    shown: 'stale',
    cause: hostAgentGone,
  },
  {
    name: 'libvirtd killed',
    how: 'kill -9, started again after 4 s',
    begin: ({ lab }) => lab.libvirtd.kill(),
    end: ({ lab }) => lab.libvirtd.start(),
    lastsMs: 4_000,
    blocksTheThaw: true,
    shown: 'still-frozen',
    leavesPending: true,
    cause: libvirtGone,
  },
  {
    name: 'libvirtd stopped',
    how: 'SIGSTOP for 8 s, then SIGCONT',
    begin: async ({ lab }) => lab.libvirtd.freeze(),
    end: async ({ lab }) => lab.libvirtd.cont(),
    lastsMs: 8_000,
    blocksTheThaw: true,
    shown: 'still-frozen',
    leavesPending: true,
    cause: libvirtGone,
  },
  {
    name: 'guest agent killed',
    how: 'kill -9 in the guest, whose init starts it again',
    begin: ({ lab }) => lab.guest.killAgent(),
    cause: agentGone,
  },
  {
    name: 'guest agent gone',
    how: 'kill -9 in the guest, started again after 4 s',
    begin: ({ lab }) => lab.guest.killAgent({ respawn: false }),
    end: ({ lab }) => lab.guest.startAgent(),
    lastsMs: 4_000,
    blocksTheThaw: true,
    shown: 'still-frozen',
    cause: agentGone,
  },
  {
    name: 'guest agent stopped',
    how: 'SIGSTOP in the guest for 4 s, then SIGCONT',
    begin: ({ lab }) => lab.guest.stopAgent(),
    end: ({ lab }) => lab.guest.contAgent(),
    lastsMs: 4_000,
    blocksTheThaw: true,
    shown: 'still-frozen',
    cause: agentGone,
  },
  {
    name: 'Temporal killed',
    how: "kill -9 of Temporal's server, started again on its database after 6 s",
    begin: ({ system }) => system.killTemporal(),
    end: ({ system }) => system.startTemporal(),
    lastsMs: 6_000,
    cause: /CONSISTENCY_LOST|WORKER_LOST|Temporal/,
  },
  {
    name: 'Temporal stopped',
    how: "SIGSTOP of Temporal's server for 8 s, then SIGCONT",
    begin: async ({ system }) => void process.kill(system.temporal.pid, 'SIGSTOP'),
    end: async ({ system }) => void process.kill(system.temporal.pid, 'SIGCONT'),
    lastsMs: 8_000,
    cause: /CONSISTENCY_LOST|WORKER_LOST|Temporal/,
  },
  {
    name: 'partition',
    how: 'nothing passes between engine and host agent for 8 s, and nobody is told; then what was sent arrives',
    begin: async ({ link }) => link.partition(),
    end: async ({ link }) => link.heal(),
    lastsMs: 8_000,
    keepsHeld: true,
    cause: hostAgentGone,
  },
  {
    name: 'VM paused',
    how: 'virsh suspend, virsh resume after 5 s',
    begin: ({ lab }) => lab.vm.pause(),
    end: ({ lab }) => lab.vm.resume(),
    lastsMs: 5_000,
    blocksTheThaw: true,
    shown: 'still-frozen',
    cause: vmGone,
  },
  {
    name: 'VM rebooted',
    how: 'virsh reset; the fault is over when the guest has booted',
    begin: async ({ lab }) => void (await lab.libvirtd.virsh(['reset', lab.vm.name])),
    end: async ({ lab }) => {
      await lab.guest.waitForShell();
      await lab.guest.waitForAgent();
    },
    blocksTheThaw: true,
    cause: /CONSISTENCY_LOST|VM_CHANGED|AGENT_NOT|guest agent|reboot/i,
  },
  {
    name: 'VM powered off',
    how: 'virsh destroy; started again after 3 s',
    begin: async ({ lab }) => lab.vm.destroy(),
    end: startVm,
    lastsMs: 3_000,
    blocksTheThaw: true,
    leavesPending: true,
    cause: vmGone,
  },
  {
    name: 'VM saved',
    how: 'virsh managedsave; restored by virsh start after 3 s, with the guest as it was',
    begin: async ({ lab }) => void (await lab.libvirtd.virsh(['managedsave', lab.vm.name], 60_000)),
    end: async ({ lab }) => {
      lab.guest.disconnect();
      await lab.vm.powerOn();
    },
    lastsMs: 3_000,
    blocksTheThaw: true,
    leavesPending: true,
    cause: vmGone,
  },
  {
    name: 'freeze hook fails',
    how: "the guest agent's hook ends with an error when it is called to freeze",
    begin: ({ lab }) => lab.guest.setHook({ failFreeze: true }),
    end: ({ lab }) => lab.guest.setHook({}),
    lastsMs: 3_000,
    cause: /FREEZE_HOOK_FAILED/,
    without: done(hookIsOver, ...beforeTheFreeze),
  },
  {
    name: 'freeze hook slow',
    how: "the guest agent's hook takes 5 s before the freeze",
    begin: ({ lab }) => lab.guest.setHook({ freezeSleepS: 5 }),
    end: ({ lab }) => lab.guest.setHook({}),
    lastsMs: 3_000,
    cause: /FREEZE_HOOK|TIMEOUT|NOT_RESPONDING/,
    without: done(hookIsOver, ...beforeTheFreeze),
  },
  {
    name: 'freeze hook hangs',
    how: "the guest agent's hook takes 12 s before the freeze, and freezeTimeoutMs is 4 s; it is over when the hook is",
    request: { freezeTimeoutMs: 4_000 },
    begin: ({ lab }) => lab.guest.setHook({ freezeSleepS: 12 }),
    end: async ({ lab }) => {
      // What hangs freezes all the same in the end, and nobody waits for it any more.
      await lab.guest.run("while ! grep -q 'freeze end' /run/hook/log; do usleep 20000; done", 30_000);
      await lab.guest.setHook({});
    },
    ready: ({ lab }) => lab.guest.run('rm -f /run/hook/log').then(() => undefined),
    blocksTheThaw: true,
    cause: /AGENT_NOT_RESPONDING|FREEZE_TIMEOUT|MAYBE_FROZEN|guest agent/,
    without: done(hookIsOver, ...beforeTheFreeze),
  },
  {
    name: 'thaw hook slow',
    how: "the guest agent's hook takes 8 s after the thaw",
    begin: ({ lab }) => lab.guest.setHook({ thawSleepS: 8 }),
    end: ({ lab }) => lab.guest.setHook({}),
    lastsMs: 3_000,
    cause: /CONSISTENCY_LOST|THAW|guest agent/,
    without: done('the hook is not called there any more', 'thawed', 'recording', 'undoing'),
  },
  {
    name: "another tool's snapshot",
    how: 'virsh snapshot-create-as of vda; its overlay is committed with virsh blockcommit after 2 s',
    begin: async ({ lab }) => {
      const file = join(dirname(lab.disks.vda), 'another-tool.qcow2');
      const others = ['vdb', 'vdc'].flatMap((target) => ['--diskspec', `${target},snapshot=no`]);
      const own = ['--diskspec', `vda,snapshot=external,file=${file}`];
      const what = ['--disk-only', '--no-metadata', ...own, ...others];
      await lab.libvirtd.virsh(['snapshot-create-as', lab.vm.name, 'another-tool', ...what]);
    },
    end: async (world) => {
      const { lab } = world;
      const file = join(dirname(lab.disks.vda), 'another-tool.qcow2');
      const commit = ['blockcommit', lab.vm.name, 'vda', '--top', file, '--base', await below(world, file)];
      const how = (await lab.vm.chains()).vda?.[0] === file ? ['--active', '--pivot', '--wait'] : ['--wait'];
      // Our own undo may be under way on the same disk.
      await world.until('the other overlay is committed', () =>
        lab.libvirtd.virsh([...commit, ...how]).then(
          () => true,
          () => undefined,
        ),
      );
      await rm(file, { force: true });
    },
    lastsMs: 2_000,
    leavesPending: true,
    cause: /VM_CHANGED|CUT_MISSING|CONSISTENCY_LOST|chain|vda/,
  },
  {
    name: "another tool's resize",
    how: 'virsh blockresize of vdb, 1 MiB larger, for good',
    begin: async ({ lab }) => {
      const info = await lab.libvirtd.virsh(['domblkinfo', lab.vm.name, 'vdb']);
      const bytes = Number(info.match(/^Capacity:\s+(\d+)$/m)?.[1]);
      await lab.libvirtd.virsh(['blockresize', lab.vm.name, 'vdb', `${bytes + 2 ** 20}B`]);
    },
    cause: /VM_CHANGED|vdb/,
  },
  {
    name: "another tool's block job",
    how: 'virsh blockcopy of vdb, ended with virsh blockjob --abort after 3 s',
    begin: async ({ lab }) => {
      const copy = join(dirname(lab.disks.vdb), 'another-copy.qcow2');
      await lab.libvirtd.virsh(['blockcopy', lab.vm.name, 'vdb', copy, '--transient-job']);
    },
    end: async ({ lab }) => {
      await lab.libvirtd.virsh(['blockjob', lab.vm.name, 'vdb', '--abort']);
      await rm(join(dirname(lab.disks.vdb), 'another-copy.qcow2'), { force: true });
    },
    lastsMs: 3_000,
    leavesPending: true,
    cause: /BLOCK_JOB|SNAPSHOT_FAILED|DISK_BUSY|block ?job|vdb/i,
  },
  {
    name: "full disk under the host agent's journal",
    how: 'its state folder is full for 5 s',
    begin: async ({ journal }) => {
      const filler = ['if=/dev/zero', `of=${join(journal, 'filler')}`, 'bs=4k', 'status=none'];
      await runProgram('dd', filler, { accept: [1] });
    },
    end: ({ journal }) => rm(join(journal, 'filler'), { force: true }),
    lastsMs: 5_000,
    cause: /JOURNAL|ENOSPC|no space|STATE|CONSISTENCY_LOST/i,
  },
  {
    name: 'cancelled in Temporal',
    how: "the run is cancelled with Temporal's own tools",
    begin: (world) => withRun(world, async (client, id) => void (await client.workflow.getHandle(id).cancel())),
    cause: /CANCELLED/,
  },
  {
    name: 'terminated in Temporal',
    how: "the run is terminated with Temporal's own tools; `stillpoint doctor --repair` afterwards",
    begin: (world) =>
      withRun(world, async (client, id) => void (await client.workflow.getHandle(id).terminate('the matrix'))),
    end: async ({ system }) => {
      const { exitCode, stdout, stderr } = await system.stillpoint('doctor', '--repair');
      if (exitCode !== 0) throw new Error(`stillpoint doctor --repair ended with ${exitCode}: ${stdout}${stderr}`);
    },
    cause: /WORKER_LOST|terminated|RUN_GONE|ended without a word/i,
  },
  {
    name: 'paused in Temporal',
    how: "every open activity of the run is paused with Temporal's own tools, and goes on after 6 s",
    begin: async (world) => {
      goOn = await pauseActivities(world);
    },
    end: () => goOn(),
    lastsMs: 6_000,
    cause: /CONSISTENCY_LOST|CANCELLED|paused/i,
  },
  {
    name: 'reset in Temporal',
    how: "the run is reset to its first workflow task with Temporal's own tools, which terminates it",
    begin: resetRun,
    leavesPending: true,
    cause: /RUN_ENDED.*TERMINATED|CONSISTENCY_LOST|CANCELLED|CATALOGUE_REFUSED/s,
  },
];

const cephOf = (world: World): CephWorld => {
  if (!(world instanceof CephWorld)) throw new Error('this world has no Ceph');
  return world;
};

const cloudGone = /CINDER_|CLOUD_|KEYSTONE_|VOLUME_|CONSISTENCY_LOST|CUT_MISSING|Cinder|Keystone/;

/** A daemon of the storage is killed and started again, or stands still and goes on. */
function daemonRows(
  daemon: DaemonName,
  name: string,
  more: Partial<Pick<Row, 'blocksTheThaw' | 'cause' | 'lastsMs'>> = {},
): Row[] {
  const common = { on: 'ceph', lastsMs: 6_000, leavesPending: true, cause: cloudGone, ...more } as const;
  const of = (world: World) => cephOf(world).storage.daemon(daemon);
  const s = common.lastsMs / 1000;
  return [
    {
      ...common,
      name: `${name} killed`,
      how: `kill -9 of ${daemon}, started again after ${s} s`,
      begin: (world) => of(world).kill(),
      end: (world) => of(world).start(),
    },
    {
      ...common,
      name: `${name} stopped`,
      how: `SIGSTOP of ${daemon} for ${s} s, then SIGCONT`,
      begin: (world) => of(world).freeze(),
      end: (world) => of(world).thaw(),
    },
  ];
}

/** Rows on the host's side that differ where the workflow owns the window. */
const onBoth = [
  'engine killed',
  'engine stopped',
  'host agent killed',
  "host agent's worker killed",
  'partition',
  'Temporal killed',
  'terminated in Temporal',
];

const cephRows: readonly Row[] = [
  ...rows
    .filter(({ name }) => onBoth.includes(name))
    .map((row) => ({ ...row, name: `${row.name}, with Ceph`, on: 'ceph' as const })),
  ...daemonRows('cinder-volume', 'cinder-volume'),
  ...daemonRows('cinder-api-keystone', 'cinder-api'),
  ...daemonRows('osd', 'OSD', { blocksTheThaw: true }),
  ...daemonRows('mon', 'monitor'),
  ...daemonRows('rabbitmq', 'RabbitMQ'),
  ...daemonRows('mariadb', "Cinder's database"),
  ...daemonRows('keystone', 'Keystone'),
];

export const faults: readonly Fault[] = [...rows, ...cephRows].map((row) => ({ ...defaults, ...row }));

export const stepsOf = ({ on }: Fault): readonly Step[] => (on === 'local' ? localSteps : cephSteps);

/** Rows of the list that nobody plays yet. */
export const openRows: readonly OpenRow[] = [
  {
    name: 'full disk under the overlays',
    why: "the lab's disks lie on one file system with libvirt's log, which the checks read; it needs a place of its own for them",
  },
  {
    name: 'migration begun before or inside the window',
    why: 'it needs a second libvirtd and a second host agent on the machine, and a VM whose disks are all on Ceph',
  },
  { name: 'clock jumps', why: 'it needs libfaketime below the programs of the system' },
  { name: 'two engines at once', why: 'the embedded catalogue takes one engine; it needs a PostgreSQL in the world' },
  {
    name: 'the catalogue killed and stopped',
    why: 'the embedded one dies with its engine; it needs a PostgreSQL in the world',
  },
];
