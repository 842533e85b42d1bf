/** The columns: the steps of a run at which a fault is done. Each is held from outside, by a proxy before libvirt or before Cinder. */
import type { CinderProxy, ExchangeMatch } from '@stillpoint/lab/cinder-proxy.js';
import type { FrameMatch } from '@stillpoint/lab/libvirt-proxy.js';
import { CephWorld } from './ceph-world.js';
import { VM, type World } from './world.js';

/** A run that stands still at a step. */
export interface Reached {
  /** The snapshot's id. */
  readonly id: string;
  /** Lets it go on from there. Harmless where that has happened. */
  letGo(): void;
}

export interface Step {
  readonly name: string;
  /** What is held. */
  readonly place: string;
  /** The guest is frozen there for as long as the run is held. */
  readonly isFrozen: boolean;
  /** What is held keeps every thaw back, or is one: it must be let go before a thaw can be looked for. */
  readonly blocksTheThaw: boolean;
  /** Begins a snapshot and returns when its run is held there. */
  reach(world: World, request?: Record<string, unknown>): Promise<Reached>;
}

/** Something that a proxy holds. */
interface Held {
  readonly reached: Promise<unknown>;
  release(): void;
}

const isStatus = (payload: Buffer) => payload.includes('guest-fsfreeze-status');

type Place = Omit<Step, 'reach'>;

/** A step at which a proxy holds something. */
export function heldBy(place: Place, hold: (world: World) => Promise<Held>): Step {
  return {
    ...place,
    async reach(world, request = {}) {
      const holding = hold(world);
      const id = await world.system.createSnapshot(VM, request);
      const held = await holding;
      await held.reached;
      return { id, letGo: () => held.release() };
    },
  };
}

const atLibvirt = (place: Place, match: FrameMatch): Step => heldBy(place, async (world) => world.proxy.hold(match));

const thawed = { isFrozen: false, blocksTheThaw: false };
const frozen = { isFrozen: true, blocksTheThaw: false };
const frozenAndBlocked = { isFrozen: true, blocksTheThaw: true };

/** A run that is cancelled when its cut is made, and held as it takes back what it made. */
function undoing(place: string, holdCut: (world: World) => Held, holdUndo: (world: World) => Held): Step {
  return {
    name: 'undoing',
    place,
    ...thawed,
    async reach(world, request = {}) {
      const [cut, undo] = [holdCut(world), holdUndo(world)];
      const id = await world.system.createSnapshot(VM, request);
      await cut.reached;
      // The cancel has come as far as the host when it thaws: the cut's success can change nothing then.
      const thaw = world.proxy.seen({ procedure: 'FSTHAW', what: 'reply' });
      const { status } = await world.system.request('POST', `/v1/snapshots/${id}/cancel`);
      if (status !== 202) throw new Error(`The cancel was answered with ${status}`);
      await thaw;
      cut.release();
      await undo.reached;
      return { id, letGo: () => undo.release() };
    },
  };
}

const cutIsMade = { procedure: 'SNAPSHOT_CREATE_XML', what: 'reply' } as const;

const beforeTheFreeze = [
  atLibvirt(
    { name: 'before prepare', place: "the host agent's first call of prepare is about to be sent", ...thawed },
    { procedure: 'AGENT_SET_RESPONSE_TIMEOUT', what: 'call' },
  ),
  atLibvirt(
    {
      name: 'prepared',
      place: 'the guest is about to be asked whether it is thawed, the last question before the freeze',
      ...thawed,
    },
    // The first two are prepare's.
    { procedure: 'AGENT_COMMAND', what: 'call', where: isStatus, nth: 3 },
  ),
  atLibvirt(
    { name: 'freezing', place: 'the freeze is about to be sent', isFrozen: false, blocksTheThaw: true },
    { procedure: 'FSFREEZE', what: 'call' },
  ),
  atLibvirt(
    { name: 'frozen', place: 'the freeze is answered', ...frozenAndBlocked },
    { procedure: 'FSFREEZE', what: 'reply' },
  ),
];

const thawing = [
  atLibvirt(
    { name: 'thawing', place: 'the thaw is about to be sent', ...frozenAndBlocked },
    { procedure: 'FSTHAW', what: 'call' },
  ),
  atLibvirt({ name: 'thawed', place: 'the thaw is answered', ...thawed }, { procedure: 'FSTHAW', what: 'reply' }),
];

/** The steps of a run over disks of the host alone, in the order in which it takes them: the host agent freezes, cuts and thaws in one call. */
export const localSteps: readonly Step[] = [
  ...beforeTheFreeze,
  atLibvirt(
    { name: 'cutting', place: 'the cut is about to be sent', ...frozen },
    { procedure: 'SNAPSHOT_CREATE_XML', what: 'call' },
  ),
  atLibvirt({ name: 'cuts done', place: 'the cut is made', ...frozen }, cutIsMade),
  ...thawing,
  heldBy(
    { name: 'recording', place: 'the host is about to be asked whether every part is there', ...thawed },
    async (world) => {
      await world.proxy.seen({ procedure: 'FSTHAW', what: 'reply' });
      return world.proxy.hold({ procedure: 'LOOKUP_BY_UUID', what: 'call' });
    },
  ),
  undoing(
    'the cut is made, the run is cancelled, the guest is thawed; the merge of the first overlay is about to be sent',
    ({ proxy }) => proxy.hold(cutIsMade),
    ({ proxy }) => proxy.hold({ procedure: 'BLOCK_COMMIT', what: 'call' }),
  ),
];

const cinderOf = (world: World): CinderProxy => {
  if (!(world instanceof CephWorld)) throw new Error('this world has no Cinder');
  return world.cinder;
};

const create = (what: ExchangeMatch['what']): ExchangeMatch => ({ method: 'POST', path: /\/snapshots$/, what });

/** The steps of a run over disks on the host and on Ceph: the workflow freezes, cuts and thaws. */
export const cephSteps: readonly Step[] = [
  ...beforeTheFreeze,
  heldBy({ name: 'cutting', place: 'a create is on its way to Cinder', ...frozen }, async (world) =>
    cinderOf(world).hold(create('request')),
  ),
  heldBy(
    { name: 'cuts done', place: 'Cinder has taken the last create, and its answer is on its way', ...frozen },
    async (world) => cinderOf(world).hold({ ...create('answer'), nth: Object.keys(world.lab.vm.volumes).length }),
  ),
  ...thawing,
  heldBy(
    { name: 'recording', place: 'Cinder is about to be asked for the parts of the window', ...thawed },
    async (world) => {
      await world.proxy.seen({ procedure: 'FSTHAW', what: 'reply' });
      return cinderOf(world).hold({ method: 'GET', path: /\/snapshots\/detail$/, what: 'request' });
    },
  ),
  undoing(
    "Cinder has taken the last create, the run is cancelled, the guest is thawed; the first snapshot's deletion is on its way to Cinder",
    (world) => cinderOf(world).hold({ ...create('answer'), nth: Object.keys(world.lab.vm.volumes).length }),
    (world) => cinderOf(world).hold({ method: 'DELETE', path: /\/snapshots\/[^/]+$/, what: 'request' }),
  ),
];
