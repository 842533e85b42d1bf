/** The port over a scripted libvirtd: the errors that a real one gives only of another version, in another language, or never. */
import { HostAgentError, type HostAgentErrorCode } from '@stillpoint/host-agent/errors.js';
import type { Hypervisor, HypervisorEvent } from '@stillpoint/host-agent/hypervisor.js';
import type { LibvirtErrorFields } from '@stillpoint/host-agent/libvirt/errors.js';
import { createLibvirtHypervisor } from '@stillpoint/host-agent/libvirt/hypervisor.js';
import { Procedures, readDomain } from '@stillpoint/host-agent/libvirt/procedures.js';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Arrivals, FakeLibvirtd, web1, writeDomain } from './fake-libvirtd.js';

const uuid = web1.uuid;
const QUIESCE = 64;

let libvirtd: FakeLibvirtd;
let hypervisor: Hypervisor;
/** What the domain looks like when it is looked at. */
let state: number;
let agent: string;

beforeEach(async () => {
  state = 1;
  agent = `<channel><target name='org.qemu.guest_agent.0' state='connected'/></channel>`;
  libvirtd = await FakeLibvirtd.start();
  libvirtd.answer(Procedures.domainGetState, (call) => call.reply((w) => w.int(state).int(1)));
  libvirtd.answer(Procedures.domainGetXmlDesc, (call) => call.reply((w) => w.string(xml())));
  libvirtd.answer(Procedures.domainLookupByUuid, (call) => call.reply((w) => writeDomain(w)));
  libvirtd.answer(Procedures.domainHasManagedSaveImage, (call) => call.reply((w) => w.int(0)));
  libvirtd.answer(Procedures.domainIsPersistent, (call) => call.reply((w) => w.int(1)));
  libvirtd.answer(Procedures.domainGetJobStats, (call) => call.reply((w) => w.int(0).uint(0)));
  libvirtd.answer(Procedures.domainGetBlockJobInfo, (call) =>
    call.reply((w) => w.int(0).int(0).uhyper(0n).uhyper(0n).uhyper(0n)),
  );
  libvirtd.answer(Procedures.connectListAllDomains, (call) => call.reply((w) => writeDomain(w.uint(1)).uint(1)));
  hypervisor = createLibvirtHypervisor({ socketPath: libvirtd.path, reconnectMinMs: 1, reconnectMaxMs: 5 });
  await hypervisor.start();
});

afterEach(async () => {
  await hypervisor.close();
  await libvirtd[Symbol.asyncDispose]();
});

function xml(): string {
  const id = state === 5 ? '' : " id='7'";
  return (
    `<domain type='kvm'${id}><name>web-1</name><uuid>${uuid}</uuid><devices>${agent}` +
    `<disk type='file'><driver type='qcow2'/><source file='/images/a.qcow2'/><target dev='vda'/></disk>` +
    `<disk type='network'><source protocol='rbd' name='volumes/volume-1'/><target dev='vdb'/></disk></devices></domain>`
  );
}

type Fields = Partial<LibvirtErrorFields>;
const text = (message: string, number: number, domain = 10): Fields => ({ number, domain, message });
const refusal = (what: string) =>
  `internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': ${what}`;

async function codeOf(call: Promise<unknown>): Promise<HostAgentErrorCode> {
  const error: unknown = await call.then(
    () => new Error('it succeeded'),
    (failure: unknown) => failure,
  );
  if (!(error instanceof HostAgentError)) throw error;
  return error.code;
}

