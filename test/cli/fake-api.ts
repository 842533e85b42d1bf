import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { HostView, SnapshotView, VmView } from '@stillpoint/engine/api/schemas.js';
import { runCli } from '@stillpoint/engine/cli/program.js';

export interface Asked {
  method: string;
  /** With its query. */
  url: string;
  headers: IncomingMessage['headers'];
  body: unknown;
}

export interface Answer {
  status?: number;
  body?: unknown;
  /** Sent as it is, instead of `body`. */
  text?: string;
}

/** Answers what a test says, and keeps what it was asked. */
export class FakeApi {
  readonly asked: Asked[] = [];
  answer: (asked: Asked) => Answer | Promise<Answer> = () => problem(404, 'NOT_FOUND', 'Nothing is here.');
  readonly #server: Server;

  static async start(): Promise<FakeApi> {
    const api = new FakeApi();
    await new Promise<void>((resolve) => api.#server.listen(0, '127.0.0.1', resolve));
    return api;
  }

  private constructor() {
    this.#server = createServer(async (request, response) => {
      let text = '';
      for await (const chunk of request) text += chunk;
      const { method = '', url = '', headers } = request;
      const asked = { method, url, headers, body: text === '' ? undefined : JSON.parse(text) };
      this.asked.push(asked);
      const answer = await this.answer(asked);
      response.writeHead(answer.status ?? 200, { 'content-type': 'application/json' });
      response.end(answer.text ?? (answer.body === undefined ? '' : JSON.stringify(answer.body)));
    });
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** The answers in turn; the last one again and again. */
  inTurn(...answers: Answer[]): void {
    let at = 0;
    this.answer = () => answers[Math.min(at++, answers.length - 1)] ?? {};
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export function problem(status: number, code: string, detail: string, members: Record<string, unknown> = {}): Answer {
  return { status, body: { type: `urn:${code}`, title: code, status, code, detail, ...members } };
}

export interface Ran {
  exitCode: number;
  out: string;
  err: string;
}

/** Runs one command line of `stillpoint` in this process. */
export async function stillpoint(
  api: string,
  args: string[],
  person: { says?: string; columns?: number; interrupt?: AbortSignal; onErr?: (text: string) => void } = {},
): Promise<Ran> {
  let out = '';
  let err = '';
  const exitCode = await runCli(args, {
    terminal: {
      out: (text) => {
        out += text;
      },
      err: (text) => {
        err += text;
        person.onErr?.(text);
      },
      columns: person.columns,
      ask: async () => person.says,
    },
    env: { STILLPOINT_API: api },
    interrupted: person.interrupt ?? new AbortController().signal,
  });
  return { exitCode, out, err };
}

export const id = '41f38dcc-c078-4237-b5b5-4fa9045d4e2b';
export const uuid = '11111111-1111-4111-8111-111111111111';

export function host(over: Partial<HostView> = {}): HostView {
  return {
    name: 'kvm-01',
    address: '10.0.0.1:8701',
    state: 'active',
    addedAt: '2026-11-21T12:00:00.000Z',
    reachable: true,
    error: null,
    version: '0.1.0',
    hypervisor: 'libvirt',
    canQuiesce: true,
    warnings: [],
    ...over,
  };
}

export function vm(over: Partial<VmView> = {}): VmView {
  return {
    uuid,
    name: 'web-1',
    host: 'kvm-01',
    state: 'running',
    guestAgent: 'connected',
    stale: false,
    seenAt: '2026-11-21T12:00:00.000Z',
    hold: null,
    disks: [],
    ...over,
  };
}

export function snapshot(over: Partial<SnapshotView> = {}): SnapshotView {
  return {
    id,
    name: 'before the update',
    description: null,
    vm: { uuid, name: 'web-1' },
    host: 'kvm-01',
    quiesce: 'required',
    state: 'complete',
    grade: 'filesystem',
    why: '3 file systems stayed frozen, 219 ms in all.',
    partial: true,
    createdAt: '2026-11-21T12:29:43.175Z',
    endedAt: '2026-11-21T12:29:44.678Z',
    window: {
      id: `${id}.1`,
      ms: 218.78,
      frozenAt: '2026-11-21T12:29:44.267Z',
      thawedAt: '2026-11-21T12:29:44.595Z',
      frozenFileSystems: 3,
    },
    disks: [
      {
        target: 'vda',
        kind: 'local',
        path: '/images/web-1.qcow2',
        format: 'qcow2',
        overlay: `/images/web-1.sp-${id}.1.qcow2`,
        sizeBytes: 21_474_836_480,
      },
    ],
    leftOut: [{ target: 'vdc', reason: 'a network disk that is no volume Stillpoint knows', writable: true }],
    unfrozen: [],
    error: null,
    pending: [],
    run: { workflowId: `vm-${uuid}`, runId: 'r-1' },
    progress: null,
    ...over,
  };
}

/** A snapshot whose run goes on. */
export function running(
  steps: { name: string; ms?: number; error?: string }[],
  over: Partial<SnapshotView> = {},
): SnapshotView {
  return snapshot({
    state: 'running',
    grade: null,
    why: null,
    partial: null,
    endedAt: null,
    window: null,
    disks: [],
    leftOut: [],
    progress: {
      state: 'frozen',
      waiting: null,
      steps: steps.map(({ name, ms, error }) => ({
        name,
        startedAt: '2026-11-21T12:29:44.100Z',
        ms: ms ?? null,
        error: error ?? null,
      })),
    },
    ...over,
  });
}

export const accepted: Answer = {
  status: 202,
  body: { id, vm: { uuid, name: 'web-1' }, href: `/v1/snapshots/${id}` },
};
