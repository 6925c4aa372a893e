-- Postgres 18 has tables that no replica identity helps: without a key, and with a virtual generated column, which does
-- not go with FULL. Published, their UPDATE and DELETE are refused, and a publication FOR ALL TABLES leaves none out:
-- https://www.postgresql.org/docs/18/sql-createpublication.html
-- So from 18 on the publication that is for all tables is one of all schemas (config.wants_all); new schemas are added,
-- and a schema that has such a table is published by the names of the others.
--
-- No change of the publication may give a table that is published another reason to be. The stream sees each
-- transaction by the catalog as it was then, but pgoutput keeps what it has looked up, piece by piece, from one
-- transaction to the next: for one that was open across such a change the schema may be as after it and the table as
-- before, and what it wrote until then is not sent. (Likewise with DROP and CREATE PUBLICATION.) So all tables are
-- named beside their schema, from the transaction on that makes them; then the schema can go in the very statement
-- that makes a table which must not be in it. Where no hooks are, they are named only once there is such a table. Before
-- anybody reads from the publication there is nothing to mind, and all that are there then are named: see begin_reading.
--
-- A user's serializable transaction fails where it has read what another one writes, and the other way round: so of the
-- tables below each is either read by such transactions, or written, never both. (Ours are READ COMMITTED; catalogs, and
-- the rows that a transaction has written itself, do not count.)
-- https://www.postgresql.org/docs/current/transaction-iso.html#XACT-SERIALIZABLE

-- Of earlier versions.
drop table if exists rivulet.named_schema;
do $do$
begin
  if exists (select from pg_attribute a
              where a.attrelid = to_regclass('rivulet.named_table') and a.attname = 'queued_by' and not a.attisdropped) then
    drop table rivulet.named_table;
  end if;
  if exists (select from pg_attribute a
              where a.attrelid = to_regclass('rivulet.absent_table') and a.attname = 'is_changed' and not a.attisdropped) then
    alter table rivulet.absent_table drop column is_changed, add column left_by xid8;
  end if;
end
$do$;

-- Tables that are named beside their schema, and since when that holds for every transaction that is open: a
-- transaction that began when the name was there. Null: of all, for who named it kept all others from it, or nobody read.
-- Serializable transactions only read it.
create table if not exists rivulet.named_table (
  publication name,
  relation_oid oid,
  since xid8,
  primary key (publication, relation_oid)
);

-- Tables that a transaction is to name when it commits. Serializable transactions only write to it.
create table if not exists rivulet.queued_table (
  publication name,
  relation_oid oid,
  queued_by xid8,
  primary key (publication, relation_oid, queued_by)
);

-- Tables that had to leave the publication: of a list until they can come back, others while the statement runs that
-- makes them UNLOGGED, or does not. Serializable transactions only write to it.
create table if not exists rivulet.absent_table (
  publication name,
  relation_oid oid,
  -- the columns and the row filter that it was published with
  published_part text not null default '',
  -- the transaction that is about to make it UNLOGGED
  left_by xid8,
  primary key (publication, relation_oid)
);

-- To give back the end of a table VACUUM keeps everybody from it for a while, hooks too. All that there are are small.
-- https://www.postgresql.org/docs/current/sql-createtable.html#RELOPTION-VACUUM-TRUNCATE
do $do$
declare
  own regclass;
begin
  for own in
    select c.oid from pg_class c
     where c.relnamespace = 'rivulet'::regnamespace and c.relkind = 'r'
       and not coalesce(c.reloptions, '{}') @> array['vacuum_truncate=off']
  loop
    execute format('alter table %s set (vacuum_truncate = off)', own);
  end loop;
end
$do$;

-- Tables (of these only, where some are given; null: of all) that a publication of ours should leave out and does not,
-- or should hold and does not: with their partitions, and all schemas that these are in.
create or replace function rivulet.misplaced_tables(publication name, tables oid[] default null)
returns table (oid oid, label text, is_hopeless boolean, members oid[], schemas oid[])
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $query$
with recursive watched as (
  select p.oid, c.wants_all
    from rivulet.config c join pg_publication p on p.pubname = c.publication
   where c.publication = $1 and c.made_publication and not p.puballtables
),
-- FOR TABLES IN SCHEMA, whose catalog came with 15
published_namespace as (
  select on_schema.refobjid as oid
    from watched w
    join pg_depend on_publication on on_publication.refclassid = 'pg_publication'::regclass and on_publication.refobjid = w.oid
     and on_publication.classid = to_regclass('pg_catalog.pg_publication_namespace')
    join pg_depend on_schema on on_schema.classid = on_publication.classid
     and on_schema.objid = on_publication.objid and on_schema.refclassid = 'pg_namespace'::regclass
),
root as (
  select c.oid, c.relnamespace, format('%I.%I', n.nspname, c.relname) as label,
         exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated = 'v' and not a.attisdropped) as has_virtual
    from watched w
   cross join pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p') and not c.relispartition and ($2::oid[] is null or c.oid = any ($2))
     and n.nspname <> 'rivulet' and pg_relation_is_publishable(c.oid)
     and (w.wants_all
          or exists (select from pg_publication_rel r where r.prpubid = w.oid and r.prrelid = c.oid)
          or current_setting('transaction_isolation') <> 'serializable'
             and exists (select from rivulet.absent_table a where a.publication = $1 and a.relation_oid = c.oid))
),
hopeless as (
  select distinct w.root as oid
    from (select array_agg(r.oid) as oids from root r where r.has_virtual) v
   cross join lateral rivulet.weak_identity(v.oids) w
   where v.oids is not null and w.wanted is null
),
-- Of the hopeless ones no partition may be published either.
member(oid, root, schema) as (
  select r.oid, r.oid, r.relnamespace
    from root r, watched w
   where r.oid in (select h.oid from hopeless h)
      or not exists (select from pg_publication_rel p where p.prpubid = w.oid and p.prrelid = r.oid)
         and r.relnamespace not in (select n.oid from published_namespace n)
  union
  select c.oid, m.root, c.relnamespace
    from member m join pg_inherits i on i.inhparent = m.oid
    join pg_class c on c.oid = i.inhrelid and c.relispartition
),
family as (
  select m.root, array_agg(m.oid) as members, array_agg(distinct m.schema) as schemas,
         bool_or(m.schema in (select n.oid from published_namespace n)
                 or exists (select from pg_publication_rel p where p.prpubid = w.oid and p.prrelid = m.oid)
                 or rivulet.is_named_since($1, m.oid)) as is_published
    from member m, watched w
   group by m.root
)
select r.oid, r.label, h.oid is not null, f.members, f.schemas
  from family f
  join root r on r.oid = f.root
  left join hopeless h on h.oid = f.root
 where f.is_published or h.oid is null
 order by r.label
