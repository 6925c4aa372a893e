import type { Statement } from 'better-sqlite3';
import { TAG } from '../change/frame.ts';
import { ProtocolError } from '../errors.ts';
import { conjunction } from './conjunction.ts';
import type { RowDeletes } from './row-deletes.ts';
import { lookupIndex } from './table-layout.ts';
import { readValue, type SqliteValue, valueEnd } from './tuple.ts';
import type { UpdateStatements } from './update-statements.ts';
import type { WrittenTable } from './written-table.ts';

interface SingleRowsOptions {
  readonly table: WrittenTable;
  readonly updates: UpdateStatements;
  readonly deletes: RowDeletes;
  /** Writes the inserts that wait. False if there are none. */
  readonly writeWaiting: () => boolean;
}

/** Updates and deletes that happen at once, each of exactly one row: by its locator, or by all its columns. */
export class SingleRows {
  readonly #table: WrittenTable;
  readonly #updates: UpdateStatements;
  readonly #deletes: RowDeletes;
  readonly #writeWaiting: () => boolean;
  readonly #whereRow: string;
  #deleteRow: Statement | null = null;
  #canLookUp = false;

  constructor({ table, updates, deletes, writeWaiting }: SingleRowsOptions) {
    this.#table = table;
    this.#updates = updates;
    this.#deletes = deletes;
    this.#writeWaiting = writeWaiting;
    this.#whereRow = whereRow(table);
  }

  /** By an old key, or by the locator in the new tuple. */
  update(oldKey: number | null, tuple: number): void {
    const table = this.#table;
    if (table.locators.length === 0)
      throw new ProtocolError(`an update of ${table.layout.sqliteName} came without the old row`);
    this.#updateByLocator(oldKey ?? tuple, oldKey !== null, tuple);
  }

  /** By the old row. */
  updateRow(old: number, tuple: number): void {
    if (this.#table.locators.length > 0) {
      this.#updateByLocator(old, false, tuple);
      return;
    }
    const { columns, values } = this.#sent(tuple);
    this.#prepareLookup();
    const args = [...values, ...this.#rowValues(old)];
    this.#now(() => this.#updates.byRow(columns, this.#whereRow).run(...args).changes > 0, old, false);
  }

  deleteByKey(key: number): void {
    this.#now(() => this.#deletes.one(key, true), key, true);
  }

  deleteRow(old: number): void {
    if (this.#table.locators.length > 0) {
      this.#now(() => this.#deletes.one(old, false), old, false);
      return;
    }
    this.#prepareLookup();
    this.#deleteRow ??= this.#table.db.prepare(`DELETE FROM ${this.#table.name} ${this.#whereRow} LIMIT 1`);
    const statement = this.#deleteRow;
    const args = this.#rowValues(old);
    this.#now(() => statement.run(...args).changes > 0, old, false);
  }

  #updateByLocator(locator: number, isKeyTuple: boolean, tuple: number): void {
    const table = this.#table;
    const { columns, values } = this.#sent(tuple);
    const place = table.locatorValues(locator, isKeyTuple);
    const args = [...values, ...place];
    const run = (): boolean => table.run(this.#updates.byLocator(columns), args, columns) > 0;
    const runOverStale = (): boolean => {
      try {
        return run();
      } catch (error) {
        if (!table.mayVanish || !table.isKeyConflict(error)) throw error;
        // The row that has the new key is gone. What of that was not sent is as in the old one.
        const row: SqliteValue[] = [];
        for (const [index, column] of table.locators.entries()) row[column] = place[index]!;
        for (const [index, column] of columns.entries()) row[column] = values[index]!;
        if (!table.deleteByKey(row)) throw error;
        return run();
      }
    };
    this.#now(runOverStale, locator, isKeyTuple);
  }

  /** If the row is not there yet, it may be among the inserts that wait. */
  #now(run: () => boolean, tuple: number, isKeyTuple: boolean): void {
    if (run() || (this.#writeWaiting() && run())) return;
    throw this.#table.diverged('missing', tuple, isKeyTuple);
  }

  /** The columns of a new row that came, and what came in them. */
  #sent(tuple: number): { readonly columns: readonly number[]; readonly values: readonly SqliteValue[] } {
    const { source, columns: names, exactIntegers } = this.#table;
    const { bytes } = source;
    const columns: number[] = [];
    const values: SqliteValue[] = [];
    for (let column = 0, at = tuple + 2; column < names.length; column++, at = valueEnd(bytes, at)) {
      if (bytes[at] === TAG.unchanged) continue;
      columns.push(column);
      values.push(readValue(source, at, exactIntegers[column]!));
    }
    return { columns, values };
  }

  /** The parameters of whereRow. */
  #rowValues(tuple: number): SqliteValue[] {
    const { source, columns, exactIntegers, layout } = this.#table;
    const { bytes } = source;
    const values: SqliteValue[] = [];
    for (let column = 0, at = tuple + 2; column < columns.length; column++, at = valueEnd(bytes, at)) {
      const value = readValue(source, at, exactIntegers[column]!);
      values.push(value);
      if (layout.relation.columns[column]!.mapping === 'float') values.push(value);
    }
    return values;
  }

  #prepareLookup(): void {
    if (this.#canLookUp) return;
    const index = lookupIndex(this.#table.layout);
    if (index !== null) this.#table.db.exec(index.sql);
    this.#canLookUp = true;
  }
}

/**
 * Matches all columns; the statement takes one row of those that match (SQLite's own rowid finds it, however
 * columns are named). IS, because NULL equals NULL here; and the sign of a zero counts, which = ignores.
 */
function whereRow({ columns, layout }: WrittenTable): string {
  if (columns.length === 0) return '';
  const terms = columns.map((name, index) =>
    layout.relation.columns[index]!.mapping === 'float'
      ? `${name} IS ? AND (${name} IS NOT 0 OR atan2(${name}, -1) = atan2(?, -1))`
      : `${name} IS ?`,
  );
  return `WHERE ${conjunction(terms)}`;
}
