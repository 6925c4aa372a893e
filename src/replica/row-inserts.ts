import type { Statement } from 'better-sqlite3';
import { TAG } from '../change/frame.ts';
import { ProtocolError, RivuletError } from '../errors.ts';
import { quoteName } from './naming.ts';
import { ROW, type RowFold } from './row-fold.ts';
import { PLACEHOLDER_COLUMN } from './table-layout.ts';
import {
  type ColumnPlaces,
  decodeTuple,
  readValue,
  type SqliteValue,
  type TupleSource,
  valueEnd,
} from './tuple.ts';
import type { WrittenTable } from './written-table.ts';

/**
 * Parameters of one multi-row statement. A call into SQLite costs as much as binding some ten values; past
 * about a hundred nothing is gained any more (test/bench/applier.ts), and they are passed as arguments, on the stack.
 */
const MAX_PARAMETERS = 96;
const MAX_ROWS = 32;

/** Writes the inserts that are left of a batch: many rows with one statement, the rest one by one. */
export class RowInserts {
  readonly #table: WrittenTable;
  readonly #source: TupleSource;
  readonly #verb: string;
  readonly #width: number;
  readonly #places: ColumnPlaces;
  readonly #rowsPerStatement: number;
  #one: Statement | null = null;
  #many: Statement | null = null;
  readonly #oneArgs: SqliteValue[];
  readonly #manyArgs: SqliteValue[];

  /** `replaces`: a row takes the place of one that has its key. */
  constructor(table: WrittenTable, replaces: boolean) {
    this.#table = table;
    this.#source = table.source;
    this.#verb = replaces ? 'INSERT OR REPLACE' : 'INSERT';
    const width = table.columns.length;
    this.#width = width;
    this.#places = { places: table.columns.map((_, index) => index), exactIntegers: table.exactIntegers };
    this.#rowsPerStatement = Math.max(1, Math.min(MAX_ROWS, Math.floor(MAX_PARAMETERS / Math.max(1, width))));
    this.#oneArgs = new Array<SqliteValue>(width).fill(null);
    this.#manyArgs = new Array<SqliteValue>(width * this.#rowsPerStatement).fill(null);
  }

  /** `count` is how many there are. */
  flush(fold: RowFold, count: number): void {
    const { slotCount } = fold;
    const width = this.#width;
    const perStatement = this.#rowsPerStatement;
    let left = count;
    let slot = 0;
    if (perStatement > 1 && left >= perStatement) {
      this.#many ??= this.#table.db.prepare(this.#sql(perStatement));
      const statement = this.#many;
      const args = this.#manyArgs;
      while (left >= perStatement) {
        for (let row = 0; row < perStatement; slot++) {
          if (fold.action(slot) === ROW.insert) this.#decode(fold, slot, args, width * row++);
        }
        this.#run(statement, args, perStatement);
        left -= perStatement;
      }
    }
    if (left === 0) return;
    this.#one ??= this.#table.db.prepare(this.#sql(1));
    for (; slot < slotCount; slot++) {
      if (fold.action(slot) !== ROW.insert) continue;
      this.#decode(fold, slot, this.#oneArgs, 0);
      this.#run(this.#one, this.#oneArgs, 1);
    }
  }

  #sql(rows: number): string {
    const { name, columns } = this.#table;
    // A table without columns has its placeholder, which every row leaves NULL.
    const into = columns.length === 0 ? quoteName(PLACEHOLDER_COLUMN) : columns.join(', ');
    const row = columns.length === 0 ? '(NULL)' : `(${columns.map(() => '?').join(', ')})`;
    return `${this.#verb} INTO ${name} (${into}) VALUES ${new Array(rows).fill(row).join(', ')}`;
  }

  #decode(fold: RowFold, slot: number, args: SqliteValue[], base: number): void {
    const tuple = fold.newestTuple(slot);
    const unchanged = decodeTuple(this.#source, tuple, this.#places, args, base);
    if (unchanged === 0) return;
    const { bytes } = this.#source;
    const { exactIntegers, layout } = this.#table;
    for (let column = 0, at = tuple + 2; column < this.#width; column++, at = valueEnd(bytes, at)) {
      if (bytes[at] !== TAG.unchanged) continue;
      const older = fold.olderValue(slot, column);
      if (older < 0) throw new ProtocolError(`an inserted row of ${layout.sqliteName} lacks a value`);
      args[base + column] = readValue(this.#source, older, exactIntegers[column]!);
    }
  }

  #run(statement: Statement, args: SqliteValue[], rows: number): void {
    try {
      this.#insert(statement, args, rows);
    } catch (error) {
      if (!this.#table.isKeyConflict(error)) throw error;
      if (!this.#table.mayVanish) throw this.#present(error);
      this.#replaceEach(args, rows);
    }
  }

  #insert(statement: Statement, args: SqliteValue[], rows: number): void {
    if (this.#table.run(statement, args, this.#places.places) === rows) return;
    const { sqliteName } = this.#table.layout;
    throw new RivuletError('ROW_MISSING', `a trigger keeps rows out of ${sqliteName}`, {
      hint: 'it is dropped, or the file is made anew',
      facts: { table: sqliteName },
    });
  }

  /** They take the place of rows that have their keys: those are gone, of which nobody told. */
  #replaceEach(args: readonly SqliteValue[], rows: number): void {
    const width = this.#width;
    this.#one ??= this.#table.db.prepare(this.#sql(1));
    for (let row = 0; row < rows; row++) {
      const values = args.slice(row * width, (row + 1) * width);
      this.#table.deleteByKey(values);
      this.#insert(this.#one, values, 1);
    }
  }

  #present(cause: unknown): RivuletError {
    const { sqliteName } = this.#table.layout;
    return new RivuletError(
      'ROW_MISSING',
      `a row to insert into ${sqliteName} is there already: the file has diverged`,
      {
        hint: 'the file was changed by another program, or belongs to another history; it will be made anew',
        cause,
        facts: { table: sqliteName },
      },
    );
  }
}
