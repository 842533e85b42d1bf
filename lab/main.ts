import { LabError } from './errors.js';
import { Lab } from './lab.js';

const USAGE = `Usage: node lab/dist/main.js up | down | status | guest 'command'
The lab lies in $STILLPOINT_LAB_STATE, or in \${XDG_CACHE_HOME:-~/.cache}/stillpoint/lab.`;

const stateFolder = process.env.STILLPOINT_LAB_STATE || undefined;
const say = (line: string) => process.stdout.write(`${line}\n`);

async function main([command, ...rest]: readonly string[]): Promise<number> {
  switch (command) {
    case 'up': {
      for (const signal of ['SIGINT', 'SIGTERM'] as const) {
        process.once(signal, () => void Lab.down(stateFolder, say).finally(() => process.exit(130)));
      }
      const lab = await Lab.up({ keep: true, progress: say, ...(stateFolder === undefined ? {} : { stateFolder }) });
      await showStatus(lab);
      lab.guest.disconnect();
      return 0;
    }
    case 'down':
      await Lab.down(stateFolder, say);
      return 0;
    case 'status':
      await showStatus(await Lab.attach(stateFolder));
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
  }
  process.stderr.write(`${USAGE}\n`);
  return 2;
}

async function showStatus(lab: Lab): Promise<void> {
  say(`state    ${lab.stateFolder}`);
  say(`libvirt  qemu:///system?socket=${lab.libvirtSocket}`);
  say(`VM       ${lab.vm.name} ${lab.vm.uuid} ${await lab.vm.state()} (${lab.acceleration.toUpperCase()})`);
  for (const { name, pid } of lab.processes()) say(`process  ${pid} ${name}`);
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof LabError)) throw error;
  const cause = error.cause instanceof Error ? `\n${error.cause.message}` : '';
  process.stderr.write(`${error.code}: ${error.message}${cause}\n`);
  process.exitCode = 1;
}
