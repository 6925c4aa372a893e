import Database from 'better-sqlite3';
import { keyText } from './table-sums.ts';

export type DifferenceKind = 'different' | 'missing' | 'extra';

/** One row that is not the same on both sides, as tuples of the change format. */
export interface RowDifference {
  readonly id: number;
  readonly kind: DifferenceKind;
  readonly key: Buffer;
  /** What Postgres has; null: no such row. */
  readonly expected: Buffer | null;
  readonly actual: Buffer | null;
  /** How many such rows; more than one only in a table without a key. */
  readonly count: number;
}

export type DifferenceCounts = Record<DifferenceKind, number>;

const COMMIT_EVERY = 20_000;

/**
 * Sorts out the rows of the buckets that differ, and keeps those that do. In a temporary database of SQLite's:
 * a file without a name that takes memory up to its cache only, and goes with the process.
 *
 * First what Postgres has is noted down, then what the file has is crossed off; what is left over on either
 * side is the difference.
 */
export class DifferenceSpool implements Disposable {
  readonly #db: Database.Database;
  readonly #expect: Database.Statement;
  readonly #find: Database.Statement<[Buffer], { row: Buffer; count: number }>;
  readonly #less: Database.Statement<[number, Buffer]>;
  readonly #record: Database.Statement;
  #oid = 0;
  #key: readonly number[] = [];
  #writes = 0;

  constructor() {
    this.#db = new Database('');
    this.#db.pragma('journal_mode = OFF');
    this.#db.pragma('cache_size = -16384');
    this.#db.pragma('temp_store = FILE');
    this.#db.exec(`
      CREATE TABLE expected (key BLOB PRIMARY KEY, row BLOB NOT NULL, count INTEGER NOT NULL) WITHOUT ROWID;
      CREATE TABLE difference (
        id INTEGER PRIMARY KEY, oid INTEGER NOT NULL, kind TEXT NOT NULL,
        key BLOB NOT NULL, expected BLOB, actual BLOB, count INTEGER NOT NULL
      );
      CREATE INDEX of_table ON difference (oid, id);
    `);
    this.#expect = this.#db.prepare(
      'INSERT INTO expected (key, row, count) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET count = count + excluded.count',
    );
    this.#find = this.#db.prepare('SELECT row, count FROM expected WHERE key = ?');
    this.#less = this.#db.prepare('UPDATE expected SET count = count - ? WHERE key = ?');
    this.#record = this.#db.prepare(
      'INSERT INTO difference (oid, kind, key, expected, actual, count) VALUES (?, ?, ?, ?, ?, ?)',
    );
  }

  /** Begins with one table, or a part of one. `key` as in RowSorter. */
  begin(oid: number, key: readonly number[]): void {
    this.#oid = oid;
    this.#key = key;
    this.#db.exec('BEGIN');
  }

  /** A row that Postgres has so many times (a negative number: so many times fewer than said before). */
  expect(row: Buffer, count = 1): void {
    this.#expect.run(this.#keyOf(row), row, count);
    this.#wrote();
  }

  /** A row that the file has. */
  see(row: Buffer): void {
    const key = this.#keyOf(row);
    const found = this.#find.get(key);
    if (found === undefined || found.count <= 0) this.add('extra', key, null, row);
    else {
      this.#less.run(1, key);
      if (!found.row.equals(row)) this.add('different', key, found.row, row);
    }
    this.#wrote();
  }

  /** Records a row that was found to differ. */
  add(kind: DifferenceKind, key: Buffer, expected: Buffer | null, actual: Buffer | null, count = 1): void {
    this.#record.run(this.#oid, kind, key, expected, actual, count);
  }

  /** What was expected and not seen is missing. */
  finish(): void {
    this.#db
      .prepare(
        `INSERT INTO difference (oid, kind, key, expected, actual, count)
         SELECT ?, 'missing', key, row, NULL, count FROM expected WHERE count > 0`,
      )
      .run(this.#oid);
    this.#db.exec('DELETE FROM expected');
    this.#db.exec('COMMIT');
  }

  /** Forgets what came since begin(): it was read from a table that changed meanwhile. */
  forget(before: number): void {
    this.#db.exec('DELETE FROM expected');
    if (this.#db.inTransaction) this.#db.exec('COMMIT');
    this.#db.prepare('DELETE FROM difference WHERE id > ?').run(before);
  }

  /** Id of the newest difference, for forget(). */
  get last(): number {
    return this.#db.prepare<[], number>('SELECT coalesce(max(id), 0) FROM difference').pluck().get()!;
  }

  counts(oid: number): DifferenceCounts {
    const counts: DifferenceCounts = { different: 0, missing: 0, extra: 0 };
    const rows = this.#db
      .prepare<[number], { kind: DifferenceKind; count: number }>(
        'SELECT kind, sum(count) AS count FROM difference WHERE oid = ? GROUP BY kind',
      )
      .all(oid);
    for (const { kind, count } of rows) counts[kind] = count;
    return counts;
  }

  /** Differences of one table behind `after`, in the order in which they were found. */
  list(oid: number, limit: number, after = 0): RowDifference[] {
    return this.#db
      .prepare<[number, number, number], RowDifference>(
        'SELECT id, kind, key, expected, actual, count FROM difference WHERE oid = ? AND id > ? ORDER BY id LIMIT ?',
      )
      .all(oid, after, limit);
  }

  /** Takes one out again: it was mended. */
  remove(id: number): void {
    this.#db.prepare('DELETE FROM difference WHERE id = ?').run(id);
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }

  #keyOf(row: Buffer): Buffer {
    return this.#key.length === 0 ? row : Buffer.from(keyText(row, 0, row.length, this.#key), 'latin1');
  }

  /** Without a journal a large transaction costs nothing, but its pages can be spilled only once it is over. */
  #wrote(): void {
    if (++this.#writes % COMMIT_EVERY !== 0) return;
    this.#db.exec('COMMIT');
    this.#db.exec('BEGIN');
  }
}
