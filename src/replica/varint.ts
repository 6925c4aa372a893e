/**
 * SQLite's integers of variable length, for the 64 bits of `high` (signed or not) and `low`.
 * https://www.sqlite.org/fileformat2.html#varint
 */
export function varintBytes(high: number, low: number): number {
  if (high === 0) {
    const value = low >>> 0;
    if (value < 0x80) return 1;
    if (value < 0x4000) return 2;
    if (value < 0x20_0000) return 3;
    return value < 0x1000_0000 ? 4 : 5;
  }
  const value = high >>> 0;
  if (value < 0x8) return 5;
  if (value < 0x400) return 6;
  if (value < 0x2_0000) return 7;
  return value < 0x100_0000 ? 8 : 9;
}

/** Returns where the next byte goes. */
export function writeVarint(target: Uint8Array, at: number, high: number, low: number): number {
  if (high === 0) {
    const value = low >>> 0;
    if (value < 0x80) {
      target[at] = value;
      return at + 1;
    }
    if (value < 0x4000) {
      target[at] = (value >>> 7) | 0x80;
      target[at + 1] = value & 0x7f;
      return at + 2;
    }
    if (value < 0x20_0000) {
      target[at] = (value >>> 14) | 0x80;
      target[at + 1] = (value >>> 7) | 0x80;
      target[at + 2] = value & 0x7f;
      return at + 3;
    }
  }
  const count = varintBytes(high, low);
  let at7 = at + count - 1;
  if (count === 9) {
    // The last of nine bytes has all its eight bits.
    target[at7--] = low;
    low = (low >>> 8) | (high << 24);
    high >>>= 8;
    for (let left = 8; left > 0; left--) {
      target[at7--] = (low & 0x7f) | 0x80;
      low = (low >>> 7) | (high << 25);
      high >>>= 7;
    }
    return at + 9;
  }
  for (let left = count; left > 0; left--) {
    target[at7--] = (low & 0x7f) | (left === count ? 0 : 0x80);
    low = (low >>> 7) | (high << 25);
    high >>>= 7;
  }
  return at + count;
}
