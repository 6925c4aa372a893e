-- What set-up has to remember. All tables have primary keys: a publication FOR ALL TABLES covers them too. And everybody
-- may read them: whoever runs pg_dump for his own tables locks and reads these as well.
-- https://www.postgresql.org/docs/current/app-pgdump.html

-- One row per publication that set-up looks after; the hooks do nothing for any other.
create table if not exists rivulet.config (
  publication name primary key,
  -- teardown drops only what set-up made
  made_publication boolean not null,
  -- false: the operator does not want REPLICA IDENTITY FULL
  keeps_identity boolean not null,
  -- set-up made it for all tables; from 18 on it cannot be just that, see 007_published_tables
  wants_all boolean not null default false
);

-- Four times the transaction that changed rivulet.config last, two more where a publication wants all tables, one more
-- where identities are kept. A sequence, because these show to everybody at once: a transaction that has its snapshot
-- from before sees no row of what set-up has made.
create sequence if not exists rivulet.config_state;

-- The replica identity that a table had before it was changed, for teardown.
create table if not exists rivulet.saved_identity (
  relation_oid oid primary key,
  -- as pg_class.relreplident has it
  previous "char" not null,
  previous_index oid,
  set_to "char" not null,
  changed_at timestamptz not null default now()
);

grant select on rivulet.migration, rivulet.config, rivulet.config_state, rivulet.saved_identity to public;
