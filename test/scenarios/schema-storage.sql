-- Where a table lies: logged and not, rewritten in place, clustered, its indexes made and dropped.
-- setup
create table logged (id int primary key, v text);
insert into logged select i, 'v' || i from generate_series(1, 100) i;
create table compacted (id int primary key, v text, n int);
insert into compacted select i, repeat('v', 100), i % 7 from generate_series(1, 500) i;
delete from compacted where id % 2 = 0;
create index compacted_n on compacted (n);
create table indexed (id int primary key, a text, b int, c timestamptz);
insert into indexed select i, 'a' || i, i % 10, now() from generate_series(1, 100) i;

-- live
create unlogged table quiet (id int primary key, v text);
insert into quiet select i, 'unseen' from generate_series(1, 20) i;
alter table quiet set logged;
insert into quiet values (21, 'seen');
-- check
alter table quiet set unlogged;
insert into quiet values (22, 'unseen again');
-- check
alter table quiet set logged;
insert into quiet values (23, 'seen');
alter table logged set unlogged;
update logged set v = 'x' where id = 1;
alter table logged set logged;
update logged set v = 'y' where id = 2;
-- check
cluster compacted using compacted_n;
update compacted set v = 'after cluster' where id = 1;
vacuum full compacted;
update compacted set v = 'after vacuum' where id = 3;
delete from compacted where id = 5;
vacuum (analyze) compacted;
reindex table compacted;
alter table compacted set (fillfactor = 50);
alter table compacted set tablespace pg_default;
begin;
alter table compacted alter column n type bigint;
insert into compacted values (10000, 'x', 5000000000);
commit;
vacuum full compacted;
insert into compacted values (10001, 'x', 5000000001);
-- check
create index on indexed (a desc nulls last, b);
create unique index indexed_u on indexed (a, b, c);
create index on indexed (lower(a));
create index on indexed (b) where b > 5;
create index on indexed using hash (a);
create index on indexed using gin (to_tsvector('simple', a));
create index on indexed (b) include (a);
create index concurrently later on indexed (c);
alter index later rename to much_later;
drop index concurrently much_later;
drop index indexed_u;
update indexed set a = 'x', b = 0 where id < 10;
delete from indexed where id = 11;
alter table indexed rename column b to bb;
update indexed set bb = 1 where id = 12;
alter table indexed drop column bb;
insert into indexed values (1000, 'y', now());
alter table indexed enable row level security;
create policy all_of_it on indexed using (true);
alter table indexed disable row level security;
grant select on indexed to public;
comment on table indexed is 'a comment';
