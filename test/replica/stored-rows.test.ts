import Database from 'better-sqlite3';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { CHANGE_HEADER_BYTES, PART_HEADER_BYTES, TRANSACTION_HEADER_BYTES } from '../../src/change/frame.ts';
import type { ScalarMapping } from '../../src/change/relation.ts';
import { Applier } from '../../src/replica/applier.ts';
import { RowMender } from '../../src/replica/row-mender.ts';
import { createReplicaSchema, readLayouts } from '../../src/replica/schema.ts';
import { StoredRows } from '../../src/replica/stored-rows.ts';
import { CopyEncoder } from '../../src/source/copy-encoder.ts';
import { testRelation, transactionFrame } from '../helpers/frames.ts';

const meta = { epoch: 'e', position: 0n, commitTimeUs: null, systemIdentifier: '1', databaseName: 'd' };

/** What Postgres prints, by mapping; null for NULL. */
const SAMPLES: Record<ScalarMapping, readonly string[]> = {
  bool: ['t', 'f'],
  int: ['0', '-1', '2147483647', '2147483648', '-2147483649', '9007199254740993', '-9223372036854775808'],
  float: [
    '0',
    '-0',
    '1',
    '0.1',
    '5e-324',
    '1.7976931348623157e+308',
    'Infinity',
    '-Infinity',
    'NaN',
    '1e+16',
  ],
  numeric: [
    '0',
    '1.50',
    '0.1',
    '9223372036854775807',
    '9223372036854775808',
    '1.234567890123456789',
    'NaN',
    '-5',
  ],
  text: [
    '',
    'a',
    'é',
    '\ufffd',
    '𝄞',
    '\ufeffb',
    'x'.repeat(239),
    'x'.repeat(240),
    'ü'.repeat(130),
    'y'.repeat(70_000),
  ],
  json: ['{"a": 1.0, "a": 2}', '"\\\\u0000"'],
  bytea: ['\\x', '\\x00ff', `\\x${'ab'.repeat(300)}`],
  date: ['2026-11-21', 'infinity', '4713-01-01 BC'],
  timestamp: ['2026-11-21 03:00:00', '2026-11-21 03:00:00.5', '294276-12-31 23:59:59.999999', '-infinity'],
  timestamptz: ['2026-11-21 03:00:00.123456+00', '0044-03-15 12:00:00+00 BC'],
};

const MAPPINGS = Object.keys(SAMPLES) as ScalarMapping[];
const relation = testRelation({
  oid: 1,
  name: 'everything',
  replicaIdentity: 'full',
  columns: MAPPINGS.map((mapping) => ({ name: mapping, mapping })),
});

const value = (mapping: ScalarMapping): fc.Arbitrary<string | null> =>
  fc.option(
    mapping === 'text'
      ? fc.oneof(
          fc.constantFrom(...SAMPLES.text),
          fc.string({ unit: 'binary' }).filter((text) => !text.includes('\0')),
        )
      : fc.constantFrom(...SAMPLES[mapping]),
    { freq: 6 },
  );
const row = fc.tuple(...MAPPINGS.map(value));

function copyText(values: readonly (string | null)[]): Buffer {
  const escaped = (text: string): string =>
    text.replaceAll('\\', '\\\\').replaceAll('\t', '\\t').replaceAll('\n', '\\n').replaceAll('\r', '\\r');
  return Buffer.from(`${values.map((each) => (each === null ? '\\N' : escaped(each))).join('\t')}\n`);
}

/** The tuples that the initial copy makes of these rows. */
function tuplesOf(rows: readonly (readonly (string | null)[])[]): Buffer[] {
  return rows.map((each) => {
    const encoder = new CopyEncoder(relation, 1);
    const text = copyText(each);
    encoder.push(text, 0, text.length);
    return encoder.take().subarray(PART_HEADER_BYTES + CHANGE_HEADER_BYTES);
  });
}

function replicaWith(tuples: readonly Buffer[]): Database.Database {
  const db = new Database(':memory:');
  createReplicaSchema(db, [relation], meta);
  const changes = tuples.map((tuple) => {
    const header = Buffer.alloc(CHANGE_HEADER_BYTES);
    header[0] = 1;
    header.writeUInt32LE(1, 1);
    header.writeUInt32LE(tuple.length, 5);
    return Buffer.concat([header, tuple]);
  });
  const frame = transactionFrame({ endLsn: 8n, changes: [] }).subarray(0, TRANSACTION_HEADER_BYTES);
  const whole = Buffer.concat([frame, ...changes]);
  whole.writeUInt32LE(whole.length, 0);
  new Applier(db).apply(whole);
  return db;
}

