import pg from 'pg';
import type { Relation } from '../../change/relation.ts';
import { readNotMirrored, readPublishableSchema, readPublishedSchema } from '../../source/catalog.ts';
import { readWeakIdentities, type WeakIdentity } from '../../source/identity.ts';
import { readUnreadableTables } from '../../source/preflight.ts';
import { withoutTie } from '../../source/tie.ts';

/** Somebody holds a table locked: its size is then taken from the last VACUUM or ANALYZE. */
const SIZE_LOCK_TIMEOUT_MS = 500;

export interface TableIndex {
  readonly oid: number;
  readonly name: string;
  readonly method: string;
  readonly isPartial: boolean;
  readonly hasExpressions: boolean;
  readonly isPrimary: boolean;
  readonly isValid: boolean;
}

/** An ordinary or partitioned table (not a partition), as the catalog has it. */
export interface TableFacts {
  readonly oid: number;
  /** Schema-qualified, quoted where SQL needs it. */
  readonly label: string;
  readonly schema: string;
  readonly name: string;
  /** pg_class.relreplident. */
  readonly identity: string;
  readonly partitions: number | null;
  readonly unloggedPartitions: number;
  readonly hasInheritanceChildren: boolean;
  /** Whether this user may change its replica identity and publish it. */
  readonly isOwned: boolean;
  readonly columns: readonly { readonly name: string; readonly generated: '' | 's' | 'v' }[];
  readonly indexes: readonly TableIndex[];
  /** Of the publication, where it names this table. */
  readonly hasColumnList: boolean;
  readonly rowFilter: string | null;
  /** As Postgres estimates; null if it was never analysed. */
  readonly rows: number | null;
  /** Of the rows and their out-of-line values, without indexes. */
  readonly bytes: number;
}

export interface TablesReport {
  /** What is mirrored, or would be after set-up. */
  readonly relations: readonly Relation[];
  readonly tables: readonly TableFacts[];
  readonly notMirrored: readonly { readonly table: string; readonly reason: string }[];
  readonly weak: readonly WeakIdentity[];
  /** Tables whose replica identity set-up changed, as far as this user may see it. */
  readonly madeFull: ReadonlySet<number>;
  readonly unreadable: readonly { readonly table: string; readonly reason: string }[];
  /** Kinds of objects that are never mirrored, by number. */
  readonly others: { readonly views: number; readonly sequences: number };
}

export interface ReadTablesOptions {
  readonly publication: string;
  /** server_version_num */
  readonly version: number;
  readonly isPublished: boolean;
  /** OIDs of --tables; null: all. */
  readonly listed: readonly number[] | null;
}

export async function readTablesReport(
  client: pg.ClientBase,
  options: ReadTablesOptions,
): Promise<TablesReport> {
  const { publication, isPublished, listed } = options;
  const relations = isPublished
    ? await readPublishedSchema(client, publication)
    : await readPublishableSchema(client, listed);
  const oids = relations.map(({ oid }) => oid);
  const notMirrored = await readNotMirrored(client, publication, oids);
  return {
    relations,
    tables: await readTableFacts(client, oids, options),
    notMirrored: isPublished ? notMirrored : beforeSetup(notMirrored, listed !== null),
    weak: await readWeakIdentities(client, oids),
    madeFull: await readMadeFull(client),
    unreadable: await readUnreadableTables(client, oids),
    others: await countOthers(client),
  };
}

async function readTableFacts(
  client: pg.ClientBase,
  oids: readonly number[],
  { publication, version }: ReadTablesOptions,
): Promise<TableFacts[]> {
  await client.query(`set lock_timeout = ${SIZE_LOCK_TIMEOUT_MS}`);
  try {
    return await queryTableFacts(client, [oids, publication], version, FROM_FILES);
  } catch (error) {
    if (!(error instanceof pg.DatabaseError) || error.code !== '55P03') throw error;
    return await queryTableFacts(client, [oids, publication], version, FROM_CATALOG);
  } finally {
    await client.query('reset lock_timeout');
  }
}

/** Bytes with out-of-line values, and pages: the first opens each table, and so may wait for a lock. */
interface SizeSql {
  readonly bytes: string;
  readonly pages: string;
}
const FROM_FILES: SizeSql = { bytes: 'pg_table_size(h.oid)', pages: 'pg_relation_size(h.oid) / 8192' };
const FROM_CATALOG: SizeSql = {
  bytes:
    '(h.relpages + coalesce((select t.relpages from pg_class t where t.oid = h.reltoastrelid), 0)) * 8192::int8',
  pages: 'h.relpages',
};

