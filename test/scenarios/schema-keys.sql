-- Primary keys and replica identities that change, under changes of the rows.
-- setup
create table moved (id int primary key, other int not null, v text);
insert into moved select i, 1000 - i, 'v' || i from generate_series(1, 50) i;
create table widened (a int primary key, b int not null, v text);
insert into widened select i, i % 3, 'v' from generate_series(1, 50) i;
create table lost (id int primary key, v text);
insert into lost select i, 'v' from generate_series(1, 50) i;
create table gained (id int, v text);
insert into gained select i, 'v' from generate_series(1, 50) i;
create table serial_gained (v text);
insert into serial_gained select 'v' || i % 5 from generate_series(1, 50) i;
create table identities (id int primary key, code text not null unique, v text);
insert into identities select i, 'c' || i, 'v' from generate_series(1, 50) i;
create table renamed_key (id int primary key, v text);
insert into renamed_key select i, 'v' from generate_series(1, 50) i;
create table retyped_key (id int primary key, v text);
insert into retyped_key select i, 'v' from generate_series(1, 50) i;

-- live
begin;
update moved set v = 'x' where id = 1;
alter table moved drop constraint moved_pkey, add primary key (other);
update moved set v = 'y', id = 7 where other = 998;
commit;
update moved set other = -other where id > 40;
delete from moved where other = 990;
insert into moved values (7, 5000, 'the same id');
alter table widened drop constraint widened_pkey, add primary key (b, a);
update widened set b = b + 1 where a < 5;
delete from widened where a = 6;
alter table widened drop constraint widened_pkey, add primary key (a);
update widened set a = a + 1000 where b = 0;
-- check
begin;
alter table lost drop constraint lost_pkey;
-- if: fallback
alter table lost replica identity full;
-- end if
insert into lost values (1, 'v'), (1, 'v');
delete from lost where ctid = (select min(ctid) from lost where id = 1);
update lost set v = 'x' where id = 2;
commit;
insert into lost values (2, 'x');
alter table gained add primary key (id);
update gained set id = id + 100 where id > 25;
delete from gained where id = 3;
-- if: fallback
alter table gained replica identity default;
update gained set v = 'x' where id = 4;
-- end if
alter table serial_gained add column id serial primary key;
update serial_gained set v = 'x' where id = 2;
delete from serial_gained where id = 3;
-- check
alter table identities replica identity full;
update identities set v = 'full' where id = 1;
alter table identities replica identity using index identities_code_key;
update identities set v = 'index' where id = 2;
update identities set code = 'other', id = 300 where id = 3;
begin;
alter table identities replica identity default;
update identities set id = 400 where id = 4;
alter table identities replica identity using index identities_code_key;
update identities set code = 'fifth' where id = 5;
delete from identities where id = 6;
commit;
-- if: hooks
alter table identities replica identity nothing;
update identities set v = 'kept usable' where id = 7;
-- end if
alter table renamed_key rename column id to key;
update renamed_key set v = 'x' where key = 1;
alter table renamed_key rename constraint renamed_key_pkey to another_name;
update renamed_key set key = 100 where key = 2;
alter table retyped_key alter column id type text using 'k' || id;
update retyped_key set id = 'k!' where id = 'k1';
delete from retyped_key where id = 'k2';
alter table retyped_key alter column id type bigint using substr(replace(id, '!', '999'), 2)::bigint;
update retyped_key set id = -id where id < 10;
