-- A table that is published without a usable replica identity refuses its user's UPDATE and DELETE.
-- https://www.postgresql.org/docs/current/logical-replication-publication.html#LOGICAL-REPLICATION-PUBLICATION-REPLICA-IDENTITY

-- Of earlier versions.
do $do$
begin
  if exists (select from pg_proc p where p.oid = to_regprocedure('rivulet.weak_identity(oid[])') and 'wanted_index' = any (p.proargnames)) then
    drop function rivulet.weak_identity(oid[]), rivulet.weak_identity_of_few(oid[]);
  end if;
end
$do$;

-- The given tables (null: all that could be published) and the partitions below them, as far as their identity
-- is not usable: what it would have to be, or null where nothing helps. Leaves before their root, so that no
-- moment has a root that promises more than its leaves send. The body is also run by itself, like published_schema's.
create or replace function rivulet.weak_identity(tables oid[])
returns table (oid oid, root oid, schema_name name, table_name name, identity "char", index_oid oid,
               wanted "char", reason text)
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
set enable_nestloop = off
as $query$
with recursive root as (
  select c.oid
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where $1::oid[] is null and c.relkind in ('r', 'p') and not c.relispartition
     and n.nspname <> 'rivulet' and pg_relation_is_publishable(c.oid)
  union
  select unnest($1::oid[])
),
member(oid, root) as (
  select oid, oid from root
  union
  select i.inhrelid, m.root
    from member m join pg_inherits i on i.inhparent = m.oid
    join pg_class c on c.oid = i.inhrelid and c.relispartition
),
attribute as (
  select a.attrelid, a.attnum, a.attname, a.attnotnull, a.attgenerated,
         a.attgenerated = '' or (a.attgenerated = 's' and current_setting('server_version_num')::int >= 180000) as is_sent
    from member m join pg_attribute a on a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped
),
index_column as (
  select i.indexrelid, i.indrelid, i.indkey[k] as attnum
    from member m join pg_index i on i.indrelid = m.oid
    cross join generate_series(0, i.indnkeyatts - 1) k
   where i.indisunique and i.indisvalid and i.indislive and i.indimmediate and i.indpred is null
),
-- What can serve as identity: unique at every moment, whole, of columns that are sent.
candidate as (
  select x.indexrelid
    from index_column x left join attribute a on a.attrelid = x.indrelid and a.attnum = x.attnum
   group by x.indexrelid
  having bool_and(coalesce(a.is_sent, false))
),
chosen as (
  select i.indrelid,
         (min(i.indexrelid::int8) filter (where i.indisprimary))::oid as primary_key,
         (min(i.indexrelid::int8) filter (where i.indisreplident))::oid as identity_index
    from candidate c join pg_index i on i.indexrelid = c.indexrelid
   group by i.indrelid
),
has_key as (
  select i.indrelid, bool_or(not i.indimmediate) as is_deferrable
    from member m join pg_index i on i.indrelid = m.oid and i.indisprimary
   group by i.indrelid
),
-- From 18 on the server refuses UPDATE under FULL if the table has a virtual generated column.
never_full as (
  select distinct attrelid from attribute where attgenerated = 'v'
),
judged as (
  select m.oid, m.root, c.relnamespace, c.relname, c.relreplident, k.primary_key,
         (select i.indexrelid from pg_index i where i.indrelid = m.oid and i.indisreplident) as identity_index,
         v.attrelid is null as can_be_full, h.indrelid is not null as has_key, h.is_deferrable,
         case c.relreplident
           when 'f' then v.attrelid is null
           when 'd' then k.primary_key is not null
           when 'i' then k.identity_index is not null
           else false
         end as is_usable
    from member m
    join pg_class c on c.oid = m.oid
    left join chosen k on k.indrelid = m.oid
    left join has_key h on h.indrelid = m.oid
    left join never_full v on v.attrelid = m.oid
   where c.relkind in ('r', 'p') and c.relpersistence = 'p'
),
weak as (
  select j.*, r.relreplident as root_identity,
         j.is_usable
         -- The subscriber sees the root's identity, the server sends old rows by the leaf's: they must fit.
         and (j.oid = j.root or j.relreplident = 'f'
              or (r.is_usable and j.relreplident = r.relreplident and r.relreplident in ('d', 'i'))) as is_fine
    from judged j join judged r on r.oid = j.root
)
select w.oid, w.root as root, n.nspname as schema_name, w.relname as table_name, w.relreplident as identity,
       w.identity_index as index_oid,
       (case when w.can_be_full then 'f'
             when w.oid <> w.root then null
             -- Not another index: its columns could not lose NOT NULL any more.
             when w.primary_key is not null then 'd' end)::"char" as wanted,
       case when w.is_usable then 'its partitioned table has another replica identity'
            when w.relreplident = 'n' then 'its replica identity is NOTHING'
            when w.relreplident = 'i' then 'the index of its replica identity is gone'
            when w.relreplident = 'f' then 'REPLICA IDENTITY FULL does not go with virtual generated columns'
            when w.is_deferrable then 'its primary key is deferrable'
            when w.has_key then 'its primary key has columns that Postgres does not send'
            else 'it has no primary key' end as reason
  from weak w
  join pg_namespace n on n.oid = w.relnamespace
 where not w.is_fine
 order by (w.oid = w.root), n.nspname, w.relname
