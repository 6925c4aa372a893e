-- Columns that come, go, are renamed and change their type, while rows come and go.
-- setup
create table t (id int primary key, a int, b text, c numeric(10, 2), d timestamptz);
insert into t select i, i, 'b' || i, i * 1.25, '2026-01-01 00:00+00'::timestamptz + i * interval '1 hour' from generate_series(1, 300) i;
create table bag (a int, b text);
insert into bag select i % 10, 'b' || i % 10 from generate_series(1, 100) i;
create table all_gone (id int primary key, v text);
insert into all_gone values (1, 'a'), (2, 'b');

-- live
alter table t add column plain int;
update t set plain = id where id < 10;
alter table t add column constant int default 7;
update t set constant = 8 where id = 3;
-- check
alter table t add column words text default 'it''s, "so" {1}' not null, add column nothing text default null, add column list int[] default '{1,NULL,3}', add column stamp timestamptz default '2020-02-02 02:02:02.5+00', add column flag bool default true, add column blob bytea default '\x00ff', add column doc jsonb default '{"a": 1.0}', add column num numeric default 1.50, add column boxes box[] default '{(1,1),(0,0)}';
update t set words = 'other' where id = 4;
-- check
-- what the default is later means nothing to the rows before
begin;
alter table t add column changing text default 'first';
alter table t alter column changing set default 'second';
insert into t (id) values (1000);
alter table t alter column changing drop default;
insert into t (id) values (1001);
commit;
alter table t add column made timestamptz default now();
alter table t add column who text default current_user;
insert into t (id) values (1002);
-- check
-- values of which Postgres alone knows
alter table t add column random uuid default gen_random_uuid();
alter table t add column number serial;
alter table t add column counted int generated always as identity;
update t set b = 'after' where id = 5;
alter table bag add column s bigserial;
delete from bag where ctid = (select min(ctid) from bag);
-- check
alter table t rename column a to z;
update t set z = -1 where id = 6;
alter table t rename column b to a;
update t set a = 'was b' where id = 7;
-- two names change places
begin;
alter table t rename column a to tmp;
alter table t rename column z to a;
alter table t rename column tmp to z;
commit;
update t set a = 0, z = 'z' where id = 8;
alter table t drop column z;
update t set a = 1 where id = 9;
alter table t add column z text;
update t set z = 'another' where id = 10;
alter table t drop column plain, drop column constant, add column plain text default 'new';
insert into t (id) values (1003);
-- check
-- types: with and without a rewrite
alter table t alter column c type numeric(12, 2);
update t set c = 1234567890.12 where id = 11;
alter table t alter column c type numeric(14, 4);
alter table t alter column a type bigint;
update t set a = 5000000000 where id = 12;
alter table t alter column a type text using 'n' || a;
update t set a = 'text' where id = 13;
alter table t alter column a type varchar(20);
alter table t alter column a type text;
alter table t alter column d type timestamp using d at time zone 'Asia/Tokyo';
update t set d = '2026-06-06' where id = 14;
alter table t alter column d type date using d::date;
alter table t alter column random type text;
-- the same type, other values
alter table t alter column number type int using number * 10;
update t set number = 1 where id = 15;
-- check
update t set c = 0 where c is null;
alter table t alter column c set not null, alter column c set default 5;
insert into t (id) values (1004);
alter table t alter column c drop not null, alter column c drop default;
insert into t (id) values (1005);
alter table t alter column words set storage external;
alter table t alter column words set statistics 10;
alter table t alter column words set compression pglz;
alter table t add constraint positive check (id > 0);
alter table t add constraint only_once unique (id, words);
alter table t drop constraint positive;
-- the last column goes; the rows stay
alter table bag drop column a;
insert into bag (b) values ('x');
alter table all_gone drop column v;
insert into all_gone values (3);
-- key and all
alter table all_gone drop column id;
-- if: fallback
alter table all_gone replica identity full;
-- end if
alter table all_gone add column back text default 'b';
insert into all_gone values ('c');
update t set words = 'last' where id < 20;
