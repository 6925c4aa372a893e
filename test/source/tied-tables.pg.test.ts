import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readRowFilters } from '../../src/source/copy-plan.ts';
import { keepPublishedTables } from '../../src/source/published-tables.ts';
import { setup } from '../../src/source/setup.ts';
import { teardown } from '../../src/source/teardown.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const NAMES = { publication: 'rivulet', slot: 'rivulet', log: () => undefined };
const HOPELESS = 'g int generated always as (id + 1) virtual';

/**
 * See sql/007_published_tables.sql. One transaction has altered the publication, and stays open: nobody else can alter it.
 * What the others do must need nothing of it.
 */
describe.each(
  MAJORS.filter((major) => major >= 15).flatMap((major) => [
    { major, tables: ['a', 'b', 'events', 'refers'] },
    ...(major >= 18 ? [{ major, tables: undefined }] : []),
  ]),
)('Postgres $major, published: $tables', ({ major, tables }) => {
  let server: TestPostgres;
  let altering: pg.Client;
  let old: Record<string, pg.Client>;
  let user: pg.Client;

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_level: 'logical', deadlock_timeout: '50ms' } });
    [altering, user] = [await server.client(), await server.client()];
    await user.query(`create table a (id int primary key, v text); create table b (id int primary key, v text);
      create table events (id int primary key, v text); create table refers (id int primary key references b);
      create domain id as int; create table domained (id id primary key, v text); insert into domained values (1);
      create table parted (id int primary key) partition by list (id); create table part partition of parted default`);
    old = {};
    for (const isolation of ['repeatable read', 'serializable']) {
      old[isolation] = await server.client();
      await old[isolation].query(`begin isolation level ${isolation}; select 1`);
    }
    await setup({
      url: server.url,
      ...NAMES,
      patienceMs: 10,
      ...(tables === undefined ? {} : { tables: [...tables, 'domained', 'parted'] }),
    });
    await altering.query('begin; alter publication rivulet add table rivulet.migration');
  });
  afterAll(() => server?.close());

  const named = async (client: pg.Client = user): Promise<unknown[]> =>
    (
      await client.query('select prrelid::regclass::text as name from pg_publication_rel order by 1')
    ).rows.map(({ name }) => name);

  test('a table becomes UNLOGGED, in transactions too that are older than set-up', async () => {
    await user.query('begin');
    for (const client of [user, ...Object.values(old)])
      await client.query(
        'savepoint s; alter table events set unlogged; alter table if exists a set unlogged; rollback to s',
      );
    await user.query('commit');
    await user.query('begin; alter table events set unlogged');
    expect(await named()).not.toContain('events');
    await user.query('rollback');
    expect(await named()).toContain('events');
  });

  test.runIf(major >= 18)('one that no identity helps leaves, there too', async () => {
    await user.query('begin');
    for (const client of [user, ...Object.values(old)])
      await client.query(`savepoint s; alter table a drop constraint a_pkey, add column ${HOPELESS};
        insert into a (id) values (1); update a set id = 2; delete from a; rollback to s;
        alter table parted drop constraint parted_pkey, add column ${HOPELESS};
        insert into parted (id) values (1); update parted set id = 2; delete from part; rollback to s;
        create table made (id int, ${HOPELESS}); insert into made values (1); update made set id = 2; rollback to s`);
    await user.query('commit');
  });

  test('one whose key goes while a cursor is open on it takes UPDATE all the same', async () => {
    await user.query('begin; declare c cursor for select * from domained; fetch c');
    await user.query(`drop domain id cascade; update domained set v = 'x'; rollback`);
  });

  test('of several statements in one text none locks a table that it does not touch', async () => {
    const other = await server.client();
    await other.query('begin; lock table a in access share mode');
    for (const text of [
      `alter table a add column x text default E'\\\\'; alter table events set unlogged`,
      'alter table a add column x int default length($$;$$); alter table events set unlogged',
      'begin; alter table a add column x int; rollback; alter table events set unlogged; rollback',
    ]) {
      const altered = user.query(text);
      await waitUntil('it to wait for the first', async () => {
        const rows = await server.sql(`select from pg_locks where relation = 'a'::regclass and not granted`);
        return rows.length > 0;
      });
      await server.sql(`set lock_timeout = '100ms'; analyze events; create index on events (v);
        drop index events_v_idx; reset lock_timeout`);
      await other.query('commit');
      await altered;
      await user.query('alter table events set logged; alter table a drop column if exists x');
      await other.query('begin; lock table a in access share mode');
    }
    await other.query('commit');
  });

  test('what is refused otherwise, or undone, leaves all as it was', async () => {
    await altering.query('commit');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    const before = await named();
    await expect(user.query('alter table b set unlogged')).rejects.toThrow(/references logged table/);
    await user.query('begin; alter table a set unlogged; rollback');
    await user.query('begin; drop table if exists refers; alter table b set unlogged; rollback');
    expect(await named()).toEqual(before);
    await user.query('begin; alter table a set unlogged; alter table a set logged; commit');
    expect(await named()).toEqual(before);
    await altering.query('begin; alter publication rivulet add table rivulet.epoch');
  });

  test('a new table comes a little later', async () => {
    await user.query(
      'create table beside (id int primary key); insert into beside values (1); update beside set id = 2',
    );
    await altering.query('commit');
    expect(await named()).not.toContain('beside');
    const client = await server.client();
    expect(await keepPublishedTables({ client, publication: 'rivulet', log: () => undefined })).toEqual([]);
    expect(await named()).toEqual(tables === undefined ? expect.arrayContaining(['beside']) : await named());
    expect((await named()).includes('beside')).toBe(tables === undefined);
    await altering.query('begin; alter publication rivulet drop table rivulet.epoch');
  });

  test('who takes a table in just now is waited for', async () => {
    await altering.query('commit');
    await user.query('alter table events set unlogged');
    const taking = await server.client();
    await user.query('begin isolation level serializable; alter table events set logged; commit');
    expect(await named()).not.toContain('events');
    await taking.query(`begin; select rivulet.place_table('rivulet', 'events'::regclass)`);
    const other = await server.client();
    for (const text of [
      'alter table events set unlogged',
      'alter table a add column x int; alter table events set unlogged',
    ]) {
      const unlogging = other.query(text);
      await waitUntil('it to wait', async () => {
        const rows = await server.sql(
          `select from pg_stat_activity where pid = $1 and wait_event is not null and state = 'active'`,
          [(other as pg.Client & { processID: number }).processID],
        );
        return rows.length > 0;
      });
      await taking.query('commit');
      await unlogging;
      await user.query('begin isolation level serializable; alter table events set logged; commit');
      await taking.query(`begin; select rivulet.place_table('rivulet', 'events'::regclass)`);
    }
    await taking.query('commit');
    await user.query('alter table a drop column x');
    expect(await named()).toContain('events');
    await altering.query('begin');
  });

  test('no serializable transaction fails for the tables of another', async () => {
    await altering.query('commit');
    const both = [user, await server.client()];
    for (const columns of ['(id int primary key)', '(id int, v text)']) {
      for (const client of both) await client.query('begin isolation level serializable');
      for (const [index, client] of both.entries())
        await client.query(`create table serial${index} ${columns}; insert into serial${index} values (1);
          alter table serial${index} add column w int; update serial${index} set w = 1`);
      for (const client of both) await client.query('commit');
      await user.query('drop table serial0, serial1');
    }
    expect(
      await server.sql(`select from pg_proc where proname ~ '^tie_' and proname !~ '^tie_(of|tables)$'
      and not exists (select from pg_class c where proname = 'tie_' || c.oid)`),
    ).toEqual([]);
  });

  test('what somebody names himself is tied, and keeps its columns and row filter', async () => {
    await user.query('create table own (id int primary key, v text, w int)');
    const part = async () =>
      (
        await user.query(
          `select prattrs::text as columns, pg_get_expr(prqual, prrelid) as filter, prrelid as oid
             from pg_publication_rel where prrelid = 'own'::regclass`,
        )
      ).rows[0];
    await user.query(
      `${tables === undefined ? 'alter publication rivulet drop table own; ' : ''}alter publication rivulet add table only own (id, v) where (id > 5 and v <> '')`,
    );
    const { oid, ...own } = await part();
    expect(own).toEqual({
      columns: '1 2',
      filter: `((id > 5) AND (v <> ''::text) AND ('rivulet.tie_${oid}()'::regprocedure IS NOT NULL))`,
    });
    expect(await readRowFilters(user, 'rivulet')).toEqual(new Map([[oid, `((id > 5) AND (v <> ''::text))`]]));
    await user.query('alter table own set unlogged; alter table own set logged');
    expect(await part()).toEqual({ oid, ...own });
    await user.query('begin isolation level serializable; alter table own set unlogged; commit');
    await user.query('begin isolation level serializable; alter table own set logged; commit');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    expect(await part()).toEqual({ oid, ...own });
    // Where the hooks do not see it, set-up and the replicator do it.
    await user.query('alter event trigger rivulet_ddl disable');
    await user.query('alter publication rivulet drop table own; alter publication rivulet add table own');
    await user.query('alter event trigger rivulet_ddl enable always');
    expect(await part()).toEqual({ oid, columns: null, filter: null });
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    expect(await part()).toEqual({
      oid,
      columns: null,
      filter: `('rivulet.tie_${oid}()'::regprocedure IS NOT NULL)`,
    });
    expect(await readRowFilters(user, 'rivulet')).toEqual(new Map());
  });

  test('another number, as after a dump was restored, takes nothing else along', async () => {
    const ties = async () =>
      (
        await user.query(
          `select r.prrelid::regclass::text as name, rivulet.is_tied(r.prrelid, r.prpubid) as is_own from pg_publication_rel r
            where r.prrelid in ('a'::regclass, 'b'::regclass) order by 1`,
        )
      ).rows;
    const swap = `alter function rivulet.tie_%s() rename to tie_0; alter function rivulet.tie_%s() rename to tie_%s;
      alter function rivulet.tie_0() rename to tie_%s`;
    await user.query(
      `do $$ begin execute format('${swap}', 'a'::regclass::oid, 'b'::regclass::oid, 'a'::regclass::oid, 'b'::regclass::oid); end $$`,
    );
    expect(await ties()).toEqual([
      { name: 'a', is_own: false },
      { name: 'b', is_own: false },
    ]);
    await user.query('begin; alter table a set unlogged');
    expect((await ties()).map(({ name }) => name)).toEqual(['b']);
    await user.query('rollback');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    expect(await ties()).toEqual([
      { name: 'a', is_own: true },
      { name: 'b', is_own: true },
    ]);
  });
});

test.skipIf(MAJORS.every((major) => major < 18))('more tables than the server has locks for', async () => {
  const few = { max_connections: '10', max_locks_per_transaction: '10', max_wal_senders: '2' };
  await using server = await startPostgres({ major: 18, settings: { wal_level: 'logical', ...few } });
  for (let first = 0; first < 1_000; first += 50)
    await server.sql(`do $$ begin for i in ${first}..${first + 49} loop
      execute format('create table t%s (id int primary key)', i); end loop; end $$`);
  const report = await setup({ url: server.url, ...NAMES });
  expect(report.missing).toEqual([]);
  expect(report.tables).toHaveLength(1_000);
  await expect(server.sql('drop publication rivulet')).rejects.toThrow(/out of shared memory/);
  expect((await teardown({ url: server.url, ...NAMES })).left).toEqual([]);
});
