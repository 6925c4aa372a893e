-- bytea: every byte, zeros too; empty is not NULL.
-- setup
create table blobs (id int primary key, b bytea);
insert into blobs values (1, ''), (2, null), (3, '\x00'), (4, '\x0000'), (5, '\xff00ff'), (6, '\x5c'), (7, '\x5c78'), (8, 'NULL'), (9, '\x0a0d09'), (10, '\x27225c');
insert into blobs select 100 + i, decode(lpad(to_hex(i), 2, '0'), 'hex') from generate_series(0, 255) i;
insert into blobs select 1000, decode(string_agg(lpad(to_hex(i % 256), 2, '0'), ''), 'hex') from generate_series(0, 99999) i;
create table as_arrays (id int primary key, b bytea[]);
insert into as_arrays values (1, array['', '\x00', null, '\x5c22', 'NULL']::bytea[]), (2, '{}'), (3, null), (4, '[2:3]={"\\x01","\\x02"}'), (5, array[['\x01'], [null]]::bytea[]);
-- both ways: blobs, as_arrays

-- live
create table by_bytes (b bytea primary key, v int);
insert into by_bytes select b, id from blobs where id < 1000 and b is not null on conflict do nothing;
update by_bytes set b = b || '\x00' where v > 300;
delete from by_bytes where b = '\x00' or b = '';
update by_bytes set v = 0 where b = '\xff00ff';
