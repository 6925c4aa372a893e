import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { abortFrame, positionFrame } from '../../src/change/frame.ts';
import type { Relation } from '../../src/change/relation.ts';
import { Applier } from '../../src/replica/applier.ts';
import { configureForApplying } from '../../src/replica/replica-file.ts';
import { createIndexes, createReplicaSchema } from '../../src/replica/schema.ts';
import {
  COMMIT_TIME_US,
  partFrame,
  real,
  type TestChange,
  testRelation,
  transactionFrame,
  UNCHANGED,
} from '../helpers/frames.ts';

const USERS = 100;
const LOG = 200;
const PAIRS = 300;
const SHIFT = 400;
const VALUES = 500;
const EMPTY = 600;

const relations: readonly Relation[] = [
  testRelation({
    oid: USERS,
    name: 'users',
    columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'name' }, { name: 'bio' }],
  }),
  testRelation({
    oid: LOG,
    name: 'log',
    replicaIdentity: 'full',
    columns: [{ name: 'rowid', mapping: 'int' }, { name: 'oid' }, { name: '_rowid_', mapping: 'float' }],
  }),
  testRelation({
    oid: PAIRS,
    schema: 'shop',
    name: 'pairs',
    columns: [{ name: 'note' }, { name: 'b', key: 2 }, { name: 'a', mapping: 'numeric', key: 1 }],
  }),
  testRelation({
    oid: SHIFT,
    name: 'shift',
    replicaIdentity: 'full',
    keyIsDeferrable: true,
    columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'v' }],
  }),
  testRelation({
    oid: VALUES,
    name: 'values',
    columns: [
      { name: 'id', mapping: 'int', key: 1 },
      { name: 'int', mapping: 'int' },
      { name: 'num', mapping: 'numeric' },
      { name: 'float', mapping: 'float' },
      { name: 'bytes', mapping: 'bytea' },
      { name: 'text' },
      { name: 'flag', mapping: 'bool' },
    ],
  }),
  testRelation({ oid: EMPTY, name: 'empty', replicaIdentity: 'full', columns: [] }),
];

let directory: string;
let db: Database.Database;
let reader: Database.Database;
let applier: Applier;
let lsn: bigint;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'rivulet-applier-'));
  db = new Database(join(directory, 'replica.db'));
  configureForApplying(db);
  const layouts = createReplicaSchema(db, relations, {
    epoch: 'epoch1',
    position: 0x100n,
    commitTimeUs: null,
    systemIdentifier: '7300000000000000000',
    databaseName: 'app',
  });
  for (const layout of layouts) createIndexes(db, layout);
  reader = new Database(join(directory, 'replica.db'), { readonly: true });
  applier = new Applier(db);
  lsn = 0x1000n;
});

afterEach(() => {
  reader.close();
  db.close();
  rmSync(directory, { recursive: true });
});

function transaction(...changes: TestChange[]): Buffer {
  lsn += 0x100n;
  return transactionFrame({ endLsn: lsn, changes });
}

function apply(...changes: TestChange[]) {
  return applier.apply(transaction(...changes));
}

function rows(sql: string): unknown[] {
  return reader.prepare(sql).raw().all();
}

const users = () => rows('SELECT id, name, bio FROM users ORDER BY id');

