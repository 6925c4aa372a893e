-- Types that change below the rows: enum labels added and renamed, composites, domains, names of types.
-- setup
create type mood as enum ('sad', 'ok', 'happy');
create type pair as (x int, y text);
create type nested as (p pair, m mood);
create domain short as varchar(10);
create domain feeling as mood;
create table moods (id int primary key, m mood, ms mood[], f feeling, n nested);
insert into moods values (1, 'sad', '{sad,ok,NULL}', 'ok', ((1, 'a'), 'sad')), (2, 'ok', '{}', null, null), (3, null, null, 'happy', ((null, null), null));
create table pairs (id int primary key, p pair, ps pair[]);
insert into pairs values (1, (1, 'a'), array[(1, 'a'), null, (2, 'b')]::pair[]), (2, null, null);
create table by_mood (m mood primary key, v int);
insert into by_mood values ('sad', 1), ('ok', 2);
create table texts (id int primary key, s short);
insert into texts values (1, 'x');
create table relabelled (id int primary key, c cidr, o int4, r oid, b bit(8), t text, v varchar(10), s short, cut varchar(20));
insert into relabelled values (1, '10.0.0.1/32', -1, 1259, 'B00001111', 'text', 'varchar', 'short', 'longer than five'), (2, '10.0.0.0/8', 7, 0, null, '', '', null, '');
create table relabelled_key (a inet, v int, primary key (a));
insert into relabelled_key values ('10.0.0.1', 1), ('10.0.0.0/8', 2);
-- an array of what has no order can be a key, of one row at most
create table without_order (t text, v int, primary key (t));
insert into without_order values ('{(1,1),(0,0)}', 1);

-- live
alter type mood add value 'ecstatic' after 'happy';
insert into moods values (4, 'ecstatic', '{ecstatic}', 'ecstatic', (null, 'ecstatic'));
insert into by_mood values ('ecstatic', 3);
-- check
alter type mood rename value 'sad' to 'it''s, "sad"';
update moods set id = 10 where id = 1;
-- Without hooks a label's new name is found in the catalog within a second or so. A row whose key prints differently
-- before that is a row that is not there.
-- if: hooks
update by_mood set v = 10 where m = 'it''s, "sad"';
delete from by_mood where m = 'ok';
-- end if
-- check
alter type mood rename to feelings;
insert into moods values (5, 'ok', '{ok}', 'ok', null);
alter type pair add attribute z numeric;
update pairs set p = (1, 'a', 1.50) where id = 1;
-- check
alter type pair drop attribute y;
insert into pairs values (3, (7, 0.1), '{}');
alter type pair rename attribute z to zz;
alter type pair rename to pair_of;
insert into pairs values (4, null, null);
alter domain short add check (length(value) < 9);
alter domain short set default 'd';
insert into texts (id) values (2);
alter domain short rename to shorter;
alter type feelings set schema public;
insert into moods values (6, 'ok', '{ok}', 'ok', null);
alter type public.feelings set schema schema_types;
-- check
-- the same bytes as values of another type: no row is written, and they print differently
alter table relabelled alter c type inet, alter o type oid, alter r type regclass;
-- check
alter table relabelled alter b type bit varying, alter t type varchar, alter v type shorter, alter s type text;
insert into relabelled values (3, '10.0.0.3', 3, 'pg_type', 'B1', 't', 'v', 's', '');
alter table relabelled alter cut type varchar(5) using substr(cut, 1, 5);
-- check
begin;
update relabelled_key set v = 3 where a = '10.0.0.1';
alter table relabelled_key alter a type cidr using network(a)::cidr;
update relabelled_key set v = 4 where a = '10.0.0.0/8';
commit;
-- check
alter table without_order alter t type box[] using t::box[];
update without_order set v = 2;
