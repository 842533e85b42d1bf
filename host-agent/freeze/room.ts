import { hostname } from 'node:os';
import type { Logger } from 'pino';
import { HostAgentError, isHostAgentError } from '../errors.js';
import type { Hypervisor, HypervisorEvent } from '../hypervisor.js';
import type {
  CoverageGap,
  FreezeRoom,
  Hold,
  HoldState,
  Reservation,
  ReserveRequest,
  StaleOperation,
  Verdict,
} from '../window.js';
import { Arrivals } from './arrivals.js';
import { type Clock, processClock } from './clock.js';
import { fileSystemsText, judgeCoverage } from './coverage.js';
import { Guest } from './guest.js';
import type { Prepared, WindowTerms } from './history.js';
import { Journal } from './journal.js';
import { readGuest, runningVm } from './preflight.js';
import { Inquiry, recover } from './recovery.js';
import { checkId, checkWindowLimit, defaultFreezeSettings, type FreezeSettings } from './settings.js';
import type { Loss } from './verdict.js';
import { Window } from './window.js';
import { within } from './within.js';

export interface FreezeRoomOptions {
  hypervisor: Hypervisor;
  /** State folder; the journal lies in it. */
  folder: string;
  /** Of this host, as its certificate has it, for the note in the domains' metadata; default the machine's. */
  hostName?: string;
  settings?: Partial<FreezeSettings>;
  log: Logger;
  clock?: Clock;
}

/** Makes the freeze room; nothing happens before `start()`. */
export function createFreezeRoom(options: FreezeRoomOptions): FreezeRoom {
  return new Room(options);
}

type Reserved = { gaps: CoverageGap[]; expectedFileSystems: number; guestOs: string; windowLimitMs: number };

class Room implements FreezeRoom {
  readonly #hypervisor: Hypervisor;
  readonly #folder: string;
  readonly #hostName: string;
  readonly #settings: FreezeSettings;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #guests = new Map<string, Guest>();
  /** Reservations being made, by window: a repeated Prepare joins the first. */
  readonly #reserving = new Map<string, Promise<Reserved>>();
  #started: Journal | undefined;
  #inquiry: Inquiry | undefined;
  readonly #arrivals: Arrivals;
  #unsubscribe: () => void = () => undefined;
  #stopping = false;

  constructor({ hypervisor, folder, hostName, settings, log, clock }: FreezeRoomOptions) {
    this.#hypervisor = hypervisor;
    this.#folder = folder;
    this.#hostName = hostName ?? hostname();
    this.#settings = { ...defaultFreezeSettings, ...settings };
    this.#log = log;
    this.#clock = clock ?? processClock;
    this.#arrivals = new Arrivals(this.#debtDependencies, (vm) => this.#guest(vm));
  }

