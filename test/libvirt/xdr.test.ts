import { type Procedure, Procedures, readError } from '@stillpoint/host-agent/libvirt/procedures.js';
import { XdrError, XdrReader, XdrWriter } from '@stillpoint/host-agent/libvirt/xdr.js';
import { describe, expect, it } from 'vitest';
import { web1 } from './fake-libvirtd.js';
import { fuzzSeed, Random } from './random.js';

function written(write: (writer: XdrWriter) => void): string {
  const writer = new XdrWriter();
  write(writer);
  return writer.bytes().toString('hex');
}

function reader(hex: string): XdrReader {
  return new XdrReader(Buffer.from(hex, 'hex'));
}

describe('XDR', () => {
  it('writes what RFC 4506 says', () => {
    expect(written((w) => w.int(-2))).toBe('fffffffe');
    expect(written((w) => w.uint(0xffff_ffff))).toBe('ffffffff');
    expect(written((w) => w.uhyper(1n))).toBe('0000000000000001');
    expect(written((w) => w.hyper(-1n))).toBe('ffffffffffffffff');
    expect(written((w) => w.string('abcde'))).toBe('00000005' + '6162636465' + '000000');
    expect(written((w) => w.optional('ab', (o, value) => o.string(value)))).toBe('00000001' + '00000002' + '61620000');
    expect(written((w) => w.optional(null, (o, value: string) => o.string(value)))).toBe('00000000');
    expect(written((w) => w.array([1, 2], 2, (item, value) => item.int(value)))).toBe(
      '00000002' + '00000001' + '00000002',
    );
  });

  it('reads back whatever it wrote', () => {
    const text = 'guest ‘web-1’ – 日本';
    const writer = new XdrWriter();
    writer
      .int(-0x8000_0000)
      .uint(0)
      .hyper(-(1n << 63n))
      .uhyper((1n << 64n) - 1n)
      .double(0.1)
      .string(text)
      .string('');
    writer.opaque(Buffer.from('abc')).array(['a', 'bc'], 5, (w, value) => w.string(value));
    const read = new XdrReader(Buffer.from(writer.bytes()));
    expect([read.int(), read.uint(), read.hyper(), read.uhyper(), read.double(), read.string(), read.string()]).toEqual(
      [-0x8000_0000, 0, -(1n << 63n), (1n << 64n) - 1n, 0.1, text, ''],
    );
    expect(read.opaque(3).toString()).toBe('abc');
    expect(read.array(5, (r) => r.string())).toEqual(['a', 'bc']);
    expect(() => read.end()).not.toThrow();
  });

  it('keeps what it wrote when it has to grow', () => {
    const long = 'x'.repeat(100_000);
    const writer = new XdrWriter().int(7).string(long).int(8);
    const read = new XdrReader(writer.bytes());
    expect([read.int(), read.string(), read.int()]).toEqual([7, long, 8]);
  });

  it.each<[string, () => unknown]>([
    ['an integer out of range', () => new XdrWriter().int(0x8000_0000)],
    ['a fraction', () => new XdrWriter().uint(1.5)],
    ['a negative unsigned number', () => new XdrWriter().uhyper(-1n)],
    ['a string with NUL', () => new XdrWriter().string('a\0b')],
    ['a string above its limit', () => new XdrWriter().string('abc', 2)],
    ['a list above its limit', () => new XdrWriter().array([1, 2, 3], 2, (w, v) => w.int(v))],
    ['a UUID that is none', () => Procedures.domainLookupByUuid.encode(new XdrWriter(), 'web-1')],
  ])('refuses to write %s', (_, write) => {
    expect(write).toThrow(XdrError);
  });

  it.each<[string, () => unknown]>([
    ['a number that is cut off', () => reader('000001').int()],
    ['a string longer than what is there', () => reader('00000009' + '61620000').string()],
    ['a string above its limit', () => reader('00000003' + '61626300').string(2)],
    ['a string above libvirt’s limit', () => reader('00400001').string()],
    ['a string with NUL', () => reader('00000003' + '61006200').string()],
    ['padding that is not zero', () => reader('00000001' + '61000001').string()],
    ['a boolean that is neither', () => reader('00000002').optional((r) => r.int())],
    ['a list above its limit', () => reader('00000003').array(2, (r) => r.int())],
    ['a list that cannot fit', () => reader('0000ffff' + '00000000').array(0x1_0000, (r) => r.int())],
    ['a size of more than 2^53', () => reader('ffffffffffffffff').size()],
    ['bytes that are left over', () => reader('00000000').end()],
  ])('refuses to read %s', (_, read) => {
    expect(read).toThrow(XdrError);
  });

  it('reads text that is not UTF-8 without an error, since guests choose it', () => {
    expect(reader('00000002' + 'ff410000').string()).toBe('\ufffdA');
  });
});

describe('Procedures', () => {
  it('write a domain as name, UUID and id', () => {
    const writer = new XdrWriter();
    Procedures.domainResume.encode(writer, web1);
    expect(writer.bytes().toString('hex')).toBe(
      '00000005' + '7765622d31000000' + '6a0d5f5e3c3f4a439f0f0c1d2e3f4a5b' + '00000007',
    );
  });

  it('read a domain back', () => {
    const writer = new XdrWriter();
    Procedures.domainResume.encode(writer, web1);
    expect(Procedures.domainLookupByName.decode(new XdrReader(writer.bytes()))).toEqual(web1);
  });

  const seed = fuzzSeed();
  it(`answer random bytes with an XdrError or a value, and nothing else (FUZZ_SEED=${seed})`, () => {
    const random = new Random(seed);
    const decoders: { name: string; decode(reader: XdrReader): unknown }[] = [
      ...(Object.values(Procedures) as Procedure<never, unknown>[]),
      { name: 'error', decode: readError },
    ];
    const strange: unknown[] = [];
    for (const { name, decode } of decoders) {
      for (let i = 0; i < 300; i++) {
        const bytes = random.bytes(random.below(80));
        // Small counts and lengths reach deeper than random ones do.
        for (let at = 0; at + 4 <= bytes.length; at += 4)
          if (random.below(2) === 0) bytes.writeUInt32BE(random.below(6), at);
        try {
          decode(new XdrReader(bytes));
        } catch (error) {
          if (!(error instanceof XdrError)) strange.push({ name, error, bytes: bytes.toString('hex') });
        }
      }
    }
    expect(strange).toEqual([]);
  });
});
