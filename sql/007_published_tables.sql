-- What a publication that set-up made holds. A table must be able to leave it, or Postgres would refuse what its user
-- does: one that no replica identity helps (from 18 on: without a key, and with a virtual generated column, which does
-- not go with FULL), and one that becomes UNLOGGED while the publication names it. FOR ALL TABLES leaves none out:
-- https://www.postgresql.org/docs/18/sql-createpublication.html
-- So from 18 on the publication that is for all tables is one of all their names (config.wants_all).
--
-- Who alters a publication keeps all others from altering it until his transaction ends. A new table can wait for that:
-- the replicator takes it in then, and reads it. One that has to leave cannot. So each table is tied to the publication
-- by a function of its own, rivulet.tie_OID(): its row filter, which every row passes, speaks of it. Dropping that with
-- CASCADE takes the table out, and locks nothing else.
-- https://www.postgresql.org/docs/current/ddl-depend.html
-- Row filters came with 15; before, and where somebody has named a table himself, it is ALTER PUBLICATION.
--
-- A user's serializable transaction fails where it has read what another one writes, and the other way round: so of the
-- tables below each is either read by such transactions, or written, never both. (Ours are READ COMMITTED; catalogs, and
-- the rows that a transaction has written itself, do not count.)
-- https://www.postgresql.org/docs/current/transaction-iso.html#XACT-SERIALIZABLE

-- Of earlier versions.
drop table if exists rivulet.named_table, rivulet.queued_table;
do $do$
begin
  if to_regclass('rivulet.absent_table') is not null and not exists (
    select from pg_attribute a where a.attrelid = to_regclass('rivulet.absent_table') and a.attname = 'columns' and not a.attisdropped) then
    drop table rivulet.absent_table;
  end if;
end
$do$;