describe('A freeze that libvirt refuses', () => {
  it.each<[HostAgentErrorCode, string, Fields]>([
    ['VM_NOT_FOUND', 'by an unknown domain', text('Domain not found: no domain with matching uuid', 42)],
    [
      'VM_NOT_RUNNING',
      'by a domain that is off',
      text('Requested operation is not valid: domain is not running', 55, 20),
    ],
    [
      'VM_PAUSED',
      'by a paused domain that runs again',
      text('Requested operation is not valid: domain is not running', 55),
    ],
    ['LIBVIRT_ERROR', 'by a state that is neither', text('Requested operation is not valid: something else', 55)],
    [
      'AGENT_NOT_CONFIGURED',
      'for want of a channel',
      text('argument unsupported: QEMU guest agent is not configured', 74),
    ],
    [
      'LIBVIRT_ERROR',
      'for another argument',
      text('argument unsupported: specifying mountpoints is not supported', 74),
    ],
    [
      'AGENT_NOT_CONNECTED',
      'for want of an agent',
      text('Guest agent is not responding: QEMU guest agent is not connected', 86),
    ],
    [
      'AGENT_NOT_RESPONDING',
      'by silence',
      text('Guest agent is not responding: Guest agent not available for now', 86),
    ],
    [
      'AGENT_NOT_RESPONDING',
      'by an agent that goes',
      text('Guest agent is not responding: Guest agent disappeared while executing command', 86),
    ],
    ['AGENT_NOT_RESPONDING', 'by silence, as later versions say', text('guest agent command timed out', 112)],
    [
      'AGENT_NOT_RESPONDING',
      'by an agent out of step',
      text('guest agent replied with wrong id to guest-sync command', 97),
    ],
    [
      'ALREADY_FROZEN',
      'because it is frozen',
      text(refusal('Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state'), 1),
    ],
    ['FREEZE_HOOK_FAILED', 'by its hook', text(refusal('fsfreeze hook has failed with status 3'), 1)],
    [
      'FREEZE_HOOK_FAILED',
      'by its hook, as later versions number it',
      text(refusal('fsfreeze hook has failed with status 3'), 113),
    ],
    ['FREEZE_FAILED', 'by the guest’s kernel', text(refusal('failed to freeze /data: Input/output error'), 1)],
    [
      'FREEZE_FAILED',
      'by the guest’s administrator',
      text(refusal('Command guest-fsfreeze-freeze has been disabled: the command is not allowed'), 1),
    ],
    [
      'HYPERVISOR_BUSY',
      'by another job',
      text(
        'Timed out during operation: cannot acquire state change lock (held by agent=remoteDispatchDomainFSFreeze)',
        68,
        0,
      ),
    ],
    ['LIBVIRT_ERROR', 'by another timeout', text('Timed out during operation: something else', 68)],
    ['LIBVIRT_ERROR', 'by an internal error', text('internal error: Missing monitor reply object', 1)],
    ['LIBVIRT_ERROR', 'by an error of a later version', text('something new', 999, 77)],
  ])('is %s: %s', async (code, _, fields) => {
    libvirtd.answer(Procedures.domainFsFreeze, (call) => call.fail(fields));
    const failure = hypervisor.freeze(uuid);
    await expect(failure).rejects.toMatchObject({
      message: fields.message,
      metadata: { libvirtCode: String(fields.number), libvirtDomain: String(fields.domain) },
    });
    expect(await codeOf(failure)).toBe(code);
  });

  it.each<[HostAgentErrorCode, string, number, string, Fields]>([
    [
      'VM_NOT_RUNNING',
      'off',
      5,
      agent0('connected'),
      text('Angeforderte Operation ist nicht gültig: Domain läuft nicht', 55),
    ],
    [
      'VM_PAUSED',
      'paused',
      3,
      agent0('connected'),
      text('Angeforderte Operation ist nicht gültig: Domain läuft nicht', 55),
    ],
    ['AGENT_NOT_CONFIGURED', 'without a channel', 1, '', text('Argument nicht unterstützt', 74)],
    // It may have gone after the command was sent: only the text says that it was not.
    [
      'AGENT_NOT_RESPONDING',
      'without its agent now',
      1,
      agent0('disconnected'),
      text('Gast-Agent antwortet nicht', 86),
    ],
  ])('in another language is %s of a domain that is %s', async (code, _, seenState, seenAgent, fields) => {
    state = seenState;
    agent = seenAgent;
    libvirtd.answer(Procedures.domainFsFreeze, (call) => call.fail(fields));
    expect(await codeOf(hypervisor.freeze(uuid))).toBe(code);
  });

  it('and whose domain cannot be looked at is still told apart by number and part', async () => {
    libvirtd.answer(Procedures.domainGetState, (call) => call.fail({ number: 1 }));
    libvirtd.answer(Procedures.domainFsFreeze, (call) =>
      call.fail(text('Requested operation is not valid: domain is not running', 55, 20)),
    );
    expect(await codeOf(hypervisor.freeze(uuid))).toBe('VM_NOT_RUNNING');
  });

  it('is LIBVIRT_UNREACHABLE with an unknown outcome when the connection breaks', async () => {
    const frozen = hypervisor.freeze(uuid);
    (await libvirtd.calls(Procedures.domainFsFreeze).next()).connection.socket.destroy();
    await expect(frozen).rejects.toMatchObject({ code: 'LIBVIRT_UNREACHABLE', metadata: { outcome: 'unknown' } });
  });

  it('is LIBVIRT_PROTOCOL when the answer makes no sense', async () => {
    libvirtd.answer(Procedures.domainFsFreeze, (call) => call.reply());
    expect(await codeOf(hypervisor.freeze(uuid))).toBe('LIBVIRT_PROTOCOL');
  });
});

