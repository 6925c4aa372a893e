-- Integers and floats at their limits: 64 bits, subnormals, -0, NaN and the infinities.
-- setup
create table integers (id int primary key, a int2, b int4, c int8, o oid, t bool);
insert into integers values
  (1, -32768, -2147483648, -9223372036854775808, 0, true), (2, 32767, 2147483647, 9223372036854775807, 4294967295, false),
  (3, null, null, null, null, null), (4, 0, 0, 0, 2147483648, true), (5, -1, -1, -1, 1, false),
  (6, 1, 999999999, 9007199254740993, 16384, true), (7, 1, -999999999, -9007199254740993, 16384, true),
  (8, 1, 1, 9007199254740991, 1, true), (9, 1, 1, 9007199254740992, 1, true), (10, 1, 1, 999999999999999, 1, true),
  (11, 1, 1, 1000000000000000, 1, true), (12, 1, 1, -999999999999999, 1, true), (13, 1, 1, 4294967296, 1, true),
  (14, 1, 1, -4294967296, 1, true), (15, 1, 1, 2147483648, 1, true), (16, 1, 1, -2147483649, 1, true);

create table floats (id int primary key, r float4, d float8);
insert into floats values
  (1, 0, 0), (2, '-0', '-0'), (3, 'NaN', 'NaN'), (4, 'Infinity', 'Infinity'), (5, '-Infinity', '-Infinity'), (6, null, null),
  (7, 1, 1), (8, -1, -1), (9, 0.1, 0.1), (10, 1e-45, 5e-324), (11, -1e-45, -5e-324), (12, 1.17549435e-38, 2.2250738585072014e-308),
  (13, 1.1754942e-38, 2.225073858507201e-308), (14, 3.4028235e38, 1.7976931348623157e308), (15, -3.4028235e38, -1.7976931348623157e308),
  (16, 16777217, 9007199254740993), (17, 0.3, 0.1 + 0.2::float8), (18, 1e10, 1e15), (19, 1e20, 1e22), (20, 1e21, 123456789012345680),
  (21, pi(), pi()), (22, 9223372036854775807, 9223372036854775807), (23, 100, 100), (24, 3.4e-5, 3.4e-5);
-- float4 stays the double of what Postgres prints for it, float8 the same eight bytes
insert into floats select 100 + i, ((2::float8 ^ (i - 60)) * 1.1)::float4, (2::float8 ^ (i * 17 - 1000)) * 1.1 from generate_series(1, 110) i;

create table as_arrays (id int primary key, a int2[], b int4[], c int8[], o oid[], t bool[], r float4[], d float8[]);
insert into as_arrays values
  (1, '{}', '{}', '{}', '{}', '{}', '{}', '{}'), (2, null, null, null, null, null, null, null),
  (3, '{NULL,-32768,32767}', '{NULL,-2147483648,2147483647}', '{NULL,-9223372036854775808,9223372036854775807,9007199254740993}', '{NULL,0,4294967295}', '{NULL,t,f}',
   '{NULL,0,-0,NaN,Infinity,-Infinity,1e-45,3.4028235e38,0.1}', '{NULL,0,-0,NaN,Infinity,-Infinity,5e-324,1.7976931348623157e308,0.1,1e22}'),
  (4, '{{1,2},{3,NULL}}', '{{{1},{2}},{{3},{4}}}', '[0:1]={1,2}', '[-5:-5]={7}', '{{t},{f}}', '[2:3][7:7]={{1},{2}}', '{{{{{{1}}}}}}'),
  (5, array_fill(7::int2, array[3, 3]), array_fill(null::int, array[2]), null, null, null, null, null);
-- int2vector and oidvector print like no other array
create table vectors (id int primary key, s int2vector, o oidvector, many int2vector[]);
insert into vectors values (1, '1 2 3', '4 5 4294967295', array['1 2'::int2vector, '3'::int2vector]), (2, '', '', '{}'), (3, null, null, null);
-- both ways: integers, floats, as_arrays, vectors

-- live
create table by_float (d float8 primary key, v int);
insert into by_float select distinct d, 1 from floats where d is not null;
-- -0 and 0 are one key to Postgres, and two texts
update by_float set d = '-0' where d = 0;
update by_float set v = 2 where d = 'NaN' or d = 'Infinity' or d = 0;
update by_float set d = 0 where d = 0;
delete from by_float where d = '-Infinity';
create table by_bigint (c int8 primary key, v text);
insert into by_bigint values (9007199254740992, 'a'), (9007199254740993, 'b'), (-9223372036854775808, 'min'), (9223372036854775807, 'max');
update by_bigint set v = 'c' where c = 9007199254740993;
delete from by_bigint where c = 9007199254740992;
update by_bigint set c = c - 1 where c = 9223372036854775807;
