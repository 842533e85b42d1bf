/** Bytes that are not what the protocol says, or a value that does not fit it. */
export class XdrError extends Error {
  override readonly name = 'XdrError';
}

const STRING_MAX = 4_194_304;

/**
 * Writes XDR (RFC 4506) as libvirt uses it: big-endian, everything padded to 4 bytes.
 *
 * Every method throws `XdrError` for a value outside its type, so that a bad argument ends here and not in libvirtd.
 */
export class XdrWriter {
  #buffer = Buffer.allocUnsafe(256);
  #length = 0;

  int(value: number): this {
    if (!Number.isInteger(value) || value < -0x8000_0000 || value > 0x7fff_ffff) {
      throw new XdrError(`${value} is not a 32-bit integer`);
    }
    const at = this.#grow(4);
    this.#buffer.writeInt32BE(value, at);
    return this;
  }

  uint(value: number): this {
    if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) {
      throw new XdrError(`${value} is not an unsigned 32-bit integer`);
    }
    const at = this.#grow(4);
    this.#buffer.writeUInt32BE(value, at);
    return this;
  }

  uhyper(value: bigint): this {
    if (value < 0n || value > 0xffff_ffff_ffff_ffffn) throw new XdrError(`${value} is not an unsigned 64-bit integer`);
    const at = this.#grow(8);
    this.#buffer.writeBigUInt64BE(value, at);
    return this;
  }

  hyper(value: bigint): this {
    if (value < -(1n << 63n) || value >= 1n << 63n) throw new XdrError(`${value} is not a 64-bit integer`);
    const at = this.#grow(8);
    this.#buffer.writeBigInt64BE(value, at);
    return this;
  }

  double(value: number): this {
    const at = this.#grow(8);
    this.#buffer.writeDoubleBE(value, at);
    return this;
  }

  /** Fixed-length opaque data: the reader knows its length, only the padding is added. */
  opaque(bytes: Uint8Array): this {
    const padded = pad4(bytes.length);
    const at = this.#grow(padded);
    this.#buffer.set(bytes, at);
    this.#buffer.fill(0, at + bytes.length, at + padded);
    return this;
  }

  /** @param max the protocol's limit in bytes of UTF-8; libvirt's REMOTE_STRING_MAX unless told. */
  string(value: string, max = STRING_MAX): this {
    // XDR strings are C strings at the other end: what follows a NUL would be cut off silently.
    if (value.includes('\0')) throw new XdrError('a string for libvirt must not contain NUL');
    const bytes = Buffer.from(value, 'utf8');
    if (bytes.length > max) throw new XdrError(`a string of ${bytes.length} bytes exceeds libvirt's limit of ${max}`);
    return this.uint(bytes.length).opaque(bytes);
  }

  optional<T>(value: T | null, write: (writer: XdrWriter, value: T) => void): this {
    if (value === null) return this.uint(0);
    this.uint(1);
    write(this, value);
    return this;
  }

  array<T>(values: readonly T[], max: number, write: (writer: XdrWriter, value: T) => void): this {
    if (values.length > max) throw new XdrError(`a list of ${values.length} entries exceeds libvirt's limit of ${max}`);
    this.uint(values.length);
    for (const value of values) write(this, value);
    return this;
  }

  /** The bytes written so far. */
  bytes(): Buffer {
    return this.#buffer.subarray(0, this.#length);
  }

  #grow(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#length, this.#buffer.length * 2));
      larger.set(this.#buffer.subarray(0, at));
      this.#buffer = larger;
    }
    return at;
  }
}

/**
 * Reads XDR from bytes that nobody has checked: every length is compared with its limit and with what is left before anything is
 * allocated, and everything unexpected is an `XdrError`.
 */
export class XdrReader {
  readonly #buffer: Buffer;
  #at = 0;

  constructor(buffer: Buffer) {
    this.#buffer = buffer;
  }

  get remaining(): number {
    return this.#buffer.length - this.#at;
  }

  int(): number {
    return this.#buffer.readInt32BE(this.#take(4));
  }

  uint(): number {
    return this.#buffer.readUInt32BE(this.#take(4));
  }

  hyper(): bigint {
    return this.#buffer.readBigInt64BE(this.#take(8));
  }

  uhyper(): bigint {
    return this.#buffer.readBigUInt64BE(this.#take(8));
  }

  double(): number {
    return this.#buffer.readDoubleBE(this.#take(8));
  }

  /** A 64-bit count of bytes as a number; one above 2^53 - 1 (9 PB) is refused rather than rounded. */
  size(): number {
    const value = this.uhyper();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new XdrError(`a size of ${value} bytes is not credible`);
    return Number(value);
  }

  opaque(length: number): Buffer {
    const padded = pad4(length);
    const at = this.#take(padded);
    for (let i = at + length; i < at + padded; i++) {
      if (this.#buffer[i] !== 0) throw new XdrError('padding is not zero');
    }
    return this.#buffer.subarray(at, at + length);
  }

  /**
   * A string of at most `max` bytes. Bytes that are not UTF-8 become U+FFFD instead of an error, because texts of the guest come this way
   * and no guest may break the connection that the other VMs need.
   */
  string(max = STRING_MAX): string {
    const length = this.uint();
    if (length > max) throw new XdrError(`a string of ${length} bytes exceeds the limit of ${max}`);
    const bytes = this.opaque(length);
    if (bytes.includes(0)) throw new XdrError('a string contains NUL');
    return bytes.toString('utf8');
  }

  optional<T>(read: (reader: XdrReader) => T): T | null {
    const present = this.uint();
    if (present > 1) throw new XdrError(`${present} is not a boolean`);
    return present === 1 ? read(this) : null;
  }

  array<T>(max: number, read: (reader: XdrReader) => T): T[] {
    const count = this.uint();
    if (count > max) throw new XdrError(`a list of ${count} entries exceeds the limit of ${max}`);
    // Every XDR item has 4 bytes at least: a count that cannot fit is refused before it costs any memory.
    if (count * 4 > this.remaining)
      throw new XdrError(`a list of ${count} entries does not fit into ${this.remaining} bytes`);
    const values: T[] = [];
    for (let i = 0; i < count; i++) values.push(read(this));
    return values;
  }

  /** Asserts that everything was read. */
  end(): void {
    if (this.remaining > 0) throw new XdrError(`${this.remaining} bytes are left over`);
  }

  #take(count: number): number {
    if (count > this.remaining) throw new XdrError(`${count} bytes are needed and ${this.remaining} are left`);
    const at = this.#at;
    this.#at += count;
    return at;
  }
}

function pad4(length: number): number {
  return (length + 3) & ~3;
}
