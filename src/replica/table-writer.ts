import type { Database } from 'better-sqlite3';
import { CHANGE } from '../change/frame.ts';
import { ProtocolError } from '../errors.ts';
import { RowDeletes } from './row-deletes.ts';
import { ROW, RowFold } from './row-fold.ts';
import { RowInserts } from './row-inserts.ts';
import { RowUpdates } from './row-updates.ts';
import { SingleRows } from './single-rows.ts';
import { locatesByKey, type TableLayout } from './table-layout.ts';
import { hasUnchanged, type TupleSource, tupleEnd } from './tuple.ts';
import { UpdateStatements } from './update-statements.ts';
import { WrittenTable } from './written-table.ts';

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
  readonly #truncate: string;
  readonly #isFolded: boolean;
  readonly #fold: RowFold;
  readonly #inserts: RowInserts;
  readonly #updates: RowUpdates;
  readonly #deletes: RowDeletes;
  readonly #single: SingleRows;

  /** `replaces`: an inserted row takes the place of one that has its key. */
  constructor(
    db: Database,
    layout: TableLayout,
    source: TupleSource,
    { replaces = false }: { readonly replaces?: boolean } = {},
  ) {
    const table = new WrittenTable(db, layout, source);
    const updates = new UpdateStatements(table);
    this.layout = layout;
    this.#db = db;
    this.#source = source;
    this.#truncate = `DELETE FROM ${table.name}`;
    this.#isFolded = locatesByKey(layout);
    this.#fold = new RowFold(
      source,
      table.locators,
      (what, tuple, isKey) => table.diverged(what, tuple, isKey),
      { mayVanish: table.mayVanish },
    );
    this.#inserts = new RowInserts(table, replaces);
    this.#updates = new RowUpdates(table, updates);
    this.#deletes = new RowDeletes(table);
    this.#single = new SingleRows({
      table,
      updates,
      deletes: this.#deletes,
      writeWaiting: () => this.#writeWaiting(),
    });
  }

  /** Takes one change whose body stands at `body`. It is in the table after flush() at the latest. */
  change(kind: number, body: number): void {
    switch (kind) {
      case CHANGE.insert:
        this.#fold.insert(body);
        break;
      case CHANGE.update:
        if (this.#isFolded) this.#fold.update(body);
        else this.#single.update(null, body);
        break;
      case CHANGE.updateKey:
        this.#updateKey(body);
        break;
      case CHANGE.updateFull: {
        const tuple = tupleEnd(this.#source.bytes, body);
        if (this.#isFolded) this.#fold.updateFull(body, tuple);
        else this.#single.updateRow(body, tuple);
        break;
      }
      case CHANGE.deleteKey:
        if (this.#isFolded) this.#fold.deleteKey(body);
        else this.#single.deleteByKey(body);
        break;
      case CHANGE.deleteFull:
        if (this.#isFolded) this.#fold.deleteFull(body);
        else this.#single.deleteRow(body);
        break;
      case CHANGE.truncate:
        this.#fold.clear();
        this.#db.prepare(this.#truncate).run();
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
    if (deletes > 0) this.#deletes.flush(fold, deletes);
    if (updates > 0) this.#updates.flush(fold, updates);
    if (inserts > 0) this.#inserts.flush(fold, inserts);
    fold.clear();
  }

  #updateKey(oldKey: number): void {
    const { bytes } = this.#source;
    const tuple = tupleEnd(bytes, oldKey);
    if (this.#isFolded && !hasUnchanged(bytes, tuple)) {
      this.#fold.updateKey(oldKey, tuple);
      return;
    }
    // The values that were not sent are only in the row itself: it must keep them while its key changes.
    if (this.#isFolded) this.flush();
    this.#single.update(oldKey, tuple);
  }

  #writeWaiting(): boolean {
    if (this.#fold.slotCount === 0) return false;
    this.flush();
    return true;
  }
}
