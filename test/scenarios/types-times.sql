-- Dates, times and intervals: infinity, BC, the last year, microseconds, 24:00:00, zones with seconds, mixed signs.
-- setup
create table moments (id int primary key, d date, t timestamp, z timestamptz);
insert into moments values
  (1, 'infinity', 'infinity', 'infinity'), (2, '-infinity', '-infinity', '-infinity'), (3, null, null, null),
  (4, '4713-01-01 BC', '4713-11-24 00:00:00 BC', '4713-11-24 00:00:00+00 BC'), (5, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00'),
  (6, '0001-01-01', '0001-01-01 00:00:00', '0001-01-01 00:00:00+00'), (7, '0001-12-31 BC', '0001-12-31 23:59:59.999999 BC', '0001-12-31 23:59:59.999999+00 BC'),
  (8, '9999-12-31', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999+00'), (9, '10000-01-01', '10000-01-01 00:00:00', '10000-01-01 00:00:00.5+00'),
  (10, '2026-11-21', '2026-11-21 03:00:00.123456', '2026-11-21 03:00:00.123456+00'), (11, '2026-11-21', '2026-11-21 03:00:00.1', '2026-11-21 03:00:00.1+05:30'),
  (12, '2024-02-29', '2024-02-29 23:59:60', '2024-02-29 23:59:59.9999999+00'), (13, '1883-11-18', '1883-11-18 12:03:57.000001', '1883-11-18 12:03:57.000001 America/New_York'),
  (14, 'epoch', 'epoch', 'epoch'), (15, '0044-03-15 BC', '0044-03-15 BC', '0044-03-15 00:00:00.25+00 BC'), (17, '0044-03-15 BC', '0044-03-15 00:00:00.5 BC', '0044-03-15 00:00:00.5+00 BC'), (18, '0044-03-15 BC', '0044-03-15 00:00:00.25 BC', '0044-03-15 00:00:00.125+00 BC'), (16, '0999-01-01', '0999-01-01 01:02:03.04', '0999-01-01 01:02:03.04+00');
create table precise (id int primary key, t0 timestamp(0), t3 timestamp(3), z2 timestamptz(2), c timetz(1), i interval(3), y interval year to month);
insert into precise values (1, '2026-11-21 03:00:00.9', '2026-11-21 03:00:00.1239', '2026-11-21 03:00:00.1299+02', '12:00:00.19+01', '1.23456 s', '1 year 14 months');
create table clocks (id int primary key, t time, z timetz, i interval);
insert into clocks values
  (1, '24:00:00', '24:00:00+00', '0'), (2, '00:00:00', '00:00:00-15:59:59', '-0'), (3, '23:59:59.999999', '23:59:59.999999+15:59:59', '1 year -2 mons +3 days -04:05:06.789'),
  (4, '12:34:56.7', '12:34:56.7+05:30:15', '-1 year +2 mons -3 days +04:05:06.000001'), (5, null, null, null), (6, '00:00:00.000001', '00:00:00+00', '178000000 years'),
  (7, '03:00', '03:00-07', '-178000000 years'), (8, '03:00', '03:00+01', '2147483647 days -2147483648 hours'), (9, '03:00', '03:00+01', '1 month -30 days'), (10, '01:00', '01:00+00', '00:00:00.1'),
  (11, '01:00', '01:00+00', '-00:00:00.000001'), (12, '01:00', '01:00+00', '9 years 11 mons');
create table as_arrays (id int primary key, d date[], t timestamp[], z timestamptz[], c time[], k timetz[], i interval[]);
insert into as_arrays values
  (1, '{}', '{}', '{}', '{}', '{}', '{}'), (2, null, null, null, null, null, null),
  (3, '{infinity,-infinity,NULL,0044-03-15 BC,5874897-12-31}', '{infinity,NULL,2026-11-21 03:00:00,2026-11-21 03:00:00.1,0044-03-15 BC,294276-12-31 23:59:59.999999}',
   '{-infinity,NULL,2026-11-21 03:00:00+00,2026-11-21 03:00:00.123456+00,10000-01-01 00:00:00+00}', '{24:00:00,NULL,00:00:00.5}', '{24:00:00+00,NULL,01:00:00-15:59:59}',
   array['1 year -2 mons', '0', null, '-00:00:01']::interval[]),
  (4, '[3:4]={2026-01-01,2026-01-02}', array[['2026-01-01'], [null]]::timestamp[], '[0:0]={epoch}', '{{00:00}}', '{{00:00+00}}', '{{0}}');
-- both ways: moments, precise, clocks, as_arrays

-- live
create table by_time (z timestamptz, t timestamp, i interval, primary key (z, t, i));
insert into by_time select z, t, '1 mon' from moments where z is not null;
-- equal to Postgres, another text
update by_time set i = '30 days' where z = 'infinity';
update by_time set i = '720:00:00' where z = '-infinity';
update by_time set z = z + '1 us' where z between '1900-01-01' and '9000-01-01';
delete from by_time where t = 'epoch';