  async start(): Promise<void> {
    const journal = await Journal.open({
      folder: this.#folder,
      settings: this.#settings,
      clock: this.#clock,
      log: this.#log,
    });
    this.#started = journal;
    this.#unsubscribe = this.#hypervisor.onEvent((event) => this.#onEvent(event));
    recover(journal.history, (vm) => this.#guest(vm));
    // After those that the journal knows: their thaws are on their way.
    this.#arrivals.lookAtAll();
    if (!journal.history.unsure) return;

    // A record that would have closed a window may be among the unreadable ones.
    for (const guest of this.#guests.values()) {
      void guest.openWindow?.close('the journal could not be read', restarted).catch(() => undefined);
    }
    const inquiry = new Inquiry(this.#debtDependencies, (vm) => this.#guest(vm));
    this.#inquiry = inquiry;
    void inquiry.run().then(() => {
      if (!this.#stopping) journal.commit({ type: 'sure' }).catch(() => undefined);
    });
  }

  async reserve(request: ReserveRequest): Promise<{ stale: StaleOperation } | Reserved> {
    this.#refuseStopping();
    this.#checkReserve(request);
    const { vm, window, operation, installation } = request;
    const guest = this.#guest(vm);

    const joined = this.#reserving.get(window);
    if (joined !== undefined) return joined;
    if (this.#isClosed(window)) throw closedForGood(window);
    const held = guest.reservation;
    if (held !== undefined && held.operation !== operation) return this.#meetHolder(guest, held, installation);
    const known = this.#find(window).found;
    if (known !== undefined && known.vm !== vm) throw unknownWindow(window);
    if (known !== undefined) return reservedAnswer(known.terms);
    if (guest.openWindow !== undefined) {
      throw busy(held, `Window ${guest.openWindow.id} of the same operation is still open`);
    }
    if (request.quiesce !== 'skip') guest.refuseWhileOwed();

    // Taken before anything is awaited, and given back if the checks fail: two operations never both get past this line.
    const reservedUnixMs = held?.reservedUnixMs ?? this.#clock.unixMs();
    const reservation = { vm, operation, window, installation, reservedUnixMs };
    guest.reservation = reservation;
    const reserving = this.#open(guest, reservation, request);
    this.#reserving.set(window, reserving);
    try {
      return await reserving;
    } catch (error) {
      if (guest.reservation === reservation) guest.reservation = held;
      throw error;
    } finally {
      this.#reserving.delete(window);
    }
  }

  async keepPrepared(window: string, prepared: Prepared): Promise<void> {
    const { found, guest } = this.#find(window);
    if (found === undefined || guest === undefined) {
      if (this.#isClosed(window)) throw closedForGood(window);
      throw new HostAgentError('NOT_PREPARED', `Window ${window} is not reserved on this host`);
    }
    // What reserve saw is what the cut and the freeze compare with, whoever pinned the rest.
    const pinned = { ...prepared.pinned, fileSystems: found.terms.fileSystems, osId: found.terms.guestOs };
    const kept = { pinned, overlays: prepared.overlays };
    if (found.closed) throw closedForGood(window);
    await this.#journal.commit({ type: 'prepared', vm: found.vm, window, prepared: kept });
    found.prepared = kept;
    // Closed meanwhile: kept all the same, so that undo finds it, but nobody may go on with it.
    if (found.closed) throw closedForGood(window);
  }

  prepared(window: string): Prepared | undefined {
    return this.#find(window).found?.prepared;
  }

  async freeze(request: Parameters<FreezeRoom['freeze']>[0]) {
    this.#refuseStopping();
    const { vm, window } = request;
    const guest = this.#guests.get(vm);
    const found = guest?.windows.get(window);
    if (guest === undefined || found === undefined) {
      if (this.#isClosed(window)) throw closedForGood(window);
      throw new HostAgentError('NOT_PREPARED', `Window ${window} is not prepared for this VM`);
    }
    if (!found.closed) guest.refuseWhileOwed();
    const { fileSystems, unixMs, callMs, gaps } = await found.freeze(request);
    return { frozenFileSystems: fileSystems, frozenUnixMs: unixMs, freezeCallMs: callMs, gaps };
  }

  hold(vm: string, window: string, cut: string): Hold {
    this.#refuseStopping();
    const found = this.#guests.get(vm)?.windows.get(window);
    if (found !== undefined) return found.hold(cut);
    if (this.#isClosed(window)) throw closedForGood(window);
    throw unknownWindow(window);
  }

  async thaw(vm: string, window: string, reason: string): Promise<Verdict> {
    const found = this.#guests.get(vm)?.windows.get(window);
    if (found === undefined) throw unknownWindow(window);
    return this.#close(found, reason, undefined);
  }

  verdict(vm: string, window: string): Verdict | undefined {
    const found = this.#guests.get(vm)?.windows.get(window);
    if (found === undefined) throw unknownWindow(window);
    return found.verdict;
  }

  async closeForUndo(vm: string, window: string): Promise<void> {
    checkId('VM', vm);
    checkId('window', window);
    const { found } = this.#find(window);
    if (found !== undefined) {
      if (found.vm !== vm) throw unknownWindow(window);
      await this.#close(found, 'undo', { reason: 'UNDONE', detail: 'The window was undone.' });
      return;
    }
    if (this.#isClosed(window)) return;
    // Also one that was never seen here: its Prepare may still be on the way.
    await this.#journal.commit({ type: 'closed', vm, window, closedUnixMs: this.#clock.unixMs() });
    await this.#reserving.get(window)?.catch(() => undefined);
    await this.#find(window).found?.close('undo', undefined);
  }

  async release(vm: string, operation: string): Promise<boolean> {
    const guest = this.#guests.get(vm);
    if (guest?.reservation?.operation !== operation) return false;
    await this.#reserving.get(guest.reservation.window)?.catch(() => undefined);
    const open = guest.openWindow;
    if (open !== undefined) {
      await this.#close(open, 'release', { reason: 'UNDONE', detail: 'The operation released its VM.' });
    }
    if (guest.reservation?.operation !== operation) return false;
    await this.#giveBack(guest, operation, 'the operation');
    return true;
  }

  async reserveForDelete(request: { vm: string; operation: string; installation: string }) {
    this.#refuseStopping();
    const { vm, operation, installation } = request;
    checkId('VM', vm);
    checkId('operation', operation);
    checkId('installation', installation);
    const guest = this.#guest(vm);
    const held = guest.reservation;
    if (held !== undefined && held.operation !== operation) return this.#meetHolder(guest, held, installation);
    guest.refuseWhileOwed();
    if (held !== undefined) return undefined;

    const reservation = { vm, operation, window: '', installation, reservedUnixMs: this.#clock.unixMs() };
    guest.reservation = reservation;
    try {
      await this.#journal.commit({ type: 'reserved-for-delete', vm, reservation });
    } catch (error) {
      if (guest.reservation === reservation) guest.reservation = undefined;
      throw error;
    }
    return undefined;
  }

  async thawVm(vm: string, askedBy: string): Promise<{ thawedFileSystems: number; lostWindow: string | undefined }> {
    checkId('VM', vm);
    const guest = this.#guests.get(vm);
    const open = guest?.openWindow;
    if (open !== undefined && open.freezeState !== 'thawed') {
      const loss: Loss = { reason: 'ADMINISTRATOR', detail: `An administrator (${askedBy}) thawed the guest.` };
      const verdict = await this.#close(open, `administrator (${askedBy})`, loss);
      return { thawedFileSystems: verdict.thawedFileSystems ?? 0, lostWindow: verdict.held ? undefined : open.id };
    }
    for (const debt of guest?.debts ?? []) debt.thaw();
    return { thawedFileSystems: await this.#thawStranger(vm), lostWindow: undefined };
  }

  async thawArrived(vm: string, window: string): Promise<number> {
    checkId('VM', vm);
    checkId('window', window);
    const { domainId, guestAgent } = await runningVm(this.#hypervisor, vm, this.#settings.callGuardMs);
    // Nobody can have frozen it, and a thaw would be owed to it for ever.
    if (guestAgent === 'not-configured') return 0;
    const guest = this.#guest(vm);
    // No window of this host opens on a guest that is frozen already.
    const open = guest.openWindow;
    if (open !== undefined && open.freezeState !== 'thawed') return 0;
    const settlement = await this.#inTime(guest.thawArrived(window, domainId).settled, () =>
      this.#stillFrozen(vm, window),
    );
    if (settlement.how === 'gone') throw new HostAgentError('VM_NOT_FOUND', settlement.detail);
    return settlement.how === 'thawed' ? (settlement.fileSystems ?? 0) : 0;
  }

  async releaseVm(vm: string, askedBy: string): Promise<Reservation | undefined> {
    const guest = this.#guests.get(vm);
    const held = guest?.reservation;
    if (guest === undefined || held === undefined) return undefined;
    const loss: Loss = { reason: 'ADMINISTRATOR', detail: `An administrator (${askedBy}) released the VM.` };
    const open = guest.openWindow;
    if (open !== undefined) {
      // A thaw that is impossible now stays owed; the administrator's word frees the VM all the same.
      await this.#close(open, `administrator (${askedBy})`, loss).catch((error) => {
        if (!isHostAgentError(error, 'STILL_FROZEN')) throw error;
      });
    }
    await this.#giveBack(guest, held.operation, askedBy);
    return held;
  }

  state(vm: string): HoldState {
    const guest = this.#guests.get(vm);
    if (guest !== undefined) return guest.state();
    return { reservation: undefined, freezeState: 'thawed', frozenUnixMs: 0, detail: '', windowLimitMs: 0 };
  }

  states(): { vm: string; state: HoldState }[] {
    return [...this.#guests.values()].map((guest) => ({ vm: guest.vm, state: guest.state() }));
  }

  warnings(): string[] {
    const trouble = this.#started?.trouble;
    const warnings = trouble === undefined ? [] : [trouble];
    warnings.push(...(this.#inquiry?.findings ?? []));
    for (const guest of this.#guests.values()) {
      const { freezeState, detail } = guest.state();
      if (freezeState === 'still-frozen') warnings.push(`VM ${guest.vm} is still frozen: ${detail}`);
      if (freezeState === 'maybe-frozen') warnings.push(`VM ${guest.vm} may be frozen: ${detail}`);
    }
    return warnings;
  }

  installation(): string {
    return this.#started?.history.installation ?? '';
  }

  async shutdown(): Promise<void> {
    this.#stopping = true;
    this.#inquiry?.stop();
    const loss: Loss = { reason: 'SHUTDOWN', detail: 'The host agent was stopped.' };
    const frozen = [...this.#guests.values()]
      .map((guest) => guest.openWindow)
      .filter((window) => window !== undefined)
      // Prepared and unfrozen windows stay open over the restart, as their reservations do.
      .filter((window) => window.freezeState !== 'thawed');
    await Promise.all(
      frozen.map(async (window) => {
        const by = 'the host agent stops';
        window.close(by, loss).catch(() => undefined);
        await window.freezeEnded();
        await this.#close(window, by, loss).catch((error) =>
          this.#log.error(
            { vm: window.vm, window: window.id, err: error },
            'Stopping with a thaw owed; the next start pays it.',
          ),
        );
      }),
    );
    this.#arrivals.stop();
    for (const guest of this.#guests.values()) guest.stop();
    await Promise.all([...this.#guests.values()].map((guest) => guest.settleDomain()));
    this.#unsubscribe();
    await this.#started?.close();
  }

  get #journal(): Journal {
    if (this.#started === undefined) throw new HostAgentError('INTERNAL', 'The freeze room was not started');
    return this.#started;
  }

  get #debtDependencies() {
    return { hypervisor: this.#hypervisor, settings: this.#settings, clock: this.#clock, log: this.#log };
  }

  #guest(vm: string): Guest {
    let guest = this.#guests.get(vm);
    if (guest === undefined) {
      guest = new Guest(
        {
          ...this.#debtDependencies,
          journal: this.#journal,
          hostName: this.#hostName,
          stopping: () => this.#stopping,
          lookAgain: (gone) => this.#arrivals.look(gone),
        },
        vm,
      );
      this.#guests.set(vm, guest);
    }
    return guest;
  }

  #find(window: string): { found: Window | undefined; guest: Guest | undefined } {
    for (const guest of this.#guests.values()) {
      const found = guest.windows.get(window);
      if (found !== undefined) return { found, guest };
    }
    return { found: undefined, guest: undefined };
  }

  #isClosed(window: string): boolean {
    return this.#find(window).found?.closed === true || this.#journal.history.closed.has(window);
  }

  #checkReserve({ vm, operation, window, installation, windowLimitMs, setDisks }: ReserveRequest): void {
    checkId('VM', vm);
    checkId('operation', operation);
    checkId('window', window);
    checkId('installation', installation);
    if (windowLimitMs !== undefined) checkWindowLimit(windowLimitMs);
    if (!window.startsWith(`${operation}.`) || !/^[1-9][0-9]*$/.test(window.slice(operation.length + 1))) {
      throw new HostAgentError('INVALID_ARGUMENT', `The window ${window} is not <operation id>.<attempt>`, {
        metadata: { field: 'window' },
      });
    }
    if (setDisks.length === 0) {
      throw new HostAgentError('INVALID_ARGUMENT', 'The set names no disk', { metadata: { field: 'set disks' } });
    }
  }

  /**
   * The VM is another operation's. A holder of the same installation is dead: only one run can be open under the workflow id of a VM. It is thawed,
   * and told to the caller, who undoes and releases it. A stranger may be alive.
   */
  async #meetHolder(guest: Guest, held: Reservation, installation: string): Promise<{ stale: StaleOperation }> {
    if (held.installation !== installation) throw busy(held, 'Another installation holds this VM');
    await this.#reserving.get(held.window)?.catch(() => undefined);
    const open = guest.openWindow;
    if (open !== undefined) {
      const loss: Loss = { reason: 'THAWED_EARLY', detail: 'A new run of the same VM found this one dead.' };
      await this.#close(open, 'a new run of the same VM', loss);
    }
    return { stale: { operation: held.operation, window: held.window } };
  }

  /** Reads the guest, judges coverage and writes the reservation. */
  async #open(guest: Guest, reservation: Reservation, request: ReserveRequest): Promise<Reserved> {
    const terms =
      request.quiesce === 'skip' ? await this.#unfrozenTerms(request) : await this.#frozenTerms(guest, request);
    const { vm, window, operation } = reservation;
    await this.#journal.commit({ type: 'reserved', vm, window, reservation, terms });
    guest.windows.set(window, new Window(guest.windowDependencies, { vm, id: window, operation, terms }));
    return reservedAnswer(terms);
  }

  async #unfrozenTerms(request: ReserveRequest): Promise<WindowTerms> {
    await runningVm(this.#hypervisor, request.vm, this.#settings.callGuardMs);
    return {
      quiesce: 'skip',
      windowLimitMs: request.windowLimitMs ?? this.#settings.windowLimitMs,
      setDisks: request.setDisks,
      unquiescedDisks: request.unquiescedDisks,
      guestOs: '',
      expectedFileSystems: 0,
      gaps: [],
      fileSystems: undefined,
    };
  }

  async #frozenTerms(guest: Guest, request: ReserveRequest): Promise<WindowTerms> {
    const { setDisks, unquiescedDisks, quiesce } = request;
    const boundAgent = () => guest.setAgentTimeout(this.#settings.readTimeoutS);
    const { fileSystems, os } = await readGuest(this.#hypervisor, guest.vm, this.#settings, boundAgent).finally(() =>
      guest.restoreAgentTimeout(),
    );
    const { gaps, expectedFileSystems } = judgeCoverage({ fileSystems, setDisks, unquiescedDisks });
    if (quiesce === 'required') refuseGaps(gaps);
    const usualLimitMs = os?.isWindows ? this.#settings.windowLimitWindowsMs : this.#settings.windowLimitMs;
    return {
      quiesce,
      windowLimitMs: request.windowLimitMs ?? usualLimitMs,
      setDisks,
      unquiescedDisks,
      guestOs: os?.id ?? '',
      expectedFileSystems,
      gaps,
      fileSystems: fileSystemsText(fileSystems),
    };
  }

  /** Closes a window for somebody who waits, but not for ever: the thaw goes on without him. Errors: STILL_FROZEN, JOURNAL_UNWRITABLE. */
  async #close(window: Window, by: string, loss: Loss | undefined): Promise<Verdict> {
    return this.#inTime(window.close(by, loss), () => this.#notClosed(window));
  }

  /** What somebody waits for, or the error once he has waited long enough; it goes on without him. */
  async #inTime<T>(work: Promise<T>, notYet: () => HostAgentError): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const tooLong = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(notYet()), this.#settings.thawAnswerMs);
    });
    try {
      return await Promise.race([work, tooLong]);
    } finally {
      clearTimeout(timer);
      work.catch(() => undefined);
    }
  }

  #notClosed(window: Window): HostAgentError {
    if (window.closed) {
      return new HostAgentError(
        'JOURNAL_UNWRITABLE',
        `The verdict of window ${window.id} is not on disk yet; the guest is thawed`,
      );
    }
    return this.#stillFrozen(window.vm, window.id);
  }

  #stillFrozen(vm: string, window: string): HostAgentError {
    const why = this.state(vm).detail || 'the guest agent has not answered yet';
    return new HostAgentError('STILL_FROZEN', `VM ${vm} is not thawed yet: ${why}`, { metadata: { window } });
  }

  async #giveBack(guest: Guest, operation: string, by: string): Promise<void> {
    await this.#journal.commit({ type: 'released', vm: guest.vm, operation, by });
    guest.reservation = undefined;
    guest.windows.clear();
  }

