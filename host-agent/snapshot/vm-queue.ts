/** Runs the jobs of one VM one at a time, in order (invariant 9); different VMs do not wait for one another. */
export class VmQueue {
  readonly #tails = new Map<string, Promise<void>>();

  async run<T>(vm: string, job: () => Promise<T>): Promise<T> {
    const before = this.#tails.get(vm) ?? Promise.resolve();
    const mine = before.then(job);
    const tail = mine.then(
      () => undefined,
      () => undefined,
    );
    this.#tails.set(vm, tail);
    try {
      return await mine;
    } finally {
      if (this.#tails.get(vm) === tail) this.#tails.delete(vm);
    }
  }
}