function agent0(seen: string): string {
  return `<channel><target name='org.qemu.guest_agent.0' state='${seen}'/></channel>`;
}

describe('A thaw', () => {
  it('that the guest agent refuses is an unknown error, and never one of the known', async () => {
    libvirtd.answer(Procedures.domainFsThaw, (call) =>
      call.fail(
        text(
          "internal error: unable to execute QEMU agent command 'guest-fsfreeze-thaw': couldn't hold writes: fsfreeze is limited up to 10 seconds",
          1,
        ),
      ),
    );
    expect(await codeOf(hypervisor.thaw(uuid))).toBe('LIBVIRT_ERROR');
  });

  it('tells its instants', async () => {
    libvirtd.answer(Procedures.domainFsThaw, (call) => call.reply((w) => w.int(2)));
    const before = performance.now();
    const { fileSystems, requestedAt, repliedAt } = await hypervisor.thaw(uuid);
    expect(fileSystems).toBe(2);
    const instants = [before, requestedAt, repliedAt, performance.now()];
    expect(instants).toEqual([...instants].sort((a, b) => a - b));
  });
});

describe('The freeze status', () => {
  const answer = (json: string | null) =>
    libvirtd.answer(Procedures.qemuAgentCommand, (call) =>
      call.reply((w) => w.optional(json, (o, value) => o.string(value))),
    );

  it('is asked with a timeout of its own', async () => {
    const asked = hypervisor.freezeStatus(uuid, 3);
    const call = await libvirtd.calls(Procedures.qemuAgentCommand).next();
    call.body.string();
    call.body.opaque(16);
    call.body.int();
    expect([call.body.string(), call.body.int(), call.body.uint()]).toEqual([
      '{"execute":"guest-fsfreeze-status"}',
      3,
      0,
    ]);
    call.reply((w) => w.optional('{"return":"frozen"}', (o, value) => o.string(value)));
    expect(await asked).toBe('frozen');
  });

  it.each([
    null,
    '',
    '{',
    '{}',
    '[]',
    '{"return":{}}',
    '{"return":"perhaps"}',
    '{"return":"Thawed"}',
    '{"error":{"class":"GenericError"}}',
  ])('is never guessed from %j', async (json) => {
    answer(json);
    expect(await codeOf(hypervisor.freezeStatus(uuid, 1))).toBe('AGENT_NOT_RESPONDING');
  });

  it.each([0, -1, 0.5, Number.NaN])('is not asked with a timeout of %d s, which could block', async (seconds) => {
    expect(await codeOf(hypervisor.freezeStatus(uuid, seconds))).toBe('INVALID_ARGUMENT');
    expect(await codeOf(hypervisor.setAgentTimeout(uuid, seconds))).toBe('INVALID_ARGUMENT');
  });
});