  /** An administrator's thaw of a guest that no window of ours froze. Errors: the guest agent's, STILL_FROZEN. */
  async #thawStranger(vm: string): Promise<number> {
    const guest = this.#guest(vm);
    const { thawTimeoutS, statusTimeoutS, callGuardMs } = this.#settings;
    try {
      // A libvirt that cannot bound it can thaw all the same.
      await guest.setAgentTimeout(thawTimeoutS).catch((error) => {
        if (!isHostAgentError(error, 'LIBVIRT_TOO_OLD')) throw error;
      });
      const { fileSystems } = await within(this.#hypervisor.thaw(vm), thawTimeoutS * 1_000 + callGuardMs);
      const status = await within(
        this.#hypervisor.freezeStatus(vm, statusTimeoutS),
        statusTimeoutS * 1_000 + callGuardMs,
      );
      if (status === 'thawed') return fileSystems;
      throw new HostAgentError('STILL_FROZEN', `VM ${vm} says that it is still frozen after a thaw`);
    } finally {
      guest.restoreAgentTimeout();
    }
  }

  #refuseStopping(): void {
    if (this.#stopping) throw new HostAgentError('SHUTTING_DOWN', 'The host agent is stopping');
  }

  #onEvent(event: HypervisorEvent): void {
    this.#inquiry?.onEvent(event);
    this.#arrivals.onEvent(event);
    if (event.type === 'connection') for (const guest of this.#guests.values()) guest.onEvent(event);
    else this.#guests.get(event.uuid)?.onEvent(event);
  }
}

