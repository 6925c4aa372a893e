import { hash } from 'node:crypto';
import { basename } from 'node:path';
import Database from 'better-sqlite3';
import pg from 'pg';
import { actualValue, type ExpectedType, expectedValue } from './expected-value.ts';

/**
 * Settings that decide how values print. Written here once more: a mistake in Rivulet's own must show. With the
 * narrow search_path, names of tables and types print qualified, as they do in the stream.
 */
const SETTINGS = {
  datestyle: 'ISO, MDY',
  timezone: 'UTC',
  intervalstyle: 'postgres',
  extra_float_digits: '3',
  bytea_output: 'hex',
  lc_monetary: 'C',
  search_path: 'pg_catalog',
  row_security: 'off',
};

export interface ComparisonOptions {
  readonly url: string;
  readonly files: readonly string[];
  readonly publication?: string;
  /** Only tables of schemas for which this holds. */
  readonly isWanted?: (schema: string) => boolean;
  /** Also the file's own description of tables and columns; without event triggers it may be older than the rows. */
  readonly comparesCatalog?: boolean;
}

/** What is not the same: one table of one file, and the first few differences in words. */
export interface Difference {
  readonly schema: string;
  readonly table: string;
  readonly text: string;
}

/** All differences, as lines; the caller makes sure that both sides stand still. */
export async function compareWithPostgres(url: string, ...files: readonly string[]): Promise<string[]> {
  return (await findDifferences({ url, files })).map(({ text }) => text);
}

/**
 * Compares replica files with what the publication holds, table by table, without any of Rivulet's own mapping
 * code. Rows are compared as a multiset (tables without a key have no order), by a sum of hashes.
 */
export async function findDifferences(options: ComparisonOptions): Promise<Difference[]> {
  const { url, files, publication = 'rivulet', isWanted = () => true, comparesCatalog = true } = options;
  const client = new pg.Client({
    connectionString: url,
    application_name: 'comparison',
    // Every value as Postgres prints it. Not a cast to text, which would take the padding off char(n).
    types: { getTypeParser: () => (value: string) => value } as unknown as pg.CustomTypesConfig,
  });
  client.on('error', () => undefined);
  await client.connect();
  const replicas = files.map((file) => new ReplicaTables(file, isWanted));
  const differences: Difference[] = [];
  try {
    for (const [name, value] of Object.entries(SETTINGS))
      await client.query('select set_config($1, $2, false)', [name, value]);
    for (const table of await readTables(client, publication)) {
      if (!isWanted(table.schema)) continue;
      const expected = await readExpected(client, table);
      for (const replica of replicas) differences.push(...replica.compare(table, expected, comparesCatalog));
    }
    for (const replica of replicas) differences.push(...replica.left());
  } finally {
    for (const replica of replicas) replica.close();
    await client.end();
  }
  return differences;
}

interface ComparedColumn extends ExpectedType {
  readonly attnum: number;
  readonly name: string;
  readonly typeName: string;
  readonly notNull: boolean;
  readonly keyOrdinal: number | null;
}

interface ComparedTable {
  readonly schema: string;
  readonly name: string;
  readonly isPartitioned: boolean;
  readonly rowFilter: string | null;
  readonly columns: readonly ComparedColumn[];
}

export const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** The view opens each table, and fails where one is dropped meanwhile. */
async function readTables(client: pg.Client, publication: string): Promise<ComparedTable[]> {
  for (;;) {
    try {
      return await readPublishedTables(client, publication);
    } catch (error) {
      if (!/^could not open relation/.test((error as Error).message)) throw error;
    }
  }
}

/**
 * pg_publication_tables says what is published; before 18 it lists generated columns that are never sent, before 15 it knows
 * of no columns and no row filters.
 */
