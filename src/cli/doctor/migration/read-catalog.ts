import type pg from 'pg';
import { readWeakIdentities } from '../../../source/identity.ts';
import { hasEventTriggers } from '../../../source/migrate.ts';
import { judgeVersion, readServerFacts } from '../../../source/preflight.ts';
import { findTables, parseTableName, readConfig } from '../../../source/publication.ts';
import {
  type Catalog,
  type CatalogState,
  type ModelColumn,
  type ModelPublication,
  type ModelTable,
  newPublication,
} from './catalog-state.ts';
import { modifiersFromCatalog, type TypeRef, typeKey, type UserType } from './types.ts';

export interface ReadCatalogOptions {
  readonly publication: string;
  readonly slot: string;
  readonly tables?: readonly string[] | undefined;
}

/** The catalog of the server, as far as migrations go; reads, and takes no lock on any table. */
export async function readCatalog(client: pg.ClientBase, options: ReadCatalogOptions): Promise<Catalog> {
  const { version, versionText, isSuperuser } = await readServerFacts(client, options.slot);
  const tooOld = judgeVersion(version, versionText);
  if (tooOld !== null) throw tooOld;
  const publication = await readPublication(client, options);
  const isKept = publication.isKept && version >= 180_000;
  const volatile = await readVolatileFunctions(client);
  const { rows: session } = await client.query(
    `select (select reset_val from pg_settings where name = 'search_path') as path,
            (select reset_val from pg_settings where name = 'TimeZone') as zone, current_user::text as "user"`,
  );
  const state: CatalogState = {
    tables: await readTables(client, version),
    types: await readTypes(client, version),
    schemas: await readSchemas(client),
    publication: {
      ...publication,
      isKept,
      isTied: publication.isOurs && version >= 150_000 && (isKept || !publication.allTables),
    },
    functions: new Map(),
    searchPath: parseSearchPath(session[0].path, session[0].user),
    timeZone: session[0].zone,
    known: new Map(),
    rewritten: new Set(),
    // Before set-up: as it would be after it.
    isAnnounced:
      (await hasEventTriggers(client)) || (isSuperuser && !(await exists(client, options.publication))),
  };
  return {
    state,
    version,
    binaryCasts: await readBinaryCasts(client),
    isVolatile: (name) => volatile.has(name),
    isComplete: true,
    slot: options.slot,
  };
}

export function parseSearchPath(path: string, user: string): string[] {
  return path
    .split(',')
    .map((part) => part.trim().replace(/^"(.*)"$/, '$1'))
    .map((part) => (part === '$user' ? user : part))
    .filter((part) => part !== '');
}

async function exists(client: pg.ClientBase, publication: string): Promise<boolean> {
  const { rows } = await client.query('select from pg_publication where pubname = $1', [publication]);
  return rows.length > 0;
}

const KINDS: Readonly<Record<string, ModelTable['kind']>> = {
  r: 'table',
  p: 'partitioned',
  v: 'view',
  m: 'materialized view',
  f: 'foreign table',
  S: 'sequence',
};

