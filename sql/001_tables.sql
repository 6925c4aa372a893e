-- What set-up has to remember. Both tables have primary keys: a publication FOR ALL TABLES covers them too.

-- One row per publication that set-up looks after; the hooks do nothing for any other.
create table if not exists rivulet.config (
  publication name primary key,
  -- teardown drops only what set-up made
  made_publication boolean not null,
  -- false: the operator does not want REPLICA IDENTITY FULL
  keeps_identity boolean not null
);

-- Set-up made it for all tables; from 18 on it cannot be just that, see 008_published_tables.
alter table rivulet.config add column if not exists wants_all boolean not null default false;

-- The replica identity that a table had before it was changed, for teardown.
create table if not exists rivulet.saved_identity (
  relation_oid oid primary key,
  -- as pg_class.relreplident has it
  previous "char" not null,
  previous_index oid,
  set_to "char" not null,
  changed_at timestamptz not null default now()
);
