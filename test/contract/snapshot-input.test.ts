import { readdir, readFile } from 'node:fs/promises';

import { jsonSchemaFiles } from '@stillpoint/engine/contract/json-schema.js';
import {
  deleteSnapshotInput,
  inputFaults,
  snapshotRequest,
  snapshotVmInput,
} from '@stillpoint/engine/contract/snapshot-input.js';
import { describe, expect, it } from 'vitest';

const vm = '6c1b1f0e-8c1d-4b6e-9a59-3f0d2c7b1a11';

function faultsOf(input: unknown) {
  const parsed = snapshotVmInput.safeParse(input);
  return parsed.success ? [] : inputFaults(parsed.error);
}

describe('the input of snapshotVm', () => {
  it('needs no more than the VM', () => {
    expect(snapshotVmInput.parse({ vm })).toEqual({ vm });
  });

  it('writes UUIDs in lower case', () => {
    expect(snapshotVmInput.parse({ vm: vm.toUpperCase() })).toEqual({ vm });
    expect(deleteSnapshotInput.parse({ vm, snapshotId: vm.toUpperCase() })).toEqual({ vm, snapshotId: vm });
  });

  it('takes everything that the contract names', () => {
    const full = {
      vm,
      snapshotId: vm,
      name: 'before the upgrade',
      description: 'two lines\n\tof text',
      quiesce: 'best-effort',
      disks: ['vda', 'nvme0n1'],
      unquiesced: ['vdc'],
      freezeTimeoutMs: 1_000,
      windowLimitMs: 60_000,
    };
    expect(snapshotVmInput.parse(full)).toEqual(full);
  });

  it.each([
    ['no UUID', { vm: 'web-1' }, 'vm'],
    ['a field nobody knows', { vm, qiesce: 'skip' }, 'qiesce'],
    ['an unknown policy', { vm, quiesce: 'maybe' }, 'quiesce'],
    ['no disk at all', { vm, disks: [] }, 'disks'],
    ['a disk twice', { vm, disks: ['vda', 'vda'] }, 'disks'],
    ['a path in place of a target', { vm, disks: ['vda', '/dev/sda'] }, 'disks[1]'],
    ['a freeze shorter than 1 s', { vm, freezeTimeoutMs: 999 }, 'freezeTimeoutMs'],
    ['a freeze longer than 10 min', { vm, freezeTimeoutMs: 600_001 }, 'freezeTimeoutMs'],
    ['a fraction of a ms', { vm, windowLimitMs: 100.5 }, 'windowLimitMs'],
    ['a window shorter than 0.1 s', { vm, windowLimitMs: 99 }, 'windowLimitMs'],
    ['a window longer than 60 s', { vm, windowLimitMs: 60_001 }, 'windowLimitMs'],
    ['a name of two lines', { vm, name: 'a\nb' }, 'name'],
    ['a name with a terminal escape', { vm, name: '\u001b[2J' }, 'name'],
    ['a name with half a character', { vm, name: 'a\ud83d' }, 'name'],
    ['a description with half a character', { vm, description: 'one\n\udc00' }, 'description'],
    ['an empty name', { vm, name: '' }, 'name'],
    ['a description without end', { vm, description: 'x'.repeat(2_001) }, 'description'],
    [
      'a snapshot id that is no version 4 UUID',
      { vm, snapshotId: '6c1b1f0e-8c1d-1b6e-9a59-3f0d2c7b1a11' },
      'snapshotId',
    ],
    ['null', null, ''],
    ['null in a field', { vm, name: null }, 'name'],
  ])('refuses %s and names the field', (_what, input, field) => {
    expect(faultsOf(input).map((fault) => fault.field)).toContain(field);
  });

  it('answers about a hostile description in linear time', () => {
    expect(faultsOf({ vm, description: `${'\n'.repeat(1_999)}\u0000` }).map((fault) => fault.field)).toEqual([
      'description',
    ]);
  });

  it('leaves to the URL what the REST body must not say', () => {
    expect(snapshotRequest.safeParse({ vm }).success).toBe(false);
    expect(snapshotRequest.safeParse({}).success).toBe(true);
  });
});

describe('docs/schema', () => {
  const folder = new URL('../../docs/schema/', import.meta.url);

  it('holds exactly the schemas of the zod source (else: npm run schema -w engine)', async () => {
    const expected = jsonSchemaFiles();
    expect((await readdir(folder)).sort()).toEqual([...expected.keys()].sort());
    for (const [file, text] of expected) expect(await readFile(new URL(file, folder), 'utf8')).toBe(text);
  });
});