describe('The guest’s OS', () => {
  it.each<[string, object]>([
    ['{"return":{"id":"mswindows"}}', { id: 'mswindows', isWindows: true }],
    ['{"return":{"id":"debian"}}', { id: 'debian', isWindows: false }],
    ['{"return":{"kernel-release":"6.1"}}', { id: 'unknown', isWindows: false }],
  ])('is what its agent says: %s', async (json, expected) => {
    libvirtd.answer(Procedures.qemuAgentCommand, (call) =>
      call.reply((w) => w.optional(json, (o, value) => o.string(value))),
    );
    expect(await hypervisor.guestOs(uuid, 1)).toEqual(expected);
  });

  it('is not what no operating system is called', async () => {
    libvirtd.answer(Procedures.qemuAgentCommand, (call) =>
      call.reply((w) => w.optional(`{"return":{"id":"${'x'.repeat(1_000_000)}"}}`, (o, value) => o.string(value))),
    );
    expect(await hypervisor.guestOs(uuid, 1)).toBeUndefined();
  });

  it('is what the definition says where the agent does not answer', async () => {
    libvirtd.answer(Procedures.qemuAgentCommand, (call) => call.fail({ number: 86 }));
    expect(await hypervisor.guestOs(uuid, 1)).toBeUndefined();
    agent = `</devices><metadata><libosinfo:libosinfo xmlns:libosinfo='u'><libosinfo:os id='http://microsoft.com/win/11'/></libosinfo:libosinfo></metadata><devices>`;
    libvirtd.answer(Procedures.domainGetXmlDesc, (call) =>
      call.reply((w) => w.string(xml().replace('<devices></devices>', ''))),
    );
    expect(await hypervisor.guestOs(uuid, 1)).toEqual({ id: 'mswindows', isWindows: true });
  });
});

describe('The guest agent’s response timeout', () => {
  it.each<[string, number | 'default', number]>([
    ['in seconds', 60, 60],
    ['libvirt’s default', 'default', -1],
  ])('is set %s', async (_, seconds, sent) => {
    const values: number[] = [];
    libvirtd.answer(Procedures.domainAgentSetResponseTimeout, (call) => {
      call.body.string();
      call.body.opaque(16);
      call.body.int();
      values.push(call.body.int());
      call.reply((w) => w.int(0));
    });
    await hypervisor.setAgentTimeout(uuid, seconds);
    expect(values).toEqual([sent]);
  });

  it('cannot be set before libvirt 5.10', async () => {
    expect(await hypervisor.facts()).toMatchObject({
      libvirtVersion: '9.0.0',
      qemuVersion: '7.2.22',
      canSetAgentTimeout: true,
    });
    libvirtd.answer(Procedures.connectGetLibVersion, (call) => call.reply((w) => w.uhyper(5_009_000n)));
    const up = new Promise<void>((resolve) => {
      hypervisor.onEvent((event) => event.type === 'connection' && event.up && resolve());
    });
    await libvirtd.stop();
    await libvirtd.listen();
    await up;
    expect(await hypervisor.facts()).toMatchObject({ libvirtVersion: '5.9.0', canSetAgentTimeout: false });
    expect(await codeOf(hypervisor.setAgentTimeout(uuid, 5))).toBe('LIBVIRT_TOO_OLD');
  });
});

