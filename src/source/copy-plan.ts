import type pg from 'pg';
import type { Relation } from '../change/relation.ts';

/** Larger tables are split into ranges of about this many 8-kB pages (128 MB). */
export const DEFAULT_RANGE_PAGES = 16_384;

/** One COPY: a whole table or partition, or a range of its pages. */
export interface CopyTask {
  readonly relation: Relation;
  readonly sql: string;
  readonly bytes: number;
}

export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/**
 * Splits the tables into COPY statements, largest first. Partitioned tables are read leaf by leaf. Infinite
 * `rangePages` leave each table and partition whole.
 */
export async function planCopy(
  client: pg.Client,
  options: {
    readonly publication: string;
    readonly rangePages?: number;
    /** Further restricts the rows, as SQL. */
    readonly condition?: string | undefined;
  },
  relations: readonly Relation[],
): Promise<CopyTask[]> {
  const { publication, rangePages = DEFAULT_RANGE_PAGES, condition } = options;
  const { rows: leaves } = await client.query<{
    root: number;
    schema: string;
    name: string;
    pages: string;
    generated: boolean;
  }>(
    `select r.root::int8::float8 as root, n.nspname as schema, c.relname as name,
            (pg_relation_size(c.oid) / current_setting('block_size')::int8)::text as pages,
            exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated <> '') as generated
       from unnest($1::oid[]) as r(root)
       cross join lateral (
         select r.root as oid where not exists (select from pg_partitioned_table p where p.partrelid = r.root)
         union all
         select t.relid from pg_partition_tree(r.root) t where t.isleaf
           and exists (select from pg_partitioned_table p where p.partrelid = r.root)
       ) leaf
       join pg_class c on c.oid = leaf.oid and c.relkind = 'r'
       join pg_namespace n on n.oid = c.relnamespace`,
    [relations.map((relation) => relation.oid)],
  );
  const filters = await readRowFilters(client, publication);
  const byOid = new Map(relations.map((relation) => [relation.oid, relation]));
  const tasks: CopyTask[] = [];
  for (const leaf of leaves) {
    const relation = byOid.get(leaf.root)!;
    const columns = relation.columns.map((column) => quoteIdentifier(column.name)).join(', ');
    const table = `${quoteIdentifier(leaf.schema)}.${quoteIdentifier(leaf.name)}`;
    const filter = filters.get(filterKey(relation.schema, relation.name));
    const pages = Number(leaf.pages);
    const ranges = Math.max(1, Math.ceil(pages / rangePages));
    for (let range = 0; range < ranges; range++) {
      const conditions = filter === undefined ? [] : [`(${filter})`];
      if (condition !== undefined) conditions.push(condition);
      if (range > 0) conditions.push(`ctid >= '(${range * rangePages},0)'::tid`);
      if (range < ranges - 1) conditions.push(`ctid < '(${(range + 1) * rangePages},0)'::tid`);
      const where = conditions.length > 0 ? ` where ${conditions.join(' and ')}` : '';
      // COPY of a table is faster than of a query, but cannot name generated columns.
      const isPlain = where === '' && !leaf.generated && columns !== '';
      tasks.push({
        relation,
        sql: isPlain
          ? `copy ${table} (${columns}) to stdout`
          : `copy (select ${columns} from only ${table}${where}) to stdout`,
        bytes: (pages / ranges) * 8192,
      });
    }
  }
  return tasks.sort((a, b) => b.bytes - a.bytes);
}

/** The publication's row filters (15 and newer), by filterKey(). */
export async function readRowFilters(client: pg.Client, publication: string): Promise<Map<string, string>> {
  const { rows: version } = await client.query(`select current_setting('server_version_num')::int as number`);
  if (version[0].number < 150_000) return new Map();
  const { rows } = await client.query<{ schemaname: string; tablename: string; rowfilter: string }>(
    'select schemaname, tablename, rowfilter from pg_publication_tables where pubname = $1 and rowfilter is not null',
    [publication],
  );
  return new Map(rows.map((row) => [filterKey(row.schemaname, row.tablename), row.rowfilter]));
}

export function filterKey(schema: string, table: string): string {
  return `${schema}\0${table}`;
}
