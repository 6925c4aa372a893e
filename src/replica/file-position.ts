import type Database from 'better-sqlite3';
import { parseLsn } from '../lsn.ts';
import type { Position } from '../token.ts';

/** What a position is read from. */
export const POSITION_COLUMNS = 'epoch, lsn_int as lsn, nullif(applied_lsn, lsn) as applied';

export interface PositionRow {
  readonly epoch: string;
  readonly lsn: bigint;
  /** Only where it differs: while tables are read again. */
  readonly applied: string | null;
}

/** The row, with safe integers; lsn_int is signed in SQLite, an LSN is not. */
export function toPosition({ epoch, lsn, applied }: PositionRow): Position {
  const position = { epoch, lsn: BigInt.asUintN(64, lsn) };
  return applied === null ? position : { ...position, seen: parseLsn(applied) };
}

const STATEMENTS = new WeakMap<Database.Database, Database.Statement<[], PositionRow>>();

/**
 * The position as this connection sees it. What a reader was shown goes by this one: the process that keeps the
 * file hears of a commit a moment after its readers can see it.
 */
export function filePosition(db: Database.Database): Position {
  let statement = STATEMENTS.get(db);
  if (statement === undefined) {
    statement = db
      .prepare<[], PositionRow>(`select ${POSITION_COLUMNS} from _rivulet_position`)
      .safeIntegers() as Database.Statement<[], PositionRow>;
    STATEMENTS.set(db, statement);
  }
  return toPosition(statement.get()!);
}
