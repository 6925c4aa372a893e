-- Runs inside the user's statement, so it never raises: the worst that it does is to say that it failed.
-- Blocks, because a block that fails takes back what it did: each step stands without the next one.
create or replace function rivulet.on_schema_change() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- its cost estimates for catalogs are far off, and compiling takes longer than the queries
set jit = off
-- before the server looks for deadlocks: somebody else's statement could be the one that fails
set lock_timeout = '100ms'
as $function$
declare
  failure text;
  callers text;
  -- its snapshot is older than what set-up has written
  is_stale boolean := false;
  set_up_by xid8;
  wants_all boolean;
  keeps_identity boolean;
  commanded oid[] := '{}';
  touched oid[];
  -- what the statement was about to make UNLOGGED, and has left the publication for that
  untied oid[] := '{}';
  -- what has left it because no identity helps
  absent oid[];
  late oid[];
  dropped text;
  keyless record;
  hopeless oid;
  role text;
begin
  -- Our own ALTER TABLE ... REPLICA IDENTITY, and what we do to the publication, comes by here too. Who called is the one
  -- thing that tells it from the user's: a setting could be left behind by anybody, and the hooks would be off without
  -- a word.
  begin
    get diagnostics callers = pg_context;
    -- Lines about functions, that is: a statement that speaks of one is quoted.
    if callers ~ $$(^|\n)[^"\n]*PL/pgSQL[^"\n]*([^a-z0-9_"]rivulet|"rivulet")\."?(keep_published_identity|place_table|name_and_tie|sweep_ties|on_unlogging)"?\($$
       or callers ~ $$(^|\n)[^"\n]*PL/pgSQL[^"\n]*([^a-z0-9_"]rivulet|"rivulet")\."?on_schema_change"?\(.*\n[^"\n]*PL/pgSQL[^"\n]*([^a-z0-9_"]rivulet|"rivulet")\."?on_schema_change"?\($$ then
      return;
    end if;
  exception when others then
    null; -- hundreds of megabytes
  end;

  begin
    role := rivulet.fire_as('replica');
  exception when others then
    null;
  end;

  <<work>>
  begin
    begin
      if tg_tag = 'ALTER TABLE' and tg_event = 'ddl_command_end' then
        untied := coalesce(string_to_array(nullif(current_setting('rivulet.untied', true), ''), ' ')::oid[], '{}');
        perform set_config('rivulet.untied', '', true);
      end if;
    exception when others then
      untied := null;
    end;

    begin
      if tg_event = 'sql_drop' then
        -- Of commands that are not a DROP, ddl_command_end tells.
        if tg_tag not like 'DROP %' or not exists (
          select from pg_event_trigger_dropped_objects() d
           where not d.is_temporary
             and d.object_type in ('table', 'table column', 'table constraint', 'index', 'composite type column', 'publication',
                                   'publication relation', 'publication namespace')
        ) then
          exit work;
        end if;
      else
        -- ALTER PUBLICATION ... DROP is not among them.
        if tg_tag <> 'ALTER PUBLICATION' and untied = '{}'
           and not exists (select from pg_event_trigger_ddl_commands() c where c.schema_name is distinct from 'pg_temp') then
          exit work;
        end if;
        -- CREATE INDEX CONCURRENTLY has let go of its locks by now.
        commanded := array(select coalesce(i.indrelid, c.objid)
                           from pg_event_trigger_ddl_commands() c left join pg_index i on i.indexrelid = c.objid
                          where c.classid = 'pg_class'::regclass);
      end if;
      touched := rivulet.touched_tables(tg_tag, commanded);
    exception when others then
      touched := null;
    end;

    begin
      select (s.last_value >> 2)::text::xid8, s.last_value & 2 = 2, s.last_value & 1 = 1
        into set_up_by, wants_all, keeps_identity
        from rivulet.config_state s;
      -- Of a database that was restored elsewhere it is in the future, which raises an error.
      is_stale := not pg_visible_in_snapshot(set_up_by, pg_current_snapshot()) and pg_xact_status(set_up_by) is not null;
    exception when others then
      null;
    end;

    begin
      if not is_stale then
        touched := rivulet.changed_tables(touched);
      end if;
    exception when others then
      null; -- what was told is told again
    end;
    touched := case when touched is not null and untied is not null then touched || untied end;
    if touched = '{}' then
      exit work;
    end if;

    begin
      if is_stale then
        raise serialization_failure;
      end if;
      perform rivulet.keep_published_identity(touched);
    exception when others then
      -- The replicator looks again, see keepPublishedIdentities. Until then the table must take UPDATE and DELETE.
      begin
        for keyless in
          select c.oid, c.relreplident, format('%I.%I', n.nspname, c.relname) as label
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
           where c.oid = any (touched) and c.relreplident <> 'f' and pg_relation_is_publishable(c.oid)
             and not exists (select from pg_index i
                              where i.indrelid = c.oid and i.indimmediate
                                and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end)
             and case when is_stale then keeps_identity else exists (
                   select from rivulet.config q left join pg_publication p on p.pubname = q.publication
                    where q.keeps_identity
                      and (q.wants_all or exists (
                        select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid))) end
        loop
          -- Nothing of the user's is run, or planned, for it.
          continue when is_stale and not wants_all and not exists (
            select from (select keyless.oid union select a.relid from pg_partition_ancestors(keyless.oid) a) up(oid)
             where to_regprocedure(format('rivulet.tie_%s()', up.oid)) is not null
                or exists (select from pg_publication_rel r where r.prrelid = up.oid));
          execute format('alter table only %s replica identity full', keyless.label);
          insert into rivulet.saved_identity (relation_oid, previous, set_to) values (keyless.oid, keyless.relreplident, 'f')
          on conflict (relation_oid) do update set set_to = 'f';
        end loop;
      exception when others then
        null;
      end;
    end;

    -- What no identity helps leaves the publication.
    begin
      absent := rivulet.leave_hopeless(touched);
      if touched is not null then
        touched := touched || absent;
      end if;
    exception when others then
      begin
        for hopeless in
          select c.oid from pg_class c
           where (touched is null or c.oid = any (touched)) and c.relkind in ('r', 'p')
             and exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated = 'v' and not a.attisdropped)
             and not exists (select from pg_index i
                              where i.indrelid = c.oid and i.indimmediate
                                and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end)
        loop
          execute format('drop function if exists rivulet.tie_%s() cascade', hopeless);
        end loop;
      exception when others then
        null;
      end;
    end;

    begin
      select case when touched is not null then touched || array_agg(k.oid) end, array_agg(k.oid) filter (where k.is_late)
        into touched, late
        from rivulet.keep_published_tables(touched) k;
    exception when others then
      null; -- see keepPublishedTables
    end;

    begin
      if tg_tag = 'ALTER PUBLICATION' then
        perform rivulet.tie_tables(c.publication) from rivulet.config c;
      elsif tg_event = 'sql_drop' then
        for dropped in
          select rivulet.tie_of(d.objid) from pg_event_trigger_dropped_objects() d
           where d.object_type = 'table' and to_regprocedure(rivulet.tie_of(d.objid)) is not null
        loop
          execute 'drop function ' || dropped;
        end loop;
      end if;
    exception when others then
      null; -- likewise, and sweep_ties
    end;

    begin
      if tg_tag = 'ALTER TABLE' and exists (select from pg_class c where c.oid = any (touched) and c.relkind = 'p') then
        perform rivulet.forget_routes();
      end if;
    exception when others then
      null; -- see SchemaWatch
    end;

    begin
      if touched = '{}' then
        exit work;
      end if;
      if is_stale then
        raise serialization_failure;
      end if;
      perform rivulet.announce(tg_tag, touched, late);
    exception when others then
      failure := sqlstate;
      begin
        -- Without the publications, one that was altered here is one that somebody altered and nobody told.
        perform pg_logical_emit_message(true, 'rivulet', convert_to(jsonb_build_object(
          'v', 1, 'failed', failure, 'key', (select k.key from rivulet.message_key k), 'touched', touched::int8[],
          'publishers', rivulet.publishers())::text, 'UTF8'));
      exception when others then
        begin
          perform pg_logical_emit_message(true, 'rivulet', jsonb_build_object(
            'v', 1, 'failed', failure, 'key', (select k.key from rivulet.message_key k), 'touched', touched::int8[])::text);
        exception when others then
          begin
            perform pg_logical_emit_message(true, 'rivulet', format('{"v":1,"failed":"%s"}', failure));
          exception when others then
            null;
          end;
        end;
      end;
    end;

    -- A message is ordered by the end of its record, which is where the next record begins. Written in a subtransaction,
    -- as each block here is one, it would come behind the row that the user's transaction writes next: so let the next
    -- record be none of the user's.
    begin
      perform pg_logical_emit_message(true, 'rivulet.end', '');
    exception when others then
      null;
    end;
  end work;

  if role is not null then
    perform rivulet.fire_as(role);
  end if;
end
$function$;

-- A rewrite gives all rows new values and sends none of them. What else gives a table a new file (VACUUM FULL,
-- CLUSTER) does not come by here.
create or replace function rivulet.on_table_rewrite() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $function$
declare
  failure text;
begin
  begin
    perform pg_logical_emit_message(true, 'rivulet', format('{"v":1,"key":"%s","rewritten":%s}', k.key, c.oid))
       from pg_class c, rivulet.message_key k
      where c.oid = pg_event_trigger_table_rewrite_oid() and c.relpersistence <> 't';
  exception when others then
    failure := sqlstate;
    begin
      perform pg_logical_emit_message(true, 'rivulet', format('{"v":1,"failed":"%s"}', failure));
    exception when others then
      null;
    end;
  end;
end
$function$;

-- Before ALTER TABLE, with the rights and the search path of who alters, so that it names no table that he could not alter
-- himself. Hence every name in here says its schema. on_unlogging, which comes right behind it, goes by what it says.
create or replace function rivulet.on_alter_table() returns event_trigger
language plpgsql
as $function$
declare
  callers pg_catalog.text;
  unlogging pg_catalog.oid[];
begin
  -- The partitions that others have detached by half, if it is this very transaction in which this one ends.
  perform pg_catalog.set_config('rivulet.half_detached', pg_catalog.concat('of ', (
    select pg_catalog.string_agg(i.inhrelid::pg_catalog.text, ' ') from pg_catalog.pg_inherits i where i.inhdetachpending)), true);
  perform pg_catalog.set_config('rivulet.unlogging', '', true);
  get diagnostics callers = pg_context;
  begin
    unlogging := rivulet.unlogged_tables(pg_catalog.current_query(), callers, pg_catalog.current_schemas(true));
  exception
    when lock_not_available or deadlock_detected then
      raise;
    when others then
      unlogging := rivulet.mentioned_tables(pg_catalog.concat_ws(' ', pg_catalog.current_query(), callers));
  end;
  perform pg_catalog.set_config('rivulet.unlogging', pg_catalog.array_to_string(unlogging, ' '), true);
exception
  when lock_not_available or deadlock_detected then
    raise; -- The lock is the statement's own: it would have waited, and failed, just so.
  when others then
    -- Then Postgres says that the table is part of a publication.
    perform pg_catalog.set_config('rivulet.unlogging', '', true);
end
$function$;

-- Takes those out of the publications that name them: Postgres refuses to make them UNLOGGED otherwise. By an event trigger of
-- its own, which nobody can call who may alter no more than his own tables.
create or replace function rivulet.on_unlogging() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $function$
declare
  relation oid;
  untied oid[] := '{}';
  named record;
  role text;
begin
  if coalesce(current_setting('rivulet.unlogging', true), '') = '' then
    return;
  end if;
  begin
    role := rivulet.fire_as('replica');
  exception when others then
    null;
  end;
  foreach relation in array string_to_array(current_setting('rivulet.unlogging'), ' ')::oid[] loop
    begin
      perform rivulet.await_publications(
        array(select p.oid from rivulet.config c join pg_publication p on p.pubname = c.publication), rivulet.patience('1s'), relation);
      if rivulet.untie(relation) then
        untied := untied || relation;
      end if;
    exception
      when lock_not_available or deadlock_detected then
        null; -- then Postgres says that the table is part of a publication
      when others then
        execute format('drop function if exists rivulet.tie_%s() cascade', relation);
        for named in
          select format('alter publication %I drop table only %I.%I', p.pubname, n.nspname, c.relname) as statement
            from rivulet.config q
            join pg_publication p on p.pubname = q.publication
            join pg_publication_rel r on r.prpubid = p.oid
            join pg_class c on c.oid = r.prrelid
            join pg_namespace n on n.oid = c.relnamespace
           where q.made_publication and c.oid = relation
        loop
          execute named.statement;
        end loop;
        untied := untied || relation;
    end;
  end loop;
  perform set_config('rivulet.untied', array_to_string(untied, ' '), true);
  if role is not null then
    perform rivulet.fire_as(role);
  end if;
exception when others then
  null; -- likewise
end
$function$;

-- See rivulet.config_state. Before it is committed, so that nobody who does not see it yet thinks that he does.
create or replace function rivulet.on_config_change() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
  perform setval('rivulet.config_state', (
    select pg_current_xact_id()::text::bigint * 4 + bool_or(c.wants_all)::int * 2 + bool_or(c.keeps_identity)::int
      from rivulet.config c));
  return null;
end
$function$;

create or replace trigger on_config_change after insert or update on rivulet.config
  for each row execute function rivulet.on_config_change();
alter table rivulet.config enable always trigger on_config_change;

revoke all on function rivulet.on_schema_change(), rivulet.on_table_rewrite(), rivulet.on_alter_table(),
  rivulet.on_unlogging(), rivulet.on_config_change() from public;
