import { appendFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readConfig } from '@stillpoint/host-agent/config.js';
import { supervise } from '@stillpoint/host-agent/supervisor.js';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, test } from 'vitest';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'stillpoint-supervisor-'));
});
afterAll(async () => {
  // A supervisor that failed its test may have left workers: one is in an endless loop, one is stopped.
  const pids = (await readFile(join(folder, 'pids'), 'utf8')).trim().split('\n');
  await Promise.all(pids.map(killIfOurs));
  await rm(folder, { recursive: true });
});

/** Linux only: elsewhere nothing says whose the number is by now. */
async function killIfOurs(pid: string): Promise<void> {
  const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  if (commandLine.includes(folder)) process.kill(Number(pid), 'SIGKILL');
}

const config = readConfig({ env: {} });

/** A worker that counts its lives in a file; `body` says what it does in life number `life`. */
async function worker(name: string, body: string): Promise<{ workerPath: string; lives: () => Promise<number> }> {
  const workerPath = join(folder, `${name}.mjs`);
  const counter = join(folder, `${name}.lives`);
  await appendFile(counter, '');
  await writeFile(
    workerPath,
    `import { appendFileSync, readFileSync } from 'node:fs';
     appendFileSync(${JSON.stringify(counter)}, '.');
     appendFileSync(${JSON.stringify(join(folder, 'pids'))}, process.pid + '\\n');
     const life = readFileSync(${JSON.stringify(counter)}).length;
     const tellAlive = () => { process.send({ type: 'alive' }); setInterval(() => process.send({ type: 'alive' }), 50); };
     ${body}`,
  );
  return { workerPath, lives: async () => (await readFile(counter)).length };
}

/** Supervises until a message with this text is logged for the n-th time, then stops. */
async function superviseUntil(
  workerPath: string,
  stopWhen: (line: { msg: string }) => boolean,
  times: { silenceMs?: number } = {},
) {
  const stop = new AbortController();
  const lines: { msg: string; pid?: number }[] = [];
  const log = pino(
    { level: 'debug', base: {} },
    {
      write: (text: string) => {
        const line = JSON.parse(text) as { msg: string };
        lines.push(line);
        if (stopWhen(line)) stop.abort();
      },
    },
  );
  await supervise({ workerPath, config, log, maxPauseMs: 20, ...times }, stop.signal);
  return lines.map(({ msg }) => msg);
}

test('a worker that dies at its start is started until it lives', async () => {
  const { workerPath, lives } = await worker(
    'dies',
    `if (life < 15) process.exit(3);
     process.on('SIGTERM', () => process.exit(0));
     process.on('message', ({ type, config }) => { if (type === 'start' && config.stateFolder) tellAlive(); });`,
  );
  let died = 0;
  await superviseUntil(workerPath, ({ msg }) => msg === 'the worker died; it is restarted' && ++died === 14);
  expect(await lives()).toBe(15);
});

test.each([
  ['that falls silent', ''],
  ['in an endless loop', 'setTimeout(() => { for (;;); }, 100);'],
  ['that is stopped', "setTimeout(() => process.kill(process.pid, 'SIGSTOP'), 100);"],
])('a worker %s is killed and started again', async (what, then) => {
  const { workerPath } = await worker(
    what.replaceAll(' ', '-'),
    `process.on('SIGTERM', () => process.exit(0));
     process.on('message', () => {
       if (life > 1) return tellAlive();
       process.send({ type: 'alive' });
       ${then}
     });`,
  );
  const messages = await superviseUntil(workerPath, ({ msg }) => msg === 'the worker died; it is restarted', {
    silenceMs: 500,
  });
  expect(messages).toEqual([
    'worker started',
    'the worker is silent: killing it',
    'the worker died; it is restarted',
    'worker started',
  ]);
});

test('a worker that dies while it stops is started again, to thaw what it left, and then stopped', async () => {
  const { workerPath, lives } = await worker(
    'dies-stopping',
    `process.on('SIGTERM', () => process.exit(life === 1 ? 9 : 0));
     process.on('message', tellAlive);`,
  );
  await superviseUntil(workerPath, ({ msg }) => msg === 'worker started');
  expect(await lives()).toBe(2);
});

test('a worker that can not even stop is given up at last', async () => {
  const { workerPath, lives } = await worker(
    'never-stops',
    "process.on('message', tellAlive); process.on('SIGTERM', () => process.exit(9));",
  );
  const messages = await superviseUntil(workerPath, ({ msg }) => msg === 'worker started');
  expect(await lives()).toBe(4);
  expect(messages.at(-1)).toContain('a guest may still be frozen');
});
