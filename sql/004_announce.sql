create or replace function rivulet.kept_message_key() returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  key text;
begin
  if (select c.relispopulated from pg_class c where c.oid = to_regclass('rivulet.message_key')) then
    key := (select k.key from rivulet.message_key k);
  end if;
  return coalesce(key, nullif(current_setting('rivulet.former_key', true), ''), gen_random_uuid()::text);
end
$function$;

-- Whoever may connect may write logical messages: those that have this in them are the hooks', or the replicator's. No
-- table, because nobody else may read it, and pg_dump leaves the rows of these alone; REFRESH keeps what it has.
do $do$
begin
  if exists (select from pg_class c where c.oid = to_regclass('rivulet.message_key') and c.relkind = 'r') then
    perform set_config('rivulet.former_key', k.key, true) from rivulet.message_key k;
    drop table rivulet.message_key;
  end if;
  create materialized view if not exists rivulet.message_key as select rivulet.kept_message_key() as key;
  -- Like all else in here, whoever runs this. Only where it has to be: hooks in open transactions have read it.
  if exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where c.oid = 'rivulet.message_key'::regclass and c.relowner <> n.nspowner) then
    execute format('alter materialized view rivulet.message_key owner to %I', (
      select pg_get_userbyid(n.nspowner) from pg_namespace n where n.nspname = 'rivulet'));
  end if;
  -- A dump of the schema alone has been restored.
  if not exists (select from pg_class c where c.oid = 'rivulet.message_key'::regclass and c.relispopulated) then
    refresh materialized view rivulet.message_key;
  end if;
end
$do$;

-- The tables that this transaction holds a lock on that keeps schema changes of others out.
create or replace function rivulet.kept_tables() returns setof oid
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select l.relation
  from pg_locks l
 where l.pid = pg_backend_pid() and l.locktype = 'relation'
   and l.database = (select d.oid from pg_database d where d.datname = current_database())
   and l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
$query$;

-- These, and kept_tables(): of these, and of no others, what the transaction sees is what holds when it commits. One
-- that made its change an hour ago knows nothing of those that committed since. null: all tables, after changes that
-- lock none.
create or replace function rivulet.touched_tables(command text, also oid[]) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  touched oid[];
begin
  if command in ('ALTER PUBLICATION', 'CREATE PUBLICATION', 'DROP PUBLICATION', 'ALTER SCHEMA', 'ALTER TYPE',
                 'ALTER DOMAIN', 'DROP DOMAIN', 'DROP TYPE', 'CREATE EXTENSION', 'ALTER EXTENSION') then
    return null;
  end if;
  -- What is new changes nothing of others but of what it is a part of: looking at all that a transaction has made before
  -- would take longer with each.
  touched := case when also <> '{}' and command in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE INDEX') then also
                  else array(select unnest(also) union select rivulet.kept_tables()) end;
  -- DROP INDEX CONCURRENTLY has let go of its locks by now.
  if touched = '{}' and command <> 'CREATE SCHEMA' then
    return null;
  end if;
  -- Values of its row type, in whatever table, are printed with its columns.
  if exists (select from pg_class c join pg_type t on t.oid = c.reltype
               join pg_depend d on d.refclassid = 'pg_type'::regclass and d.refobjid in (t.oid, t.typarray)
              where c.oid = any (touched)
                and (d.classid = 'pg_class'::regclass or d.classid = 'pg_type'::regclass and d.objid <> t.typarray)) then
    return null;
  end if;
  -- A partition's change is its root's: that is what the subscriber knows.
  return array(select unnest(touched)
               union
               select a.relid from pg_class c cross join lateral pg_partition_ancestors(c.oid) a
                where c.oid = any (touched) and c.relispartition);
end
$function$;

-- Of these tables, whose schema no other transaction can change, those that are not as this transaction has told of them
-- before: a thousand changes in one transaction would otherwise describe a thousand tables each. What a table looks like
-- is known by where the rows of the catalogs that say so are: each change puts them elsewhere, and while the transaction
-- lasts nothing takes the old place. What was told goes, with its message, when a savepoint is rolled back; and the key
-- is in it, because anybody may change a setting.
create or replace function rivulet.changed_tables(touched oid[]) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
declare
  message_key text := (select k.key from rivulet.message_key k);
  told jsonb := coalesce(nullif(current_setting('rivulet.told', true), ''), '{}')::jsonb;
  now jsonb;
