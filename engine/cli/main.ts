#!/usr/bin/env node
import { createInterface } from 'node:readline/promises';

import { runCli } from './program.js';
import type { Terminal } from './terminal.js';

const interrupt = new AbortController();
process.once('SIGINT', () => interrupt.abort());
// Its reader may have read enough (`| head`): no error then, but no more work either.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));

const terminal: Terminal = {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  get columns() {
    return process.stderr.isTTY ? process.stderr.columns : undefined;
  },
  ask: async (question) => {
    if (!process.stdin.isTTY) return undefined;
    const lines = createInterface({ input: process.stdin, output: process.stderr });
    // Ctrl-C and Ctrl-D mean no.
    const no = new AbortController();
    lines.once('SIGINT', () => no.abort()).once('close', () => no.abort());
    try {
      return await lines.question(question, { signal: no.signal }).catch(() => '');
    } finally {
      lines.close();
    }
  },
};

process.exitCode = await runCli(process.argv.slice(2), { terminal, env: process.env, interrupted: interrupt.signal });
