-- Types of the extensions that come with Postgres, and a base type made by hand: all go by their text form.
-- setup
create extension hstore;
create extension citext;
create extension ltree;
create extension cube;
create extension isn;
create extension seg;
create extension lo;
create extension intarray;
create extension earthdistance;
create table extended (id int primary key, h hstore, c citext, l ltree, lq lquery, lt ltxtquery, cu cube, sg seg, i13 ean13, i10 isbn, ismn ismn, issn issn, upc upc, o lo, q query_int, e earth);
insert into extended values
  (1, 'a=>1,"b c"=>NULL,"NULL"=>"NULL","\"q\""=>"\\"', 'MiXeD ü', 'a.b_c.d', 'a.*{1,2}.!b|c@*', 'a & !(b | c*)', '(1,2),(3,4)', '0.1(+-)0.05', '978-0-393-04002-9', '0-393-04002-X', 'M-3452-4680-5', '1436-4522', '0 12345 67890 5', 4294967295, '1&(2|!3)', ll_to_earth(10, 20)),
  (2, '', '', '', '*', 'x', '(0)', '1.50..2.0', null, null, null, null, null, 0, '1', null), (3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
  (4, '"x,y"=>"{}"', 'ABC', (repeat('x.', 100) || 'y')::ltree, 'a', 'a', '(NaN,Infinity,-0)', '<5.0', null, null, null, null, null, 16384, '5', null), (5, null, 'abc', 'Top', 'a', 'a', '(1e300,5e-324,0.1)', '~6.50', null, null, null, null, null, null, '5', null);
create table as_arrays (id int primary key, h hstore[], c citext[], l ltree[], cu cube[], sg seg[], i isbn[]);
insert into as_arrays values (1, array['a=>1', null, '"x"=>"\"y\""']::hstore[], array['A', 'a', null, 'b,c']::citext[], array['a.b', null]::ltree[], array['(1,2),(3,4)', null]::cube[], array['1..2']::seg[], array['0-393-04002-X']::isbn[]), (2, '{}', '{}', '{}', '{}', '{}', '{}'), (3, null, null, null, null, null, null);
-- a base type of the user's own, with text's functions
create type shout;
create function shout_in(cstring) returns shout language internal immutable strict as 'textin';
create function shout_out(shout) returns cstring language internal immutable strict as 'textout';
create type shout (input = shout_in, output = shout_out, like = text);
-- one that is passed by value, with a delimiter of its own
create type cents;
create function cents_in(cstring) returns cents language internal immutable strict as 'int8in';
create function cents_out(cents) returns cstring language internal immutable strict as 'int8out';
create type cents (input = cents_in, output = cents_out, like = int8, delimiter = '|');
create table homemade (id int primary key, s shout, c cents, ss shout[], cs cents[]);
insert into homemade values (1, 'x', '9223372036854775807', array['a,b', null, '"', 'NULL']::shout[], '{1|NULL|-5}'), (2, '', '0', '{}', '{}'), (3, null, null, null, null), (4, E'\ufeff', '-1', '[2:2]={x}', '[0:1]={1|2}');
-- both ways: extended, as_arrays, homemade

-- live
create table by_citext (c citext primary key, l ltree, h hstore);
insert into by_citext values ('Abc', 'a', 'a=>1'), ('def', 'b', null);
update by_citext set c = 'ABC' where c = 'abc';
update by_citext set l = 'x.y' where c = 'aBC';
delete from by_citext where c = 'DEF';
insert into by_citext values ('DEF', 'c', '');
-- an extension that comes while everything runs, with a table that uses it at once
create extension unaccent;
-- if: hooks
create extension pgcrypto;
-- end if
