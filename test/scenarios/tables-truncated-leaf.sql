-- TRUNCATE of a single partition: with publish_via_partition_root Postgres sends nothing of it.
-- differs: whole: TRUNCATE of a single leaf is not in the stream, and no schema change
-- setup
create table whole (id int primary key, v text) partition by range (id);
create table leaf_a partition of whole for values from (0) to (100);
create table leaf_b partition of whole for values from (100) to (200);
insert into whole select i, 'v' from generate_series(50, 150) i;

-- live
truncate leaf_a;
insert into whole values (150 + 1, 'after');
