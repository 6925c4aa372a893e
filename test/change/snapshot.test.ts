import { describe, expect, test } from 'vitest';
import { isInSnapshot, parseSnapshot } from '../../src/change/snapshot.ts';

describe('a snapshot', () => {
  test('as Postgres prints it', () => {
    expect(parseSnapshot('100:105:100,103')).toEqual({ xmin: 100, xmax: 105, inProgress: [100, 103] });
    expect(parseSnapshot('7:7:')).toEqual({ xmin: 7, xmax: 7, inProgress: [] });
    for (const text of ['', '7:7', '7:8:x', '7:8:7,'])
      expect(() => parseSnapshot(text)).toThrow(/not a snapshot/);
  });

  test.each([
    [99, true],
    [100, false],
    [101, true],
    [103, false],
    [104, true],
    [105, false],
    [106, false],
  ])('transaction %i is in it: %s', (xid, isIn) => {
    expect(isInSnapshot(parseSnapshot('100:105:100,103'), xid)).toBe(isIn);
  });

  test('the stream gives the lower half of a transaction id only', () => {
    const wrapped = parseSnapshot(`${2 ** 32 - 10}:${2 ** 32 + 10}:${2 ** 32 - 5},${2 ** 32 + 5}`);
    expect(isInSnapshot(wrapped, 2 ** 32 - 11)).toBe(true);
    expect(isInSnapshot(wrapped, 2 ** 32 - 5)).toBe(false);
    expect(isInSnapshot(wrapped, 4)).toBe(true);
    expect(isInSnapshot(wrapped, 5)).toBe(false);
    expect(isInSnapshot(wrapped, 10)).toBe(false);
    const before = parseSnapshot(`${2 ** 32 - 10}:${2 ** 32 - 8}:`);
    expect(isInSnapshot(before, 3)).toBe(false);
  });
});
