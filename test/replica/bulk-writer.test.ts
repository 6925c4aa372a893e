import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import Database from 'better-sqlite3';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { CHANGE } from '../../src/change/frame.ts';
import type { Relation } from '../../src/change/relation.ts';
import { BulkWriter } from '../../src/replica/bulk-writer.ts';
import { PAGE_BYTES, PageFile } from '../../src/replica/page-file.ts';
import { createReplicaSchema, layoutRelations } from '../../src/replica/schema.ts';
import { TableWriter } from '../../src/replica/table-writer.ts';
import { TupleSource } from '../../src/replica/tuple.ts';
import {
  encodeTuple,
  partFrame,
  real,
  type TestRow,
  type TestValue,
  testRelation,
} from '../helpers/frames.ts';

const OID = 7;
const MIN_INT64 = -(2n ** 63n);
const MAX_INT64 = 2n ** 63n - 1n;

const META = {
  epoch: 'e',
  position: 0n,
  commitTimeUs: null,
  systemIdentifier: '1',
  databaseName: 'd',
};

/** One frame of rows that come from one COPY. */
interface Arrival {
  readonly origin: number;
  readonly rows: readonly TestRow[];
}

interface Content {
  /** With rowids, where the table has them. */
  readonly rows: readonly string[];
  readonly payloadBytes: number;
  readonly fileBytes: number;
}

function relationOf(columns: number, key: 'integer' | 'none' | 'text'): Relation {
  const values = Array.from({ length: columns }, (_, index) => ({
    name: `c${index}`,
    mapping: 'numeric' as const,
  }));
  const id = { name: 'id', mapping: key === 'text' ? ('text' as const) : ('int' as const), key: 1 };
  // The key stands in the middle, where its NULL in the record would show if it were counted wrong.
  const half = Math.floor(columns / 2);
  return testRelation({
    oid: OID,
    name: 't',
    columns: key === 'none' ? values : [...values.slice(0, half), id, ...values.slice(half)],
  });
}

/** The content of a file that `fill` has filled, after SQLite has checked it. */
function filled(relation: Relation, fill: (db: Database.Database) => void): Content {
  const directory = mkdtempSync(join(tmpdir(), 'rivulet-bulk-'));
  const file = join(directory, 'file.db');
  const db = new Database(file);
  try {
    db.pragma('journal_mode = OFF');
    db.pragma('synchronous = OFF');
    createReplicaSchema(db, [relation], META);
    fill(db);
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    const hasRowid = db.prepare("SELECT wr FROM pragma_table_list('t')").pluck().get() === 0;
    const rows = db
      .prepare(`SELECT ${hasRowid ? 'rowid, ' : ''}* FROM t ORDER BY 1`)
      .raw()
      .safeIntegers()
      .all()
      .map((row) => (row as unknown[]).map(print).join(' '));
    const payloadBytes = db
      .prepare("SELECT sum(payload) FROM dbstat WHERE name = 't'")
      .pluck()
      .get() as number;
    // The file is an ordinary one: SQLite goes on with it.
    db.exec('DELETE FROM t WHERE rowid % 3 = 0'.replace('rowid', hasRowid ? 'rowid' : 'length(id)'));
    db.exec('VACUUM');
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    return { rows, payloadBytes, fileBytes: statSync(file).size };
  } finally {
    db.close();
    rmSync(directory, { recursive: true });
  }
}

/** Storage class and exact value, short enough to be shown. */
function print(value: unknown): string {
  if (value === null) return 'NULL';
  if (typeof value === 'number') return Object.is(value, -0) ? 'real -0' : `real ${value}`;
  if (typeof value === 'bigint') return `${value}`;
  const bytes = Buffer.from(value as string | Buffer);
  return `${typeof value === 'string' ? 'text' : 'blob'}:${bytes.length}:${crc32(bytes)}`;
}

function inserted(relation: Relation, arrivals: readonly Arrival[]): Content {
  return filled(relation, (db) => {
    const source = new TupleSource();
    const writer = new TableWriter(db, layoutRelations([relation])[0]!, source);
    db.exec('BEGIN');
    for (const row of arrivals.flatMap(({ rows }) => rows)) {
      source.set(encodeTuple(row));
      writer.change(CHANGE.insert, 0);
      writer.flush();
    }
    db.exec('COMMIT');
  });
}

function bulkWritten(relation: Relation, arrivals: readonly Arrival[]): Content {
  return filled(relation, (db) => {
    const writer = new BulkWriter(db, layoutRelations([relation]), { isUtf8: true });
    for (const { origin, rows } of arrivals)
      writer.write(
        partFrame(
          rows.map((row) => ({ insert: OID, row })),
          origin,
        ),
      );
    writer.finish();
  });
}

