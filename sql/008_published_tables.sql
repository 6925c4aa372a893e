-- Postgres 18 has tables that no replica identity helps: without a key, and with a virtual generated column, which does
-- not go with FULL. Published, their UPDATE and DELETE are refused, and a publication FOR ALL TABLES leaves none out:
-- https://www.postgresql.org/docs/18/sql-createpublication.html
-- From the first such table on the publication is therefore one of schemas, and in the schema of such a table of each
-- of the others by its name. It wishes for all tables as before (config.wants_all): what comes later is taken in.
-- Schemas are published whole where they can be, because a table that is named in a publication cannot be made
-- UNLOGGED any more.

-- Tables (of these only, where some are given; null: of all) that a publication of all tables should leave out and
-- does not, or should hold and does not: with their partitions, and all schemas that these are in.
create or replace function rivulet.misplaced_tables(publication name, tables oid[] default null)
returns table (oid oid, label text, is_hopeless boolean, members oid[], schemas oid[])
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $query$
with recursive watched as (
  select p.oid, p.puballtables
    from rivulet.config c join pg_publication p on p.pubname = c.publication
   where c.publication = $1 and c.made_publication and (p.puballtables or c.wants_all)
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
      or not w.puballtables
         and not exists (select from pg_publication_rel p where p.prpubid = w.oid and p.prrelid = r.oid)
         and r.relnamespace not in (select n.oid from published_namespace n)
  union
  select c.oid, m.root, c.relnamespace
    from member m join pg_inherits i on i.inhparent = m.oid
    join pg_class c on c.oid = i.inhrelid and c.relispartition
),
family as (
  select m.root, array_agg(m.oid) as members, array_agg(distinct m.schema) as schemas,
         bool_or(w.puballtables or m.schema in (select n.oid from published_namespace n)
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

-- Takes hopeless tables out of the publication, all of them as soon as one of these (null: of all) is. Returns what
-- is not published any more. To name the others locks them against schema changes until the transaction ends; the
-- caller says by lock_timeout how long that may be waited for.
create or replace function rivulet.leave_out(publication name, tables oid[]) returns oid[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
declare
  watched record;
  hopeless oid[];
  crowded oid[]; -- schemas that cannot be published whole
  whole text;
  named text;
begin
  if not exists (select from rivulet.misplaced_tables(publication, tables) m where m.is_hopeless) then
    return '{}';
  end if;
  select p.*, to_jsonb(p)->>'pubgencols' as generated, pg_get_userbyid(p.pubowner) as owner into strict watched
    from pg_publication p where p.pubname = publication;
  select array_agg(distinct member), array_agg(distinct schema) into hopeless, crowded
    from rivulet.misplaced_tables(publication) m
   cross join unnest(m.members) member cross join unnest(m.schemas) schema
   where m.is_hopeless;
  -- of schemas that were published whole so far
  if not watched.puballtables then
    crowded := array(
      select on_schema.refobjid
        from pg_depend on_publication
        join pg_depend on_schema on on_schema.classid = on_publication.classid
         and on_schema.objid = on_publication.objid and on_schema.refclassid = 'pg_namespace'::regclass
       where on_publication.classid = to_regclass('pg_catalog.pg_publication_namespace')
         and on_publication.refclassid = 'pg_publication'::regclass and on_publication.refobjid = watched.oid
         and on_schema.refobjid = any (crowded));
  end if;
  named := (
    select string_agg(format('table only %I.%I', n.nspname, c.relname), ', ')
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.oid = any (crowded) and n.nspname <> 'rivulet'
       and c.relkind in ('r', 'p') and not c.relispartition and c.oid <> all (hopeless) and pg_relation_is_publishable(c.oid)
       and not exists (select from pg_publication_rel r where r.prpubid = watched.oid and r.prrelid = c.oid));

  if watched.puballtables then
    whole := (
      select string_agg(format('tables in schema %I', n.nspname), ', ')
        from pg_namespace n
       where n.oid <> all (crowded) and n.nspname not in ('rivulet', 'information_schema') and n.nspname !~ '^pg_');
    -- The stream finds a publication by its name, and each transaction by the catalog as it was then.
    execute format('drop publication %I', publication);
    execute format('create publication %I %s with (publish_via_partition_root = %s, publish_generated_columns = %s, publish = %L)',
                   publication, 'for ' || nullif(concat_ws(', ', whole, named), ''), watched.pubviaroot::text,
                   case watched.generated when 's' then 'stored' else 'none' end,
                   concat_ws(', ', case when watched.pubinsert then 'insert' end, case when watched.pubupdate then 'update' end,
                             case when watched.pubdelete then 'delete' end, case when watched.pubtruncate then 'truncate' end));
    execute format('alter publication %I owner to %I', publication, watched.owner);
    return hopeless;
  end if;

  if named is not null then
    execute format('alter publication %I add %s', publication, named);
  end if;
  whole := (select string_agg(format('tables in schema %I', n.nspname), ', ') from pg_namespace n where n.oid = any (crowded));
  named := (
    select string_agg(format('table only %s', r.prrelid::regclass), ', ')
      from pg_publication_rel r where r.prpubid = watched.oid and r.prrelid = any (hopeless));
  if whole is not null or named is not null then
    execute format('alter publication %I drop %s', publication, concat_ws(', ', whole, named));
  end if;
  return hopeless;
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
    if may_lock then
      execute format('lock table %s in share mode', missing.label);
    elsif exists (
      select unnest(missing.members)
      except
      select l.relation from pg_locks l
       where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted
         and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    ) then
      continue;
    end if;
    if missing.keeps_identity then
      perform rivulet.keep_identity(array[missing.oid]);
    end if;
    if exists (select from rivulet.weak_identity(array[missing.oid])) then
      continue;
    end if;
    execute format('alter publication %I add table only %s', publication, missing.label);
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

-- Both, and new schemas, inside a user's statement: nobody waits for the locks that it takes. What cannot be had at
-- once the replicator makes good a moment later, see published-tables.ts.
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
    select c.publication, p.puballtables
      from rivulet.config c join pg_publication p on p.pubname = c.publication
     where c.made_publication and (p.puballtables or c.wants_all)
       and current_setting('server_version_num')::int >= 180000
  loop
    if not watched.puballtables then
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
    begin
      return query select unnest(rivulet.leave_out(watched.publication, touched)), false;
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

-- The same for the replicator and set-up, of one table, with the announcement. True if there was something to do.
create or replace function rivulet.place_table(publication name, misplaced oid) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
  moved oid[];
  late oid[];
begin
  perform rivulet.check_replication_user();
  moved := rivulet.leave_out(publication, array[misplaced]);
  if moved = '{}' then
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

revoke all on function rivulet.misplaced_tables(name, oid[]), rivulet.leave_out(name, oid[]),
  rivulet.take_in(name, oid[], boolean), rivulet.keep_published_tables(oid[], oid[]), rivulet.place_table(name, oid) from public;
grant execute on function rivulet.misplaced_tables(name, oid[]), rivulet.place_table(name, oid) to public;
