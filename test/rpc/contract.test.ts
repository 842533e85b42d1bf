import { Metadata, status } from '@grpc/grpc-js';
import { HostAgentError } from '@stillpoint/host-agent/errors.js';
import {
  type DeleteSnapshotResponse,
  FreezeState,
  GuestAgentState,
  type HostAgentClient,
  HostAgentService,
  LeftOutReason,
  MergeOutcome,
  type PrepareRequest,
  Quiesce,
  type UndoResponse,
  VmState,
} from '@stillpoint/proto';
import { afterEach, describe, expect, test } from 'vitest';
import { fakeHypervisor, happening, heldVerdict, operation, overlay, pinned, vm, vmUuid, window1 } from './rooms.js';
import { ask, facts, failure, served } from './served.js';

let close: (() => Promise<void>) | undefined;
afterEach(async () => {
  await close?.();
  close = undefined;
});

async function up(options: Parameters<typeof served>[0] = {}) {
  const server = await served(options);
  close = server.close;
  return server;
}

const prepareRequest: PrepareRequest = {
  vmUuid,
  operationId: operation,
  windowId: window1,
  installationId: 'site-a',
  localDisks: ['vda'],
  setDisks: ['vda'],
  unquiescedDisks: [],
  quiesce: Quiesce.REQUIRED,
  windowLimitMs: 0,
};

const prepare = (client: HostAgentClient, change: Partial<PrepareRequest> = {}) =>
  ask(client, HostAgentService.prepare, { ...prepareRequest, ...change });

const ofWindow = { vmUuid, windowId: window1 };

describe('facts and VMs', () => {
  test('GetHost tells versions, capabilities, disk locations and warnings', async () => {
    const { client } = await up();
    expect(await ask(client, HostAgentService.getHost, {})).toMatchObject({
      hostName: 'kvm-01',
      installationId: 'site-a',
      hypervisor: 'simulated',
      libvirtVersion: '9.0.0',
      hypervisorReachable: true,
      canQuiesce: true,
      diskLocations: ['/images'],
      warnings: ['guest web-1 is still frozen'],
      holds: [{ vmUuid, hold: { operationId: '' } }],
    });
  });

  test('GetHost answers while libvirt is down and while recovery has not begun', async () => {
    const hypervisor = fakeHypervisor(async () => {
      throw new HostAgentError('LIBVIRT_UNREACHABLE', 'connect ENOENT');
    });
    const { client } = await up({ hypervisor, recovering: new Promise(() => {}) });
    const host = await ask(client, HostAgentService.getHost, {});
    expect(host).toMatchObject({ hypervisorReachable: false, canQuiesce: false, libvirtVersion: '' });
    expect(host.warnings).toContain('The hypervisor does not answer: connect ENOENT');
  });

  test('GetHost answers while libvirt hangs', async () => {
    const { client } = await up({ hypervisor: fakeHypervisor(() => new Promise(() => {})), factsMs: 5 });
    expect(await ask(client, HostAgentService.getHost, {})).toMatchObject({ hypervisorReachable: false });
  });

  test('every other call waits until recovery has begun', async () => {
    const recovery = happening<void>();
    const { client, freeze } = await up({ recovering: recovery.happened });
    const thawed = ask(client, HostAgentService.thawFileSystems, { ...ofWindow, reason: 'asked' });
    await ask(client, HostAgentService.getHost, {});
    expect(freeze.calls).toEqual([]);
    recovery.happens();
    await thawed;
    expect(freeze.calls).toEqual(['thaw: asked']);
  });

  test('ListOverlays tells every overlay file, its user, and whose chains are not known', async () => {
    const { client } = await up();
    expect(await ask(client, HostAgentService.listOverlays, {})).toEqual({
      overlays: [
        { path: `/images/web-1.sp-${window1}.qcow2`, windowId: window1, vmUuid, target: 'vda' },
        { path: `/images/old.sp-${window1}.qcow2`, windowId: window1, vmUuid: '', target: '' },
      ],
      unreadVmUuids: ['00000000-0000-4000-8000-000000000001'],
    });
  });

  test('ListVms tells VMs in order of name, with why a disk is left out, size and holder', async () => {
    const { client, freeze } = await up();
    freeze.hold_ = {
      reservation: { vm: vmUuid, operation, window: window1, installation: 'site-a', reservedUnixMs: 5 },
      freezeState: 'still-frozen',
      frozenUnixMs: 7.6,
      detail: 'the guest is paused: resume it',
      windowLimitMs: 30_000,
    };
    const { vms } = await ask(client, HostAgentService.listVms, {});
    expect(vms.map(({ name }) => name)).toEqual(['a-first', 'web-1']);
    expect(vms[1]).toMatchObject({
      uuid: vmUuid,
      domainId: 7,
      state: VmState.RUNNING,
      guestAgent: GuestAgentState.CONNECTED,
      hold: {
        operationId: operation,
        freezeState: FreezeState.STILL_FROZEN,
        frozenUnixMs: 8,
        freezeDetail: 'the guest is paused: resume it',
      },
      disks: [
        {
          target: 'vda',
          path: '/images/web-1.qcow2',
          leftOut: LeftOutReason.UNSPECIFIED,
          sizeBytes: 1_073_741_824,
          chainDepth: 1,
        },
        { target: 'vdb', image: 'nbd:export', leftOut: LeftOutReason.NETWORK, path: '' },
      ],
    });
  });

  test('GetVm of an unknown UUID is NOT_FOUND with the reason VM_NOT_FOUND', async () => {
    const { client } = await up();
    const error = await failure(ask(client, HostAgentService.getVm, { vmUuid: operation }));
    expect(error).toMatchObject({
      code: status.NOT_FOUND,
      reason: 'VM_NOT_FOUND',
      domain: 'stillpoint.host',
      metadata: { vm: operation },
    });
    expect(error.metadata.advice).toContain('Check the UUID');
  });
});

