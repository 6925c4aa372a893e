-- json is kept as it was written, jsonb as Postgres prints it; neither is ever parsed.
-- setup
create table documents (id int primary key, j json, b jsonb);
insert into documents values
  (1, '{"a":1,"a":2, "b" : [ 1 , 2 ]}', '{"a":1,"a":2, "b" : [ 1 , 2 ]}'), (2, 'null', 'null'), (3, null, null), (4, '""', '""'), (5, ' 1.0 ', '1.0'),
  (6, '1e400', '1e400'), (7, '123456789012345678901234567890.000', '123456789012345678901234567890.000'), (8, '-0', '-0'), (9, '-0.0', '-0.0'),
  (10, '"\ud83d"', '"x"'), (11, '"\u0000 \ud83d\ude00"', '"\ud83d\ude00"'), (12, '{"__proto__":{"x":1},"constructor":0}', '{"__proto__":{"x":1},"constructor":0}'),
  (13, E'{\n\t"a":\r\n"b"}', E'{\n\t"a":\r\n"b"}'), (14, '"\t\"\\\/"', '"\t\"\\\/"'), (15, '[]', '{}'), (16, ('"' || repeat('x', 100000) || '"')::json, '"x"'),
  (17, (repeat('[', 500) || repeat(']', 500))::json, (repeat('[', 500) || repeat(']', 500))::jsonb), (18, '{"":""}', '{"":""}'), (19, '1E-400', '1E-400'), (20, ('"' || E'\ufeff\U0001f600' || '"')::json, '"é"');
insert into documents select 100, '1', (repeat('9', 131072))::jsonb;
create table as_arrays (id int primary key, j json[], b jsonb[], x xml[]);
insert into as_arrays values
  (1, array['{"a":1,"a":2}', '"\ud83d"', 'null', null, '"a,b"', ' 1.0 ', E'{\n"x":"\\\\"}']::json[], array['{"b":1,"a":2}', '1.00', 'null', null, '"\""']::jsonb[], array['<a b="c,d">{}</a>', '', null]::xml[]),
  (2, '{}', '{}', '{}'), (3, array[array['1'::json], array['[2]'::json]], array[array['{}'::jsonb, null]], '[0:0]={x}'), (4, null, null, null);
create table markup (id int primary key, x xml);
insert into markup values (1, '<a/>'), (2, 'no element at all'), (3, ''), (4, null), (5, '<?xml version="1.0" encoding="utf-8"?><ä b="&lt;&quot;">ü<![CDATA[ <x> ]]></ä>'), (6, '<!-- c --><a>  </a><b/>');
-- both ways: documents, as_arrays, markup

-- live
create table changed as table documents;
alter table changed add primary key (id);
update changed set j = j, b = b || '{"added":1e5}' where id = 1;
update changed set b = jsonb_set(b, '{a}', '"\u20ac"') where id = 12;
