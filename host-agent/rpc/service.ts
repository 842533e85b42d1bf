import { setTimeout as delay } from 'node:timers/promises';
import type { GetHostResponse, HostAgentAdminServer, HostAgentServer, PrepareResponse } from '@stillpoint/proto';
import type { Logger } from 'pino';
import { HostAgentError } from '../errors.js';
import type { Hypervisor, HypervisorFacts } from '../hypervisor.js';
import { version } from '../version.js';
import type { FreezeRoom, MergedDisk, MergeProgress, SnapshotRoom } from '../window.js';
import { type Call, serverStream, unary } from './call.js';
import { holdCut } from './hold-cut.js';
import { Inventory } from './inventory.js';
import { withProgress } from './merge-stream.js';
import { Preparing } from './prepare.js';
import { snapshotVm } from './snapshot-vm.js';
import {
  checkedDelete,
  checkedFreeze,
  checkedPrepare,
  checkedSnapshotVm,
  checkedText,
  checkedUuid,
  checkedVmWindow,
  checkedWindow,
} from './validate.js';
import { holdToWire, mergeResultToWire, overlayFilesToWire, verdictToWire, wholeMs } from './wire.js';

export interface ServiceOptions {
  /** The host's registered name. */
  hostName: string;
  hypervisor: Hypervisor;
  freeze: FreezeRoom;
  snapshot: SnapshotRoom;
  /** Resolves when the freeze room knows its journal and recovery has begun: every call but GetHost waits for it. */
  recovering: Promise<void>;
  /** Aborts when the host agent stops: calls that wait for a merge end then; the merge does not. */
  stopping: AbortSignal;
  log: Logger;
  /** ms between the pings of a hold; default 300. */
  pingMs?: number;
  /** ms between the progress messages of a merge; default 500 (the contract says at least one a second). */
  progressMs?: number;
  /** ms that the hypervisor has to tell its facts before GetHost answers without them; default 2 000. */
  factsMs?: number;
}