const integers = fc.oneof(
  fc.bigInt({ min: MIN_INT64, max: MAX_INT64 }),
  fc.bigInt({ min: -300n, max: 300n }),
  // Where SQLite's integers need another byte.
  fc
    .tuple(
      fc.constantFrom(7n, 8n, 15n, 16n, 23n, 24n, 31n, 32n, 47n, 48n, 62n),
      fc.bigInt({ min: -2n, max: 2n }),
    )
    .map(([bits, offset]) => (1n << bits) + offset),
);
const signed = fc.tuple(integers, fc.boolean()).map(([value, isNegative]) => (isNegative ? ~value : value));
const values: fc.Arbitrary<TestValue> = fc.oneof(
  fc.constant(null),
  signed,
  fc.double({ noNaN: true }).map(real),
  fc.constantFrom(0, -0, 1, 5, 1e300, Infinity, -Infinity).map(real),
  fc.string({ unit: 'binary', maxLength: 300 }),
  fc.uint8Array({ maxLength: 300 }),
  // A page's worth, more or less, and more than that.
  fc.integer({ min: 3900, max: 4200 }).map((length) => 'x'.repeat(length)),
  fc.integer({ min: 0, max: 20_000 }).map((length) => Buffer.alloc(length, 7)),
);

function rowsOf(relation: Relation, keys: readonly TestValue[], pool: readonly TestValue[]): TestRow[] {
  let next = 0;
  return keys.map((key) =>
    relation.columns.map((column) => (column.keyOrdinal === null ? pool[next++ % pool.length]! : key)),
  );
}

const compare = (a: bigint, b: bigint): number => (a < b ? -1 : a > b ? 1 : 0);

test('rows that come in the order of their keys are what SQLite would have made of them', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 6 }),
      fc.uniqueArray(signed, { maxLength: 200 }),
      fc.array(values, { minLength: 1, maxLength: 60 }),
      (columns, keys, pool) => {
        const relation = relationOf(columns, 'integer');
        const arrivals = [{ origin: 0, rows: rowsOf(relation, keys.toSorted(compare), pool) }];
        expect(bulkWritten(relation, arrivals)).toEqual(inserted(relation, arrivals));
      },
    ),
    { numRuns: 40, endOnFailure: true },
  );
});

test('rows without a key keep the order in which they come', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 6 }),
      fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 4 }),
      fc.array(values, { minLength: 1, maxLength: 60 }),
      (columns, origins, pool) => {
        const relation = relationOf(columns, 'none');
        const rows = rowsOf(relation, new Array(30).fill(null), pool);
        const arrivals = origins.map((origin) => ({ origin, rows }));
        expect(bulkWritten(relation, arrivals)).toEqual(inserted(relation, arrivals));
      },
    ),
    { numRuns: 20, endOnFailure: true },
  );
});

test('rows in any order, from several ranges at once, are all there', () => {
  const kinds = fc.constantFrom('integer' as const, 'text' as const);
  fc.assert(
    fc.property(
      kinds,
      fc.uniqueArray(signed, { maxLength: 120 }),
      fc.array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 1, max: 20 })), { minLength: 1 }),
      fc.array(values, { minLength: 1, maxLength: 60 }),
      fc.constantFrom('any order', 'ranges', 'rising', 'nearly rising'),
      (kind, keys, cuts, pool, order) => {
        const relation = relationOf(3, kind);
        const sorted = order === 'any order' ? keys : keys.toSorted(compare);
        if (order === 'nearly rising' && sorted.length > 1) sorted.push(sorted.shift()!);
        const rows = rowsOf(relation, kind === 'text' ? sorted.map(String) : sorted, pool);
        const ranges = [0, 1, 2, 3].map((range) =>
          rows.filter((_, index) => Math.floor((index * 4) / rows.length) === range),
        );
        const arrivals: Arrival[] = [];
        for (let cut = 0; ranges.some((range) => range.length > 0); cut++) {
          const [range, count] = cuts[cut % cuts.length]!;
          const first = ranges.findIndex((each) => each.length > 0);
          const from = order === 'ranges' && ranges[range]!.length > 0 ? range : first;
          arrivals.push({ origin: order === 'rising' ? range : from, rows: ranges[from]!.splice(0, count) });
        }
        const { fileBytes: _bulk, ...bulk } = bulkWritten(relation, arrivals);
        const { fileBytes: _plain, ...plain } = inserted(relation, arrivals);
        expect(bulk).toEqual(plain);
      },
    ),
    { numRuns: 60, endOnFailure: true },
  );
});

test('integers of every width, as keys and as values', () => {
  const edges = Array.from({ length: 63 }, (_, bits) =>
    [-2n, -1n, 0n, 1n, 2n].flatMap((offset) => [
      (1n << BigInt(bits)) + offset,
      -(1n << BigInt(bits)) + offset,
    ]),
  );
  const keys = [...new Set([MIN_INT64, MAX_INT64, ...edges.flat()])].toSorted(compare);
  const arrivals = [{ origin: 0, rows: keys.map((key): TestRow => [key, key]) }];
  const relation = relationOf(1, 'integer');
  expect(bulkWritten(relation, arrivals)).toEqual(inserted(relation, arrivals));
});

