-- Names: quoted, mixed case, reserved, long, not ASCII, with everything in them, and those that SQLite cannot tell apart.
-- setup
create table "Mixed" (id int primary key, "Id" int, "ID" int, "iD" text);
create table mixed (id int primary key, v text);
create table "MIXED" (id int primary key, v text);
create table "select" ("from" int primary key, "where" text, "order" int, "group" text, "table" text, "index" int, "values" int);
create table "with space" ("a b" int primary key, " " text, "a""b" text, "a'b" text, "a;b--c" text, "a/*b" text, "[a]" text, "`a`" text, "$1" int, "?" int, ":a" int, "@a" int, "%s" int, "\" int, "{}" int);
create table "sqlite_master" (id int primary key, v text);
create table "sqlite_sequence" (id int primary key, v text);
create table "_rivulet_position" (id int primary key, "_rivulet_x" text, "_rivulet_placeholder" int);
create table "ÄÖÜ" ("ß" int primary key, "ÿ" text, "Ÿ" text, "日本" text, "😀" int);
create table "äöü" ("ß" int primary key, "ẞ" text);
create table rowids (rowid int, oid int, _rowid_ int, "ROWID" int, v text);
create table "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" ("ccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc" int primary key, "CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC" text);
create table "a.b" (id int primary key);
create table "." (id int primary key, "." int);
create table """" (id int primary key, """""" int);
create table "main.t" (id int primary key);
create table "temp" (id int primary key, main int);
create schema "tables_names_a.b";
create table "tables_names_a.b".c (id int primary key);
create schema tables_names_a;
create table tables_names_a."b.c" (id int primary key);
create schema "tables_names_S";
create schema "tables_names_s";
create table "tables_names_S".t (id int primary key);
create table "tables_names_s".t (id int primary key);
create table "tables_names_s"."T" (id int primary key);
insert into "Mixed" values (1, 2, 3, 'x'); insert into mixed values (1, 'lower'); insert into "MIXED" values (1, 'upper');
insert into rowids values (1, 1, 1, 1, 'a'), (1, 1, 1, 1, 'a'), (2, 1, 1, 1, 'b');
insert into "tables_names_a.b".c values (1); insert into tables_names_a."b.c" values (2);
insert into "tables_names_S".t values (1); insert into "tables_names_s".t values (2); insert into "tables_names_s"."T" values (3);

-- live
insert into "Mixed" values (2, 3, 4, 'y'); update "Mixed" set "ID" = 5, "iD" = 'z'; update mixed set v = 'l'; update "MIXED" set v = 'u'; delete from "Mixed" where "Id" = 2;
insert into "select" values (1, 'w', 2, 'g', 't', 3, 4); update "select" set "where" = 'x', "table" = null; insert into "select" values (2); delete from "select" where "from" = 2;
insert into "with space" values (1, 's', 'q', 'a', 'c', 'c', 'b', 't', 1, 2, 3, 4, 5, 6, 7); update "with space" set " " = 'x', "?" = 0, "{}" = null;
insert into "sqlite_master" values (1, 'v'); update "sqlite_master" set v = 'w'; insert into "sqlite_sequence" values (1, 'v'); insert into "_rivulet_position" values (1, 'x', 2); update "_rivulet_position" set "_rivulet_placeholder" = 3;
insert into "ÄÖÜ" values (1, 'y', 'Y', 'j', 2); update "ÄÖÜ" set "Ÿ" = 'z'; insert into "äöü" values (1, 's');
delete from rowids where ctid = (select min(ctid) from rowids where rowid = 1); update rowids set oid = 9 where rowid = 2;
insert into "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" values (1, 'x');
insert into "a.b" values (1); insert into "." values (1, 2); insert into """" values (1, 2); update """" set """""" = 3; insert into "main.t" values (1); insert into "temp" values (1, 2);
insert into "tables_names_a.b".c values (3); update "tables_names_a.b".c set id = 30 where id = 3; insert into tables_names_a."b.c" values (4); delete from tables_names_a."b.c" where id = 2;
insert into "tables_names_S".t values (4); update "tables_names_s".t set id = 5; delete from "tables_names_s"."T";
-- names that come to collide, and that come free
create table "MiXeD" (id int primary key, v int);
insert into "MiXeD" values (1, 2);
alter table mixed rename to was_mixed;
insert into was_mixed values (5, 'x');
alter table "Mixed" rename column "iD" to "Other";
update "Mixed" set "Other" = 'o';
alter table "Mixed" add column "other" int default 4;
update "Mixed" set "other" = 5;
alter table "select" rename column "from" to "rowid";
insert into "select" ("rowid") values (7);
alter table "with space" rename column "a b" to "A B";
update "with space" set "$1" = 100;
create table "sqlite_stat1" (tbl text primary key, idx text);
insert into "sqlite_stat1" values ('a', 'b');
