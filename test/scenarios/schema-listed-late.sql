-- Tables that come into a publication of a list in the transaction that made and filled them.
-- only: listed
-- setup
create table first (id int primary key, v text);
insert into first values (1, 'one');
alter publication rivulet add table first;

-- live
begin;
create table late (id int primary key, v text);
insert into late values (1, 'before');
alter publication rivulet add table late;
insert into late values (2, 'after');
commit;
-- check
begin;
create table empty (id int primary key, v text);
alter publication rivulet add table empty;
insert into empty values (1, 'after');
commit;