describe('errors', () => {
  test('an error that is none of the table is INTERNAL and nothing else', async () => {
    const { client, freeze } = await up();
    freeze.onThaw = async () => {
      throw new TypeError('x is undefined');
    };
    const error = await failure(ask(client, HostAgentService.thawFileSystems, { ...ofWindow, reason: '' }));
    expect(error).toMatchObject({ code: status.INTERNAL, reason: 'INTERNAL' });
  });

  test("texts from guests travel bounded and well-formed, and don't end the server", async () => {
    const { client, freeze } = await up();
    freeze.onThaw = async () => {
      throw new HostAgentError('FREEZE_FAILED', `bad \ud800 \u0000\n${'ü'.repeat(100_000)}`, {
        metadata: { text: '\udfff'.repeat(9_000) },
      });
    };
    const error = await failure(ask(client, HostAgentService.thawFileSystems, { ...ofWindow, reason: '' }));
    expect(error.reason).toBe('FREEZE_FAILED');
    expect(error.details.length).toBeLessThan(2_000);
    expect(await ask(client, HostAgentService.getHost, {})).toMatchObject({ hostName: 'kvm-01' });
  });

  test('a request beyond 1 MiB is refused', async () => {
    const { client, snapshot } = await up();
    const call = ask(client, HostAgentService.snapshotVm, {
      ...ofWindow,
      disks: ['x'.repeat(2 * 1024 * 1024)],
      frozen: true,
      quiesce: Quiesce.UNSPECIFIED,
      cut: 'local',
      freezeTimeoutMs: 0,
    });
    await expect(call).rejects.toMatchObject({ code: status.RESOURCE_EXHAUSTED });
    expect(snapshot.calls).toEqual([]);
  });
});

