import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Acceleration } from './acceleration.js';
import { LabError } from './errors.js';
import { endProcess, isRunning, type LabProcess, type ProcessTable, signalProcess, waitForExit } from './processes.js';
import { runProgram } from './programs.js';

/**
 * Whom QEMU runs as. `root`: nothing is relabelled, the quickest. `libvirt-qemu`: as Debian and Ubuntu ship it, the
 * distribution's own user, files chowned by libvirt (dynamic_ownership) and their owner remembered.
 */
export type QemuUser = 'root' | 'libvirt-qemu';

const LIBVIRTD_CONF = (logFile: string) => `unix_sock_group = "root"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_filters = "1:qemu.qemu_agent 1:libvirt.domain-snapshot 3:*"
log_outputs = "1:file:${logFile}"
`;

// No cgroups, namespaces, virtlogd and security module: a container has none of them, and no test is about them.
const QEMU_CONF_COMMON = `security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
`;

const QEMU_CONF: Readonly<Record<QemuUser, string>> = {
  root: `user = "root"\ngroup = "root"\ndynamic_ownership = 0\nremember_owner = 0\n${QEMU_CONF_COMMON}`,
  'libvirt-qemu': QEMU_CONF_COMMON,
};

const MOUNTS = [
  ['etc', '/etc/libvirt'],
  ['lib', '/var/lib/libvirt'],
  ['cache', '/var/cache/libvirt'],
  ['log', '/var/log/libvirt'],
  ['run', '/run/libvirt'],
] as const;

/**
 * A libvirtd that shares nothing with the machine's own: its own mount namespace has the lab's folders in the place of
 * libvirt's, and no D-Bus, so that no VM is announced to systemd. VMs live on when it stops or is killed.
 */
export class Libvirtd {
  /** The socket on which it takes calls, as seen from outside of its namespace. */
  readonly socket: string;
  /** Its log, with every guest agent command and every snapshot call with its flags. */
  readonly logFile: string;
  readonly #name: string;
  readonly #folder: string;
  readonly #qemuUser: QemuUser;
  readonly #acceleration: Acceleration;
  readonly #processes: ProcessTable;

  /** @param name of its process among the lab's */
  constructor(name: string, folder: string, qemuUser: QemuUser, acceleration: Acceleration, processes: ProcessTable) {
    this.#name = name;
    this.#folder = folder;
    this.#qemuUser = qemuUser;
    this.#acceleration = acceleration;
    this.#processes = processes;
    this.socket = join(folder, 'run/libvirt-sock');
    this.logFile = join(folder, 'libvirtd.log');
  }

  /** For libvirt's own clients. */
  get uri(): string {
    return `qemu:///system?socket=${encodeURIComponent(this.socket)}`;
  }

  /** The process, if it runs. */
  get process(): LabProcess | undefined {
    return this.#processes.find(this.#name);
  }

