-- A transaction changes a type, then rows, without having seen what another one made; the catalog, which is asked for
-- that, does not have the table of these rows any more.
-- setup
create type mood as enum ('sad', 'ok');
create table going (id int primary key, v text);
insert into going select i, 'v' || i from generate_series(1, 20) i;
create table staying (id int primary key, v text);

-- live
-- session a
begin;
delete from going where id < 5;
alter type mood add value 'm0';
insert into going values (100, 'after');
insert into staying values (1, 'one');
-- session b
create table made as select * from going;
-- session a
drop table going;
insert into staying values (2, 'two');
commit;
-- check
insert into staying values (3, 'three');
insert into made values (200, 'new');
