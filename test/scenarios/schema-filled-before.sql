-- Rows that came before their table was part of what is mirrored: as another table's, or not at all.
-- setup
create table root (id int primary key, v text) partition by range (id);
create table root_a partition of root for values from (0) to (10);
insert into root values (1, 'a');
create table typed (id int primary key, v text);
insert into typed values (1, 'x');
create table user_of (id int primary key, one typed, many typed[]);
insert into user_of values (1, (1, 'x'), array[(1, 'x'), (2, 'y')]::typed[]);
create domain part as int;
create type pair as (a part, b text);
create table paired (id int primary key, p pair);
insert into paired values (1, (1, 'b'));
create table replaced (id int primary key, v text);
insert into replaced values (1, 'one'), (2, 'two');

-- live
-- made, filled and attached in one transaction
begin;
create table root_b (like root including all);
insert into root_b values (11, 'before'), (12, 'before');
alter table root attach partition root_b for values from (10) to (20);
insert into root values (13, 'after');
commit;
begin;
create table root_c as select i as id, 'query' as v from generate_series(20, 25) i;
alter table root_c alter column id set not null, add primary key (id);
alter table root attach partition root_c for values from (20) to (30);
commit;
begin;
create table root_d partition of root for values from (30) to (40);
insert into root values (30, 'whole');
alter table root add column late int default 3;
commit;
-- check
-- the columns of a table are those of values elsewhere, too
alter table typed add column w int;
update user_of set id = 2 where id = 1;
-- check
alter table typed drop column v;
-- check
begin;
update typed set w = 6;
alter table typed rename column w to wide;
alter table typed add column n int;
commit;
-- check
drop domain part cascade;
-- check
-- another column with the name and the type of one that is gone
alter table replaced drop column v;
alter table replaced add column v text;
insert into replaced (id, v) values (3, 'three');
update replaced set v = 'eins' where id = 1;
-- check