describe('requests are checked at the edge', () => {
  const bad: [string, Partial<PrepareRequest>, string][] = [
    ['a VM UUID that is none', { vmUuid: '../../etc' }, 'vm_uuid'],
    ['a UUID in upper case', { vmUuid: vmUuid.toUpperCase() }, 'vm_uuid'],
    ['a window without an attempt', { windowId: operation }, 'window_id'],
    ['a fourth attempt', { windowId: `${operation}.4` }, 'window_id'],
    ['a window of another operation', { operationId: vmUuid }, 'window_id'],
    ['an empty installation', { installationId: '' }, 'installation_id'],
    ['a set without disks', { setDisks: [], localDisks: [] }, 'set_disks'],
    ['a disk that is a path', { setDisks: ['/dev/sda'] }, 'set_disks'],
    ['a disk named twice', { setDisks: ['vda', 'vda'] }, 'set_disks'],
    [
      'too many disks',
      { setDisks: Array.from({ length: 129 }, (_, index) => `vd${index}`.replace(/\d/g, 'a')) },
      'set_disks',
    ],
    ['a local disk outside the set', { localDisks: ['vdb'] }, 'local_disks'],
    ['an accepted disk outside the set', { unquiescedDisks: ['vdc'] }, 'unquiesced_disks'],
    ['no policy', { quiesce: Quiesce.UNSPECIFIED }, 'quiesce'],
    ['a policy that does not exist', { quiesce: 9 as Quiesce }, 'quiesce'],
    ['a window limit of 99 ms', { windowLimitMs: 99 }, 'window_limit_ms'],
    ['a window limit of 61 s', { windowLimitMs: 61_000 }, 'window_limit_ms'],
    ['a negative window limit', { windowLimitMs: -1 }, 'window_limit_ms'],
  ];
  test.each(bad)('Prepare refuses %s and names the field', async (_what, change, field) => {
    const { client, freeze } = await up();
    expect(await failure(prepare(client, change))).toMatchObject({
      code: status.INVALID_ARGUMENT,
      reason: 'INVALID_ARGUMENT',
      metadata: { field },
    });
    expect(freeze.calls).toEqual([]);
  });

  test.each([999, 600_001])('a freeze timeout of %d ms is refused', async (freezeTimeoutMs) => {
    const { client } = await up();
    const call = ask(client, HostAgentService.freezeFileSystems, { ...ofWindow, cuts: ['vda'], freezeTimeoutMs });
    expect(await failure(call)).toMatchObject({ reason: 'INVALID_ARGUMENT', metadata: { field: 'freeze_timeout_ms' } });
  });

  test('a freeze without a cut is refused', async () => {
    const { client } = await up();
    const call = ask(client, HostAgentService.freezeFileSystems, { ...ofWindow, cuts: [], freezeTimeoutMs: 0 });
    expect(await failure(call)).toMatchObject({ reason: 'INVALID_ARGUMENT', metadata: { field: 'cuts' } });
  });

  test('a deletion that names a relative path is refused', async () => {
    const { client, snapshot } = await up();
    const call = client.deleteSnapshot({
      ...ofWindow,
      operationId: operation,
      installationId: 'site-a',
      overlays: [{ ...overlay, overlayPath: '../x.qcow2' }],
    });
    const error = await new Promise<Error>((resolve) => call.on('error', resolve).resume());
    expect(error.message).toContain('overlays.overlay_path');
    expect(snapshot.calls).toEqual([]);
  });
});

