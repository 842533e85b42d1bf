import type { ApiClient } from './api-client.js';
import { json, type Terminal } from './terminal.js';

/** What every command works with. */
export interface Context {
  readonly api: ApiClient;
  readonly terminal: Terminal;
  /** Print the API's answers instead of texts and tables. */
  readonly json: boolean;
  /** Aborts at Ctrl-C. */
  readonly interrupted: AbortSignal;
}

/** The result of a command: as JSON where asked for, else as `text` makes it. */
export function show<Answer>(context: Context, answer: Answer, text: (answer: Answer) => string): void {
  context.terminal.out(`${context.json ? json(answer) : text(answer)}\n`);
}
