/** A request as the stand-in sees it, for faults that choose. */
export interface SeenRequest {
  service: 'cinder' | 'keystone';
  method: string;
  /** Below the service's own root and project: `/snapshots/detail`, `/auth/tokens`. */
  path: string;
  body: string;
}

/** What goes wrong with a request. */
export type Fault =
  /** Carried out and answered, `ms` later. */
  | { does: 'wait'; ms: number }
  /** Not begun before `until`. */
  | { does: 'hold-request'; until: Promise<unknown> }
  /** Carried out at once, answered after `until`. */
  | { does: 'hold-answer'; until: Promise<unknown> }
  /** Not carried out; the connection is cut. */
  | { does: 'lose-request' }
  /** Carried out; the connection is cut instead of an answer. */
  | { does: 'lose-answer' }
  /** Not carried out; this is answered. */
  | { does: 'answer'; status: number; body?: unknown; headers?: Record<string, string> }
  /** Carried out; this is answered, as by a proxy that gave up. */
  | { does: 'answer-after'; status: number; body?: unknown; headers?: Record<string, string> };

export interface FaultRule {
  service?: SeenRequest['service'];
  method?: string;
  /** Fits anywhere in the path. */
  path?: RegExp;
  /** Fits anywhere in the body: a volume's id, say. */
  body?: RegExp;
  /** How often; once unless said otherwise. */
  times?: number;
}

/** The faults that are set, the oldest first. */
export class Faults {
  readonly #rules: { rule: FaultRule; fault: Fault; left: number; met: () => void }[] = [];

  /** Resolves when it has struck for the first time. */
  set(rule: FaultRule, fault: Fault): Promise<void> {
    return new Promise((met) => {
      this.#rules.push({ rule, fault, left: rule.times ?? 1, met });
    });
  }

  clear(): void {
    this.#rules.length = 0;
  }

  /** The fault of this request, if any; counts it. */
  take(request: SeenRequest): Fault | undefined {
    const found = this.#rules.find(({ rule, left }) => left > 0 && fits(rule, request));
    if (found === undefined) return undefined;
    found.left -= 1;
    found.met();
    return found.fault;
  }
}

function fits({ service, method, path, body }: FaultRule, request: SeenRequest): boolean {
  return (
    (service === undefined || service === request.service) &&
    (method === undefined || method === request.method) &&
    (path === undefined || path.test(request.path)) &&
    (body === undefined || body.test(request.body))
  );
}