async function readPublishedTables(client: pg.Client, publication: string): Promise<ComparedTable[]> {
  const { rows: version } = await client.query(
    "select current_setting('server_version_num')::int >= 150000 as has_parts",
  );
  const hasParts: boolean = version[0].has_parts;
  const { rows } = await client.query<{ table: string }>(
    `with recursive base(type, base) as (
       select oid, oid from pg_type where typtype <> 'd'
       union all select t.oid, b.base from base b join pg_type t on t.typtype = 'd' and t.typbasetype = b.type),
     typed(type, name, element, delimiter) as (
       select b.type, case when n.nspname = 'pg_catalog' then t.typname else n.nspname || '.' || t.typname end,
              case when t.typcategory = 'A' and t.typlen = -1 and t.typelem <> 0 and t.typname not in ('int2vector', 'oidvector')
                   then t.typelem end, t.typdelim
         from base b join pg_type t on t.oid = b.base join pg_namespace n on n.oid = t.typnamespace)
     select json_build_object('schema', n.nspname, 'name', c.relname, 'isPartitioned', c.relkind = 'p',
              'rowFilter', ${hasParts ? 'p.rowfilter' : 'null'}, 'columns', json_agg(json_build_object(
                'attnum', a.attnum, 'name', a.attname, 'typeName', format_type(a.atttypid, a.atttypmod),
                'notNull', a.attnotnull, 'keyOrdinal', array_position(i.indkey::int2[], a.attnum) + 1 - array_lower(i.indkey::int2[], 1),
                'isKey', i.indkey is not null and a.attnum = any (i.indkey) or exists (
                  select from pg_index r where r.indrelid = c.oid and r.indisreplident and a.attnum = any (r.indkey)),
                'base', t.name, 'element', e.name, 'delimiter', coalesce(e.delimiter, ',')) order by a.attnum)) as table
       from pg_publication_tables p
       join pg_namespace n on n.nspname = p.schemaname join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and ${hasParts ? 'a.attname = any (p.attnames)' : 'true'}
        and (a.attgenerated = '' or current_setting('server_version_num')::int >= 180000)
       join typed t on t.type = a.atttypid left join typed e on e.type = t.element
       left join pg_index i on i.indrelid = c.oid and i.indisprimary
      where p.pubname = $1 and n.nspname <> 'rivulet'
      group by n.nspname, c.relname, c.relkind${hasParts ? ', p.rowfilter' : ''}`,
    [publication],
  );
  return rows.map(({ table }) => JSON.parse(table) as ComparedTable);
}

async function readExpected(client: pg.Client, table: ComparedTable): Promise<Multiset> {
  const list = table.columns.map(({ name }) => quote(name)).join(', ');
  const from = `${table.isPartitioned ? '' : 'only '}${quote(table.schema)}.${quote(table.name)}`;
  // What is in an unlogged partition is in no WAL.
  const where = `tableoid not in (select oid from pg_class where relpersistence = 'u')${table.rowFilter === null ? '' : ` and (${table.rowFilter})`}`;
  const expected = new Multiset();
  await client.query('begin');
  await client.query(`declare compared no scroll cursor for select ${list} from ${from} where ${where}`);
  for (let count = -1; count !== 0; ) {
    const { rows } = await client.query<(string | null)[]>({
      text: 'fetch 5000 from compared',
      rowMode: 'array',
    });
    for (const row of rows)
      expected.add(row.map((text, index) => expectedValue(text, table.columns[index]!)));
    count = rows.length;
  }
  await client.query('commit');
  return expected;
}

interface FileColumn {
  readonly attnum: number;
  readonly column_name: string;
  readonly sqlite_name: string;
  readonly type_name: string;
  readonly not_null: number;
  readonly key_ordinal: number | null;
}

/** The tables of one replica file, and which of them have been compared. */
class ReplicaTables {
  readonly #db: Database.Database;
  readonly #label: string;
  readonly #names = new Map<string, { schema: string; table: string; sqliteName: string }>();

  constructor(file: string, isWanted: (schema: string) => boolean) {
    this.#db = new Database(file, { readonly: true });
    this.#db.exec('begin');
    this.#label = basename(file);
    const rows = this.#db
      .prepare('select schema_name, table_name, sqlite_name from _rivulet_table')
      .all() as Record<string, string>[];
    for (const row of rows) {
      const [schema, table, sqliteName] = [row.schema_name!, row.table_name!, row.sqlite_name!];
      if (isWanted(schema)) this.#names.set(JSON.stringify([schema, table]), { schema, table, sqliteName });
    }
  }

