-- Values out of line that an UPDATE does not touch are not sent: by key, under full identity, in one transaction, with a changed key.
-- setup
create table by_key (id int primary key, n int, a text, b text, c bytea);
alter table by_key alter a set storage external, alter b set storage external, alter c set storage external;
create table by_full (like by_key including all);
alter table by_full replica identity full;
create table bag (like by_key);
create table by_index (like by_key, code int not null);
create unique index by_index_u on by_index (code);
alter table by_index replica identity using index by_index_u;
create table deferred (like by_key, primary key (id) deferrable initially deferred);
create table wide_key (k text primary key, a text, n int);
alter table wide_key alter a set storage external;
create table as_json (id int primary key, n int, j jsonb, arr text[], num numeric);
alter table as_json alter j set storage external, alter arr set storage external, alter num set storage external;
insert into by_key select i, i, repeat('a' || i, 3000), repeat('b' || i, 3000), decode(repeat('00' || lpad(to_hex(i), 2, '0'), 3000), 'hex') from generate_series(1, 30) i;
insert into by_full select * from by_key;
insert into bag select * from by_key;
insert into bag select * from by_key where id < 10;
insert into by_index select *, id from by_key;
insert into deferred select * from by_key;
insert into wide_key select 'k' || i, repeat('a' || i, 3000), i from generate_series(1, 30) i;
insert into as_json select i, i, jsonb_build_object('x', repeat('j', 9000)), array[repeat('e', 9000), null], repeat('7', 9000)::numeric from generate_series(1, 10) i;

-- live
update by_key set n = n + 1; update by_full set n = n + 1; update bag set n = n + 1; update by_index set n = n + 1; update deferred set n = n + 1; update wide_key set n = n + 1; update as_json set n = n + 1;
-- one of several changes
update by_key set a = repeat('A', 5000) where id = 1; update by_full set a = repeat('A', 5000) where id = 1; update bag set a = repeat('A', 5000) where id = 1; update by_index set a = repeat('A', 5000) where id = 1; update deferred set a = repeat('A', 5000) where id = 1;
update by_key set b = null where id = 2; update by_full set b = null where id = 2; update bag set b = null where id = 2; update by_index set b = null where id = 2;
update by_key set b = 'short now', c = '' where id = 3; update by_full set b = 'short now', c = '' where id = 3; update bag set b = 'short now', c = '' where id = 3; update by_index set b = 'short now', c = '' where id = 3;
-- the key changes, the values do not come along
update by_key set id = id + 100 where id between 4 and 6; update by_full set id = id + 100 where id between 4 and 6; update bag set id = id + 100 where id between 4 and 6; update by_index set code = code + 100 where id between 4 and 6; update by_index set id = id + 100 where id between 4 and 6; update deferred set id = id + 1; update wide_key set k = k || '!' where n % 3 = 0;
-- in one transaction: inserted, then changed; changed several times; moved and changed; deleted and made again
begin;
insert into by_key values (200, 0, repeat('x', 9000), repeat('y', 9000), '\x00'); update by_key set n = 1 where id = 200; update by_key set id = 201 where id = 200; update by_key set b = 'now short' where id = 201; update by_key set n = 2 where id = 201;
update by_key set n = 100 where id = 7; update by_key set a = repeat('z', 9000) where id = 7; update by_key set n = 101 where id = 7; update by_key set id = 70 where id = 7; update by_key set n = 102 where id = 70; update by_key set id = 7 where id = 70; update by_key set n = 103 where id = 7;
delete from by_key where id = 8; insert into by_key values (8, 8, 'short', repeat('long', 3000), null); update by_key set n = 9 where id = 8;
insert into by_full values (200, 0, repeat('x', 9000), repeat('y', 9000), '\x00'); update by_full set n = 1 where id = 200; update by_full set id = 201 where id = 200; update by_full set b = 'now short' where id = 201; update by_full set n = 2 where id = 201;
update by_full set n = 100 where id = 7; update by_full set a = repeat('z', 9000) where id = 7; update by_full set n = 101 where id = 7; update by_full set id = 70 where id = 7; update by_full set n = 102 where id = 70;
insert into bag values (200, 0, repeat('x', 9000), repeat('y', 9000), '\x00'); update bag set n = 1 where id = 200; update bag set id = 201 where id = 200; update bag set b = 'now short' where id = 201; delete from bag where id = 201;
update bag set n = -n where id < 10; update bag set n = n - 1 where id < 5; delete from bag where ctid in (select min(ctid) from bag where id < 10 group by id);
insert into by_index values (200, 0, repeat('x', 9000), repeat('y', 9000), '\x00', 200); update by_index set n = 1 where id = 200; update by_index set code = 201 where id = 200; update by_index set id = 201, b = 'now short' where code = 201;
insert into deferred values (5, 0, repeat('x', 9000), 'twice', null); update deferred set id = 300 where b = 'twice'; update deferred set n = 5 where id = 300; update deferred set id = 11 - id where id in (5, 6);
insert into wide_key values ('new', repeat('w', 9000), 1); update wide_key set n = 2 where k = 'new'; update wide_key set k = 'newer' where k = 'new'; update wide_key set n = 3 where k = 'newer';
update as_json set n = 5 where id = 1; update as_json set j = j || '{"y":1}' where id = 1; update as_json set n = 6, id = 100 where id = 1;
commit;
-- check
-- compressed in line and out of line, and a key that is itself out of line
create table compressed (id int primary key, n int, a text);
insert into compressed select i, i, repeat('compress me ', 10000) from generate_series(1, 5) i;
update compressed set n = 0;
update compressed set a = a || '!' where id = 2;
update compressed set id = 50 where id = 3;
create table long_key (k text primary key, n int);
alter table long_key alter k set storage external;
insert into long_key select string_agg(md5(i::text || j::text), ''), i from generate_series(1, 5) i, generate_series(1, 70) j group by i;
update long_key set n = n + 1;
update long_key set k = k || 'x' where n = 3;
delete from long_key where n = 4;
-- a column that comes while values are out of line
alter table by_key add column d text default 'constant';
update by_key set n = 0 where id < 20;
alter table by_full add column d text;
update by_full set n = 0 where id < 20;
-- a rewrite keeps what is out of line
alter table by_index alter column n type bigint;
update by_index set n = 0 where id < 20;
