import { hash } from 'node:crypto';
import { basename } from 'node:path';
import Database from 'better-sqlite3';
import pg from 'pg';

/**
 * Compares replica files with Postgres, table by table, without any of Rivulet's own mapping code: what each
 * value must look like in SQLite is worked out here once more, from the type table in README.
 *
 * Rows are compared as a multiset (tables without a key have no order), by a sum of hashes; the caller makes
 * sure that both sides stand still.
 */
export async function compareWithPostgres(url: string, ...files: readonly string[]): Promise<string[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const replicas = files.map((file) => new ReplicaTables(file));
  const problems: string[] = [];
  try {
    await client.query(
      "set datestyle = 'ISO'; set timezone = 'UTC'; set intervalstyle = 'postgres'; set extra_float_digits = 3; set bytea_output = 'hex'",
    );
    const { rows: tables } = await client.query<ComparedTable>(
      `select c.oid::int8::float8 as oid, n.nspname as schema, c.relname as name, c.relkind as kind
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p'
          and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'rivulet') and c.relnatts > 0`,
    );
    for (const table of tables) {
      const columns = await readColumns(client, table.oid);
      const expected = await readExpected(client, table, columns);
      for (const replica of replicas) problems.push(...replica.compare(table, columns, expected));
    }
    for (const replica of replicas) problems.push(...replica.left());
  } finally {
    for (const replica of replicas) replica.close();
    await client.end();
  }
  return problems;
}

interface ComparedTable {
  readonly oid: number;
  readonly kind: 'r' | 'p';
  readonly schema: string;
  readonly name: string;
}

interface ComparedColumn {
  readonly attnum: number;
  readonly name: string;
  readonly type: string;
  readonly element: string | null;
}

const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;

async function readColumns(client: pg.Client, oid: number): Promise<ComparedColumn[]> {
  const { rows } = await client.query<ComparedColumn>(
    `with recursive base(type, base) as (
       select oid, oid from pg_type where typtype <> 'd'
       union all select t.oid, b.base from base b join pg_type t on t.typtype = 'd' and t.typbasetype = b.type)
     select a.attnum, a.attname as name, format_type(b.base, null) as type,
            case when t.typcategory = 'A' and t.typlen = -1 and t.typname not in ('int2vector', 'oidvector') then format_type(e.base, null) end as element
       from pg_attribute a join base b on b.type = a.atttypid join pg_type t on t.oid = b.base left join base e on e.type = t.typelem
      where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
        and (a.attgenerated = '' or (a.attgenerated = 's' and current_setting('server_version_num')::int >= 180000)) order by a.attnum`,
    [oid],
  );
  return rows;
}

async function readExpected(
  client: pg.Client,
  table: ComparedTable,
  columns: readonly ComparedColumn[],
): Promise<Multiset> {
  const selected = columns.map(
    // Not a cast to text, which would take the padding off char(n).
    ({ name, element }) =>
      element === null
        ? `case when ${quote(name)} is not null then format('%s', ${quote(name)}) end`
        : `array_to_json(${quote(name)})::text`,
  );
  const expected = new Multiset();
  await client.query('begin');
  await client.query(
    `declare compared cursor for select array[${selected.join(', ')}]::text[] as row from ${table.kind === 'r' ? 'only ' : ''}${quote(table.schema)}.${quote(table.name)}`,
  );
  for (;;) {
    const { rows } = await client.query<{ row: (string | null)[] }>('fetch 10000 from compared');
    if (rows.length === 0) break;
    for (const { row } of rows) {
      expected.add(
        row
          .map((text, index) => (text === null ? 'null' : expectedValue(columns[index]!, text)))
          .join('\u0001'),
      );
    }
  }
  await client.query('commit');
  return expected;
}

/** The tables of one replica file, and which of them have been compared. */
class ReplicaTables {
  readonly #db: Database.Database;
  readonly #label: string;
  readonly #names: Map<string, string>;

  constructor(file: string) {
    this.#db = new Database(file, { readonly: true });
    this.#label = basename(file);
    const rows = this.#db
      .prepare('select schema_name, table_name, sqlite_name from _rivulet_table')
      .all() as Record<string, string>[];
    this.#names = new Map(rows.map((row) => [`${row.schema_name}\0${row.table_name}`, row.sqlite_name!]));
  }

