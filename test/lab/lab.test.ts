import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LabError } from '@stillpoint/lab/errors.js';
import { Lab } from '@stillpoint/lab/lab.js';
import { QUIESCE } from '@stillpoint/lab/libvirt-log.js';
import { LibvirtProxy, snapshotFlags } from '@stillpoint/lab/libvirt-proxy.js';
import { identifyProcess } from '@stillpoint/lab/processes.js';
import { runProgram } from '@stillpoint/lab/programs.js';
import { type FileSystemReport, verifySnapshot } from '@stillpoint/lab/snapshot-check.js';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { testStateFolder } from './state-folder.js';

const numbers = (fileSystems: readonly FileSystemReport[]) =>
  fileSystems.flatMap(({ writerNumber }) => writerNumber ?? []);

describe('the lab', () => {
  let lab: Lab;

  beforeAll(async () => {
    lab = await Lab.up({ stateFolder: testStateFolder('own'), progress: console.log });
  });
  afterAll(async () => {
    await lab?.down();
  });
  afterEach(async () => {
    await lab.guest.setHook({});
    await lab.libvirtd.virsh(['domfsthaw', lab.vm.name]).catch(() => '');
    await lab.guest.waitUntilThawed(30_000);
  });

  const freeze = () => lab.libvirtd.virsh(['domfsfreeze', lab.vm.name], 120_000);
  const thaw = () => lab.libvirtd.virsh(['domfsthaw', lab.vm.name], 120_000);

  it('has a guest with two local ext4 disks, a network disk and a vfat at /boot/efi', async () => {
    const mounts = await lab.guest.run("grep '^/dev/vd' /proc/mounts | cut -d' ' -f1-3 | sort");
    expect(mounts.split('\n')).toEqual([
      '/dev/vda1 /boot/efi vfat',
      '/dev/vda2 / ext4',
      '/dev/vdb /data ext4',
      '/dev/vdc /net ext4',
    ]);
    expect(await lab.vm.xml()).toContain("<source protocol='nbd'");
  });

  it('says how a command in the guest has ended', async () => {
    expect(await lab.guest.run('echo out; echo err >&2')).toBe('out\nerr');
    await expect(lab.guest.run('echo no; exit 3')).rejects.toMatchObject({ code: 'GUEST_COMMAND_FAILED' });
    expect(await lab.guest.run(`: ${'x'.repeat(20_000)}; echo long`)).toBe('long');
  });

  it('has a writer that writes all the time', async () => {
    const before = await lab.guest.writerNumber();
    await lab.guest.run(`while [ $(cat /run/writer/number) -le ${before} ]; do usleep 10000; done`);
    expect(await lab.guest.writerNumber()).toBeGreaterThan(before);
  });

  it('tells what is frozen also while the guest is thawed', async () => {
    const all = ['/', '/data', '/net'];
    for (let round = 0; round < 3; round += 1) {
      await freeze();
      expect(await lab.guest.frozenFileSystems()).toEqual(all);
      let thawing = true;
      const thawed = thaw().finally(() => {
        thawing = false;
      });
      while (thawing) expect(all).toEqual(expect.arrayContaining(await lab.guest.frozenFileSystems()));
      await thawed;
      expect(await lab.guest.frozenFileSystems()).toEqual([]);
    }
  });

  it("sees a freeze in the guest's kernel, in libvirt's log and in the hook's", async () => {
    const log = lab.log();
    const frozen = lab.guest.waitUntilFrozen(30_000);
    await freeze();
    await frozen;
    expect(await lab.guest.frozenFileSystems()).toEqual(['/', '/data', '/net']);
    const calls = await lab.guest.hookCalls();
    expect(calls.slice(-2).map(({ call, phase }) => [call, phase])).toEqual([
      ['freeze', 'begin'],
      ['freeze', 'end'],
    ]);
    const thawed = lab.guest.waitUntilThawed(30_000);
    await thaw();
    await thawed;
    expect(await lab.guest.isFrozen()).toBe(false);
    const [time, ...more] = log.frozenTimes();
    expect(more).toEqual([]);
    expect(time?.untilMs).toBeGreaterThan(time?.fromMs ?? Number.POSITIVE_INFINITY);
  });

  it('has a shell that a command hanging on a frozen file system does not stop', async () => {
    await freeze();
    const hanging = lab.guest.run('echo x >/data/hangs && echo done', 60_000);
    expect(await lab.guest.run('cat /proc/loadavg')).not.toBe('');
    await thaw();
    expect(await hanging).toBe('done');
  });

  it('tells a copy of a frozen guest from one of a guest that writes', async () => {
    const copy = async (name: string) => {
      const copies = [join(lab.imagesFolder, `${name}-vda`), join(lab.imagesFolder, `${name}-vdb`)];
      await runProgram('cp', [lab.disks.vda, copies[0] ?? '']);
      await runProgram('cp', [lab.disks.vdb, copies[1] ?? '']);
      return verifySnapshot(copies);
    };
    const written = await copy('written');
    expect(
      written.flatMap(({ fileSystems }) =>
        fileSystems.filter(({ type, needsRecovery }) => type === 'ext4' && needsRecovery),
      ),
    ).toHaveLength(2);
    await freeze();
    const frozen = await copy('frozen');
    await thaw();
    expect(frozen.map(({ clean, fileSystems }) => [clean, fileSystems.map(({ type }) => type)])).toEqual([
      [true, ['vfat', 'ext4']],
      [true, ['ext4']],
    ]);
    const [root = 0, data = 0] = frozen.flatMap(({ fileSystems }) => numbers(fileSystems));
    expect(data).toBeGreaterThan(0);
    expect([data, data + 1]).toContain(root);
  });

  it('shows in the log whether a snapshot was taken with QUIESCE', async () => {
    const log = lab.log();
    const skip = ['--diskspec', 'vdb,snapshot=no', '--diskspec', 'vdc,snapshot=no', '--disk-only', '--no-metadata'];
    await lab.libvirtd.virsh(['snapshot-create-as', lab.vm.name, 'one', ...skip]);
    await lab.libvirtd.virsh(['snapshot-create-as', lab.vm.name, 'two', ...skip, '--quiesce']);
    expect(log.snapshots().map(({ flags }) => (flags & QUIESCE) !== 0)).toEqual([false, true]);
    const { vda } = await lab.vm.chains();
    expect(vda).toHaveLength(3);
    expect(vda?.[2]).toBe(lab.disks.vda);
    await lab.libvirtd.virsh(['blockcommit', lab.vm.name, 'vda', '--active', '--pivot', '--wait']);
  });

  it('has a hook that can fail, and one that takes its time', async () => {
    await lab.guest.setHook({ failFreeze: true });
    await expect(freeze()).rejects.toThrow(/hook has failed with status 3/);
    expect(await lab.guest.isFrozen()).toBe(false);
    await lab.guest.setHook({ freezeSleepS: 1, thawSleepS: 1 });
    await freeze();
    await thaw();
    const calls = (await lab.guest.hookCalls()).slice(-4).map(({ uptimeMs }) => uptimeMs);
    const [freezeBegin = 0, freezeEnd = 0, thawBegin = 0, thawEnd = 0] = calls;
    expect(freezeEnd - freezeBegin).toBeGreaterThanOrEqual(990);
    expect(thawEnd - thawBegin).toBeGreaterThanOrEqual(990);
  });

  it('has a guest agent that can be killed, kept away, stopped, and comes back', async () => {
    await lab.guest.killAgent({ respawn: false });
    await expect(lab.guest.agentCommand({ execute: 'guest-ping' }, 1)).rejects.toThrow(/agent/);
    await lab.guest.startAgent();
    await lab.guest.waitForAgent();
    await lab.guest.killAgent();
    await lab.guest.waitForAgent();
    await lab.guest.stopAgent();
    await expect(lab.guest.agentCommand({ execute: 'guest-ping' }, 1)).rejects.toThrow(/agent/);
    await lab.guest.contAgent();
    await lab.guest.waitForAgent();
    expect(await lab.guest.agentCommand({ execute: 'guest-fsfreeze-status' })).toBe('thawed');
  });

  it('has a libvirtd that can be killed under a frozen guest, which stays frozen', async () => {
    await freeze();
    await lab.libvirtd.kill();
    expect(lab.libvirtd.process).toBeUndefined();
    expect(await lab.guest.isFrozen()).toBe(true);
    await lab.libvirtd.start();
    expect(await lab.vm.state()).toBe('running');
    await lab.guest.waitForAgent();
    await thaw();
    expect(await lab.guest.isFrozen()).toBe(false);
  });

  it('has a proxy that holds a reply of the real libvirt', async () => {
    const proxy = await LibvirtProxy.start({
      socket: join(lab.stateFolder, 'run/proxy'),
      upstream: lab.libvirtSocket,
    });
    try {
      const uri = `qemu:///system?socket=${proxy.socket}`;
      const held = proxy.hold({ procedure: 'FSFREEZE', what: 'reply' });
      const frozen = runProgram('virsh', ['-q', '-c', uri, 'domfsfreeze', lab.vm.name]);
      expect((await held.reached).failed).toBe(false);
      expect(await lab.guest.isFrozen()).toBe(true);
      held.release();
      await frozen;
      await runProgram('virsh', ['-q', '-c', uri, 'domfsthaw', lab.vm.name]);
      const names = proxy.calls().map(({ name }) => name);
      expect(names.indexOf('FSFREEZE')).toBeGreaterThan(names.indexOf('OPEN'));
      expect(names.indexOf('FSTHAW')).toBeGreaterThan(names.indexOf('FSFREEZE'));
      expect(proxy.calls('SNAPSHOT_CREATE_XML').map(snapshotFlags)).toEqual([]);
    } finally {
      await proxy.close();
    }
  });

  it('makes further VMs from the same image, and their file systems are clean after a power-off', async () => {
    const vm = await lab.addVm({ name: 'extra', disks: ['vda', 'vdb', 'vdc'] });
    expect(await vm.guest.run('hostname')).toBe('lab');
    await vm.stop();
    const reports = await verifySnapshot([vm.diskPath('vda'), vm.diskPath('vdb')]);
    expect(reports.map(({ clean }) => clean)).toEqual([true, true]);
    await vm.start();
    await vm.guest.run('touch /data/mark; sync');
    await vm.reset();
    expect(await vm.guest.run('ls /data')).not.toContain('mark');
    await vm.remove();
    expect(await vm.isDefined()).toBe(false);
    expect(vm.qemu).toBeUndefined();
  });

  it('makes VMs without a guest agent channel, with a raw disk, and not started', async () => {
    const mute = await lab.addVm({ name: 'mute', disks: ['vda', 'vdb-raw'], agentChannel: false });
    await expect(mute.guest.agentCommand({ execute: 'guest-ping' })).rejects.toThrow(/not configured/);
    const off = await lab.addVm({ name: 'off', start: false });
    expect(await off.state()).toBe('shut off');
    await mute.remove();
    await off.remove();
  });

  it('belongs to one process: it cannot be brought up in the same folder again', async () => {
    const again = Lab.up({ stateFolder: lab.stateFolder });
    await expect(again).rejects.toBeInstanceOf(LabError);
    await expect(again).rejects.toMatchObject({ code: 'LAB_IN_USE' });
    expect(await lab.vm.state()).toBe('running');
  });
});