function stored(db: Database.Database): Buffer[] {
  const rows = new StoredRows(db, readLayouts(db).get(1)!);
  const found: Buffer[] = [];
  rows.read(
    () => found.push(Buffer.from(rows.bytes.subarray(0, rows.end))),
    () => found.splice(0),
  );
  return found;
}

const sorted = (buffers: readonly Buffer[]): string[] =>
  buffers.map((each) => each.toString('latin1')).sort();

test('what the copy writes is read back byte by byte', () => {
  fc.assert(
    fc.property(fc.array(row, { maxLength: 10 }), (rows) => {
      const tuples = tuplesOf(rows);
      const db = replicaWith(tuples);
      try {
        expect(sorted(stored(db))).toEqual(sorted(tuples));
      } finally {
        db.close();
      }
    }),
  );
});

test('another storage class, or other bytes, are another tuple', () => {
  const db = new Database(':memory:');
  createReplicaSchema(
    db,
    [testRelation({ oid: 1, name: 't', columns: [{ name: 'n', mapping: 'numeric' }] })],
    meta,
  );
  const seen = new Set<string>();
  const literals = [
    '1',
    '1.0',
    "'1'",
    "x'31'",
    'NULL',
    "''",
    "x''",
    '0.0',
    '-0.0',
    '0',
    "cast(x'ff' as text)",
    "cast(x'efbfbd' as text)",
  ];
  for (const literal of literals) {
    db.exec(`delete from t; insert into t values (${literal})`);
    seen.add(stored(db)[0]!.toString('latin1'));
  }
  expect(seen.size).toBe(literals.length);
  db.close();
});

test('mending takes out exactly what was found, and puts in what is wanted', () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(row, { minLength: 2, maxLength: 6, selector: (each) => JSON.stringify(each) }),
      (rows) => {
        const tuples = tuplesOf(rows);
        const [wanted, ...there] = tuples;
        const db = replicaWith(there);
        try {
          const mender = new RowMender(db, readLayouts(db).get(1)!);
          if (!there.some((tuple) => tuple.equals(wanted!))) {
            expect(mender.mend(wanted!, there[0]!)).toBe(false);
            expect(sorted(stored(db))).toEqual(sorted(there));
          }
          expect(mender.mend(there[0]!, wanted!)).toBe(true);
          expect(sorted(stored(db))).toEqual(sorted([wanted!, ...there.slice(1)]));
          expect(mender.mend(null, there[0]!)).toBe(true);
          expect(mender.mend(wanted!, null)).toBe(true);
          expect(sorted(stored(db))).toEqual(sorted(there));
        } finally {
          db.close();
        }
      },
    ),
  );
});

test('mending takes out text that is no UTF-8, and refuses a row whose key is taken', () => {
  const db = new Database(':memory:');
  const keyed = testRelation({
    oid: 1,
    name: 't',
    columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'v' }],
  });
  createReplicaSchema(db, [keyed], meta);
  db.exec("insert into t values (1, cast(x'fffe' as text)), (2, 'b')");
  const [broken, other] = stored(db);
  const mender = new RowMender(db, readLayouts(db).get(1)!);
  expect(mender.mend(null, other!)).toBe(false);
  expect(mender.mend(broken!, other!)).toBe(false);
  expect(stored(db)).toHaveLength(2);
  expect(mender.mend(broken!, null)).toBe(true);
  expect(sorted(stored(db))).toEqual(sorted([other!]));
  db.close();
});

test('sixteen hundred columns, of which one is no UTF-8', () => {
  const db = new Database(':memory:');
  const wide = testRelation({
    oid: 1,
    name: 't',
    replicaIdentity: 'full',
    columns: Array.from({ length: 1600 }, (_, index) => ({ name: `c${index}`, mapping: 'numeric' as const })),
  });
  createReplicaSchema(db, [wide], meta);
  const values = wide.columns.map((_, index) =>
    index === 7
      ? "cast(x'ff00fe' as text)"
      : ['1', '1.5', "'t'", "x'0074ff'", 'NULL', "x''", "''"][index % 7],
  );
  db.exec(`insert into t values (${values.join(', ')})`);
  const [row] = stored(db);
  const mender = new RowMender(db, readLayouts(db).get(1)!);
  expect(mender.mend(row!, null)).toBe(true);
  expect(stored(db)).toEqual([]);
  db.close();
});