async function queryTableFacts(
  client: pg.ClientBase,
  values: readonly [oids: readonly number[], publication: string],
  version: number,
  size: SizeSql,
): Promise<TableFacts[]> {
  const { rows } = await client.query(
    `with recursive heap(root, oid) as (
       select unnest($1::oid[]), unnest($1::oid[])
       union
       select h.root, i.inhrelid from heap h join pg_inherits i on i.inhparent = h.oid
         join pg_class c on c.oid = i.inhrelid and c.relispartition
     ),
     leaf as (
       select heap.root, h.oid, h.relpersistence, h.relpages, h.reltuples::float8 as tuples, ${size.bytes} as bytes, ${size.pages} as pages
         from heap join pg_class h on h.oid = heap.oid where h.relkind = 'r'
     ),
     size as (
       select heap.root,
              count(*) filter (where l.oid <> l.root) as partitions,
              count(*) filter (where l.relpersistence = 'u') as unlogged,
              sum(l.bytes) as bytes,
              -- as the planner does: the rows per page of the last ANALYZE, times the pages of now
              sum(case when l.relpages > 0 then l.tuples * l.pages / l.relpages else greatest(l.tuples, 0) end) as rows,
              bool_or(l.tuples < 0 and l.pages > 0) as is_unknown
         from (select distinct root from heap) heap left join leaf l on l.root = heap.root
        group by heap.root
     )
     select c.oid, n.nspname as schema, c.relname as name, format('%I.%I', n.nspname, c.relname) as label, c.relreplident as identity,
            case when c.relkind = 'p' then s.partitions::int end as partitions, s.unlogged::int,
            c.relhassubclass and c.relkind = 'r' as has_children,
            pg_has_role(c.relowner, 'usage') as is_owned,
            coalesce(s.bytes, 0)::float8 as bytes, case when s.is_unknown then null else coalesce(s.rows, 0)::float8 end as rows,
            (select json_agg(json_build_object('name', a.attname, 'generated', a.attgenerated) order by a.attnum)
               from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
            (select json_agg(json_build_object('oid', i.indexrelid::int8, 'name', x.relname, 'method', m.amname,
                      'isPartial', i.indpred is not null, 'hasExpressions', i.indexprs is not null,
                      'isPrimary', i.indisprimary, 'isValid', i.indisvalid) order by x.relname)
               from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
              where i.indrelid = c.oid) as indexes,
            to_jsonb(r) ? 'prattrs' and jsonb_typeof(to_jsonb(r)->'prattrs') <> 'null' as has_column_list,
            ${version >= 150_000 ? 'pg_get_expr(r.prqual, r.prrelid)' : 'null'} as row_filter
       from size s
       join pg_class c on c.oid = s.root
       join pg_namespace n on n.oid = c.relnamespace
       left join pg_publication p on p.pubname = $2
       left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
      order by n.nspname, c.relname`,
    [...values],
  );
  return rows.map((row) => ({
    oid: row.oid,
    label: row.label,
    schema: row.schema,
    name: row.name,
    identity: row.identity,
    partitions: row.partitions,
    unloggedPartitions: row.unlogged,
    hasInheritanceChildren: row.has_children,
    isOwned: row.is_owned,
    columns: row.columns ?? [],
    indexes: row.indexes ?? [],
    hasColumnList: row.has_column_list ?? false,
    rowFilter: row.row_filter === null ? null : withoutTie(row.row_filter),
    rows: row.rows === null ? null : Math.round(row.rows),
    bytes: row.bytes,
  }));
}

/** Without a publication the reason is another: what set-up would leave out. */
function beforeSetup(
  notMirrored: TablesReport['notMirrored'],
  isListed: boolean,
): TablesReport['notMirrored'] {
  const reason = isListed ? 'not in --tables' : 'it has no column that Postgres publishes';
  return notMirrored.map((each) =>
    each.reason === 'the publication does not exist' ? { ...each, reason } : each,
  );
}

/** Empty where rivulet.saved_identity is not there or not for this user to see. */
async function readMadeFull(client: pg.ClientBase): Promise<Set<number>> {
  const { rows: visible } = await client.query(
    `select coalesce(has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'), false) as visible
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'rivulet' and c.relname = 'saved_identity'`,
  );
  if (visible[0]?.visible !== true) return new Set();
  const { rows } = await client.query('select relation_oid as oid from rivulet.saved_identity');
  return new Set(rows.map(({ oid }) => oid));
}

async function countOthers(client: pg.ClientBase): Promise<TablesReport['others']> {
  const { rows } = await client.query(
    `select count(*) filter (where c.relkind = 'v')::int as views, count(*) filter (where c.relkind = 'S')::int as sequences
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.oid >= 16384 and n.nspname <> 'rivulet' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'`,
  );
  return rows[0];
}