describe('transactions', () => {
  test('several in one buffer become visible at once, with the position', () => {
    const batch = applier.apply(
      Buffer.concat([
        transaction({ insert: USERS, row: [1, 'a', null] }),
        transaction({ insert: USERS, row: [2, 'b', 'x'] }, { insert: LOG, row: [1, 'l', 0.5] }),
      ]),
    );
    expect(users()).toEqual([
      [1, 'a', null],
      [2, 'b', 'x'],
    ]);
    expect(batch).toEqual({
      position: lsn,
      settled: lsn,
      commitTimeUs: COMMIT_TIME_US,
      transactions: 2,
      changes: 3,
      tables: ['users', 'log'],
      schemaChanged: false,
    });
    expect(rows('SELECT epoch, lsn, lsn_int, commit_time FROM _rivulet_position')).toEqual([
      ['epoch1', '0/1200', 0x1200, '2026-11-21 03:00:00.123456Z'],
    ]);
  });

  test('what is contained already changes nothing', () => {
    const frame = transaction({ insert: USERS, row: [1, 'a', null] });
    applier.apply(frame);
    expect(applier.apply(frame).transactions).toBe(0);
    expect(new Applier(db).apply(frame)).toMatchObject({ transactions: 0, position: lsn });
    expect(users()).toHaveLength(1);
  });

  test('back to back: the next transaction begins where the one before ends', () => {
    applier.apply(transactionFrame({ endLsn: 0x2000n, changes: [{ insert: USERS, row: [1, 'a', null] }] }));
    applier.apply(transactionFrame({ endLsn: 0x2008n, changes: [{ insert: USERS, row: [2, 'a', null] }] }));
    expect(users()).toHaveLength(2);
  });

  test('an error leaves everything as it was, and the applier usable', () => {
    apply({ insert: USERS, row: [1, 'a', null] });
    const before = applier.position;
    const frames = Buffer.concat([
      transaction({ insert: USERS, row: [2, 'b', null] }),
      transaction({ update: USERS, row: [99, 'x', null] }),
    ]);
    expect(() => applier.apply(frames)).toThrow(
      expect.objectContaining({ code: 'ROW_MISSING', message: expect.stringContaining('id = 99') }),
    );
    expect(applier.position).toBe(before);
    expect(users()).toEqual([[1, 'a', null]]);
    apply({ insert: USERS, row: [2, 'c', null] });
    expect(users()).toHaveLength(2);
  });

  test('a position moves without a transaction, and never back', () => {
    expect(applier.apply(positionFrame(0x5000n, 0n))).toMatchObject({
      position: 0x5000n,
      commitTimeUs: null,
      transactions: 0,
      tables: [],
    });
    applier.apply(positionFrame(0x4000n, 0n));
    expect(rows('SELECT lsn FROM _rivulet_position')).toEqual([['0/5000']]);
  });

  test('nonsense is refused', () => {
    const frame = transaction({ insert: USERS, row: [1, 'a', null] });
    expect(() => applier.apply(frame.subarray(0, frame.length - 1))).toThrow(
      expect.objectContaining({ code: 'PROTOCOL' }),
    );
    expect(() => apply({ insert: USERS, row: [1, 'a'] })).toThrow(
      expect.objectContaining({ code: 'PROTOCOL' }),
    );
    expect(() => apply({ insert: 12345, row: [1] })).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED_SCHEMA_CHANGE' }),
    );
    expect(users()).toEqual([]);
  });

  test('an LSN past 2^63 is kept', () => {
    applier.apply(positionFrame(0xfedc_ba98_7654_3210n, 0n));
    expect(new Applier(db).position).toBe(0xfedc_ba98_7654_3210n);
  });
});

