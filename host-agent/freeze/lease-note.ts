import { z } from 'zod';
import { HostAgentError, isHostAgentError } from '../errors.js';
import type { Vm } from '../hypervisor.js';
import type { DebtDependencies } from './debt.js';
import { within } from './within.js';

/** What the domain's metadata says of a lease, for the host agent that meets the VM elsewhere, or later. */
export interface LeaseNote {
  window: string;
  /** Where it was frozen. */
  host: string;
  installation: string;
}

/** Whoever may change the domain may write there. What passes goes into logs and texts. */
const schema = z.object({
  version: z.literal(1),
  window: z.string().regex(/^[A-Za-z0-9._:-]{1,200}$/),
  host: z.string().min(1).max(253),
  installation: z.string().regex(/^[A-Za-z0-9._:-]{1,200}$/),
});
const longestNote = 2_000;

export function writtenNote({ window, host, installation }: LeaseNote): string {
  return JSON.stringify({ version: 1, window, host, installation });
}

/** The lease that a note tells of; undefined: it is none that a host agent of this version writes. */
export function readNote(text: string): LeaseNote | undefined {
  if (text.length > longestNote) return undefined;
  try {
    return schema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}

/**
 * The note in one domain. It is written before the freeze and removed after the thaw, both outside of the window; one that a crash leaves behind costs the guest
 * a thaw too many. From its writing, or from a debt's beginning, until its removal this life of the host agent answers for it.
 */
export class DomainNote {
  readonly #deps: DebtDependencies;
  readonly #vm: string;
  /** Of whom, and in which life of the domain, the note is that is there or on its way. One of a life that is over stands for nothing. */
  #mine: { window: string; domainId: number | undefined } | undefined;
  #removal: { of: object; done: Promise<void> } | undefined;
  #wake: (() => void) | undefined;
  #stopped = false;

  constructor(deps: DebtDependencies, vm: string) {
    this.#deps = deps;
    this.#vm = vm;
  }

  /** Writes it. Errors: VM_NOT_FOUND, VM_NOT_RUNNING, HYPERVISOR_BUSY and the connection's: nothing may be frozen then. */
  async write(lease: LeaseNote, domainId: number | undefined): Promise<void> {
    const { hypervisor, settings } = this.#deps;
    this.answerFor(lease.window, domainId);
    try {
      // Two calls may overtake one another: the removal of an earlier note must not take this one.
      if (this.#removal !== undefined) await within(this.#removal.done, settings.callGuardMs);
      await within(hypervisor.setNote(this.#vm, writtenNote(lease)), settings.callGuardMs);
    } catch (error) {
      const code = isHostAgentError(error) ? error.code : 'INTERNAL';
      const why = error instanceof Error ? error.message : String(error);
      throw new HostAgentError(code, `The lease could not be noted in the domain's metadata: ${why}`, { cause: error });
    }
  }

  /** Takes over a note that is there, for a debt of that name: who pays it removes it. */
  answerFor(window: string, domainId: number | undefined): void {
    this.#mine = { window, domainId };
    this.#wake?.();
  }

  /** Whether it is this life's to remove, so that a VM that has it did not come from elsewhere with it. */
  isMine(window: string, vm: Vm): boolean {
    return this.#mine?.window === window && this.#mine.domainId === vm.domainId;
  }

  /** The guest is proven thawed: the note of that debt goes, also one that was there before this life; another lease's stays. */
  paid(window: string, domainId: number | undefined): void {
    this.#mine ??= { window, domainId };
    this.remove(window);
  }

  /** Removes it, soon and for as long as it takes; a note that was written since stays. */
  remove(window: string): void {
    const mine = this.#mine;
    if (mine?.window !== window || this.#stopped || this.#removal?.of === mine) return;
    const done = this.#removeFor(mine, this.#removal?.done).finally(() => {
      if (this.#removal?.of === mine) this.#removal = undefined;
    });
    this.#removal = { of: mine, done };
  }

  /** The guest has gone with the note of that debt: whoever comes with it later is as frozen as it was. */
  left(window: string): void {
    if (this.#mine?.window !== window) return;
    this.#mine = undefined;
    this.#wake?.();
  }

  /** Resolves when no removal is being tried, or one takes too long to be waited for. */
  async settled(): Promise<void> {
    if (this.#removal === undefined) return;
    await within(this.#removal.done, this.#deps.settings.callGuardMs).catch(() => undefined);
  }

  /** Ends the tries: the next life finds the note. */
  stop(): void {
    this.#stopped = true;
    this.#wake?.();
  }

  async #removeFor(
    mine: { window: string; domainId: number | undefined },
    earlier: Promise<void> | undefined,
  ): Promise<void> {
    const { hypervisor, log } = this.#deps;
    // Who waits for this one waits for everything that could still remove a later note.
    await earlier;
    while (this.#mine === mine) {
      try {
        // Without a guard of ours: a migration keeps libvirt from it for as long as it lasts, and calls must not pile up behind it.
        await hypervisor.setNote(this.#vm, undefined);
        if (this.#mine === mine) this.#mine = undefined;
        return;
      } catch (error) {
        const isOver = isHostAgentError(error, 'VM_NOT_FOUND') || isHostAgentError(error, 'VM_NOT_RUNNING');
        if (isOver && this.#mine === mine) this.#mine = undefined;
        if (isOver || this.#stopped) return;
        log.warn({ vm: this.#vm, window: mine.window, err: error }, 'The note of a paid lease is still in the domain.');
      }
      if (!(await this.#isStillThere(mine))) return;
    }
  }

  /** Waits a while, and until it is known whether the domain runs in the same life still: the note of another one is of a guest that is frozen. */
  async #isStillThere(mine: { domainId: number | undefined }): Promise<boolean> {
    const { hypervisor, settings } = this.#deps;
    while (this.#mine === mine) {
      await this.#pause(settings.retryMaxMs);
      if (this.#stopped) return false;
      try {
        return (await within(hypervisor.getVm(this.#vm), settings.callGuardMs)).domainId === mine.domainId;
      } catch (error) {
        if (isHostAgentError(error, 'VM_NOT_FOUND')) return false;
      }
    }
    return false;
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
