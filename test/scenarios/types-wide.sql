-- As many columns as Postgres can hold, with and without values.
-- setup
do $$
begin
  execute (select 'create table wide (' || string_agg(format('c%s %s', i, case i when 1 then 'int primary key' else (array['int', 'text', 'numeric', 'bool', 'float4'])[i % 5 + 1] end), ', ') || ')' from generate_series(1, 1600) i);
end $$;
do $$
begin
  execute (select 'insert into wide values (' || string_agg(case i % 5 when 3 then '''t''' else format('%L', i) end, ', ') || ')' from generate_series(1, 1600) i);
end $$;
insert into wide (c1, c1600) values (2, 7);
insert into wide (c1) values (3);
-- the narrowest
create table narrow (id int primary key);
insert into narrow values (1), (2);

-- live
do $$
begin
  execute (select 'insert into wide values (' || string_agg(case when i = 1 then '10' when i % 5 = 3 then '''f''' else format('%L', i) end, ', ') || ')' from generate_series(1, 1600) i);
end $$;
update wide set c1600 = 8 where c1 = 2;
update wide set c2 = 1, c1 = 20 where c1 = 1;
insert into narrow values (3);
update narrow set id = 4 where id = 1;
delete from narrow where id = 2;
do $$
begin
  execute (select 'create table wide_bag (' || string_agg(format('c%s int', i), ', ') || ')' from generate_series(1, 1599) i);
end $$;
-- if: fallback
alter table wide_bag replica identity full;
-- end if
insert into wide_bag (c1, c1599) values (1, 1), (1, 1), (2, null);
update wide_bag set c800 = 5 where c1 = 2;
delete from wide_bag where ctid = (select min(ctid) from wide_bag where c1 = 1);
