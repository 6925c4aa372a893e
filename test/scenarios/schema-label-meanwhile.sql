-- A label gets another name while a transaction that does not see it makes the first table with that type.
-- setup
create type mood as enum ('sad', 'ok');

-- live
-- session a
begin;
alter type mood rename value 'sad' to 'blue';
-- session b
begin;
savepoint s;
create table made (id int primary key, m mood);
insert into made values (1, 'ok'), (2, 'sad');
release savepoint s;
-- session a
commit;
-- session b
commit;
-- check
insert into made values (3, 'blue');
update made set m = 'blue' where id = 1;