begin
  if touched is null then
    return null;
  end if;
  with recursive member(root, oid) as (
    select t, t from unnest(touched) t
    union
    select m.root, i.inhrelid
      from member m join pg_inherits i on i.inhparent = m.oid
      join pg_class c on c.oid = i.inhrelid and c.relispartition
  ),
  -- By sets: a look for each table by itself takes three times as long for hundreds.
  looked_at as materialized (
    select array_agg(distinct m.oid) as oids from member m join pg_class c on c.oid = m.oid and c.relkind in ('r', 'p')
  ),
  place as (
    select m.oid, 0 as catalog, m.oid as number, concat_ws(' ', m.oid, c.ctid) as at
      from (select distinct oid from member) m left join pg_class c on c.oid = m.oid
    union all
    select a.attrelid, 1, a.attnum, a.ctid::text
      from pg_attribute a where a.attrelid = any ((select oids from looked_at)::oid[]) and a.attnum > 0
    union all
    select d.adrelid, 2, d.adnum, d.ctid::text from pg_attrdef d where d.adrelid = any ((select oids from looked_at)::oid[])
    union all
    select i.indrelid, 3, x.oid, concat_ws(' ', i.ctid, x.ctid)
      from pg_index i join pg_class x on x.oid = i.indexrelid where i.indrelid = any ((select oids from looked_at)::oid[])
    union all
    select n.conrelid, 4, n.oid, n.ctid::text from pg_constraint n where n.conrelid = any ((select oids from looked_at)::oid[])
    union all
    select h.inhrelid, 5, h.inhparent, h.ctid::text from pg_inherits h where h.inhrelid = any ((select oids from looked_at)::oid[])
  ),
  placed as (
    select p.oid, string_agg(p.at, ' ' order by p.catalog, p.number) as rows from place p group by p.oid
  )
  select jsonb_object_agg(r.root, r.digest) into now
    from (select m.root, md5(message_key || string_agg(p.rows, ';' order by p.oid)) as digest
            from member m join placed p on p.oid = m.oid group by m.root) r;
  perform set_config('rivulet.told', (told || coalesce(now, '{}'))::text, true);
  return array(select t from unnest(touched) t where told ->> t::text is distinct from now ->> t::text);
end
$function$;

-- Before 15 pgoutput goes on sending the rows of a partition as its root's when it is none any more, and the other way
-- round, until any publication changes.
-- https://www.postgresql.org/docs/14/sql-createpublication.html (publish_via_partition_root)
create or replace function rivulet.forget_routes() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
  if current_setting('server_version_num')::int < 150000 then
    execute format('create publication rivulet_%s', pg_current_xact_id());
    execute format('drop publication rivulet_%s', pg_current_xact_id());
  end if;
end
$function$;

-- Whether this transaction sees the catalogs, where it asks for their rows, as they were when it began, and not as they are.
-- https://www.postgresql.org/docs/current/transaction-iso.html#XACT-REPEATABLE-READ
create or replace function rivulet.keeps_snapshot() returns boolean
language sql stable
as $query$
select pg_catalog.current_setting('transaction_isolation') in ('repeatable read', 'serializable')
$query$;

-- Whether the publication names a table by now, in a transaction that keeps a snapshot which may be of before: by a look at
-- the catalog that does not go by it.
create or replace function rivulet.is_named_since(publication name, relation oid) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
  if not rivulet.keeps_snapshot() then
    return false;
  end if;
  -- A block of its own: it costs a subtransaction.
  begin
    perform pg_get_object_address('publication relation', array[n.nspname, c.relname], array[publication])
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.oid = relation;
    return found;
  exception when others then
    return false; -- It is not.
  end;
end
$function$;