describe('A snapshot', () => {
  const overlay = { target: 'vda', path: '/images/a.sp-1.qcow2' };

  it('is one call that names every disk, disk-only, atomic, reuse-ext, no-metadata, and never QUIESCE', async () => {
    const done = hypervisor.snapshotDisks(uuid, [overlay]);
    const call = await libvirtd.calls(Procedures.domainSnapshotCreateXml).next();
    call.body.string();
    call.body.opaque(16);
    call.body.int();
    const sent = call.body.string();
    const flags = call.body.uint();
    expect(sent).toContain('<disk name="vda" snapshot="external"');
    expect(sent).toContain('<disk name="vdb" snapshot="no"/>');
    expect(flags).toBe(4 | 16 | 32 | 128);
    expect(flags & QUIESCE).toBe(0);
    call.reply((w) => writeDomain(w.string('1')));
    const { requestedAt, repliedAt } = await done;
    expect(requestedAt).toBeLessThanOrEqual(repliedAt);
  });

  it.each<[HostAgentErrorCode, Fields]>([
    ['SNAPSHOT_FAILED', text('unsupported configuration: nothing selected for snapshot', 67)],
    ['SNAPSHOT_FAILED', text("failed to create image file '/x': No such file or directory", 38)],
    ['SNAPSHOT_FAILED', text('something new', 999)],
    ['HYPERVISOR_BUSY', text('Timed out during operation: cannot acquire state change lock', 68)],
    ['VM_NOT_FOUND', text('Domain not found', 42)],
    ['VM_NOT_RUNNING', text('Requested operation is not valid: domain is not running', 55, 20)],
  ])('that libvirt refuses is %s', async (code, fields) => {
    libvirtd.answer(Procedures.domainSnapshotCreateXml, (call) => call.fail(fields));
    expect(await codeOf(hypervisor.snapshotDisks(uuid, [overlay]))).toBe(code);
  });

  it('is not asked for of a domain that is off, whose definition libvirt would change', async () => {
    state = 5;
    expect(await codeOf(hypervisor.snapshotDisks(uuid, [overlay]))).toBe('VM_NOT_RUNNING');
    expect(libvirtd.calls(Procedures.domainSnapshotCreateXml).waiting).toBe(0);
  });
});

describe('A description', () => {
  it('joins what libvirt tells in several answers', async () => {
    expect(await hypervisor.getVm(uuid)).toMatchObject({
      uuid,
      name: 'web-1',
      domainId: 7,
      state: 'running',
      persistent: true,
      hasManagedSave: false,
      guestAgent: 'connected',
      migrating: false,
      disks: [
        { target: 'vda', kind: 'file' },
        { target: 'vdb', kind: 'rbd', image: 'volumes/volume-1' },
      ],
    });
    expect(await hypervisor.listVms()).toHaveLength(1);
  });

  it.each<[string, number, string]>([
    ['since before libvirtd started', 0, 'unknown'],
    ['by its own shutdown', 1, 'ended'],
    ['by a migration', 4, 'moved'],
    ['by a save', 5, 'saved'],
  ])('says how a VM came to be shut off: %s', async (_, reason, offBecause) => {
    libvirtd.answer(Procedures.domainGetState, (call) => call.reply((w) => w.int(5).int(reason)));
    expect(await hypervisor.getVm(uuid)).toMatchObject({ state: 'shut-off', offBecause });
  });

  it.each<[string, number, boolean]>([
    ['out', 5, true],
    ['in', 4, true],
    ['of a backup', 9, false],
  ])('knows a migration by its job: %s', async (_, operation, migrating) => {
    libvirtd.answer(Procedures.domainGetJobStats, (call) =>
      call.reply((w) => w.int(2).uint(1).string('operation').int(1).int(operation)),
    );
    expect((await hypervisor.getVm(uuid)).migrating).toBe(migrating);
  });

  it('of a VM whose QEMU hangs in a job is made without it, but not behind the job', async () => {
    libvirtd.answer(Procedures.domainGetJobStats, (call) =>
      call.fail(text('Timed out during operation: cannot acquire state change lock', 68, 0)),
    );
    expect(await hypervisor.getVm(uuid)).toMatchObject({ name: 'web-1', migrating: false });
    libvirtd.answer(Procedures.domainGetBlockInfo, (call) => call.fail({ number: 8 }));
    expect(await codeOf(hypervisor.getVmBehindJob(uuid))).toBe('HYPERVISOR_BUSY');
  });

  it('waits for the domain’s job before it reads', async () => {
    const read: string[] = [];
    libvirtd.answer(Procedures.domainGetXmlDesc, (call) => {
      read.push('xml');
      call.reply((w) => w.string(xml()));
    });
    const behind = hypervisor.getVmBehindJob(uuid);
    const wait = await libvirtd.calls(Procedures.domainGetBlockInfo).next();
    expect(read).toEqual([]);
    wait.fail({ number: 8, message: 'invalid argument: invalid path no-such-disk not assigned to domain' });
    expect((await behind).inactive?.map(({ target }) => target)).toEqual(['vda', 'vdb']);
  });

  it('behind the job tells of a block job that the definition does not show', async () => {
    libvirtd.answer(Procedures.domainGetBlockInfo, (call) => call.fail({ number: 8 }));
    const pull = 1;
    libvirtd.answer(Procedures.domainGetBlockJobInfo, (call) =>
      call.reply((w) => w.int(1).int(pull).uhyper(0n).uhyper(1n).uhyper(10n)),
    );
    const { vm } = await hypervisor.getVmBehindJob(uuid);
    expect(vm.disks.map(({ target, blockJob }) => [target, blockJob])).toEqual([
      ['vda', true],
      ['vdb', false],
    ]);
  });

  it('that makes no sense is an error of its own, and hides no other VM', async () => {
    libvirtd.answer(Procedures.domainGetXmlDesc, (call) => call.reply((w) => w.string('<domain>')));
    expect(await codeOf(hypervisor.getVm(uuid))).toBe('LIBVIRT_PROTOCOL');
    expect(await hypervisor.listVms()).toEqual([]);
  });
});

