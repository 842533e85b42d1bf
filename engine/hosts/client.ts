import { Metadata, type ServiceError } from '@grpc/grpc-js';
import type * as wire from '@stillpoint/proto';
import type { HostChannel } from './channel.js';
import { beginHold } from './cut-hold.js';
import { HostError } from './errors.js';
import type { CallOptions, CutHold, HostClient, HostMergeProgress, HostMergeResult, PrepareAnswer } from './hosts.js';
import {
  factsFromWire,
  mergeProgressFromWire,
  mergeResultFromWire,
  overlaysFromWire,
  overlayToWire,
  quiesceToWire,
  reasonToWire,
  verdictFromWire,
  vmFromWire,
} from './wire.js';

/** Default deadlines, ms: what the host agent may take by its own settings, and a little more, so that its answer and not our impatience is told. */
const deadlines = {
  facts: 5_000,
  listVms: 15_000,
  getVm: 10_000,
  /** It reads every chain of the host, one after another. */
  listOverlays: 120_000,
  prepare: 120_000,
  /** Beside the freeze's own timeout: the wait for every cut to be ready, and what is asked of the guest before. */
  freezeBeside: 30_000,
  snapshotVm: 100_000,
  /** A thaw hook may be slow: the host agent gives it 60 s. */
  thaw: 75_000,
  release: 8_000,
} as const;