  compare(table: ComparedTable, expected: Multiset, comparesCatalog: boolean): Difference[] {
    const { schema, name, columns } = table;
    const key = JSON.stringify([schema, name]);
    const differ = (text: string): Difference => ({
      schema,
      table: name,
      text: `${this.#label}: ${schema}.${name}: ${text}`,
    });
    const named = this.#names.get(key);
    this.#names.delete(key);
    if (named === undefined) return [differ('not in the file')];
    const known = new Map(
      (
        this.#db
          .prepare(
            `select c.attnum, c.column_name, c.sqlite_name, c.type_name, c.not_null, c.key_ordinal
               from _rivulet_column c join _rivulet_table t using (relation_oid) where t.sqlite_name = ?`,
          )
          .all(named.sqliteName) as FileColumn[]
      ).map((row) => [row.attnum, row]),
    );
    const missing = columns.filter((column) => !known.has(column.attnum)).map((column) => column.name);
    if (missing.length > 0) return [differ(`columns missing in the file: ${missing.join(', ')}`)];
    if (known.size > columns.length)
      return [differ(`the file has ${known.size} columns, Postgres ${columns.length}`)];
    const found: Difference[] = [];
    for (const column of comparesCatalog ? columns : []) {
      const { column_name, type_name, not_null, key_ordinal } = known.get(column.attnum)!;
      const wanted = [column.name, column.typeName, Number(column.notNull), column.keyOrdinal];
      const actual = [column_name, type_name, not_null, key_ordinal];
      if (JSON.stringify(wanted) !== JSON.stringify(actual))
        found.push(
          differ(`_rivulet_column says ${JSON.stringify(actual)}, Postgres ${JSON.stringify(wanted)}`),
        );
    }
    const actual = new Multiset();
    const list = columns.map(({ attnum }) => quote(known.get(attnum)!.sqlite_name)).join(', ');
    const statement = this.#db
      .prepare(`select ${list} from ${quote(named.sqliteName)}`)
      .raw()
      .safeIntegers();
    for (const row of statement.iterate() as IterableIterator<unknown[]>) actual.add(row.map(actualValue));
    return [...found, ...expected.differences(actual).map(differ)];
  }

  left(): Difference[] {
    return [...this.#names.values()].map(({ schema, table }) => ({
      schema,
      table,
      text: `${this.#label}: ${schema}.${table}: in the file, but not in Postgres`,
    }));
  }

  close(): void {
    this.#db.close();
  }
}

const SHOWN_CHARACTERS = 200;

/** Keeps the beginnings of the rows themselves, while they are few enough to be shown. */
class Multiset {
  #count = 0;
  #sum = 0n;
  readonly #rows = new Map<string, { count: number; shown: string }>();

  add(values: readonly string[]): void {
    this.#count++;
    const digest = hash('md5', JSON.stringify(values), 'buffer');
    this.#sum = BigInt.asUintN(64, this.#sum + digest.readBigUInt64LE());
    const key = digest.toString('latin1');
    const row = this.#rows.get(key);
    if (row !== undefined) row.count++;
    else if (this.#rows.size < 20_000) {
      const shown = values
        .slice(0, 40)
        .map((value) =>
          JSON.stringify(
            value.length > SHOWN_CHARACTERS
              ? `${value.slice(0, SHOWN_CHARACTERS)}… (${value.length})`
              : value,
          ),
        );
      this.#rows.set(key, { count: 1, shown: shown.join(', ') });
    }
  }

  differences(actual: Multiset): string[] {
    if (this.#count === actual.#count && this.#sum === actual.#sum) return [];
    const found = [`${this.#count} rows in Postgres, ${actual.#count} in the file`];
    for (const [key, { count, shown }] of this.#rows)
      if ((actual.#rows.get(key)?.count ?? 0) < count && found.length < 6) found.push(`expected ${shown}`);
    for (const [key, { count, shown }] of actual.#rows)
      if ((this.#rows.get(key)?.count ?? 0) < count && found.length < 12) found.push(`found ${shown}`);
    return found;
  }
}
