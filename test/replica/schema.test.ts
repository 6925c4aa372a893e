import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Relation } from '../../src/change/relation.ts';
import { Applier } from '../../src/replica/applier.ts';
import {
  createIndexes,
  createReplicaSchema,
  formatCommitTime,
  readLayouts,
} from '../../src/replica/schema.ts';
import { type TestChange, type TestRelation, testRelation, transactionFrame } from '../helpers/frames.ts';

let db: Database.Database;
let applier: Applier;
let notices: string[];
let lsn: bigint;

const base: TestRelation = {
  oid: 1,
  name: 'users',
  columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'name' }, { name: 'age', mapping: 'int' }],
  indexes: [{ oid: 50, name: 'by_name', unique: true, columns: [{ attnum: 2, descending: true }] }],
};

beforeEach(() => {
  db = new Database(':memory:');
  lsn = 0n;
});

afterEach(() => {
  db.close();
});

function start(...relations: Relation[]): void {
  const meta = { epoch: 'e', position: 0n, commitTimeUs: null, systemIdentifier: '1', databaseName: 'd' };
  for (const layout of createReplicaSchema(db, relations, meta)) createIndexes(db, layout);
  notices = [];
  applier = new Applier(db, { onNotice: ({ type, name }) => notices.push(`${type} ${name}`) });
}

function apply(...changes: TestChange[]): void {
  lsn += 16n;
  applier.apply(transactionFrame({ endLsn: lsn, changes }));
}

function change(relations: readonly TestRelation[], dropped: readonly number[] = []): void {
  apply({ schema: { changed: relations.map(testRelation), dropped } });
  // What is in memory is what a restart reads back.
  expect(new Map(applier.layouts)).toEqual(readLayouts(db));
}

const all = (sql: string): unknown[] => db.prepare(sql).raw().all();
const sqlOf = (name: string): unknown =>
  db.prepare('SELECT sql FROM sqlite_schema WHERE name = ?').pluck().get(name);
const indexes = (table: string): unknown[] =>
  db
    .prepare(
      "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL AND tbl_name = ? ORDER BY name",
    )
    .pluck()
    .all(table);

describe('a new file', () => {
  test('declares types by the table, and keys', () => {
    start(
      testRelation({
        oid: 1,
        name: 'all',
        columns: [
          { name: 'k2', key: 2 },
          { name: 'k1', mapping: 'numeric', key: 1 },
          { name: 'b', mapping: 'bool' },
          { name: 'f', mapping: 'float' },
          { name: 'y', mapping: 'bytea' },
          { name: 'a', mapping: { array: 'int', delimiter: ',' } },
        ],
      }),
      testRelation({ oid: 2, name: 'one', columns: [{ name: 'id', mapping: 'int', key: 1 }] }),
      testRelation({ oid: 3, name: 'flag', columns: [{ name: 'id', mapping: 'bool', key: 1 }] }),
      testRelation({
        oid: 4,
        name: 'late',
        keyIsDeferrable: true,
        replicaIdentity: 'full',
        columns: [{ name: 'id', mapping: 'int', key: 1 }],
      }),
      testRelation({ oid: 5, name: 'empty', columns: [] }),
    );
    expect(sqlOf('all')).toBe(
      'CREATE TABLE "all" ("k2" TEXT, "k1", "b" INTEGER, "f", "y" BLOB, "a" TEXT, PRIMARY KEY ("k1", "k2")) WITHOUT ROWID',
    );
    expect(sqlOf('one')).toBe('CREATE TABLE "one" ("id" INTEGER PRIMARY KEY)');
    expect(sqlOf('flag')).toBe('CREATE TABLE "flag" ("id" INTEGER, PRIMARY KEY ("id")) WITHOUT ROWID');
    expect(sqlOf('late')).toBe('CREATE TABLE "late" ("id" INTEGER)');
    expect(indexes('late')).toEqual(['_rivulet_key_4']);
    expect(sqlOf('empty')).toBe('CREATE TABLE "empty" ("_rivulet_placeholder")');
  });

  test('the contract tables', () => {
    start(
      testRelation(base),
      testRelation({
        oid: 2,
        schema: 'shop',
        name: 'x',
        replicaIdentity: 'full',
        columns: [{ name: 'A' }, { name: 'a' }],
      }),
    );
    expect(
      all('SELECT relation_oid, schema_name, table_name, sqlite_name, replica_identity FROM _rivulet_table'),
    ).toEqual([
      [1, 'public', 'users', 'users', 'default'],
      [2, 'shop', 'x', 'shop.x', 'full'],
    ]);
    expect(all('SELECT * FROM _rivulet_column WHERE relation_oid = 1')).toEqual([
      [1, 1, 'id', 'id', 'int', 1, 1],
      [1, 2, 'name', 'name', 'text', 0, null],
      [1, 3, 'age', 'age', 'int', 0, null],
    ]);
    expect(all("SELECT key, value FROM _rivulet_meta WHERE key <> 'created_at'")).toEqual([
      ['database_name', 'd'],
      ['format_version', 1],
      ['system_identifier', '1'],
    ]);
    expect(indexes('users')).toEqual(['_rivulet_index_50']);
  });

  test('commit times', () => {
    expect(formatCommitTime(0n)).toBe('1970-01-01 00:00:00.000000Z');
    expect(formatCommitTime(-1n)).toBe('1969-12-31 23:59:59.999999Z');
    expect(formatCommitTime(1_795_230_000_123_456n)).toBe('2026-11-21 03:00:00.123456Z');
  });
});

