-- Schema changes and rows in one transaction, rolled back in part or whole, and prepared.
-- setup
create table t (id int primary key, a int, b text);
insert into t select i, i, 'b' || i from generate_series(1, 100) i;
create table other (id int primary key, v text);
insert into other values (1, 'v');

-- live
begin;
truncate t;
alter table t alter column a type bigint;
insert into t values (1, 5000000000, 'again');
alter table t add column c int default 3;
insert into t values (2, 2, 'two', 4);
commit;
-- check
begin;
insert into t values (10, 10, 'before', 1);
alter table t add column d int;
update t set d = 5 where id = 10;
insert into t values (11, 11, 'between', 1, 2);
alter table t rename column d to e;
update t set e = 6 where id = 11;
alter table t drop column c;
insert into t values (12, 12, 'after', 7);
alter table t alter column b type text using upper(b);
insert into t values (13, 13, 'last', 8);
alter table t add column r uuid default gen_random_uuid();
update t set b = 'very last' where id = 13;
commit;
-- check
begin;
alter table t add column gone int default 9;
insert into t values (20, 20, 'gone', 1, null, 2);
rollback;
insert into t values (21, 21, 'stays', 1, null);
begin;
insert into t values (22, 22, 'stays', 1, null);
savepoint s;
alter table t drop column b;
alter table t add column b int default 1;
insert into t (id, b) values (23, 5);
drop table other;
rollback to s;
insert into t values (24, 24, 'text again', 1, null);
insert into other values (2, 'still here');
savepoint s2;
alter table other rename to renamed;
insert into renamed values (3, 'n');
release s2;
commit;
insert into renamed values (4, 'n');
-- check
-- another session's rows wait for the lock, and come after
begin;
alter table t add column late text default 'l';
-- session b
insert into renamed values (5, 'meanwhile');
-- session main
insert into t (id) values (30);
commit;
-- session b
insert into t (id, late) values (31, 'after');
-- session main
-- if: hooks
begin;
alter table renamed add column p int default 1;
insert into renamed values (6, 'prepared', 2);
prepare transaction 'hooks schema';
-- session b
insert into t (id) values (32);
commit prepared 'hooks schema';
insert into renamed values (7, 'after', 3);
-- session main
-- end if
-- with the triggers switched off the row itself tells
set session_replication_role = replica;
alter table renamed add column q text default 'q';
insert into renamed (id) values (8);
reset session_replication_role;
