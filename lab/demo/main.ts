import { homedir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Demo, type DemoKind } from './demo.js';

/**
 * `npm run demo`: everything on one machine, one snapshot, and where to look. Exit codes: 0 done, 1 failed, 2 usage, 130 stopped by Ctrl-C before it was up.
 */
const usage = `Usage: npm run demo -- [--exit] [--local | --simulated]

  --exit       end by itself after the snapshot, with nothing left behind
  --local      a real guest with disks on this host only: no Ceph, no Cinder
  --simulated  a simulated hypervisor and Cinder instead of real ones (the default where this is not Linux on x86-64 as root)
`;

const options = readOptions();
const mustSimulate =
  process.platform !== 'linux'
    ? `this is ${process.platform}`
    : process.arch !== 'x64'
      ? `this is ${process.arch}`
      : process.getuid?.() !== 0
        ? 'this is not root'
        : undefined;

const started = Number(process.env.STILLPOINT_DEMO_STARTED) || Date.now();
const say = (line: string) => {
  const seconds = `${((Date.now() - started) / 1000).toFixed(1)} s`;
  process.stdout.write(line === '' ? '\n' : `${seconds.padStart(8)}  ${line}\n`);
};

const kind: DemoKind = options.simulated || mustSimulate !== undefined ? 'simulated' : options.local ? 'local' : 'ceph';
const because = options.simulated || options.local ? 'asked for' : mustSimulate;
const stateFolder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'stillpoint');
const demo = new Demo({ stateFolder, kind, because, say });

let stopping = false;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    if (stopping) return;
    stopping = true;
    void end(demo.isUp ? 0 : 130);
  });
}

try {
  await demo.run();
  if (options.exit) {
    await demo.takeBack();
    await end(0);
  } else {
    demo.tellWhatNext();
  }
} catch (error) {
  if (!stopping) {
    const code = error instanceof Error && 'code' in error ? `${String(error.code)}: ` : '';
    process.stderr.write(`\nThe demo failed. ${code}${error instanceof Error ? error.message : String(error)}\n`);
    // What a program said last, apt for one, is in the cause.
    if (error instanceof Error && error.cause instanceof Error) process.stderr.write(`${error.cause.message}\n`);
    stopping = true;
    await end(1);
  }
}

async function end(code: number): Promise<void> {
  stopping = true;
  say('ending every process');
  try {
    await demo.end();
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(1);
  }
  process.exit(code);
}

function readOptions(): { exit: boolean; local: boolean; simulated: boolean } {
  try {
    const { values } = parseArgs({
      options: {
        exit: { type: 'boolean', default: false },
        local: { type: 'boolean', default: false },
        simulated: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    });
    if (values.local && values.simulated) throw new TypeError('--local and --simulated exclude one another');
    if (!values.help) return values;
    process.stdout.write(usage);
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${usage}`);
    process.exit(2);
  }
}
