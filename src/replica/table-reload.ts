import type { Database, Statement } from 'better-sqlite3';
import { CHANGE, CHANGE_HEADER_BYTES } from '../change/frame.ts';
import { locatorColumns, type Relation } from '../change/relation.ts';
import { isInSnapshot, type ReloadBegin } from '../change/snapshot.ts';
import { assignColumnNames, type NameAssignment, quoteName, RESERVED_PREFIX } from './naming.ts';
import { canEnforceKey, type TableLayout } from './table-layout.ts';
import { TableWriter } from './table-writer.ts';
import { hasUnchanged, readValue, TupleSource, tupleEnd, valueAt } from './tuple.ts';

/** Changes that were held back are looked through and applied so many at a time: more would fold no better. */
const DRAIN_ROWS = 10_000;
const DRAIN_BYTES = 1024 * 1024;

export function reloadTableName(oid: number): string {
  return `${RESERVED_PREFIX}reload_${oid}`;
}

/** The shape of the table that rows are read into, from the definition it will have and the table that is there. */
export function reloadLayout(
  relation: Relation,
  generation: number,
  layouts: ReadonlyMap<number, TableLayout>,
): TableLayout {
  const before = layouts.get(relation.oid);
  const existing = new Map(
    before?.relation.columns.map((column, index): [number, NameAssignment] => [
      column.attnum,
      { source: column.name, sqliteName: before.columnNames[index]! },
    ]),
  );
  const names = assignColumnNames(relation.columns, existing);
  return {
    relation,
    sqliteName: reloadTableName(relation.oid),
    columnNames: relation.columns.map((column) => names.get(column.attnum)!),
    keyIsEnforced: canEnforceKey(relation),
    generation,
  };
}

/** What the file holds of tables that were being read again when it was closed. */
export function readReloads(db: Database, layouts: ReadonlyMap<number, TableLayout>): TableReload[] {
  return db
    .prepare<[], { definition: string; generation: number }>(
      'SELECT definition, generation FROM _rivulet_reload ORDER BY relation_oid',
    )
    .all()
    .map(
      ({ definition, generation }) =>
        new TableReload(db, reloadLayout(JSON.parse(definition) as Relation, generation, layouts)),
    );
}

/**
 * A table whose rows Postgres touched without sending them, while they are read again: they gather in a table
 * that nobody sees, and readers keep the old one until the new is whole.
 *
 * From the schema change on, the table's own changes are held back in the file, each with its transaction. Rows
 * come in pieces, each as of one snapshot, which tells which of the changes it contains: those are applied to the
 * pieces before it, so that all of the table that is there is as of one moment. What is left at the end is applied
 * behind the last row. Everything is in SQLite transactions with the position, so a crash costs nothing.
 */
export class TableReload {
  readonly layout: TableLayout;
  readonly #db: Database;
  readonly #hold: Statement;