describe('transactions in parts', () => {
  const part = (...changes: TestChange[]) => partFrame(changes);

  test('nobody sees them before their end', () => {
    const whole = transaction({ insert: USERS, row: [1, 'a', null] });
    expect(applier.apply(Buffer.concat([whole, part({ insert: USERS, row: [2, 'b', null] })]))).toMatchObject(
      { transactions: 1, position: lsn },
    );
    expect(applier.hasOpenParts).toBe(true);
    expect(users()).toHaveLength(1);
    applier.apply(part({ update: USERS, row: [2, 'c', UNCHANGED] }, { insert: LOG, row: [1, 'l', 1.5] }));
    applier.apply(positionFrame(lsn, 0n));
    expect(users()).toHaveLength(1);
    const batch = applier.apply(
      transactionFrame({
        endLsn: 0x9000n,
        hasParts: true,
        changes: [{ insert: USERS, row: [3, 'd', null] }],
      }),
    );
    expect(batch).toMatchObject({ transactions: 1, changes: 4, position: 0x9000n, tables: ['users', 'log'] });
    expect(users()).toEqual([
      [1, 'a', null],
      [2, 'c', null],
      [3, 'd', null],
    ]);
  });

  test('an abort forgets them, a schema change in them too', () => {
    apply({ insert: USERS, row: [1, 'a', null] });
    applier.apply(
      part(
        { update: USERS, row: [1, 'z', 'z'] },
        {
          schema: {
            changed: [testRelation({ oid: 7, name: 'new', columns: [{ name: 'a' }] })],
            dropped: [LOG],
          },
        },
      ),
    );
    applier.apply(abortFrame(700));
    expect(applier.hasOpenParts).toBe(false);
    expect(users()).toEqual([[1, 'a', null]]);
    apply({ insert: LOG, row: [1, 'l', 1.5] });
    expect(() => apply({ insert: 7, row: ['x'] })).toThrow();
  });

  test('parts of a transaction that the file contains are no divergence', () => {
    apply(
      { insert: USERS, row: [1, 'a', null] },
      { insert: USERS, row: [2, 'b', null] },
      { delete: USERS, key: [2] },
    );
    const end = lsn;
    applier.apply(part({ insert: USERS, row: [1, 'a', null] }));
    applier.apply(part({ insert: USERS, row: [2, 'b', null] }, { delete: USERS, key: [2] }));
    applier.apply(transactionFrame({ endLsn: end, hasParts: true, changes: [] }));
    expect(applier.hasOpenParts).toBe(false);
    apply({ insert: USERS, row: [3, 'c', null] });
    expect(users()).toHaveLength(2);
  });

  test('parts of a transaction that it does not contain are', () => {
    applier.apply(part({ delete: USERS, key: [2] }));
    expect(applier.hasOpenParts).toBe(true);
    expect(() => applier.apply(transactionFrame({ endLsn: 0x9000n, hasParts: true, changes: [] }))).toThrow(
      expect.objectContaining({ code: 'ROW_MISSING' }),
    );
    expect(applier.hasOpenParts).toBe(false);
  });

  test('an end without parts, and parts without an end, are refused', () => {
    expect(() => applier.apply(transactionFrame({ endLsn: 0x9000n, hasParts: true, changes: [] }))).toThrow(
      /parts/,
    );
    applier.apply(part({ insert: USERS, row: [1, 'a', null] }));
    expect(() => apply({ insert: USERS, row: [2, 'a', null] })).toThrow(/parts/);
    expect(users()).toEqual([]);
  });
});