describe('Merging an overlay', () => {
  const chain = (...paths: string[]) => mirrored('', ...paths);
  const activeCommit = (base: string, ready = '') =>
    `<mirror type='file' job='active-commit'${ready}><format type='qcow2'/><source file='${base}'/></mirror>`;
  const mirrored = (mirror: string, ...paths: string[]) => {
    const [top, ...below] = paths;
    const stores = below.reduceRight(
      (inner, path) =>
        `<backingStore type='file'><format type='qcow2'/><source file='${path}'/>${inner}</backingStore>`,
      '',
    );
    return `<domain id='7'><name>web-1</name><uuid>${uuid}</uuid><devices><disk type='file'><driver type='qcow2'/><source file='${top}'/>${stores}${mirror}<target dev='vda'/></disk></devices></domain>`;
  };
  let definition: string;
  let job: { type: number; cursor: bigint; end: bigint } | undefined;
  const commits: { base: string | null; top: string | null; flags: number }[] = [];

  beforeEach(() => {
    definition = chain('/c', '/b', '/a');
    job = undefined;
    commits.length = 0;
    libvirtd.answer(Procedures.domainGetBlockInfo, (call) => call.fail({ number: 8 }));
    libvirtd.answer(Procedures.domainGetXmlDesc, (call) => call.reply((w) => w.string(definition)));
    libvirtd.answer(Procedures.domainGetBlockJobInfo, (call) =>
      call.reply((w) =>
        w
          .int(job === undefined ? 0 : 1)
          .int(job?.type ?? 0)
          .uhyper(0n)
          .uhyper(job?.cursor ?? 0n)
          .uhyper(job?.end ?? 0n),
      ),
    );
    libvirtd.answer(Procedures.domainBlockCommit, ({ body, reply }) => {
      body.string();
      body.opaque(16);
      body.int();
      body.string();
      const base = body.optional((r) => r.string());
      const top = body.optional((r) => r.string());
      body.uhyper();
      const flags = body.uint();
      commits.push({ base, top, flags });
      job = { type: flags === 4 ? 4 : 3, cursor: 1n, end: 10n };
      reply();
    });
  });

  const jobEvent = (status: number) =>
    libvirtd.connections[0]?.event(339, (w) => {
      writeDomain(w.int(0));
      w.string('vda').int(4).int(status);
    });

  it('that is active commits it, pivots when it is ready, and looks at the chain', async () => {
    const progress = new Arrivals<{ doneBytes: number; totalBytes: number }>();
    const merged = hypervisor.mergeOverlay(uuid, 'vda', '/c', { onProgress: (told) => progress.add(told) });
    expect(await progress.next()).toEqual({ doneBytes: 1, totalBytes: 10 });
    expect(commits).toEqual([{ base: '/b', top: '/c', flags: 4 }]);
    job = { type: 4, cursor: 10n, end: 10n };
    jobEvent(3);
    const pivot = await libvirtd.calls(Procedures.domainBlockJobAbort).next();
    pivot.body.string();
    pivot.body.opaque(16);
    pivot.body.int();
    expect([pivot.body.string(), pivot.body.uint()]).toEqual(['vda', 2]);
    job = undefined;
    definition = chain('/b', '/a');
    pivot.reply();
    await merged;
  });

  it('in the middle of a chain needs no pivot', async () => {
    const progress = new Arrivals<unknown>();
    const merged = hypervisor.mergeOverlay(uuid, 'vda', '/b', { onProgress: (told) => progress.add(told) });
    await progress.next();
    expect(commits).toEqual([{ base: '/a', top: '/b', flags: 0 }]);
    job = undefined;
    definition = chain('/c', '/a');
    jobEvent(0);
    await merged;
    expect(libvirtd.calls(Procedures.domainBlockJobAbort).waiting).toBe(0);
  });

  it('joins an active commit that runs already', async () => {
    job = { type: 4, cursor: 10n, end: 10n };
    definition = mirrored(activeCommit('/b'), '/c', '/b', '/a');
    const merged = hypervisor.mergeOverlay(uuid, 'vda', '/c');
    const pivot = await libvirtd.calls(Procedures.domainBlockJobAbort).next();
    job = undefined;
    definition = chain('/b', '/a');
    pivot.reply();
    await merged;
    expect(commits).toEqual([]);
  });

  it('does not join, and so complete, an active commit into a deeper base, which is another program’s', async () => {
    job = { type: 4, cursor: 10n, end: 10n };
    definition = mirrored(activeCommit('/a'), '/c', '/b', '/a');
    expect(await codeOf(hypervisor.mergeOverlay(uuid, 'vda', '/c'))).toBe('BLOCK_JOB_ACTIVE');
  });

  it('pivots under a guest that never pauses in its writing, whose job lags although it is ready', async () => {
    const progress = new Arrivals<unknown>();
    const merged = hypervisor.mergeOverlay(uuid, 'vda', '/c', { onProgress: (told) => progress.add(told) });
    await progress.next();
    job = { type: 4, cursor: 9n, end: 10n };
    definition = mirrored(activeCommit('/b', " ready='yes'"), '/c', '/b', '/a');
    jobEvent(3);
    const pivot = await libvirtd.calls(Procedures.domainBlockJobAbort).next();
    job = undefined;
    definition = chain('/b', '/a');
    pivot.reply();
    await merged;
  });

  it.each([1, 2, 3, 5])('is refused while another’s block job of type %d runs', async (type) => {
    job = { type, cursor: 0n, end: 10n };
    expect(await codeOf(hypervisor.mergeOverlay(uuid, 'vda', '/c'))).toBe('BLOCK_JOB_ACTIVE');
  });

  it('fails when the job ends and the chain still holds it', async () => {
    const progress = new Arrivals<unknown>();
    const merged = codeOf(hypervisor.mergeOverlay(uuid, 'vda', '/c', { onProgress: (told) => progress.add(told) }));
    await progress.next();
    job = undefined;
    jobEvent(1);
    expect(await merged).toBe('MERGE_FAILED');
  });

  it('fails when libvirt refuses the commit, or there is nothing below', async () => {
    libvirtd.answer(Procedures.domainBlockCommit, (call) => call.fail({ number: 1 }));
    expect(await codeOf(hypervisor.mergeOverlay(uuid, 'vda', '/c'))).toBe('MERGE_FAILED');
    expect(await codeOf(hypervisor.mergeOverlay(uuid, 'vda', '/a'))).toBe('MERGE_FAILED');
    expect(await codeOf(hypervisor.mergeOverlay(uuid, 'vda', '/z'))).toBe('DISK_NOT_FOUND');
    expect(await codeOf(hypervisor.mergeOverlay(uuid, 'vdz', '/c'))).toBe('DISK_NOT_FOUND');
  });

  it('goes on to its end when its caller gives up waiting', async () => {
    const controller = new AbortController();
    const progress = new Arrivals<unknown>();
    const merged = hypervisor.mergeOverlay(uuid, 'vda', '/c', {
      signal: controller.signal,
      onProgress: (told) => progress.add(told),
    });
    await progress.next();
    controller.abort(new Error('enough'));
    await expect(merged).rejects.toThrow('enough');
    job = { type: 4, cursor: 10n, end: 10n };
    jobEvent(3);
    const pivot = await libvirtd.calls(Procedures.domainBlockJobAbort).next();
    const joined = hypervisor.mergeOverlay(uuid, 'vda', '/c');
    job = undefined;
    definition = chain('/b', '/a');
    pivot.reply();
    await joined;
    expect(commits).toHaveLength(1);
  });
});

