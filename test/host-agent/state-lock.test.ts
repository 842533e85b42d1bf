import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { takeStateFolder } from '@stillpoint/host-agent/state-lock.js';
import { pino } from 'pino';
import { expect, onTestFinished, test } from 'vitest';

const log = pino({ level: 'silent' });

async function stateFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-state-'));
  onTestFinished(() => rm(folder, { recursive: true }));
  return folder;
}

/** Everything but the lock is as on this machine. */
function elsewhere(platform: NodeJS.Platform): void {
  const here = process.platform;
  Object.defineProperty(process, 'platform', { value: platform });
  onTestFinished(() => void Object.defineProperty(process, 'platform', { value: here }));
}

const stopped = AbortSignal.abort();

test('who is told to stop does not wait for a state folder that is taken', async () => {
  const folder = await stateFolder();
  expect(await takeStateFolder({ folder, log, stop: stopped })).toBe(true);
  expect(await takeStateFolder({ folder, log, stop: stopped })).toBe(false);
});

test('where the system has no abstract sockets, no lock keeps the simulated host from starting', async () => {
  elsewhere('darwin');
  const folder = await stateFolder();
  expect(await takeStateFolder({ folder, log, stop: stopped })).toBe(true);
  expect(await takeStateFolder({ folder, log, stop: stopped })).toBe(true);
});