  compare(table: ComparedTable, columns: readonly ComparedColumn[], expected: Multiset): string[] {
    const key = `${table.schema}\0${table.name}`;
    const label = `${this.#label}: ${table.schema}.${table.name}`;
    const sqliteName = this.#names.get(key);
    this.#names.delete(key);
    if (sqliteName === undefined) return [`${label}: not in the file`];
    const known = new Map(
      (
        this.#db
          .prepare(
            'select c.attnum, c.sqlite_name from _rivulet_column c join _rivulet_table t using (relation_oid) where t.sqlite_name = ?',
          )
          .all(sqliteName) as { attnum: number; sqlite_name: string }[]
      ).map((row) => [row.attnum, row.sqlite_name]),
    );
    const missing = columns.filter((column) => !known.has(column.attnum)).map((column) => column.name);
    if (missing.length > 0) return [`${label}: columns missing in the file: ${missing.join(', ')}`];
    const actual = new Multiset();
    const list = columns.map((column) => quote(known.get(column.attnum)!));
    const statement = this.#db
      .prepare(`select ${list.join(', ')} from ${quote(sqliteName)}`)
      .raw()
      .safeIntegers();
    for (const row of statement.iterate() as IterableIterator<unknown[]>) {
      actual.add(
        row.map((value, index) => actualValue(value, columns[index]!.element !== null)).join('\u0001'),
      );
    }
    return expected.differences(actual).map((difference) => `${label}: ${difference}`);
  }

  left(): string[] {
    return [...this.#names.keys()].map(
      (key) => `${this.#label}: ${key.replace('\0', '.')}: in the file, but not in Postgres`,
    );
  }

  close(): void {
    this.#db.close();
  }
}

/** Keeps the rows themselves only while they are few enough to be shown. */
class Multiset {
  #count = 0;
  #sum = 0n;
  readonly #rows = new Map<string, number>();

  add(row: string): void {
    this.#count++;
    this.#sum = BigInt.asUintN(64, this.#sum + hash('md5', row, 'buffer').readBigUInt64LE());
    if (this.#rows.size < 20_000) this.#rows.set(row, (this.#rows.get(row) ?? 0) + 1);
  }

  differences(actual: Multiset): string[] {
    if (this.#count === actual.#count && this.#sum === actual.#sum) return [];
    const found = [`${this.#count} rows in Postgres, ${actual.#count} in the file`];
    for (const [row, count] of this.#rows) {
      const there = actual.#rows.get(row) ?? 0;
      if (there < count && found.length < 6) found.push(`expected ${JSON.stringify(row)}`);
    }
    for (const [row, count] of actual.#rows) {
      const there = this.#rows.get(row) ?? 0;
      if (there < count && found.length < 12) found.push(`found ${JSON.stringify(row)}`);
    }
    return found;
  }
}

function bits(value: number): string {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(value);
  return bytes.toString('hex');
}

function expectedValue(
  column: { readonly type: string; readonly element: string | null },
  text: string,
): string {
  if (column.element !== null) return `json:${JSON.stringify(JSON.parse(text))}`;
  switch (column.type) {
    case 'boolean':
      return `integer:${text === 'true' || text === 't' ? 1 : 0}`;
    case 'smallint':
    case 'integer':
    case 'bigint':
    case 'oid':
      return `integer:${text}`;
    case 'real':
    case 'double precision':
      return text === 'NaN' ? 'text:NaN' : `real:${bits(Number(text))}`;
    case 'numeric':
      return expectedNumeric(text);
    case 'bytea':
      return `blob:${text.slice(2)}`;
    case 'timestamp without time zone':
    case 'timestamp with time zone': {
      const match = /^(\d{4}-[\d-]+ [\d:]{8})(\.\d+)?(\+00)?$/.exec(text);
      if (match === null) return `text:${text}`;
      return `text:${match[1]}${(match[2] ?? '.').padEnd(7, '0')}${match[3] === undefined ? '' : 'Z'}`;
    }
    default:
      return `text:${text}`;
  }
}

function expectedNumeric(text: string): string {
  const match = /^(-?)(\d+)(?:\.(\d+))?$/.exec(text);
  if (match === null) return `text:${text}`;
  const [, sign, whole, fraction = ''] = match;
  const significantFraction = fraction.replace(/0+$/, '');
  if (significantFraction === '') {
    const value = BigInt(`${sign}${whole}`);
    return value === BigInt.asIntN(64, value) ? `integer:${value}` : `text:${text}`;
  }
  const digits = (whole + significantFraction).replace(/^0+/, '');
  return digits.length <= 15 && significantFraction.length < 290
    ? `real:${bits(Number(text))}`
    : `text:${text}`;
}

function actualValue(value: unknown, isArray: boolean): string {
  if (value === null) return 'null';
  if (typeof value === 'bigint') return `integer:${value}`;
  if (typeof value === 'number') return `real:${bits(value)}`;
  if (Buffer.isBuffer(value)) return `blob:${value.toString('hex')}`;
  return isArray ? `json:${JSON.stringify(JSON.parse(value as string))}` : `text:${value as string}`;
}
