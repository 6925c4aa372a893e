-- Schema changes made by transactions that do not see what others have changed and committed before them.
-- setup
create domain limited as int check (value > 0);
create type mood as enum ('sad', 'ok');
create table known (id int primary key, v limited, m mood);
insert into known values (1, 1, 'sad');

-- live
-- session old
begin isolation level repeatable read;
select 1;
-- session main
create table made (id int primary key, v text);
insert into made values (1, 'a'), (2, 'b');
alter table known add column added int default 5;
update known set added = 6;
alter table known rename column m to feeling;
-- session old
-- locks no table, so it tells of all of them
alter domain limited drop constraint limited_check;
commit;
-- session main
insert into made values (3, 'c');
insert into known values (2, 2, 'ok', 7);
-- session old
begin isolation level repeatable read;
select 1;
-- session main
alter table known add column more text default 'x';
insert into known values (3, 3, 'ok', 7, 'y');
-- session old
-- locks the table, and still sees it as it was
alter table known add column last int;
commit;
-- session main
insert into known (id) values (4);
update made set v = 'z' where id = 2;
-- session old
begin;
-- both tell of all tables
alter type mood rename value 'ok' to 'fine';
alter type mood rename value 'sad' to 'blue';
-- session main
create table meanwhile (id int primary key, v text);
insert into meanwhile values (1, 'a');
-- session old
insert into made values (5, 'e');
commit;
