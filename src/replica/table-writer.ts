import type { Database, Statement } from 'better-sqlite3';
import { CHANGE, TAG } from '../change/frame.ts';
import { locatorColumns } from '../change/relation.ts';
import { ProtocolError, RivuletError } from '../errors.ts';
import { quoteName } from './naming.ts';
import { ROW, RowFold } from './row-fold.ts';
import { locatesByKey, lookupIndex, PLACEHOLDER_COLUMN, type TableLayout } from './table-layout.ts';
import {
  type ColumnPlaces,
  decodeTuple,
  hasUnchanged,
  readValue,
  type SqliteValue,
  type TupleSource,
  tupleEnd,
  valueAt,
  valueEnd,
} from './tuple.ts';

/**
 * Parameters of one multi-row statement. A call into SQLite costs as much as binding some ten values; past
 * about a hundred nothing is gained any more (test/bench/applier.ts), and they are passed as arguments, on the stack.
 */
const MAX_BATCH_PARAMETERS = 96;
const MAX_BATCH_ROWS = 32;
/** UPDATE statements of one table for different sets of columns; more shapes than this are rare. */
const MAX_UPDATE_STATEMENTS = 64;
/** Updates are sorted by key where there are enough of them to share pages. */
const MIN_SORTED_UPDATES = 16;
/** A slot's number and a 32-bit key share a double's 53 bits. */
const SLOT_BITS = 2 ** 21;

interface UpdateStatement {
  readonly statement: Statement;
  /** Columns in the order of the parameters; the locator's values stand behind them. */
  readonly columns: readonly number[];
}

/**
 * Writes the changes of one table. Rows that are found by SQLite's own key are folded over the whole batch
 * (RowFold) and written by flush(). Where that does not hold (no key, a deferrable one, another identity index),
 * only inserts are collected; updates and deletes happen at once, each for exactly one row. Rows without a key
 * are a bag in which equal ones stand for each other, so such a change may overtake an insert of the same batch,
 * unless it is that row it needs: then the inserts go first.
 */
export class TableWriter {
  readonly layout: TableLayout;
  readonly #db: Database;
  readonly #source: TupleSource;
  readonly #table: string;
  readonly #columns: readonly string[];
  readonly #locators: readonly number[];
  readonly #exactIntegers: readonly boolean[];
  readonly #fold: RowFold;
  readonly #isFolded: boolean;
  readonly #insertVerb: string;

  readonly #insertPlaces: ColumnPlaces;
  readonly #rowsPerInsert: number;
  #insertOne: Statement | null = null;
  #insertMany: Statement | null = null;
  readonly #insertOneArgs: SqliteValue[];
  readonly #insertManyArgs: SqliteValue[];

  /** Whole-row update: columns outside the key first, then the key. */
  readonly #updatePlaces: ColumnPlaces;
  readonly #updateArgs: SqliteValue[];
  #updateWhole: Statement | null = null;
  readonly #updates = new Map<string, UpdateStatement>();

  readonly #keysPerDelete: number;
  #deleteOne: Statement | null = null;
  #deleteMany: Statement | null = null;
  #deleteRow: Statement | null = null;
  #canLookUp = false;

  /** `replaces`: an inserted row takes the place of one that has its key. */
  constructor(
    db: Database,
    layout: TableLayout,
    source: TupleSource,
    { replaces = false }: { readonly replaces?: boolean } = {},
  ) {
    const { relation } = layout;
    this.#insertVerb = replaces ? 'INSERT OR REPLACE' : 'INSERT';
    this.#db = db;
    this.layout = layout;
    this.#source = source;
    this.#table = quoteName(layout.sqliteName);
    this.#columns = layout.columnNames.map(quoteName);
    this.#locators = locatorColumns(relation);
    this.#isFolded = locatesByKey(layout);
    this.#exactIntegers = relation.columns.map((column) => column.mapping === 'numeric');
    this.#fold = new RowFold(source, this.#locators, (what, tuple, isKey) =>
      this.#divergence(what, tuple, isKey),
    );

