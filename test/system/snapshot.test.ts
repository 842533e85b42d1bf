import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { System } from '@stillpoint/lab/system.js';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { installedTemporal } from '../temporal/fixtures/installed-command.js';

const uuid = '6c1b1f0e-8c1d-4b6e-9a59-3f0d2c7b1a11';

let folder: string;
let system: System;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-system-'));
  const disks = [{ target: 'vda' }, { target: 'vdb' }, { target: 'vdc', kind: 'network' }];
  system = await System.start({
    folder: join(folder, 'system'),
    temporalCommand: await installedTemporal(),
    hypervisor: { kind: 'simulated', vms: [{ name: 'web-1', uuid, disks }] },
  });
});
afterAll(async () => {
  await system?.stop();
  await rm(folder, { recursive: true, force: true });
});

interface Ran {
  exitCode: number;
  out: string;
  err: string;
}

/** The command as it is installed, against the system's engine. */
function stillpoint(...args: string[]): Promise<Ran> {
  const program = new URL('../../engine/dist/cli/main.js', import.meta.url).pathname;
  return new Promise((resolve) => {
    const env = { ...process.env, ...system.cliEnvironment };
    const child = execFile(process.execPath, [program, ...args], { env }, (_error, out, err) => {
      resolve({ exitCode: child.exitCode ?? -1, out, err });
    });
  });
}

test('a snapshot through the whole system: taken, shown, listed and deleted with the command', async () => {
  const hosts = await stillpoint('host', 'list');
  expect(hosts).toMatchObject({ exitCode: 0, err: '' });
  expect(hosts.out).toMatch(new RegExp(`^${system.hostName} +${system.hostAgentAddress} +answers +simulated `, 'm'));
  expect((await stillpoint('vms')).out).toMatch(new RegExp(`^web-1 +${uuid} +${system.hostName} +running`, 'm'));

  const created = await stillpoint('snapshot', 'create', 'web-1', '--name', 'before the update', '--wait');
  expect(created, created.err).toMatchObject({ exitCode: 0 });
  expect(created.out).toMatch(/^grade +filesystem$/m);
  expect(created.out).toMatch(/^window +[\d.]+ ms, 3 file systems frozen/m);
  expect(created.out).toMatch(/^partial +yes, without vdc$/m);
  const id = /^snapshot +(\S+)$/m.exec(created.out)?.[1] ?? '';

  const shown = JSON.parse((await stillpoint('snapshot', 'show', id, '--json')).out);
  expect(shown).toMatchObject({ id, name: 'before the update', state: 'complete', vm: { uuid }, grade: 'filesystem' });
  expect(shown.disks.map((disk: { target: string }) => disk.target)).toEqual(['vda', 'vdb']);
  const listed = await stillpoint('snapshot', 'list', '--vm', 'web-1', '--grade', 'filesystem');
  expect(listed.out).toMatch(new RegExp(`^${id} +web-1 +before the update +complete +filesystem`, 'm'));

  const deleted = await stillpoint('snapshot', 'delete', id, '--wait');
  expect(deleted, deleted.err).toMatchObject({ exitCode: 0, out: `Deleted snapshot ${id} of web-1.\n` });
  expect((await stillpoint('snapshot', 'list')).out).toContain('No snapshots.');
  expect((await stillpoint('vms', '--json')).out).toContain('"hold": null');
});

test('what is not there and what is refused ends with its exit code', async () => {
  expect(await stillpoint('thaw', 'web-2')).toMatchObject({ exitCode: 3, out: '' });
  expect(await stillpoint('snapshot', 'create', 'web-1', '--disk', 'vdc', '--wait')).toMatchObject({ exitCode: 6 });
  expect(await stillpoint('host', 'add', system.hostName, '127.0.0.1:1')).toMatchObject({ exitCode: 4 });
});
