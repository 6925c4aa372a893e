import type { Database } from 'better-sqlite3';
import type { LeftOutValue } from '../change/relation.ts';

/** A value that the file has NULL for, because its row would be longer than SQLite lets a row be. */
export interface LeftOut extends LeftOutValue {
  /** SQLite's name of the table. */
  readonly table: string;
}

/** More of them say nothing new. */
const MAX_LISTED = 20;

/** It is there from the first value on: almost no file has one. */
const TABLE_SQL = `CREATE TABLE IF NOT EXISTS _rivulet_left_out (
  relation_oid INTEGER NOT NULL,
  row TEXT NOT NULL,
  column_name TEXT NOT NULL,
  bytes INTEGER NOT NULL
)`;

export function noteLeftOut(db: Database, oid: number, value: LeftOutValue): void {
  db.exec(TABLE_SQL);
  db.prepare('INSERT INTO _rivulet_left_out (relation_oid, row, column_name, bytes) VALUES (?, ?, ?, ?)').run(
    BigInt(oid),
    value.row,
    value.column,
    BigInt(value.bytes),
  );
}

/** The table's rows are gone, or come again. */
export function forgetLeftOut(db: Database, oid: number): void {
  if (hasTable(db)) db.prepare('DELETE FROM _rivulet_left_out WHERE relation_oid = ?').run(BigInt(oid));
}

/** Rows of the one are rows of the other now; of some of them: which ones these notes do not tell. */
export function shareLeftOut(db: Database, from: number, to: number): void {
  if (!hasTable(db)) return;
  db.prepare(
    `INSERT INTO _rivulet_left_out (relation_oid, row, column_name, bytes)
     SELECT ?, row, column_name, bytes FROM _rivulet_left_out WHERE relation_oid = ?`,
  ).run(BigInt(to), BigInt(from));
}

/** What the file lacks; the first few. A row that has been changed since may have its value again. */
export function readLeftOut(db: Database): readonly LeftOut[] {
  if (!hasTable(db)) return [];
  return db
    .prepare<[], LeftOut>(
      `SELECT t.sqlite_name AS "table", l.row, l.column_name AS "column", l.bytes
         FROM _rivulet_left_out l JOIN _rivulet_table t USING (relation_oid) LIMIT ${MAX_LISTED}`,
    )
    .all();
}

function hasTable(db: Database): boolean {
  return db.prepare("SELECT 1 FROM sqlite_schema WHERE name = '_rivulet_left_out'").get() !== undefined;
}

export function describeLeftOut(value: LeftOut): string {
  return `${value.table} ${describeLeftOutValue(value)}`;
}

export function describeLeftOutValue({ row, column, bytes }: LeftOutValue): string {
  return `(${row}): ${column} is left out, NULL in the file: with its ${bytes} bytes the row is longer than SQLite takes`;
}