/** One row for each leaf. */
const leafRows = (from: number, count: number): TestRow[] =>
  Array.from({ length: count }, (_, index) => [BigInt(from + index), 'x'.repeat(3000)]);

test('trees of one, two and three levels, with every number of pages that a page above can have', () => {
  const relation = relationOf(1, 'integer');
  for (const count of [1, 2, 3, 272, 273, 274, 275, 276, 545, 546, 547, 548, 549, 820]) {
    const arrivals = [{ origin: 0, rows: leafRows(1, count) }];
    expect(bulkWritten(relation, arrivals).rows.length).toBe(count);
  }
});

test('ranges of a table become one tree, the small ones among them too', () => {
  const relation = relationOf(1, 'integer');
  for (const counts of [
    [300, 300, 300],
    [1, 300, 2],
    [2, 1, 274],
    [1, 1, 1],
  ]) {
    const ranges = counts.map((count, range) => leafRows(range * 1000, count));
    const arrivals: Arrival[] = [];
    for (let part = 0; part < 3; part++) {
      ranges.forEach((rows, origin) => {
        arrivals.push({ origin, rows: rows.slice((rows.length * part) / 3, (rows.length * (part + 1)) / 3) });
      });
    }
    const keys = bulkWritten(relation, arrivals).rows.map((row) => Number(row.split(' ')[0]));
    expect(keys).toEqual(ranges.flat().map((row) => Number(row[0])));
  }
});

test('tables that SQLite fills share the file with those that it does not', () => {
  const [ours, theirs] = [relationOf(1, 'integer'), { ...relationOf(1, 'text'), oid: OID + 1, name: 'u' }];
  const directory = mkdtempSync(join(tmpdir(), 'rivulet-bulk-'));
  const db = new Database(join(directory, 'file.db'));
  try {
    createReplicaSchema(db, [ours, theirs], META);
    const writer = new BulkWriter(db, layoutRelations([ours, theirs]), { isUtf8: true });
    for (let from = 0; from < 1500; from += 50) {
      writer.write(partFrame(leafRows(from, 50).map((row) => ({ insert: OID, row }))));
      const rows = leafRows(from, 50).map(
        ([key, text]): TestRow => [`${(Number(key) * 7919) % 10_007}`, text!],
      );
      writer.write(partFrame(rows.map((row) => ({ insert: OID + 1, row }))));
    }
    writer.finish();
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    // Pages were taken ahead, and SQLite has put some of its own behind those that were left.
    expect(db.pragma('freelist_count', { simple: true })).toBeGreaterThan(0);
    expect(db.prepare('SELECT count(*), sum(id) FROM t').raw().get()).toEqual([1500, (1499 * 1500) / 2]);
    expect(db.prepare('SELECT count(*) FROM u').raw().get()).toEqual([1500]);
    db.exec('CREATE INDEX i ON u (c0); DELETE FROM t WHERE id % 2');
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
  } finally {
    db.close();
    rmSync(directory, { recursive: true });
  }
});

test('what is not UTF-8 is stored as the stream would have it', () => {
  const relation = relationOf(1, 'integer');
  const frame = partFrame([{ insert: OID, row: [1n, 'a~b'] }]);
  frame[frame.indexOf('~')] = 0xff;
  const { rows } = filled(relation, (db) => {
    const writer = new BulkWriter(db, layoutRelations([relation]), { isUtf8: false });
    writer.write(frame);
    writer.finish();
    expect(db.prepare('SELECT hex(c0) FROM t').pluck().get()).toBe('61EFBFBD62');
  });
  expect(rows.length).toBe(1);
});

test('the page of the bytes that SQLite locks is left out', () => {
  const directory = mkdtempSync(join(tmpdir(), 'rivulet-bulk-'));
  const file = join(directory, 'file.db');
  try {
    new Database(file).exec('CREATE TABLE t (c)').close();
    const lockPage = 0x4000_0000 / PAGE_BYTES + 1;
    const descriptor = openSync(file, 'r+');
    const count = Buffer.alloc(4);
    count.writeUInt32BE(lockPage - 3);
    writeSync(descriptor, count, 0, 4, 28);
    closeSync(descriptor);
    const pages = new PageFile(file, () => undefined);
    const allocated = [1, 2, 3, 4].map(() => pages.allocate());
    pages.close();
    expect(allocated).toEqual([lockPage - 2, lockPage - 1, lockPage + 1, lockPage + 2]);
    expect(statSync(file).size).toBe((lockPage + 2) * PAGE_BYTES);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
