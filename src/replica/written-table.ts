import type { Database, Statement } from 'better-sqlite3';
import { TAG } from '../change/frame.ts';
import { keyColumns, locatorColumns, partitionHeaps } from '../change/relation.ts';
import { RivuletError } from '../errors.ts';
import { noteLeftOut } from './left-out.ts';
import { quoteName } from './naming.ts';
import type { TableLayout } from './table-layout.ts';
import { readValue, type SqliteValue, type TupleSource, valueAt } from './tuple.ts';

/** What all statements that write one table have in common: its names, and how its rows are found. */
export class WrittenTable {
  readonly db: Database;
  readonly source: TupleSource;
  readonly layout: TableLayout;
  /** In quotes, as are the columns. */
  readonly name: string;
  readonly columns: readonly string[];
  /** Places of the columns that find a row; none where only whole rows do. */
  readonly locators: readonly number[];
  /** Columns that an update sets: all but those. */
  readonly settable: readonly number[];
  /** By column; see readValue. */
  readonly exactIntegers: readonly boolean[];
  /** `"a" = ? AND "b" = ?` */
  readonly whereLocators: string;
  /** Whether rows may go without a word in the stream, as with the TRUNCATE of a single partition. */
  readonly mayVanish: boolean;
  #deleteByKey: Statement | null = null;

  constructor(db: Database, layout: TableLayout, source: TupleSource) {
    this.db = db;
    this.layout = layout;
    this.source = source;
    this.name = quoteName(layout.sqliteName);
    this.columns = layout.columnNames.map(quoteName);
    this.locators = locatorColumns(layout.relation);
    this.settable = this.columns.map((_, index) => index).filter((index) => !this.locators.includes(index));
    this.exactIntegers = layout.relation.columns.map((column) => column.mapping === 'numeric');
    this.mayVanish = partitionHeaps(layout.relation).length > 0;
    this.whereLocators = this.locators.map((column) => `${this.columns[column]} = ?`).join(' AND ');
  }

  /** The locator's values in a tuple, which is the key alone or a whole row. */
  locatorValues(tuple: number, isKeyTuple: boolean): SqliteValue[] {
    return this.locators.map((column, index) => {
      const at = valueAt(this.source.bytes, tuple, isKeyTuple ? index : column);
      return readValue(this.source, at, this.exactIntegers[column]!);
    });
  }

  /** Whether a row with the primary key of one that was to be written is there already. */
  isKeyConflict(error: unknown): error is Error {
    const { code, message } = error as Error & { code?: string };
    const isKey = code === 'SQLITE_CONSTRAINT_PRIMARYKEY' || code === 'SQLITE_CONSTRAINT_ROWID';
    // A trigger may have failed on a table of its own.
    return isKey && message.startsWith(`UNIQUE constraint failed: ${this.layout.sqliteName}.`);
  }

  /** Deletes the row that has the primary key of this one, by column. False: some of that is not known. */
  deleteByKey(row: readonly (SqliteValue | undefined)[]): boolean {
    const key = keyColumns(this.layout.relation);
    const values = key.map((column) => row[column]);
    if (values.includes(undefined)) return false;
    this.#deleteByKey ??= this.db.prepare(
      `DELETE FROM ${this.name} WHERE ${key.map((column) => `${this.columns[column]} = ?`).join(' AND ')}`,
    );
    this.#deleteByKey.run(...(values as SqliteValue[]));
    return true;
  }

  /**
   * Runs a statement whose first arguments are the new values of `columns` (of several rows, one behind the other),
   * and the locator's behind them; returns how many rows it changed. A row may be longer than SQLite takes, with
   * values that were not sent because they did not change: then the largest that came is left out.
   */
  run(statement: Statement, args: SqliteValue[], columns: readonly number[]): number {
    for (;;) {
      try {
        return statement.run(...args).changes;
      } catch (error) {
        const place = (error as { code?: string }).code === 'SQLITE_TOOBIG' ? largest(args) : -1;
        if (place < 0) throw error;
        this.#leaveOut(args, place, columns);
      }
    }
  }

  #leaveOut(args: SqliteValue[], place: number, columns: readonly number[]): void {
    const value = args[place] as string | Buffer;
    const { relation } = this.layout;
    const rowAt = place - (place % columns.length);
    const key = this.locators.map((column, index) => {
      const inRow = columns.indexOf(column);
      const at = inRow < 0 ? columns.length + index : rowAt + inRow;
      return `${relation.columns[column]!.name} = ${String(args[at]).slice(0, MAX_PRINTED_KEY)}`;
    });
    noteLeftOut(this.db, relation.oid, {
      row: key.length === 0 ? 'a row without a key' : key.join(', '),
      column: relation.columns[columns[place % columns.length]!]!.name,
      bytes: typeof value === 'string' ? Buffer.byteLength(value) : value.length,
    });
    args[place] = null;
  }

  // ---- divergence: what is in the file and what comes do not belong together

  diverged(what: 'missing' | 'present', tuple: number, isKeyTuple: boolean): RivuletError {
    const key = this.locators
      .map((column, index) => {
        const at = valueAt(this.source.bytes, tuple, isKeyTuple ? index : column);
        return `${this.layout.columnNames[column]} = ${this.#print(at)}`;
      })
      .join(', ');
    return divergence(this.layout.sqliteName, key === '' ? 'found by all its columns' : key, what);
  }

  /** Of several rows only `found` were there. */
  missingAmong(keys: readonly SqliteValue[], found: number): RivuletError {
    const name = this.layout.columnNames[this.locators[0]!]!;
    const list = keys.map(printKey).join(', ');
    return divergence(this.layout.sqliteName, `${keys.length - found} with ${name} among ${list}`, 'missing');
  }

  #print(at: number): string {
    return this.source.bytes[at] === TAG.unchanged
      ? '(not sent)'
      : printKey(readValue(this.source, at, true));
  }
}

const MAX_PRINTED_KEY = 60;

function printKey(value: SqliteValue): string {
  if (value === null) return 'NULL';
  if (Buffer.isBuffer(value)) return `x'${value.subarray(0, MAX_PRINTED_KEY / 2).toString('hex')}'`;
  return typeof value === 'string' ? JSON.stringify(value.slice(0, MAX_PRINTED_KEY)) : value.toString();
}

function divergence(table: string, key: string, what: 'missing' | 'present'): RivuletError {
  const message =
    what === 'missing'
      ? `a row to update or delete is not in ${table} (${key}): the file has diverged`
      : `a row to insert is in ${table} already (${key}): the file has diverged`;
  return new RivuletError('ROW_MISSING', message, {
    hint: 'the file was changed by another program, or belongs to another history; it will be made anew',
    facts: { table, key },
  });
}

/** Smaller values are not worth it. */
const LEAST_LEFT_OUT_BYTES = 1024 * 1024;

/** The place of the longest value, of those that are long at all; -1 if none is. */
function largest(args: readonly SqliteValue[]): number {
  let place = -1;
  let most = LEAST_LEFT_OUT_BYTES;
  args.forEach((value, index) => {
    const length = typeof value === 'string' || Buffer.isBuffer(value) ? value.length : 0;
    if (length < most) return;
    most = length;
    place = index;
  });
  return place;
}
