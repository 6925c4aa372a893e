import type { Database } from 'better-sqlite3';
import type { LocalType } from './local-statement.ts';
import { foldName, quoteName } from './naming.ts';

/** A row of `_rivulet_local_object`. */
export interface LocalRecord {
  readonly name: string;
  readonly type: LocalType;
  /** As it stands in the file: SQLite rewrites it when a table or column is renamed. */
  readonly sql: string;
  /** Of the declaration that it was made from. */
  readonly hash: string;
  /** Why it is not there; null where it is. */
  readonly reason: string | null;
}

export const LOCAL_OBJECT_TABLE = '_rivulet_local_object';

/** By folded name; empty where nothing was ever declared. */
export function readRecords(db: Database): ReadonlyMap<string, LocalRecord> {
  const exists = db
    .prepare<[string], 1>("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?")
    .pluck();
  if (exists.get(LOCAL_OBJECT_TABLE) === undefined) return new Map();
  const rows = db
    .prepare<[], LocalRecord>('SELECT name, type, sql, hash, reason FROM _rivulet_local_object')
    .all();
  return new Map(rows.map((row) => [foldName(row.name), row]));
}

/** In place of all that were there. */
export function writeRecords(db: Database, records: readonly LocalRecord[]): void {
  db.exec(`DELETE FROM ${LOCAL_OBJECT_TABLE}`);
  const insert = db.prepare(
    `INSERT INTO ${LOCAL_OBJECT_TABLE} (name, type, sql, hash, reason) VALUES (?, ?, ?, ?, ?)`,
  );
  for (const { name, type, sql, hash, reason } of records) insert.run(name, type, sql, hash, reason);
}

export function dropObject(
  db: Database,
  { type, name }: { readonly type: LocalType; readonly name: string },
): void {
  db.exec(`DROP ${type.toUpperCase()} IF EXISTS ${quoteName(name)}`);
}
