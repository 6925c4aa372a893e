import type Database from 'better-sqlite3';
import { parseLsn } from '../lsn.ts';
import type { Position } from '../token.ts';

type Row = {
  readonly epoch: string;
  readonly lsn: bigint;
  /** Only where it differs: while tables are read again. */
  readonly applied: string | null;
};

const STATEMENTS = new WeakMap<Database.Database, Database.Statement<[], Row>>();

/**
 * The position as this connection sees it. What a reader was shown goes by this one: the process that keeps the
 * file hears of a commit a moment after its readers can see it.
 */
export function filePosition(db: Database.Database): Position {
  let statement = STATEMENTS.get(db);
  if (statement === undefined) {
    statement = db
      .prepare<[], Row>(
        'select epoch, lsn_int as lsn, nullif(applied_lsn, lsn) as applied from _rivulet_position',
      )
      .safeIntegers() as Database.Statement<[], Row>;
    STATEMENTS.set(db, statement);
  }
  const { epoch, lsn, applied } = statement.get()!;
  const position = { epoch, lsn: BigInt.asUintN(64, lsn) };
  return applied === null ? position : { ...position, seen: parseLsn(applied) };
}
