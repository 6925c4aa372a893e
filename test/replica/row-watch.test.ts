import type Database from 'better-sqlite3';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { locatorColumns, type Relation } from '../../src/change/relation.ts';
import { Applier } from '../../src/replica/applier.ts';
import { RowWatch } from '../../src/replica/row-watch.ts';
import { readLayouts } from '../../src/replica/schema.ts';
import { StoredRows } from '../../src/replica/stored-rows.ts';
import { keyText } from '../../src/verify/table-sums.ts';
import { testRelation, transactionFrame } from '../helpers/frames.ts';
import { Model, relations, replica, step } from '../helpers/table-model.ts';

function rowsByKey(db: Database.Database, relation: Relation): Map<string, string> {
  const rows = new StoredRows(db, readLayouts(db).get(relation.oid)!);
  const key = locatorColumns(relation);
  const found = new Map<string, string>();
  rows.read(
    () => found.set(keyText(rows.bytes, 0, rows.end, key), rows.bytes.latin1Slice(0, rows.end)),
    () => found.clear(),
  );
  return found;
}

test('a row that is not what it was has been seen to change', () => {
  const keyed = relations.filter((relation) => locatorColumns(relation).length > 0);
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.array(step, { maxLength: 20 }), (first, then) => {
      const model = new Model();
      const db = replica();
      try {
        const applier = new Applier(db);
        applier.apply(
          transactionFrame({ endLsn: 8n, changes: first.flatMap((each) => model.change(each) ?? []) }),
        );
        const before = keyed.map((relation) => rowsByKey(db, relation));
        const watch = new RowWatch();
        // Rows that are there, and one that may come.
        for (const [index, relation] of keyed.entries()) {
          for (const key of before[index]!.keys())
            watch.add(applier.layouts.get(relation.oid)!, Buffer.from(key, 'latin1'));
        }
        const frame = transactionFrame({
          endLsn: 16n,
          changes: then.flatMap((each) => model.change(each) ?? []),
        });
        watch.see(frame);
        applier.apply(frame);
        for (const [index, relation] of keyed.entries()) {
          const after = rowsByKey(db, relation);
          for (const [key, row] of before[index]!) {
            if (after.get(key) === row) continue;
            expect(watch.isUntouched(relation.oid, Buffer.from(key, 'latin1'))).toBe(false);
          }
        }
      } finally {
        db.close();
      }
    }),
    { numRuns: 60 },
  );
});

test('a row that changes back, a truncated table and a changed definition are not what they were; others are', () => {
  const db = replica();
  const applier = new Applier(db);
  applier.apply(
    transactionFrame({
      endLsn: 8n,
      changes: [
        { insert: 1, row: [1, 'a', 'w'] },
        { insert: 1, row: [2, 'a', 'w'] },
        { insert: 2, row: ['v', 1, 'w', 'k'] },
        { insert: 3, row: ['v', 'k', 'w'] },
        { insert: 4, row: ['v', 1, 'w'] },
      ],
    }),
  );
  const watch = new RowWatch();
  const keyOf = (index: number, which = 0): Buffer =>
    Buffer.from([...rowsByKey(db, relations[index]!).keys()][which]!, 'latin1');
  const keys = [keyOf(0), keyOf(0, 1), keyOf(1), keyOf(2)] as const;
  watch.add(applier.layouts.get(1)!, keys[0]);
  watch.add(applier.layouts.get(1)!, keys[1]);
  watch.add(applier.layouts.get(2)!, keys[2]);
  watch.add(applier.layouts.get(3)!, keys[3]);
  watch.add(applier.layouts.get(4)!, null);
  expect(watch.isUntouched(4, null)).toBe(true);
  expect(watch.isUntouched(5, null)).toBe(false);
  watch.see(
    transactionFrame({
      endLsn: 16n,
      changes: [
        { update: 1, row: [1, 'b', 'w'] },
        { update: 1, row: [1, 'a', 'w'] },
        { truncate: 2 },
        { insert: 4, row: ['v', 1, 'w'] },
        {
          schema: {
            changed: [
              testRelation({ oid: 3, name: 'other', columns: [{ name: 'v' }, { name: 'id', key: 1 }] }),
            ],
            dropped: [4],
          },
        },
      ],
    }),
  );
  expect(watch.isUntouched(1, keys[0])).toBe(false);
  expect(watch.isUntouched(1, keys[1])).toBe(true);
  expect(watch.isUntouched(2, keys[2])).toBe(false);
  expect(watch.isUntouched(3, keys[3])).toBe(false);
  expect(watch.isUntouched(4, null)).toBe(false);
  db.close();
});
