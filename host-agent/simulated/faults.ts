import type { HostAgentErrorCode } from '../errors.js';
import type { Hypervisor, Images } from '../hypervisor.js';

/** A call of the port that takes time and can fail. */
export type CallName = Exclude<keyof Hypervisor, 'kind' | 'images' | 'onEvent' | 'start' | 'close'> | keyof Images;

/** What goes wrong with a call. */
export type Fault =
  /** It is refused, and nothing happens. */
  | { reject: HostAgentErrorCode; message?: string }
  /** It happens, and the caller is told this error instead. */
  | { loseReply: HostAgentErrorCode }
  /** The caller is told this error at once; it happens when the test says so: happen(). */
  | { late: HostAgentErrorCode }
  /** It waits for release(), before it happens or before it is answered. Never released, it hangs. */
  | { hold: 'before' | 'after' }
  /** The host agent (the session that calls) dies before the call happens, or before it is answered. */
  | { die: 'before' | 'after' };

/** A fault that waits for its call. */
export interface InjectedFault {
  /** Resolves when a call first met the fault; of one that strikes after the call has happened: then. */
  readonly hit: Promise<void>;
  /** Ends a hold; the call goes on. */
  release(): void;
  /** Makes a late call happen now; resolves when it has. Rejects as the call would. */
  happen(): Promise<void>;
  /** Takes the fault away; calls that met it stay as they are. */
  remove(): void;
}

interface Waiting {
  call: CallName | '*';
  vm: string | undefined;
  skip: number;
  times: number;
  fault: Fault;
  hit: () => void;
  released: Promise<void>;
  effects: (() => Promise<unknown>)[];
}

/** A fault as a call meets it. */
export interface MetFault {
  readonly fault: Fault;
  readonly released: Promise<void>;
  /** Says that the fault strikes now. */
  strike(): void;
  /** Keeps what is to happen later. */
  keep(effect: () => Promise<unknown>): void;
}

/** The faults that were injected and have not been met. */
export class Faults {
  #waiting: Waiting[] = [];

  /** `skip` calls pass first; then `times` calls (default 1) meet the fault; `vm`: only calls for that VM. */
  inject(
    call: CallName | '*',
    fault: Fault,
    where: { vm?: string; skip?: number; times?: number } = {},
  ): InjectedFault {
    let hit = (): void => {};
    let release = (): void => {};
    const wasHit = new Promise<void>((resolve) => {
      hit = resolve;
    });
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    const waiting: Waiting = {
      call,
      vm: where.vm,
      skip: where.skip ?? 0,
      times: where.times ?? 1,
      fault,
      hit,
      released,
      effects: [],
    };
    this.#waiting.push(waiting);
    return {
      hit: wasHit,
      release,
      happen: async () => {
        for (const effect of waiting.effects.splice(0)) await effect();
      },
      remove: () => {
        this.#waiting = this.#waiting.filter((other) => other !== waiting);
      },
    };
  }

  /** The fault that this call meets, if any. */
  meet(call: CallName, vm: string | undefined): MetFault | undefined {
    for (const waiting of this.#waiting) {
      if (waiting.call !== '*' && waiting.call !== call) continue;
      if (waiting.vm !== undefined && waiting.vm !== vm) continue;
      if (waiting.skip > 0) {
        waiting.skip--;
        continue;
      }
      waiting.times--;
      if (waiting.times <= 0) this.#waiting = this.#waiting.filter((other) => other !== waiting);
      return {
        fault: waiting.fault,
        released: waiting.released,
        strike: waiting.hit,
        keep: (effect) => void waiting.effects.push(effect),
      };
    }
    return undefined;
  }
}

/** How long calls take, in ms. */
export interface Latencies {
  freeze: number;
  thaw: number;
  /** The transaction over all disks. */
  snapshot: number;
  /** Every question: state, XML, file systems, image headers. */
  state: number;
  /** A block commit or an offline commit of one overlay. */
  merge: number;
}

/** Medians measured on the lab (Debian 12, libvirt 9.0.0, a TCG guest with two qcow2 disks; one RPC socket). */
export const labLatencies: Latencies = { freeze: 223, thaw: 108, snapshot: 64, state: 0.4, merge: 33 };

/** Everything at once, for tests. */
export const noLatencies: Latencies = { freeze: 0, thaw: 0, snapshot: 0, state: 0, merge: 0 };