describe('a lab as Debian and Ubuntu set up QEMU', () => {
  it('runs as libvirt-qemu, leaves no process, and ends what a crashed run has left', async () => {
    const stateFolder = testStateFolder('debian');
    const crashed = await Lab.up({ stateFolder, qemuUser: 'libvirt-qemu', progress: console.log });
    const left = crashed.processes().map(({ pid }) => pid);
    expect(left).toHaveLength(3);
    const qemu = crashed.vm.qemu?.pid ?? 0;
    const { uid } = await stat(`/proc/${qemu}`);
    expect(uid).not.toBe(0);
    expect((await stat(crashed.disks.vda)).uid).toBe(uid);
    crashed.guest.disconnect();
    // As if its owner had been killed: the owner on record is a process that runs no more.
    const record = join(stateFolder, 'run/owner.json');
    const owner = JSON.parse(readFileSync(record, 'utf8'));
    writeFileSync(record, JSON.stringify({ ...owner, process: { ...owner.process, startTicks: 1 } }));

    const lab = await Lab.up({ stateFolder, qemuUser: 'libvirt-qemu' });
    expect(left.map(identifyProcess)).toEqual([undefined, undefined, undefined]);
    const pids = lab.processes().map(({ pid }) => pid);
    await lab.down();
    expect(pids.map(identifyProcess)).toEqual([undefined, undefined, undefined]);
    expect(existsSync(join(stateFolder, 'run'))).toBe(false);
  });
});
