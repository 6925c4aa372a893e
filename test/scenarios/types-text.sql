-- Text of every kind: any Unicode, control characters, quotes and backslashes, padding, enum, citext and name.
-- setup
create type mood as enum ('sad', 'ok', 'it''s "fine"', 'a,b', 'NULL', '');
create domain short as varchar(5) check (length(value) > 0);
create domain shorter as short;
create table texts (id int primary key, t text, v varchar(10), c char(8), n name, q "char", m mood, s shorter);
insert into texts values
  (1, '', '', '', '', '', '', null), (2, null, null, null, null, null, null, 'x'),
  (3, E'\ufeffafter a byte order mark', E'\uffff', E'\ufffe', E'\ufdd0', 'a', 'sad', 'abcde'),
  (4, E'\U0001f600 \U0010ffff \U00010000', E'\U0001f600', E'\U0001f600', E'\U0001f600', 'z', 'ok', 'ab'),
  (5, E'\t\n\r\b\f\v\\ \x01\x02\x1f\x7f', E'\\N', E'\\.', '\N', '\', 'it''s "fine"', '\N'),
  (6, 'e' || U&'\0301' || ' is not ' || U&'\00e9', U&'\212b', U&'\00c5', 'NULL', '"', 'NULL', 'NULL'),
  (7, E'\u200b\u200d\u2028\u2029\u00a0\u0085', ' both ', ' pad', ' ', ' ', 'a,b', ' '),
  (8, '{1,2,"x"}', '"', '''', '$1', '%', 'ok', '"";'), (9, repeat('long ', 100000), '0123456789', '12345678', repeat('n', 63), '0', 'ok', '00007'),
  (10, '007', '1e5', '  ', '0x10', '9', 'ok', '1.0'), (11, E'\r\n', E'\r', E'\n', E'\n', E'\n', 'ok', E'\n');
insert into texts (id, t) select 100 + i, chr(case when i between 0 and 2047 then i + 1 else i end) from generate_series(0, 2000) i;
insert into texts (id, t, q) select 3000 + i, string_agg(chr(x), ''), chr(i % 127 + 1)::"char" from generate_series(0, 300) i, generate_series(57344 + i * 25, 57344 + i * 25 + 24) x group by i;
-- bytes past ASCII in "char" print as \ooo from 16 on
insert into texts (id, q) values (4000, '\377'), (4001, '\200');
create table as_arrays (id int primary key, t text[], v varchar(10)[], c char(4)[], n name[], m mood[], s shorter[], q "char"[]);
insert into as_arrays values
  (1, array['', 'NULL', null, 'null', ' ', 'a b', 'a,b', '{}', '"', '\', 'a"b\c', E'\n\t\r\b\f', E'\x01', 'ü', E'\U0001f600', E'\ufeff', E'\u2028', 'x;y'],
   array['', null], array['ab', null, ''], array['NULL', 'x'], array['it''s "fine"', 'NULL', null, '', 'a,b']::mood[], array['\', null]::shorter[], array['a', '"', '', null]::"char"[]),
  (2, '{}', '{}', '{}', '{}', '{}', '{}', '{}'),
  (3, array[['a', null], ['{', '}']], '[5:6]={a,b}', '[-1:0][2:2]={{a},{b}}', '{{{x}}}', '{{sad},{ok}}', '[0:0]={z}', null),
  (4, array(select chr(i) from generate_series(1, 1000) i), null, null, null, null, null, null);
-- both ways: texts, as_arrays

-- live
create table by_text (t text primary key, v int);
insert into by_text select t, id from texts where length(t) < 1000 on conflict do nothing;
update by_text set v = -v where v % 3 = 0;
update by_text set t = t || '!' where v % 5 = 0;
delete from by_text where v % 7 = 0;
create table by_char (c char(8), m mood, primary key (c, m));
insert into by_char select c, m from texts where c is not null and m is not null;
update by_char set c = c || '1' where m = 'ok' and length(c) < 7;
-- equal under the collation, not the same bytes
create collation insensitive (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create table folded (t text collate insensitive primary key, v int);
insert into folded values ('Straße', 1), ('abc', 2);
update folded set t = 'ABC' where t = 'abc';
update folded set v = 3 where t = 'aBc';
delete from folded where t = 'STRASSE' or t = 'strasse' or v = 1;
