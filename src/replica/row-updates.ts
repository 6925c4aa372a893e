import type { Statement } from 'better-sqlite3';
import { TAG } from '../change/frame.ts';
import { ROW, type RowFold } from './row-fold.ts';
import {
  type ColumnPlaces,
  decodeTuple,
  readValue,
  type SqliteValue,
  type TupleSource,
  valueEnd,
} from './tuple.ts';
import type { UpdateStatements } from './update-statements.ts';
import type { WrittenTable } from './written-table.ts';

/** Updates are sorted by key where there are enough of them to share pages. */
const MIN_SORTED = 16;
/** A slot's number and a 32-bit key share a double's 53 bits. */
const SLOT_BITS = 2 ** 21;

/** Writes the updates that are left of a batch, each of a whole row that its key finds. */
export class RowUpdates {
  readonly #table: WrittenTable;
  readonly #source: TupleSource;
  readonly #statements: UpdateStatements;
  /** Columns outside the key first, then the key. */
  readonly #places: ColumnPlaces;
  readonly #args: SqliteValue[];
  #whole: Statement | null = null;

  constructor(table: WrittenTable, statements: UpdateStatements) {
    this.#table = table;
    this.#source = table.source;
    this.#statements = statements;
    const count = table.columns.length;
    const places = new Array<number>(count).fill(0);
    [...table.settable, ...table.locators].forEach((column, place) => {
      places[column] = place;
    });
    this.#places = { places, exactIntegers: table.exactIntegers };
    this.#args = new Array<SqliteValue>(count).fill(null);
  }

  /** `count` is how many there are. */
  flush(fold: RowFold, count: number): void {
    const order = count >= MIN_SORTED ? this.#sorted(fold, count) : null;
    if (order !== null) {
      for (const each of order) this.#update(fold, each % SLOT_BITS);
      return;
    }
    const { slotCount } = fold;
    for (let slot = 0; slot < slotCount; slot++) {
      if (fold.action(slot) === ROW.update) this.#update(fold, slot);
    }
  }

  /** Slots in key order, behind the key in the same number: neighbours share pages. Null for other keys. */
  #sorted(fold: RowFold, count: number): Float64Array | null {
    const { slotCount } = fold;
    if (this.#table.locators.length !== 1 || slotCount > SLOT_BITS) return null;
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

  #update(fold: RowFold, slot: number): void {
    const tuple = fold.newestTuple(slot);
    const args = this.#args;
    const unchanged = decodeTuple(this.#source, tuple, this.#places, args, 0);
    if (unchanged > 0 && !this.#complete(fold, slot, tuple)) return;
    this.#whole ??= this.#statements.byLocator(this.#table.settable);
    if (this.#table.run(this.#whole, args, this.#table.settable) === 0)
      throw this.#table.diverged('missing', tuple, false);
  }

  /** Fills in values from older versions; where the batch has none, updates the other columns only. */
  #complete(fold: RowFold, slot: number, tuple: number): boolean {
    const { bytes } = this.#source;
    const { columns, settable, locators, exactIntegers } = this.#table;
    const { places } = this.#places;
    const missing = new Set<number>();
    for (let column = 0, at = tuple + 2; column < columns.length; column++, at = valueEnd(bytes, at)) {
      if (bytes[at] !== TAG.unchanged) continue;
      const older = fold.olderValue(slot, column);
      if (older < 0) missing.add(column);
      else this.#args[places[column]!] = readValue(this.#source, older, exactIntegers[column]!);
    }
    if (missing.size === 0) return true;
    const there = settable.filter((column) => !missing.has(column));
    const args = [...there, ...locators].map((column) => this.#args[places[column]!]!);
    if (this.#table.run(this.#statements.byLocator(there), args, there) === 0)
      throw this.#table.diverged('missing', tuple, false);
    return false;
  }
}
