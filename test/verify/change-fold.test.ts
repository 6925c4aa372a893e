import type Database from 'better-sqlite3';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { TRANSACTION_HEADER_BYTES } from '../../src/change/frame.ts';
import { locatorColumns, type Relation } from '../../src/change/relation.ts';
import { Applier } from '../../src/replica/applier.ts';
import { readLayouts } from '../../src/replica/schema.ts';
import { StoredRows } from '../../src/replica/stored-rows.ts';
import { ChangeFold, resolveRow } from '../../src/verify/change-fold.ts';
import { keyText } from '../../src/verify/table-sums.ts';
import { transactionFrame } from '../helpers/frames.ts';
import { Model, relations, replica, step } from '../helpers/table-model.ts';

/** Every row's tuple as text, as often as it is there. */
function tuples(db: Database.Database, relation: Relation): string[] {
  const rows = new StoredRows(db, readLayouts(db).get(relation.oid)!);
  const found: string[] = [];
  rows.read(
    () => found.push(rows.bytes.latin1Slice(0, rows.end)),
    () => found.splice(0),
  );
  return found;
}

/** The rows before, with the fold on top. */
function expected(before: readonly string[], fold: ChangeFold, relation: Relation): string[] {
  const key = locatorColumns(relation);
  const { isTruncated, rows, counts } = fold.of(relation.oid)!;
  const old = isTruncated ? [] : before;
  if (key.length === 0) {
    const sums = new Map(counts);
    for (const row of old) sums.set(row, (sums.get(row) ?? 0) + 1);
    return [...sums].flatMap(([row, count]) => {
      expect(count).toBeGreaterThanOrEqual(0);
      return new Array<string>(count).fill(row);
    });
  }
  const byKey = new Map(old.map((row) => [keyText(Buffer.from(row, 'latin1'), 0, row.length, key), row]));
  const resolved = [...rows].map(([text, row]) => {
    const result = resolveRow(row, (each) =>
      byKey.has(each) ? Buffer.from(byKey.get(each)!, 'latin1') : undefined,
    );
    if (result === 'unknown') throw new Error('a value is nowhere to be found');
    return [text, result] as const;
  });
  for (const [text, row] of resolved) {
    if (row === null) byKey.delete(text);
    else byKey.set(text, row.latin1Slice());
  }
  return [...byKey.values()];
}

test("a table's rows before, and the fold of the changes, are its rows behind them", () => {
  const steps = fc.array(step, { maxLength: 60 });
  fc.assert(
    fc.property(
      steps,
      fc.array(fc.array(step, { maxLength: 8 }), { maxLength: 12 }),
      (first, transactions) => {
        const model = new Model();
        using db = Object.assign(replica(), {
          [Symbol.dispose](this: Database.Database) {
            this.close();
          },
        });
        const applier = new Applier(db);
        applier.apply(
          transactionFrame({ endLsn: 8n, changes: first.flatMap((each) => model.change(each) ?? []) }),
        );
        const before = relations.map((relation) => tuples(db, relation));
        const fold = new ChangeFold(relations);
        let endLsn = 8n;
        for (const each of transactions) {
          endLsn += 8n;
          const frame = transactionFrame({ endLsn, changes: each.flatMap((one) => model.change(one) ?? []) });
          fold.take(frame, TRANSACTION_HEADER_BYTES, frame.length);
          applier.apply(frame);
        }
        for (const [index, relation] of relations.entries()) {
          expect(expected(before[index]!, fold, relation).sort()).toEqual(tuples(db, relation).sort());
        }
      },
    ),
    { numRuns: Number(process.env.FOLD_RUNS ?? 60) },
  );
});

test('what no row of SQLite can hold is remembered for as long as the rows are there', () => {
  const relation = relations[0]!;
  const value = { row: 'id = 1', column: 'a', bytes: 600_000_000 };
  const fold = new ChangeFold([relation]);
  const take = (changes: Parameters<typeof transactionFrame>[0]['changes']): void => {
    const frame = transactionFrame({ endLsn: 100n, changes });
    fold.take(frame, TRANSACTION_HEADER_BYTES, frame.length);
  };
  take([{ leftOut: relation.oid, value }]);
  expect(fold.of(relation.oid)!.leftOut).toEqual([value]);
  expect(fold.of(relation.oid)!.rows.size + fold.of(relation.oid)!.counts.size).toBe(0);
  take([{ truncate: relation.oid }]);
  expect(fold.of(relation.oid)!.leftOut).toEqual([]);
});