async function readTables(client: pg.ClientBase, version: number): Promise<Map<number, ModelTable>> {
  const { rows } = await client.query(
    `select c.oid::int8::float8 as id, n.nspname as schema, c.relname as name, c.relkind as kind,
            c.relpersistence as persistence, c.relfilenode::int8::float8 as file, c.relreplident as identity,
            c.reltuples::float8 as rows, c.relispartition as is_partition,
            pg_get_expr(c.relpartbound, 0) as partition_values,
            (select a.attname from pg_partitioned_table t join pg_attribute a on a.attrelid = t.partrelid and a.attnum = t.partattrs[0]
              where t.partrelid = c.oid and t.partnatts = 1) as partition_key,
            (select array_agg(i.inhparent::int8::float8) from pg_inherits i where i.inhrelid = c.oid) as parents,
            (select json_agg(json_build_object('attnum', a.attnum, 'name', a.attname, 'generated', a.attgenerated,
                      'typmod', a.atttypmod,
                      'typeSchema', tn.nspname, 'type', coalesce(e.typname, t.typname), 'isArray', e.oid is not null) order by a.attnum)
               from pg_attribute a join pg_type t on t.oid = a.atttypid
               left join pg_type e on e.oid = t.typelem and t.typsubscript = 'array_subscript_handler'::regproc and t.typlen = -1
                and t.oid not in ('int2vector'::regtype, 'oidvector'::regtype)
               join pg_namespace tn on tn.oid = coalesce(e.typnamespace, t.typnamespace)
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
            (select json_agg(json_build_object('id', i.indexrelid::int8, 'name', x.relname, 'isUnique', i.indisunique,
                      'isPrimary', i.indisprimary, 'isImmediate', i.indimmediate, 'isIdentity', i.indisreplident,
                      'isExpressible', m.amname = 'btree' and i.indpred is null and i.indexprs is null and i.indisvalid,
                      'columns', (select coalesce(json_agg(a.attname order by k), '[]') from generate_series(0, i.indnkeyatts - 1) k
                                   join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[k])))
               from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
              where i.indrelid = c.oid) as indexes
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.oid >= 16384 and n.nspname !~ '^pg_(toast|temp)'`,
  );
  const tables = new Map<number, ModelTable>();
  for (const row of rows) {
    const indexes = (row.indexes ?? []) as (ModelTable['indexes'][number] & {
      isPrimary: boolean;
      isImmediate: boolean;
      isIdentity: boolean;
    })[];
    const primary = indexes.find(({ isPrimary }) => isPrimary);
    tables.set(row.id, {
      id: row.id,
      schema: row.schema,
      name: row.name,
      kind: KINDS[row.kind]!,
      persistence: row.persistence,
      columns: ((row.columns ?? []) as CatalogColumn[]).map((column) => modelColumn(column, version)),
      hasKnownColumns: true,
      partitionOf: row.is_partition ? row.parents[0] : null,
      partitionValues: row.partition_values,
      partitionKey: row.partition_key,
      inherits: row.is_partition ? [] : (row.parents ?? []),
      file: row.file,
      sentAs: null,
      madeIn: null,
      rows: row.rows < 0 ? null : Math.round(row.rows),
      key:
        primary === undefined
          ? null
          : { name: primary.name, columns: primary.columns, isDeferrable: !primary.isImmediate },
      identity: row.identity,
      identityIndex: indexes.find(({ isIdentity }) => isIdentity)?.name ?? null,
      indexes: indexes
        .filter(({ isPrimary }) => !isPrimary)
        .map(({ id, name, columns, isUnique, isExpressible }) => ({
          id,
          name,
          columns,
          isUnique,
          isExpressible,
        })),
    });
  }
  return tables;
}

interface CatalogColumn {
  readonly attnum: number;
  readonly name: string;
  readonly generated: ModelColumn['generated'];
  readonly typmod: number;
  readonly typeSchema: string;
  readonly type: string;
  readonly isArray: boolean;
}

function modelColumn(column: CatalogColumn, version: number): ModelColumn {
  return {
    attnum: column.attnum,
    name: column.name,
    type: {
      schema: column.typeSchema,
      name: column.type,
      modifiers: modifiersFromCatalog(column.type, column.typmod, version),
      isArray: column.isArray,
    },
    generated: column.generated,
    missing: 'no',
  };
}

async function readTypes(client: pg.ClientBase, version: number): Promise<Map<string, UserType>> {
  const { rows } = await client.query(
    `with recursive type as (
       select t.oid, n.nspname as schema, t.typname as name, t.typtype as kind, t.typbasetype as base, t.typtypmod as typmod,
              t.typnotnull or exists (select from pg_constraint c where c.contypid = t.oid) as constrained, t.typdefault is not null as has_default,
              coalesce((select json_agg(format('label %s %s', e.oid, e.enumlabel)) from pg_enum e where e.enumtypid = t.oid),
                       (select json_agg(format('attribute %s', a.attnum)) from pg_attribute a
                         where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped and t.typtype = 'c')) as parts,
              (select json_agg(json_build_object('schema', an.nspname, 'name', coalesce(ae.typname, at.typname), 'modifiers', null, 'isArray', ae.oid is not null))
                 from pg_attribute a join pg_type at on at.oid = a.atttypid
                 left join pg_type ae on ae.oid = at.typelem and at.typsubscript = 'array_subscript_handler'::regproc and at.typlen = -1
                 join pg_namespace an on an.oid = coalesce(ae.typnamespace, at.typnamespace)
                where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped and t.typtype = 'c') as attributes
         from pg_type t join pg_namespace n on n.oid = t.typnamespace
        where t.oid >= 16384 and t.typelem = 0
     ),
     constrained(oid) as (
       select oid from type where constrained
       union
       select t.oid from constrained c join type t on t.base = c.oid
     )
     select t.schema, t.name, t.kind, t.typmod, t.has_default, t.oid in (select oid from constrained) as constrained,
            t.parts, t.attributes, bn.nspname as base_schema, coalesce(e.typname, b.typname) as base_name, e.oid is not null as base_is_array
       from type t
       left join pg_type b on b.oid = t.base and t.kind = 'd'
       left join pg_type e on e.oid = b.typelem and b.typsubscript = 'array_subscript_handler'::regproc and b.typlen = -1
       left join pg_namespace bn on bn.oid = coalesce(e.typnamespace, b.typnamespace)`,
  );
  return new Map(
    rows.map((row): [string, UserType] => {
      const base: TypeRef | null =
        row.base_name === null
          ? null
          : {
              schema: row.base_schema,
              name: row.base_name,
              modifiers: modifiersFromCatalog(row.base_name, row.typmod, version),
              isArray: row.base_is_array,
            };
      const kind = row.kind === 'd' ? 'domain' : row.kind === 'e' ? 'enum' : 'other';
      return [
        typeKey(row),
        {
          kind,
          base,
          hasConstraints: row.constrained,
          hasDefault: row.has_default,
          parts: row.parts ?? [],
          attributes: row.attributes ?? [],
        },
      ];
    }),
  );
}

