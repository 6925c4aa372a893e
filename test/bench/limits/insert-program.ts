import { rmSync } from 'node:fs';
import Database from 'better-sqlite3';
import { connect } from '../../../src/source/connection.ts';
import { program } from '../program.ts';

export interface InsertInput {
  readonly url: string;
  readonly rows: number;
  readonly file: string;
}

export interface InsertOutput {
  /** Of the inserts and their commit alone. */
  readonly ms: number;
}

/** Measured as the best size: more parameters in one statement gain nothing. */
const ROWS_PER_STATEMENT = 100;
/** Rows held in memory between two reads from the server, whose time does not count. */
const ROWS_PER_FETCH = 10_000;
const COLUMNS = 4;

/** Writes the rows of pgbench_accounts into a new SQLite file as fast as better-sqlite3 goes: no journal, no sync. */
await program(async ({ url, rows, file }: InsertInput): Promise<InsertOutput> => {
  const client = await connect(url, { applicationName: 'bench inserts' });
  const db = new Database(file);
  db.pragma('journal_mode = off');
  db.pragma('synchronous = off');
  db.exec(
    'create table pgbench_accounts (aid integer primary key, bid integer, abalance integer, filler text); begin',
  );
  const values = `(${Array(COLUMNS).fill('?').join(',')})`;
  const insert = db.prepare(
    `insert into pgbench_accounts values ${Array(ROWS_PER_STATEMENT).fill(values).join(',')}`,
  );
  let ms = 0;
  for (let from = 1; from <= rows; from += ROWS_PER_FETCH) {
    const fetched = await client.query({
      text: 'select * from public.pgbench_accounts where aid between $1 and $2 order by aid',
      values: [from, Math.min(rows, from + ROWS_PER_FETCH - 1)],
      rowMode: 'array',
    });
    const parameters = fetched.rows.flat() as unknown[];
    const started = performance.now();
    for (let at = 0; at < parameters.length; at += ROWS_PER_STATEMENT * COLUMNS) {
      insert.run(parameters.slice(at, at + ROWS_PER_STATEMENT * COLUMNS));
    }
    ms += performance.now() - started;
  }
  const started = performance.now();
  db.exec('commit');
  ms += performance.now() - started;
  db.close();
  rmSync(file);
  await client.end();
  return { ms };
});
