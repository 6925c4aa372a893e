-- Every table of the publication (of these only, where some are given) as the subscriber gets it, as a JSON array.
-- Without a publication (null): as set-up would publish all tables, or these.
--
-- The body of the function is also run by itself, with $1 and $2, where functions cannot be
-- made. It must work on every major from 14 on, hence to_jsonb() where a catalog has grown columns. It reads
-- catalogs only and takes no lock on any table: pg_publication_tables (16 and newer) opens every table, and
-- two concurrent schema changes that both ran it would wait for each other.
create or replace function rivulet.published_schema(publication name, only_tables oid[] default null) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off
-- Values are printed as every connection of ours has them printed, whatever the user's session is set to.
set datestyle = 'ISO, MDY'
set timezone = 'UTC'
set intervalstyle = 'postgres'
set extra_float_digits = 3
set bytea_output = 'hex'
set lc_monetary = 'C'
set xmloption = 'content'
set jit = off
-- The planner has no idea how many rows a CTE has; loops over CTEs inside loops over CTEs took 25 s for 3,000 tables.
set enable_nestloop = off
as $query$
with recursive publication as (
  select p.oid, p.puballtables, p.pubviaroot,
         -- Before 18 generated columns never arrive, although pg_publication_tables lists them.
         current_setting('server_version_num')::int >= 180000 as can_send_generated,
         coalesce(to_jsonb(p)->>'pubgencols', 'n') = 's' as sends_generated
    from pg_publication p
   where p.pubname = $1::name
  union all
  select 0, true, true, current_setting('server_version_num')::int >= 180000, true
   where $1::name is null
),
-- FOR TABLES IN SCHEMA; pg_publication_namespace came with 15, so its rows are found by their dependencies.
published_namespace as (
  select on_schema.refobjid as oid
    from publication p
    join pg_depend on_publication on on_publication.refclassid = 'pg_publication'::regclass
     and on_publication.refobjid = p.oid
     and on_publication.classid = to_regclass('pg_catalog.pg_publication_namespace')
    join pg_depend on_schema on on_schema.classid = on_publication.classid
     and on_schema.objid = on_publication.objid and on_schema.refclassid = 'pg_namespace'::regclass
),
-- The given tables and what they are partitions of; or all.
considered(oid) as (
  select unnest($2::oid[])
  union
  select i.inhparent
    from considered d join pg_class c on c.oid = d.oid and c.relispartition join pg_inherits i on i.inhrelid = c.oid
),
candidate as (
  select oid from considered
  union all
  select c.oid from pg_class c where $2::oid[] is null and c.relkind in ('r', 'p')
),
direct as (
  select c.oid, null::int2[] as column_list, null as published_part
    from publication p, candidate d join pg_class c on c.oid = d.oid
   where p.puballtables and c.relkind in ('r', 'p') and pg_relation_is_publishable(c.oid)
     and (p.oid <> 0 or $2::oid[] is null or c.oid = any ($2))
  union all
  select r.prrelid,
         case when jsonb_typeof(to_jsonb(r)->'prattrs') = 'array'
              then array(select value::int2 from jsonb_array_elements_text(to_jsonb(r)->'prattrs')) end,
         -- which part of the table is published: another row filter or column list is other content; the tie (see
         -- 007_published_tables), and where something stood in the statement, is none
         md5(nullif(concat(regexp_replace(to_jsonb(r)->>'prqual', $$ ?\{NULLTEST :arg \{CONST :consttype 2202 [^{}]*\} [^{}]*\}| :location -?\d+$$, '', 'g'),
                           ' ', to_jsonb(r)->>'prattrs'), ' '))
    from publication p, candidate d join pg_publication_rel r on r.prrelid = d.oid
   where r.prpubid = p.oid
  union all
  select c.oid, null, null
    from candidate d join pg_class c on c.oid = d.oid join published_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p') and pg_relation_is_publishable(c.oid)
     and not exists (select from publication p join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid)
),
ancestor(oid, parent) as (
  select i.inhrelid, i.inhparent
    from pg_inherits i join pg_class c on c.oid = i.inhrelid and c.relispartition
  union all
  select a.oid, i.inhparent
    from ancestor a join pg_class c on c.oid = a.parent and c.relispartition
    join pg_inherits i on i.inhrelid = a.parent
),
published_oid as (
  -- Through the root: the topmost published table stands for all below it.
  select d.oid, d.column_list, d.published_part
    from publication p, direct d
   where p.pubviaroot
     and not exists (select from ancestor a join direct above on above.oid = a.parent where a.oid = d.oid)
  union
  -- Otherwise the leaves themselves are published.
  select d.oid, d.column_list, d.published_part
    from publication p, direct d
   where not p.pubviaroot
  union
  select a.oid, null, null
    from publication p, ancestor a
   where not p.pubviaroot and a.parent in (select oid from direct) and a.oid not in (select oid from direct)
),
published as (
  select c.oid, n.nspname, c.relname, c.relkind, c.relreplident, c.relfilenode, o.column_list, o.published_part
    from published_oid o
    join pg_class c on c.oid = o.oid
    join pg_namespace n on n.oid = c.relnamespace
    cross join publication p
   where n.nspname <> 'rivulet' and c.relpersistence = 'p' and ($2::oid[] is null or c.oid = any ($2))
     and (c.relkind = 'r' or (c.relkind = 'p' and p.pubviaroot))
),
published_column as (
  select a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull
    from published r
    cross join publication p
    join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
   where (r.column_list is null or a.attnum = any (r.column_list))
     and (a.attgenerated = ''
          or (a.attgenerated = 's' and p.can_send_generated and (p.sends_generated or r.column_list is not null)))
),
-- Columns that are there with all their values and not published: they may come to be by the stroke of a pen (DROP
-- EXPRESSION of a generated one, another column list).
hidden_column as (
  select a.attrelid, jsonb_agg(a.attnum order by a.attnum) as list
    from published r
    join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    left join published_column c on c.attrelid = r.oid and c.attnum = a.attnum
   where c.attnum is null
   group by a.attrelid
),
-- Domains down to what they are made of, several steps if need be: of the columns, and of the elements of arrays.
step(type, base) as (
  select distinct c.atttypid, c.atttypid from published_column c
  union all
  select s.type, t.typbasetype from step s join pg_type t on t.oid = s.base and t.typtype = 'd'
),
column_base as (
  select s.type, t.oid as base, t.typelem from step s join pg_type t on t.oid = s.base and t.typtype <> 'd'
),
element_step(type, base) as (
  select distinct b.typelem, b.typelem from column_base b where b.typelem <> 0
  union all
  select s.type, t.typbasetype from element_step s join pg_type t on t.oid = s.base and t.typtype = 'd'
),
element_base as (
  select s.type, t.oid as base from element_step s join pg_type t on t.oid = s.base and t.typtype <> 'd'
),
column_type as (
  select b.type as oid, b.base,
         -- int2vector and oidvector are arrays by their catalog rows, but not by how they print.
         case when t.typsubscript = 'array_subscript_handler'::regproc and t.typlen = -1
               and t.oid not in ('int2vector'::regtype, 'oidvector'::regtype) then e.base end as element,
         e.typdelim as delimiter
    from column_base b
    join pg_type t on t.oid = b.base
    left join (select eb.type, eb.base, et.typdelim from element_base eb join pg_type et on et.oid = eb.type) e
      on e.type = b.typelem
),
-- Types of the user's own that a column's values are printed by: what these are made of, or called, can change
-- without a row being touched.
part(column_type, type) as (
  select distinct c.atttypid, c.atttypid from published_column c where c.atttypid >= 16384
  union
  select p.column_type, next.type
    from part p
    join pg_type t on t.oid = p.type
    cross join lateral (
      select t.typbasetype as type where t.typtype = 'd'
      union all
      select t.typelem where t.typlen = -1
      union all
      select r.rngsubtype from pg_range r where r.rngtypid = t.oid
      union all
      select r.rngtypid from pg_range r where r.rngmultitypid = t.oid
      union all
      select a.atttypid from pg_attribute a
       where t.typrelid <> 0 and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
    ) next
   where next.type >= 16384
),
type_parts as (
  select p.column_type, jsonb_agg(made_of.part order by made_of.part) as list
    from part p
    cross join lateral (
      select format('label %s %s', e.oid, e.enumlabel) as part from pg_enum e where e.enumtypid = p.type
      union all
      select format('attribute %s %s %s', a.attrelid, a.attnum, a.atttypid)
        from pg_type t join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
       where t.oid = p.type and t.typtype = 'c'
    ) made_of
   group by p.column_type
),
index_column as (
  select i.indexrelid, i.indrelid, k as place, i.indkey[k] as attnum, (i.indoption[k] & 1) = 1 as descending
    from published r
    join pg_index i on i.indrelid = r.oid
    cross join generate_series(0, i.indnkeyatts - 1) k
   where i.indisvalid and i.indislive
),
-- An index of which a column is not published, or is an expression, is none to the subscriber.
covered_index as (
  select x.indexrelid
    from index_column x left join published_column c on c.attrelid = x.indrelid and c.attnum = x.attnum
   group by x.indexrelid
  having bool_and(c.attnum is not null)
),
key_column as (
  select x.indrelid, x.attnum,
         max(x.place + 1) filter (where i.indisprimary) as key_ordinal,
         bool_or(r.relreplident = 'd' and i.indisprimary and i.indimmediate
                 or r.relreplident = 'i' and i.indisreplident) as in_identity
    from covered_index u
    join pg_index i on i.indexrelid = u.indexrelid and (i.indisprimary or i.indisreplident)
    join index_column x on x.indexrelid = i.indexrelid
    join published r on r.oid = x.indrelid
   group by x.indrelid, x.attnum
),
columns as (
  select c.attrelid,
         jsonb_agg(jsonb_build_object(
           'attnum', c.attnum,
           'name', c.attname,
           'typeName', format_type(c.atttypid, c.atttypmod),
           'typeOid', c.atttypid::int8,
           'typeModifier', c.atttypmod,
           'baseOid', t.base::int8,
           'elemOid', coalesce(t.element, 0)::int8,
           'delim', coalesce(t.delimiter, ','),
           'notNull', c.attnotnull,
           'keyOrdinal', k.key_ordinal,
           'identity', coalesce(k.in_identity, false),
           'typeParts', coalesce(y.list, '[]')
         ) order by c.attnum) as list
    from published_column c
    join column_type t on t.oid = c.atttypid
    left join type_parts y on y.column_type = c.atttypid
    left join key_column k on k.indrelid = c.attrelid and k.attnum = c.attnum
   group by c.attrelid
),
deferrable_key as (
  select i.indrelid
    from covered_index u join pg_index i on i.indexrelid = u.indexrelid and i.indisprimary and not i.indimmediate
),
-- The tables that hold the rows: the table itself, or the leaves of a partitioned one, without those that are
-- unlogged: nobody is told of their rows.
heap as (
  select r.oid as root, h.oid, h.relfilenode
    from published r
    left join ancestor a on r.relkind = 'p' and a.parent = r.oid
    join pg_class h on h.oid = case r.relkind when 'p' then a.oid else r.oid end and h.relkind = 'r'
     and h.relpersistence = 'p'
),
-- Made by this very transaction (the row of a system column stays as it was made), not rewritten since, and empty still:
-- all that they are going to hold is in the stream. What they hold already came as another table's, or not at all.
storage as (
  select h.root,
         string_agg(format('%s:%s', h.oid, h.relfilenode), ' ' order by h.oid) as heaps,
         jsonb_agg(h.oid::int8) filter (where
           case when h.oid = h.relfilenode and a.xmin::text = (pg_current_xact_id_if_assigned()::xid)::text
                then pg_relation_size(h.oid) = 0 end) as created
    from heap h join pg_attribute a on a.attrelid = h.oid and a.attnum = -6
   group by h.root
),
-- The column by whose values alone a partitioned table has its rows in one partition or another, compared as its type
-- compares them.
partition_key as (
  select t.partrelid, a.attname
    from pg_partitioned_table t
    join pg_attribute a on a.attrelid = t.partrelid and a.attnum = t.partattrs[0]
    join pg_opclass o on o.oid = t.partclass[0] and o.opcdefault
    left join pg_collation c on c.oid = t.partcollation[0]
   where t.partnatts = 1 and coalesce(c.collisdeterministic, true)
),
-- Of each partition, at any depth: its own OID, its parent's, that column of the parent's, and which values it takes. As the
-- expression has no columns in it, no table is opened to print it.
partitions as (
  select r.oid as root,
         jsonb_agg(jsonb_build_array(c.oid::int8, i.inhparent::int8, k.attname, pg_get_expr(c.relpartbound, 0)) order by c.oid) as list
    from published r
    join ancestor a on a.parent = r.oid
    join pg_class c on c.oid = a.oid
    join pg_inherits i on i.inhrelid = c.oid
    left join partition_key k on k.partrelid = i.inhparent
   where r.relkind = 'p'
   group by r.oid
),
-- What the catalog keeps for rows from before a column. Partitions have it, not their root. It is an array of one
-- element, so no comma can mean anything else; types with another delimiter are box and its like.
missing_value as (
  select h.root, c.attnum, case when t.typdelim = ',' then (a.attmissingval::text::text[])[1] end as value
    from heap h
    join pg_attribute a on a.attrelid = h.oid and a.atthasmissing and not a.attisdropped
    join published_column c on c.attrelid = h.root and c.attname = a.attname
    join pg_type t on t.oid = a.atttypid
),
missing as (
  select m.root, jsonb_agg(jsonb_build_object('attnum', m.attnum, 'value', m.value)) as list
    from (select root, attnum, case when min(value) = max(value) and count(*) = count(value) then min(value) end as value
            from missing_value group by root, attnum) m
   group by m.root
),
-- Indexes that are plain lists of published columns; the primary key has its own place.
secondary_index as (
  select d.indrelid, jsonb_agg(d.definition order by d.indexrelid) as list
    from (
      select i.indrelid, i.indexrelid, jsonb_build_object(
               'oid', i.indexrelid::int8,
               'name', c.relname,
               'unique', i.indisunique,
               'columns', jsonb_agg(jsonb_build_object('attnum', x.attnum, 'descending', x.descending) order by x.place)
             ) as definition
        from covered_index u
        join pg_index i on i.indexrelid = u.indexrelid and not i.indisprimary and i.indpred is null
        join pg_class c on c.oid = i.indexrelid
        join pg_am am on am.oid = c.relam and am.amname = 'btree'
        join index_column x on x.indexrelid = i.indexrelid
       group by i.indrelid, i.indexrelid, i.indisunique, c.relname
    ) d
   group by d.indrelid
)
select coalesce(jsonb_agg(jsonb_build_object(
         'oid', r.oid::int8,
         'schema', r.nspname,
         'name', r.relname,
         'kind', r.relkind,
         'identity', r.relreplident,
         'keyDeferrable', k.indrelid is not null,
         'storage', concat_ws(' ', '0:' || r.published_part, s.heaps),
         'created', coalesce(s.created, '[]'),
         'partitions', coalesce(p.list, '[]'),
         'missing', coalesce(m.list, '[]'),
         'columns', c.list,
         'hidden', coalesce(h.list, '[]'),
         'indexes', coalesce(x.list, '[]')
       ) order by r.nspname, r.relname), '[]')
  from published r
  join columns c on c.attrelid = r.oid
  left join hidden_column h on h.attrelid = r.oid
  left join storage s on s.root = r.oid
  left join partitions p on p.root = r.oid
  left join missing m on m.root = r.oid
  left join secondary_index x on x.indrelid = r.oid
  left join deferrable_key k on k.indrelid = r.oid
$query$;

-- Makes NAME_of_few of a function: the same where it is given few tables, so that the planner may loop, and need not
-- read whole catalogs.
create or replace function rivulet.make_of_few(function regproc) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
  execute replace(
    replace(pg_get_functiondef(function), format('%s(', function), format('%s_of_few(', function)),
    $$ SET enable_nestloop TO 'off'$$, '');
end
$function$;
select rivulet.make_of_few('rivulet.published_schema');

revoke all on function rivulet.published_schema(name, oid[]), rivulet.published_schema_of_few(name, oid[]),
  rivulet.make_of_few(regproc) from public;
