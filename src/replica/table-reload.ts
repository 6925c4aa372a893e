import type { Database, Statement } from 'better-sqlite3';
import { CHANGE_HEADER_BYTES } from '../change/frame.ts';
import type { Relation } from '../change/relation.ts';
import { isInSnapshot, type Snapshot } from '../change/snapshot.ts';
import { assignColumnNames, type NameAssignment, RESERVED_PREFIX } from './naming.ts';
import { canEnforceKey, type TableLayout } from './table-layout.ts';
import { TableWriter } from './table-writer.ts';
import { TupleSource } from './tuple.ts';

/** Changes that were held back are looked through and applied so many at a time: more would fold no better. */
const DRAIN_ROWS = 10_000;
const DRAIN_BYTES = 1024 * 1024;

export function reloadTableName(oid: number): string {
  return `${RESERVED_PREFIX}reload_${oid}`;
}

/** The shape of the table that rows are read into, from the definition it will have and the table that is there. */
export function reloadLayout(relation: Relation, layouts: ReadonlyMap<number, TableLayout>): TableLayout {
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
    generation: before === undefined ? 0 : before.generation + 1,
  };
}

/** What the file holds of tables that were being read again when it was closed. */
export function readReloads(db: Database, layouts: ReadonlyMap<number, TableLayout>): TableReload[] {
  return db
    .prepare<[], string>('SELECT definition FROM _rivulet_reload ORDER BY relation_oid')
    .pluck()
    .all()
    .map((definition) => new TableReload(db, reloadLayout(JSON.parse(definition) as Relation, layouts)));
}

/**
 * A table whose rows Postgres touched without sending them, while they are read again: they gather in a table
 * that nobody sees, and readers keep the old one until the new is whole.
 *
 * From the schema change on, the table's own changes are held back in the file, each with its transaction. The
 * snapshot that the rows are of tells which of them it contains: those are dropped. The others are applied in
 * order behind the last row. Everything is in SQLite transactions with the position, so a crash costs nothing.
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

  /** Rows of this snapshot come from now on; those of a reading before, which broke off, are void. */
  begin(snapshot: Snapshot): void {
    const { oid } = this.layout.relation;
    this.#db.exec(`DELETE FROM "${this.layout.sqliteName}"`);
    const next = this.#db.prepare<[number, number, number], { seq: number; xid: number }>(
      'SELECT seq, xid FROM _rivulet_reload_change WHERE relation_oid = ? AND seq > ? ORDER BY seq LIMIT ?',
    );
    const drop = this.#db.prepare('DELETE FROM _rivulet_reload_change WHERE seq = ?');
    for (let last = 0; ; ) {
      const rows = next.all(oid, last, DRAIN_ROWS);
      if (rows.length === 0) return;
      for (const { seq, xid } of rows) if (isInSnapshot(snapshot, xid)) drop.run(seq);
      last = rows.at(-1)!.seq;
    }
  }

  /** Applies what was held back: the table is then as of this place in the stream. */
  drain(): void {
    const source = new TupleSource();
    const writer = new TableWriter(this.#db, this.layout, source);
    const next = this.#db.prepare<[number, number, number, number], { seq: number; change: Buffer }>(
      `SELECT seq, change FROM (
         SELECT seq, change, sum(length(change)) OVER (ORDER BY seq) - length(change) AS bytes_before
         FROM _rivulet_reload_change WHERE relation_oid = ? AND seq > ? ORDER BY seq LIMIT ?
       ) WHERE bytes_before < ?`,
    );
    for (let last = 0; ; ) {
      const rows = next.all(this.layout.relation.oid, last, DRAIN_ROWS, DRAIN_BYTES);
      if (rows.length === 0) return;
      source.set(Buffer.concat(rows.map(({ change }) => change)));
      let at = 0;
      for (const { change } of rows) {
        writer.change(change[0]!, at + CHANGE_HEADER_BYTES);
        at += change.length;
      }
      writer.flush();
      last = rows.at(-1)!.seq;
    }
  }
}
