-- A publication with row filters and column lists, of which the initial copy and the stream bring the same.
-- only: listed
-- setup
create table filtered (id int primary key, v int, t text);
create table listed (id int primary key, v int, secret text, t text);
create table both_of_it (id int primary key, v int, secret text) ;
create table parted (id int primary key, v int, secret text) partition by range (id);
create table parted_a partition of parted for values from (0) to (100);
create table plain (id int primary key, v int);
create table outside (id int primary key, v int);
create table later (id int primary key, v int);
create schema tables_filtered_all;
create table tables_filtered_all.inside (id int primary key, v int);
insert into filtered select i, i, 't' || i from generate_series(1, 20) i;
insert into listed select i, i, 'secret', 't' || i from generate_series(1, 20) i;
insert into both_of_it select i, i, 'secret' from generate_series(1, 20) i;
insert into parted select i, i, 'secret' from generate_series(1, 20) i;
insert into plain select i, i from generate_series(1, 20) i;
insert into outside select i, i from generate_series(1, 20) i;
insert into later select i, i from generate_series(1, 20) i;
insert into tables_filtered_all.inside select i, i from generate_series(1, 20) i;
alter table filtered replica identity full;
alter publication rivulet add table filtered where (v > 10 and t <> 't15'), listed (id, t), both_of_it (id, v) where (id % 2 = 0), parted (id, v) where (id > 5), plain;

-- live
-- rows that come into the filter, leave it, and change inside and outside of it
update filtered set v = v + 5;
update filtered set v = 0 where id = 20;
update filtered set t = 't15' where id = 18;
update filtered set t = 'back' where id = 15;
insert into filtered values (21, 100, 'x'), (22, 1, 'x');
delete from filtered where id in (3, 19);
update filtered set id = id + 100 where id in (14, 2);
update listed set secret = 'other';
update listed set t = 'x', v = 0 where id < 5;
insert into listed values (21, 1, 's', 't');
update listed set id = 100 where id = 6;
delete from listed where id = 7;
update both_of_it set v = v + 1;
update both_of_it set id = id + 1 where id = 20;
update both_of_it set id = 40 where id = 19;
insert into both_of_it values (50, 1, 's'), (51, 1, 's');
delete from both_of_it where id in (4, 5);
update parted set v = v + 1;
delete from parted where id in (3, 8);
insert into parted values (4 + 50, 1, 's');
update plain set v = 0 where id = 1;
update outside set v = 0;
-- check
-- into the publication and out of it
alter publication rivulet add table later;
update later set v = 100 where id = 1;
alter publication rivulet drop table plain;
update plain set v = 100 where id = 2;
-- check
alter publication rivulet set table filtered, listed (id, t, v), later where (v < 10), both_of_it (id, v) where (id % 2 = 0), parted (id, v) where (id > 5);
update filtered set v = 1 where id = 1;
update listed set v = 7 where id = 1;
alter table listed add column more int;
update listed set more = 1;
-- check
-- a whole schema, with what comes into it later
alter publication rivulet set table filtered, tables in schema tables_filtered_all;
update tables_filtered_all.inside set v = 5;
create table tables_filtered_all.newer (id int primary key, v int);
insert into tables_filtered_all.newer values (1, 2);
alter table outside set schema tables_filtered_all;
update tables_filtered_all.outside set v = 1 where id = 2;