const restarted: Loss = {
  reason: 'HOST_AGENT_RESTARTED',
  detail: 'The host agent restarted and could not read its journal.',
};

function reservedAnswer({ gaps, expectedFileSystems, guestOs, windowLimitMs }: WindowTerms): Reserved {
  return { gaps, expectedFileSystems, guestOs, windowLimitMs };
}

function refuseGaps(gaps: readonly CoverageGap[]): void {
  const open = gaps.filter(({ accepted }) => !accepted);
  if (open.length === 0) return;
  throw new HostAgentError('QUIESCE_INCOMPLETE', open.map(({ reason }) => reason).join(' '), {
    metadata: { targets: [...new Set(open.map(({ target }) => target))].filter((target) => target !== '').join(',') },
  });
}

function busy(held: Reservation | undefined, what: string): HostAgentError {
  if (held === undefined) return new HostAgentError('BUSY', what);
  const { operation, window, installation, reservedUnixMs } = held;
  const since = new Date(reservedUnixMs).toISOString();
  return new HostAgentError('BUSY', `${what}: operation ${operation} of installation ${installation}, since ${since}`, {
    metadata: { operation, window, installation, reservedUnixMs: String(reservedUnixMs) },
  });
}

function closedForGood(window: string): HostAgentError {
  return new HostAgentError('WINDOW_CLOSED', `Window ${window} was thawed or undone and stays closed`);
}

function unknownWindow(window: string): HostAgentError {
  return new HostAgentError(
    'WINDOW_UNKNOWN',
    `No window ${window} of this VM is known here, or its operation has released it`,
  );
}
