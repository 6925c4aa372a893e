import Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import type { Fail, LocalFill, LocalObject } from './local-statement.ts';
import { quoteName } from './naming.ts';
import { splitScript } from './sql-script.ts';

/** What SQLite says of a statement that it cannot read, whatever tables there are. */
const NO_SQL = /syntax error|incomplete input|unrecognized token|no such (module|function|tokenizer)/;
/** What it says of one that may be right in the file which it is for. */
const UNKNOWN_HERE = /^no such (table|column)|has no column named/;

/** Has SQLite read the statements, in an empty database: it knows its own language best. */
export function checkSyntax(statements: readonly (LocalObject | LocalFill)[], fail: Fail): void {
  const db = new Database(':memory:');
  try {
    db.pragma('foreign_keys = OFF');
    for (const statement of statements) {
      const message = problemOf(db, statement);
      if (message !== null) fail(lineOf(statement, message), message);
    }
  } finally {
    db.close();
  }
}

function problemOf(db: Database.Database, statement: LocalObject | LocalFill): string | null {
  for (;;) {
    try {
      // A fill only makes sense where the tables are that it reads from.
      if (statement.kind === 'fill') db.prepare(statement.sql);
      else db.exec(statement.sql);
      return null;
    } catch (error) {
      if (error instanceof RivuletError) throw error;
      const { message } = error as Error;
      const missing = /^no such table: (?:main\.)?(.*)$/s.exec(message)?.[1];
      if (statement.kind === 'object' && missing !== undefined && missing === statement.on) {
        // Without the table SQLite reads no further than its name.
        db.exec(`CREATE TABLE ${quoteName(missing)} (_rivulet_column)`);
        continue;
      }
      const isFatal =
        statement.kind === 'fill' || statement.type === 'index'
          ? NO_SQL.test(message) || (statement.kind === 'object' && !UNKNOWN_HERE.test(message))
          : true;
      return isFatal ? message : null;
    }
  }
}

/** The line of the token that SQLite names, if the statement has it once; otherwise that of the statement. */
function lineOf({ sql, line }: LocalObject | LocalFill, message: string): number {
  const near = /^(?:near "(.*)": syntax error|unrecognized token: "(.*)")$/s.exec(message);
  const text = near?.[1] ?? near?.[2];
  const tokens = splitScript(sql)
    .flatMap((statement) => statement.tokens)
    .filter((token) => token.text === text);
  return tokens.length === 1 ? line + tokens[0]!.line - 1 : line;
}
