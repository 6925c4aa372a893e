-- Partitions that leave before the stream has come to their rows: the catalog is ahead of it then.
-- setup
create table waiting (id int primary key, v text);

-- live
create table root_0 (id int primary key, v text) partition by range (id);
create table leaf_0 partition of root_0 default;
insert into root_0 select i, 'v' from generate_series(1, 200) i;
alter table root_0 detach partition leaf_0;
create table root_1 (id int primary key, v text) partition by range (id);
create table leaf_1 partition of root_1 default;
insert into root_1 select i, 'v' from generate_series(1, 200) i;
alter table root_1 detach partition leaf_1;
create table root_2 (id int primary key, v text) partition by range (id);
create table leaf_2 partition of root_2 default;
insert into root_2 select i, 'v' from generate_series(1, 200) i;
alter table root_2 detach partition leaf_2;
create table root_3 (id int primary key, v text) partition by range (id);
create table leaf_3 partition of root_3 default;
insert into root_3 select i, 'v' from generate_series(1, 200) i;
alter table root_3 detach partition leaf_3;
create table root_4 (id int primary key, v text) partition by range (id);
create table leaf_4 partition of root_4 default;
insert into root_4 select i, 'v' from generate_series(1, 200) i;
alter table root_4 detach partition leaf_4;
create table root_5 (id int primary key, v text) partition by range (id);
create table leaf_5 partition of root_5 default;
insert into root_5 select i, 'v' from generate_series(1, 200) i;
alter table root_5 detach partition leaf_5;
insert into leaf_0 values (1000, 'alone');
