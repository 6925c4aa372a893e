import type { Database } from 'better-sqlite3';
import { quoteName, RESERVED_PREFIX } from './naming.ts';

const PREFIX = `${RESERVED_PREFIX}replaced_`;
const REPLACED = `SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '${PREFIX}*'`;

/** Some hundred microseconds' worth. */
const ROWS_PER_STEP = 500;

/**
 * The name under which a table that is gone, or was replaced, waits to be deleted. DROP TABLE visits every page,
 * a third of a second for a million rows: too long for the transactions behind it.
 */
export function replacedTableName(oid: number, generation: number): string {
  return `${PREFIX}${oid}_${generation}`;
}

/** A generation that no table of this OID has that waits to be deleted: indexes are named by it. */
export function freeGeneration(db: Database, oid: number): number {
  const waiting = db
    .prepare<[], string>(
      `SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '${PREFIX}${oid}_*'`,
    )
    .pluck()
    .all();
  return Math.max(-1, ...waiting.map((name) => Number(name.slice(name.lastIndexOf('_') + 1)))) + 1;
}

/** Deletes a little of what has been replaced, in a transaction of its own. False: there is nothing left. */
export function sweepReplaced(db: Database): boolean {
  const table = db.prepare<[], string>(REPLACED).pluck().get();
  if (table === undefined) return false;
  const index = db
    .prepare<[string], string>(
      "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL LIMIT 1",
    )
    .pluck()
    .get(table);
  if (index !== undefined) {
    db.exec(`DROP INDEX ${quoteName(index)}`);
  } else {
    const { changes } = db.prepare(`DELETE FROM ${quoteName(table)} LIMIT ${ROWS_PER_STEP}`).run();
    if (changes < ROWS_PER_STEP) db.exec(`DROP TABLE ${quoteName(table)}`);
  }
  return true;
}

/** All at once, where nobody waits: before a file is handed out. */
export function dropReplaced(db: Database): void {
  for (const table of db.prepare<[], string>(REPLACED).pluck().all())
    db.exec(`DROP TABLE ${quoteName(table)}`);
}