describe('rows with a key', () => {
  test('insert, update, delete', () => {
    apply({ insert: USERS, row: [1, 'a', null] }, { insert: USERS, row: [2, 'b', null] });
    apply({ update: USERS, row: [1, 'aa', 'new'] }, { delete: USERS, key: [2] });
    expect(users()).toEqual([[1, 'aa', 'new']]);
  });

  test('unchanged values stay, whatever the batch knows of the row', () => {
    apply({ insert: USERS, row: [1, 'a', 'long'] }, { update: USERS, row: [1, 'b', UNCHANGED] });
    expect(users()).toEqual([[1, 'b', 'long']]);
    apply({ update: USERS, row: [1, UNCHANGED, 'longer'] }, { update: USERS, row: [1, 'c', UNCHANGED] });
    expect(users()).toEqual([[1, 'c', 'longer']]);
    apply({ update: USERS, row: [1, 'd', UNCHANGED] });
    apply({ update: USERS, row: [1, UNCHANGED, UNCHANGED] });
    expect(users()).toEqual([[1, 'd', 'longer']]);
  });

  test('a key change with an unchanged value keeps the value', () => {
    apply({ insert: USERS, row: [1, 'a', 'long'] });
    apply({ update: USERS, key: [1], row: [5, 'b', UNCHANGED] }, { insert: USERS, row: [1, 'again', null] });
    expect(users()).toEqual([
      [1, 'again', null],
      [5, 'b', 'long'],
    ]);
    apply({ insert: USERS, row: [7, 'x', 'toast'] }, { update: USERS, key: [7], row: [8, 'y', UNCHANGED] });
    expect(rows('SELECT name, bio FROM users WHERE id = 8')).toEqual([['y', 'toast']]);
  });

  test('keys that move on to each other, and old keys used again', () => {
    apply(...[1, 2, 3].map((id): TestChange => ({ insert: USERS, row: [id, `n${id}`, null] })));
    // id = id + 1 from the top, then 1 is free again; a swap through a third key.
    apply(
      { update: USERS, key: [3], row: [4, 'n3', null] },
      { update: USERS, key: [2], row: [3, 'n2', null] },
      { update: USERS, key: [1], row: [2, 'n1', null] },
      { insert: USERS, row: [1, 'new', null] },
      { update: USERS, key: [4], row: [99, 'n3', null] },
      { update: USERS, key: [3], row: [4, 'n2', null] },
      { update: USERS, key: [99], row: [3, 'n3', null] },
    );
    expect(users()).toEqual([
      [1, 'new', null],
      [2, 'n1', null],
      [3, 'n3', null],
      [4, 'n2', null],
    ]);
  });

  test('deleted and inserted again, inserted and deleted', () => {
    apply({ insert: USERS, row: [1, 'a', 'b'] });
    apply(
      { delete: USERS, key: [1] },
      { insert: USERS, row: [1, 'c', null] },
      { insert: USERS, row: [2, 'x', null] },
      { delete: USERS, key: [2] },
    );
    expect(users()).toEqual([[1, 'c', null]]);
  });

  test('composite keys, numeric among them, in the order of the table', () => {
    apply(
      { insert: PAIRS, row: ['n', 'x', 1] },
      { insert: PAIRS, row: ['m', 'x', real(1.5)] },
      { insert: PAIRS, row: ['o', 'x', '12345678901234567890.5'] },
    );
    apply(
      { update: PAIRS, row: ['n2', 'x', 1] },
      { update: PAIRS, key: ['x', real(1.5)], row: ['m2', 'y', real(1.5)] },
      { delete: PAIRS, key: ['x', '12345678901234567890.5'] },
    );
    expect(rows('SELECT note, b, a, typeof(a) FROM "shop.pairs" ORDER BY b')).toEqual([
      ['n2', 'x', 1, 'integer'],
      ['m2', 'y', 1.5, 'real'],
    ]);
  });

  test('contradictions are divergence: nothing is written over silently', () => {
    apply({ insert: USERS, row: [1, 'a', null] });
    const diverges = (...changes: TestChange[]): void => {
      expect(() => apply(...changes)).toThrow(
        expect.objectContaining({ code: 'ROW_MISSING', facts: expect.objectContaining({ table: 'users' }) }),
      );
      expect(users()).toEqual([[1, 'a', null]]);
    };
    diverges({ insert: USERS, row: [1, 'b', null] });
    diverges({ update: USERS, row: [2, 'b', null] });
    diverges({ update: USERS, row: [2, 'b', UNCHANGED] });
    diverges({ delete: USERS, key: [2] });
    diverges({ update: USERS, key: [2], row: [3, 'b', null] });
    diverges({ update: USERS, key: [2], row: [3, 'b', UNCHANGED] });
    diverges({ insert: USERS, row: [2, 'b', null] }, { insert: USERS, row: [2, 'c', null] });
    diverges(
      { insert: USERS, row: [2, 'b', null] },
      { delete: USERS, key: [2] },
      { update: USERS, row: [2, 'c', null] },
    );
    diverges({ update: USERS, row: [1, 'b', null] }, { insert: USERS, row: [1, 'c', null] });
    diverges(...Array.from({ length: 40 }, (_, id): TestChange => ({ delete: USERS, key: [id + 1] })));
  });

  test('many rows at once take the multi-row statements', () => {
    const ids = Array.from({ length: 250 }, (_, index) => index + 1);
    apply(...ids.map((id): TestChange => ({ insert: USERS, row: [id, `n${id}`, null] })));
    expect(rows('SELECT count(*), sum(id) FROM users')).toEqual([[250, 31375]]);
    apply(...ids.toReversed().map((id): TestChange => ({ update: USERS, row: [id, `m${id}`, null] })));
    expect(rows("SELECT count(*) FROM users WHERE name = 'm' || id")).toEqual([[250]]);
    apply(...ids.filter((id) => id % 2 === 0).map((id): TestChange => ({ delete: USERS, key: [id] })));
    expect(rows('SELECT count(*), sum(id) FROM users')).toEqual([[125, 15625]]);
  });

  test('a key whose bytes change while SQLite takes both for equal', () => {
    const columns = [{ name: 'k', mapping: 'float' as const, key: 1 }, { name: 'v' }];
    apply({ schema: { changed: [testRelation({ oid: 9, name: 'f', columns })], dropped: [] } });
    apply({ insert: 9, row: [real(-0), 'a'] });
    apply({ update: 9, key: [real(-0)], row: [real(0), 'b'] });
    expect(rows('SELECT k, v FROM f')).toEqual([[0, 'b']]);
  });

  test('truncate, with rows before and behind it', () => {
    apply({ insert: USERS, row: [1, 'a', null] }, { insert: LOG, row: [1, 'x', null] });
    apply(
      { insert: USERS, row: [2, 'b', null] },
      { truncate: USERS },
      { truncate: LOG },
      { insert: USERS, row: [1, 'c', null] },
    );
    expect(users()).toEqual([[1, 'c', null]]);
    expect(rows('SELECT count(*) FROM log')).toEqual([[0]]);
  });

  test('replica identity full with a key: unchanged values come from the old row', () => {
    const relation = testRelation({
      oid: 9,
      name: 'f',
      replicaIdentity: 'full',
      columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'v' }, { name: 'w' }],
    });
    apply(
      { schema: { changed: [relation], dropped: [] } },
      { insert: 9, row: [1, 'a', 'long'] },
      { insert: 9, row: [2, 'b', 'long2'] },
    );
    apply(
      { update: 9, old: [1, 'a', 'long'], row: [1, 'aa', UNCHANGED] },
      { update: 9, old: [1, 'aa', 'long'], row: [3, 'aaa', UNCHANGED] },
      { delete: 9, old: [2, 'b', 'long2'] },
    );
    expect(rows('SELECT * FROM f')).toEqual([[3, 'aaa', 'long']]);
    expect(() => apply({ delete: 9, old: [2, 'b', 'long2'] })).toThrow(
      expect.objectContaining({ code: 'ROW_MISSING' }),
    );
  });

  test('an identity index other than the key', () => {
    const relation = testRelation({
      oid: 9,
      name: 'x',
      replicaIdentity: 'index',
      columns: [
        { name: 'id', mapping: 'int', key: 1, identity: false },
        { name: 'code', identity: true },
        { name: 'v' },
      ],
    });
    apply(
      { schema: { changed: [relation], dropped: [] } },
      { insert: 9, row: [1, 'A', 'a'] },
      { insert: 9, row: [2, 'B', 'b'] },
    );
    // The primary key moves under an identity that stays: 2 is freed before 1 takes it.
    apply(
      { update: 9, row: [3, 'B', 'b'] },
      { update: 9, row: [2, 'A', 'a'] },
      { update: 9, key: ['B'], row: [3, 'C', UNCHANGED] },
    );
    expect(rows('SELECT * FROM x ORDER BY id')).toEqual([
      [2, 'A', 'a'],
      [3, 'C', 'b'],
    ]);
    apply({ delete: 9, key: ['A'] }, { insert: 9, row: [2, 'D', 'd'] }, { delete: 9, key: ['D'] });
    expect(rows('SELECT * FROM x')).toEqual([[3, 'C', 'b']]);
  });
});

