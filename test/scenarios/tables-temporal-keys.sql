-- Keys that are unique over no common time: https://www.postgresql.org/docs/18/sql-createtable.html
-- only: 18
-- setup
create extension if not exists btree_gist schema pg_catalog;
create table rooms (id int, booked daterange, guest text, primary key (id, booked without overlaps));
insert into rooms values (1, '[2026-01-01,2026-02-01)', 'a'), (1, '[2026-02-01,2026-03-01)', 'b'), (2, '[2026-01-01,)', 'c');
create table by_unique (id int not null, during tstzrange not null, v text, unique (id, during without overlaps));
insert into by_unique values (1, '[2026-01-01,2026-01-02)', 'a');
create table hopeful (id int, during int4range, g int generated always as (id + 1), primary key (id, during without overlaps));
insert into hopeful values (1, '[1,2)');
create table referring (id int primary key, room int, stay daterange, foreign key (room, period stay) references rooms (id, period booked));
insert into referring values (1, 1, '[2026-01-05,2026-02-05)');

-- live
update rooms set guest = 'new' where id = 2;
update rooms set booked = '[2026-01-01,2026-01-20)' where guest = 'b' and false;
update rooms set booked = '[2026-02-01,2026-04-01)' where guest = 'b';
insert into rooms values (3, '[2026-01-01,2026-01-02)', 'd');
delete from rooms where id = 3;
update by_unique set v = 'b', during = '[2026-01-01,2026-01-03)';
insert into by_unique values (1, '[2026-02-01,2026-02-02)', 'c');
delete from by_unique where v = 'b';
update hopeful set during = '[2,3)';
insert into hopeful values (1, '[4,5)');
delete from hopeful where during = '[4,5)';
update referring set stay = '[2026-01-06,2026-02-06)';
create table made (id int, during int4range, v text, primary key (id, during without overlaps));
insert into made values (1, '[1,2)', 'a'), (1, '[2,3)', 'b');
update made set v = 'c' where during @> 1;
delete from made where during @> 2;
-- if: hooks
alter table made drop constraint made_pkey;
update made set v = 'd';
alter table made add primary key (id, during without overlaps);
-- end if
update made set during = '[5,6)';
create table parted (id int, during int4range, v text, primary key (id, during without overlaps)) partition by list (id);
create table parted_1 partition of parted for values in (1);
create table parted_rest partition of parted default;
insert into parted values (1, '[1,2)', 'a'), (2, '[1,2)', 'b');
update parted set v = 'x', id = 3 where id = 1;
delete from parted where id = 2;
