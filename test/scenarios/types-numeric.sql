-- numeric from end to end: digits, scale, signs, what is a number to SQLite and what only text can hold.
-- setup
create table plain (id int primary key, n numeric);
insert into plain values
  (1, 0), (2, -0.0), (3, 1), (4, 1.0), (5, 1.00), (6, -1.50), (7, 'NaN'), (8, 'Infinity'), (9, '-Infinity'), (10, null),
  (11, 9223372036854775807), (12, -9223372036854775808), (13, 9223372036854775808), (14, -9223372036854775809),
  (15, 9223372036854775807.0), (16, 9223372036854775807.5), (17, 123456789012345), (18, 1234567890123456),
  (19, 0.123456789012345), (20, 0.1234567890123456), (21, 12345678.9012345), (22, 12345678.90123456),
  (23, 1e25), (24, 1e-25), (25, 1e-290), (26, 1e-291), (27, 1e-307), (28, 1e-320), (29, 1e-400), (30, 1e400), (31, -1e400),
  (32, 99999999999999.9), (33, 999999999999999.9), (34, 0.1), (35, 0.30000000000000004), (36, 100000000000000000000.000),
  (37, -0.000000000000001), (38, 5e-324), (39, 1.7976931348623157e308), (40, 2.5000000000);
insert into plain select 100 + i, (10::numeric ^ i) + 0.5 from generate_series(0, 20) i;
insert into plain select 200 + i, (-1) ^ i * (10::numeric ^ i) from generate_series(0, 40) i;
insert into plain select 300 + i, (i::text || '.' || repeat('0', i) || '7')::numeric from generate_series(0, 40) i;
-- all the digits there are
insert into plain values
  (1000, repeat('9', 131072)::numeric),
  (1001, ('-' || repeat('9', 131072) || '.' || repeat('7', 16383))::numeric),
  (1002, ('0.' || repeat('0', 16382) || '1')::numeric),
  (1003, ('0.' || repeat('123456789', 1820) || '123')::numeric);

create table scaled (id int primary key, money numeric(12, 2), whole numeric(20), negative_scale numeric(5, -3), fine numeric(50, 40));
insert into scaled values (1, 12.5, 12.5, 123456, 1.5), (2, -9999999999.99, -99999999999999999999, 99999000, pi()::numeric), (3, 'NaN', 'NaN', 'NaN', 'NaN'), (4, null, null, null, null);

create table of_arrays (id int primary key, n numeric[]);
insert into of_arrays values
  (1, '{}'), (2, '{NULL}'), (3, '{1,1.0,1.00,NaN,Infinity,-Infinity,NULL,-0.0}'), (4, array[repeat('9', 131072)::numeric, 0.1]),
  (5, '[-3:-2][5:6]={{1,2},{3,4.50}}'), (6, null);
-- both ways: plain, scaled, of_arrays

-- live
create table keyed (n numeric primary key, v text);
insert into keyed select n, 'new' from plain where n is not null and length(n::text) < 500 on conflict do nothing;
update keyed set v = 'changed' where n > 10;
-- the same number to Postgres, another text
update keyed set n = 1.000 where n = 1;
update keyed set n = -n where n between 2 and 1e30 and not exists (select from keyed k where k.n = -keyed.n);
delete from keyed where n = 'NaN' or n = 0.1;
insert into keyed values ('NaN', 'again'), (0.10, 'again');
update keyed set n = 'Infinity' where n = 'NaN' and not exists (select from keyed where n = 'Infinity');
