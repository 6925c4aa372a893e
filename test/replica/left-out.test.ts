import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { Applier } from '../../src/replica/applier.ts';
import { describeLeftOut, readLeftOut } from '../../src/replica/left-out.ts';
import { createReplicaSchema } from '../../src/replica/schema.ts';
import { partFrame, testRelation, transactionFrame } from '../helpers/frames.ts';

const OID = 4_000_000_000;

/** A whole part frame with one note in it. */
function noteFrame(bytes: number): Buffer {
  return partFrame([{ leftOut: OID, value: { row: 'id = 7', column: 'v', bytes } }]);
}

test('a file names the values that it lacks, until its table is emptied or gone', () => {
  const db = new Database(':memory:');
  const relation = testRelation({
    oid: OID,
    name: 't',
    columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'v' }],
  });
  createReplicaSchema(db, [relation], {
    epoch: 'e',
    position: 10n,
    commitTimeUs: null,
    systemIdentifier: '1',
    databaseName: 'd',
  });
  const applier = new Applier(db);
  const apply = (endLsn: bigint, changes: Parameters<typeof transactionFrame>[0]['changes']): void => {
    applier.apply(
      Buffer.concat([noteFrame(600_000_000), transactionFrame({ endLsn, hasParts: true, changes })]),
    );
  };
  expect(readLeftOut(db)).toEqual([]);
  apply(20n, [{ insert: OID, row: [7, null] }]);
  expect(readLeftOut(db)).toEqual([{ table: 't', row: 'id = 7', column: 'v', bytes: 600_000_000 }]);
  expect(describeLeftOut(readLeftOut(db)[0]!)).toMatch(
    /^t \(id = 7\): v is left out, NULL in the file: with its 600000000/,
  );
  // What is delivered twice is recognised by its position.
  apply(20n, [{ insert: OID, row: [7, null] }]);
  expect(readLeftOut(db)).toHaveLength(1);
  apply(30n, [{ truncate: OID }]);
  expect(readLeftOut(db)).toEqual([]);
  db.close();
});
