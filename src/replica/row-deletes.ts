import type { Statement } from 'better-sqlite3';
import { ROW, type RowFold } from './row-fold.ts';
import { readValue, type SqliteValue, type TupleSource, valueAt } from './tuple.ts';
import type { WrittenTable } from './written-table.ts';

/** Keys of one statement: past some thirty nothing is gained any more. */
const MAX_KEYS = 32;

/** Writes the deletes that are left of a batch: many rows with one statement where one column finds them. */
export class RowDeletes {
  readonly #table: WrittenTable;
  readonly #source: TupleSource;
  readonly #keysPerStatement: number;
  #one: Statement | null = null;
  #many: Statement | null = null;

  constructor(table: WrittenTable) {
    this.#table = table;
    this.#source = table.source;
    this.#keysPerStatement = table.locators.length === 1 ? MAX_KEYS : 1;
  }

  /** `count` is how many there are. */
  flush(fold: RowFold, count: number): void {
    const { slotCount } = fold;
    const perStatement = this.#keysPerStatement;
    let left = count;
    let slot = 0;
    if (perStatement > 1 && left >= perStatement) {
      const { db, name, columns, locators } = this.#table;
      this.#many ??= db.prepare(
        `DELETE FROM ${name} WHERE ${columns[locators[0]!]} IN (${new Array(perStatement).fill('?').join(', ')})`,
      );
      const args = new Array<SqliteValue>(perStatement);
      while (left >= perStatement) {
        for (let index = 0; index < perStatement; slot++) {
          if (fold.action(slot) === ROW.delete) args[index++] = this.#firstKeyValue(fold, slot);
        }
        const { changes } = this.#many.run(...args);
        if (changes !== perStatement) throw this.#table.missingAmong(args, changes);
        left -= perStatement;
      }
    }
    if (left === 0) return;
    for (; slot < slotCount; slot++) {
      if (fold.action(slot) !== ROW.delete) continue;
      const tuple = fold.newestTuple(slot);
      const isKeyTuple = fold.isKeyTuple(slot);
      if (!this.one(tuple, isKeyTuple)) throw this.#table.diverged('missing', tuple, isKeyTuple);
    }
  }

  /** Deletes one row by its locator. False if it is not there. */
  one(tuple: number, isKeyTuple: boolean): boolean {
    const { db, name, whereLocators } = this.#table;
    this.#one ??= db.prepare(`DELETE FROM ${name} WHERE ${whereLocators}`);
    return this.#one.run(...this.#table.locatorValues(tuple, isKeyTuple)).changes > 0;
  }

  #firstKeyValue(fold: RowFold, slot: number): SqliteValue {
    const column = this.#table.locators[0]!;
    const at = valueAt(this.#source.bytes, fold.newestTuple(slot), fold.isKeyTuple(slot) ? 0 : column);
    return readValue(this.#source, at, this.#table.exactIntegers[column]!);
  }
}
