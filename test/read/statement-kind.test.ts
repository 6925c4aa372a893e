import { describe, expect, test } from 'vitest';
import { isCommit, isSingleQuery, mayHideWrite, statementKind } from '../../src/read/statement-kind.ts';

describe('what the server completed', () => {
  test.each([
    ['INSERT 0 1', true, 'writes'],
    ['UPDATE 0', false, 'writes'],
    ['DELETE 12', false, 'writes'],
    ['MERGE 3', false, 'writes'],
    ['COPY 5', false, 'writes'],
    ['CALL', false, 'writes'],
    ['DO', false, 'writes'],
    ['TRUNCATE TABLE', false, 'writes'],
    ['CREATE TABLE', false, 'writes'],
    ['COMMIT PREPARED', false, 'writes'],
    ['SELECT 5', true, 'may-write'],
    ['SELECT 5', false, 'writes'],
    ['FETCH 5', true, 'may-write'],
    ['EXPLAIN', true, 'may-write'],
    ['BEGIN', false, 'reads'],
    ['SET', false, 'reads'],
    ['SHOW', true, 'reads'],
    ['COMMIT', false, 'commits'],
    ['ROLLBACK', false, 'rolls-back'],
    ['PREPARE TRANSACTION', false, 'prepares'],
    ['SOMETHING NEW', false, 'writes'],
  ])('%s (rows described: %s) %s', (tag, hasRows, kind) => {
    expect(statementKind(tag, hasRows)).toBe(kind);
  });
});

describe('a statement with rows', () => {
  test.each([
    'select * from users where id = $1',
    'SELECT count(*), max(at), coalesce(a, b) from t where id in (1, 2) and (a or b)',
    '/* tag */ -- and another.\n (select 1) union (values (1))',
    'with a as (select 1), b as (values (2)) select * from a join b using (x) where exists (select 1)',
    'table users',
    'select "id", "name" from "users" "u" left join lateral (select json_build_array("a") as d) "x" on true',
    'select row_number() over (partition by a order by b) from t',
    'select a::numeric(10, 2), b::varchar(20) from t',
    'select pg_catalog.count(*), PG_Catalog . Lower (a) from app.t where t.a in (1) and t.b = any (array[1])',
    'select case when pg_current_xact_id_if_assigned() is null then rivulet.token() end as token',
  ])('is a read: %s', (text) => expect(mayHideWrite(text)).toBe(false));

  test.each([
    'select save_user($1)',
    'select * from app.create_order (7)',
    'select "Weird"(1)',
    "select auth.token('x')",
    "select token('u')",
    'select app.count(1)',
    'select billing . format (1)',
    'select "billing".format(1)',
    'select "billing" . format(1)',
    'select my_pg_catalog.count(1)',
    'select pg_catalog.nextval(1)',
    'select rivulet.count(1)',
    "select pg_catalog.token('u')",
    'with gone as (delete from t returning *) select * from gone',
    'select * into copy from t',
    "select nextval('s')",
    'select * from t for update',
    'explain analyze insert into t values (1)',
    'execute prepared(1)',
    'fetch 5 from c',
    '',
  ])('may write: %s', (text) => expect(mayHideWrite(text)).toBe(true));

  test('of one query and of a COMMIT', () => {
    expect(isSingleQuery('select f(); ')).toBe(true);
    expect(isSingleQuery('select f(); select g()')).toBe(false);
    expect(isSingleQuery('fetch 5 from c')).toBe(false);
    for (const text of ['commit', ' COMMIT;', 'END', '/* a */ commit work', 'commit and chain'])
      expect(isCommit(text), text).toBe(true);
    for (const text of ["commit prepared 'a'", 'committed', 'commit; begin', 'rollback'])
      expect(isCommit(text), text).toBe(false);
  });
});
