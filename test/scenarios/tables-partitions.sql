-- Partitioned tables arrive as one, whatever their partitions do.
-- setup
create table ranged (id int, at date, v text, primary key (id, at)) partition by range (at);
create table ranged_1 partition of ranged for values from ('2026-01-01') to ('2026-02-01');
create table ranged_2 partition of ranged for values from ('2026-02-01') to ('2026-03-01') partition by list (id);
create table ranged_2a partition of ranged_2 for values in (1, 2, 3);
create table ranged_2b partition of ranged_2 default;
-- columns in another order, and one that is gone
create table ranged_3 (gone int, v text, at date not null, id int not null);
alter table ranged_3 drop column gone;
alter table ranged attach partition ranged_3 for values from ('2026-03-01') to ('2026-04-01');
create table ranged_rest partition of ranged default;
insert into ranged select i, '2026-01-01'::date + i * 7, 'v' || i from generate_series(0, 20) i;
insert into ranged values (1, '2026-02-02', 'a'), (9, '2026-02-02', 'b');
create table keyless (k int, v text) partition by hash (k);
create table keyless_0 partition of keyless for values with (modulus 2, remainder 0);
create table keyless_1 partition of keyless for values with (modulus 2, remainder 1);
insert into keyless select i % 5, 'v' from generate_series(1, 20) i;
create table loose (id int primary key, v text);
insert into loose values (1, 'x'), (2, 'y');
create table grown (id int primary key, v text) partition by range (id);
create table grown_a partition of grown for values from (0) to (100);
create table grown_c (id int primary key, v text);
insert into grown select i, 'g' from generate_series(1, 10) i;
insert into grown_c select i, 'c' from generate_series(200, 210) i;

-- live
-- rows that move
update ranged set at = at + 31 where id between 1 and 3;
update ranged set at = '2026-06-01', v = 'moved' where id = 9 and at = '2026-02-02';
update ranged set id = id + 10 where at = '2026-02-02';
update ranged_1 set v = 'by the leaf';
insert into ranged_3 (id, at, v) values (500, '2026-03-15', 'by the leaf');
delete from ranged_rest where id = 20;
update keyless set k = k + 1;
delete from keyless where ctid = (select min(ctid) from keyless_0) and tableoid = 'keyless_0'::regclass;
-- check
-- partitions that come and go
alter table grown attach partition grown_c for values from (200) to (300);
update grown set v = 'touched' where id in (1, 205);
-- check
create table grown_b partition of grown for values from (100) to (200);
insert into grown values (150, 'b');
alter table grown detach partition grown_a;
insert into grown_a values (50, 'alone');
update grown_a set v = 'alone' where id = 1;
insert into grown values (151, 'b');
-- check
alter table grown attach partition grown_a for values from (-100) to (100);
insert into grown values (-5, 'again');
drop table grown_b;
update grown set v = 'after the drop' where id = 205;
-- check
alter table loose add column extra int;
alter table ranged add column extra int default 3;
update ranged set extra = 4 where id = 2;
alter table ranged drop column v;
update ranged set extra = 5 where id = 3;
truncate grown;
insert into grown values (1, 'new');
-- a partition in another schema, made and filled in one transaction
create schema tables_partitions_more;
begin;
create table tables_partitions_more.grown_d partition of grown for values from (300) to (400);
insert into grown values (300, 'd');
commit;
-- a partition whose rows are not in the WAL for a while
alter table grown_a set unlogged;
insert into grown values (60, 'unseen'), (301, 'seen');
alter table grown add column filled float8 default random();
update grown set v = 'seen' where id = 300;
-- check
alter table grown_a set logged;
insert into grown values (61, 'seen again');
