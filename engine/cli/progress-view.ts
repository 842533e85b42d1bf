import type { SnapshotView } from '../api/schemas.js';
import { duration, plain, type Terminal } from './terminal.js';

type Progress = NonNullable<SnapshotView['progress']>;
type Step = Progress['steps'][number];

/** Shows how a run gets on, as often as something is known. */
export interface ProgressView {
  show(snapshot: SnapshotView): void;
  /** Between two answers: the API does not answer, say. */
  note(text: string): void;
}

/** Drawn over on a terminal; line by line into a file or a pipe. */
export function progressView(terminal: Terminal): ProgressView {
  return terminal.columns === undefined
    ? new ProgressLines(terminal)
    : new ProgressDrawing(terminal, () => terminal.columns ?? 80);
}

class ProgressLines implements ProgressView {
  readonly #terminal: Terminal;
  /** By place: the same step may run again in a second window. */
  readonly #begun = new Set<number>();
  readonly #ended = new Set<number>();
  #waiting: string | null = null;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  show({ progress }: SnapshotView): void {
    if (progress === null) return;
    progress.steps.forEach((step, place) => {
      if (step.ms === null && !this.#begun.has(place)) this.note(`${clock(step)}  ${step.name} …`);
      if (step.ms !== null && !this.#ended.has(place)) this.note(`${clock(step)}  ${step.name}: ${outcome(step)}`);
      this.#begun.add(place);
      if (step.ms !== null) this.#ended.add(place);
    });
    if (progress.waiting !== null && progress.waiting !== this.#waiting) this.note(`waiting: ${progress.waiting}`);
    this.#waiting = progress.waiting;
  }

  note(text: string): void {
    this.#terminal.err(`${plain(text)}\n`);
  }
}

class ProgressDrawing implements ProgressView {
  readonly #terminal: Terminal;
  readonly #columns: () => number;
  #drawn = 0;

  constructor(terminal: Terminal, columns: () => number) {
    this.#terminal = terminal;
    this.#columns = columns;
  }

  show({ vm, progress }: SnapshotView): void {
    if (progress === null) return;
    const lines = [
      `${vm.name}: ${progress.state}`,
      ...progress.steps.map(
        (step) =>
          `  ${clock(step)}  ${took(step).padStart(8)}  ${step.name}${step.error === null ? '' : `: ${step.error}`}`,
      ),
      ...(progress.waiting === null ? [] : [`  waiting: ${progress.waiting}`]),
    ].map((line) => cut(plain(line), this.#columns()));
    this.#terminal.err(`${this.#drawn === 0 ? '' : `\u001b[${this.#drawn}A`}\u001b[0J${lines.join('\n')}\n`);
    this.#drawn = lines.length;
  }

  note(text: string): void {
    this.#terminal.err(`${plain(text)}\n`);
    // The drawing stays above the note; the next one begins below it.
    this.#drawn = 0;
  }
}

function outcome(step: Step): string {
  return step.error === null ? took(step) : `failed after ${took(step)}: ${step.error}`;
}

/** How long it took; of a step that runs, how long it has taken so far. */
function took({ startedAt, ms }: Step): string {
  return ms === null ? `${duration(Math.max(0, Date.now() - Date.parse(startedAt)))} …` : duration(ms);
}

/** 12:30:05.123, UTC as everywhere. */
function clock(step: Step): string {
  return step.startedAt.slice(11, 23);
}

/** A line that wraps would be counted as one and drawn over as one. Characters from U+2E80 on may take two columns. */
function cut(text: string, columns: number): string {
  let width = 0;
  let shown = '';
  for (const character of text) {
    width += (character.codePointAt(0) ?? 0) >= 0x2e80 ? 2 : 1;
    if (width >= columns) return `${shown}…`;
    shown += character;
  }
  return shown;
}