    const count = relation.columns.length;
    this.#rowsPerInsert = Math.max(
      1,
      Math.min(MAX_BATCH_ROWS, Math.floor(MAX_BATCH_PARAMETERS / Math.max(1, count))),
    );
    this.#insertPlaces = {
      places: relation.columns.map((_, index) => index),
      exactIntegers: this.#exactIntegers,
    };
    this.#insertOneArgs = new Array<SqliteValue>(count).fill(null);
    this.#insertManyArgs = new Array<SqliteValue>(count * this.#rowsPerInsert).fill(null);

    const order = [...this.#settableColumns(), ...this.#locators];
    const places = new Array<number>(count).fill(0);
    order.forEach((column, place) => {
      places[column] = place;
    });
    this.#updatePlaces = { places, exactIntegers: this.#exactIntegers };
    this.#updateArgs = new Array<SqliteValue>(count).fill(null);
    this.#keysPerDelete = this.#locators.length === 1 ? MAX_BATCH_ROWS : 1;
  }

  /** Takes one change whose body stands at `body`. It is in the table after flush() at the latest. */
  change(kind: number, body: number): void {
    switch (kind) {
      case CHANGE.insert:
        this.#fold.insert(body);
        break;
      case CHANGE.update:
        if (this.#isFolded) this.#fold.update(body);
        else this.#updateNow(null, body);
        break;
      case CHANGE.updateKey:
        this.#updateKey(body);
        break;
      case CHANGE.updateFull: {
        const tuple = tupleEnd(this.#source.bytes, body);
        if (this.#isFolded) this.#fold.updateFull(body, tuple);
        else this.#updateRowNow(body, tuple);
        break;
      }
      case CHANGE.deleteKey:
        if (this.#isFolded) this.#fold.deleteKey(body);
        else this.#now(() => this.#deleteByKey(body, true), body, true);
        break;
      case CHANGE.deleteFull:
        if (this.#isFolded) this.#fold.deleteFull(body);
        else this.#deleteRowNow(body);
        break;
      case CHANGE.truncate:
        this.#fold.clear();
        this.#db.prepare(`DELETE FROM ${this.#table}`).run();
        break;
      default:
        throw new ProtocolError(`a change has the unknown kind ${kind}`);
    }
  }

  /** Forgets what was not written: the SQLite transaction was rolled back. */
  discard(): void {
    this.#fold.clear();
  }

  flush(): void {
    const fold = this.#fold;
    const { slotCount } = fold;
    if (slotCount === 0) return;
    let inserts = 0;
    let updates = 0;
    let deletes = 0;
    for (let slot = 0; slot < slotCount; slot++) {
      const action = fold.action(slot);
      if (action === ROW.insert) inserts++;
      else if (action === ROW.update) updates++;
      else if (action === ROW.delete) deletes++;
    }
    if (deletes > 0) this.#flushDeletes(deletes);
    if (updates > 0) this.#flushUpdates(updates);
    if (inserts > 0) this.#flushInserts(inserts);
    fold.clear();
  }

  // ---- inserts

  #flushInserts(count: number): void {
    const fold = this.#fold;
    const { slotCount } = fold;
    const width = this.#columns.length;
    const perStatement = this.#rowsPerInsert;
    let left = count;
    let slot = 0;
    if (perStatement > 1 && left >= perStatement) {
      this.#insertMany ??= this.#db.prepare(this.#insertSql(perStatement));
      const statement = this.#insertMany;
      const args = this.#insertManyArgs;
      while (left >= perStatement) {
        for (let row = 0; row < perStatement; slot++) {
          if (fold.action(slot) === ROW.insert) this.#decodeInsert(slot, args, width * row++);
        }
        this.#runInsert(statement, args, perStatement);
        left -= perStatement;
      }
    }
    if (left === 0) return;
    this.#insertOne ??= this.#db.prepare(this.#insertSql(1));
    for (; slot < slotCount; slot++) {
      if (fold.action(slot) !== ROW.insert) continue;
      this.#decodeInsert(slot, this.#insertOneArgs, 0);
      this.#runInsert(this.#insertOne, this.#insertOneArgs, 1);
    }
  }

  #insertSql(rows: number): string {
    const width = this.#columns.length;
    // A table without columns has its placeholder, which every row leaves NULL.
    if (width === 0) {
      return `${this.#insertVerb} INTO ${this.#table} (${quoteName(PLACEHOLDER_COLUMN)}) VALUES ${new Array(rows).fill('(NULL)').join(', ')}`;
    }
    const row = `(${new Array(width).fill('?').join(', ')})`;
    return `${this.#insertVerb} INTO ${this.#table} (${this.#columns.join(', ')}) VALUES ${new Array(rows).fill(row).join(', ')}`;
  }

  #decodeInsert(slot: number, args: SqliteValue[], base: number): void {
    const fold = this.#fold;
    const tuple = fold.newestTuple(slot);
    const unchanged = decodeTuple(this.#source, tuple, this.#insertPlaces, args, base);
    if (unchanged === 0) return;
    const { bytes } = this.#source;
    for (let column = 0, at = tuple + 2; column < this.#columns.length; column++, at = valueEnd(bytes, at)) {
      if (bytes[at] !== TAG.unchanged) continue;
      const older = fold.olderValue(slot, column);
      if (older < 0) throw new ProtocolError(`an inserted row of ${this.layout.sqliteName} lacks a value`);
      args[base + column] = readValue(this.#source, older, this.#exactIntegers[column]!);
    }
  }

  #runInsert(statement: Statement, args: readonly SqliteValue[], rows: number): void {
    let inserted: number;
    try {
      inserted = statement.run(...args).changes;
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      const isKey = code === 'SQLITE_CONSTRAINT_PRIMARYKEY' || code === 'SQLITE_CONSTRAINT_ROWID';
      // A trigger may have failed on a table of its own.
      if (!isKey || !message.startsWith(`UNIQUE constraint failed: ${this.layout.sqliteName}.`)) throw error;
      throw new RivuletError(
        'ROW_MISSING',
        `a row to insert into ${this.layout.sqliteName} is there already: the file has diverged`,
        {
          hint: 'the file was changed by another program, or belongs to another history; it will be made anew',
          cause: error,
          facts: { table: this.layout.sqliteName },
        },
      );
    }
    if (inserted !== rows)
      throw new RivuletError('ROW_MISSING', `a trigger keeps rows out of ${this.layout.sqliteName}`, {
        hint: 'it is dropped, or the file is made anew',
        facts: { table: this.layout.sqliteName },
      });
  }

  // ---- updates

  /** Columns that an update sets: all but the locator; its own if there are no others. */
  #settableColumns(): readonly number[] {
    return this.#columns.map((_, index) => index).filter((index) => !this.#locators.includes(index));
  }

  #flushUpdates(count: number): void {
    const fold = this.#fold;
    const order = count >= MIN_SORTED_UPDATES ? this.#sortedUpdates(count) : null;
    if (order !== null) {
      for (const each of order) this.#updateSlot(each % SLOT_BITS);
      return;
    }
    const { slotCount } = fold;
    for (let slot = 0; slot < slotCount; slot++) {
      if (fold.action(slot) === ROW.update) this.#updateSlot(slot);
    }
  }

  /** Slots in key order, behind the key in the same number: neighbours share pages. Null for other keys. */
  #sortedUpdates(count: number): Float64Array | null {
    const fold = this.#fold;
    const { slotCount } = fold;
    if (this.#locators.length !== 1 || slotCount > SLOT_BITS) return null;
    const order = new Float64Array(count);
    let next = 0;
    for (let slot = 0; slot < slotCount; slot++) {
      if (fold.action(slot) !== ROW.update) continue;
      const key = fold.slotKey(slot);
      if (typeof key !== 'number') return null;
      order[next++] = (key + 0x8000_0000) * SLOT_BITS + slot;
    }
    return order.sort();
  }

  #updateSlot(slot: number): void {
    const fold = this.#fold;
    const tuple = fold.newestTuple(slot);
    const args = this.#updateArgs;
    const unchanged = decodeTuple(this.#source, tuple, this.#updatePlaces, args, 0);
    if (unchanged > 0 && !this.#completeUpdate(slot, tuple)) return;
    this.#updateWhole ??= this.#db.prepare(this.#updateSql(this.#settableColumns()));
    if (this.#updateWhole.run(...args).changes === 0) throw this.#divergence('missing', tuple, false);
  }

  /** Fills in values from older versions; where the batch has none, updates the other columns only. */
  #completeUpdate(slot: number, tuple: number): boolean {
    const { bytes } = this.#source;
    const missing = new Set<number>();
    const { places } = this.#updatePlaces;
    for (let column = 0, at = tuple + 2; column < this.#columns.length; column++, at = valueEnd(bytes, at)) {
      if (bytes[at] !== TAG.unchanged) continue;
      const older = this.#fold.olderValue(slot, column);
      if (older < 0) missing.add(column);
      else this.#updateArgs[places[column]!] = readValue(this.#source, older, this.#exactIntegers[column]!);
    }
    if (missing.size === 0) return true;
    const update = this.#updateStatement(this.#settableColumns().filter((column) => !missing.has(column)));
    const args = [...update.columns, ...this.#locators].map((column) => this.#updateArgs[places[column]!]!);
    if (update.statement.run(...args).changes === 0) throw this.#divergence('missing', tuple, false);
    return false;
  }

  #updateStatement(columns: readonly number[]): UpdateStatement {
    const shape = columns.join();
    let update = this.#updates.get(shape);
    if (update === undefined) {
      if (this.#updates.size >= MAX_UPDATE_STATEMENTS)
        this.#updates.delete(this.#updates.keys().next().value!);
      update = { statement: this.#db.prepare(this.#updateSql(columns)), columns };
    } else {
      this.#updates.delete(shape);
    }
    // Last in the Map is the most recently used.
    this.#updates.set(shape, update);
    return update;
  }

  #updateSql(columns: readonly number[]): string {
    return `UPDATE ${this.#table} SET ${this.#assignments(columns)} WHERE ${this.#whereLocators()}`;
  }

  #assignments(columns: readonly number[]): string {
    // With nothing to set the row must be found all the same.
    const own = this.#columns[this.#locators[0] ?? 0];
    return columns.length === 0
      ? `${own} = ${own}`
      : columns.map((column) => `${this.#columns[column]} = ?`).join(', ');
  }

  #whereLocators(): string {
    return this.#locators.map((column) => `${this.#columns[column]} = ?`).join(' AND ');
  }

  #updateKey(oldKey: number): void {
    const { bytes } = this.#source;
    const tuple = tupleEnd(bytes, oldKey);
    if (this.#isFolded && !hasUnchanged(bytes, tuple)) {
      this.#fold.updateKey(oldKey, tuple);
    } else {
      // The values that were not sent are only in the row itself: it must keep them while its key changes.
      this.#updateNow(oldKey, tuple);
    }
  }

  /** Updates one row at once, by an old key or by the locator in the new tuple. */
  #updateNow(oldKey: number | null, tuple: number): void {
    if (this.#locators.length === 0)
      throw new ProtocolError(`an update of ${this.layout.sqliteName} came without the old row`);
    if (this.#isFolded) this.flush();
    const { bytes } = this.#source;
    const columns: number[] = [];
    const args: SqliteValue[] = [];
    const key = new Map<number, number>();
    for (let column = 0, at = tuple + 2; column < this.#columns.length; column++, at = valueEnd(bytes, at)) {
      if (this.#locators.includes(column)) key.set(column, at);
      if (bytes[at] === TAG.unchanged) continue;
      columns.push(column);
      args.push(readValue(this.#source, at, this.#exactIntegers[column]!));
    }
    this.#locators.forEach((column, index) => {
      const at = oldKey === null ? key.get(column)! : valueAt(bytes, oldKey, index);
      args.push(readValue(this.#source, at, this.#exactIntegers[column]!));
    });
    const run = (): boolean => this.#updateStatement(columns).statement.run(...args).changes > 0;
    this.#now(run, oldKey ?? tuple, oldKey !== null);
  }

  // ---- deletes

  #flushDeletes(count: number): void {
    const fold = this.#fold;
    const { slotCount } = fold;
    const perStatement = this.#keysPerDelete;
    let left = count;
    let slot = 0;
    if (perStatement > 1 && left >= perStatement) {
      const column = this.#locators[0]!;
      this.#deleteMany ??= this.#db.prepare(
        `DELETE FROM ${this.#table} WHERE ${this.#columns[column]} IN (${new Array(perStatement).fill('?').join(', ')})`,
      );
      const args = new Array<SqliteValue>(perStatement);
      const slots = new Array<number>(perStatement);
      while (left >= perStatement) {
        for (let index = 0; index < perStatement; slot++) {
          if (fold.action(slot) !== ROW.delete) continue;
          slots[index] = slot;
          args[index++] = this.#keyValue(slot, 0);
        }
        const { changes } = this.#deleteMany.run(...args);
        if (changes !== perStatement) throw this.#missingAmong(args.slice(0, perStatement), changes);
        left -= perStatement;
      }
    }
    if (left === 0) return;
    for (; slot < slotCount; slot++) {
      if (fold.action(slot) !== ROW.delete) continue;
      const tuple = fold.newestTuple(slot);
      if (!this.#deleteByKey(tuple, fold.isKeyTuple(slot)))
        throw this.#divergence('missing', tuple, fold.isKeyTuple(slot));
    }
  }

  #keyValue(slot: number, index: number): SqliteValue {
    const column = this.#locators[index]!;
    const place = this.#fold.isKeyTuple(slot) ? index : column;
    const at = valueAt(this.#source.bytes, this.#fold.newestTuple(slot), place);
    return readValue(this.#source, at, this.#exactIntegers[column]!);
  }

  #deleteByKey(tuple: number, isKeyTuple: boolean): boolean {
    this.#deleteOne ??= this.#db.prepare(`DELETE FROM ${this.#table} WHERE ${this.#whereLocators()}`);
    const args = this.#locators.map((column, index) => {
      const at = valueAt(this.#source.bytes, tuple, isKeyTuple ? index : column);
      return readValue(this.#source, at, this.#exactIntegers[column]!);
    });
    return this.#deleteOne.run(...args).changes > 0;
  }

  // ---- rows that are found by all their columns

  #deleteRowNow(old: number): void {
    if (this.#locators.length > 0) {
      this.#now(() => this.#deleteByKey(old, false), old, false);
      return;
    }
    this.#prepareLookup();
    this.#deleteRow ??= this.#db.prepare(`DELETE FROM ${this.#table}${this.#whereRow()} LIMIT 1`);
    const statement = this.#deleteRow;
    const args = this.#rowArgs(old);
    this.#now(() => statement.run(...args).changes > 0, old, false);
  }

  #updateRowNow(old: number, tuple: number): void {
    const { bytes } = this.#source;
    const columns: number[] = [];
    const args: SqliteValue[] = [];
    for (let column = 0, at = tuple + 2; column < this.#columns.length; column++, at = valueEnd(bytes, at)) {
      if (bytes[at] === TAG.unchanged) continue;
      columns.push(column);
      args.push(readValue(this.#source, at, this.#exactIntegers[column]!));
    }
    if (this.#locators.length > 0) {
      for (const column of this.#locators) {
        args.push(readValue(this.#source, valueAt(bytes, old, column), this.#exactIntegers[column]!));
      }
      this.#now(() => this.#updateStatement(columns).statement.run(...args).changes > 0, old, false);
      return;
    }
    this.#prepareLookup();
    args.push(...this.#rowArgs(old));
    const run = (): boolean => this.#updateRowStatement(columns).run(...args).changes > 0;
    this.#now(run, old, false);
  }

  #updateRowStatement(columns: readonly number[]): Statement {
    const shape = `row ${columns.join()}`;
    let update = this.#updates.get(shape);
    if (update === undefined) {
      if (this.#updates.size >= MAX_UPDATE_STATEMENTS)
        this.#updates.delete(this.#updates.keys().next().value!);
      const sql = `UPDATE ${this.#table} SET ${this.#assignments(columns)}${this.#whereRow()} LIMIT 1`;
      update = { statement: this.#db.prepare(sql), columns };
      this.#updates.set(shape, update);
    }
    return update.statement;
  }

  /**
   * Matches all columns; the statement takes one row of those that match (SQLite's own rowid finds it, however
   * columns are named). IS, because NULL equals NULL here; and the sign of a zero counts, which = ignores.
   */
  #whereRow(): string {
    if (this.#columns.length === 0) return '';
    const terms = this.#columns.map((name, index) =>
      this.layout.relation.columns[index]!.mapping === 'float'
        ? `${name} IS ? AND (${name} IS NOT 0 OR atan2(${name}, -1) = atan2(?, -1))`
        : `${name} IS ?`,
    );
    return ` WHERE ${conjunction(terms)}`;
  }

  #rowArgs(tuple: number): SqliteValue[] {
    const { bytes } = this.#source;
    const args: SqliteValue[] = [];
    for (let column = 0, at = tuple + 2; column < this.#columns.length; column++, at = valueEnd(bytes, at)) {
      const value = readValue(this.#source, at, this.#exactIntegers[column]!);
      args.push(value);
      if (this.layout.relation.columns[column]!.mapping === 'float') args.push(value);
    }
    return args;
  }

  #prepareLookup(): void {
    if (this.#canLookUp) return;
    const index = lookupIndex(this.layout);
    if (index !== null) this.#db.exec(index.sql);
    this.#canLookUp = true;
  }

  /** Runs a change of one row; if the row is not there yet, it may be among the inserts that wait. */
  #now(run: () => boolean, tuple: number, isKeyTuple: boolean): void {
    if (run()) return;
    if (this.#fold.slotCount > 0) {
      this.flush();
      if (run()) return;
    }
    throw this.#divergence('missing', tuple, isKeyTuple);
  }

  // ---- divergence

  #divergence(what: 'missing' | 'present', tuple: number, isKeyTuple: boolean): RivuletError {
    const { sqliteName } = this.layout;
    const names = this.layout.columnNames;
    const { bytes } = this.#source;
    const key = this.#locators
      .map(
        (column, index) =>
          `${names[column]} = ${this.#printValue(valueAt(bytes, tuple, isKeyTuple ? index : column))}`,
      )
      .join(', ');
    return divergenceError(sqliteName, key === '' ? 'found by all its columns' : key, what);
  }

  #missingAmong(keys: readonly SqliteValue[], found: number): RivuletError {
    const name = this.layout.columnNames[this.#locators[0]!]!;
    const list = keys.map((key) => printKey(key)).join(', ');
    return divergenceError(
      this.layout.sqliteName,
      `${keys.length - found} with ${name} among ${list}`,
      'missing',
    );
  }

  #printValue(at: number): string {
    return this.#source.bytes[at] === TAG.unchanged
      ? '(not sent)'
      : printKey(readValue(this.#source, at, true));
  }
}

/**
 * The terms with AND between them, as a balanced tree: a chain of 1,600 would be deeper than the 1,000 levels that
 * SQLite takes. https://www.sqlite.org/limits.html#max_expr_depth
 */
function conjunction(terms: readonly string[]): string {
  if (terms.length <= 2) return terms.join(' AND ');
  const half = terms.length >> 1;
  return `(${conjunction(terms.slice(0, half))}) AND (${conjunction(terms.slice(half))})`;
}

const MAX_PRINTED_KEY = 60;

function printKey(value: SqliteValue): string {
  if (value === null) return 'NULL';
  if (Buffer.isBuffer(value)) return `x'${value.subarray(0, MAX_PRINTED_KEY / 2).toString('hex')}'`;
  return typeof value === 'string' ? JSON.stringify(value.slice(0, MAX_PRINTED_KEY)) : value.toString();
}

function divergenceError(table: string, key: string, what: 'missing' | 'present'): RivuletError {
  const message =
    what === 'missing'
      ? `a row to update or delete is not in ${table} (${key}): the file has diverged`
      : `a row to insert is in ${table} already (${key}): the file has diverged`;
  return new RivuletError('ROW_MISSING', message, {
    hint: 'the file was changed by another program, or belongs to another history; it will be made anew',
    facts: { table, key },
  });
}