describe('Prepare', () => {
  test('reserves, makes the overlays and keeps them, in this order', async () => {
    const { client, freeze, snapshot } = await up();
    const prepared = await prepare(client);
    expect(freeze.calls).toEqual([`reserve ${window1}`, `keepPrepared ${window1}`]);
    expect(snapshot.calls).toEqual(['prepare']);
    expect(freeze.kept).toMatchObject({ pinned: { ...pinned, osId: 'debian' }, overlays: [overlay] });
    expect(prepared).toMatchObject({
      overlays: [overlay],
      expectedFileSystems: 2,
      guestOs: 'debian',
      windowLimitMs: 30_000,
      staleOperationId: '',
    });
    expect(prepared.vm?.uuid).toBe(vmUuid);
  });

  test('after a failure, no overlay, no open window and no reservation is left', async () => {
    const { client, freeze, snapshot } = await up();
    snapshot.onPrepare = async () => {
      throw new HostAgentError('NO_SPACE', 'the file system is full');
    };
    expect(await failure(prepare(client))).toMatchObject({ code: status.RESOURCE_EXHAUSTED, reason: 'NO_SPACE' });
    expect(freeze.calls).toEqual([`reserve ${window1}`, `closeForUndo ${window1}`, `release ${operation}`]);
    expect(snapshot.calls).toEqual(['prepare', 'undo']);
  });

  test('a failed second window does not give back the VM that the operation held before', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.hold_ = {
      ...freeze.hold_,
      reservation: { vm: vmUuid, operation, window: window1, installation: 'site-a', reservedUnixMs: 5 },
    };
    snapshot.onPrepare = async () => {
      throw new HostAgentError('NO_SPACE', 'the file system is full');
    };
    await failure(prepare(client, { windowId: `${operation}.2` }));
    expect(freeze.calls).not.toContain(`release ${operation}`);
  });

  test('a repeated call joins the one under way', async () => {
    const { client, freeze, snapshot } = await up();
    const checks = happening<void>();
    const begun = happening<void>();
    snapshot.onPrepare = async () => {
      begun.happens();
      await checks.happened;
      return { vm, pinned, overlays: [overlay] };
    };
    const both = [prepare(client), prepare(client)];
    await begun.happened;
    await ask(client, HostAgentService.getHost, {});
    checks.happens();
    const [first, second] = await Promise.all(both);
    expect(second).toEqual(first);
    expect(freeze.calls.filter((call) => call.startsWith('reserve'))).toHaveLength(1);
  });

  test("a dead run's operation is told, and nothing is prepared", async () => {
    const { client, freeze, snapshot } = await up();
    freeze.onReserve = () => ({ stale: { operation: 'dead', window: 'dead.1' } });
    expect(await prepare(client)).toMatchObject({
      staleOperationId: 'dead',
      staleWindowId: 'dead.1',
      overlays: [],
      vm: { uuid: vmUuid },
    });
    expect(snapshot.calls).toEqual([]);
  });

  test('a stranger who holds the VM is named', async () => {
    const { client, freeze } = await up();
    freeze.onReserve = () => {
      throw new HostAgentError('BUSY', 'held by another', { metadata: { holder: 'other-operation' } });
    };
    expect(await failure(prepare(client))).toMatchObject({
      code: status.ABORTED,
      reason: 'BUSY',
      metadata: { holder: 'other-operation' },
    });
    expect(freeze.calls).toEqual([`reserve ${window1}`]);
  });
});