describe('rows without a key', () => {
  const log = () => rows('SELECT * FROM log ORDER BY 1, 2, 3');

  test('one row per change among equal ones, NULL found by NULL', () => {
    apply(
      { insert: LOG, row: [1, null, 0.5] },
      { insert: LOG, row: [1, null, 0.5] },
      { insert: LOG, row: [1, null, null] },
    );
    apply({ delete: LOG, old: [1, null, 0.5] }, { update: LOG, old: [1, null, null], row: [2, 'x', null] });
    expect(log()).toEqual([
      [1, null, 0.5],
      [2, 'x', null],
    ]);
  });

  test('rows that become each other', () => {
    apply({ insert: LOG, row: [1, 'x', null] }, { insert: LOG, row: [2, 'x', null] });
    apply(
      { update: LOG, old: [1, 'x', null], row: [2, 'x', null] },
      { update: LOG, old: [2, 'x', null], row: [3, 'x', null] },
    );
    expect(log()).toEqual([
      [2, 'x', null],
      [3, 'x', null],
    ]);
  });

  test('a row of the same batch', () => {
    apply(
      { insert: LOG, row: [1, 'a', null] },
      { update: LOG, old: [1, 'a', null], row: [2, UNCHANGED, null] },
      { delete: LOG, old: [2, 'a', null] },
      { insert: LOG, row: [3, 'b', null] },
    );
    expect(log()).toEqual([[3, 'b', null]]);
  });

  test('a row that is not there is divergence', () => {
    apply({ insert: LOG, row: [1, 'a', null] });
    expect(() => apply({ delete: LOG, old: [1, 'b', null] })).toThrow(
      expect.objectContaining({ code: 'ROW_MISSING' }),
    );
    expect(() => apply({ update: LOG, old: [1, 'a', 0.5], row: [1, 'b', null] })).toThrow(
      expect.objectContaining({ code: 'ROW_MISSING' }),
    );
    expect(log()).toHaveLength(1);
  });

  test('0 and -0 are two values', () => {
    apply({ insert: LOG, row: [1, 'z', real(0)] }, { insert: LOG, row: [1, 'z', real(-0)] });
    apply({ delete: LOG, old: [1, 'z', real(0)] });
    const left = reader.prepare('SELECT _rowid_ FROM log').pluck().all();
    expect(left).toEqual([-0]);
  });

  test('an index is made for them with the first update or delete, not before', () => {
    const indexes = () => rows("SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'log'");
    apply({ insert: LOG, row: [1, 'a', null] });
    expect(indexes()).toEqual([]);
    apply({ delete: LOG, old: [1, 'a', null] });
    expect(indexes()).toEqual([[`_rivulet_lookup_${LOG}`]]);
  });

  test('a deferrable key may be violated on the way', () => {
    apply({ insert: SHIFT, row: [1, 'a'] }, { insert: SHIFT, row: [2, 'b'] });
    apply({ update: SHIFT, old: [1, 'a'], row: [2, 'a'] }, { update: SHIFT, old: [2, 'b'], row: [3, 'b'] });
    expect(rows('SELECT * FROM shift ORDER BY id')).toEqual([
      [2, 'a'],
      [3, 'b'],
    ]);
  });

  test('a table without columns', () => {
    apply({ insert: EMPTY, row: [] }, { insert: EMPTY, row: [] }, { insert: EMPTY, row: [] });
    apply({ delete: EMPTY, old: [] });
    expect(rows('SELECT count(*) FROM empty')).toEqual([[2]]);
  });
});

