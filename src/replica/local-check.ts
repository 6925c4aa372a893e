import type { Database } from 'better-sqlite3';
import type { LocalObject } from './local-statement.ts';
import { foldName, quoteName } from './naming.ts';

/**
 * Throws, with SQLite's own words, if a view cannot be read or a full-text table has lost what it indexes.
 * Neither is noticed when it is made.
 */
export function checkReadable(db: Database, object: LocalObject): void {
  const name = quoteName(object.name);
  if (object.type === 'view') db.prepare(`SELECT * FROM ${name}`);
  else if (object.module?.toLowerCase() === 'fts5') db.prepare(`SELECT * FROM ${name} WHERE rowid = 0`).get();
}

/** Names of what the script has made, folded. */
export interface OwnObjects {
  readonly triggers: ReadonlySet<string>;
  readonly tables: ReadonlySet<string>;
}

/**
 * Throws if a trigger cannot run, or would write into tables that are not the script's own, be it through other
 * triggers of the script. SQLite compiles a trigger with the statement that fires it, so that statement's program is
 * looked at, without being run: https://www.sqlite.org/opcode.html. It has the triggers' programs behind its
 * own, each with a header, and names what they write into by its root page.
 */
export function checkTrigger(db: Database, trigger: LocalObject, own: OwnObjects): void {
  const { event, columns } = trigger.trigger!;
  const on = trigger.on!;
  const existing = db.prepare<[string], string>('SELECT name FROM pragma_table_info(?)').pluck().all(on);
  const missing = columns.find((column) => !existing.some((name) => foldName(name) === foldName(column)));
  if (missing !== undefined) throw new Error(`no such column: ${missing}`);
  const table = quoteName(on);
  const firing = {
    INSERT: `INSERT INTO ${table} DEFAULT VALUES`,
    UPDATE: `UPDATE ${table} SET ${existing.map((name) => `${quoteName(name)} = ${quoteName(name)}`).join(', ')}`,
    DELETE: `DELETE FROM ${table}`,
  }[event];
  let isOwn = false;
  for (const { opcode, p1, p2, p4 } of db.prepare<[], Instruction>(`EXPLAIN ${firing}`).all()) {
    if (opcode === 'Init') isOwn = own.triggers.has(foldName(/^-- TRIGGER (.*)$/s.exec(p4 ?? '')?.[1] ?? ''));
    if (!isOwn || (opcode !== 'OpenWrite' && opcode !== 'Clear')) continue;
    const written = db
      .prepare<[number], string>('SELECT tbl_name FROM sqlite_schema WHERE rootpage = ?')
      .pluck()
      .get(opcode === 'OpenWrite' ? p2 : p1);
    if (written === undefined || !own.tables.has(foldName(written)))
      throw new Error(`it would write into ${written ?? 'a table that is not its own'}`);
  }
}

interface Instruction {
  readonly opcode: string;
  readonly p1: number;
  readonly p2: number;
  readonly p4: string | null;
}
