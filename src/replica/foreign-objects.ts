import type { Database } from 'better-sqlite3';
import { foldName, quoteName, RESERVED_PREFIX } from './naming.ts';

/** Something in the file that its readers made themselves. */
export interface ForeignObject {
  readonly type: 'view' | 'trigger' | 'index';
  readonly name: string;
  /** The table it stands on, or its own name for a view. */
  readonly table: string;
  readonly sql: string;
}

/** Told of every object that had to go, and why. */
export type ObjectNotice = (object: ForeignObject & { readonly reason: string }) => void;

/** Views, triggers and indexes that are not ours: on one table (views always), or all. */
export function foreignObjects(db: Database, table?: string): readonly ForeignObject[] {
  return db
    .prepare<[], ForeignObject>(
      `SELECT type, name, tbl_name AS "table", sql FROM sqlite_schema
       WHERE type IN ('view', 'trigger', 'index') AND sql IS NOT NULL`,
    )
    .all()
    .filter(
      (object) =>
        !foldName(object.name).startsWith(RESERVED_PREFIX) &&
        (table === undefined || (object.type !== 'view' && foldName(object.table) === foldName(table))),
    );
}

export function dropForeignObject(db: Database, object: ForeignObject): void {
  db.exec(`DROP ${object.type.toUpperCase()} IF EXISTS ${quoteName(object.name)}`);
}

/**
 * Runs a schema statement; whatever of the readers' own stands in its way is dropped and reported, the least
 * that helps: the object that SQLite's message names, then those on the table, then all.
 */
export function withoutObstacles(
  db: Database,
  table: string,
  onNotice: ObjectNotice,
  statement: () => void,
): void {
  for (;;) {
    try {
      statement();
      return;
    } catch (error) {
      const { message, code } = error as Error & { code?: string };
      if (code !== 'SQLITE_ERROR') throw error;
      const all = foreignObjects(db);
      const named = all.filter(({ type, name }) => message.includes(`error in ${type} ${name}`));
      const onTable = all.filter(
        (object) => object.type !== 'view' && foldName(object.table) === foldName(table),
      );
      const obstacles = named.length > 0 ? named : onTable.length > 0 ? onTable : all;
      if (obstacles.length === 0) throw error;
      for (const object of obstacles) {
        dropForeignObject(db, object);
        onNotice({ ...object, reason: message });
      }
    }
  }
}
