-- Types of the server's own: text search, LSN, transaction ids, snapshots, reg*, ACL items, tid, cid, refcursor, jsonpath.
-- setup
create table searched (id int primary key, v tsvector, q tsquery, p jsonpath);
insert into searched values (1, '', '', '$'), (2, $$'a':1A,2B 'it''s':3 '\\':4 'b c':5$$, $$'a' & !('b' | 'c d':*A) <-> 'it''s'$$, '$.a[*] ? (@.b > 1.50 && @.c like_regex "x\"y")'), (3, null, null, null), (4, to_tsvector('simple', repeat('word ', 1000)), 'x', 'strict $."a b"');
create table system (id int primary key, l pg_lsn, x xid, x8 xid8, c cid, t tid, s pg_snapshot, o txid_snapshot, r refcursor, a aclitem);
insert into system values (1, '0/0', '0', '0', '0', '(0,0)', '10:20:10,14', '10:20:10,14', 'cursor', 'postgres=r/postgres'), (2, 'FFFFFFFF/FFFFFFFF', '4294967295', '18446744073709551615', '4294967295', '(4294967295,65535)', '1:1:', '1:1:', '', '=arwdDxt/postgres'), (3, null, null, null, null, null, null, null, null, null), (4, '16/B374D848', '3', '3', '3', '(1,2)', null, null, 'a "b"', null);
create table names (id int primary key, c regclass, t regtype, p regproc, pr regprocedure, o regoper, op regoperator, n regnamespace, r regrole, col regcollation, ts regconfig, d regdictionary);
insert into names values (1, 'names', 'text[]', 'now', 'substr(text,int)', '#-', '+(int4,int4)', 'types_catalog', 'postgres', '"C"', 'simple', 'simple'), (2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (3, null, null, null, null, null, null, null, null, null, null, null), (4, 'pg_class', 'timestamptz', 'pg_catalog.now', 'pg_catalog.now()', null, null, 'pg_catalog', null, 'pg_catalog.default', 'english', null);
create table as_arrays (id int primary key, v tsvector[], q tsquery[], p jsonpath[], l pg_lsn[], x8 xid8[], c regclass[], t regtype[], a aclitem[], td tid[]);
insert into as_arrays values (1, array[$$'a':1 'b c':2$$, null, '']::tsvector[], array[$$'a' & 'b'$$]::tsquery[], array['$.a', null]::jsonpath[], '{0/0,NULL,16/B374D848}', '{18446744073709551615}', array['names', null]::regclass[], array['text[]', 'int']::regtype[], array['postgres=r/postgres']::aclitem[], '{"(1,2)",NULL}'), (2, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'), (3, null, null, null, null, null, null, null, null, null);
-- both ways: searched, system, names, as_arrays

-- live
create table by_lsn (l pg_lsn primary key, x8 xid8);
insert into by_lsn select l, x8 from system where l is not null;
update by_lsn set x8 = '7' where l = '0/0';
update by_lsn set l = '1/0' where l = '16/B374D848';