describe('values', () => {
  test('each in its storage class, bit for bit', () => {
    const text = '\uFEFF€ \u{1F600} "quoted" \uFFFF';
    const blob = Buffer.from([0, 255, 128]);
    apply(
      { insert: VALUES, row: [1, 2n ** 63n - 1n, 2n ** 53n + 1n, real(1), blob, text, 1] },
      { insert: VALUES, row: [2, -(2n ** 63n), 7, real(-0), Buffer.alloc(0), '', 0] },
      {
        insert: VALUES,
        row: [3, 9007199254740991, real(0.1), real(Number.POSITIVE_INFINITY), null, 'x'.repeat(70_000), null],
      },
      { insert: VALUES, row: [4, -9007199254740993n, '1.00000000000000000001', 'NaN', null, '007', 1] },
      { insert: VALUES, row: [5, 5_000_000_000, 'Infinity', real(5e-324), null, '1e5', 1] },
    );
    const db2 = reader
      .prepare('SELECT *, typeof("int") t1, typeof(num) t2, typeof("float") t3 FROM "values" ORDER BY id')
      .safeIntegers();
    expect(db2.raw().all()).toEqual([
      [1n, 2n ** 63n - 1n, 2n ** 53n + 1n, 1, blob, text, 1n, 'integer', 'integer', 'real'],
      [2n, -(2n ** 63n), 7n, -0, Buffer.alloc(0), '', 0n, 'integer', 'integer', 'real'],
      [
        3n,
        9007199254740991n,
        0.1,
        Number.POSITIVE_INFINITY,
        null,
        'x'.repeat(70_000),
        null,
        'integer',
        'real',
        'real',
      ],
      [4n, -9007199254740993n, '1.00000000000000000001', 'NaN', null, '007', 1n, 'integer', 'text', 'text'],
      [5n, 5_000_000_000n, 'Infinity', 5e-324, null, '1e5', 1n, 'integer', 'text', 'real'],
    ]);
  });

  test('the widest table', () => {
    const columns = Array.from({ length: 1600 }, (_, index) => ({
      name: `c${index}`,
      mapping: 'int' as const,
      ...(index === 1599 ? { key: 1 } : {}),
    }));
    apply({ schema: { changed: [testRelation({ oid: 9, name: 'wide', columns })], dropped: [] } });
    apply(...[1, 2, 3].map((id): TestChange => ({ insert: 9, row: columns.map(() => id) })));
    apply({ update: 9, row: columns.map((_, index) => (index === 1599 ? 2 : 9)) });
    expect(rows('SELECT c0, c1599 FROM wide ORDER BY c1599')).toEqual([
      [1, 1],
      [9, 2],
      [3, 3],
    ]);
  });
});

describe("the readers' own objects never stop it", () => {
  test('a unique index and a trigger that get in the way are dropped, and reported', () => {
    const notices: string[] = [];
    applier = new Applier(db, { onNotice: ({ type, name }) => notices.push(`${type} ${name}`) });
    db.exec('CREATE UNIQUE INDEX mine ON users (name)');
    apply({ insert: USERS, row: [1, 'a', null] });
    apply({ insert: USERS, row: [2, 'a', null] });
    expect(notices).toEqual(['index mine']);
    db.exec("CREATE TRIGGER stop BEFORE UPDATE ON users BEGIN SELECT raise(ABORT, 'no'); END");
    apply({ update: USERS, row: [2, 'b', null] });
    db.exec('CREATE TRIGGER swallow BEFORE DELETE ON users BEGIN SELECT raise(IGNORE); END');
    apply({ delete: USERS, key: [2] });
    expect(notices).toEqual(['index mine', 'trigger stop', 'trigger swallow']);
    expect(users()).toEqual([[1, 'a', null]]);
  });
});
