import { join } from 'node:path';
import { LabError } from './errors.js';
import { defaultStateFolder, Lab } from './lab.js';
import { ensurePackages, STORAGE_REQUIREMENTS, VM_REQUIREMENTS } from './packages.js';
import { attachStorage, endStorage, type Storage, startStorage } from './storage/storage.js';

const USAGE = `Usage: npm run lab [-- COMMAND]
  (none)             brings everything up (Ceph, Cinder, Keystone, libvirt, a guest), and takes it down again at Ctrl-C
  up                 brings it up and leaves it running
  down               ends it and removes what it made
  status             says where everything is
  guest 'COMMAND'    runs a command in the guest
  cinder ARGUMENTS   runs the command cinder, without authentication
The lab lies in $STILLPOINT_LAB_STATE, or in \${XDG_CACHE_HOME:-~/.cache}/stillpoint/lab.`;

/** vdc and vdd. */
const VOLUMES = 2;

const stateFolder = process.env.STILLPOINT_LAB_STATE || defaultStateFolder();
const cacheFolder = join(defaultStateFolder(), 'cache');
const storageFolder = join(stateFolder, 'storage');
const say = (line: string) => process.stdout.write(`${line}\n`);

async function main([command, ...rest]: readonly string[]): Promise<number> {
  switch (command) {
    case undefined:
    case 'up': {
      const stopped = new AbortController();
      const signalled = new Promise<void>((resolve) => {
        for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
          process.once(signal, () => {
            stopped.abort(new LabError('LAB_NOT_UP', 'Stopped before it was up'));
            resolve();
          });
        }
      });
      try {
        await bringUp(stopped.signal);
      } catch (error) {
        await takeDown();
        throw error;
      }
      if (command === 'up') return 0;
      say('Ctrl-C ends it.');
      await signalled;
      await takeDown();
      return 0;
    }
    case 'down':
      await takeDown();
      return 0;
    case 'status':
      await showStatus(await Lab.attach(stateFolder), attachStorage(storageFolder));
      return 0;
    case 'guest': {
      if (rest.length === 0) break;
      const lab = await Lab.attach(stateFolder);
      try {
        say(await lab.guest.run(rest.join(' '), 60_000));
      } finally {
        lab.guest.disconnect();
      }
      return 0;
    }
    case 'cinder': {
      const { exitCode, stdout, stderr } = await attachStorage(storageFolder).cinderCommand(rest);
      process.stdout.write(stdout);
      process.stderr.write(stderr);
      return exitCode;
    }
  }
  process.stderr.write(`${USAGE}\n`);
  return 2;
}

async function bringUp(signal: AbortSignal): Promise<void> {
  // In one go: it is the longest part, and one after the other takes longer.
  await ensurePackages([...VM_REQUIREMENTS, ...STORAGE_REQUIREMENTS], say);
  const storage = findStorage() ?? (await startNewStorage(signal));
  signal.throwIfAborted();
  const lab = await Lab.up({ keep: true, progress: say, stateFolder, ceph: { storage, volumes: VOLUMES } });
  try {
    signal.throwIfAborted();
    await showStatus(lab, storage);
  } finally {
    lab.guest.disconnect();
  }
}

/** The storage of an earlier `up`, if all of it runs. */
function findStorage(): Storage | undefined {
  try {
    const storage = attachStorage(storageFolder);
    return storage.daemons.every(({ pids }) => pids.length > 0) ? storage : undefined;
  } catch {
    return undefined;
  }
}

function startNewStorage(signal: AbortSignal): Promise<Storage> {
  return startStorage({ folder: storageFolder, cacheFolder, keystone: true, monitor: 'stock', signal, progress: say });
}

async function takeDown(): Promise<void> {
  await Lab.down(stateFolder, say);
  const ended = await endStorage(storageFolder);
  if (ended > 0) say(`storage: down (${ended} processes ended)`);
}

async function showStatus(lab: Lab, storage: Storage): Promise<void> {
  say(`state     ${lab.stateFolder}`);
  say(`libvirt   qemu:///system?socket=${lab.libvirtSocket}`);
  say(`VM        ${lab.vm.name} ${lab.vm.uuid} ${await lab.vm.state()} (${lab.acceleration.toUpperCase()})`);
  say(`guest     npm run --silent lab -- guest 'cat /proc/mounts'`);
  say(`Ceph      ceph -c ${storage.cephConf} -s`);
  say(`Cinder    npm run --silent lab -- cinder list`);
  say(
    `          ${storage.cinder.endpoint}/${storage.cinder.projectId}, X-Auth-Token: ${storage.cinder.userId}:${storage.cinder.projectId}`,
  );
  if (storage.keystone !== undefined) {
    const { authUrl, member, admin } = storage.keystone;
    say(
      `Keystone  ${authUrl}: ${member.name} / ${member.password} (project ${member.projectName}), admin / ${admin.password}`,
    );
  }
  for (const { name, pid } of lab.processes()) say(`process   ${pid} ${name}`);
  for (const { name, pids } of storage.daemons) say(`process   ${pids.join(' ') || 'none'} ${name}`);
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof LabError)) throw error;
  const cause = error.cause instanceof Error ? `\n${error.cause.message}` : '';
  process.stderr.write(`${error.code}: ${error.message}${cause}\n`);
  process.exitCode = 1;
}