$query$;

-- Does this transaction keep everybody else from writing to the table, and to its partitions? Then whoever wrote to it
-- before has ended.
create or replace function rivulet.is_held(root oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select not exists (
  select root
  union
  select t.relid from pg_partition_tree(root) t
  except
  select l.relation from pg_locks l
   where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted
     and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
$query$;

-- What stands behind the table's name in the publication: columns and row filter, which came with 15.
create or replace function rivulet.published_part(publication oid, relation oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
begin
  if current_setting('server_version_num')::int < 150000 then
    return '';
  end if;
  return (
    select concat(' (' || (select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                             from pg_attribute a
                            where a.attrelid = r.prrelid and a.attnum = any (r.prattrs::int2[])) || ')',
                  ' where (' || pg_get_expr(r.prqual, r.prrelid) || ')')
      from pg_publication_rel r
     where r.prpubid = publication and r.prrelid = relation);
end
$function$;

-- How long a user's statement may be made to wait for what it would not wait for without all this: this long at most, and
-- half of what its timeouts leave it. Committing is under none but transaction_timeout, which came with 17.
create or replace function rivulet.patience(most interval, is_committing boolean default false) returns interval
language sql volatile
set search_path = pg_catalog, pg_temp
as $query$
select greatest('0', least(
  most,
  case when not is_committing then
    (nullif(current_setting('statement_timeout')::interval, '0') - (clock_timestamp() - statement_timestamp())) / 2 end,
  (nullif(current_setting('transaction_timeout', true)::interval, '0') - (clock_timestamp() - transaction_timestamp())) / 2))
$query$;

-- Waits while another transaction is changing one of these publications. Asleep, not in the queue for its lock: who
-- waits there can be part of a deadlock, and the one that fails for it would be the user's.
create or replace function rivulet.await_publications(publications oid[], patience interval) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  deadline constant timestamptz := clock_timestamp() + patience;
begin
  while clock_timestamp() < deadline and exists (
    select from pg_locks l
     where l.locktype = 'object' and l.classid = 'pg_publication'::regclass and l.objid = any (publications)
       -- not those that wait: it may be for this one
       and l.granted
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
       -- a prepared transaction has no process
       and l.pid is distinct from pg_backend_pid())
  loop
    perform pg_sleep(0.02);
  end loop;
end
$function$;

-- Hopeless tables among these leave the publication where they stand in it by name, which takes nothing from others.
-- Returns what is not published any more.
create or replace function rivulet.unname(publication name, tables oid[]) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  hopeless oid[];
  parts text[];
  named text;
begin
  select array_agg(c.oid), array_agg(coalesce(rivulet.published_part(p.oid, c.oid), '')),
         string_agg(format('%I.%I', n.nspname, c.relname), ', only ')
    into hopeless, parts, named
    from rivulet.misplaced_tables(publication, tables) m
    join pg_publication p on p.pubname = publication
    join pg_class c on c.oid = any (m.members)
    join pg_namespace n on n.oid = c.relnamespace
   where m.is_hopeless
     and (exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid)
          or rivulet.is_named_since(publication, c.oid));
  if named is not null then
    execute format('alter publication %I drop table only %s', publication, named);
    insert into rivulet.absent_table
    select c.publication, h.oid, h.published_part
      from rivulet.config c, unnest(hopeless, parts) h(oid, published_part)
     where c.publication = unname.publication and not c.wants_all
    on conflict on constraint absent_table_pkey do update set published_part = excluded.published_part;
  end if;
  return hopeless;
end
$function$;

-- Nobody reads from the publication: see config.unread_since, which may have changed since the snapshot. A slot shows at
-- once, and from the beginning of its creation.
create or replace function rivulet.is_unread(publication name) returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $query$
select exists (
  select from rivulet.config c
   where c.publication = $1 and c.unread_since is not null
     and not exists (select from pg_replication_slots s where s.slot_name = c.awaited_slot))
$query$;

-- Locks these tables so that the publication can name them, as far as nobody holds a lock that would be waited for, and
-- not more than that: the server has room for so many locks. Returns the names of those that it has locked.
create or replace function rivulet.lock_to_name(tables oid[], most int) returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  candidate text;
  locked text[] := '{}';
begin
  for candidate in
    select format('%I.%I', n.nspname, c.relname)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = any (tables)
  loop
    begin
      execute format('lock table only %s in share update exclusive mode nowait', candidate);
      locked := locked || candidate;
    exception when lock_not_available or undefined_table then
      null;
    end;
    exit when cardinality(locked) = most;
  end loop;
  return locked;
end
$function$;

drop function if exists rivulet.leave_out(name, oid, boolean);

-- Takes a hopeless table out of the publication, its schemas with it, as soon as the other tables of these are named:
-- those that this transaction keeps for itself it names. Returns what is not published any more; null: it has to wait
-- for name_tables. While nobody reads from the publication nothing has to be waited for: what is not named is taken in
-- later. `names_all`: it locks what it can, until it ends; not for a user's transaction. `patience`: with those that may
-- have written to one of the other tables before it was named.
create or replace function rivulet.leave_out(publication name, hopeless oid, names_all boolean default false,
                                             patience interval default '0') returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_nestloop = off
set lock_timeout = '100ms'
as $function$
declare
  pubid oid := (select p.oid from pg_publication p where p.pubname = publication);
  oldest xid8 := pg_snapshot_xmin(pg_current_snapshot());
  deadline constant timestamptz := clock_timestamp() + patience;
  everyone oid[]; -- all hopeless ones, with their partitions
  crowded oid[];  -- schemas that are published whole, and must not be
  is_unread constant boolean := rivulet.is_unread(publication);
  unnamed oid[];
  is_lacking boolean;
  unsettled oid[]; -- somebody may have written to them before they had a name
  awaited oid[] := '{}';
  writers text[];
  list text[];
  schema name;
begin
  loop
    -- Another transaction may have done it while this one waits.
    crowded := array(
      select n.pnnspid
        from rivulet.misplaced_tables(publication, array[hopeless]) m
        join pg_publication_namespace n on n.pnpubid = pubid and n.pnnspid = any (m.schemas)
       where m.is_hopeless);
    if crowded = '{}' then
      return rivulet.unname(publication, array[hopeless]);
    end if;
    everyone := array(select unnest(m.members) from rivulet.misplaced_tables(publication) m where m.is_hopeless);
    select array_agg(o.oid) filter (where not o.is_named and (names_all or o.is_held)),
           bool_or(not o.is_named and not o.is_held),
           array_agg(o.oid) filter (where o.is_named and not o.is_held)
      into unnamed, is_lacking, unsettled
      from (select c.oid, r.oid is not null or rivulet.is_named_since(leave_out.publication, c.oid) as is_named,
                   rivulet.is_held(c.oid) as is_held
              from pg_class c
              left join pg_publication_rel r on r.prpubid = pubid and r.prrelid = c.oid
              left join rivulet.named_table t on t.publication = leave_out.publication and t.relation_oid = c.oid
             where c.relnamespace = any (crowded) and c.relkind in ('r', 'p') and not c.relispartition
               and c.oid <> all (everyone) and pg_relation_is_publishable(c.oid)
               and (r.oid is null or t.relation_oid is null or t.since >= oldest)
            offset 0) o;
    exit when is_unread;
    if is_lacking then
      -- The replicator names them, if there is one and this transaction lets it, and sees it.
      if rivulet.keeps_snapshot()
         or not exists (select from rivulet.config c join pg_replication_slots s on s.slot_name = c.awaited_slot
                         where c.publication = leave_out.publication and s.active)
         or exists (select from pg_locks l
                     where l.pid = pg_backend_pid() and l.classid = 'pg_publication'::regclass and l.objid = pubid) then
        return null;
      end if;
    else
      -- Who has written to one before it was named holds a lock on it. Who does so from now on writes under its name.
      if not unsettled <@ awaited then
        awaited := array(select u from unnest(unsettled) u
                         union
                         select t.relid from unnest(unsettled) u cross join lateral pg_partition_tree(u) t);
        writers := null;
      end if;
      writers := array(
        select l.virtualtransaction
          from pg_locks l
         where l.locktype = 'relation' and l.relation = any (awaited) and l.pid is distinct from pg_backend_pid() and l.granted
           and l.database = (select d.oid from pg_database d where d.datname = current_database())
           and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
           and (writers is null or l.virtualtransaction = any (writers)));
      exit when writers = '{}';
    end if;
    if clock_timestamp() > deadline then
      return null;
    end if;
    perform pg_sleep(0.02);
  end loop;
  perform rivulet.await_publications(array[pubid], deadline - clock_timestamp());
  list := rivulet.lock_to_name(unnamed, case when names_all then 2000 end);
  if list <> '{}' then
    execute format('alter publication %I add table only %s', publication, array_to_string(list, ', only '));
  end if;
  for schema in select n.nspname from pg_namespace n where n.oid = any (crowded) loop
    begin
      execute format('alter publication %I drop tables in schema %I', publication, schema);
    exception when undefined_object then
      null; -- Somebody has, since the snapshot.
    end;
  end loop;
  perform rivulet.unname(publication, array[hopeless]);
  return everyone;
end
$function$;

-- The next step, in a transaction of its own, towards all tables named beside their schemas: notes those of the last
-- step, names more. Only such as nobody holds a lock on that would be waited for, and not all at once: the server has
-- room for so many locks. False: for now there is nothing more to do.
create or replace function rivulet.name_tables(publication name) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- what is known of a catalog and of named_table lags behind while thousands of tables are named
set enable_nestloop = off
set lock_timeout = '100ms'
as $function$
declare
  pubid oid;
  hopeless oid[];
  is_read constant boolean := not rivulet.is_unread(publication);
  names text[];
begin
  perform rivulet.check_replication_user();
  perform rivulet.fire_as('replica');
  -- Of tables that are gone: a serializable transaction could not look.
  delete from rivulet.absent_table a
   where a.publication = name_tables.publication and not exists (select from pg_class c where c.oid = a.relation_oid);
  select p.oid into pubid
    from rivulet.config c join pg_publication p on p.pubname = c.publication
   where c.publication = name_tables.publication and c.made_publication and c.wants_all and not p.puballtables;
  if pubid is null then
    return false;
  end if;
  hopeless := array(select unnest(m.members) from rivulet.misplaced_tables(publication) m where m.is_hopeless);
  -- A table that is named cannot be made UNLOGGED without the hook for it.
  if hopeless = '{}' and not exists (select from pg_event_trigger t where t.evtname = 'rivulet_alter' and t.evtenabled = 'A') then
    return false;
  end if;

  delete from rivulet.absent_table a where a.publication = name_tables.publication;
  -- Who is about to name them holds them.
  delete from rivulet.queued_table where ctid = any (array(
    select q.ctid from rivulet.queued_table q where q.publication = name_tables.publication for update skip locked));
  delete from rivulet.named_table t
   where t.publication = name_tables.publication
     and not exists (select from pg_publication_rel r where r.prpubid = pubid and r.prrelid = t.relation_oid);
  insert into rivulet.named_table
  select publication, r.prrelid, case when is_read then pg_current_xact_id() end
    from pg_publication_rel r
   where r.prpubid = pubid
     and not exists (select from rivulet.named_table t where t.publication = name_tables.publication and t.relation_oid = r.prrelid)
  on conflict on constraint named_table_pkey do nothing;

  names := rivulet.lock_to_name(array(
    select c.oid
      from pg_publication_namespace p
      join pg_class c on c.relnamespace = p.pnnspid
     where p.pnpubid = pubid and c.relkind in ('r', 'p') and not c.relispartition and c.oid <> all (hopeless)
       and pg_relation_is_publishable(c.oid)
       and not exists (select from pg_publication_rel r where r.prpubid = pubid and r.prrelid = c.oid)), 500);
  if names = '{}' then
    return false;
  end if;
  execute format('alter publication %I add table only %s', publication, array_to_string(names, ', only '));
  return true;
end
$function$;

drop function if exists rivulet.name_at_commit(name, oid[]);

-- Those that the hook has queued are named when the transaction commits: the first of them names all. A serializable
-- transaction reads of them only what it is called for, and names one by one.
create or replace function rivulet.name_held_table() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  pubid constant oid := (select p.oid from pg_publication p where p.pubname = new.publication);
  is_serializable constant boolean := current_setting('transaction_isolation') = 'serializable';
  -- with the key, because anybody may change a setting
  is_over constant text := (select md5(k.key || new.queued_by) from rivulet.message_key k);
  queued oid[] := array[new.relation_oid];
  named oid[];
  list text;
  schema name;
  schemas name[];
  role text;
begin
  if current_setting('rivulet.is_naming_over', true) = is_over then
    return null;
  end if;
  if not is_serializable then
    with own as (
      delete from rivulet.queued_table q where q.publication = new.publication and q.queued_by = new.queued_by
      returning q.relation_oid)
    select array_agg(o.relation_oid) into queued from own o;
  end if;
  select array_agg(c.oid), string_agg(format('%I.%I', n.nspname, c.relname), ', only '), array_agg(distinct n.nspname)
    into named, list, schemas
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_publication_namespace s on s.pnpubid = pubid and s.pnnspid = n.oid
   where c.oid = any (queued) and not c.relispartition and pg_relation_is_publishable(c.oid)
     and not exists (select from pg_publication_rel r where r.prpubid = pubid and r.prrelid = c.oid)
     -- It may be hopeless.
     and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated = 'v' and not a.attisdropped);
  if named is null then
    return null;
  end if;
  begin
    perform rivulet.await_publications(array[pubid], rivulet.patience('1s', is_committing => true));
  exception when others then
    null; -- lock_timeout is enough, where few make tables
  end;
  begin
    role := rivulet.fire_as('replica');
  exception when others then
    null; -- Nobody else may mind.
  end;
  execute format('alter publication %I add table only %s', new.publication, list);
  if role is not null then
    perform rivulet.fire_as(role);
  end if;
  -- As the catalog is by now, not as the transaction saw it: has the schema gone meanwhile, then rows are missing.
  foreach schema in array schemas loop
    perform pg_get_object_address('publication namespace', array[schema], array[new.publication]);
  end loop;
  if not is_serializable then
    begin
      insert into rivulet.named_table select new.publication, unnest(named), null
      on conflict on constraint named_table_pkey do update set since = null;
    exception when others then
      null; -- see name_tables
    end;
  end if;
  return null;
exception when others then
  -- Then not the others either: the transaction has waited long enough.
  perform set_config('rivulet.is_naming_over', is_over, true);
  if not is_serializable then
    delete from rivulet.queued_table q where q.publication = new.publication and q.queued_by = new.queued_by;
  end if;
  return null;
end
$function$;

-- Only where it lacks: see 001_tables.
do $do$
begin
  if not exists (select from pg_trigger t
                  where t.tgrelid = 'rivulet.queued_table'::regclass and t.tgname = 'name_at_commit' and t.tgenabled = 'A') then
    drop trigger if exists name_at_commit on rivulet.queued_table;
    create constraint trigger name_at_commit after insert on rivulet.queued_table
      deferrable initially deferred for each row execute function rivulet.name_held_table();
    alter table rivulet.queued_table enable always trigger name_at_commit;
  end if;
end
$do$;

-- For the replicator before it makes the slot: null, and from then on somebody reads from the publication. Or what has
-- to come first, so that all which will be sent was written when the tables of published schemas were named:
-- 'transactions' that were open when the publication was made and may have made tables, 'tables' that are not named.
create or replace function rivulet.begin_reading(publication name, needs_all_named boolean) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
  watched record;
begin
  perform rivulet.check_replication_user();
  select c.unread_since, p.oid as pubid, c.wants_all and c.made_publication and not p.puballtables as is_of_schemas
    into watched
    from rivulet.config c join pg_publication p on p.pubname = c.publication
   where c.publication = begin_reading.publication and c.unread_since is not null;
  if not found then
    return null;
  end if;
  if watched.is_of_schemas then
    if pg_snapshot_xmin(pg_current_snapshot()) <= watched.unread_since
       -- not of a database that was restored elsewhere
       and watched.unread_since < pg_snapshot_xmax(pg_current_snapshot()) then
      return 'transactions';
    end if;
    if needs_all_named and exists (
      select from pg_event_trigger h -- see name_tables
        join pg_publication_namespace n on n.pnpubid = watched.pubid
        join pg_class c on c.relnamespace = n.pnnspid
       where h.evtname = 'rivulet_alter' and h.evtenabled = 'A'
         and c.relkind in ('r', 'p') and not c.relispartition and pg_relation_is_publishable(c.oid)
         and not exists (
           select from pg_publication_rel r
             join rivulet.named_table t on t.publication = begin_reading.publication and t.relation_oid = r.prrelid
            where r.prpubid = watched.pubid and r.prrelid = c.oid))
    then
      return 'tables';
    end if;
  end if;
  update rivulet.config c set unread_since = null where c.publication = begin_reading.publication;
  return null;
end
$function$;

-- Of the statements in the text of a client, before an ALTER TABLE that it has in it itself: the one that is about to run,
-- without comments, as far as it can be told from the others. It is as many as there were such calls since the text came.
create or replace function rivulet.running_statement(sent text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  sent_at constant text := extract(epoch from statement_timestamp())::text;
  counted constant text[] := string_to_array(current_setting('rivulet.altering', true), ' ');
  place constant int := case when counted[1] = sent_at then counted[2]::int else 0 end + 1;
  quoted constant text := $$'(?:[^']|'')*'|"(?:[^"]|"")*"$$;
  comment constant text := $$--[^\n]*|/\*(?:[^*]|\*+[^*/])*\*+/$$;
  bare text;
  statements text[];
