-- Schema changes made by transactions that still see the catalog's rows as they were before commands that no hook sees:
-- beside each the row that they have made of it.
-- setup
create schema granted;
create table clustered (id int primary key, v text);
create table granted.revised (id int primary key, v text);
create table parted (id int primary key, v text) partition by range (id);
create table leaf partition of parted default;
insert into clustered select i, 'a' from generate_series(1, 20) i;
insert into granted.revised values (1, 'a');
insert into parted values (1, 'a');

-- live
-- session old
begin isolation level serializable;
select 1;
-- session main
cluster clustered using clustered_pkey;
grant select (v) on granted.revised to public;
grant select on leaf to public;
grant usage on schema granted to public;
-- session old
alter table clustered rename to renamed;
alter table renamed add column w int default 7;
insert into renamed values (21, 'b', 8);
alter table granted.revised rename column v to revised;
alter schema granted rename to given;
alter table leaf rename to sheet;
alter table parted detach partition sheet;
commit;
-- session main
insert into renamed values (22, 'c', 9);
insert into given.revised values (2, 'b');
insert into sheet values (2, 'b');
