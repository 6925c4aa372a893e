-- Needs a superuser, or what a host has in its place; set-up goes on without, and says what is missing then.
-- https://www.postgresql.org/docs/current/event-trigger-matrix.html
drop event trigger if exists rivulet_ddl;
drop event trigger if exists rivulet_drop;
drop event trigger if exists rivulet_rewrite;
drop event trigger if exists rivulet_alter;
drop event trigger if exists rivulet_untie;

create event trigger rivulet_ddl on ddl_command_end
  when tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE INDEX', 'ALTER INDEX',
               'ALTER TYPE', 'ALTER DOMAIN', 'CREATE SCHEMA', 'ALTER SCHEMA', 'CREATE PUBLICATION',
               'ALTER PUBLICATION', 'CREATE EXTENSION', 'ALTER EXTENSION')
  execute function rivulet.on_schema_change();

create event trigger rivulet_drop on sql_drop
  execute function rivulet.on_schema_change();

create event trigger rivulet_rewrite on table_rewrite
  execute function rivulet.on_table_rewrite();

create event trigger rivulet_alter on ddl_command_start
  when tag in ('ALTER TABLE')
  execute function rivulet.on_alter_table();

-- Event triggers fire in the order of their names: https://www.postgresql.org/docs/current/event-trigger-definition.html
create event trigger rivulet_untie on ddl_command_start
  when tag in ('ALTER TABLE')
  execute function rivulet.on_unlogging();

-- Also in sessions with session_replication_role = replica, as restores and subscriptions have them.
alter event trigger rivulet_ddl enable always;
alter event trigger rivulet_drop enable always;
alter event trigger rivulet_rewrite enable always;
alter event trigger rivulet_alter enable always;
alter event trigger rivulet_untie enable always;