  /**
   * Starts it and waits until it answers; nothing happens where it runs.
   *
   * @throws LabError LIBVIRTD_FAILED when it does not answer within 30 s.
   */
  async start(): Promise<void> {
    if (this.process !== undefined) return;
    await this.#prepareFolders();
    // It refuses to start over the pid file of a killed one where the pid has been given out again.
    await rm(join(this.#folder, 'run/libvirtd.pid'), { force: true });
    const mounts = MOUNTS.map(([own, place]) => `mount --bind "$1/${own}" ${place}`).join(' && ');
    const script = [
      mounts,
      // Through D-Bus it would register the VM with the machine's systemd-machined, where names are the machine's.
      '{ [ ! -d /run/dbus ] || mount -t tmpfs none /run/dbus; }',
      ...this.#withoutKvm(),
      'exec libvirtd --timeout 0 -p /run/libvirt/libvirtd.pid -f /etc/libvirt/libvirtd.conf',
    ].join(' && ');
    const output = join(this.#folder, 'libvirtd.out');
    const args = ['-m', '--propagation', 'private', 'sh', '-c', script, 'sh', this.#folder];
    const started = this.#processes.start(this.#name, 'unshare', args, output);
    const deadline = performance.now() + 30_000;
    for (;;) {
      try {
        await this.virsh(['uri'], 5_000);
        return;
      } catch (error) {
        if (isRunning(started) && performance.now() < deadline) {
          await delay(50);
          continue;
        }
        throw new LabError('LIBVIRTD_FAILED', `libvirtd did not start; see ${output} and ${this.logFile}`, {
          cause: error,
        });
      }
    }
  }

  /** Ends it as a service manager would (SIGTERM); the VMs run on. */
  async stop(): Promise<void> {
    await this.#processes.end(this.#name);
  }

  /** Kills it with SIGKILL; the VMs run on. */
  async kill(): Promise<void> {
    const libvirtd = this.process;
    if (libvirtd !== undefined) await endProcess(libvirtd, 0);
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.start();
  }

  /** Stops it in its tracks (SIGSTOP): its socket stays, and nothing answers. */
  freeze(): void {
    this.#signal('SIGSTOP');
  }

  /** Lets it go on after {@link freeze}. */
  cont(): void {
    this.#signal('SIGCONT');
  }

  /** Waits until it has gone by itself or by a signal, at most `timeoutMs`. */
  async waitForExit(timeoutMs: number): Promise<boolean> {
    const libvirtd = this.process;
    return libvirtd === undefined || waitForExit(libvirtd, timeoutMs);
  }

  /**
   * Runs virsh against it and returns what it printed, trimmed. Not for the product's way, but to judge it from outside.
   *
   * @throws LabError PROGRAM_FAILED with virsh's message.
   */
  async virsh(args: readonly string[], timeoutMs = 30_000): Promise<string> {
    return (await runProgram('virsh', ['-q', '-c', this.uri, ...args], { timeoutMs })).stdout.trim();
  }

  /** Gives it the key with which QEMU logs in to a Ceph; the secret's UUID is the Ceph's fsid: one for each. */
  async defineCephSecret(ceph: { readonly fsid: string; readonly user: string; readonly key: string }): Promise<void> {
    const file = join(this.#folder, `secret-${ceph.fsid}.xml`);
    const usage = `<usage type='ceph'><name>client.${ceph.user} of ${ceph.fsid}</name></usage>`;
    const secret = `<secret ephemeral='no' private='no'><uuid>${ceph.fsid}</uuid>${usage}</secret>`;
    await writeFile(file, secret, { mode: 0o600 });
    await this.virsh(['secret-define', file]);
    await this.virsh(['secret-set-value', ceph.fsid, '--base64', ceph.key]);
  }

  #signal(signal: NodeJS.Signals): void {
    const libvirtd = this.process;
    if (libvirtd === undefined || !signalProcess(libvirtd, signal)) {
      throw new LabError('LIBVIRTD_FAILED', `libvirtd does not run, ${signal} was not sent`);
    }
  }

  /**
   * Hides a /dev/kvm that does not work from a libvirtd whose QEMU runs as another user. Probing QEMU it may override
   * permissions and finds KVM, using it it may not, so it would throw away what it found and probe again, for seconds, each
   * time it needs QEMU's capabilities.
   */
  #withoutKvm(): string[] {
    if (this.#qemuUser === 'root' || this.#acceleration === 'kvm' || !existsSync('/dev/kvm')) return [];
    return ['install -m 000 /dev/null "$1/no-kvm"', 'mount --bind "$1/no-kvm" /dev/kvm'];
  }

  async #prepareFolders(): Promise<void> {
    for (const [own, place] of MOUNTS) {
      await mkdir(join(this.#folder, own), { recursive: true });
      await mkdir(place, { recursive: true });
    }
    const conf = join(this.#folder, 'etc/libvirtd.conf');
    if (existsSync(conf)) return;
    await cp('/etc/libvirt', join(this.#folder, 'etc'), { recursive: true });
    // The distribution's default network would want a bridge.
    await rm(join(this.#folder, 'etc/qemu'), { recursive: true, force: true });
    await writeFile(join(this.#folder, 'etc/qemu.conf'), QEMU_CONF[this.#qemuUser]);
    await writeFile(conf, `${LIBVIRTD_CONF(this.logFile)}host_uuid = "${randomUUID()}"\n`);
  }
}
