-- Tables whose first rows come before anything is known of them, and that are not mirrored any more by the time that
-- the catalog is looked at for them.
-- only: hooks
-- setup
create table source (id int, v text);
insert into source select i, 'v' || i from generate_series(1, 50) i;

-- live
create table passing_0 as select * from source;
update passing_0 set v = 'changed' where id % 3 = 0;
alter table passing_0 set unlogged;
create table passing_1 as select * from source;
update passing_1 set v = 'changed' where id % 3 = 0;
drop table passing_1;
create table passing_2 as select * from source;
update passing_2 set v = 'changed' where id % 3 = 0;
alter table passing_2 set unlogged;
create table passing_3 as select * from source;
update passing_3 set v = 'changed' where id % 3 = 0;
drop table passing_3;
create table passing_4 as select * from source;
update passing_4 set v = 'changed' where id % 3 = 0;
alter table passing_4 set unlogged;
update passing_0 set v = 'unseen' where id = 1;
alter table passing_2 set logged;
update passing_2 set v = 'seen again' where id = 1;