describe('A note', () => {
  it.each<[string, string | undefined, string | null]>([
    [
      'is an element of our namespace in the live metadata',
      '{"a":"<&"}',
      '<lease>{&quot;a&quot;:&quot;&lt;&amp;&quot;}</lease>',
    ],
    ['is removed with its element', undefined, null],
  ])('%s', async (_, note, xml) => {
    const noted = hypervisor.setNote(uuid, note);
    const call = await libvirtd.calls(Procedures.domainSetMetadata).next();
    readDomain(call.body);
    const text = () => call.body.optional((r) => r.string());
    // virDomainMetadataType 2: an element; VIR_DOMAIN_AFFECT_LIVE alone.
    expect([call.body.int(), text(), text(), text(), call.body.uint()]).toEqual([
      2,
      xml,
      'stillpoint',
      'urn:stillpoint:lease',
      1,
    ]);
    call.reply();
    await noted;
  });

  it.each<[HostAgentErrorCode, Fields]>([
    ['VM_NOT_FOUND', text('Domain not found: no domain with matching uuid', 42)],
    ['VM_NOT_RUNNING', text('Requested operation is not valid: domain is not running', 55, 10)],
    ['HYPERVISOR_BUSY', text('Timed out during operation: cannot acquire state change lock', 68, 0)],
  ])('that libvirt refuses is %s', async (code, fields) => {
    state = code === 'VM_NOT_RUNNING' ? 5 : 1;
    libvirtd.answer(Procedures.domainSetMetadata, (call) => call.fail(fields));
    expect(await codeOf(hypervisor.setNote(uuid, 'x'))).toBe(code);
  });
});