$query$;

select rivulet.make_of_few('rivulet.weak_identity');

-- Event triggers that are not Rivulet's own do not answer what Rivulet does: written for their user's statements, they could
-- fail, and it with them. With 'replica' only those that are ENABLE ALWAYS do. Returns what it was before. Nothing changes
-- where there are none, as the change costs the session all its plans, nor for an owner of this function who may not.
-- https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SESSION-REPLICATION-ROLE
create or replace function rivulet.fire_as(role text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  former constant text := current_setting('session_replication_role');
begin
  if role <> former and (role <> 'replica' or exists (select from pg_event_trigger t where t.evtenabled = 'O')) then
    perform set_config('session_replication_role', role, true);
  end if;
  return former;
exception when insufficient_privilege then
  return former;
end
$function$;

-- Makes the identity of these tables usable, and takes FULL back where we set it and a primary key came later.
-- Only tables that can be locked at once: the caller's transaction is a user's, and must not wait for others.
create or replace function rivulet.keep_identity(tables oid[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  task record;
begin
  -- A serializable transaction only writes to saved_identity: if it read there what another one writes, it could fail
  -- for that.

  if current_setting('transaction_isolation') <> 'serializable' then
    -- Tables whose identity somebody has set since: not ours to restore any more.
    delete from rivulet.saved_identity where ctid = any (array(
      select s.ctid from rivulet.saved_identity s join pg_class c on c.oid = s.relation_oid
       where s.relation_oid = any (tables) and c.relreplident <> s.set_to
         for update of s skip locked));
  end if;

  for task in
    select c.oid, n.nspname as schema_name, c.relname as table_name,
           'd' as wanted, c.relreplident as identity, null::oid as index_oid, true as is_return
      from rivulet.saved_identity s
      join pg_class c on c.oid = s.relation_oid and c.relreplident = 'f' and c.relkind in ('r', 'p')
      join pg_namespace n on n.oid = c.relnamespace
     where s.previous = 'd' and s.set_to = 'f'
       and current_setting('transaction_isolation') <> 'serializable'
       and (c.oid = any (tables) or exists (select from pg_partition_ancestors(c.oid) a where a.relid::oid = any (tables)))
       and not exists (
         -- every table from here up to the root has an immediate primary key, all of it sent
         select from (select c.oid union select a.relid::oid from pg_partition_ancestors(c.oid) a) up
          where not exists (
            select from pg_index i
             where i.indrelid = up.oid and i.indisprimary and i.indisvalid and i.indimmediate
               and not exists (select from pg_attribute g
                                where g.attrelid = up.oid and g.attnum = any (i.indkey::int2[]) and g.attgenerated <> '')))
       -- a row filter of the user's own may be of other columns
       and not exists (
         select from (select c.oid union select a.relid::oid from pg_partition_ancestors(c.oid) a) up
           join pg_publication_rel r on r.prrelid = up.oid
          cross join lateral rivulet.published_part(r.prpubid, r.prrelid) part
          where part.row_filter is not null)
       -- a root only together with all its leaves: while one of them is not ours, all stay FULL
       and not exists (select from pg_partition_ancestors(c.oid) a join pg_class p on p.oid = a.relid
                        where p.relreplident = 'f' and p.oid <> c.oid
                          and not exists (select from rivulet.saved_identity o where o.relation_oid = p.oid and o.previous = 'd'))
    union all
    select w.oid, w.schema_name, w.table_name, w.wanted, w.identity, w.index_oid, false
      from (select * from rivulet.weak_identity_of_few(tables) where cardinality(tables) <= 100
            union all
            select * from rivulet.weak_identity(tables) where cardinality(tables) > 100) w
     where w.wanted is not null
  loop
    begin
      begin
        execute format('lock table only %I.%I in access exclusive mode nowait', task.schema_name, task.table_name);
        execute format('alter table only %I.%I replica identity %s', task.schema_name, task.table_name,
                       case task.wanted when 'f' then 'full' else 'default' end);
      exception when object_in_use or lock_not_available then
        -- A cursor of this very session, or readers beside DROP INDEX CONCURRENTLY: no ALTER TABLE then, and UPDATE would be
        -- refused. What it would do takes a superuser.
        update pg_class c set relreplident = task.wanted::"char"
         where c.oid = task.oid and task.wanted in ('d', 'f') and not task.is_return
           and not exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident);
        if not found then
          raise;
        end if;
      end;
      if task.is_return then
        delete from rivulet.saved_identity where relation_oid = task.oid;
      else
        insert into rivulet.saved_identity (relation_oid, previous, previous_index, set_to)
        values (task.oid, task.identity, task.index_oid, task.wanted)
        on conflict (relation_oid) do update set set_to = excluded.set_to;
      end if;
    exception when others then
      -- Locked, not ours, or refused: the replicator finds it by weak_identity and says so.
      null;
    end;
  end loop;
end
$function$;

revoke all on function rivulet.fire_as(text), rivulet.weak_identity(oid[]), rivulet.weak_identity_of_few(oid[]), rivulet.keep_identity(oid[]) from public;
