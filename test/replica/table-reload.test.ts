import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Applier } from '../../src/replica/applier.ts';
import { readLeftOut } from '../../src/replica/left-out.ts';
import { sweepReplaced } from '../../src/replica/replaced-tables.ts';
import { configureForApplying, readPosition } from '../../src/replica/replica-file.ts';
import { createIndexes, createReplicaSchema } from '../../src/replica/schema.ts';
import { type TestChange, testRelation, transactionFrame, UNCHANGED } from '../helpers/frames.ts';

const ITEMS = 1;
const OTHER = 2;
const BAG = 3;

const id = { name: 'id', mapping: 'int', key: 1 } as const;
const index = { oid: 90, name: 'items_v', unique: false, columns: [{ attnum: 2, descending: false }] };
const columns = [id, { name: 'v' }];
const items = testRelation({ oid: ITEMS, name: 'items', columns, indexes: [index] });
const rewritten = testRelation({
  oid: ITEMS,
  name: 'items',
  columns: [...columns, { name: 'w', mapping: 'int' }],
  indexes: [index],
});
const other = testRelation({ oid: OTHER, name: 'other', columns: [id] });
const bag = testRelation({ oid: BAG, name: 'bag', replicaIdentity: 'full', columns: [{ name: 'x' }] });

let dir: string;
let db: Database.Database;
let reader: Database.Database;
let applier: Applier;
let lsn: bigint;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-reload-'));
  db = new Database(join(dir, 'app.db'));
  configureForApplying(db);
  const layouts = createReplicaSchema(db, [items, other, bag], {
    epoch: 'e1',
    position: 0x100n,
    commitTimeUs: null,
    systemIdentifier: '73',
    databaseName: 'app',
  });
  for (const layout of layouts) createIndexes(db, layout);
  reader = new Database(join(dir, 'app.db'), { readonly: true });
  applier = new Applier(db);
  lsn = 0x1000n;
  apply(
    10,
    { insert: ITEMS, row: [1, 'old'] },
    { insert: ITEMS, row: [2, 'old'] },
    { insert: BAG, row: ['a'] },
  );
});

afterEach(() => {
  reader.close();
  db.close();
  rmSync(dir, { recursive: true });
});

function frame(xid: number, ...changes: TestChange[]): Buffer {
  lsn += 0x100n;
  return transactionFrame({ endLsn: lsn, xid, changes });
}

function apply(xid: number, ...changes: TestChange[]) {
  return applier.apply(frame(xid, ...changes));
}

const rows = (sql: string): unknown[] => reader.prepare(sql).raw().all();
const alter: TestChange = { schema: { changed: [], dropped: [], reloading: [rewritten] } };
/** Sees 20 and 22, not 21 and what began later. */
const snapshot = { xmin: 21, xmax: 23, inProgress: [21] };

