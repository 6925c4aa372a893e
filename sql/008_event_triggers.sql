-- Needs a superuser, or what a host has in its place; set-up goes on without, and says what is missing then.
-- https://www.postgresql.org/docs/current/event-trigger-matrix.html
do $do$
declare
  former name;
begin
  for former in select evtname from pg_event_trigger where evtname ~ '^_?rivulet_(ddl|drop|rewrite|alter|untie)$' loop
    execute format('drop event trigger %I', former);
  end loop;
end
$do$;

-- Event triggers fire in the order of their names. Those of others come behind: they may write to a table that has no
-- usable identity before.
-- https://www.postgresql.org/docs/current/event-trigger-definition.html
create event trigger _rivulet_ddl on ddl_command_end
  when tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE INDEX', 'ALTER INDEX',
               'ALTER TYPE', 'ALTER DOMAIN', 'CREATE SCHEMA', 'ALTER SCHEMA', 'CREATE PUBLICATION',
               'ALTER PUBLICATION', 'CREATE EXTENSION', 'ALTER EXTENSION')
  execute function rivulet.on_schema_change();

create event trigger _rivulet_drop on sql_drop
  execute function rivulet.on_schema_change();

create event trigger _rivulet_rewrite on table_rewrite
  execute function rivulet.on_table_rewrite();

create event trigger _rivulet_alter on ddl_command_start
  when tag in ('ALTER TABLE')
  execute function rivulet.on_alter_table();

create event trigger _rivulet_untie on ddl_command_start
  when tag in ('ALTER TABLE')
  execute function rivulet.on_unlogging();

-- Also in sessions with session_replication_role = replica, as restores and subscriptions have them.
alter event trigger _rivulet_ddl enable always;
alter event trigger _rivulet_drop enable always;
alter event trigger _rivulet_rewrite enable always;
alter event trigger _rivulet_alter enable always;
alter event trigger _rivulet_untie enable always;