describe('freeze and thaw', () => {
  test('0 means a freeze timeout of 30 s', async () => {
    const { client, freeze } = await up();
    const frozen = await ask(client, HostAgentService.freezeFileSystems, {
      ...ofWindow,
      cuts: ['vda', 'vdb'],
      freezeTimeoutMs: 0,
    });
    expect(freeze.calls).toEqual(['freeze vda,vdb 30000']);
    expect(frozen).toMatchObject({ frozenFileSystems: 2, freezeCallMs: 12.5 });
  });

  test('the freeze room learns when the caller of a freeze is gone', async () => {
    const { client, freeze } = await up();
    const asked = happening<AbortSignal>();
    const gone = happening<void>();
    freeze.onFreeze = ({ caller }) => {
      caller.addEventListener('abort', () => gone.happens(), { once: true });
      asked.happens(caller);
      return new Promise(() => {});
    };
    const call = client.freezeFileSystems({ ...ofWindow, cuts: ['vda'], freezeTimeoutMs: 0 }, () => {});
    await asked.happened;
    call.cancel();
    await gone.happened;
    expect((await asked.happened).aborted).toBe(true);
  });

  test("the freeze room learns when a freeze's deadline has passed", async () => {
    const { client, freeze } = await up();
    const gone = happening<boolean>();
    freeze.onFreeze = ({ caller }) => {
      caller.addEventListener('abort', () => gone.happens(caller.aborted), { once: true });
      return new Promise(() => {});
    };
    client.freezeFileSystems(
      { ...ofWindow, cuts: ['vda'], freezeTimeoutMs: 0 },
      new Metadata(),
      { deadline: Date.now() + 50 },
      () => {},
    );
    expect(await gone.happened).toBe(true);
  });

  test('the caller of an answered freeze is never told gone', async () => {
    const { client, freeze } = await up();
    let caller: AbortSignal | undefined;
    freeze.onFreeze = async (request) => {
      caller = request.caller;
      return { frozenFileSystems: 1, frozenUnixMs: 1, freezeCallMs: 1, gaps: [] };
    };
    await ask(client, HostAgentService.freezeFileSystems, { ...ofWindow, cuts: ['vda'], freezeTimeoutMs: 0 });
    await ask(client, HostAgentService.getHost, {});
    expect(caller?.aborted).toBe(false);
  });

  test('the verdict travels whole', async () => {
    const { client } = await up();
    const { verdict } = await ask(client, HostAgentService.thawFileSystems, {
      ...ofWindow,
      reason: 'asked by the engine',
    });
    expect(verdict).toEqual({
      ...{ windowId: window1, lostReason: '' },
      ...withoutDomainNames(),
      frozenUnixMs: 1_700_000_000_000,
    });
  });

  test('the verdict of an open window is absent', async () => {
    const { client } = await up();
    expect((await ask(client, HostAgentService.getVerdict, ofWindow)).verdict).toBeUndefined();
  });

  test("an administrator's thaw tells which window was lost by it", async () => {
    const { client, freeze } = await up();
    const thawed = await ask(client, HostAgentService.thawVm, { vmUuid, askedBy: 'anna', windowId: '' });
    expect(thawed).toEqual({ thawedFileSystems: 2, lostWindowId: window1 });
    expect(freeze.calls).toEqual(['thawVm by anna']);
  });

  test('a thaw of what a window of another host left frozen loses no window here', async () => {
    const { client, freeze } = await up();
    const thawed = await ask(client, HostAgentService.thawVm, { vmUuid, askedBy: 'the engine', windowId: window1 });
    expect(thawed).toEqual({ thawedFileSystems: 3, lostWindowId: '' });
    expect(freeze.calls).toEqual([`thawArrived ${window1}`]);
    const bad = await failure(
      ask(client, HostAgentService.thawVm, { vmUuid, askedBy: 'the engine', windowId: '../1' }),
    );
    expect(bad.reason).toBe('INVALID_ARGUMENT');
  });

  test('that a freeze was never asked for travels in the verdict', async () => {
    const { client, freeze } = await up();
    freeze.verdictNow = { ...heldVerdict, held: false, lostReason: 'HOLD_BROKEN', neverAsked: true };
    const { verdict } = await ask(client, HostAgentService.getVerdict, ofWindow);
    expect(verdict).toMatchObject({ neverAsked: true, lostReason: 'HOLD_BROKEN' });
  });
});

