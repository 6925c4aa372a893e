import type Database from 'better-sqlite3';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Applier } from '../../src/replica/applier.ts';
import { transactionFrame } from '../helpers/frames.ts';
import { Model, relations, replica, step } from '../helpers/table-model.ts';

function contents(db: Database.Database): unknown {
  return relations.map(({ name, columns }) =>
    db
      .prepare(`SELECT ${columns.map((column) => column.name).join(', ')} FROM ${name}`)
      .raw()
      .all()
      .map((row) => JSON.stringify(row))
      .sort(),
  );
}

/** All in one buffer, in some buffers, and one transaction at a time. */
function batchesOf(frames: readonly Buffer[], cuts: Iterator<number>): readonly (readonly Buffer[])[][] {
  const buffers: Buffer[][] = [[]];
  for (const frame of frames) {
    if (cuts.next().value === 0) buffers.push([]);
    buffers.at(-1)!.push(frame);
  }
  return [[frames], buffers, frames.map((frame) => [frame])];
}

/** The changes that a small Postgres makes, in one buffer, in some buffers, and one transaction at a time. */
test('folded or one by one: the same rows', () => {
  fc.assert(
    fc.property(
      fc.array(fc.array(step, { minLength: 1, maxLength: 8 }), { minLength: 1, maxLength: 25 }),
      fc.infiniteStream(fc.nat(3)),
      (transactions, cuts) => {
        const model = new Model();
        let endLsn = 0n;
        const frames = transactions.map((steps) => {
          endLsn += 16n;
          return transactionFrame({ endLsn, changes: steps.flatMap((each) => model.change(each) ?? []) });
        });
        const wanted = relations.map(({ oid }) =>
          model.tables
            .get(oid)!
            .map((row) => JSON.stringify(row))
            .sort(),
        );
        for (const batches of batchesOf(frames, cuts)) {
          const db = replica();
          try {
            const applier = new Applier(db);
            for (const batch of batches) applier.apply(Buffer.concat(batch));
            expect(contents(db)).toEqual(wanted);
            expect(applier.position).toBe(endLsn);
          } finally {
            db.close();
          }
        }
      },
    ),
    { numRuns: Number(process.env.FOLD_RUNS ?? 100) },
  );
});

/** TRUNCATE of a partition is not sent: what comes behind it takes the place of rows that are gone. */
test('rows that vanish without a word are written over by those that get their keys', () => {
  const keyed = relations.slice(0, 3);
  const partitioned = relations.map((relation) => ({ ...relation, storage: '90:90' }));
  fc.assert(
    fc.property(
      fc.array(fc.array(step, { minLength: 1, maxLength: 8 }), { minLength: 1, maxLength: 25 }),
      fc.infiniteStream(fc.nat(3)),
      (transactions, cuts) => {
        const model = new Model();
        let endLsn = 0n;
        const frames = transactions.map((steps) => {
          endLsn += 16n;
          const told = steps.filter((each) => each.table < keyed.length);
          const changes = told.flatMap((each) => {
            const change = model.change(each);
            return change === null || 'truncate' in change ? [] : change;
          });
          return transactionFrame({ endLsn, changes });
        });
        for (const batches of batchesOf(frames, cuts)) {
          const db = replica(partitioned);
          try {
            const applier = new Applier(db);
            for (const batch of batches) applier.apply(Buffer.concat(batch));
            const found = contents(db) as string[][];
            keyed.forEach(({ oid }, index) => {
              const rows = model.tables.get(oid)!.map((row) => JSON.stringify(row));
              expect(found[index]).toEqual(expect.arrayContaining(rows));
            });
          } finally {
            db.close();
          }
        }
      },
    ),
    { numRuns: Number(process.env.FOLD_RUNS ?? 100) },
  );
});
