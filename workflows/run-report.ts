import { defineQuery, setCurrentDetails, setHandler } from '@temporalio/workflow';
import { PROGRESS_QUERY, type Progress, type ProgressStep } from './contract.js';
import { type Failure, failureOf } from './failure.js';
import { ms } from './grade.js';

/**
 * What a run tells the people who watch it: the query `progress`, and the Temporal UI's current details as Markdown. Neither writes to the history, so
 * telling costs nothing inside the window.
 */
export class RunReport {
  #state: Progress['state'] = 'checking';
  #snapshotId: string | undefined;
  #waiting: string | undefined;
  #head = '';
  #facts: string[] = [];
  readonly #steps: ProgressStep[] = [];

  constructor() {
    setHandler(defineQuery<Progress>(PROGRESS_QUERY), () => ({
      state: this.#state,
      snapshotId: this.#snapshotId,
      steps: this.#steps,
      waiting: this.#waiting,
    }));
  }

  /** What this run is about, once that is known. */
  isAbout(snapshotId: string | undefined, head: string, facts: string[]): void {
    this.#snapshotId = snapshotId;
    this.#head = head;
    this.#facts = facts;
    this.#tell();
  }

  /**
   * Runs a step and keeps its time and error. `state` undefined: as before. `waiting`: why it may take long. `ownMs`: how long it took itself, of one that
   * stands ready for another first.
   */
  async step<T>(
    state: Progress['state'] | undefined,
    name: string,
    run: () => Promise<T>,
    { waiting, ownMs }: { waiting?: string; ownMs?: ((result: T) => number) | undefined } = {},
  ): Promise<T> {
    const started = Date.now();
    const step: ProgressStep = { name, startedAt: new Date(started).toISOString() };
    this.#state = state ?? this.#state;
    this.#waiting = waiting;
    this.#steps.push(step);
    this.#tell();
    try {
      const result = await run();
      if (ownMs !== undefined) {
        step.ms = Math.round(ownMs(result));
        step.startedAt = new Date(Date.now() - step.ms).toISOString();
      }
      return result;
    } catch (error) {
      step.error = failureOf(error).text;
      throw error;
    } finally {
      step.ms ??= Date.now() - started;
      if (this.#waiting === waiting) this.#waiting = undefined;
      this.#tell();
    }
  }

  /** The run goes on from one state to another, unless it has left the first already. */
  goesOn(from: Progress['state'], to: Progress['state']): void {
    if (this.#state === from) this.#state = to;
    this.#tell();
  }

  /** Adds a line that stays, say the grade. */
  adds(...facts: string[]): void {
    this.#facts.push(...facts);
    this.#tell();
  }

  ends(outcome: string): void {
    this.#state = 'done';
    this.#waiting = undefined;
    this.adds(outcome);
  }

  failed(failure: Failure): void {
    this.ends(`**${failure.code === 'CANCELLED' ? 'Cancelled' : `Failed: ${failure.code}`}**`);
  }

  #tell(): void {
    const rows = this.#steps.map(
      (step) =>
        `| ${cell(step.name)} | ${step.startedAt.slice(11, 23)} | ${step.ms === undefined ? '…' : ms(step.ms)} | ${cell(step.error ?? '')} |`,
    );
    const waiting = this.#waiting === undefined ? [] : [`**Waiting:** ${cell(this.#waiting)}`];
    setCurrentDetails(
      [
        this.#head,
        ...this.#facts,
        ...waiting,
        ['| step | began (UTC) | took | |', '|---|---|---:|---|', ...rows].join('\n'),
      ].join('\n\n'),
    );
  }
}

/** Other people's text inside our Markdown: what hosts and guests say must neither break the table nor become a link, a picture or a heading. */
export function cell(text: string): string {
  return text.replace(/[\r\n\u2028\u2029]+/g, ' ').replace(/[\\`*_[\]<>#|]/g, '\\$&');
}
