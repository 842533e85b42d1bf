import { HostAgentError } from '../errors.js';

/** A lock of libvirt's: one holder, others wait in order, and give up after `limitMs` with HYPERVISOR_BUSY. */
export class JobLock {
  #tail: Promise<void> = Promise.resolve();
  readonly #name: string;
  readonly #limitMs: number;

  constructor(name: string, limitMs: number) {
    this.#name = name;
    this.#limitMs = limitMs;
  }

  async run<T>(job: () => Promise<T>): Promise<T> {
    let unlock = (): void => {};
    const before = this.#tail;
    let expired = false;
    const mine = new Promise<void>((resolve) => {
      unlock = resolve;
    });
    this.#tail = before.then(() => mine);
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<'expired'>((resolve) => {
      timer = setTimeout(() => resolve('expired'), this.#limitMs);
    });
    try {
      expired = (await Promise.race([before, limit])) === 'expired';
      if (expired) {
        throw new HostAgentError('HYPERVISOR_BUSY', `Timed out: cannot acquire state change lock (${this.#name}).`);
      }
      return await job();
    } finally {
      clearTimeout(timer);
      unlock();
    }
  }
}