  constructor(db: Database, layout: TableLayout) {
    this.#db = db;
    this.layout = layout;
    this.#hold = db.prepare(
      'INSERT INTO _rivulet_reload_change (relation_oid, xid, change) VALUES (?, ?, ?)',
    );
  }

  /** Keeps a change (from its kind to the end of its body) for when the rows have come. */
  hold(change: Buffer, xid: number): void {
    this.#hold.run(this.layout.relation.oid, xid, change);
  }

  /**
   * Rows of this snapshot come from now on. What there is of the table is brought to the same moment: with the
   * changes that the snapshot contains, or, if it is read from the beginning, by emptying it.
   */
  begin({ snapshot, isFirst }: ReloadBegin): void {
    if (isFirst) this.#db.exec(`DELETE FROM ${quoteName(this.layout.sqliteName)}`);
    const writer = isFirst ? null : new PartialWriter(this.#db, this.layout);
    const drop = this.#db.prepare('DELETE FROM _rivulet_reload_change WHERE seq = ?');
    for (const { seq, xid, change } of this.#held()) {
      if (!isInSnapshot(snapshot, xid)) continue;
      writer?.apply(change);
      drop.run(seq);
    }
  }

  /** Takes rows: those that changes brought already are replaced. */
  rowWriter(source: TupleSource): TableWriter {
    return new TableWriter(this.#db, this.layout, source, { replaces: this.layout.keyIsEnforced });
  }

  /** Applies what was held back: the table is then as of this place in the stream. */
  drain(): void {
    const source = new TupleSource();
    const writer = new TableWriter(this.#db, this.layout, source);
    let batch: Buffer[] = [];
    let bytes = 0;
    const apply = (): void => {
      source.set(Buffer.concat(batch));
      let at = 0;
      for (const change of batch) {
        writer.change(change[0]!, at + CHANGE_HEADER_BYTES);
        at += change.length;
      }
      writer.flush();
      batch = [];
      bytes = 0;
    };
    for (const { change } of this.#held()) {
      batch.push(change);
      bytes += change.length;
      if (bytes >= DRAIN_BYTES) apply();
    }
    apply();
  }

  /** What is held back, in order, some at a time: rows may be deleted behind it meanwhile. */
  *#held(): Generator<HeldChange> {
    const next = this.#db.prepare<[number, number, number, number], HeldChange>(
      `SELECT seq, xid, change FROM (
         SELECT seq, xid, change, sum(length(change)) OVER (ORDER BY seq) - length(change) AS bytes_before
         FROM _rivulet_reload_change WHERE relation_oid = ? AND seq > ? ORDER BY seq LIMIT ?
       ) WHERE bytes_before < ?`,
    );
    for (let last = 0; ; ) {
      const rows = next.all(this.layout.relation.oid, last, DRAIN_ROWS, DRAIN_BYTES);
      if (rows.length === 0) return;
      yield* rows;
      last = rows.at(-1)!.seq;
    }
  }
}

interface HeldChange {
  readonly seq: number;
  readonly xid: number;
  readonly change: Buffer;
}

/**
 * Applies changes to a table of which only a part is there. A change of a row that is not is none of its
 * business: the row will come in a later piece, newer than the change. A row that gets its key from a row that is
 * not there is taken, since its key may lie in the part that is.
 */
class PartialWriter {
  readonly #source = new TupleSource();
  readonly #writer: TableWriter;
  readonly #locators: readonly number[];
  readonly #find: Statement;
  readonly #exactIntegers: readonly boolean[];

  constructor(db: Database, layout: TableLayout) {
    const { relation, columnNames, sqliteName } = layout;
    this.#writer = new TableWriter(db, layout, this.#source, { replaces: true });
    this.#locators = locatorColumns(relation);
    this.#exactIntegers = relation.columns.map((column) => column.mapping === 'numeric');
    const where = this.#locators.map((column) => `${quoteName(columnNames[column]!)} = ?`).join(' AND ');
    this.#find = db.prepare(`SELECT 1 FROM ${quoteName(sqliteName)} WHERE ${where}`);
  }

  apply(change: Buffer): void {
    this.#source.set(change);
    const kind = change[0]!;
    const body = CHANGE_HEADER_BYTES;
    if (kind === CHANGE.insert || kind === CHANGE.truncate) {
      this.#writer.change(kind, body);
    } else if (this.#isThere(body, kind === CHANGE.updateKey || kind === CHANGE.deleteKey)) {
      this.#writer.change(kind, body);
    } else if (kind === CHANGE.updateKey) {
      const tuple = tupleEnd(change, body);
      // Without all of its values the table is read from the beginning again, in one snapshot.
      if (!hasUnchanged(change, tuple)) this.#writer.change(CHANGE.insert, tuple);
    }
    this.#writer.flush();
  }

  #isThere(tuple: number, isKeyTuple: boolean): boolean {
    const key = this.#locators.map((column, index) =>
      readValue(
        this.#source,
        valueAt(this.#source.bytes, tuple, isKeyTuple ? index : column),
        this.#exactIntegers[column]!,
      ),
    );
    return this.#find.get(...key) !== undefined;
  }
}