async function readBinaryCasts(client: pg.ClientBase): Promise<Set<string>> {
  const { rows } = await client.query(
    `select sn.nspname || '.' || s.typname || '>' || tn.nspname || '.' || t.typname as pair
       from pg_cast c
       join pg_type s on s.oid = c.castsource join pg_namespace sn on sn.oid = s.typnamespace
       join pg_type t on t.oid = c.casttarget join pg_namespace tn on tn.oid = t.typnamespace
      where c.castmethod = 'b'`,
  );
  return new Set(rows.map(({ pair }) => pair));
}

/** By name alone: of overloaded ones, one volatile is enough. */
async function readVolatileFunctions(client: pg.ClientBase): Promise<Set<string>> {
  const { rows } = await client.query(
    `select distinct proname::text as name from pg_proc where provolatile = 'v'`,
  );
  return new Set(rows.map(({ name }) => name));
}

async function readSchemas(client: pg.ClientBase): Promise<Set<string>> {
  const { rows } = await client.query(
    `select nspname::text as name from pg_namespace where nspname !~ '^pg_(toast|temp)'`,
  );
  return new Set(rows.map(({ name }) => name));
}

/** The one that is there; otherwise the one that set-up would make. */
async function readPublication(
  client: pg.ClientBase,
  options: ReadCatalogOptions,
): Promise<ModelPublication> {
  const { rows } = await client.query(
    `select p.oid, p.puballtables as all_tables, p.pubviaroot as via_root,
            to_jsonb(p)->>'pubgencols' = 's' as sends_generated,
            (select json_agg(json_build_object('id', r.prrelid::int8, 'columns',
                      (select json_agg(a.attname) from jsonb_array_elements_text(
                         case when jsonb_typeof(to_jsonb(r)->'prattrs') = 'array' then to_jsonb(r)->'prattrs' end) k
                        join pg_attribute a on a.attrelid = r.prrelid and a.attnum = k::int2)))
               from pg_publication_rel r where r.prpubid = p.oid) as tables,
            (select array_agg(n.nspname::text)
               from pg_depend p1 join pg_depend s on s.classid = p1.classid and s.objid = p1.objid and s.refclassid = 'pg_namespace'::regclass
               join pg_namespace n on n.oid = s.refobjid
              where p1.refclassid = 'pg_publication'::regclass and p1.refobjid = p.oid
                and p1.classid = to_regclass('pg_catalog.pg_publication_namespace')) as schemas
       from pg_publication p where p.pubname = $1`,
    [options.publication],
  );
  const row = rows[0];
  if (row === undefined) {
    const made = newPublication(options.publication, options.tables === undefined);
    if (made.allTables) await leaveOut(client, made);
    const listed = await findTables(client, (options.tables ?? []).map(parseTableName));
    for (const { oid } of listed) made.tables.add(oid);
    return made;
  }
  const tables = (row.tables ?? []) as { id: number; columns: string[] | null }[];
  const sent = { viaRoot: row.via_root, sendsGenerated: row.sends_generated ?? false };
  const config = await readConfig(client, options.publication);
  if (config?.madePublication === true && config.wantsAll && row.all_tables === false) {
    const kept = { ...newPublication(options.publication, true), ...sent };
    await leaveOut(client, kept);
    return kept;
  }
  return {
    ...newPublication(options.publication, row.all_tables),
    isOurs: config?.madePublication ?? false,
    isKept: false,
    ...sent,
    tables: new Set(tables.map(({ id }) => id)),
    schemas: new Set(row.schemas ?? []),
    columnLists: new Map(tables.flatMap(({ id, columns }) => (columns === null ? [] : [[id, columns]]))),
  };
}

/** Tables that no replica identity helps. */
async function leaveOut(client: pg.ClientBase, publication: ModelPublication): Promise<void> {
  for (const { rootOid, wanted } of await readWeakIdentities(client, null))
    if (wanted === null) publication.leftOut.add(rootOid);
}