describe('SnapshotVm', () => {
  const request = {
    ...ofWindow,
    disks: ['vda'],
    frozen: true,
    quiesce: Quiesce.UNSPECIFIED,
    cut: 'local-disks',
    freezeTimeoutMs: 0,
  };

  test('in a frozen window it is one cut, held while it lasts', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    const cut = await ask(client, HostAgentService.snapshotVm, request);
    expect(cut).toMatchObject({ overlays: [overlay], transactionMs: 17.5, verdict: undefined, unfrozenReason: '' });
    expect(freeze.calls).toEqual(['hold local-disks']);
    expect(snapshot.calls).toEqual(['cut']);
    expect(await freeze.holds[0]?.ended).toEqual({ done: true });
  });

  test('a call that is broken off breaks the hold at once, while the transaction goes on', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    const transaction = happening<{ transactionMs: number }>();
    snapshot.onCut = () => transaction.happened;
    const call = client.snapshotVm(request, () => {});
    const hold = await freeze.begun;
    call.cancel();
    expect(await hold.ended).toHaveProperty('broken');
    transaction.happens({ transactionMs: 1 });
  });

  test('a failed cut fails its hold', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    snapshot.onCut = async () => {
      throw new HostAgentError('SNAPSHOT_FAILED', 'libvirt refused');
    };
    expect(await failure(ask(client, HostAgentService.snapshotVm, request))).toMatchObject({
      reason: 'SNAPSHOT_FAILED',
    });
    expect(await freeze.holds[0]?.ended).toEqual({ failed: 'libvirt refused' });
  });

  test('it waits for the freeze, and is not made where that never comes', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    freeze.freezesLater = true;
    const call = failure(ask(client, HostAgentService.snapshotVm, request));
    (await freeze.begun).lose('the freeze failed');
    expect(await call).toMatchObject({ reason: 'WINDOW_CLOSED' });
    expect(snapshot.calls).toEqual([]);
  });

  test('a window that is lost before the cut begins is not cut', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    freeze.onHold = () => {
      throw new HostAgentError('WINDOW_CLOSED', 'closed');
    };
    expect(await failure(ask(client, HostAgentService.snapshotVm, request))).toMatchObject({
      reason: 'WINDOW_CLOSED',
    });
    expect(snapshot.calls).toEqual([]);
  });

  test('without Prepare it is refused', async () => {
    const { client } = await up();
    expect(await failure(ask(client, HostAgentService.snapshotVm, request))).toMatchObject({
      reason: 'NOT_PREPARED',
    });
  });

  test('other disks than those prepared are refused', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    const call = ask(client, HostAgentService.snapshotVm, { ...request, disks: ['vda', 'vdb'] });
    expect(await failure(call)).toMatchObject({ reason: 'INVALID_ARGUMENT', metadata: { field: 'disks' } });
    expect(snapshot.calls).toEqual([]);
  });

  test('with frozen=false it freezes, cuts, and answers the verdict', async () => {
    const { client, freeze } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    freeze.freezesLater = true;
    const cut = await ask(client, HostAgentService.snapshotVm, {
      ...request,
      frozen: false,
      quiesce: Quiesce.REQUIRED,
    });
    expect(freeze.calls).toEqual(['hold local', 'freeze local 30000', 'thaw: the local cut is done']);
    expect(cut.verdict).toMatchObject({ held: true, windowMs: heldVerdict.windowMs });
  });

  test('with frozen=false a failed cut is answered after the thaw', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    freeze.freezesLater = true;
    snapshot.onCut = async () => {
      throw new HostAgentError('VM_CHANGED', 'changed');
    };
    const call = ask(client, HostAgentService.snapshotVm, { ...request, frozen: false, quiesce: Quiesce.REQUIRED });
    expect(await failure(call)).toMatchObject({ reason: 'VM_CHANGED' });
    expect(freeze.calls.at(-1)).toBe('thaw: the cut failed');
  });

  const noAgent = async () => {
    throw new HostAgentError('AGENT_NOT_CONNECTED', 'no guest agent');
  };

  test('best effort goes on without a guest agent and says why it is unfrozen', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    freeze.freezesLater = true;
    freeze.onFreeze = noAgent;
    const cut = await ask(client, HostAgentService.snapshotVm, {
      ...request,
      frozen: false,
      quiesce: Quiesce.BEST_EFFORT,
    });
    expect(cut).toMatchObject({ unfrozenReason: 'AGENT_NOT_CONNECTED', verdict: undefined, overlays: [overlay] });
    expect(snapshot.calls).toEqual(['cut']);
  });

  test('best effort does not go on in a window that somebody closed', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    freeze.freezesLater = true;
    freeze.onFreeze = async () => {
      throw new HostAgentError('WINDOW_CLOSED', 'undone', { cause: await noAgent().catch((error: unknown) => error) });
    };
    const call = ask(client, HostAgentService.snapshotVm, { ...request, frozen: false, quiesce: Quiesce.BEST_EFFORT });
    expect(await failure(call)).toMatchObject({ reason: 'WINDOW_CLOSED' });
    expect(snapshot.calls).toEqual([]);
  });

  test('required does not go on without a guest agent', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    freeze.freezesLater = true;
    freeze.onFreeze = noAgent;
    const call = ask(client, HostAgentService.snapshotVm, { ...request, frozen: false, quiesce: Quiesce.REQUIRED });
    expect(await failure(call)).toMatchObject({ reason: 'AGENT_NOT_CONNECTED' });
    expect(snapshot.calls).toEqual([]);
  });

  test('skip cuts under a hold and freezes nothing', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    await ask(client, HostAgentService.snapshotVm, { ...request, frozen: false, quiesce: Quiesce.SKIP });
    expect(freeze.calls).toEqual(['hold local']);
    expect(snapshot.calls).toEqual(['cut']);
  });
});