describe('schema changes', () => {
  beforeEach(() => {
    start(testRelation(base));
    apply({ insert: 1, row: [1, 'ann', 30] }, { insert: 1, row: [2, 'bob', 40] });
  });

  const [id, name, age] = base.columns as [
    TestRelation['columns'][0],
    TestRelation['columns'][0],
    TestRelation['columns'][0],
  ];

  test('tables come and go, at their place between the rows', () => {
    apply(
      { insert: 1, row: [3, 'cid', 1] },
      {
        schema: {
          changed: [testRelation({ oid: 2, name: 'new', columns: [{ name: 'k', key: 1 }] })],
          dropped: [],
        },
      },
      { insert: 2, row: ['x'] },
      { insert: 1, row: [4, 'dan', 1] },
      { schema: { changed: [], dropped: [1] } },
    );
    expect(all('SELECT * FROM new')).toEqual([['x']]);
    expect(sqlOf('users')).toBeUndefined();
    expect(all('SELECT count(*) FROM _rivulet_column WHERE relation_oid = 1')).toEqual([[0]]);
  });

  test('dropped and made again under the same name: another table', () => {
    change([{ ...base, oid: 2, indexes: [] }], [1]);
    expect(all('SELECT * FROM users')).toEqual([]);
    apply({ insert: 2, row: [1, 'new', null] });
    expect(all('SELECT * FROM users')).toEqual([[1, 'new', null]]);
  });

  test('a column comes; rows of the same transaction before and behind it', () => {
    apply(
      { update: 1, row: [1, 'ann2', 31] },
      {
        schema: {
          changed: [testRelation({ ...base, columns: [...base.columns, { name: 'mail', attnum: 5 }] })],
          dropped: [],
        },
      },
      { update: 1, row: [1, 'ann3', 32, 'a@b'] },
    );
    expect(all('SELECT id, name, age, mail FROM users')).toEqual([
      [1, 'ann3', 32, 'a@b'],
      [2, 'bob', 40, null],
    ]);
  });

  test('a column goes, with its index; dropped and added under the same name is another column', () => {
    change([
      {
        ...base,
        columns: [id, age].map((column, index) => ({ ...column, attnum: index === 0 ? 1 : 3 })),
        indexes: [],
      },
    ]);
    expect(all('SELECT * FROM users')).toEqual([
      [1, 30],
      [2, 40],
    ]);
    change([
      {
        ...base,
        columns: [
          { ...id, attnum: 1 },
          { ...age, attnum: 9 },
        ],
        indexes: [],
      },
    ]);
    expect(all('SELECT id, age FROM users')).toEqual([
      [1, null],
      [2, null],
    ]);
  });

  test('the order of values is that of the relation, whatever the order in the file', () => {
    change([{ ...base, columns: [id, name, age, { name: 'x', attnum: 4 }] }]);
    change([
      {
        ...base,
        indexes: [],
        columns: [id, { ...age, attnum: 3 }, { name: 'x', attnum: 4 }, { name: 'name', attnum: 5 }],
      },
    ]);
    apply({ insert: 1, row: [3, 50, 'x', 'cid'] }, { update: 1, row: [1, 31, 'y', 'ann'] });
    expect(all('SELECT id, name, age, x FROM users')).toEqual([
      [1, 'ann', 31, 'y'],
      [2, null, 40, null],
      [3, 'cid', 50, 'x'],
    ]);
  });

  test('renames: columns that swap names, tables that swap names', () => {
    change([{ ...base, columns: [id, { ...name, name: 'age' }, { ...age, name: 'name' }] }]);
    expect(all('SELECT id, age, name FROM users')).toEqual([
      [1, 'ann', 30],
      [2, 'bob', 40],
    ]);
    expect(indexes('users')).toEqual(['_rivulet_index_50']);
    change([{ oid: 2, name: 'people', columns: [{ name: 'id', mapping: 'int', key: 1 }] }]);
    change([
      { ...base, name: 'people' },
      { oid: 2, name: 'users', columns: [{ name: 'id', mapping: 'int', key: 1 }] },
    ]);
    apply({ insert: 2, row: [77] }, { insert: 1, row: [3, 'cid', 50] });
    expect(all('SELECT id FROM users')).toEqual([[77]]);
    expect(all('SELECT id FROM people ORDER BY 1')).toEqual([[1], [2], [3]]);
  });

  test('a table moves to another schema', () => {
    change([{ ...base, schema: 'old' }]);
    expect(all('SELECT count(*) FROM "old.users"')).toEqual([[2]]);
    apply({ delete: 1, key: [1] });
    expect(all('SELECT id FROM "old.users"')).toEqual([[2]]);
  });

  test('the key moves, widens, becomes deferrable, goes', () => {
    change([{ ...base, columns: [{ ...id, key: 2 }, { ...name, key: 1 }, age] }]);
    expect(sqlOf('users')).toMatch(/PRIMARY KEY \("name", "id"\)\) WITHOUT ROWID$/);
    expect(indexes('users')).toEqual(['_rivulet_index_50']);
    apply({ update: 1, key: [1, 'ann'], row: [1, 'anna', 31] });
    change([{ ...base, keyIsDeferrable: true, replicaIdentity: 'full' }]);
    expect(indexes('users')).toEqual(['_rivulet_index_50', '_rivulet_key_1']);
    apply({ update: 1, old: [1, 'anna', 31], row: [2, 'anna', 31] });
    apply({ update: 1, old: [2, 'bob', 40], row: [1, 'bob', 40] });
    change([
      {
        ...base,
        replicaIdentity: 'full',
        indexes: [],
        columns: base.columns.map(({ key: _, ...column }) => column),
      },
    ]);
    expect(indexes('users')).toEqual([]);
    change([base]);
    expect(all('SELECT * FROM users')).toEqual([
      [1, 'bob', 40],
      [2, 'anna', 31],
    ]);
  });

  test('a type changes', () => {
    change([{ ...base, columns: [id, name, { ...age, mapping: 'text' }] }]);
    expect(all('SELECT age, typeof(age) FROM users')).toEqual([
      ['30', 'text'],
      ['40', 'text'],
    ]);
    change([{ ...base, columns: [{ ...id, mapping: 'text' }, name, { ...age, mapping: 'numeric' }] }]);
    apply({ insert: 1, row: ['k', 'x', 2n ** 60n] });
    expect(all('SELECT id, typeof(age) FROM users ORDER BY 1')).toEqual([
      ['1', 'text'],
      ['2', 'text'],
      ['k', 'integer'],
    ]);
  });

  test('indexes come, go and change; a rename touches none', () => {
    const second = {
      oid: 51,
      name: 'by_age',
      unique: false,
      columns: [
        { attnum: 3, descending: false },
        { attnum: 2, descending: true },
      ],
    };
    change([{ ...base, indexes: [...base.indexes!, second] }]);
    expect(indexes('users')).toEqual(['_rivulet_index_50', '_rivulet_index_51']);
    expect(sqlOf('_rivulet_index_51')).toBe(
      'CREATE INDEX "_rivulet_index_51" ON "users" ("age", "name" DESC)',
    );
    change([{ ...base, name: 'people', indexes: [{ ...second, name: 'renamed' }] }]);
    expect(indexes('people')).toEqual(['_rivulet_index_51']);
    change([
      { ...base, name: 'people', indexes: [{ ...second, columns: [{ attnum: 3, descending: false }] }] },
    ]);
    expect(sqlOf('_rivulet_index_51')).toBe('CREATE INDEX "_rivulet_index_51" ON "people" ("age")');
  });

  test('an index may cover a dropped column in one step with it', () => {
    change([
      {
        ...base,
        columns: [id, { ...age, attnum: 3 }],
        indexes: [{ oid: 52, name: 'x', unique: false, columns: [{ attnum: 3, descending: false }] }],
      },
    ]);
    expect(indexes('users')).toEqual(['_rivulet_index_52']);
  });

  test('all columns replaced, all columns gone: the rows still count', () => {
    change([{ oid: 1, name: 'users', replicaIdentity: 'full', columns: [{ name: 'x', attnum: 9 }] }]);
    expect(all('SELECT x FROM users')).toEqual([[null], [null]]);
    change([{ oid: 1, name: 'users', replicaIdentity: 'full', columns: [] }]);
    apply({ delete: 1, old: [] });
    expect(all('SELECT count(*) FROM users')).toEqual([[1]]);
    change([{ oid: 1, name: 'users', replicaIdentity: 'full', columns: [{ name: 'y', attnum: 10 }] }]);
    expect(all('SELECT y FROM users')).toEqual([[null]]);
  });

  test('a new key column whose values only Postgres knows waits until the rows are read again', () => {
    const { key: _, ...plainId } = id;
    const changed = {
      ...base,
      columns: [plainId, name, age, { name: 'serial', mapping: 'int' as const, key: 1 }],
    };
    change([changed]);
    expect(all('SELECT id, name, age, serial FROM users')).toEqual([
      [1, 'ann', 30, null],
      [2, 'bob', 40, null],
    ]);
    apply({ truncate: 1 }, { insert: 1, row: [1, 'ann', 30, 11] }, { insert: 1, row: [2, 'bob', 40, 12] });
    expect(sqlOf('users')).toContain('"serial" INTEGER PRIMARY KEY');
    apply({ update: 1, row: [1, 'ann', 31, 11] });
    expect(all('SELECT age FROM users WHERE serial = 11')).toEqual([[31]]);
    expect(new Map(applier.layouts)).toEqual(readLayouts(db));
  });

  test('a key over a column that is still NULL makes no values up', () => {
    const { key: _, ...plainId } = id;
    const columns = [plainId, name, age, { name: 'serial', mapping: 'int' as const }];
    change([{ ...base, replicaIdentity: 'full', columns }]);
    change([{ ...base, columns: [plainId, name, age, { name: 'serial', mapping: 'int', key: 1 }] }]);
    expect(all('SELECT id, serial FROM users')).toEqual([
      [1, null],
      [2, null],
    ]);
  });

  test('all of it is undone with its transaction', () => {
    const before = all('SELECT type, name, sql FROM sqlite_schema ORDER BY name');
    expect(() =>
      apply(
        {
          schema: {
            changed: [testRelation({ ...base, name: 'other', columns: [id, { ...name, name: 'n' }] })],
            dropped: [],
          },
        },
        { update: 1, row: [99, 'x'] },
      ),
    ).toThrow(expect.objectContaining({ code: 'ROW_MISSING' }));
    expect(all('SELECT type, name, sql FROM sqlite_schema ORDER BY name')).toEqual(before);
    apply({ update: 1, row: [1, 'x', 1] });
    expect(all('SELECT * FROM users WHERE id = 1')).toEqual([[1, 'x', 1]]);
  });
});

