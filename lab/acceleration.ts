import { spawn } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import type { GuestImage } from './guest-image.js';
import type { Progress } from './programs.js';

/** How the guest's processor is made: by the host's (KVM), or in software (TCG). */
export type Acceleration = 'kvm' | 'tcg';

const PROBE_LIMIT_MS = 15_000;

/**
 * Says whether KVM boots the lab's kernel here. A device that exists is not enough (nested and para-virtual ones hang a stock
 * kernel), so it is tried, for 15 s at most, and the answer is kept for this host kernel and processor.
 */
export async function chooseAcceleration(
  image: GuestImage,
  cacheFolder: string,
  progress: Progress,
): Promise<Acceleration> {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    progress('acceleration: TCG (no usable /dev/kvm)');
    return 'tcg';
  }
  const host = hostIdentity();
  const file = join(cacheFolder, 'acceleration.json');
  const known = readAnswer(file, host);
  if (known !== undefined) {
    progress(`acceleration: ${known.toUpperCase()} (tried before on this host)`);
    return known;
  }
  progress(`acceleration: trying KVM (at most ${PROBE_LIMIT_MS / 1000} s)`);
  const startedAt = performance.now();
  const acceleration: Acceleration = (await bootsUnderKvm(image)) ? 'kvm' : 'tcg';
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  progress(
    `acceleration: ${acceleration === 'kvm' ? 'KVM works' : 'KVM does not boot the kernel, TCG'} (${seconds} s)`,
  );
  await mkdir(cacheFolder, { recursive: true });
  await writeFile(file, `${JSON.stringify({ host, acceleration })}\n`);
  return acceleration;
}

function hostIdentity(): string {
  const cpu = readFileSync('/proc/cpuinfo', 'utf8').match(/^model name\s*:\s*(.*)$/m)?.[1] ?? 'unknown';
  return `${release()} ${cpu}`;
}

function readAnswer(file: string, host: string): Acceleration | undefined {
  if (!existsSync(file)) return undefined;
  try {
    const { host: knownHost, acceleration } = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
    return knownHost === host && (acceleration === 'kvm' || acceleration === 'tcg') ? acceleration : undefined;
  } catch {
    return undefined;
  }
}

async function bootsUnderKvm(image: GuestImage): Promise<boolean> {
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...['-machine', 'pc,accel=kvm', '-cpu', 'host', '-m', '256', '-nodefaults', '-display', 'none', '-no-reboot'],
      ...['-kernel', image.kernel, '-initrd', image.initrd, '-append', 'console=ttyS0 quiet panic=-1 lab.probe'],
      ...['-serial', 'stdio'],
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  );
  return new Promise((resolve) => {
    let said = '';
    const finish = (works: boolean) => {
      clearTimeout(timer);
      child.kill('SIGKILL');
      resolve(works);
    };
    const timer = setTimeout(() => finish(false), PROBE_LIMIT_MS);
    child.stdout.on('data', (bytes: Buffer) => {
      said = (said + bytes.toString('latin1')).slice(-4096);
      if (said.includes('LAB-PROBE-OK')) finish(true);
    });
    child.once('error', () => finish(false));
    child.once('exit', () => finish(said.includes('LAB-PROBE-OK')));
  });
}