describe('a table that is read again', () => {
  test('keeps what it had, takes changes in the order that its snapshot asks for, and changes in one step', () => {
    const before = lsn;
    apply(20, alter, { insert: ITEMS, row: [3, 'in the change', 0] });
    apply(21, { update: ITEMS, row: [1, 'behind', 11] });
    apply(22, { delete: ITEMS, key: [2] }, { insert: OTHER, row: [1] });
    expect(rows('SELECT * FROM items')).toEqual([
      [1, 'old'],
      [2, 'old'],
    ]);
    expect(rows('SELECT * FROM other')).toEqual([[1]]);
    expect(applier.reloading).toEqual(['items']);
    // What the file says of its position holds for all of its tables.
    expect(readPosition(reader)).toMatchObject({ lsn: before, applied: lsn });

    apply(30, { reloadBegin: ITEMS, snapshot }, { reloadRow: ITEMS, row: [1, 'read', 1] });
    apply(23, { update: ITEMS, row: [3, 'later', 33] }, { insert: ITEMS, row: [4, 'new', 4] });
    apply(31, { reloadRow: ITEMS, row: [3, 'in the change', 3] });
    expect(rows('SELECT * FROM items')).toHaveLength(2);
    const { tables, settled } = apply(32, { reloadEnd: ITEMS });
    expect(rows('SELECT * FROM items')).toEqual([
      [1, 'behind', 11],
      [3, 'later', 33],
      [4, 'new', 4],
    ]);
    expect({ tables, settled }).toEqual({ tables: ['items'], settled: lsn });
    expect(readPosition(reader)).toMatchObject({ lsn, applied: lsn });
    apply(33, { update: ITEMS, row: [4, 'live', 5] });
    expect(rows('SELECT w FROM items WHERE id = 4')).toEqual([[5]]);
    expect(rows("SELECT count(*) FROM sqlite_schema WHERE name LIKE '%reload_1%'")).toEqual([[0]]);
    expect(rows('SELECT count(*) FROM _rivulet_reload_change')).toEqual([[0]]);
    expect(rows("SELECT count(*) FROM pragma_index_list('items')")).toEqual([[1]]);
    const leftOvers = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%replaced%'";
    expect(rows(leftOvers)).toEqual([[1]]);
    while (sweepReplaced(db)) expect(rows('SELECT count(*) FROM items')).toEqual([[3]]);
    expect(rows(leftOvers)).toEqual([[0]]);
    expect(rows("SELECT count(*) FROM pragma_index_list('items')")).toEqual([[1]]);
  });

  test('goes on where it was after a restart, whatever was under way', () => {
    apply(20, alter);
    apply(30, { reloadBegin: ITEMS, snapshot }, { reloadRow: ITEMS, row: [1, 'read', 1] });
    apply(21, { insert: ITEMS, row: [7, 'held', 7] });
    applier = new Applier(db);
    expect(applier.reloading).toEqual(['items']);
    apply(31, { reloadRow: ITEMS, row: [2, 'read', 2] }, { reloadEnd: ITEMS });
    expect(rows('SELECT id FROM items ORDER BY id')).toEqual([[1], [2], [7]]);
    expect(new Applier(db).reloading).toEqual([]);
  });

  test('values that were left out stay named until the table is read from its beginning', () => {
    const leftOut = (row: string): TestChange => ({ leftOut: ITEMS, value: { row, column: 'v', bytes: 7 } });
    const named = () => readLeftOut(db).map(({ row }) => row);
    apply(20, alter, leftOut('id = 0'));
    apply(30, { reloadBegin: ITEMS, snapshot }, leftOut('id = 1'), { reloadRow: ITEMS, row: [1, null, 1] });
    apply(
      31,
      { reloadBegin: ITEMS, snapshot: { xmin: 25, xmax: 25, inProgress: [] }, isFirst: false },
      leftOut('id = 2'),
      { reloadRow: ITEMS, row: [2, null, 2] },
    );
    expect(named()).toEqual(['id = 1', 'id = 2']);
    apply(32, { reloadEnd: ITEMS });
    expect(named()).toEqual(['id = 1', 'id = 2']);
  });

  test('a reading that broke off is void; the next one begins from nothing, and knows more', () => {
    apply(20, alter);
    apply(21, { insert: ITEMS, row: [7, 'held', 7] });
    apply(30, { reloadBegin: ITEMS, snapshot }, { reloadRow: ITEMS, row: [1, 'read', 1] });
    apply(
      31,
      { reloadBegin: ITEMS, snapshot: { xmin: 40, xmax: 40, inProgress: [] } },
      { reloadRow: ITEMS, row: [7, 'read', 7] },
      { reloadEnd: ITEMS },
    );
    expect(rows('SELECT * FROM items')).toEqual([[7, 'read', 7]]);
  });

  test('piece by piece: what is there of it is brought to the moment of each piece', () => {
    apply(20, alter);
    apply(30, { reloadBegin: ITEMS, snapshot }, { reloadRow: ITEMS, row: [1, 'read', 1] });
    apply(31, { reloadRow: ITEMS, row: [2, 'read', 2] });
    // All but 29 are in the next snapshot: of rows that are there, not there yet, new, gone, and with new keys.
    apply(
      23,
      { update: ITEMS, row: [1, 'changed', UNCHANGED] },
      { update: ITEMS, row: [8, 'not here yet', 0] },
    );
    apply(
      24,
      { insert: ITEMS, row: [9, 'early', 9] },
      { delete: ITEMS, key: [2] },
      { delete: ITEMS, key: [7] },
    );
    apply(
      25,
      { update: ITEMS, key: [6], row: [3, 'moved in', 3] },
      { update: ITEMS, key: [1], row: [10, 'moved', 1] },
    );
    apply(26, { update: ITEMS, row: [9, 'early, changed', UNCHANGED] });
    apply(29, { update: ITEMS, row: [9, 'late', 99] }, { insert: ITEMS, row: [1, 'again', 11] });
    applier = new Applier(db);
    const next = { xmin: 29, xmax: 29, inProgress: [] };
    apply(40, { reloadBegin: ITEMS, snapshot: next, isFirst: false });
    expect(rows('SELECT * FROM "_rivulet_reload_1" ORDER BY id')).toEqual([
      [3, 'moved in', 3],
      [9, 'early, changed', 9],
      [10, 'moved', 1],
    ]);
    apply(
      41,
      { reloadRow: ITEMS, row: [8, 'read', 8] },
      { reloadRow: ITEMS, row: [9, 'early, changed', 9] },
      { reloadRow: ITEMS, row: [10, 'moved', 1] },
      { reloadEnd: ITEMS },
    );
    expect(rows('SELECT * FROM items ORDER BY id')).toEqual([
      [1, 'again', 11],
      [3, 'moved in', 3],
      [8, 'read', 8],
      [9, 'late', 99],
      [10, 'moved', 1],
    ]);
  });

  test('changes once more, is truncated, or goes away meanwhile', () => {
    apply(20, alter);
    apply(30, { reloadBegin: ITEMS, snapshot }, { reloadRow: ITEMS, row: [1, 'read', 1] });
    const renamed = testRelation({ oid: ITEMS, name: 'things', columns });
    apply(24, { schema: { changed: [], dropped: [], reloading: [renamed] } });
    expect(rows('SELECT * FROM things')).toHaveLength(2);
    apply(25, { truncate: ITEMS }, { insert: ITEMS, row: [9, 'after'] });
    apply(31, { reloadBegin: ITEMS, snapshot: { xmin: 25, xmax: 25, inProgress: [] } });
    apply(32, { reloadRow: ITEMS, row: [1, 'x'] }, { reloadEnd: ITEMS });
    expect(rows('SELECT * FROM things')).toEqual([[9, 'after']]);
    apply(33, alter);
    apply(34, { schema: { changed: [], dropped: [ITEMS] } });
    expect(applier.reloading).toEqual([]);
    expect(readPosition(reader)).toMatchObject({ lsn });
    expect(
      rows("SELECT name FROM sqlite_schema WHERE name LIKE '%items%' OR name LIKE '%reload_1%'"),
    ).toEqual([]);
  });

  test('another table may take its name at once', () => {
    const moved = testRelation({ oid: ITEMS, name: 'moved', columns });
    const taker = testRelation({ oid: 8, name: 'items', columns: [id] });
    apply(20, { schema: { changed: [], dropped: [], reloading: [moved] } });
    apply(21, { schema: { changed: [taker], dropped: [] } }, { insert: 8, row: [5] });
    expect(rows('SELECT * FROM items')).toEqual([[5]]);
    expect(rows('SELECT * FROM moved')).toHaveLength(2);
  });

  test('rows without a key, each as often as it is there', () => {
    const wide = testRelation({
      oid: BAG,
      name: 'bag',
      replicaIdentity: 'full',
      columns: [{ name: 'x' }, { name: 'y' }],
    });
    apply(20, { schema: { changed: [], dropped: [], reloading: [wide] } });
    apply(21, { delete: BAG, old: ['a', 'b'] });
    apply(
      30,
      { reloadBegin: BAG, snapshot },
      { reloadRow: BAG, row: ['a', 'b'] },
      { reloadRow: BAG, row: ['a', 'b'] },
      { reloadEnd: BAG },
    );
    expect(rows('SELECT * FROM bag')).toEqual([['a', 'b']]);
  });

  test('a transaction in one buffer with the change before it and the rows behind it', () => {
    const before = lsn;
    applier.apply(
      Buffer.concat([
        frame(19, { insert: OTHER, row: [1] }),
        frame(20, alter),
        frame(21, { insert: ITEMS, row: [7, 'held', 7] }),
      ]),
    );
    // The transaction in front of the change is in all tables.
    expect(readPosition(reader)).toMatchObject({ lsn: before + 0x100n, applied: lsn });
    applier.apply(
      Buffer.concat([
        frame(30, { reloadBegin: ITEMS, snapshot }),
        frame(31, { reloadRow: ITEMS, row: [1, 'read', 1] }, { reloadEnd: ITEMS }),
        frame(32, { update: ITEMS, row: [7, 'live', 8] }),
      ]),
    );
    expect(rows('SELECT * FROM items')).toEqual([
      [1, 'read', 1],
      [7, 'live', 8],
    ]);
    expect(readPosition(reader)).toMatchObject({ lsn, applied: lsn });
  });

  test('a table that leaves the publication comes back before what it left is deleted', () => {
    for (let round = 0; round < 3; round++) {
      apply(20, { schema: { changed: [], dropped: [ITEMS] } });
      apply(21, { schema: { changed: [], dropped: [], reloading: [items] } });
      applier = new Applier(db);
      apply(
        30,
        { reloadBegin: ITEMS, snapshot },
        { reloadRow: ITEMS, row: [round, 'back'] },
        { reloadEnd: ITEMS },
      );
      expect(rows('SELECT id FROM items')).toEqual([[round]]);
    }
    apply(40, { schema: { changed: [], dropped: [ITEMS] } }, { schema: { changed: [items], dropped: [] } });
    expect(rows("SELECT count(*) FROM sqlite_schema WHERE name LIKE '%replaced%'")).toEqual([[4]]);
    while (sweepReplaced(db));
    expect(rows("SELECT count(*) FROM pragma_index_list('items')")).toEqual([[1]]);
  });

  test('a new table that comes with rows in it is not there before it is whole', () => {
    const fresh = testRelation({ oid: 9, name: 'fresh', columns: [id] });
    apply(20, { schema: { changed: [], dropped: [], reloading: [fresh] } });
    expect(applier.reloading).toEqual(['fresh']);
    expect(() => rows('SELECT * FROM fresh')).toThrow(/no such table/);
    apply(30, { reloadBegin: 9, snapshot }, { reloadRow: 9, row: [1] }, { reloadEnd: 9 });
    expect(rows('SELECT * FROM fresh')).toEqual([[1]]);
  });
});
