-- Postgres 18 has tables that no replica identity helps: without a key, and with a virtual generated column, which does
-- not go with FULL. Published, their UPDATE and DELETE are refused, and a publication FOR ALL TABLES leaves none out:
-- https://www.postgresql.org/docs/18/sql-createpublication.html
-- So from 18 on the publication that is for all tables is one of all schemas (config.wants_all); new schemas are added,
-- and a schema that has such a table is published by the names of the others. By name only where it must be, because
-- a table that is named in a publication cannot be made UNLOGGED any more.
--
-- No change of the publication may give a table that is published another reason to be. The stream sees each
-- transaction by the catalog as it was then, but pgoutput keeps what it has looked up, piece by piece, from one
-- transaction to the next: for one that was open across such a change the schema may be as after it and the table as
-- before, and what it wrote until then is not sent. (Likewise with DROP and CREATE PUBLICATION.) So first the tables
-- are named beside their schema; and only when all transactions of before have ended the schema goes.

-- Schemas of which all tables that can be published are named beside them, and the transaction by which they were.
create table if not exists rivulet.named_schema (
  publication name,
  schema_oid oid,
  since xid8 not null,
  primary key (publication, schema_oid)
);

-- Tables (of these only, where some are given; null: of all) that a publication of all tables should leave out and
-- does not, or should hold and does not: with their partitions, and all schemas that these are in.
create or replace function rivulet.misplaced_tables(publication name, tables oid[] default null)
returns table (oid oid, label text, is_hopeless boolean, members oid[], schemas oid[])
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $query$
with recursive watched as (
  select p.oid
    from rivulet.config c join pg_publication p on p.pubname = c.publication
   where c.publication = $1 and c.made_publication and c.wants_all and not p.puballtables
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
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p') and not c.relispartition and ($2::oid[] is null or c.oid = any ($2))
     and n.nspname <> 'rivulet' and pg_relation_is_publishable(c.oid) and exists (select from watched)
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
                 or exists (select from pg_publication_rel p where p.prpubid = w.oid and p.prrelid = m.oid)) as is_published
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

-- Hopeless tables among these leave the publication where they stand in it by name, which takes nothing from others.
-- Returns what is not published any more.
create or replace function rivulet.unname(publication name, tables oid[]) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  hopeless oid[];
  named text;
begin
  select array_agg(r.prrelid), string_agg(format('%I.%I', n.nspname, c.relname), ', only ') into hopeless, named
    from rivulet.misplaced_tables(publication, tables) m
    join pg_publication p on p.pubname = publication
    join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = any (m.members)
    join pg_class c on c.oid = r.prrelid
    join pg_namespace n on n.oid = c.relnamespace
   where m.is_hopeless;
  if named is not null then
    execute format('alter publication %I drop table only %s', publication, named);
  end if;
  return hopeless;
end
$function$;

-- Does the next step towards a publication without this hopeless table, each in a transaction of its own: names the
-- other tables of its schemas; remembers when that was; at last takes out the schemas. Returns what is not published
-- any more then, null before. To name tables waits for those that change or vacuum them, as long as lock_timeout says.
-- `at_once`: of a publication that nobody has read from.
create or replace function rivulet.leave_out(publication name, hopeless oid, at_once boolean) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  pubid oid := (select p.oid from pg_publication p where p.pubname = publication);
  oldest xid8 := pg_snapshot_xmin(pg_current_snapshot());
  everyone oid[]; -- all hopeless ones, with their partitions
  crowded oid[];  -- schemas that are published whole, and must not be
  list text;
