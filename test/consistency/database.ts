import type Database from 'better-sqlite3';
import type pg from 'pg';
import type { Position } from '../../src/token.ts';
import { PAIR_SUM } from './history.ts';

export async function createTables(client: Pick<pg.Client, 'query'>, sessions: number): Promise<void> {
  await client.query(`
    create table note (session int primary key, version int not null);
    create table account (session int, side int, amount int not null, primary key (session, side));
    insert into note select s, 0 from generate_series(1, ${sessions}) s;
    insert into account select s, side, case side when 0 then ${PAIR_SUM} else 0 end
      from generate_series(1, ${sessions}) s, generate_series(0, 1) side`);
}

/** One transaction: the session's version, and an amount from one of its rows to the other. */
export function writeQuery(session: number, version: number): { text: string; values: number[] } {
  return {
    text: `with versioned as (update note set version = $2 where session = $1),
                taken as (update account set amount = amount - $3 where session = $1 and side = 0)
           update account set amount = amount + $3 where session = $1 and side = 1`,
    values: [session, version, 1 + (version % 7)],
  };
}

export interface Row {
  readonly session: number;
  /** -1 where the row is not there. */
  readonly version: number;
  readonly sum: number;
}

/** The sessions' rows and the file's position, all of one state of the file. */
export function readRows(
  db: Database.Database,
  sessions: readonly number[],
): { readonly rows: readonly Row[]; readonly position: Position } {
  return statements(db).read(sessions);
}

/** As an app must not read: each statement of another state of the file. */
export function readTorn(db: Database.Database, sessions: readonly number[]): readonly Row[] {
  const { note, account } = statements(db);
  return sessions.map((session) => {
    const first = account.get(session, 0) ?? -1;
    const until = performance.now() + TORN_MS;
    while (performance.now() < until);
    return { session, version: note.get(session) ?? -1, sum: first + (account.get(session, 1) ?? -1) };
  });
}

/** Between the statements of a torn read: long enough that something is applied. */
const TORN_MS = 3;

interface Statements {
  readonly note: Database.Statement<[number], number>;
  readonly account: Database.Statement<[number, number], number>;
  readonly read: (sessions: readonly number[]) => { rows: Row[]; position: Position };
}

/** A replica gives out another object after a new bootstrap. */
const prepared = new WeakMap<Database.Database, Statements>();

function statements(db: Database.Database): Statements {
  const known = prepared.get(db);
  if (known !== undefined) return known;
  const note = db.prepare<[number], number>('select version from note where session = ?').pluck();
  const account = db
    .prepare<[number, number], number>('select amount from account where session = ? and side = ?')
    .pluck();
  const position = db
    .prepare<[], { epoch: string; lsn_int: bigint }>('select epoch, lsn_int from _rivulet_position')
    .safeIntegers();
  const read = db.transaction((sessions: readonly number[]) => {
    const { epoch, lsn_int } = position.get()!;
    const rows = sessions.map((session) => ({
      session,
      version: note.get(session) ?? -1,
      sum: (account.get(session, 0) ?? -1) + (account.get(session, 1) ?? -1),
    }));
    return { rows, position: { epoch, lsn: BigInt.asUintN(64, lsn_int) } };
  });
  const made: Statements = { note, account, read };
  prepared.set(db, made);
  return made;
}
