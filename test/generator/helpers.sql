-- Rows of any table, made, changed and deleted from a seed: a statement stays as short as the seed, and means something
-- whatever shape the table has by then. What Postgres refuses leaves that row as it was.
create schema gen;

create table gen.literals (type text primary key, literals text[] not null);
insert into gen.literals values
  ('integer', '{0,1,2,3,4,5,6,7,-1,2147483647,-2147483648}'),
  ('bigint', '{0,1,2,3,9223372036854775807,-9223372036854775808,9007199254740993,-9007199254740993}'),
  ('smallint', '{0,1,2,32767,-32768}'),
  ('numeric', '{0,1,1.0,1.00,-1.50,0.1,123456789012345,1234567890123456.7,1e25,1e-25,NaN,9223372036854775808,0.000000000000001}'),
  ('double precision', '{0,-0,1,-1.5,NaN,Infinity,-Infinity,5e-324,1.7976931348623157e308,0.1}'),
  ('real', '{0,-0,1,NaN,Infinity,1e-45,3.4028235e38,0.1}'),
  ('text', array['', 'a', 'b', 'NULL', ' pad ', E'\t\n\\', E'\ufeff', E'\U0001f600', '"quoted"', '''', '007', '1e5', repeat('long', 4000), repeat('x', 70000)]),
  ('character varying', array['', 'a', 'b', 'NULL', ' x ', E'\\N']),
  ('character', array['', 'a', 'ab', ' b']),
  ('bytea', array['', '\x00', '\xff00', '\x5c', '\x' || repeat('ab', 5000)]),
  ('boolean', '{t,f}'),
  ('date', array['2026-11-21', 'infinity', '0044-03-15 BC', '5874897-12-31']),
  ('timestamp without time zone', array['2026-11-21 03:00:00.1', '2026-11-21', '-infinity', '0044-03-15 BC', '294276-12-31 23:59:59.999999']),
  ('timestamp with time zone', array['2026-11-21 03:00:00.123456+00', '2026-11-21 05:00+02', 'infinity', '10000-01-01 00:00+00']),
  ('time without time zone', array['24:00:00', '00:00:00', '12:34:56.7']),
  ('interval', array['0', '1 mon', '30 days', '1 year -2 mons +3 days -04:05:06.7']),
  ('uuid', array['00000000-0000-0000-0000-000000000000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12']),
  ('jsonb', array['null', '{"a": 1.0, "b": [1e400]}', '"x"', '[]', '1']),
  ('json', array['null', '{"a":1,"a":2}', ' "x" ', '"\ud83d"']),
  ('integer[]', array['{}', '{1,NULL,-3}', '{{1,2},{3,4}}', '[5:6]={1,2}']),
  ('text[]', array['{}', '{"a,b",NULL,"NULL","\"\\"}', '{{a},{b}}']),
  ('numeric[]', array['{}', '{1,1.0,NaN,NULL}', '{123456789012345678901234567890.5}']),
  ('timestamp with time zone[]', array['{}', '{2026-11-21 03:00:00+00,infinity,NULL}']),
  ('int4range', array['empty', '[1,5)', '(,)', '[3,4)']),
  ('inet', array['192.168.1.5', '::1/64', '10.0.0.0/8']),
  ('point', array['(1,2)', '(-0,NaN)']),
  ('box[]', array['{(1,2),(3,4);NULL}', '{}']),
  ('mood', array['sad', 'ok', 'it''s "x"']),
  ('pair', array['(1,a)', '(,"b,c")', '(2,)']),
  ('pair[]', array['{}', '{"(1,\"a,b\")",NULL}']),
  ('small', array['1', '2', '999']);

-- A number from a seed and whatever else tells two places apart.
create function gen.roll(seed int, place text) returns int language sql immutable as
$$ select abs(hashtext(seed || ':' || place)::bigint)::bigint::numeric::bigint % 1000003 $$;

-- The literal of one column of one row: NULL now and then.
create function gen.literal(a pg_attribute, seed int, place text) returns text language plpgsql stable as $$
declare
  named text := regexp_replace(format_type(a.atttypid, null), '^.*\.', '');
  choice text[] := (select literals from gen.literals where type = named);
begin
  if choice is null or (not a.attnotnull and gen.roll(seed, place || 'n') % 5 = 0) then return 'null'; end if;
  return quote_literal(choice[1 + gen.roll(seed, place) % cardinality(choice)]) || '::' || format_type(a.atttypid, a.atttypmod);
end $$;

create function gen.columns(t regclass) returns setof pg_attribute language sql stable as
$$ select a from pg_attribute a where a.attrelid = t and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity <> 'a' order by a.attnum $$;

create function gen.make(t regclass, seed int, count int) returns void language plpgsql as $$
begin
  for i in 1..count loop
    begin
      execute (select format('insert into %s (%s) values (%s) on conflict do nothing', t, string_agg(quote_ident(c.attname), ', '),
                             string_agg(gen.literal(c, seed, i || '.' || c.attnum), ', ')) from gen.columns(t) c);
    exception when others then null;
    end;
  end loop;
end $$;

-- Some rows get new values in some columns; an UPDATE that fails as a whole is tried row by row.
create function gen.change(t regclass, seed int) returns void language plpgsql as $$
declare
  sets text := (select string_agg(format('%I = %s', c.attname, gen.literal(c, seed, c.attnum::text)), ', ')
                  from gen.columns(t) c where gen.roll(seed, 'set' || c.attnum) % 3 = 0);
  place tid;
begin
  if sets is null then return; end if;
  begin
    execute format('update %s x set %s where abs(hashtext(x::text)::bigint + %s) %% 3 = 0', t, sets, seed);
  exception when unique_violation or others then
    for place in execute format('select ctid from %s x where abs(hashtext(x::text)::bigint + %s) %% 3 = 0', t, seed) loop
      begin
        execute format('update %s set %s where ctid = %L', t, sets, place);
      exception when others then null;
      end;
    end loop;
  end;
end $$;

create function gen.remove(t regclass, seed int) returns void language plpgsql as $$
begin
  execute format('delete from %s x where abs(hashtext(x::text)::bigint + %s) %% 4 = 0', t, seed);
end $$;

-- TRUNCATE, but not of a single partition: nothing of that is in the stream, and until the catalog tells of it a row of
-- the same key cannot be inserted in the replicas.
create function gen.empty(a regclass, b regclass) returns void language plpgsql as $$
begin
  if exists (select from pg_class where oid in (a, b) and relispartition) then return; end if;
  if a = b then execute format('truncate %s', a); else execute format('truncate %s, %s', a, b); end if;
end $$;
