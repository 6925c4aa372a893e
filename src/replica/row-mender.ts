import type { Database, Statement } from 'better-sqlite3';
import { TAG } from '../change/frame.ts';
import { conjunction } from './conjunction.ts';
import { quoteName } from './naming.ts';
import { PLACEHOLDER_COLUMN, type TableLayout } from './table-layout.ts';

import { readValue, type SqliteValue, TupleSource, tupleLength, valueEnd } from './tuple.ts';

/** Replaces single rows of one table, if they are exactly what they are said to be. */
export class RowMender {
  readonly #db: Database;
  readonly #table: string;
  readonly #columns: readonly string[];
  readonly #insert: Statement;
  /** By the storage classes of the row's values. */
  readonly #deletes = new Map<string, Statement>();

  constructor(db: Database, layout: TableLayout) {
    this.#db = db;
    this.#table = quoteName(layout.sqliteName);
    this.#columns = layout.columnNames.map(quoteName);
    this.#insert = db.prepare(
      this.#columns.length === 0
        ? `INSERT INTO ${this.#table} (${quoteName(PLACEHOLDER_COLUMN)}) VALUES (NULL)`
        : `INSERT INTO ${this.#table} (${this.#columns.join(', ')}) VALUES (${this.#columns.map(() => '?').join(', ')})`,
    );
  }

  /** `found` goes (null: there is none) and `wanted` comes. False, and nothing is changed, if `found` is not there. */
  mend(found: Buffer | null, wanted: Buffer | null): boolean {
    this.#db.exec('SAVEPOINT mending');
    const isDone = this.#replace(found, wanted);
    this.#db.exec(isDone ? 'RELEASE mending' : 'ROLLBACK TO mending; RELEASE mending');
    return isDone;
  }

  #replace(found: Buffer | null, wanted: Buffer | null): boolean {
    if (found !== null && !this.#delete(found)) return false;
    if (wanted === null) return true;
    try {
      this.#insert.run(...values(wanted).map(({ value }) => value));
      return true;
    } catch (error) {
      if (String((error as { code?: unknown }).code).startsWith('SQLITE_CONSTRAINT')) return false;
      throw error;
    }
  }

  #delete(row: Buffer): boolean {
    const stored = values(row);
    const shape = stored.map(({ shape }) => shape).join('');
    let statement = this.#deletes.get(shape);
    if (statement === undefined) {
      const terms = stored.map((each, index) => term(this.#columns[index]!, each.shape));
      const where = terms.length === 0 ? '' : ` WHERE ${conjunction(terms)}`;
      statement = this.#db.prepare(`DELETE FROM ${this.#table}${where} LIMIT 1`);
      this.#deletes.set(shape, statement);
    }
    const args = stored.flatMap(({ value, bytes, shape }) => {
      if (shape === 'n') return [];
      if (shape === 't') return [value, bytes];
      if (shape === 'c') return [bytes];
      return shape === 'r' ? [value, value] : [value];
    });
    return statement.run(...args).changes === 1;
  }
}

type Shape =
  | 'n'
  | 'i'
  | 'r'
  | 'b'
  | 't'
  /** Text that is no UTF-8: only its bytes can be bound. */
  | 'c';

/** Matches one value by its storage class and its bytes. = alone takes 1 for 1.0, and 0.0 for -0.0. */
function term(column: string, shape: Shape): string {
  switch (shape) {
    case 'n':
      return `${column} IS NULL`;
    case 'i':
      return `${column} = ? AND typeof(${column}) = 'integer'`;
    case 'r':
      return `${column} = ? AND typeof(${column}) = 'real' AND atan2(${column}, -1) = atan2(?, -1)`;
    case 'b':
      return `${column} = ? AND typeof(${column}) = 'blob'`;
    case 't':
      return `${column} = ? AND typeof(${column}) = 'text' AND cast(${column} AS BLOB) = ?`;
    case 'c':
      return `typeof(${column}) = 'text' AND cast(${column} AS BLOB) = ?`;
  }
}

function values(
  tuple: Buffer,
): { readonly value: SqliteValue; readonly bytes: Buffer; readonly shape: Shape }[] {
  const source = new TupleSource();
  source.set(tuple);
  const list: ReturnType<typeof values> = [];
  for (let left = tupleLength(tuple, 0), at = 2; left > 0; left--) {
    const end = valueEnd(tuple, at);
    const value = readValue(source, at, true);
    const bytes = tuple.subarray(at + (tuple[at] === TAG.text || tuple[at] === TAG.blob ? 5 : 1), end);
    list.push({ value, bytes, shape: shapeOf(value, bytes) });
    at = end;
  }
  return list;
}

function shapeOf(value: SqliteValue, bytes: Buffer): Shape {
  if (value === null) return 'n';
  if (typeof value === 'bigint') return 'i';
  if (typeof value === 'number') return 'r';
  if (typeof value === 'string') return Buffer.from(value).equals(bytes) ? 't' : 'c';
  return 'b';
}
