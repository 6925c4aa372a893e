import { describe, expect, test } from 'vitest';
import { FrameWriter } from '../../src/change/frame-writer.ts';
import type { Relation } from '../../src/change/relation.ts';
import { valueEncoder } from '../../src/change/value-mapping.ts';
import { describeLeftOut, RowBudget } from '../../src/source/row-budget.ts';
import { testRelation } from '../helpers/frames.ts';

const relation = (replicaIdentity: Relation['replicaIdentity']): Relation =>
  testRelation({
    oid: 1,
    name: 't',
    replicaIdentity,
    columns: [
      { name: 'id', mapping: 'int', key: 1 },
      { name: 'a' },
      { name: 'b', mapping: 'bytea' },
      { name: 'c' },
    ],
  });

/** Encodes values of these lengths, in text, one behind the other; which are left out. */
function leftOut(of: Relation, maxBytes: number, lengths: readonly number[]): number[] {
  const budget = new RowBudget(of, maxBytes);
  const out = new FrameWriter();
  budget.beginRow();
  lengths.forEach((length, index) => {
    const text = index === 1 ? `\\x${'00'.repeat((length - 2) / 2)}` : 'x'.repeat(length);
    const { mapping } = of.columns[index + 1]!;
    budget.encode(valueEncoder(mapping), index + 1, Buffer.from(text), 0, length, out);
  });
  const bytes = lengths.reduce((sum, length, index) => {
    if (budget.leftOut.some(({ column }) => column === index + 1)) return sum + 1;
    return sum + 5 + (index === 1 ? (length - 2) / 2 : length);
  }, 0);
  expect(out.pendingBytes).toBe(bytes);
  return budget.leftOut.map(({ column }) => column);
}

describe('a row that is longer than SQLite takes', () => {
  test('loses the values that do not fit any more, and no others', () => {
    expect(leftOut(relation('default'), 20_000, [9_000, 12_002, 4_985])).toEqual([]);
    expect(leftOut(relation('default'), 20_000, [9_000, 12_002, 4_986])).toEqual([3]);
    expect(leftOut(relation('default'), 20_000, [19_996, 12_002, 13_990])).toEqual([1]);
    expect(leftOut(relation('default'), 20_000, [50_000, 40_002, 19_995])).toEqual([1, 2]);
  });

  test('has half of the room where an update brings two rows', () => {
    expect(leftOut(relation('full'), 20_000, [9_000, 12_002, 4_096])).toEqual([2, 3]);
  });

  test('is begun anew, and named by its key', () => {
    const budget = new RowBudget(relation('default'), 100);
    const out = new FrameWriter();
    const long = Buffer.from('x'.repeat(5000));
    budget.beginRow();
    budget.encode(valueEncoder('text'), 3, long, 0, 5000, out);
    expect(describeLeftOut(relation('default'), budget, (column) => `value ${column}`)).toEqual([
      { row: 'id = value 0', column: 'c', bytes: 5000 },
    ]);
    budget.beginRow();
    expect(budget.leftOut).toEqual([]);
  });
});