-- Tables that had to leave, until they can come back. Serializable transactions only write to it.
create table if not exists rivulet.absent_table (
  publication name,
  relation_oid oid,
  -- what it was published with: ' (a, b)', and a condition
  column_list text,
  row_filter text,
  -- that these speak of: names by number
  columns jsonb,
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

-- As SQL names it.
create or replace function rivulet.label_of(relation oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select format('%I.%I', n.nspname, c.relname)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation
$query$;

create or replace function rivulet.tie_of(relation oid) returns text
language sql immutable
as $query$
select pg_catalog.format('rivulet.tie_%s()', relation)
$query$;

-- What stands behind the table's name in the publication, without the tie: columns and row filter, which came with 15.
create or replace function rivulet.published_part(publication oid, relation oid, out column_list text, out row_filter text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off
as $function$
declare
  tie constant text := $$\('rivulet\.tie_\d+\(\)'::regprocedure IS NOT NULL\)$$;
begin
  if current_setting('server_version_num')::int >= 150000 then
    select ' (' || (select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                      from pg_attribute a
                     where a.attrelid = r.prrelid and a.attnum = any (r.prattrs::int2[])) || ')',
           nullif(regexp_replace(regexp_replace(pg_get_expr(r.prqual, r.prrelid), format('^%s$', tie), ''),
                                 format($$ AND %s\)$$, tie), ')'), '')
      into column_list, row_filter
      from pg_publication_rel r
     where r.prpubid = publication and r.prrelid = relation;
  end if;
end
$function$;

-- Partitioned tables have no row filter where their partitions are published as tables of their own.
create or replace function rivulet.can_be_tied(publication oid, relation oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select current_setting('server_version_num')::int >= 150000
   and exists (select from pg_publication p, pg_class c
                where p.oid = publication and c.oid = relation and (p.pubviaroot or c.relkind <> 'p'))
$query$;

-- What the publications name the table with, by their names. In the text of the tie, because a transaction that keeps a
-- snapshot sees that as it is, and the rows of catalogs as they were.
create or replace function rivulet.tied_parts(relation oid) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select coalesce(substring(pg_get_functiondef(to_regprocedure(rivulet.tie_of(relation))) from $$-- ([{].*[}])[$]$$)::jsonb, '{}')
$query$;

-- The names of a table's columns by their numbers: what speaks of columns by name is only true while these are the same.
create or replace function rivulet.column_names(relation oid) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select jsonb_object_agg(a.attnum, a.attname)
  from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
$query$;

create or replace function rivulet.name_table(publication name, relation oid, column_list text, row_filter text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  tie constant text := rivulet.tie_of(relation);
  parts constant jsonb := rivulet.tied_parts(relation);
  part constant jsonb := jsonb_build_object(publication, jsonb_build_array(
    column_list, row_filter, case when column_list is not null or row_filter is not null then rivulet.column_names(relation) end));
  filter text := '';
begin
  if rivulet.can_be_tied((select p.oid from pg_publication p where p.pubname = publication), relation) then
    if not parts @> part then
      execute format('create or replace function %s returns void language sql as %L', tie, concat('-- ', parts || part));
      -- In the script of an extension it would be a part of that. When it has ended the table is named.
      if exists (select from pg_depend d
                  where d.classid = 'pg_proc'::regclass and d.objid = to_regprocedure(tie) and d.deptype = 'e') then
        raise object_not_in_prerequisite_state using message = 'an extension is being made';
      end if;
    end if;
    filter := format(' where (%s%L::regprocedure is not null)', row_filter || ' and ', tie);
  end if;
  execute format('alter publication %I add table only %s%s%s', publication, rivulet.label_of(relation), column_list, filter);
end
$function$;

-- How long a user's statement may be made to wait for what it would not wait for without all this: this long at most, and
-- half of what its timeouts leave it; transaction_timeout came with 17.
create or replace function rivulet.patience(most interval) returns interval
language sql volatile
set search_path = pg_catalog, pg_temp
as $query$
select greatest('0', least(
  most,
  (nullif(current_setting('statement_timeout')::interval, '0') - (clock_timestamp() - statement_timestamp())) / 2,
  (nullif(current_setting('transaction_timeout', true)::interval, '0') - (clock_timestamp() - transaction_timestamp())) / 2))
$query$;

-- Waits while another transaction is altering one of these publications; of those only that are taking in this very table,
-- where one is given. Not for one that is older than that already: it is likely to stay. Asleep, not in the queue for its
-- lock: who waits there can be part of a deadlock, and the one that fails for it would be the user's.
create or replace function rivulet.await_publications(publications oid[], patience interval, relation oid default null) returns void
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
       and l.pid <> pg_backend_pid()
       and not exists (select from pg_stat_get_activity(l.pid) a where a.xact_start < clock_timestamp() - patience)
       and ($3 is null or exists (
         select from pg_locks t
          where t.virtualtransaction = l.virtualtransaction and t.locktype = 'relation' and t.relation = $3
            and t.mode = 'ShareRowExclusiveLock' and t.granted)))
  loop
    perform pg_sleep(0.02);
  end loop;
end
$function$;

-- The table leaves all publications that set-up made and that name it. False: none did. Who might be taking it in just now
-- must have ended.
create or replace function rivulet.untie(relation oid) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $function$
declare
  tie constant text := rivulet.tie_of(relation);
  sees_all constant boolean := not rivulet.keeps_snapshot();
  -- in a database that was restored elsewhere it may be another table's
  is_tied constant boolean := to_regprocedure(tie) is not null and (not sees_all or rivulet.is_tied(relation));
  was_named boolean := is_tied;
  named record;
begin
  insert into rivulet.absent_table
  select t.publication::name, relation, t.part ->> 0, t.part ->> 1, nullif(t.part -> 2, 'null')
    from jsonb_each(case when is_tied and not sees_all then rivulet.tied_parts(relation) else '{}' end) t(publication, part)
   where rivulet.is_named_since(t.publication::name, relation)
  union all
  select c.publication, r.prrelid, part.column_list, part.row_filter, rivulet.column_names(relation)
    from rivulet.config c
    join pg_publication p on p.pubname = c.publication
    join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = relation
   cross join lateral rivulet.published_part(p.oid, relation) part
   where c.made_publication and (sees_all or not is_tied)
  on conflict on constraint absent_table_pkey do update
    set column_list = excluded.column_list, row_filter = excluded.row_filter, columns = excluded.columns;
  if is_tied then
    execute format('drop function %s cascade', tie);
  end if;
  for named in
    select format('alter publication %I drop table only %s', p.pubname, rivulet.label_of(relation)) as statement
      from rivulet.config q
      join pg_publication p on p.pubname = q.publication
      join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = relation
     where q.made_publication and (sees_all or rivulet.is_named_since(p.pubname, relation))
     order by p.pubname
  loop
    execute named.statement;
    was_named := true;
  end loop;
  return was_named;
end
$function$;

-- Whether its own tie holds the table in a publication (of any, where none is given).
create or replace function rivulet.is_tied(relation oid, publication oid default null) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select exists (
  select from pg_publication_rel r
    join pg_depend d on d.classid = 'pg_publication_rel'::regclass and d.objid = r.oid
   where r.prrelid = relation and (publication is null or r.prpubid = publication)
     and d.refclassid = 'pg_proc'::regclass and d.refobjid = to_regprocedure(rivulet.tie_of(relation)))
$query$;

-- Those of these tables (null: of all) that no replica identity helps, with their partitions, none of which may be
-- published either. Only such as a publication of ours names; `wants_all`: or would.
create or replace function rivulet.hopeless_tables(tables oid[], wants_all boolean) returns setof oid
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $query$
with recursive member as (
  select distinct w.root as oid
    from (select array_agg(c.oid) as oids
            from pg_class c
           where current_setting('server_version_num')::int >= 180000
             and c.relkind in ('r', 'p') and ($1 is null or c.oid = any ($1))
             and exists (select from pg_attribute a
                          where a.attrelid = c.oid and a.attgenerated = 'v' and not a.attisdropped)
             and (wants_all and not c.relispartition
                  or to_regprocedure(rivulet.tie_of(c.oid)) is not null
                  or exists (select from rivulet.config q join pg_publication p on p.pubname = q.publication
                               join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
                              where q.made_publication))) v
   cross join lateral rivulet.weak_identity(v.oids) w
   where v.oids is not null and w.wanted is null
  union
  select i.inhrelid
    from member m join pg_inherits i on i.inhparent = m.oid
    join pg_class c on c.oid = i.inhrelid and c.relispartition
)
select oid from member
$query$;

-- Made by this very transaction: the row of a system column stays as it was made.
create or replace function rivulet.is_new(relation oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select exists (
  select from pg_attribute a
   where a.attrelid = relation and a.attnum = -6 and a.xmin::text = (pg_current_xact_id_if_assigned()::xid)::text)
$query$;

-- Tables (of these only, where some are given; null: of all) that a publication of ours should leave out and does not, or
-- should hold and does not.
create or replace function rivulet.misplaced_tables(publication name, tables oid[] default null)
returns table (oid oid, label text, is_hopeless boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $query$
with watched as (
  select p.oid, c.wants_all
    from rivulet.config c join pg_publication p on p.pubname = c.publication
   where c.publication = $1 and c.made_publication and not p.puballtables
),
named as (
  select r.prrelid as oid from watched w join pg_publication_rel r on r.prpubid = w.oid
),
hopeless as (
  select h as oid from watched w cross join lateral rivulet.hopeless_tables($2, w.wants_all) h
)
select c.oid, format('%I.%I', n.nspname, c.relname), h.oid is not null
  from watched w
 cross join pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join hopeless h on h.oid = c.oid
 where c.relkind in ('r', 'p') and ($2 is null or c.oid = any ($2) or h.oid is not null)
   and n.nspname <> 'rivulet' and pg_relation_is_publishable(c.oid)
   and case when h.oid is not null then c.oid in (select m.oid from named m)
            else c.oid not in (select m.oid from named m)
                 and case when current_setting('transaction_isolation') = 'serializable'
                          then w.wants_all and not c.relispartition and rivulet.is_new(c.oid)
                          else w.wants_all and not c.relispartition
                               or exists (select from rivulet.absent_table a where a.publication = $1 and a.relation_oid = c.oid)
                                  -- nor by what it has become a partition of
                                  and not exists (select from pg_partition_ancestors(c.oid) a join named m on m.oid = a.relid) end end
 order by 2
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

-- Takes a table into the publication. Whoever writes to it meanwhile must be through, or his rows would be neither sent nor
-- read: with `may_lock` that is waited for, as long as lock_timeout says; otherwise, in a user's transaction, only a
-- table counts that this one holds as fast anyway. is_late: rows may be there that were not sent, the table has to be read.
create or replace function rivulet.take_in(publication name, relation oid, may_lock boolean)
returns table (oid oid, is_late boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  watched record;
  label text;
  part rivulet.absent_table;
begin
  select c.keeps_identity, p.oid into watched
    from rivulet.config c join pg_publication p on p.pubname = c.publication where c.publication = take_in.publication;
  if may_lock then
    -- All that ALTER PUBLICATION takes, too: who takes a stronger lock later can be part of a deadlock. Who writes to the
    -- table waits for this, but not for others who alter the publication.
    perform rivulet.await_publications(array[watched.oid], '100ms');
    label := rivulet.label_of(relation);
    if label is null then
      return; -- It is gone.
    end if;
    execute format('lock table %s in share row exclusive mode', label);
    -- Who held it until now may have taken it in himself.
    if exists (select from pg_publication_rel r where r.prpubid = watched.oid and r.prrelid = relation) then
      return;
    end if;
    perform set_config('lock_timeout', '5ms', true);
  elsif not rivulet.is_held(relation) then
    return;
  end if;
  if current_setting('transaction_isolation') <> 'serializable' then
    delete from rivulet.absent_table a
     where a.publication = take_in.publication and a.relation_oid = relation
    returning a.* into part;
  end if;
  if (part.column_list is not null or part.row_filter is not null)
     and exists (select from jsonb_each_text(part.columns) was
                   join jsonb_each_text(rivulet.column_names(relation)) now on (now.key = was.key) <> (now.value = was.value)) then
    raise exception 'its columns have changed since it left: name it there with the columns and the row filter that it should have';
  end if;
  perform rivulet.name_table(publication, relation, part.column_list, part.row_filter);
  if watched.keeps_identity then
    perform rivulet.keep_identity(array[relation]);
  end if;
  if exists (select from rivulet.weak_identity_of_few(array[relation])) then
    raise exception 'it has no usable replica identity';
  end if;
  return query
    with recursive member as (
      select relation as oid
      union all
      select i.inhrelid from member m join pg_inherits i on i.inhparent = m.oid
        join pg_class c on c.oid = i.inhrelid and c.relispartition
    )
    select m.oid, not (
             pg_relation_size(m.oid) = 0 and not exists (select from pg_inherits i where i.inhparent = m.oid)
             and rivulet.is_new(m.oid))
      from member m;
end
$function$;

-- Of these tables (null: of all) those that no replica identity helps leave. Returns what is not published any more.
create or replace function rivulet.leave_hopeless(touched oid[]) returns oid[]
language sql volatile
set search_path = pg_catalog, pg_temp
as $query$
select coalesce(array_agg(h), '{}')
  from rivulet.hopeless_tables(touched, exists (select from rivulet.config c where c.wants_all)) h
 where rivulet.untie(h)
$query$;

-- What can be done of the rest inside a user's statement. What cannot be had at once the replicator does a moment later:
-- see published-tables.ts.
create or replace function rivulet.keep_published_tables(touched oid[])
returns table (oid oid, is_late boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '1ms'
as $function$
declare
  watched record;
  lacking oid;
begin
  if current_setting('transaction_isolation') <> 'serializable' then
    delete from rivulet.absent_table a
     where a.relation_oid = any (touched) and not exists (select from pg_class c where c.oid = a.relation_oid);
  end if;
  -- In order, and none when one before it cannot be had: two that wait for each other's would wait until they give up.
  <<publications>>
  for watched in
    select c.publication, p.oid
      from rivulet.config c join pg_publication p on p.pubname = c.publication
     where c.made_publication and not p.puballtables
     order by c.publication
  loop
    for lacking in
      select m.oid from rivulet.misplaced_tables(watched.publication, touched) m where not m.is_hopeless
    loop
      begin
        if rivulet.is_held(lacking) then
          perform rivulet.await_publications(array[watched.oid], rivulet.patience('100ms'));
          return query select * from rivulet.take_in(watched.publication, lacking, false);
        end if;
      exception
        when lock_not_available then
          exit publications;
        when others then
          null;
      end;
    end loop;
  end loop;
end
$function$;

-- How many objects one transaction may lock: a quarter of what all together can.
-- https://www.postgresql.org/docs/current/runtime-config-locks.html#GUC-MAX-LOCKS-PER-TRANSACTION
create or replace function rivulet.most_locks() returns int
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select least(2000, current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int / 4)
$query$;

-- Locks these tables so that the publication can name them, as far as nobody holds a lock that would be waited for, and
-- most_locks() at most. Returns those that it has locked.
create or replace function rivulet.lock_to_name(tables oid[]) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  most constant int := rivulet.most_locks();
  candidate record;
  locked oid[] := '{}';
begin
  for candidate in
    select c.oid, rivulet.label_of(c.oid) as label from pg_class c where c.oid = any (tables)
  loop
    begin
      execute format('lock table only %s in share update exclusive mode nowait', candidate.label);
      locked := locked || candidate.oid;
    exception when lock_not_available or undefined_table or insufficient_privilege then
      null;
    end;
    exit when cardinality(locked) = most;
  end loop;
  return locked;
end
$function$;

-- Ties what stands in the publication by itself: what somebody has named there, or set-up just now. As its name goes and comes
-- in one transaction, nothing is missed: whoever reads sees one of the two. What cannot be tied stays as it is; what would
-- refuse UPDATE and DELETE leaves, until the replicator has seen to its identity. False: there is nothing more to do.
create or replace function rivulet.tie_tables(publication name) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  pubid oid;
  keeps_identity boolean;
  loose oid[];
  tied int := 0;
  relation oid;
  part record;
begin
  select p.oid, c.keeps_identity into pubid, keeps_identity
    from rivulet.config c join pg_publication p on p.pubname = c.publication
   where c.publication = tie_tables.publication and c.made_publication;
  loose := array(select r.prrelid from pg_publication_rel r
                  where r.prpubid = pubid and rivulet.can_be_tied(pubid, r.prrelid) and not rivulet.is_tied(r.prrelid, pubid));
  if loose = '{}' then
    return false;
  end if;
  loose := rivulet.lock_to_name(loose);
  foreach relation in array loose loop
    begin
      part := rivulet.published_part(pubid, relation);
      execute format('alter publication %I drop table only %s', publication, rivulet.label_of(relation));
      perform rivulet.name_table(publication, relation, part.column_list, part.row_filter);
      if keeps_identity and exists (select from rivulet.weak_identity_of_few(array[relation])) then
        perform rivulet.untie(relation);
      end if;
      tied := tied + 1;
    exception when others then
      null;
    end;
  end loop;
  return tied > 0 and cardinality(loose) = rivulet.most_locks();
end
$function$;

-- For set-up and the replicator: the next step towards all tables tied, in a transaction of its own. `is_unread`: and,
-- because nobody reads from the publication yet, towards all of them named.
create or replace function rivulet.name_and_tie(publication name, is_unread boolean) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  relation oid;
  locked oid[];
begin
  perform rivulet.check_replication_user();
  perform rivulet.fire_as('replica');
  if not is_unread then
    return rivulet.tie_tables(publication);
  end if;
  locked := rivulet.lock_to_name(array(
    select m.oid from rivulet.misplaced_tables(publication) m
     where not m.is_hopeless and m.oid not in (select w.root from rivulet.weak_identity(null) w)));
  foreach relation in array locked loop
    perform rivulet.name_table(publication, relation, null, null);
  end loop;
  return cardinality(locked) = rivulet.most_locks();
end
$function$;

-- Of tables that are gone, as the hook for it does not run everywhere, or for teardown of all tables, the next of what is
-- left here, in a transaction of its own. False: there is nothing more.
create or replace function rivulet.sweep_ties(of_all boolean) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $function$
declare
  -- two locks each
  most constant int := rivulet.most_locks() / 2;
  tie regprocedure;
  swept int := 0;
begin
  perform rivulet.check_replication_user();
  perform rivulet.fire_as('replica');
  delete from rivulet.absent_table a where not exists (select from pg_class c where c.oid = a.relation_oid);
  for tie in
    select p.oid from pg_proc p
     where p.pronamespace = 'rivulet'::regnamespace and p.proname ~ '^tie_\d+$'
       and (of_all or not exists (select from pg_depend d where d.refclassid = 'pg_proc'::regclass and d.refobjid = p.oid))
     limit most
  loop
    execute format('drop function %s cascade', tie);
    swept := swept + 1;
  end loop;
  return swept = most;
end
$function$;

-- Mends one misplaced table for the replicator and set-up, with the announcement.
create or replace function rivulet.place_table(publication name, misplaced oid) returns void
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
  select m.is_hopeless into is_hopeless
    from rivulet.misplaced_tables(publication, misplaced || array(select a.relid::oid from pg_partition_ancestors(misplaced) a)) m
   where m.oid = misplaced;
  if is_hopeless then
    perform rivulet.untie(misplaced);
    moved := array[misplaced];
  elsif not is_hopeless then
    select array_agg(t.oid), array_agg(t.oid) filter (where t.is_late) into moved, late
      from rivulet.take_in(publication, misplaced, true) t;
  end if;
  if moved is not null then
    perform rivulet.announce('ALTER PUBLICATION', moved, late);
  end if;
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

-- The tables that ALTER TABLE is about to make UNLOGGED. The text is all that tells of it: that of the client's statement,
-- which may be several, or of the functions that it has called. Those that turn out to be others come back.
create or replace function rivulet.unlogged_tables(query text, callers text, path name[]) returns oid[]
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
  statements text;
  innermost constant text := $$/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/$$;
  escaped text;
  is_sure boolean;
  may_be_missing boolean;
  is_known boolean := false;
  unlogged oid[] := '{}';
  altered record;
begin
  if callers ~ $$(^|\n)[^"\n]*PL/pgSQL[^"\n]*([^a-z0-9_"]rivulet|"rivulet")\."?keep_identity"?\($$ then
    return unlogged;
  end if;
  -- To search a text of megabytes takes long; for each ALTER TABLE in it once is enough.
  if octet_length(query) > 1000000 and callers !~ $$\n$$ then
    if current_setting('rivulet.plain_text', true) = statement_timestamp()::text then
      return unlogged;
    end if;
    if query !~* $$\munlogged\M$$ then
      perform set_config('rivulet.plain_text', statement_timestamp()::text, false);
      return unlogged;
    end if;
  end if;
  statements := coalesce(
    statement, case when callers ~ $$\n$$ then concat_ws('; ', query, callers) else rivulet.running_statement(query) end);
  -- Of functions in SQL there is only the name.
  if statement is null and callers ~ $$\n$$ then
    statements := concat_ws('; ', statements, (
      select string_agg(p.prosrc, '; ')
        from pg_proc p join pg_language l on l.oid = p.prolang
       where l.lanname = 'sql' and p.prosrc ~* unlogging
         and case when p.proname ~ '[^[:alnum:]_]' then strpos(callers, p.proname) > 0
                  else p.proname = any (regexp_split_to_array(callers, '[^[:alnum:]_]+')) end));
  end if;
  if statements !~* $$\munlogged\M$$ then
    return unlogged;
  end if;
  -- Comments within comments, from the inside.
  while statements ~ $$/\*.*/\*.*\*/$$ and statements ~ innermost loop
    statements := regexp_replace(statements, innermost, ' ', 'g');
  end loop;
  -- Names with escapes, as other quoted ones.
  loop
    escaped := substring(statements from $$\m[uU]&("[^"]*")$$);
    exit when escaped is null;
    statements := regexp_replace(statements, $$\m[uU]&"[^"]*"$$, to_json(
      regexp_replace(escaped, $$\\(?:\+00)?([0-9a-fA-F]{4})$$, $$\u\1$$, 'g')::json #>> '{}')::text);
  end loop;
  if statements !~* unlogging then
    return unlogged;
  end if;
  is_sure := (select count(*) = 1 from regexp_matches(statements, altering, 'gi'));
  may_be_missing := statements ~* $$\mif\s+exists\M$$;
  for altered in
    select distinct f.oid, f.label
      from regexp_matches(statements, format(
             $$%2$s(?:%1$s+if%1$s+exists)?(?:%1$s+only\M)?(?:%1$s|[(])*%3$s(?:%1$s*\.%1$s*%3$s)?(?:%1$s*\.%1$s*%3$s)?(?:(?!%2$s)(?:%1$s|[^;'"]|'[^']*'|"[^"]*"))*%4$s$$,
             space, altering, part, unlogging), 'gi') m
     -- table, schema.table, database.schema.table
     cross join lateral (
       select array_agg((case when word ~ '^"' then replace(substr(word, 2, length(word) - 2), '""', '"')
                              else lower(word collate "C") end)::name order by place desc) as words
         from unnest(m) with ordinality w(word, place)
        where word is not null) name
      left join lateral (
       select s.label, to_regclass(s.label) as oid
         from (select format('%I.%I', schema, name.words[1]) as label, place
                 from unnest(case when name.words[2] is null then path else name.words[2:2] end) with ordinality p(schema, place)) s
        where to_regclass(s.label) is not null
        order by s.place limit 1) f on true
  loop
    is_known := is_known or may_be_missing or altered.oid is not null;
    continue when altered.oid is null or not rivulet.may_be_unlogged(altered.oid);
    -- Nobody takes it in from now on. With the lock of the statement itself, where it is sure that it will be this table:
    -- others may not be kept from one that it does not touch.
    if is_sure then
      execute format('lock table only %s in access exclusive mode', altered.label);
    end if;
    unlogged := unlogged || altered.oid;
  end loop;
  -- The text is written in a way that is not known here.
  if not is_known then
    unlogged := rivulet.mentioned_tables(statements);
  end if;
  return unlogged;
end
$function$;

-- Whether it is logged, and his who asks. Of one that is younger than the snapshot of his transaction only his rights show:
-- its owner may pass on all of them.
create or replace function rivulet.may_be_unlogged(relation oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select coalesce(
  (select c.relkind in ('r', 'p') and c.relpersistence = 'p' and pg_has_role(current_user, c.relowner, 'usage')
     from pg_class c where c.oid = relation),
  rivulet.keeps_snapshot() and has_table_privilege(relation, 'truncate with grant option'))
$query$;

-- In the place of unlogged_tables, where that or what it calls is broken, and therefore calling nothing: all that the
-- statement may mean.
create or replace function rivulet.mentioned_tables(statements text) returns oid[]
language sql stable
set search_path = pg_catalog, pg_temp
as $query$
select coalesce(array_agg(c.oid), '{}')
  from pg_class c
 where statements ~* $$\munlogged\M$$
   and c.relkind in ('r', 'p') and c.relpersistence = 'p' and pg_has_role(current_user, c.relowner, 'usage')
   and exists (select from pg_publication_rel r where r.prrelid = c.oid)
   and strpos(lower(replace(statements, '""', '"')), lower(c.relname)) > 0
   -- as a word
   and lower(replace(statements, '""', '"'))
       ~ format('(^|[^[:alnum:]_$])%s($|[^[:alnum:]_$])', regexp_replace(lower(c.relname), '([^[:alnum:]_])', $$\\\1$$, 'g'))
$query$;

revoke all on function rivulet.label_of(oid), rivulet.published_part(oid, oid), rivulet.can_be_tied(oid, oid), rivulet.column_names(oid),
  rivulet.name_table(name, oid, text, text),
  rivulet.await_publications(oid[], interval, oid), rivulet.tied_parts(oid), rivulet.untie(oid), rivulet.is_tied(oid, oid),
  rivulet.hopeless_tables(oid[], boolean), rivulet.is_new(oid),
  rivulet.misplaced_tables(name, oid[]), rivulet.is_held(oid), rivulet.take_in(name, oid, boolean), rivulet.leave_hopeless(oid[]),
  rivulet.keep_published_tables(oid[]), rivulet.most_locks(), rivulet.lock_to_name(oid[]), rivulet.tie_tables(name),
  rivulet.name_and_tie(name, boolean), rivulet.sweep_ties(boolean), rivulet.place_table(name, oid) from public;
grant select on rivulet.absent_table to public;
-- For replicators; of the hooks, what runs with the rights of who alters a table is everybody's anyway.
grant execute on function rivulet.misplaced_tables(name, oid[]), rivulet.name_and_tie(name, boolean), rivulet.sweep_ties(boolean),
  rivulet.place_table(name, oid) to public;
grant execute on function rivulet.keeps_snapshot(), rivulet.running_statement(text), rivulet.unlogged_tables(text, text, name[]),
  rivulet.may_be_unlogged(oid), rivulet.mentioned_tables(text) to public;
