-- TRUNCATE: one table, several, by cascade, a partitioned one, and with rows before and after in one transaction.
-- setup
create table one (id int primary key, v text);
create table two (v text);
create table referred (id int primary key);
create table refers (id int primary key, r int references referred);
create table refers_too (id int primary key, r int references refers on delete cascade);
create table parted (id int primary key, v text) partition by range (id);
create table parted_a partition of parted for values from (0) to (100);
create table parent (id int primary key);
create table child (v int) inherits (parent);
create table deferred (id int primary key deferrable, v int);
insert into one select i, 'v' from generate_series(1, 20) i;
insert into two select 'v' from generate_series(1, 20) i;
insert into referred select i from generate_series(1, 20) i;
insert into refers select i, i from generate_series(1, 20) i;
insert into refers_too select i, i from generate_series(1, 20) i;
insert into parted select i, 'v' from generate_series(1, 20) i;
insert into parent select i from generate_series(1, 20) i;
insert into child select i, i from generate_series(21, 40) i;
insert into deferred select i, i from generate_series(1, 20) i;

-- live
begin;
insert into one values (100, 'before');
update one set v = 'before' where id = 1;
truncate one, two;
insert into one values (1, 'after'), (100, 'after');
insert into two values ('after');
update one set v = 'later' where id = 1;
commit;
truncate referred cascade;
insert into referred values (1);
insert into refers values (1, 1);
insert into refers_too values (1, 1), (2, 1);
delete from refers where id = 1;
truncate only parent;
-- check
truncate parent restart identity;
insert into child values (5, 5);
truncate parted;
insert into parted values (7, 'x');
begin;
savepoint s;
truncate one;
rollback to s;
update one set v = 'still here' where id = 1;
commit;
truncate deferred;
insert into deferred values (1, 1), (2, 2);
update deferred set id = 3 - id;
truncate two;
truncate two;
begin;
truncate one;
truncate one;
insert into one values (2, 'x');
truncate one;
commit;
