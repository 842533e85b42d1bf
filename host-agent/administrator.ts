import { hostname, userInfo } from 'node:os';
import { type Client, credentials, type ServiceError } from '@grpc/grpc-js';
import {
  FreezeState,
  HostAgentAdminClient,
  HostAgentAdminService,
  HostAgentClient,
  HostAgentService,
  type Vm,
  VmState,
} from '@stillpoint/proto';

/** Thrown when the running host agent cannot be asked, or refuses. `cause` is the gRPC error. */
export class AdministratorError extends Error {
  override readonly name = 'AdministratorError';
}

/** Asks the running host agent on its socket in the state folder: the administrator's side of HostAgentAdmin. Every call rejects with AdministratorError. */
export class Administrator {
  readonly #socketPath: string;
  readonly #hostAgent: HostAgentClient;
  readonly #admin: HostAgentAdminClient;

  constructor(socketPath: string) {
    this.#socketPath = socketPath;
    this.#hostAgent = new HostAgentClient(`unix:${socketPath}`, credentials.createInsecure());
    this.#admin = new HostAgentAdminClient(`unix:${socketPath}`, credentials.createInsecure());
  }

  async vms(): Promise<Vm[]> {
    return (await this.#ask(this.#hostAgent, HostAgentService.listVms, {})).vms;
  }

  /** Gives the VM back, by UUID or by a name that only one VM has. The answer says who held it; undefined: nobody did. */
  async release(vm: string): Promise<{ operation: string; window: string; installation: string } | undefined> {
    const request = { vmUuid: await this.#uuidOf(vm), askedBy: `${userInfo().username}@${hostname()}` };
    const answer = await this.#ask(this.#admin, HostAgentAdminService.releaseVm, request);
    if (!answer.released) return undefined;
    return { operation: answer.operationId, window: answer.windowId, installation: answer.installationId };
  }

  close(): void {
    this.#hostAgent.close();
    this.#admin.close();
  }

  /** A UUID is taken as it is: the way out must work while libvirt is down. */
  async #uuidOf(vm: string): Promise<string> {
    if (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(vm)) return vm.toLowerCase();
    const named = (await this.vms()).filter(({ name }) => name === vm);
    const [only, second] = named;
    if (only === undefined) throw new AdministratorError(`There is no VM called ${vm} on this host.`);
    if (second !== undefined) {
      throw new AdministratorError(
        `Several VMs are called ${vm}; name one by its UUID: ${named.map(({ uuid }) => uuid).join(', ')}`,
      );
    }
    return only.uuid;
  }

  #ask<Request, Response>(
    client: Client,
    method: {
      path: string;
      requestSerialize: (request: Request) => Buffer;
      responseDeserialize: (bytes: Buffer) => Response;
    },
    request: Request,
  ): Promise<Response> {
    const { path, requestSerialize, responseDeserialize } = method;
    // Longer than a thaw is waited for.
    const deadline = Date.now() + 30_000;
    return new Promise((resolve, reject) => {
      client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, { deadline }, (error, response) => {
        if (error === null && response !== undefined) resolve(response);
        else reject(this.#explain(error));
      });
    });
  }

  #explain(error: ServiceError | null): AdministratorError {
    // gRPC's own: no reason of the host agent came with it.
    if (error?.metadata?.get('grpc-status-details-bin').length === 0) {
      const text = `No host agent answers on ${this.#socketPath} (${error.details}). Is it running, and are you root?`;
      return new AdministratorError(text, { cause: error });
    }
    return new AdministratorError(error?.details ?? 'The host agent answered nothing.', { cause: error });
  }
}

/** The VMs as a table for people. */
export function vmTable(vms: Vm[]): string {
  const rows = vms.map((vm) => [
    vm.name,
    vm.uuid,
    vmStates[vm.state] ?? 'unknown',
    vm.hold?.operationId ? `${vm.hold.operationId} (${vm.hold.installationId})` : '-',
    freezeOf(vm),
  ]);
  const table = [['NAME', 'UUID', 'STATE', 'HELD BY', 'FREEZE'], ...rows];
  const widths = table[0]?.map((_, column) => Math.max(...table.map((row) => row[column]?.length ?? 0))) ?? [];
  return table
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function freezeOf({ hold }: Vm): string {
  if (hold === undefined) return '-';
  const since = hold.frozenUnixMs === 0 ? '' : ` since ${new Date(hold.frozenUnixMs).toISOString()}`;
  const detail = hold.freezeDetail === '' ? '' : `: ${hold.freezeDetail}`;
  return `${freezeStates[hold.freezeState] ?? 'unknown'}${since}${detail}`;
}

const vmStates: Record<number, string> = {
  [VmState.RUNNING]: 'running',
  [VmState.PAUSED]: 'paused',
  [VmState.SHUT_OFF]: 'shut off',
  [VmState.OTHER]: 'other',
};

const freezeStates: Record<number, string> = {
  [FreezeState.THAWED]: '-',
  [FreezeState.FREEZING]: 'freezing',
  [FreezeState.FROZEN]: 'frozen',
  [FreezeState.THAWING]: 'thawing',
  [FreezeState.MAYBE_FROZEN]: 'maybe frozen',
  [FreezeState.STILL_FROZEN]: 'STILL FROZEN',
};
