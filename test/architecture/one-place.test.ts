import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

/** Invariant 2 as far as the text of the sources shows it: which files freeze, and which can. */

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** Product sources, their comments left out, by their path. */
function sources(...rooms: string[]): [path: string, code: string][] {
  return rooms.flatMap((room) =>
    readdirSync(join(root, room), { recursive: true, encoding: 'utf8' })
      .filter((path) => path.endsWith('.ts') && !/(^|\/)(dist|node_modules)\//.test(path))
      .map((path): [string, string] => {
        const text = readFileSync(join(root, room, path), 'utf8');
        return [relative(root, join(root, room, path)), text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '')];
      }),
  );
}

function filesWith(pattern: RegExp, ...rooms: string[]): string[] {
  return sources(...rooms)
    .filter(([, code]) => pattern.test(code))
    .map(([path]) => path)
    .sort();
}

test('on the host nobody but a window asks the hypervisor for a freeze, and it has the lease first', () => {
  expect(filesWith(/hypervisor\.freeze\(|\bfsFreeze\(/, 'host-agent')).toEqual([
    'host-agent/freeze/window.ts',
    'host-agent/libvirt/client.ts',
    'host-agent/libvirt/hypervisor.ts',
  ]);
  // Neither by libvirt's own flag nor by a raw command of the guest agent.
  expect(filesWith(/\bquiesce\b|execute: 'guest-fsfreeze-freeze/i, 'host-agent/libvirt')).toEqual([]);
  const [, window = ''] = sources('host-agent/freeze').find(([path]) => path.endsWith('/window.ts')) ?? [];
  expect(window.indexOf('await this.#takeLease(')).toBeGreaterThan(0);
  expect(window.indexOf('await this.#takeLease(')).toBeLessThan(window.indexOf('hypervisor.freeze('));
});

test('in a workflow the freeze is asked for in one place', () => {
  expect(filesWith(/\bfreezeFileSystems\(|\.freezeFileSystems\b/, 'workflows')).toEqual([
    'workflows/activities.ts',
    'workflows/snapshot-vm.ts',
    'workflows/steps.ts',
    'workflows/window.ts',
  ]);
  const [, flow = ''] = sources('workflows').find(([path]) => path.endsWith('/snapshot-vm.ts')) ?? [];
  expect(flow.match(/freezeFileSystems\(\)/g)).toHaveLength(1);
});
