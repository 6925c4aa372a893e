import Database from 'better-sqlite3';
import pg from 'pg';
import { SESSION_SETTINGS } from '../../source/connection.ts';
import { expectedValue, type SqliteValue } from './expected-value.ts';

const ROWS_PER_FETCH = 5_000;
const MAX_DIFFERENCES = 5;

export interface FileComparison {
  readonly file: string;
  readonly rows: number;
  readonly values: number;
  /** The first few, in words; empty means equal. */
  readonly differences: readonly string[];
}

interface Table {
  readonly name: string;
  readonly columns: readonly { readonly name: string; readonly type: string; readonly isKey: boolean }[];
}

/**
 * Compares every row of every published table with each file, one by one and value by value. Nothing may be
 * written meanwhile, and every file must have reached the server's position.
 */
export async function compareWithPostgres(
  url: string,
  files: readonly string[],
  onProgress: (rows: number) => void,
): Promise<readonly FileComparison[]> {
  const client = new pg.Client({
    connectionString: url,
    application_name: 'demo comparison',
    // Every value as Postgres prints it.
    types: { getTypeParser: () => (value: string) => value } as unknown as pg.CustomTypesConfig,
  });
  client.on('error', () => undefined);
  await client.connect();
  const replicas = files.map((file) => new ReplicaUnderTest(file));
  try {
    for (const [name, value] of Object.entries(SESSION_SETTINGS)) {
      await client.query(
        'select set_config(name, $2, false) from pg_settings where lower(name) = lower($1)',
        [name, value],
      );
    }
    await client.query('begin isolation level repeatable read read only');
    for (const table of await readTables(client)) {
      for (const replica of replicas) replica.openTable(table);
      let rows = 0;
      await client.query(`declare every_row no scroll cursor for select * from public.${quote(table.name)}`);
      for (;;) {
        const fetched = await client.query<(string | null)[]>({
          text: `fetch ${ROWS_PER_FETCH} from every_row`,
          rowMode: 'array',
        });
        for (const row of fetched.rows) {
          const expected = row.map((text, index) => expectedValue(text, table.columns[index]!.type));
          for (const replica of replicas) replica.checkRow(expected);
        }
        rows += fetched.rows.length;
        onProgress(fetched.rows.length);
        if (fetched.rows.length < ROWS_PER_FETCH) break;
        // The terminal and the signals get their turn between two batches.
        await new Promise((resolve) => setImmediate(resolve));
      }
      await client.query('close every_row');
      for (const replica of replicas) replica.checkCount(rows);
    }
    return replicas.map((replica) => replica.result());
  } finally {
    for (const replica of replicas) replica.close();
    await client.end().catch(() => undefined);
  }
}

async function readTables(client: pg.Client): Promise<readonly Table[]> {
  const { rows } = await client.query<{ table: string; column: string; type: string; is_key: string }>(
    `select c.relname as table, a.attname as column, format_type(a.atttypid, a.atttypmod) as type,
            coalesce(a.attnum = any (i.indkey), false) as is_key
       from pg_class c
       join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'public'
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       left join pg_index i on i.indrelid = c.oid and i.indisprimary
      where c.relkind = 'r'
      order by c.relname, a.attnum`,
  );
  const tables = new Map<string, { name: string; type: string; isKey: boolean }[]>();
  for (const row of rows) {
    const columns = tables.get(row.table) ?? [];
    columns.push({ name: row.column, type: row.type, isKey: row.is_key === 't' });
    tables.set(row.table, columns);
  }
  return [...tables].map(([name, columns]) => ({ name, columns }));
}

class ReplicaUnderTest {
  readonly #file: string;
  readonly #database: Database.Database;
  readonly #differences: string[] = [];
  #table: Table | null = null;
  #byKey: Database.Statement | null = null;
  #rows = 0;
  #values = 0;

  constructor(file: string) {
    this.#file = file;
    this.#database = new Database(file, { readonly: true, fileMustExist: true });
    this.#database.defaultSafeIntegers(true);
    // One state of the file for the whole comparison, as on the other side.
    this.#database.exec('begin');
  }

  openTable(table: Table): void {
    this.#table = table;
    const columns = table.columns.map((column) => quote(column.name)).join(', ');
    const key = table.columns.filter((column) => column.isKey).map((column) => `${quote(column.name)} is ?`);
    try {
      this.#byKey = this.#database
        .prepare(`select ${columns} from ${quote(table.name)} where ${key.join(' and ')}`)
        .raw(true);
    } catch (error) {
      this.#byKey = null;
      this.#differ(`${table.name}: ${(error as Error).message}`);
    }
  }

  checkRow(expected: readonly SqliteValue[]): void {
    const table = this.#table!;
    if (this.#byKey === null) return;
    const key = expected.filter((_, index) => table.columns[index]!.isKey);
    const actual = this.#byKey.get(...key) as SqliteValue[] | undefined;
    this.#rows++;
    const name = `${table.name} ${key.map(String).join(', ')}`;
    if (actual === undefined) {
      this.#differ(`${name} is missing`);
      return;
    }
    for (let index = 0; index < expected.length; index++) {
      this.#values++;
      if (!isSame(expected[index]!, actual[index]!)) {
        this.#differ(
          `${name}: ${table.columns[index]!.name} is ${show(actual[index]!)}, not ${show(expected[index]!)}`,
        );
      }
    }
  }

  /** Every row of Postgres is there; this finds those that should not be. */
  checkCount(expected: number): void {
    const table = this.#table!;
    if (this.#byKey === null) return;
    const count = Number(
      this.#database
        .prepare(`select count(*) from ${quote(table.name)}`)
        .pluck()
        .get(),
    );
    if (count !== expected) this.#differ(`${table.name} has ${count} rows, not ${expected}`);
  }

  result(): FileComparison {
    return { file: this.#file, rows: this.#rows, values: this.#values, differences: this.#differences };
  }

  close(): void {
    this.#database.close();
  }

  #differ(what: string): void {
    if (this.#differences.length < MAX_DIFFERENCES) this.#differences.push(what);
  }
}

function isSame(expected: SqliteValue, actual: SqliteValue): boolean {
  if (Buffer.isBuffer(expected)) return Buffer.isBuffer(actual) && expected.equals(actual);
  return expected === actual;
}

function show(value: SqliteValue): string {
  if (Buffer.isBuffer(value)) return `a blob of ${value.length} bytes`;
  return typeof value === 'string' ? JSON.stringify(value.slice(0, 60)) : `${value}`;
}

function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}