/** The client of one host. `channel` gives its connection at each call, or throws HOST_LOST or HOST_NOT_FOUND. */
export function hostClient(name: string, channel: () => Promise<HostChannel>): HostClient {
  const metadata = new Metadata();
  const unary = async <T>(
    options: CallOptions | undefined,
    deadlineMs: number,
    begin: (client: wire.HostAgentClient, options: { deadline: number }, answer: Answer<T>) => { cancel(): void },
  ): Promise<T> =>
    (await channel()).unary<T>(
      { deadlineMs: options?.deadlineMs ?? deadlineMs, signal: options?.signal },
      (client, deadline, answer) => begin(client, { deadline }, answer),
    );

  return {
    name,

    facts: async (options) =>
      factsFromWire(
        await unary<wire.GetHostResponse>(options, deadlines.facts, (client, call, answer) =>
          client.getHost({}, metadata, call, answer),
        ),
      ),

    listVms: async (options) => {
      const { vms } = await unary<wire.ListVmsResponse>(options, deadlines.listVms, (client, call, answer) =>
        client.listVms({}, metadata, call, answer),
      );
      return vms.map(vmFromWire);
    },

    getVm: async (vm, options) => {
      const answer = await unary<wire.GetVmResponse>(options, deadlines.getVm, (client, call, answer) =>
        client.getVm({ vmUuid: vm }, metadata, call, answer),
      );
      return vmFromWire(answer.vm);
    },

    listOverlays: async (options) =>
      overlaysFromWire(
        await unary<wire.ListOverlaysResponse>(options, deadlines.listOverlays, (client, call, answer) =>
          client.listOverlays({}, metadata, call, answer),
        ),
      ),

    prepare: async (request, options): Promise<PrepareAnswer> => {
      const { vm, operation, window, installation, quiesce, ...rest } = request;
      const answer = await unary<wire.PrepareResponse>(options, deadlines.prepare, (client, call, answer) =>
        client.prepare(
          {
            ...rest,
            vmUuid: vm,
            operationId: operation,
            windowId: window,
            installationId: installation,
            quiesce: quiesceToWire[quiesce],
          },
          metadata,
          call,
          answer,
        ),
      );
      if (answer.staleOperationId !== '') {
        return { stale: { operation: answer.staleOperationId, window: answer.staleWindowId } };
      }
      const { overlays, gaps, guestOs, windowLimitMs } = answer;
      return { vm: vmFromWire(answer.vm), overlays, gaps, guestOs, windowLimitMs };
    },

    freezeFileSystems: async ({ vm, window, cuts, freezeTimeoutMs }, options) =>
      unary<wire.FreezeFileSystemsResponse>(options, freezeTimeoutMs + deadlines.freezeBeside, (client, call, answer) =>
        client.freezeFileSystems({ vmUuid: vm, windowId: window, cuts, freezeTimeoutMs }, metadata, call, answer),
      ),

    holdCut: async (request, options): Promise<CutHold> => {
      const stream = await (await channel()).duplex(options?.signal, (client) => client.holdCut());
      return beginHold(name, stream, request, options?.signal);
    },

    snapshotVm: async ({ vm, window, disks, frozen, quiesce, cut, freezeTimeoutMs }, options) => {
      const { overlays, transactionMs, verdict, unfrozenReason } = await unary<wire.SnapshotVmResponse>(
        options,
        deadlines.snapshotVm + (freezeTimeoutMs ?? 0),
        (client, call, answer) =>
          client.snapshotVm(
            {
              vmUuid: vm,
              windowId: window,
              disks,
              frozen,
              quiesce: quiesceToWire[quiesce],
              cut,
              freezeTimeoutMs: freezeTimeoutMs ?? 0,
            },
            metadata,
            call,
            answer,
          ),
      );
      return {
        overlays,
        transactionMs,
        verdict: verdict === undefined ? undefined : verdictFromWire(verdict),
        unfrozenReason,
      };
    },

    thawFileSystems: async ({ vm, window, reason }, options) => {
      const { verdict } = await unary<wire.ThawFileSystemsResponse>(options, deadlines.thaw, (client, call, answer) =>
        client.thawFileSystems({ vmUuid: vm, windowId: window, reason: reasonToWire(reason) }, metadata, call, answer),
      );
      if (verdict === undefined) throw new HostError(name, 'INTERNAL', `${name} thawed without a verdict.`);
      return verdictFromWire(verdict);
    },

    undo: ({ vm, window }, options) =>
      merge(options, async (onMessage) =>
        (await channel()).stream(
          options?.signal,
          (client) => client.undo({ vmUuid: vm, windowId: window }),
          ({ message }) => onMessage(message),
        ),
      ),

    release: async ({ vm, operation }, options) => {
      const { released } = await unary<wire.ReleaseResponse>(options, deadlines.release, (client, call, answer) =>
        client.release({ vmUuid: vm, operationId: operation }, metadata, call, answer),
      );
      return released;
    },

    deleteSnapshot: ({ vm, operation, installation, window, overlays }, options) =>
      merge(options, async (onMessage) =>
        (await channel()).stream(
          options?.signal,
          (client) => {
            options?.beforeSending?.();
            return client.deleteSnapshot({
              vmUuid: vm,
              operationId: operation,
              installationId: installation,
              windowId: window,
              overlays: overlays.map(overlayToWire),
            });
          },
          ({ message }) => onMessage(message),
        ),
      ),

    thawVm: async ({ vm, askedBy, window = '' }, options) => {
      const { thawedFileSystems, lostWindowId } = await unary<wire.ThawVmResponse>(
        options,
        deadlines.thaw,
        (client, call, answer) => client.thawVm({ vmUuid: vm, askedBy, windowId: window }, metadata, call, answer),
      );
      return { thawedFileSystems, lostWindow: lostWindowId };
    },
  };

  async function merge(
    options: { onProgress?: (progress: HostMergeProgress) => void } | undefined,
    read: (onMessage: (message: MergeMessage) => void) => Promise<void>,
  ): Promise<HostMergeResult> {
    let result: HostMergeResult | undefined;
    await read((message) => {
      if (message?.$case === 'progress') options?.onProgress?.(mergeProgressFromWire(message.value));
      if (message?.$case === 'result') result = mergeResultFromWire(message.value);
    });
    if (result === undefined) {
      throw new HostError(name, 'HOST_UNREACHABLE', `${name} ended a merge without its result.`, {
        mayHaveHappened: true,
      });
    }
    return result;
  }
}

type Answer<T> = (error: ServiceError | null, response: T) => void;

type MergeMessage =
  | { $case: 'progress'; value: wire.MergeProgress }
  | { $case: 'result'; value: wire.MergeResult }
  | undefined;
