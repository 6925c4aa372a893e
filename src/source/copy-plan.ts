import type pg from 'pg';
import type { Relation } from '../change/relation.ts';
import type { CopyQuery } from './copy-query.ts';
import { withoutTie } from './tie.ts';

/** Larger tables are split into ranges of about this many 8-kB pages (128 MB). */
export const DEFAULT_RANGE_PAGES = 16_384;

/** A table or partition that holds rows, as the plan's snapshot knows it. */
export interface Heap {
  readonly oid: number;
  /** pg_class.relfilenode: what rewrites or empties it gives it another. */
  readonly file: string;
  /** Qualified and quoted. */
  readonly table: string;
  /** All of its columns by name: number and type, domains as what they are made of. */
  readonly columns: Readonly<Record<string, readonly [attnum: number, type: number]>>;
}

/** One COPY: a whole table or partition, or a range of its pages. */
export interface CopyTask {
  /** Tells apart the rows of several COPYs of one plan. */
  readonly origin: number;
  readonly relation: Relation;
  readonly heap: Heap;
  readonly query: CopyQuery;
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
    oid: number;
    file: string;
    schema: string;
    name: string;
    pages: string;
    generated: boolean;
    columns: Heap['columns'];
  }>(
    `with recursive tree(root, oid) as (
       select r, r from unnest($1::oid[]) as r
       union all
       select t.root, i.inhrelid from tree t join pg_partitioned_table p on p.partrelid = t.oid
         join pg_inherits i on i.inhparent = t.oid
     ),
     base(type, base) as (
       select oid, oid from pg_type where typtype <> 'd'
       union all
       select t.oid, b.base from base b join pg_type t on t.typtype = 'd' and t.typbasetype = b.type
     )
     select t.root::int8::float8 as root, c.oid::int8::float8 as oid, c.relfilenode::text as file,
            n.nspname as schema, c.relname as name,
            (select coalesce(jsonb_object_agg(a.attname, jsonb_build_array(a.attnum, b.base::int8)), '{}')
               from pg_attribute a join base b on b.type = a.atttypid
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
            (pg_relation_size(c.oid) / current_setting('block_size')::int8)::text as pages,
            exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated <> '') as generated
       from tree t
       -- of what is in an unlogged partition nobody is told
       join pg_class c on c.oid = t.oid and c.relkind = 'r' and c.relpersistence = 'p'
       join pg_namespace n on n.oid = c.relnamespace`,
    [relations.map((relation) => relation.oid)],
  );
  const filters = await readRowFilters(client, publication);
  const byOid = new Map(relations.map((relation) => [relation.oid, relation]));
  const tasks: CopyTask[] = [];
  for (const leaf of leaves) {
    const relation = byOid.get(leaf.root)!;
    const columns = relation.columns.map((column) => quoteIdentifier(column.name));
    const table = `${quoteIdentifier(leaf.schema)}.${quoteIdentifier(leaf.name)}`;
    const filter = filters.get(relation.oid);
    const pages = Number(leaf.pages);
    const ranges = Math.max(1, Math.ceil(pages / rangePages));
    for (let range = 0; range < ranges; range++) {
      const conditions = filter === undefined ? [] : [`(${filter})`];
      if (condition !== undefined) conditions.push(condition);
      if (range > 0) conditions.push(`ctid >= '(${range * rangePages},0)'::tid`);
      if (range < ranges - 1) conditions.push(`ctid < '(${(range + 1) * rangePages},0)'::tid`);
      const where = conditions.length > 0 ? ` where ${conditions.join(' and ')}` : '';
      // COPY of a table is faster than of a query, but cannot name generated columns.
      const isPlain = where === '' && !leaf.generated && columns.length > 0;
      tasks.push({
        origin: tasks.length,
        relation,
        heap: { oid: leaf.oid, file: leaf.file, table, columns: leaf.columns },
        query: { columns, source: `from only ${table}${where}`, table: isPlain ? table : undefined },
        bytes: (pages / ranges) * 8192,
      });
    }
  }
  return tasks.sort((a, b) => b.bytes - a.bytes);
}

/** The publication's row filters (15 and newer), by OID. From the catalog itself: the view opens every table. */
export async function readRowFilters(client: pg.Client, publication: string): Promise<Map<number, string>> {
  const { rows: version } = await client.query(`select current_setting('server_version_num')::int as number`);
  if (version[0].number < 150_000) return new Map();
  // Null: dropped since the snapshot.
  const { rows } = await client.query<{ oid: number; filter: string | null }>(
    `select r.prrelid::int8::float8 as oid, pg_get_expr(r.prqual, r.prrelid) as filter
       from pg_publication p join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid
      where p.pubname = $1 and r.prqual is not null
        and not exists (select from pg_publication_namespace n where n.pnpubid = p.oid and n.pnnspid = c.relnamespace)`,
    [publication],
  );
  return new Map(
    rows.flatMap((row): [number, string][] => {
      const filter = row.filter === null ? null : withoutTie(row.filter);
      return filter === null ? [] : [[row.oid, filter]];
    }),
  );
}
