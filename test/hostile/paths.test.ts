import { execFileSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Disk, Hypervisor } from '@stillpoint/host-agent/hypervisor.js';
import { createQemuImages } from '@stillpoint/host-agent/libvirt/images.js';
import { judgeDisk } from '@stillpoint/host-agent/snapshot/disks.js';
import { Locations } from '@stillpoint/host-agent/snapshot/locations.js';
import { createSnapshotRoom } from '@stillpoint/host-agent/snapshot/room.js';
import fc from 'fast-check';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { fakeHypervisor, vm } from '../rpc/rooms.js';
import { facts, silent } from '../rpc/served.js';
import { tries } from './runs.js';

/** Paths from domain XML and from the network, over a real folder with links in it that lead outside. */

const window1 = '00000000-0000-4000-8000-00000000000a.1';
/** What every file of the tree is called in one place or another: a name that an overlay of ours has, and one that is a disk's. */
const ours = `web.sp-${window1}.qcow2`;

let folder: string;
let images: string;
let outside: string;

beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'stillpoint-paths-')));
  images = join(folder, 'images');
  outside = join(folder, 'outside');
  for (const place of [images, join(images, 'sub'), outside, join(folder, 'images-too')]) {
    mkdirSync(place);
    writeFileSync(join(place, 'disk'), '');
    writeFileSync(join(place, ours), '');
  }
  symlinkSync('../outside', join(images, 'link'));
  symlinkSync(join(outside, 'disk'), join(images, 'file-link'));
  symlinkSync(join(outside, ours), join(images, `link-${ours}`));
  symlinkSync('nowhere', join(outside, `dangling-${ours}`));
  execFileSync('mkfifo', [join(outside, `fifo-${ours}`), join(images, `fifo-${ours}`)]);
  mkdirSync(join(outside, `folder-${ours}`));
  mkdirSync(join(folder, 'no-processes'));
  symlinkSync('loop', join(images, 'loop'));
  symlinkSync('..', join(images, 'up'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const segment = fc.constantFrom(
  '',
  '.',
  '..',
  'images',
  'outside',
  'images-too',
  'sub',
  'link',
  'link',
  'link',
  'file-link',
  'up',
  'loop',
  'disk',
  ours,
  `link-${ours}`,
  `dangling-${ours}`,
  `fifo-${ours}`,
  `folder-${ours}`,
  'a,b',
  'a\nb',
  'a\0b',
);
/** What an overlay of ours may be called, so that it is looked at more closely. */
const named = fc.constantFrom(ours, `link-${ours}`, `dangling-${ours}`, `fifo-${ours}`, `folder-${ours}`);
/** From the configured folder, from the one above, or from nowhere. */
const path = fc
  .tuple(
    fc.constantFrom('images', 'images', 'above', 'relative'),
    fc.array(segment, { maxLength: 3 }),
    fc.oneof(named, segment),
  )
  .map(([from, segments, name]) => {
    const start = from === 'images' ? images : from === 'above' ? folder : '.';
    return [start, ...segments, name].join('/');
  });

const disk = (at: string, kind: Disk['kind'], format: string): Disk => ({
  target: 'vda',
  device: 'disk',
  kind,
  path: at,
  image: undefined,
  format,
  serial: undefined,
  readOnly: false,
  shareable: false,
  transient: false,
  blockJob: false,
  chain: [],
});

test('no disk outside of the configured folder is ever taken for a local one, whatever links lead there', async () => {
  const locations = new Locations([images]);
  const port = { images: createQemuImages(), locations };
  await fc.assert(
    fc.asyncProperty(
      path,
      fc.constantFrom('file', 'block'),
      fc.constantFrom('raw', 'qcow2'),
      async (at, kind, format) => {
        const judged = await judgeDisk(disk(at, kind, format), port);
        if (judged === 'elsewhere' || 'leftOut' in judged) return;
        expect(realpathSync(at).startsWith(`${images}/`)).toBe(true);
        expect(judged.local.basePath).toBe(realpathSync(at));
      },
    ),
    tries(300),
  );
});

/** Everything outside of the configured folder, as it is named there. */
function untouchable(): string[] {
  return [outside, join(folder, 'images-too')].flatMap((place) => readdirSync(place).map((name) => join(place, name)));
}

/** A room over the folder, and a VM that is off and uses none of it. */
async function room() {
  const hypervisor: Hypervisor = {
    ...fakeHypervisor(facts),
    // Nobody has anything open: to look through all processes of a busy machine takes its time.
    images: createQemuImages({ procFolder: join(folder, 'no-processes') }),
    listVms: async () => [vm],
    getVmBehindJob: async () => ({ vm: { ...vm, state: 'shut-off', domainId: undefined, disks: [] }, inactive: [] }),
  };
  const made = await createSnapshotRoom({
    hypervisor,
    folder: join(folder, 'notes'),
    locations: [images],
    settings: { lateSwitchMs: 0, lookAgainMs: 1, closeWaitMs: 1 },
    log: silent,
  });
  return (paths: { overlayPath: string; basePath?: string }[]) =>
    made.delete({
      vm: vm.uuid,
      window: window1,
      overlays: paths.map((each, index) => ({
        target: `vd${'abc'[index]}`,
        baseFormat: 'raw',
        sizeBytes: 1,
        basePath: join(images, 'disk'),
        ...each,
      })),
      onProgress: () => {},
      signal: AbortSignal.timeout(10_000),
    });
}

test.each([
  ['a FIFO in the folder', () => join(images, `fifo-${ours}`), 'IMAGE_INVALID'],
  ['a FIFO behind a link', () => join(images, 'link', `fifo-${ours}`), 'NOT_OURS'],
  ['a broken link behind a link', () => join(images, 'link', `dangling-${ours}`), 'NOT_OURS'],
  ['a folder behind a link', () => join(images, 'link', `folder-${ours}`), 'NOT_OURS'],
  ['a file behind a link', () => join(images, 'link', ours), 'NOT_OURS'],
])('%s that is named as an overlay is neither opened nor taken away', async (_what, at, reason) => {
  const take = await room();
  const before = untouchable();
  expect(await take([{ overlayPath: at() }])).toMatchObject([{ outcome: 'pending', reason }]);
  expect(untouchable()).toEqual(before);
});

test('no request takes anything away outside of the configured folder, whatever paths it names', async () => {
  const take = await room();
  const before = untouchable();
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(path, fc.option(path)), { minLength: 1, maxLength: 3 }), async (paths) => {
      const merged = await take(
        paths.map(([overlayPath, basePath]) => ({ overlayPath, ...(basePath === null ? {} : { basePath }) })),
      );
      expect(merged).toHaveLength(paths.length);
      expect(untouchable()).toEqual(before);
      expect(lstatSync(join(images, 'link')).isSymbolicLink()).toBe(true);
      // Ours may go, and the next request finds it again.
      for (const place of [images, join(images, 'sub')]) {
        if (!existsSync(join(place, ours))) writeFileSync(join(place, ours), '');
      }
    }),
    tries(300),
  );
});
