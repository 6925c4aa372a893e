-- Rows of a partition go as its root's while it is one, and as its own before and behind that.
-- setup
create table whole (id int primary key, v text) partition by range (id);
create table low partition of whole for values from (0) to (100);
create table high partition of whole for values from (100) to (200);
create table alone (id int primary key, v text);
insert into whole select i, 'v' from generate_series(90, 110) i;
insert into alone select i, 'a' from generate_series(200, 210) i;

-- live
insert into whole values (89, 'w'), (111, 'w');
insert into alone values (211, 'a');
-- check
alter table whole detach partition high;
-- check
delete from high where id < 105;
insert into high values (120, 'own');
alter table whole attach partition alone for values from (200) to (300);
-- check
delete from alone where id < 205;
insert into whole values (220, 'root');
begin; delete from whole where id = 95; alter table whole detach partition low; delete from low where id = 96; insert into low values (5, 'own'); commit;
-- check
delete from low where id > 97;
begin; delete from low where id = 97; alter table whole attach partition low for values from (0) to (100); delete from low where id = 94; insert into whole values (6, 'root'); commit;
-- check
delete from low where id = 93;
delete from whole where id = 92;
delete from high where id = 106;