begin
  if sent !~* $$\munlogged\M$$ or sent !~* $$\malter\M.*\malter\M$$ then
    return sent;
  end if;
  -- Not for this transaction only: the text may go on behind its COMMIT.
  perform set_config('rivulet.altering', concat_ws(' ', sent_at, place), false);
  bare := regexp_replace(sent, format('(%s)|%s', quoted, comment), $$\1 $$, 'g');
  -- A count may have been rolled back, an extension alters tables, too, and of other kinds of quotes and comments it is not
  -- known here where they end.
  if bare ~* $$\m(rollback|abort|extension)\M|[\\$]|\*/$$ then
    return sent;
  end if;
  statements := array(
    select m[1]
      from regexp_matches(bare, format($$(?:%s|[^;'"])+$$, quoted), 'g') with ordinality t(m, n)
     where m[1] ~* $$^\s*alter\s+table\M$$
     order by n);
  return coalesce(statements[place], sent);
end
$function$;

-- The tables that these statements are about to make UNLOGGED leave the publications that name them, because Postgres
-- refuses it otherwise. The text is all that tells of it: that of the client's statement, which may be several, or of
-- the functions that it has called. As they may turn out to be others: see rename_altered.
create or replace function rivulet.unname_altered(query text, callers text, path name[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  space constant text := $$(?:\s|--[^\n]*\n|/\*(?:[^*]|\*+[^*/])*\*+/)$$;
  part constant text := $$("(?:[^"]|"")+"|[^\s.,;"'()*%/]+)$$;
  altering constant text := format($$\malter%1$s+table\M$$, space);
  unlogging constant text := format($$\mset%1$s+unlogged\M$$, space);
  -- where it is a function of plpgsql that runs it; in other languages than English the server says it otherwise
  statement constant text := substring(callers from $$^PL/pgSQL function "?rivulet"?\."?on_alter_table"?\(\) line \d+? at [^\n]+?\nSQL statement "(.*?)"\nPL/pgSQL function$$);
  statements text := coalesce(
    statement, case when callers ~ $$\n$$ then concat_ws('; ', query, callers) else rivulet.running_statement(query) end);
  deadline constant timestamptz := clock_timestamp() + least(
    rivulet.patience('10s'), nullif(current_setting('lock_timeout')::interval, '0'));
  is_sure boolean;
  is_known boolean := false;
  altered record;
begin
  if callers ~ $$"?rivulet"?\."?keep_identity"?\($$ then
    return;
  end if;
  -- Of functions in SQL there is only the name.
  if statement is null and callers ~ $$\n$$ then
    statements := concat_ws('; ', statements, (
      select string_agg(p.prosrc, '; ')
        from pg_proc p join pg_language l on l.oid = p.prolang
       where l.lanname = 'sql' and p.prosrc ~* unlogging
         and case when p.proname ~ '[^[:alnum:]_]' then strpos(callers, p.proname) > 0
                  else p.proname = any (regexp_split_to_array(callers, '[^[:alnum:]_]+')) end));
  end if;
  if statements !~* unlogging then
    return;
  end if;
  is_sure := (select count(*) = 1 from regexp_matches(statements, altering, 'gi'));
  for altered in
    select distinct on (c.oid) c.oid, format('%I.%I', n.nspname, c.relname) as label
      from regexp_matches(statements, format(
             $$%2$s(?:%1$s+if%1$s+exists)?(?:%1$s+only)?%1$s+%3$s(?:%1$s*\.%1$s*%3$s)?(?:%1$s*\.%1$s*%3$s)?(?:%1$s|[^;'"]|'[^']*'|"[^"]*")*%4$s$$,
             space, altering, part, unlogging), 'gi') m
     -- table, schema.table, database.schema.table
     cross join lateral (
       select array_agg((case when word ~ '^"' then replace(substr(word, 2, length(word) - 2), '""', '"')
                              else lower(word collate "C") end)::name order by place desc) as words
         from unnest(m) with ordinality w(word, place)
        where word is not null) name
     cross join lateral (
       select c.*
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relname = name.words[1] and n.nspname = any (case when name.words[2] is null then path else name.words[2:2] end)
        order by array_position(path, n.nspname) limit 1) c
      join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p') and c.relpersistence = 'p' and pg_has_role(current_user, c.relowner, 'usage')
  loop
    is_known := true;
    -- Where it may be another table, this one is not touched for nothing. (A snapshot may be of before it was named.)
    continue when not is_sure and not rivulet.keeps_snapshot()
                  and not exists (select from pg_publication_rel r where r.prrelid = altered.oid);
    perform rivulet.await_publications(array(select r.prpubid from pg_publication_rel r where r.prrelid = altered.oid),
                                       deadline - clock_timestamp());
    -- Nobody names it from now on. If it is sure that it will be this table, then with the lock of the statement itself:
    -- who takes a weaker one first can be part of a deadlock.
    execute format('lock table only %s in %s mode', altered.label,
                   case when is_sure then 'access exclusive' else 'share update exclusive' end);
    loop
      begin
        perform rivulet.unname_held(altered.oid);
        exit;
      exception when lock_not_available then
        -- Somebody was faster.
        exit when clock_timestamp() > deadline;
        perform rivulet.await_publications(array(select r.prpubid from pg_publication_rel r where r.prrelid = altered.oid),
                                           deadline - clock_timestamp());
      end;
    end loop;
  end loop;
  -- The text is written in a way that is not known here.
  if not is_known then
    perform rivulet.unname_locked(rivulet.lock_mentioned(statements), false);
  end if;
end
$function$;

-- For unname_altered, with the rights that a change of the publication takes. Who calls it otherwise must have been
-- allowed to lock the table.
create or replace function rivulet.unname_held(held oid) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  named record;
  place tid;
  role text;
begin
  if held not in (select rivulet.kept_tables()) then
    raise insufficient_privilege using message = 'this is for hooks';
  end if;
  for named in
    select q.publication, format('%I.%I', n.nspname, c.relname) as label,
           coalesce(rivulet.published_part(p.oid, c.oid), '') as part
      from rivulet.config q
      join pg_publication p on p.pubname = q.publication and not p.puballtables
     cross join pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where q.made_publication and c.oid = held
       -- As nobody names it by now, what is not there now need not be tried: but a snapshot may be of before.
       and (rivulet.keeps_snapshot()
            or exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid))
     order by q.publication
  loop
    begin
      role := rivulet.fire_as('replica');
      execute format('alter publication %I drop table only %s', named.publication, named.label);
      perform rivulet.fire_as(role);
      insert into rivulet.absent_table values (named.publication, held, named.part, pg_current_xact_id())
      on conflict on constraint absent_table_pkey do update
        set published_part = excluded.published_part, left_by = excluded.left_by
      returning ctid into place;
      perform set_config('rivulet.unnamed', concat_ws(';', nullif(current_setting('rivulet.unnamed', true), ''), place), true);
    exception when undefined_object then
      null; -- It is not named.
    end;
  end loop;
end
$function$;

-- In the place of unname_altered, where that or what it calls is broken, and therefore calling nothing: locks the tables
-- that the statement may mean, as far as nobody holds them. Those that it does not mean come back behind it.
create or replace function rivulet.lock_mentioned(statements text) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  mentioned constant text := lower(replace(statements, '""', '"'));
  named record;
  locked oid[] := '{}';
begin
  if statements !~* $$\munlogged\M$$ then
    return locked;
  end if;
  for named in
    select c.oid, format('%I.%I', n.nspname, c.relname) as label
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p') and c.relpersistence = 'p' and pg_has_role(current_user, c.relowner, 'usage')
       and exists (select from pg_publication_rel r where r.prrelid = c.oid)
       and strpos(mentioned, lower(c.relname)) > 0
       -- as a word
       and mentioned ~ format('(^|[^[:alnum:]_$])%s($|[^[:alnum:]_$])', regexp_replace(lower(c.relname), '([^[:alnum:]_])', $$\\\1$$, 'g'))
  loop
    begin
      execute format('lock table only %s in share update exclusive mode', named.label);
      locked := locked || named.oid;
    exception when lock_not_available then
      null;
    end;
  end loop;
  return locked;
end
$function$;

-- Likewise in the place of unname_held, and of unname: these leave the publications that name them. `is_changed`: not only
-- while the statement runs.
create or replace function rivulet.unname_locked(locked oid[], is_changed boolean) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  named record;
  part text := '';
  place tid;
  role text;
begin
  begin
    role := rivulet.fire_as('replica');
  exception when others then
    null;
  end;
  for named in
    select q.publication, q.wants_all, r.oid as rel, c.oid, format('%I.%I', n.nspname, c.relname) as label
      from rivulet.config q
      join pg_publication p on p.pubname = q.publication
      join pg_publication_rel r on r.prpubid = p.oid
      join pg_class c on c.oid = r.prrelid
      join pg_namespace n on n.oid = c.relnamespace
     where q.made_publication and c.oid = any (locked)
       and exists (select from pg_locks l
                    where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted and l.relation = c.oid
                      and l.mode in ('ShareUpdateExclusiveLock', 'AccessExclusiveLock'))
  loop
    if current_setting('server_version_num')::int >= 150000 then
      select concat(' (' || (select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                               from pg_attribute a
                              where a.attrelid = r.prrelid and a.attnum = any (r.prattrs::int2[])) || ')',
                    ' where (' || pg_get_expr(r.prqual, r.prrelid) || ')')
        into part
        from pg_publication_rel r
       where r.oid = named.rel;
    end if;
    execute format('alter publication %I drop table only %s', named.publication, named.label);
    -- Of all tables those that are missing are known without.
    if not (is_changed and named.wants_all) then
      insert into rivulet.absent_table values (named.publication, named.oid, part, pg_current_xact_id())
      on conflict on constraint absent_table_pkey do update
        set published_part = excluded.published_part, left_by = excluded.left_by
      returning ctid into place;
    end if;
    if not is_changed then
      perform set_config('rivulet.unnamed', concat_ws(';', nullif(current_setting('rivulet.unnamed', true), ''), place), true);
    end if;
  end loop;
  if role is not null then
    perform rivulet.fire_as(role);
  end if;
end
$function$;

-- After the statement those that are as they were have their names again. Whoever reads the publication sees one of
-- the two, so nobody misses anything. Only the rows at the places that this transaction has noted are read.
create or replace function rivulet.rename_altered() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set lock_timeout = '100ms'
as $function$
declare
  place tid;
  gone rivulet.absent_table;
  altered record;
begin
  foreach place in array string_to_array(current_setting('rivulet.unnamed', true), ';')::tid[] loop
    select a.* into gone from rivulet.absent_table a where a.ctid = place and a.left_by = pg_current_xact_id();
    select format('%I.%I', n.nspname, c.relname) as label, c.relpersistence = 'p' as is_logged, q.wants_all
      into altered
      from rivulet.config q, pg_class c join pg_namespace n on n.oid = c.relnamespace
     where q.publication = gone.publication and c.oid = gone.relation_oid and c.oid in (select rivulet.kept_tables());
    continue when not found;
    -- Of all tables those that are missing are known without.
    if altered.is_logged or altered.wants_all then
      delete from rivulet.absent_table a where a.ctid = place;
    end if;
    if altered.is_logged then
      execute format('alter publication %I add table only %s%s', gone.publication, altered.label, gone.published_part);
    end if;
  end loop;
  perform set_config('rivulet.unnamed', '', true);
end
$function$;

-- Takes into the publication what it lacks of these tables (null: of all). Whoever writes to one meanwhile must be
-- through, or his rows would be neither sent nor read: with `may_lock` that is waited for, as long as lock_timeout
-- says; otherwise, in a user's transaction, only tables count that this one holds as fast anyway. is_late: rows may
-- be there that were not sent, the table has to be read.
create or replace function rivulet.take_in(publication name, tables oid[], may_lock boolean)
returns table (oid oid, is_late boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  pubid constant oid := (select p.oid from pg_publication p where p.pubname = publication);
  missing record;
  part text;
begin
  for missing in
    select m.*, c.keeps_identity, c.wants_all
      from rivulet.misplaced_tables(publication, tables) m, rivulet.config c
     where c.publication = take_in.publication and not m.is_hopeless
  loop
    if not may_lock and not rivulet.is_held(missing.oid) then
      continue;
    end if;
    if may_lock then
      -- All that ALTER PUBLICATION takes, too: who takes a stronger lock later can be part of a deadlock. Who writes to the
      -- table waits for this, but not for others who change the publication.
      perform rivulet.await_publications(array[pubid], '100ms');
      execute format('lock table %s in share row exclusive mode', missing.label);
      -- Who held it until now may have taken it in himself.
      continue when exists (select from pg_publication_rel r where r.prpubid = pubid and r.prrelid = missing.oid);
      perform set_config('lock_timeout', '5ms', true);
    end if;
    -- Of all tables those that have left are known without (and not read for it: the transaction may be serializable).
    part := '';
    if not missing.wants_all then
      delete from rivulet.absent_table a
       where a.publication = take_in.publication and a.relation_oid = missing.oid
      returning a.published_part into part;
    end if;
    execute format('alter publication %I add table only %s%s', publication, missing.label, part);
    if missing.keeps_identity then
      perform rivulet.keep_identity(array[missing.oid]);
    end if;
    if exists (select from rivulet.weak_identity_of_few(array[missing.oid])) then
      raise exception 'it has no usable replica identity';
    end if;
    return query
      select member, not (
               pg_relation_size(member) = 0 and not exists (select from pg_inherits i where i.inhparent = member)
               -- made by this very transaction: the row of a system column stays as it was made
               and exists (select from pg_attribute a where a.attrelid = member and a.attnum = -6
                              and a.xmin::text = (pg_current_xact_id_if_assigned()::xid)::text))
        from unnest(missing.members) member;
  end loop;
end
$function$;

-- What can be done inside a user's statement. It waits for nobody, but where the next statement would be refused. What
-- cannot be had then the replicator does a moment later: see published-tables.ts.
create or replace function rivulet.keep_published_tables(touched oid[], made_schemas oid[])
returns table (oid oid, is_late boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '1ms'
as $function$
declare
  watched record;
  made record;
  misplaced record;
  moved oid[];
  -- for others who change the publication, where the next statement would be refused
  deadline constant timestamptz := clock_timestamp() + rivulet.patience('10s');
begin
  if current_setting('transaction_isolation') <> 'serializable' then
    delete from rivulet.absent_table a
     where a.relation_oid = any (touched) and not exists (select from pg_class c where c.oid = a.relation_oid);
  end if;
  -- In order, and none when one before it cannot be had: two that wait for each other's would wait until they give up.
  <<publications>>
  for watched in
    select c.publication, c.wants_all
      from rivulet.config c join pg_publication p on p.pubname = c.publication
     where c.made_publication and not p.puballtables
     order by c.publication
  loop
    if watched.wants_all then
      begin
        for made in select n.nspname from pg_namespace n where n.oid = any (made_schemas) loop
          execute format('alter publication %I add tables in schema %I', watched.publication, made.nspname);
          -- CREATE SCHEMA may have made tables, too.
          perform rivulet.keep_published_identity(touched);
        end loop;
      exception when others then
        null;
      end;
    end if;
    for misplaced in
      select m.oid, m.is_hopeless from rivulet.misplaced_tables(watched.publication, touched) m
    loop
      loop
        begin
          if misplaced.is_hopeless then
            moved := rivulet.leave_out(watched.publication, misplaced.oid, patience => deadline - clock_timestamp());
            return query select unnest(moved), false;
          else
            return query select * from rivulet.take_in(watched.publication, array[misplaced.oid], false);
          end if;
          exit;
        exception
          when lock_not_available then
            exit publications when not misplaced.is_hopeless or clock_timestamp() > deadline;
          when others then
            -- The hook itself does what cannot wait for the replicator.
            if misplaced.is_hopeless then
              return query select misplaced.oid, null::boolean;
            end if;
            exit;
        end;
      end loop;
    end loop;
  end loop;
end
$function$;

-- The next step with one table for the replicator and set-up, with the announcement. False: it has to wait, or there is
-- more to do.
create or replace function rivulet.place_table(publication name, misplaced oid) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
  is_hopeless boolean;
  moved oid[];
  late oid[];
begin
  perform rivulet.check_replication_user();
  perform rivulet.fire_as('replica');
  select m.is_hopeless into is_hopeless from rivulet.misplaced_tables(publication, array[misplaced]) m;
  if is_hopeless is null then
    return true;
  end if;
  if is_hopeless then
    perform rivulet.await_publications(array(select p.oid from pg_publication p where p.pubname = publication), '1s');
    moved := rivulet.leave_out(publication, misplaced);
  else
    select array_agg(t.oid), array_agg(t.oid) filter (where t.is_late) into moved, late
      from rivulet.take_in(publication, array[misplaced], true) t;
  end if;
  if moved is null then
    return false;
  end if;
  perform rivulet.announce('ALTER PUBLICATION', moved, late);
  return true;
end
$function$;

revoke all on function rivulet.misplaced_tables(name, oid[]), rivulet.is_held(oid), rivulet.unname(name, oid[]),
  rivulet.leave_out(name, oid, boolean, interval), rivulet.is_unread(name), rivulet.lock_to_name(oid[], int), rivulet.begin_reading(name, boolean),
  rivulet.name_tables(name), rivulet.name_held_table(), rivulet.published_part(oid, oid), rivulet.await_publications(oid[], interval),
  rivulet.patience(interval, boolean), rivulet.running_statement(text), rivulet.unname_altered(text, text, name[]),
  rivulet.unname_held(oid), rivulet.lock_mentioned(text), rivulet.unname_locked(oid[], boolean), rivulet.rename_altered(),
  rivulet.take_in(name, oid[], boolean), rivulet.keep_published_tables(oid[], oid[]), rivulet.place_table(name, oid) from public;
grant select on rivulet.named_table, rivulet.queued_table, rivulet.absent_table to public;
grant execute on function rivulet.misplaced_tables(name, oid[]), rivulet.name_tables(name), rivulet.begin_reading(name, boolean),
  rivulet.place_table(name, oid),
  rivulet.patience(interval, boolean), rivulet.await_publications(oid[], interval), rivulet.running_statement(text),
  rivulet.unname_altered(text, text, name[]), rivulet.unname_held(oid), rivulet.lock_mentioned(text), rivulet.unname_locked(oid[], boolean) to public;