describe('Events', () => {
  it('are told in the port’s words', async () => {
    const told = new Arrivals<HypervisorEvent>();
    const end = hypervisor.onEvent((event) => told.add(event));
    const events = libvirtd.connections[0];
    for (const [event, what] of [
      [0, 'defined'],
      [1, 'undefined'],
      [2, 'started'],
      [3, 'paused'],
      [4, 'resumed'],
      [5, 'stopped'],
      [6, 'other'],
      [8, 'other'],
    ] as const) {
      events?.event(318, (w) => {
        writeDomain(w.int(0));
        w.int(event).int(0);
      });
      expect(await told.next()).toEqual({ type: 'lifecycle', uuid, what });
    }
    for (const [detail, why] of [
      [3, 'moved'],
      [4, 'saved'],
    ] as const) {
      events?.event(318, (w) => {
        writeDomain(w.int(0));
        w.int(5).int(detail);
      });
      expect(await told.next()).toEqual({ type: 'lifecycle', uuid, what: 'stopped', why });
    }
    for (const [status, what] of [
      [0, 'completed'],
      [1, 'failed'],
      [2, 'cancelled'],
      [3, 'ready'],
    ] as const) {
      events?.event(339, (w) => {
        writeDomain(w.int(0));
        w.string('vda').int(4).int(status);
      });
      expect(await told.next()).toEqual({ type: 'block-job', uuid, target: 'vda', what });
    }
    end();
  });

  it('of the connection are told', async () => {
    const told = new Arrivals<HypervisorEvent>();
    hypervisor.onEvent((event) => told.add(event));
    await libvirtd.stop();
    expect(await told.next()).toEqual({ type: 'connection', up: false });
    expect(await hypervisor.facts()).toEqual({
      reachable: false,
      libvirtVersion: '',
      qemuVersion: '',
      canSetAgentTimeout: false,
    });
    expect(await codeOf(hypervisor.listVms())).toBe('LIBVIRT_UNREACHABLE');
    await libvirtd.listen();
    expect(await told.next()).toEqual({ type: 'connection', up: true });
  });
});
