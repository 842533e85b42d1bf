import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  endProcess,
  identifyProcess,
  isRunning,
  type ProcessIdentity,
  ProcessTable,
  parseProcesses,
  signalProcess,
} from '@stillpoint/lab/processes.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const onLinux = process.platform === 'linux';

/** A process that waits for ever and has said that it runs. */
async function sleeper(script = ''): Promise<ProcessIdentity> {
  const child = spawn(process.execPath, ['-e', `${script}; setInterval(() => {}, 1e6); console.log('up')`], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  await once(child.stdout, 'data');
  const identity = identifyProcess(child.pid ?? 0);
  if (identity === undefined) throw new Error('the child is not there');
  return identity;
}

describe.runIf(onLinux)('the processes of the lab', () => {
  let folder: string;
  const started: ProcessIdentity[] = [];

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lab-processes-'));
  });
  afterEach(async () => {
    for (const identity of started.splice(0)) await endProcess(identity, 0);
    await rm(folder, { recursive: true });
  });

  it('are known by pid and start time', async () => {
    const identity = await sleeper();
    started.push(identity);
    expect(isRunning(identity)).toBe(true);
    expect(isRunning({ ...identity, startTicks: identity.startTicks + 1 })).toBe(false);
  });

  it('are never taken for another one that has got the same pid', async () => {
    const identity = await sleeper();
    started.push(identity);
    const dead = { ...identity, startTicks: identity.startTicks - 1 };
    expect(signalProcess(dead, 'SIGKILL')).toBe(false);
    await endProcess(dead, 0);
    expect(isRunning(identity)).toBe(true);
  });

  it('are never taken for one of an earlier boot', async () => {
    const identity = await sleeper();
    started.push(identity);
    expect(isRunning({ ...identity, bootId: 'another' })).toBe(false);
  });

  it('are killed where they do not heed SIGTERM', async () => {
    const identity = await sleeper("process.on('SIGTERM', () => {})");
    await endProcess(identity, 50);
    expect(isRunning(identity)).toBe(false);
  });

  it('end on SIGTERM even when they are stopped', async () => {
    const identity = await sleeper();
    signalProcess(identity, 'SIGSTOP');
    await endProcess(identity, 5_000);
    expect(isRunning(identity)).toBe(false);
  });

  it('are found by a later run through their table', async () => {
    const file = join(folder, 'processes.json');
    const entry = new ProcessTable(file).start('sleep', 'sleep', ['1000'], join(folder, 'log'));
    started.push(entry);
    const later = new ProcessTable(file);
    expect(later.find('sleep')).toEqual(entry);
    await later.end('sleep');
    expect(isRunning(entry)).toBe(false);
    expect(later.list()).toEqual([]);
  });

  it('are none where the table is torn or foreign', async () => {
    const file = join(folder, 'processes.json');
    await writeFile(file, '[{"name":"x","pi');
    expect(new ProcessTable(file).list()).toEqual([]);
    expect(parseProcesses('{"pid":1}')).toEqual([]);
    expect(parseProcesses('[{"name":"x","pid":"1","startTicks":1,"bootId":"b"}, null]')).toEqual([]);
  });

  it('say clearly that a program is not there', () => {
    const table = new ProcessTable(join(folder, 'processes.json'));
    expect(() => table.start('x', join(folder, 'absent'), [], join(folder, 'log'))).toThrow(/could not be started/);
  });

  it.each([0, 1, -5, Number.NaN, 1.5])('never stand for the pid %s', (pid) => {
    expect(identifyProcess(pid)).toBeUndefined();
  });
});