describe("the readers' own objects", () => {
  beforeEach(() => {
    start(testRelation(base));
    apply({ insert: 1, row: [1, 'ann', 30] });
  });

  test('a view on a dropped column goes, with a notice; others stay', () => {
    db.exec('CREATE VIEW ages AS SELECT age FROM users; CREATE VIEW names AS SELECT name FROM users');
    change([{ ...base, columns: base.columns.slice(0, 2) }]);
    expect(notices).toEqual(['view ages']);
    expect(all('SELECT * FROM names')).toEqual([['ann']]);
  });

  test('an index and a trigger on a dropped column go', () => {
    db.exec(
      'CREATE INDEX mine ON users (age); CREATE TRIGGER tr AFTER UPDATE OF age ON users BEGIN SELECT new.age; END',
    );
    change([{ ...base, columns: base.columns.slice(0, 2) }]);
    expect(notices.toSorted()).toEqual(['index mine', 'trigger tr']);
  });

  test('a rebuilt table keeps those that still make sense', () => {
    db.exec(
      'CREATE INDEX mine ON users (name); CREATE INDEX expr ON users (age + 1); CREATE VIEW v AS SELECT name FROM users',
    );
    const columns = [{ name: 'id', mapping: 'text' as const, key: 1 }, { name: 'name' }];
    change([{ ...base, columns }]);
    expect(indexes('users')).toEqual(['_rivulet_index_50', 'mine']);
    expect(notices).toEqual(['index expr']);
    expect(all('SELECT * FROM v')).toEqual([['ann']]);
  });

  test('a broken view does not stop a rename', () => {
    db.exec('CREATE VIEW v AS SELECT name FROM users; CREATE VIEW broken AS SELECT what FROM nowhere');
    change([{ ...base, name: 'people' }]);
    expect(all('SELECT name FROM people')).toEqual([['ann']]);
  });

  test('a new table leaves a table or view of the same name alone', () => {
    db.exec('CREATE TABLE Notes (x); CREATE VIEW report AS SELECT 1');
    change([
      { oid: 2, name: 'notes', columns: [{ name: 'id' }] },
      { oid: 3, name: 'report', columns: [{ name: 'id' }] },
    ]);
    const names = all('SELECT sqlite_name FROM _rivulet_table WHERE relation_oid > 1').flat();
    expect(names).toEqual([expect.stringMatching(/^notes__/), expect.stringMatching(/^report__/)]);
  });

  test('foreign keys of theirs do not act on replicated rows', () => {
    db.exec(
      'CREATE TABLE mine (user_id INTEGER REFERENCES users (id) ON DELETE CASCADE); INSERT INTO mine VALUES (1)',
    );
    db.pragma('foreign_keys = OFF');
    apply({ delete: 1, key: [1] });
    change([], [1]);
    expect(all('SELECT * FROM mine')).toEqual([[1]]);
  });
});
