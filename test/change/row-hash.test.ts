import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RowHash } from '../../src/change/row-hash.ts';

function hash(bytes: Uint8Array, offset = 0): [number, number] {
  const padded = new Uint8Array(bytes.length + offset + 3).fill(0xa5);
  padded.set(bytes, offset);
  const run = new RowHash();
  run.run(new DataView(padded.buffer), offset, offset + bytes.length);
  return [run.low, run.high];
}

function bitsApart(left: readonly [number, number], right: readonly [number, number]): number {
  let bits = 0;
  for (const index of [0, 1] as const)
    for (let rest = (left[index] ^ right[index]) >>> 0; rest !== 0; rest &= rest - 1) bits++;
  return bits;
}

test('depends on the bytes only, not on where they stand or what stands behind them', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), fc.nat(9), (bytes, offset) => {
      expect(hash(bytes, offset)).toEqual(hash(bytes));
    }),
  );
});

test('any single bit changes about half of the 64 bits, and each lane', () => {
  let apart = 0;
  let pairs = 0;
  const bytes = Uint8Array.from({ length: 37 }, (_, index) => (index * 71) % 256);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const other = Uint8Array.from(bytes);
    other[bit >> 3]! ^= 1 << (bit & 7);
    const [left, right] = [hash(bytes), hash(other)];
    expect(left[0]).not.toBe(right[0]);
    expect(left[1]).not.toBe(right[1]);
    apart += bitsApart(left, right);
    pairs++;
  }
  expect(apart / pairs).toBeGreaterThan(30);
  expect(apart / pairs).toBeLessThan(34);
});

test('counters, lengths of zeros and swapped words do not collide', () => {
  const seen = new Set<string>();
  let count = 0;
  const add = (bytes: Uint8Array): void => {
    seen.add(hash(bytes).join());
    count++;
  };
  for (let n = 0; n < 50_000; n++) {
    const bytes = new Uint8Array(12);
    new DataView(bytes.buffer).setInt32(4, n, true);
    add(bytes);
  }
  for (let n = 0; n < 300; n++) if (n !== 12) add(new Uint8Array(n));
  for (let n = 1; n < 5000; n++) {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setInt32(0, n, true);
    new DataView(bytes.buffer).setInt32(4, n * 7, true);
    add(bytes);
    add(Uint8Array.from([...bytes.subarray(4), ...bytes.subarray(0, 4)]));
  }
  expect(seen.size).toBe(count);
  // Each lane by itself is spread well: of 2^16 buckets about 1 - 1/e^(n/2^16) are hit.
  const buckets = new Set([...seen].map((text) => Number(text.split(',')[0]) % 65_536));
  expect(buckets.size / 65_536).toBeCloseTo(1 - Math.exp(-count / 65_536), 1);
});