describe('Undo and delete', () => {
  test('Undo closes the window first and ends with the result', async () => {
    const { client, freeze, snapshot } = await up();
    freeze.kept = { pinned, overlays: [overlay] };
    const messages = await readAll<UndoResponse>(client.undo(ofWindow));
    expect(freeze.calls).toEqual([`closeForUndo ${window1}`]);
    expect(snapshot.calls).toEqual(['undo']);
    expect(messages.at(-1)?.message).toMatchObject({
      $case: 'result',
      value: { complete: true, disks: [{ target: 'vda', outcome: MergeOutcome.COMMITTED }] },
    });
  });

  test('progress is repeated while nothing moves, and a pending disk makes the result incomplete', async () => {
    const { client, snapshot } = await up();
    const merged = happening<void>();
    snapshot.onUndo = async ({ onProgress }) => {
      onProgress({ target: 'vda', doneBytes: 10, totalBytes: 40 });
      await merged.happened;
      return [
        {
          target: 'vda',
          overlayPath: '/o',
          basePath: '/b',
          outcome: 'pending',
          detail: 'shut off',
          reason: 'MANAGED_SAVE',
        },
      ];
    };
    const call = client.undo(ofWindow);
    let told = 0;
    const messages: UndoResponse[] = [];
    await new Promise<void>((resolve, reject) => {
      call.on('data', (message: UndoResponse) => {
        messages.push(message);
        if (message.message?.$case === 'progress' && message.message.value.doneBytes === 10 && ++told === 3)
          merged.happens();
      });
      call.on('end', resolve).on('error', reject);
    });
    expect(told).toBeGreaterThanOrEqual(3);
    expect(messages.at(-1)?.message).toMatchObject({ $case: 'result', value: { complete: false } });
  });

  test('a client that goes away stops no merge', async () => {
    const { client, snapshot } = await up();
    const begun = happening<AbortSignal>();
    const ended = happening<boolean>();
    const goOn = happening<void>();
    snapshot.onUndo = async ({ signal }) => {
      begun.happens(signal);
      await goOn.happened;
      ended.happens(signal.aborted);
      return [];
    };
    const call = client.undo(ofWindow);
    const cancelled = new Promise((resolve) => call.on('error', resolve).resume());
    await begun.happened;
    call.cancel();
    await cancelled;
    await ask(client, HostAgentService.getHost, {});
    goOn.happens();
    expect(await ended.happened).toBe(false);
  });

  const deletion = { ...ofWindow, operationId: operation, installationId: 'site-a', overlays: [overlay] };

  test('a deletion takes the VM, merges, and gives it back', async () => {
    const { client, freeze, snapshot } = await up();
    const messages = await readAll<DeleteSnapshotResponse>(client.deleteSnapshot(deletion));
    expect(freeze.calls).toEqual(['reserveForDelete', `release ${operation}`]);
    expect(snapshot.calls).toEqual(['delete']);
    expect(messages.at(-1)?.message).toMatchObject({ $case: 'result', value: { complete: true } });
  });

  test("a deletion that meets a dead run's operation is BUSY and names it", async () => {
    const { client, freeze, snapshot } = await up();
    freeze.onReserveForDelete = () => ({ stale: { operation: 'dead', window: 'dead.1' } });
    const call = readAll(client.deleteSnapshot(deletion));
    expect(await failure(call)).toMatchObject({
      reason: 'BUSY',
      metadata: { staleOperation: 'dead', staleWindow: 'dead.1' },
    });
    expect(snapshot.calls).toEqual([]);
    expect(freeze.calls).toEqual(['reserveForDelete']);
  });
});

test('the facts of the hypervisor are asked anew every time', async () => {
  let asked = 0;
  const { client } = await up({
    hypervisor: fakeHypervisor(() => {
      asked++;
      return facts();
    }),
  });
  await ask(client, HostAgentService.getHost, {});
  await ask(client, HostAgentService.getHost, {});
  expect(asked).toBe(2);
});

function withoutDomainNames() {
  const { window: _window, lostReason: _lostReason, ...same } = heldVerdict;
  return same;
}

function readAll<Message>(call: NodeJS.ReadableStream): Promise<Message[]> {
  return new Promise((resolve, reject) => {
    const messages: Message[] = [];
    call.on('data', (message: unknown) => messages.push(message as Message));
    call.on('end', () => resolve(messages));
    call.on('error', reject);
  });
}