begin
  everyone := array(select unnest(m.members) from rivulet.misplaced_tables(publication) m where m.is_hopeless);
  crowded := array(
    select n.pnnspid
      from rivulet.misplaced_tables(publication, array[hopeless]) m
      join pg_publication_namespace n on n.pnpubid = pubid and n.pnnspid = any (m.schemas)
     where m.is_hopeless);
  if crowded = '{}' then
    return rivulet.unname(publication, array[hopeless]);
  end if;

  -- Not all at once: the server has room for so many locks.
  list := (
    select string_agg(t.label, ', only ')
      from (select format('%I.%I', n.nspname, c.relname) as label
              from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.oid = any (crowded) and c.relkind in ('r', 'p') and not c.relispartition and c.oid <> all (everyone)
               and pg_relation_is_publishable(c.oid)
               and not exists (select from pg_publication_rel r where r.prpubid = pubid and r.prrelid = c.oid)
             limit case when not at_once then 200 end) t);
  if list is not null then
    execute format('alter publication %I add table only %s', publication, list);
    delete from rivulet.named_schema s where s.publication = leave_out.publication and s.schema_oid = any (crowded);
    if not at_once then
      return null;
    end if;
  end if;
  if not at_once then
    insert into rivulet.named_schema
    select publication, c, pg_current_xact_id() from unnest(crowded) c
    on conflict on constraint named_schema_pkey do nothing;
    if exists (
      select from rivulet.named_schema s
       where s.publication = leave_out.publication and s.schema_oid = any (crowded) and s.since >= oldest
    ) then
      return null;
    end if;
  end if;
  execute format('alter publication %I drop tables in schema %s', publication,
                 (select string_agg(quote_ident(n.nspname), ', ') from pg_namespace n where n.oid = any (crowded)));
  delete from rivulet.named_schema s where s.publication = leave_out.publication and s.schema_oid = any (crowded);
  perform rivulet.unname(publication, array[hopeless]);
  return everyone;
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
  missing record;
begin
  for missing in
    select m.*, c.keeps_identity
      from rivulet.misplaced_tables(publication, tables) m, rivulet.config c
     where c.publication = take_in.publication and not m.is_hopeless
  loop
    if not may_lock and exists (
      select unnest(missing.members)
      except
      select l.relation from pg_locks l
       where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted
         and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    ) then
      continue;
    end if;
    -- The publication first: nobody waits behind that.
    execute format('alter publication %I add table only %s', publication, missing.label);
    if may_lock then
      execute format('lock table %s in share mode', missing.label);
    end if;
    if missing.keeps_identity then
      perform rivulet.keep_identity(array[missing.oid]);
    end if;
    if exists (select from rivulet.weak_identity(array[missing.oid])) then
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

-- What can be done inside a user's statement, and new schemas: nobody waits for the locks that it takes. The rest, and
-- what cannot be had at once, the replicator does a moment later: see published-tables.ts.
create or replace function rivulet.keep_published_tables(touched oid[], made_schemas oid[])
returns table (oid oid, is_late boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '1ms'
as $function$
declare
  watched record;
  made record;
begin
  for watched in
    select c.publication
      from rivulet.config c join pg_publication p on p.pubname = c.publication
     where c.made_publication and c.wants_all and not p.puballtables
  loop
    begin
      for made in select n.nspname from pg_namespace n where n.oid = any (made_schemas) loop
        execute format('alter publication %I add tables in schema %I', watched.publication, made.nspname);
        -- CREATE SCHEMA may have made tables, too.
        perform rivulet.keep_published_identity(touched);
      end loop;
    exception when others then
      null;
    end;
    begin
      return query select unnest(rivulet.unname(watched.publication, touched)), false;
    exception when others then
      null;
    end;
    begin
      return query select * from rivulet.take_in(watched.publication, touched, false);
    exception when others then
      null;
    end;
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
  select m.is_hopeless into is_hopeless from rivulet.misplaced_tables(publication, array[misplaced]) m;
  if is_hopeless is null then
    return true;
  end if;
  if is_hopeless then
    moved := rivulet.leave_out(publication, misplaced, false);
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

revoke all on function rivulet.misplaced_tables(name, oid[]), rivulet.unname(name, oid[]), rivulet.leave_out(name, oid, boolean),
  rivulet.take_in(name, oid[], boolean), rivulet.keep_published_tables(oid[], oid[]), rivulet.place_table(name, oid) from public;
grant execute on function rivulet.misplaced_tables(name, oid[]), rivulet.place_table(name, oid) to public;