-- keep_identity for the published ones of these tables (null: of all). Apart from announce(), and without the
-- help of published_schema(), so that the one works when the other does not.
create or replace function rivulet.keep_published_identity(touched oid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  watched record;
begin
  for watched in
    -- It may be that set-up is about to make it.
    select p.oid, p.pubname, coalesce(p.puballtables, c.wants_all) as is_for_all
      from rivulet.config c left join pg_publication p on p.pubname = c.publication
     where c.keeps_identity
  loop
    perform rivulet.keep_identity(array(
      select c.oid
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where c.relkind in ('r', 'p') and (touched is null or c.oid = any (touched))
         and n.nspname <> 'rivulet' and pg_relation_is_publishable(c.oid)
         and (watched.is_for_all and not c.relispartition
              or exists (select from pg_publication_rel r where r.prpubid = watched.oid and r.prrelid = c.oid)
              or rivulet.is_named_since(watched.pubname, c.oid)
              -- TABLES IN SCHEMA, whose catalog came with 15
              or exists (select from pg_depend on_publication
                           join pg_depend on_schema on on_schema.classid = on_publication.classid
                            and on_schema.objid = on_publication.objid
                          where on_publication.classid = to_regclass('pg_catalog.pg_publication_namespace')
                            and on_publication.refclassid = 'pg_publication'::regclass
                            and on_publication.refobjid = watched.oid
                            and on_schema.refclassid = 'pg_namespace'::regclass
                            and on_schema.refobjid = c.relnamespace))));
  end loop;
  if current_setting('transaction_isolation') <> 'serializable' then -- see keep_identity
    delete from rivulet.saved_identity s
     where s.relation_oid = any (touched) and not exists (select from pg_class c where c.oid = s.relation_oid);
  end if;
end
$function$;

-- Whether others have changed, since the snapshot of a transaction that keeps one, what the catalogs say of these tables
-- (null: of any). It sees their rows as they were, and beside each the one that it has made of it itself.
-- https://www.postgresql.org/docs/current/transaction-iso.html#XACT-REPEATABLE-READ
create or replace function rivulet.is_outdated(touched oid[]) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
  if not rivulet.keeps_snapshot() then
    return false;
  end if;
  return exists (
    with described as (
      select c.oid, c.relnamespace, c.xmax as superseded_by
        from pg_class c
       where touched is null
          or c.oid = any (touched)
          or c.oid in (select m.relid from unnest(touched) t cross join lateral pg_partition_tree(t) m)
    ),
    row_of as (
      select d.superseded_by from described d
      union all
      select a.xmax from pg_attribute a where a.attrelid in (select d.oid from described d)
      union all
      select unnest(array[i.xmax, x.xmax])
        from pg_index i join pg_class x on x.oid = i.indexrelid where i.indrelid in (select d.oid from described d)
      union all
      select n.xmax from pg_namespace n where n.oid in (select d.relnamespace from described d)
      union all
      select y.xmax from pg_type y where y.oid >= 16384
    )
    select from row_of r where r.superseded_by <> 0 and r.superseded_by <> pg_current_xact_id()::xid);
end
$function$;

-- The publications as they are, by name; null: the publications themselves may not be any more what an older snapshot shows.
create or replace function rivulet.publishers() returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select case when not rivulet.keeps_snapshot() then coalesce(jsonb_object_agg(p.pubname, jsonb_build_object(
         'oid', p.oid::int8, 'altered_by', p.xmin::text::int8,
         'unpublished', array_remove(array[
           case when not p.pubinsert then 'insert' end, case when not p.pubupdate then 'update' end,
           case when not p.pubdelete then 'delete' end, case when not p.pubtruncate then 'truncate' end], null))), '{}') end
  from pg_publication p
$query$;

-- Writes the published schema, as far as it is touched (null: all of it), into the WAL, at its place among the rows
-- of this very transaction. `late` have come into the publication with rows that were not sent: they are read again,
-- also by those who thought that they had them.
-- https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
drop function if exists rivulet.announce(text, oid[]);
create or replace function rivulet.announce(command text, touched oid[] default null, late oid[] default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  message_key text := (select k.key from rivulet.message_key k);
  sees_all constant boolean := not rivulet.keeps_snapshot();
  half_detached constant text[] := string_to_array(current_setting('rivulet.half_detached', true), ' ');
  -- what nobody else has written to since this transaction took hold of it, and not while it was half detached
  exclusive jsonb := '[]';
  watched record;
begin
  if rivulet.is_outdated(touched) then
    raise serialization_failure;
  end if;
  if command = 'ALTER TABLE' and sees_all and half_detached[1] = 'of' then
    exclusive := (select coalesce(jsonb_agg(l.relation::int8), '[]')
                    from pg_locks l
                   where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted
                     and l.relation = any (touched) and l.relation::text <> all (half_detached));
  end if;
  for watched in
    select c.publication, rivulet.publishers() -> c.publication::text as publisher
      from rivulet.config c left join pg_publication p on p.pubname = c.publication
     -- What makes it go touches no table.
     where p.oid is not null or touched is null and sees_all
  loop
    -- Bytes, not text: a message is not converted to the client's encoding on its way.
    perform pg_logical_emit_message(true, 'rivulet', convert_to((jsonb_build_object(
      'v', 1,
      'key', message_key,
      'publication', watched.publication,
      'command', command,
      'touched', case when touched is not null then to_jsonb(touched::int8[]) end,
      'exclusive', exclusive,
      -- the moment that this statement, and so the schema below, is of
      'snapshot', pg_current_snapshot()::text,
      'relations', case when cardinality(touched) <= 100 then rivulet.published_schema_of_few(watched.publication, touched)
                        else rivulet.published_schema(watched.publication, touched) end
    ) || case when sees_all then jsonb_build_object('publisher', watched.publisher) else '{}' end)::text, 'UTF8'));
    if late <> '{}' then
      perform pg_logical_emit_message(true, 'rivulet.reread', convert_to(jsonb_build_object(
        'key', message_key, 'publication', watched.publication, 'oids', to_jsonb(late::int8[]))::text, 'UTF8'));
    end if;
  end loop;
end
$function$;

revoke all on function rivulet.kept_message_key(), rivulet.forget_routes(), rivulet.kept_tables(), rivulet.touched_tables(text, oid[]), rivulet.changed_tables(oid[]),
  rivulet.is_outdated(oid[]), rivulet.is_named_since(name, oid), rivulet.keep_published_identity(oid[]),
  rivulet.publishers(), rivulet.announce(text, oid[], oid[]) from public;
grant execute on function rivulet.keeps_snapshot() to public;