/** The gRPC services over the rooms: types of the wire in, calls of the rooms out, errors as google.rpc.Status. */
export function createServices(options: ServiceOptions): { hostAgent: HostAgentServer; admin: HostAgentAdminServer } {
  const { hypervisor, freeze, snapshot, recovering, log } = options;
  const { pingMs = 300, progressMs = 500, factsMs = 2_000 } = options;
  const startedUnixMs = Date.now();
  const inventory = new Inventory({ hypervisor, freeze, snapshot }, log);
  const preparing = new Preparing({ freeze, snapshot });

  const afterRecovery =
    <Request, Response>(handle: (request: Request, call: Call) => Promise<Response> | Response) =>
    async (request: Request, call: Call): Promise<Response> => {
      await recovering;
      return handle(request, call);
    };

  const merge = async (
    call: Call,
    write: (progress: MergeProgress) => void,
    run: (onProgress: (progress: MergeProgress) => void, signal: AbortSignal) => Promise<MergedDisk[]>,
  ) => {
    const merged = await withProgress(progressMs, write, (onProgress) => run(onProgress, options.stopping));
    call.log.info({ merged }, 'merged');
    return mergeResultToWire(merged);
  };

  const hostAgent: HostAgentServer = {
    getHost: unary('GetHost', log, async (): Promise<GetHostResponse> => {
      const { facts, warnings } = await factsOrWhyNot(hypervisor, factsMs);
      return {
        hostName: options.hostName,
        installationId: freeze.installation(),
        version,
        hypervisor: hypervisor.kind,
        libvirtVersion: facts.libvirtVersion,
        qemuVersion: facts.qemuVersion,
        hypervisorReachable: facts.reachable,
        canQuiesce: facts.canSetAgentTimeout,
        diskLocations: snapshot.diskLocations,
        warnings: [...warnings, ...freeze.warnings()],
        startedUnixMs,
        holds: freeze.states().map(({ vm, state }) => ({ vmUuid: vm, hold: holdToWire(state) })),
      };
    }),

    listVms: unary(
      'ListVms',
      log,
      afterRecovery(async () => ({ vms: await inventory.list() })),
    ),

    getVm: unary(
      'GetVm',
      log,
      afterRecovery(async (request) => ({ vm: await inventory.get(checkedUuid('vm_uuid', request.vmUuid)) })),
    ),

    listOverlays: unary(
      'ListOverlays',
      log,
      afterRecovery(async () => overlayFilesToWire(await snapshot.overlayFiles())),
    ),

    prepare: unary(
      'Prepare',
      log,
      afterRecovery(async (request, call): Promise<PrepareResponse> => {
        const checked = checkedPrepare(request);
        const prepared = await preparing.prepare(checked, call.log);
        if ('stale' in prepared) {
          call.log.warn({ stale: prepared.stale }, 'a dead run of the same installation holds this VM');
          return {
            vm: await inventory.get(checked.vm),
            overlays: [],
            gaps: [],
            expectedFileSystems: 0,
            guestOs: '',
            windowLimitMs: 0,
            staleOperationId: prepared.stale.operation,
            staleWindowId: prepared.stale.window,
          };
        }
        call.log.info({ overlays: prepared.overlays.length, gaps: prepared.gaps.length }, 'prepared');
        return {
          vm: await inventory.describe(prepared.vm),
          overlays: prepared.overlays,
          gaps: prepared.gaps,
          expectedFileSystems: prepared.expectedFileSystems,
          guestOs: prepared.guestOs,
          windowLimitMs: wholeMs(prepared.windowLimitMs),
          staleOperationId: '',
          staleWindowId: '',
        };
      }),
    ),

    freezeFileSystems: unary(
      'FreezeFileSystems',
      log,
      afterRecovery(async (request, call) => {
        const frozen = await freeze.freeze({ ...checkedFreeze(request), caller: call.gone });
        return { ...frozen, frozenUnixMs: wholeMs(frozen.frozenUnixMs) };
      }),
    ),

    holdCut: holdCut({ freeze, recovering, pingMs, log }),

    snapshotVm: unary(
      'SnapshotVm',
      log,
      afterRecovery(async (request, call) => {
        const cut = await snapshotVm({ freeze, snapshot }, checkedSnapshotVm(request), call);
        return {
          overlays: cut.overlays,
          transactionMs: cut.transactionMs,
          verdict: cut.verdict === undefined ? undefined : verdictToWire(cut.verdict),
          unfrozenReason: cut.unfrozenReason ?? '',
        };
      }),
    ),

    thawFileSystems: unary(
      'ThawFileSystems',
      log,
      afterRecovery(async (request, call) => {
        const { vm, window } = checkedVmWindow(request);
        const verdict = await freeze.thaw(vm, window, checkedText('reason', request.reason));
        call.log.info({ held: verdict.held, lostReason: verdict.lostReason, windowMs: verdict.windowMs }, 'thawed');
        return { verdict: verdictToWire(verdict) };
      }),
    ),

    getVerdict: unary(
      'GetVerdict',
      log,
      afterRecovery((request) => {
        const { vm, window } = checkedVmWindow(request);
        const verdict = freeze.verdict(vm, window);
        return { verdict: verdict === undefined ? undefined : verdictToWire(verdict) };
      }),
    ),

    undo: serverStream('Undo', log, async (request, call, write) => {
      await recovering;
      const { vm, window } = checkedVmWindow(request);
      const value = await merge(
        call,
        (progress) => write({ message: { $case: 'progress', value: progress } }),
        async (onProgress, signal) => {
          await freeze.closeForUndo(vm, window);
          // A lost journal no longer knows them; the snapshot room then finds its files by the window's id.
          const overlays = freeze.prepared(window)?.overlays ?? [];
          return snapshot.undo({ vm, window, overlays, onProgress, signal });
        },
      );
      write({ message: { $case: 'result', value } });
    }),

    release: unary(
      'Release',
      log,
      afterRecovery(async (request) => {
        const vm = checkedUuid('vm_uuid', request.vmUuid);
        return { released: await freeze.release(vm, checkedUuid('operation_id', request.operationId)) };
      }),
    ),

    deleteSnapshot: serverStream('DeleteSnapshot', log, async (request, call, write) => {
      await recovering;
      const { vm, operation, installation, window, overlays } = checkedDelete(request);
      const dead = await freeze.reserveForDelete({ vm, operation, installation });
      if (dead !== undefined) {
        throw new HostAgentError(
          'BUSY',
          `Operation ${dead.stale.operation} of this installation still holds this VM; its run is dead.`,
          {
            metadata: { staleOperation: dead.stale.operation, staleWindow: dead.stale.window },
          },
        );
      }
      try {
        const value = await merge(
          call,
          (progress) => write({ message: { $case: 'progress', value: progress } }),
          (onProgress, signal) => snapshot.delete({ vm, window, overlays, onProgress, signal }),
        );
        write({ message: { $case: 'result', value } });
      } finally {
        await freeze.release(vm, operation);
      }
    }),

    thawVm: unary(
      'ThawVm',
      log,
      afterRecovery(async (request, call) => {
        const vm = checkedUuid('vm_uuid', request.vmUuid);
        const askedBy = checkedText('asked_by', request.askedBy);
        if (request.windowId !== '') {
          const { window } = checkedWindow('window_id', request.windowId);
          const thawedFileSystems = await freeze.thawArrived(vm, window);
          call.log.warn(
            { askedBy, window, thawedFileSystems },
            'thawed what a window of another host may have left frozen',
          );
          return { thawedFileSystems, lostWindowId: '' };
        }
        const thawed = await freeze.thawVm(vm, askedBy);
        call.log.warn({ askedBy, ...thawed }, 'thawed by an administrator');
        return { thawedFileSystems: thawed.thawedFileSystems, lostWindowId: thawed.lostWindow ?? '' };
      }),
    ),
  };

  const admin: HostAgentAdminServer = {
    releaseVm: unary(
      'ReleaseVm',
      log,
      afterRecovery(async (request, call) => {
        const vm = checkedUuid('vm_uuid', request.vmUuid);
        const askedBy = checkedText('asked_by', request.askedBy);
        const holder = await freeze.releaseVm(vm, askedBy);
        call.log.warn({ askedBy, holder }, 'released by an administrator');
        return {
          released: holder !== undefined,
          operationId: holder?.operation ?? '',
          windowId: holder?.window ?? '',
          installationId: holder?.installation ?? '',
          reservedUnixMs: wholeMs(holder?.reservedUnixMs ?? 0),
        };
      }),
    ),
  };

  return { hostAgent, admin };
}

/** GetHost answers whatever the hypervisor does. */
async function factsOrWhyNot(
  hypervisor: Hypervisor,
  factsMs: number,
): Promise<{ facts: HypervisorFacts; warnings: string[] }> {
  const enough = new AbortController();
  const tooLong = delay(factsMs, undefined, { signal: enough.signal }).then(() => {
    throw new Error(`no answer within ${factsMs} ms`);
  });
  try {
    return { facts: await Promise.race([hypervisor.facts(), tooLong]), warnings: [] };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return {
      facts: { reachable: false, libvirtVersion: '', qemuVersion: '', canSetAgentTimeout: false },
      warnings: [`The hypervisor does not answer: ${why}`],
    };
  } finally {
    tooLong.catch(() => {});
    enough.abort();
  }
}
