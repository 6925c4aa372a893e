-- Composites, domains over domains, ranges and multiranges, arrays of all of them, one inside the other.
-- setup
create type pair as (x int, "y z" text);
create type nested as (p pair, many pair[], d numeric, z timestamptz, f float8, b bytea);
create domain positive as int check (value > 0);
create domain small as positive check (value < 1000);
create domain many_small as small[];
create domain pairs as pair;
create domain stamp as timestamptz;
create domain digits as numeric(30, 5);
create type text_range as range (subtype = text, collation = "C", multirange_type_name = text_ranges);
create table composites (id int primary key, p pair, n nested, d pairs, ps pair[]);
insert into composites values
  (1, (1, 'a'), ((1, 'a'), array[(1, 'a'), (null, null)]::pair[], 1.50, '2026-11-21 03:00:00.5+00', 'NaN', '\x00'), (2, 'b'), array[(1, 'a,b'), null, (null, '"'), (3, '\')]::pair[]),
  (2, (null, null), (null, null, null, null, null, null), null, '{}'), (3, null, null, null, null), (4, (0, ''), (null, '{}', 'NaN', 'infinity', '-0', ''), (5, ' '), array[array[(1, '(')::pair], array[(2, ')')::pair]]),
  (5, (1, E'a"b\\c,(d)\n\tü'), ((7, '{"x"}'), array[(1, '"),(')]::pair[], 0.0, '0044-03-15 BC', 'Infinity', '\x5c'), (2, 'NULL'), '[3:3]={"(1,x)"}');
create table domains (id int primary key, s small, m many_small, t stamp, n digits, ts stamp[], ns digits[]);
insert into domains values (1, 1, '{1,2,NULL}', '2026-11-21 03:00:00.5+00', 1.5, '{2026-11-21 03:00:00+00,infinity}', '{1,1.5,123456789012345678901.5}'), (2, null, null, null, null, null, null), (3, 999, '{}', 'infinity', 'NaN', '{}', '{}');
create table ranges (id int primary key, i int4range, b int8range, n numrange, t tsrange, z tstzrange, d daterange, x text_range);
insert into ranges values
  (1, 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', 'empty'), (2, '[1,5)', '(,9223372036854775807)', '[1.50,2.0]', '[2026-01-01,2026-01-02 03:04:05.6)', '[2026-01-01 00:00+00,infinity]', '[2026-01-01,2026-12-31]', '["a","b,c"]'),
  (3, '(,)', '(,)', '(,)', '(,)', '(,)', '(,)', '(,)'), (4, null, null, null, null, null, null, null), (5, '[-2147483648,2147483647)', '[5,5]', '[NaN,NaN]', '[0044-03-15 BC,infinity)', '(-infinity,)', '[infinity,infinity]', '["\"","\\\\")'), (6, '[1,1]', '[1,1]', '[-Infinity,Infinity]', null, null, null, '["",)');
create table multiranges (id int primary key, i int4multirange, n nummultirange, z tstzmultirange, x text_ranges, a int4range[], am int4multirange[], at text_range[]);
insert into multiranges values
  (1, '{}', '{}', '{}', '{}', '{}', '{}', '{}'), (2, '{[1,3),[5,7)}', '{(,1.0),[2.50,)}', '{[2026-01-01 00:00+00,2026-01-02 00:00+00)}', text_ranges(text_range('a', 'b'), text_range('c,', 'd"')), array['[1,2)', null, 'empty']::int4range[], array['{[1,2)}', '{}', null]::int4multirange[], array[text_range('a"', 'b\')]),
  (3, null, null, null, null, null, null, null);
-- both ways: composites, domains, ranges, multiranges

-- live
create table by_domain (s small, r int4range, primary key (s, r));
insert into by_domain select i, int4range(i, i + 1) from generate_series(1, 20) i;
update by_domain set s = s + 100 where s > 10;
update by_domain set r = 'empty' where s = 5;
delete from by_domain where r = '[3,4)';
-- a domain's constraint and default mean nothing to the rows
alter domain positive drop constraint positive_check;
insert into by_domain values (20, '[1,2)');
