import { describe, expect, it } from 'vitest';
import type { Relation, RowBound } from '../../src/change/relation.ts';
import { relationsFromJson } from '../../src/source/catalog.ts';

/** A partitioned table with one column `k`, and partitions of it: OID, parent, column, values. */
function bounds(
  type: number,
  ...partitions: readonly (readonly [number, number, string | null, string])[]
): Relation['bounds'] {
  const column = {
    attnum: 3,
    name: 'k',
    typeName: 'k',
    typeOid: type,
    typeModifier: -1,
    baseOid: type,
    elemOid: 0,
    delim: ',',
    notNull: false,
    keyOrdinal: null,
    identity: false,
    typeParts: [],
  };
  const table = {
    oid: 1,
    schema: 's',
    name: 't',
    kind: 'p',
    identity: 'd',
    keyDeferrable: false,
    indexes: [],
  };
  const [relation] = relationsFromJson([{ ...table, storage: '2:2', columns: [column], partitions }]);
  return relation!.bounds;
}

function readable(bound: RowBound): unknown {
  const text = (value: string | null): string | null =>
    value === null ? null : Buffer.from(value, 'base64').subarray(1).toString('latin1');
  return 'in' in bound ? bound.in.map(text) : [text(bound.from), text(bound.to)];
}

describe('what a partition tells of its rows', () => {
  it.each<[string, number, string, unknown]>([
    ['integers', 23, "FOR VALUES FROM ('-5') TO (7)", ['\u{fb}ÿÿÿ', '\u0007\0\0\0']],
    ['no end', 20, 'FOR VALUES FROM (MINVALUE) TO (MAXVALUE)', [null, null]],
    ['dates', 1082, "FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')", ['2026-01-01', '2027-01-01']],
    [
      'times, as files have them',
      1184,
      "FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-01-01 00:00:00.5+00')",
      ['2026-01-01 00:00:00.000000Z', '2026-01-01 00:00:00.500000Z'],
    ],
    ['texts', 25, "FOR VALUES IN ('a, b', 'it''s', NULL, 'x)')", ['a, b', "it's", null, 'x)']],
    ['booleans', 16, 'FOR VALUES IN (true)', ['\u0001\0\0\0']],
  ])('%s', (_what, type, values, expected) => {
    expect(readable(bounds(type, [2, 1, 'k', values])![2]![0]!)).toEqual(expected);
  });

  it.each<[string, number, string | null, string]>([
    ['the rest', 23, 'k', 'DEFAULT'],
    ['by hash', 23, 'k', 'FOR VALUES WITH (modulus 2, remainder 0)'],
    ['by more than a column, or by an expression', 23, null, 'FOR VALUES FROM (1) TO (2)'],
    ['by a column that is not published', 23, 'j', 'FOR VALUES FROM (1) TO (2)'],
    ['texts in an order of their own', 25, 'k', "FOR VALUES FROM ('a') TO ('b')"],
    ['numbers that SQLite rounds', 1700, 'k', "FOR VALUES FROM ('1') TO ('2')"],
    [
      'years that are not in the order of their text',
      1082,
      'k',
      "FOR VALUES FROM ('0044-01-01 BC') TO ('2026-01-01')",
    ],
    ['days before all others', 1082, 'k', "FOR VALUES FROM (MINVALUE) TO ('2026-01-01')"],
    ['days behind all others', 1114, 'k', "FOR VALUES FROM ('2026-01-01 00:00:00') TO (MAXVALUE)"],
    ['a string with a backslash', 25, 'k', "FOR VALUES IN (E'a\\\\b', 'c')"],
    ['such a one with a comma', 25, 'k', "FOR VALUES IN ('c', E'a\\\\, ''b')"],
  ])('nothing: %s', (_what, type, column, values) => {
    expect(bounds(type, [2, 1, column, values])).toBeUndefined();
  });

  it('of partitions of partitions all that is above them', () => {
    const nested = bounds(
      23,
      [2, 1, 'k', 'FOR VALUES IN (1, 2)'],
      [3, 2, 'k', 'FOR VALUES IN (1)'],
      [4, 2, 'k', 'DEFAULT'],
      [5, 4, 'k', 'FOR VALUES IN (2)'],
    )!;
    expect(Object.entries(nested).map(([oid, found]) => [Number(oid), found.length])).toEqual([
      [2, 1],
      [3, 2],
    ]);
  });
});
