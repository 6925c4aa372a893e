-- Subtransactions, savepoints, two-phase commit, logical messages, replication origins, and sessions that run into each other.
-- setup
create table t (id int primary key, v text);
insert into t select i, 'v' || i from generate_series(1, 50) i;
create table bag (v text);
insert into bag values ('a'), ('a'), ('b');
create function may_fail(i int) returns void language plpgsql as $$
begin
  insert into t values (1000 + i, 'sub');
  if i % 2 = 0 then raise exception 'no'; end if;
exception when others then
  insert into t values (2000 + i, 'caught');
end $$;
create function logged() returns trigger language plpgsql as $$
begin
  insert into bag values (new.v);
  return new;
end $$;
create trigger logged after update on t for each row execute function logged();

-- live
begin;
insert into t values (100, 'before');
savepoint a;
insert into t values (101, 'gone');
update t set v = 'gone' where id < 10;
savepoint b;
delete from t where id > 40 and id <= 50;
rollback to b;
insert into t values (102, 'gone too');
rollback to a;
insert into t values (103, 'stays');
release a;
commit;
do $$ begin for i in 1..20 loop perform may_fail(i); end loop; end $$;
begin;
update t set v = 'rolled back';
rollback;
-- the order of commits is not the order of changes
-- session b
begin;
insert into t values (200, 'b first');
-- session main
begin;
insert into t values (201, 'main');
update t set v = 'main' where id = 1;
-- session b
update t set v = 'b' where id = 2;
commit;
-- session main
update t set v = 'main after b' where id = 2;
commit;
-- two-phase commit
begin;
insert into t values (300, 'prepared');
update t set v = 'prepared' where id = 3;
-- if: hooks
prepare transaction 'hooks committed';
begin;
delete from t where id = 4;
prepare transaction 'hooks rolled back';
-- session b
update t set v = 'meanwhile' where id = 5;
commit prepared 'hooks committed';
rollback prepared 'hooks rolled back';
-- session main
-- end if
-- if: fallback
prepare transaction 'fallback committed';
begin;
delete from t where id = 4;
prepare transaction 'fallback rolled back';
-- session b
update t set v = 'meanwhile' where id = 5;
commit prepared 'fallback committed';
rollback prepared 'fallback rolled back';
-- session main
-- end if
-- messages of others
select pg_logical_emit_message(true, 'somebody', 'transactional'), pg_logical_emit_message(false, 'somebody', 'not'), pg_logical_emit_message(true, 'rivulet ', '{}'), pg_logical_emit_message(false, 'rivulet', 'not json');
begin;
select pg_logical_emit_message(true, 'somebody', repeat('x', 100000));
insert into t values (400, 'with a message');
select pg_logical_emit_message(true, '', '');
commit;
-- rows that came from another server
select pg_replication_origin_create('tables_transactions_' || current_database());
select pg_replication_origin_session_setup('tables_transactions_' || current_database());
begin;
select pg_replication_origin_xact_setup('0/123', '2020-01-01');
insert into t values (500, 'from elsewhere');
update t set v = 'from elsewhere' where id = 6;
commit;
insert into bag values ('from elsewhere');
select pg_replication_origin_session_reset();
select pg_replication_origin_drop('tables_transactions_' || current_database());
-- what fires its triggers only where it is told to
set session_replication_role = replica;
update t set v = 'no trigger' where id = 7;
reset session_replication_role;
update t set v = 'with a trigger' where id = 8;
-- many subtransactions in one
do $$
begin
  for i in 1..300 loop
    begin
      insert into t values (10000 + i, 'deep');
      if i % 3 = 0 then raise exception 'no'; end if;
    exception when others then null;
    end;
  end loop;
end $$;
-- upserts and merges
insert into t values (1, 'new'), (600, 'new') on conflict (id) do update set v = excluded.v || ' upserted';
merge into t using (values (2, 'm'), (601, 'm')) s(id, v) on t.id = s.id when matched then update set v = s.v when not matched then insert values (s.id, s.v);
with moved as (delete from t where id between 30 and 35 returning *) insert into bag select v from moved;
copy (select 1) to '/dev/null';
