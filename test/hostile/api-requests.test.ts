import {
  deleteSnapshotInput,
  inputFaults,
  reconcileInput,
  snapshotVmInput,
} from '@stillpoint/engine/contract/snapshot-input.js';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { someVm } from '../api/fakes.js';
import { ServedApi } from '../api/served.js';
import { hostileText } from './domain-texts.js';
import { tries } from './runs.js';

/** Requests to the REST API, and the inputs of workflows that any Temporal client may start. `npm run schemathesis` does the same to a whole system. */

let served: ServedApi;
beforeAll(async () => {
  served = await ServedApi.start();
  served.hosts.add('host-a', someVm());
});
afterAll(() => served.stop());

const anything = fc.anything({
  maxDepth: 3,
  withNullPrototype: true,
  withBigInt: false,
  withSparseArray: true,
  withUnicodeString: true,
  withObjectString: true,
});
const textOf = fc.oneof(
  hostileText,
  fc.constantFrom('web-1', 'x'.repeat(70_000), '\ud800', '名前', '2', '-1', '1e999', '0.012345'),
);
const body = fc.oneof(
  fc.json(),
  fc
    .record(
      {
        name: textOf,
        description: textOf,
        quiesce: fc.oneof(fc.constantFrom('required', 'best-effort', 'skip'), textOf),
        disks: fc.oneof(fc.array(textOf, { maxLength: 4 }), fc.constant(Array(10_000).fill('vda'))),
        unquiesced: fc.array(textOf, { maxLength: 2 }),
        windowLimitMs: fc.oneof(fc.double(), fc.integer()),
        repair: fc.oneof(fc.boolean(), textOf),
        address: textOf,
      },
      { requiredKeys: [] },
    )
    .map((value) => JSON.stringify(value)),
  hostileText,
  fc.constantFrom(
    '',
    '{',
    'null',
    '[]',
    '"x"',
    `${'{"a":'.repeat(10_000)}1${'}'.repeat(10_000)}`,
    '{"__proto__":{"a":1}}',
  ),
);
/** Half a character cannot be encoded at all. */
const wellFormed = (text: string) => Buffer.from(text).toString();
const part = fc.oneof(textOf, fc.constantFrom('..', '.', '%', '%00', '%ff', '00000000-0000-4000-8000-000000000000'));
const address = fc
  .tuple(
    fc.constantFrom(
      ...'/v1/vms /v1/vms/: /v1/vms/:/snapshots /v1/vms/:/thaw /v1/snapshots /v1/snapshots/: /v1/snapshots/:/cancel /v1/snapshots/:/cleanup /v1/hosts /v1/hosts/: /v1/doctor /v1/doctor/: /v1/cloud /healthz /readyz /:'.split(
        ' ',
      ),
    ),
    part,
    fc.boolean(),
    fc.array(
      fc.tuple(fc.constantFrom('vm', 'limit', 'cursor', 'state', 'grade', 'lost', 'wait', 'x', '__proto__'), part),
      {
        maxLength: 3,
      },
    ),
  )
  .map(([route, value, encoded, query]) => {
    const segment = encoded ? encodeURIComponent(wellFormed(value)) : value.replace(/[\s\0-\x20\x7f-\uffff#]/g, '%');
    const asked = query.map(([key, each]) => `${key}=${encodeURIComponent(wellFormed(each))}`).join('&');
    return `${route.replace(':', segment.slice(0, 4_000))}${asked === '' ? '' : `?${asked.slice(0, 8_000)}`}`;
  });

test('no request is answered with a 5xx, and every refusal is a problem with a code', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom('GET', 'POST', 'DELETE', 'PUT', 'PATCH' as const),
      address,
      fc.option(body, { nil: undefined }),
      fc.constantFrom('application/json', 'application/json; charset=utf-16', 'text/plain', 'application/x', ''),
      fc.option(textOf, { nil: undefined, freq: 5 }),
      async (method, url, payload, type, key) => {
        const answer = await served.app.inject({
          method: method as 'GET',
          url,
          headers: {
            host: '127.0.0.1:8700',
            ...(payload === undefined || type === '' ? {} : { 'content-type': type }),
            ...(key === undefined ? {} : { 'idempotency-key': key.replace(/[^\x20-\x7e]/g, '?') }),
          },
          ...(payload === undefined ? {} : { payload }),
        });
        expect(answer.statusCode).toBeLessThan(500);
        if (answer.statusCode < 400) return;
        expect(answer.headers['content-type']).toMatch(/^application\/problem\+json/);
        expect(answer.json()).toMatchObject({ status: answer.statusCode, code: expect.stringMatching(/^[A-Z_]+$/) });
        expect(answer.body.length).toBeLessThan(20_000);
      },
    ),
    tries(300),
  );
});

test('an input of a workflow that is not what the contract says is told fault by fault, and never carried further', () => {
  const input = fc.oneof(
    anything,
    fc.record({
      vm: fc.oneof(fc.uuid(), textOf),
      snapshotId: fc.oneof(fc.uuid({ version: 4 }), anything),
      name: textOf,
      disks: anything,
    }),
  );
  fc.assert(
    fc.property(input, (given) => {
      for (const schema of [snapshotVmInput, deleteSnapshotInput, reconcileInput]) {
        const parsed = schema.safeParse(given);
        if (parsed.success) {
          // What is let through has nothing but what the contract names, and is plain JSON.
          expect(JSON.parse(JSON.stringify(parsed.data))).toEqual(parsed.data);
          expect(schema.safeParse(parsed.data).success).toBe(true);
          continue;
        }
        for (const { field, message } of inputFaults(parsed.error)) {
          expect(field.length).toBeLessThanOrEqual(101);
          expect(message.length).toBeLessThan(1_000);
        }
      }
    }),
    tries(500),
  );
});

test('a name may have 200 characters, however many bytes each has, and none that breaks a line', () => {
  const character = fc.oneof(
    fc.constantFrom('a', 'é', '名', '😀', ' ', '\u0085', '\u2028', '\n', '\ud83d'),
    fc.string({ unit: 'binary', minLength: 1, maxLength: 1 }),
  );
  fc.assert(
    fc.property(fc.array(character, { minLength: 1, maxLength: 210 }), (characters) => {
      const name = characters.join('');
      const fits = [...name].length <= 200 && name === name.trim() && !/[\p{Cc}\p{Cs}\u2028\u2029]/u.test(name);
      expect(snapshotVmInput.safeParse({ vm: '00000000-0000-4000-8000-000000000000', name }).success).toBe(fits);
    }),
    tries(300),
  );
});
